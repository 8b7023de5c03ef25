// SPDX-License-Identifier: MPL-2.0

//! Where in time the frames lie, and whether one follows the last.

use gst::prelude::*;
use gst::{ClockTime, Signed};

/// A gap between frames beyond this is a jump.
const JUMP: ClockTime = ClockTime::SECOND;

/// A frame's place in time.
#[derive(Clone, Copy)]
pub struct FrameTime {
    /// Its stream time or, if it lies outside the segment, its time stamp.
    position: ClockTime,
    /// In stream time.
    duration: Option<ClockTime>,
    running_time: Option<ClockTime>,
    /// What a span of stream time is multiplied by to be one of running time.
    running_per_stream: f64,
}

impl FrameTime {
    pub fn new(
        pts: ClockTime,
        duration: Option<ClockTime>,
        segment: Option<&gst::FormattedSegment<ClockTime>>,
    ) -> Self {
        let stream_time = segment.and_then(|segment| segment.to_stream_time(pts));
        let applied_rate = segment.map_or(1.0, |segment| segment.applied_rate());
        Self {
            position: stream_time.unwrap_or(pts),
            duration: duration.map(|duration| scaled(duration, applied_rate)),
            running_time: segment.and_then(|segment| segment.to_running_time(pts)),
            running_per_stream: segment
                .map_or(1.0, |segment| (segment.rate() * applied_rate).recip()),
        }
    }

    fn end(&self) -> ClockTime {
        self.position
            .saturating_add(self.duration.unwrap_or_default())
    }

    /// The stream time between two frames: zero if one begins where the other ends or begins.
    fn distance(&self, other: &Self) -> ClockTime {
        let begin = self.position.absdiff(other.position);
        let after = self.end().absdiff(other.position);
        let before = other.end().absdiff(self.position);
        begin.min(after).min(before)
    }
}

/// The times of the frames that arrive.
#[derive(Default)]
pub struct Timeline {
    last: Option<FrameTime>,
    /// The running time between the last two frames.
    gap: Option<ClockTime>,
    /// The least time that frames were behind the clock when they arrived; negative if one was ahead of it.
    delay: Option<Signed<ClockTime>>,
    /// The running time before which frames are too late for downstream, by its last QoS event.
    earliest: Option<ClockTime>,
}

impl Timeline {
    /// Takes the next frame's times. True if it jumps away from the last one. Frames between them that were
    /// dropped upstream as too late, left out by a fast playback, or lost by a live source make no jump.
    ///
    /// `now` is the clock's running time.
    pub fn advance(&mut self, frame: FrameTime, now: Option<ClockTime>, live: bool) -> bool {
        // While the clock stands still, a live source gives only what waited, and frames were lost before
        // it. Without a clock nothing tells what was lost.
        let latest = live.then(|| now.map_or(ClockTime::MAX, |now| self.latest_at(now)));
        // The first frame counts above all: later ones may have waited while others were painted.
        if let Some((now, running_time)) = now.zip(frame.running_time) {
            let delay = now.into_positive().saturating_sub_unsigned(running_time);
            self.delay = Some(self.delay.map_or(delay, |least| least.min(delay)));
        }
        let Some(last) = self.last.replace(frame) else {
            return false;
        };
        self.gap = frame
            .running_time
            .zip(last.running_time)
            .and_then(|(now, before)| now.checked_sub(before));
        let distance = scaled(last.distance(&frame), frame.running_per_stream);
        // By the clock and not by when the last frame arrived: old frames may wait upstream, and come
        // between a long painting and the gap that it made. A frame of a live source jumps only if it is
        // fresher than all before it by over a second.
        // None comes before all times: then nothing was dropped or lost.
        let dropped_or_lost = self.earliest.max(latest);
        let explained = self
            .gap
            .is_some_and(|gap| distance <= gap.saturating_add(JUMP))
            && frame.running_time <= dropped_or_lost.map(|time| time.saturating_add(JUMP));
        distance > JUMP && !explained
    }

    /// How far the next frame is from the last one in running time: as long as that one lasts, but no
    /// further than it was from the one before it. Further it may be where frames were dropped upstream, as
    /// decoders do after a late one.
    pub fn interval(&self) -> Option<ClockTime> {
        let last = self.last.as_ref()?;
        let duration = last.duration.unwrap_or(ClockTime::MAX);
        Some(self.gap?.min(scaled(duration, last.running_per_stream)))
    }

    /// Frames of a live source up to this running time have arrived at a time of the clock.
    pub fn latest_at(&self, time: ClockTime) -> ClockTime {
        let delay = self.delay.unwrap_or(Signed::Positive(ClockTime::ZERO));
        let latest = time.into_positive().saturating_sub(delay);
        latest.positive().unwrap_or_default()
    }

    /// The next frame follows none, in the same running time.
    pub fn interrupt(&mut self) {
        (self.last, self.gap) = (None, None);
    }

    /// Takes the running time before which frames are too late for downstream.
    pub fn set_earliest(&mut self, earliest: ClockTime) {
        self.earliest = Some(earliest);
    }
}

/// A span of time, multiplied by a factor's absolute value: rates are negative where the video plays backwards.
fn scaled(span: ClockTime, factor: f64) -> ClockTime {
    let time = (span.nseconds() as f64 * factor.abs()) as u64;
    ClockTime::from_nseconds(time.min(ClockTime::MAX.nseconds()))
}

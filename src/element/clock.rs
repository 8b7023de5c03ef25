// SPDX-License-Identifier: MPL-2.0

//! Where in time the frames lie, and whether one follows the last.

use gst::ClockTime;
use gst::prelude::*;
use std::time::Instant;

/// A gap between frames beyond this is a jump.
const JUMP: ClockTime = ClockTime::SECOND;

#[derive(Clone, Copy)]
struct LastFrame {
    pts: ClockTime,
    end: ClockTime,
    running_time: Option<ClockTime>,
    arrived: Instant,
}

/// The times of the frames that arrive.
#[derive(Default)]
pub struct Timeline {
    last: Option<LastFrame>,
    /// The running time before which frames are too late for downstream, by its last QoS event.
    earliest: Option<ClockTime>,
}

/// Why a frame does not follow the last one.
pub struct Jump {
    gap: ClockTime,
    /// Wall-clock time since the last frame arrived.
    elapsed: ClockTime,
}

impl Jump {
    /// Whether the wall clock advanced with the video: from a live source, frames were lost meanwhile.
    pub fn passed_in_real_time(&self) -> bool {
        self.gap <= JUMP + self.elapsed
    }
}

impl Timeline {
    /// Takes the next frame's times; the jump to it, if it is one. No jump is made by the frames that
    /// a decoder upstream dropped as too late.
    pub fn advance(
        &mut self,
        pts: ClockTime,
        duration: Option<ClockTime>,
        running_time: Option<ClockTime>,
    ) -> Option<Jump> {
        let last = self.last.replace(LastFrame {
            pts,
            end: pts.saturating_add(duration.unwrap_or_default()),
            running_time,
            arrived: Instant::now(),
        })?;
        let gap = pts.absdiff(last.pts).min(pts.absdiff(last.end));
        let is_later = running_time > last.running_time;
        let were_dropped =
            is_later && running_time <= self.earliest.map(|time| time.saturating_add(JUMP));
        let elapsed = elapsed(last.arrived);
        (gap > JUMP && !were_dropped).then_some(Jump { gap, elapsed })
    }

    /// Takes a QoS event: the frame at running time `timestamp` was late by `lateness`. As in
    /// GStreamer's decoders, frames before `timestamp` + 2 · `lateness` are then dropped.
    pub fn add_lateness(&mut self, timestamp: ClockTime, lateness: ClockTime) {
        self.earliest = Some(timestamp.saturating_add(lateness).saturating_add(lateness));
    }
}

/// Whether `sink` is fed by a live source, which loses frames while one is painted: that is no jump.
pub fn is_live(sink: &gst::Pad) -> bool {
    let mut query = gst::query::Latency::new();
    sink.peer_query(&mut query) && query.result().0
}

pub fn elapsed(since: Instant) -> ClockTime {
    ClockTime::try_from(since.elapsed()).unwrap_or(ClockTime::MAX)
}

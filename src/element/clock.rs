// SPDX-License-Identifier: MPL-2.0

//! Where in time the frames are, and how long things take.

use gst::ClockTime;
use gst::prelude::*;
use std::time::Instant;

/// A jump in time beyond this starts anew.
const JUMP: ClockTime = ClockTime::SECOND;

/// The last frame's place in the video.
#[derive(Clone, Copy)]
struct Last {
    pts: ClockTime,
    end: ClockTime,
    running_time: Option<ClockTime>,
    came: Instant,
}

/// Where in the video the frames are.
#[derive(Default)]
pub struct Position {
    last: Option<Last>,
    /// The running time before which those downstream have no use for frames.
    earliest: Option<ClockTime>,
}

/// A frame that does not follow the last one.
pub struct Jump {
    gap: ClockTime,
    /// Since the last frame came.
    elapsed: ClockTime,
}

impl Jump {
    /// Whether so much of the video has passed since the last frame, where it passes by itself.
    pub fn is_elapsed(&self) -> bool {
        self.gap <= JUMP + self.elapsed
    }
}

impl Position {
    /// Takes the next frame's place in time.
    pub fn follow(
        &mut self,
        pts: ClockTime,
        duration: Option<ClockTime>,
        running_time: Option<ClockTime>,
    ) -> Option<Jump> {
        let last = self.last.replace(Last {
            pts,
            end: pts.saturating_add(duration.unwrap_or_default()),
            running_time,
            came: Instant::now(),
        })?;
        let gap = pts.absdiff(last.pts).min(pts.absdiff(last.end));
        let goes_on = running_time > last.running_time;
        let dropped = goes_on && running_time <= self.earliest.map(|it| it.saturating_add(JUMP));
        let elapsed = elapsed(last.came);
        (gap > JUMP && !dropped).then_some(Jump { gap, elapsed })
    }

    /// A frame of running time `timestamp` was shown so much too late. Decoders drop what comes
    /// within twice that.
    pub fn late(&mut self, timestamp: ClockTime, by: ClockTime) {
        self.earliest = Some(timestamp.saturating_add(by).saturating_add(by));
    }
}

/// Whether the frames come to `sink` as time passes: then some are lost while one is painted, and
/// that is no jump.
pub fn is_live(sink: &gst::Pad) -> bool {
    let mut query = gst::query::Latency::new();
    sink.peer_query(&mut query) && query.result().0
}

pub fn elapsed(since: Instant) -> ClockTime {
    ClockTime::try_from(since.elapsed()).unwrap_or(ClockTime::MAX)
}

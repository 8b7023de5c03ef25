// SPDX-License-Identifier: MPL-2.0

//! Where in time the frames are, and how long things take.

use gst::ClockTime;
use gst::prelude::*;
use std::time::Instant;

/// A jump in time beyond this starts anew.
const JUMP: ClockTime = ClockTime::SECOND;

/// When the last frame began and when the next one should, in the video; and when it came.
#[derive(Clone, Copy, Default)]
pub struct Position(Option<(ClockTime, ClockTime, Instant)>);

impl Position {
    /// Takes the next frame's place in time. True where that does not follow the last one's.
    pub fn follow(
        &mut self,
        pts: ClockTime,
        duration: Option<ClockTime>,
        is_live: impl FnOnce() -> bool,
    ) -> bool {
        let jumps = self.0.is_some_and(|(last, next, came)| {
            let gap = pts.absdiff(last).min(pts.absdiff(next));
            gap > JUMP && !(is_live() && gap <= JUMP + elapsed(came))
        });
        let next = pts + duration.unwrap_or_default();
        self.0 = Some((pts, next, Instant::now()));
        jumps
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

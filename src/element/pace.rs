// SPDX-License-Identifier: MPL-2.0

//! How long frames take, for QoS and for the latency that the element reports.

use gst::ClockTime;
use std::collections::VecDeque;

/// The number of painted frames whose longest time is the latency.
const WINDOW: usize = 30;

/// The next frame is expected to take the second longest time of so many painted last. With the median, half of
/// them would be late and painted for nothing; with the longest, one that was held up would have frames skipped
/// that are in time.
const RECENT: usize = 5;

/// The times that recent frames took to paint. The caller leaves out those that take longer than the next one:
/// first frames, cuts, and those that set up their objective; and those that are not due to be painted.
#[derive(Default)]
pub struct Pace {
    /// The last one first.
    painted: VecDeque<ClockTime>,
    /// How many of the last of them count for the next frame: those painted since the settings changed.
    recent: usize,
    /// Whether the last frame that was due to be painted repeated a painting instead, as the picture rests.
    pub rests: bool,
    latency: ClockTime,
}

impl Pace {
    /// Adds the time of a painted frame. True if the latency has changed, so that the pipeline has to
    /// query it again.
    ///
    /// That is rare, as it moves the presentation of all streams: it leaves a quarter of room above
    /// the longest time, and is lowered only where it is more than twice that time.
    pub fn add(&mut self, time: ClockTime) -> bool {
        self.recent = RECENT.min(self.recent + 1);
        self.painted.truncate(WINDOW - 1);
        self.painted.push_front(time);
        let longest = self.painted.iter().copied().max().unwrap_or_default();
        let fits = (longest..=longest.saturating_mul(2)).contains(&self.latency);
        if !fits {
            self.latency = longest + longest / 4;
        }
        !fits
    }

    /// Forgets what frames took, as the next ones are painted otherwise.
    pub fn forget(&mut self) {
        self.recent = 0;
    }

    /// What the element adds to the pipeline's latency.
    pub fn latency(&self) -> ClockTime {
        self.latency
    }

    /// What painting the next frame is expected to take. None while the picture rests: its painting is
    /// repeated in no time.
    pub fn expected(&self) -> Option<ClockTime> {
        if self.rests {
            return None;
        }
        let mut times: Vec<_> = self.painted.iter().copied().take(self.recent).collect();
        times.sort_unstable();
        times.get(times.len().saturating_sub(2)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> ClockTime {
        ClockTime::from_mseconds(time)
    }

    #[test]
    fn latency_covers_the_longest_time_and_seldom_changes() {
        let mut pace = Pace::default();
        assert!(pace.add(ms(100)));
        assert_eq!(pace.latency(), ms(125));
        for time in [50, 125, 110, 70] {
            assert!(!pace.add(ms(time)));
        }
        assert!(pace.add(ms(160)));
        assert_eq!(pace.latency(), ms(200));
        let changes = (0..2 * WINDOW).filter(|_| pace.add(ms(100))).count();
        assert_eq!((changes, pace.latency()), (0, ms(200)));
        let changes = (0..2 * WINDOW).filter(|_| pace.add(ms(60))).count();
        assert_eq!((changes, pace.latency()), (1, ms(75)));
    }

    #[test]
    fn the_next_frame_is_expected_to_take_the_second_longest_of_the_last() {
        let mut pace = Pace::default();
        assert_eq!(pace.expected(), None);
        for time in [300, 90, 20, 30, 100, 10, 25] {
            pace.add(ms(time));
        }
        assert_eq!(pace.expected(), Some(ms(30)));
        pace.forget();
        assert_eq!(pace.expected(), None);
        pace.add(ms(2));
        assert_eq!(pace.expected(), Some(ms(2)));
    }

    #[test]
    fn while_the_picture_rests_the_next_frame_is_expected_to_take_no_time() {
        let mut pace = Pace::default();
        pace.add(ms(40));
        pace.rests = true;
        assert_eq!(pace.expected(), None);
        pace.rests = false;
        assert_eq!(pace.expected(), Some(ms(40)));
    }
}

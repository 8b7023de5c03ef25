// SPDX-License-Identifier: MPL-2.0

//! How long frames take, for QoS and for the latency that the element reports.

use gst::ClockTime;
use std::collections::VecDeque;

/// The number of recent frames that count.
const WINDOW: usize = 30;

/// The times that recent frames took. The caller leaves out first frames, which take longer.
#[derive(Default)]
pub struct Pace {
    /// Of frames that were painted.
    painted: VecDeque<ClockTime>,
    /// Of all frames, also those that repeat a painting.
    all: VecDeque<ClockTime>,
    latency: ClockTime,
}

impl Pace {
    /// Adds a frame's time. True if the latency has changed, so that the pipeline has to query it
    /// again.
    ///
    /// That is rare, as it moves the presentation of all streams: it leaves a quarter of room above
    /// the longest time, and is lowered only where it is more than twice that time.
    pub fn add(&mut self, time: ClockTime, painted: bool) -> bool {
        push(&mut self.all, time);
        if !painted {
            return false;
        }
        push(&mut self.painted, time);
        let longest = self.painted.iter().copied().max().unwrap_or_default();
        let fits = (longest..=longest.saturating_mul(2)).contains(&self.latency);
        if !fits {
            self.latency = longest + longest / 4;
        }
        !fits
    }

    /// What the element adds to the pipeline's latency.
    pub fn latency(&self) -> ClockTime {
        self.latency
    }

    /// The median time of all frames: what the next one is expected to take.
    pub fn expected(&self) -> ClockTime {
        let mut times: Vec<_> = self.all.iter().copied().collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}

fn push(times: &mut VecDeque<ClockTime>, time: ClockTime) {
    if times.len() == WINDOW {
        times.pop_front();
    }
    times.push_back(time);
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
        assert!(pace.add(ms(100), true));
        assert_eq!(pace.latency(), ms(125));
        for time in [50, 125, 110, 70] {
            assert!(!pace.add(ms(time), true));
        }
        assert!(pace.add(ms(160), true));
        assert_eq!(pace.latency(), ms(200));
        let changes = (0..2 * WINDOW).filter(|_| pace.add(ms(100), true)).count();
        assert_eq!((changes, pace.latency()), (0, ms(200)));
        let changes = (0..2 * WINDOW).filter(|_| pace.add(ms(60), true)).count();
        assert_eq!((changes, pace.latency()), (1, ms(75)));
    }

    #[test]
    fn repeated_frames_count_in_what_is_expected_only() {
        let mut pace = Pace::default();
        assert_eq!(pace.expected(), ms(0));
        for _ in 0..WINDOW {
            pace.add(ms(100), true);
            pace.add(ms(1), false);
            assert!(!pace.add(ms(2), false));
        }
        assert_eq!((pace.expected(), pace.latency()), (ms(2), ms(125)));
        for time in [300, 90, 110].into_iter().cycle().take(WINDOW) {
            pace.add(ms(time), true);
        }
        assert_eq!(pace.expected(), ms(110));
    }
}

// SPDX-License-Identifier: MPL-2.0

//! How long frames take, for QoS and for the latency that the element reports.

use gst::ClockTime;
use std::collections::VecDeque;

/// The number of painted frames whose longest time is the latency.
const WINDOW: usize = 30;

/// The number of frames whose median time the next one is expected to take.
const RECENT: usize = 5;

/// The times that recent frames took. The caller leaves out first frames, which take longer.
#[derive(Default)]
pub struct Pace {
    /// Of frames that were painted.
    painted: VecDeque<ClockTime>,
    /// Of all frames; None where a painting was repeated.
    recent: VecDeque<Option<ClockTime>>,
    latency: ClockTime,
}

impl Pace {
    /// Adds the time of a painted frame. True if the latency has changed, so that the pipeline has to
    /// query it again.
    ///
    /// That is rare, as it moves the presentation of all streams: it leaves a quarter of room above
    /// the longest time, and is lowered only where it is more than twice that time.
    pub fn add(&mut self, time: ClockTime) -> bool {
        push(&mut self.recent, Some(time), RECENT);
        push(&mut self.painted, time, WINDOW);
        let longest = self.painted.iter().copied().max().unwrap_or_default();
        let fits = (longest..=longest.saturating_mul(2)).contains(&self.latency);
        if !fits {
            self.latency = longest + longest / 4;
        }
        !fits
    }

    /// Adds a frame that repeated a painting.
    pub fn add_repeated(&mut self) {
        push(&mut self.recent, None, RECENT);
    }

    /// Forgets what frames took, as the next ones are painted otherwise.
    pub fn forget(&mut self) {
        self.recent.clear();
    }

    /// What the element adds to the pipeline's latency.
    pub fn latency(&self) -> ClockTime {
        self.latency
    }

    /// What the next frame is expected to take. None if some of the recent ones were not painted, so that
    /// it may be repeated as well.
    pub fn expected(&self) -> Option<ClockTime> {
        let mut times: Vec<_> = self.recent.iter().copied().collect::<Option<_>>()?;
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

fn push<T>(times: &mut VecDeque<T>, time: T, len: usize) {
    if times.len() == len {
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
    fn the_next_frame_is_expected_to_take_the_median_of_the_last() {
        let mut pace = Pace::default();
        assert_eq!(pace.expected(), None);
        for time in [100, 90, 20, 30, 300, 10, 25] {
            pace.add(ms(time));
        }
        assert_eq!(pace.expected(), Some(ms(25)));
        pace.add_repeated();
        for _ in 0..RECENT - 1 {
            pace.add(ms(40));
            assert_eq!(pace.expected(), None);
        }
        pace.add(ms(40));
        assert_eq!(pace.expected(), Some(ms(40)));
        pace.forget();
        assert_eq!(pace.expected(), None);
        pace.add(ms(2));
        assert_eq!(pace.expected(), Some(ms(2)));
    }
}

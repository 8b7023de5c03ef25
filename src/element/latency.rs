// SPDX-License-Identifier: MPL-2.0

//! The latency that the element reports.

use gst::ClockTime;
use std::collections::VecDeque;

/// Number of recent frames that the latency is taken from.
const WINDOW: usize = 30;

/// The largest time that one of the recent frames took. The caller leaves out first frames, which
/// take longer.
#[derive(Default)]
pub struct Latency {
    times: VecDeque<ClockTime>,
    /// What the pipeline was last told of.
    announced: ClockTime,
}

impl Latency {
    /// Adds a frame's time. True if the latency has changed by more than a tenth since this was last
    /// true, so that the pipeline has to query it again.
    pub fn add(&mut self, time: ClockTime) -> bool {
        if self.times.len() == WINDOW {
            self.times.pop_front();
        }
        self.times.push_back(time);
        let largest = self.largest();
        let has_changed = largest.absdiff(self.announced) > self.announced / 10;
        if has_changed {
            self.announced = largest;
        }
        has_changed
    }

    /// What the element adds to the pipeline's latency.
    pub fn largest(&self) -> ClockTime {
        self.times.iter().copied().max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_largest_time_of_the_window_and_changes_by_tenths() {
        let ms = ClockTime::from_mseconds;
        let mut latency = Latency::default();
        assert!(latency.add(ms(100)));
        assert!(!latency.add(ms(50)));
        assert!(!latency.add(ms(109)));
        assert_eq!(latency.largest(), ms(109));
        assert!(latency.add(ms(120)));
        assert_eq!(latency.largest(), ms(120));
        let changes = (0..WINDOW).filter(|_| latency.add(ms(60))).count();
        assert_eq!((changes, latency.largest()), (1, ms(60)));
    }
}

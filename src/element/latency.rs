// SPDX-License-Identifier: MPL-2.0

use gst::ClockTime;
use std::collections::VecDeque;

/// Frames that the latency is the largest time of.
const WINDOW: usize = 30;

/// Says how long frames take, for the latency query. First frames, which take longer, are the
/// caller's to leave out.
#[derive(Default)]
pub struct Latency {
    times: VecDeque<ClockTime>,
    announced: ClockTime,
}

impl Latency {
    /// Counts a frame's time. True if the latency has moved by more than a tenth since this was
    /// last true, so that the pipeline should ask again.
    pub fn add(&mut self, time: ClockTime) -> bool {
        if self.times.len() == WINDOW {
            self.times.pop_front();
        }
        self.times.push_back(time);
        let largest = self.largest();
        let moved = largest.absdiff(self.announced) > self.announced / 10;
        if moved {
            self.announced = largest;
        }
        moved
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
    fn it_is_the_largest_time_of_the_window_and_moves_by_tenths() {
        let ms = ClockTime::from_mseconds;
        let mut latency = Latency::default();
        assert!(latency.add(ms(100)));
        assert!(!latency.add(ms(50)));
        assert!(!latency.add(ms(109)));
        assert_eq!(latency.largest(), ms(109));
        assert!(latency.add(ms(120)));
        assert_eq!(latency.largest(), ms(120));
        let moved = (0..WINDOW).filter(|_| latency.add(ms(60))).count();
        assert_eq!((moved, latency.largest()), (1, ms(60)));
    }
}

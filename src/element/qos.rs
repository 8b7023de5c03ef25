// SPDX-License-Identifier: MPL-2.0

//! Which frames downstream can still show in time.

use gst::prelude::*;
use gst::{ClockTime, Signed};

/// A QoS event: what became of a frame. All times here are running times, of frames where it says so, else
/// of the clock.
pub struct Report {
    proportion: f64,
    /// The running time of the frame.
    timestamp: ClockTime,
    /// By how much the frame was late.
    lateness: ClockTime,
    /// When the frame was due.
    due: Signed<ClockTime>,
}

impl Report {
    /// Takes an event that arrives at `now`. None if it says nothing of a frame. A sink reports a frame that
    /// is early when it is due.
    pub fn new(event: &gst::event::Qos, now: ClockTime) -> Option<Self> {
        let (_, proportion, lateness, timestamp) = event.get();
        let lateness = ClockTime::from_nseconds(u64::try_from(lateness).unwrap_or(0));
        Some(Self {
            proportion,
            timestamp: timestamp?,
            lateness,
            due: now.into_positive().saturating_sub_unsigned(lateness),
        })
    }

    pub fn proportion(&self) -> f64 {
        self.proportion
    }

    /// The running time before which frames are too late: as in GStreamer's decoders, this frame's and
    /// twice its lateness.
    pub fn earliest(&self) -> Option<ClockTime> {
        let late = self.lateness > ClockTime::ZERO;
        late.then(|| {
            self.timestamp
                .saturating_add(self.lateness.saturating_mul(2))
        })
    }

    /// The running time of the first frame that will be in time if the next one is begun at `begin`, and
    /// painting takes `expected`. None if the next one may be painted whatever its time: this one was in
    /// time, and painting takes no longer than frames are apart, `interval`.
    pub fn first_in_time(
        &self,
        begin: ClockTime,
        expected: ClockTime,
        interval: Option<ClockTime>,
    ) -> Option<ClockTime> {
        let is_slow = interval.is_some_and(|interval| expected > interval);
        if self.lateness == ClockTime::ZERO && !is_slow {
            return None;
        }
        let end = begin.saturating_add(expected).into_positive();
        let since_due = end.saturating_sub(self.due);
        let frame = self.timestamp.into_positive().saturating_add(since_due);
        Some(frame.positive().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> ClockTime {
        ClockTime::from_mseconds(time)
    }

    fn report(lateness: i64, now: u64) -> Report {
        let lateness = lateness * ms(1).nseconds() as i64;
        let event = gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, lateness);
        let event = event.timestamp(ms(200)).build();
        match event.view() {
            gst::EventView::Qos(event) => Report::new(event, ms(now)).unwrap(),
            _ => unreachable!(),
        }
    }

    #[test]
    fn frames_are_skipped_for_lateness_and_for_slowness() {
        gst::init().unwrap();
        // It was due at 250 ms.
        let late = report(50, 300);
        assert_eq!(late.earliest(), Some(ms(300)));
        let first = |report: &Report, begin, expected| {
            report.first_in_time(ms(begin), ms(expected), Some(ms(40)))
        };
        assert_eq!(first(&late, 300, 20), Some(ms(270)));
        assert_eq!(first(&late, 320, 20), Some(ms(290)));
        assert_eq!(late.first_in_time(ms(300), ms(20), None), Some(ms(270)));
        for in_time in [report(0, 250), report(-10, 250)] {
            assert_eq!(in_time.earliest(), None);
            assert_eq!(first(&in_time, 300, 40), None);
            assert_eq!(in_time.first_in_time(ms(300), ms(60), None), None);
            assert_eq!(first(&in_time, 300, 60), Some(ms(310)));
            assert_eq!(first(&in_time, 0, 41), Some(ms(0)));
        }
    }

    #[test]
    fn absurd_times_overflow_nothing() {
        gst::init().unwrap();
        for lateness in [i64::MAX, 0, -1] {
            for timestamp in [ClockTime::from_nseconds(1), ClockTime::MAX] {
                let event = gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, lateness);
                let event = event.timestamp(timestamp).build();
                let gst::EventView::Qos(event) = event.view() else {
                    unreachable!();
                };
                for now in [ClockTime::ZERO, ClockTime::MAX] {
                    let report = Report::new(event, now).unwrap();
                    report.earliest();
                    report.first_in_time(now, ClockTime::MAX, Some(ClockTime::ZERO));
                    report.first_in_time(ClockTime::ZERO, ClockTime::ZERO, None);
                }
            }
        }
    }
}

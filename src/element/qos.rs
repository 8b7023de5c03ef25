// SPDX-License-Identifier: MPL-2.0

//! Which frames downstream can still show in time.

use gst::prelude::*;
use gst::{ClockTime, Signed};

/// A QoS event: what became of a frame. Points in time are running times, of frames where it says so, else
/// of the clock.
pub struct QosEvent {
    proportion: f64,
    /// The running time of the frame.
    timestamp: ClockTime,
    /// By how much the frame was late.
    lateness: ClockTime,
    /// When the frame was due.
    due: Signed<ClockTime>,
}

impl QosEvent {
    /// Takes an event that arrives at `now`. None if it does not say when a frame was due: a sink that does
    /// not wait for the clock reports each frame as neither early nor late, and one that throttles reports
    /// the time between frames that it wants.
    pub fn new(event: &gst::event::Qos, now: ClockTime) -> Option<Self> {
        let (kind, proportion, lateness, timestamp) = event.get();
        if lateness == 0 || kind == gst::QOSType::Throttle {
            return None;
        }
        // A frame that is early is reported when it is due.
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

    /// The running time of the first frame that will be in time if the next one is begun at `begin`, painting
    /// takes `expected`, and frames are `interval` apart: those before it are to be dropped. None if the next
    /// one may be painted whatever its time, as this one was in time and the next is no nearer than `expected`.
    ///
    /// A frame is in time until it ends, as sinks show it until then. The result is at most `latest`, up to
    /// where frames will have arrived, so that none is waited for; but at least this frame's time and
    /// lateness, up to where the base class drops frames by itself.
    pub fn first_in_time(
        &self,
        begin: ClockTime,
        expected: ClockTime,
        interval: ClockTime,
        latest: ClockTime,
    ) -> Option<ClockTime> {
        if self.lateness == ClockTime::ZERO && expected <= interval {
            return None;
        }
        let end = begin.saturating_add(expected).into_positive();
        let since_due = end
            .saturating_sub(self.due)
            .saturating_sub_unsigned(interval);
        let first = self.timestamp.into_positive().saturating_add(since_due);
        let least = self.timestamp.saturating_add(self.lateness);
        Some(first.positive().unwrap_or_default().min(latest).max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> ClockTime {
        ClockTime::from_mseconds(time)
    }

    fn event(lateness: i64, timestamp: ClockTime) -> gst::Event {
        gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, lateness)
            .timestamp(timestamp)
            .build()
    }

    fn taken(event: &gst::Event, now: ClockTime) -> Option<QosEvent> {
        match event.view() {
            gst::EventView::Qos(event) => QosEvent::new(event, now),
            _ => unreachable!(),
        }
    }

    const MS: i64 = 1_000_000;

    #[test]
    fn frames_are_skipped_for_lateness_and_for_slowness() {
        gst::init().unwrap();
        let first = |event: &QosEvent, begin, expected| {
            event.first_in_time(ms(begin), ms(expected), ms(40), ms(400))
        };
        // It was due at 250 ms.
        let late = taken(&event(50 * MS, ms(200)), ms(300)).unwrap();
        assert_eq!(late.earliest(), Some(ms(300)));
        assert_eq!(first(&late, 300, 60), Some(ms(270)));
        assert_eq!(first(&late, 320, 60), Some(ms(290)));
        assert_eq!(first(&late, 300, 20), Some(ms(250)));
        assert_eq!(first(&late, 500, 60), Some(ms(400)));
        let in_time = taken(&event(-10 * MS, ms(200)), ms(250)).unwrap();
        assert_eq!(in_time.earliest(), None);
        assert_eq!(first(&in_time, 300, 40), None);
        assert_eq!(first(&in_time, 300, 60), Some(ms(270)));
        assert_eq!(first(&in_time, 0, 60), Some(ms(200)));
    }

    #[test]
    fn what_says_nothing_of_when_a_frame_was_due_is_not_taken() {
        gst::init().unwrap();
        assert!(taken(&event(0, ms(200)), ms(300)).is_none());
        let untimed = gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, MS).build();
        assert!(taken(&untimed, ms(300)).is_none());
        let throttled = gst::event::Qos::builder(gst::QOSType::Throttle, 2.0, MS);
        assert!(taken(&throttled.timestamp(ms(200)).build(), ms(300)).is_none());
    }

    #[test]
    fn absurd_times_overflow_nothing() {
        gst::init().unwrap();
        for lateness in [i64::MAX, -1] {
            for timestamp in [ClockTime::from_nseconds(1), ClockTime::MAX] {
                for now in [ClockTime::ZERO, ClockTime::MAX] {
                    let event = taken(&event(lateness, timestamp), now).unwrap();
                    event.earliest();
                    for [one, other] in [[ClockTime::ZERO, ClockTime::MAX], [ClockTime::MAX; 2]] {
                        event.first_in_time(now, one, other, one);
                        event.first_in_time(one, other, one, other);
                    }
                }
            }
        }
    }
}

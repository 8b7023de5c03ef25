// SPDX-License-Identifier: MPL-2.0

//! Which frames are dropped because downstream could not show them in time, and that the next one goes on.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{FIRST, LATER, Painter, assert_ends, element};
use common::video::DURATION;
use gst::prelude::*;
use gst_video::VideoFormat;

/// Sends a QoS event from downstream: the last frame was late by `lateness`.
fn say_late(painter: &mut Painter, lateness: gst::ClockTime) {
    let timestamp = painter.index * DURATION;
    say(painter, timestamp, lateness.nseconds() as i64);
}

/// Sends a QoS event from downstream: the frame at running time `timestamp` was late by `lateness`
/// nanoseconds, or early.
fn say(painter: &mut Painter, timestamp: gst::ClockTime, lateness: i64) {
    let event = gst::event::Qos::builder(gst::QOSType::Underflow, 2.0, lateness)
        .timestamp(timestamp)
        .build();
    painter.harness.push_upstream_event(event);
}

/// Pushes a frame. True if it comes out, false if it is dropped.
fn passes(painter: &mut Painter, frame: gst::Buffer) -> bool {
    let before = painter.harness.buffers_received();
    painter.harness.push(frame).unwrap();
    painter.harness.buffers_received() > before
}

/// Sends a QoS event as [`say_late`] does; returns the number of frames that are then dropped.
fn be_late(painter: &mut Painter, lateness: gst::ClockTime) -> u32 {
    say_late(painter, lateness);
    let mut dropped = 0;
    loop {
        let frame = painter.next_frame();
        if passes(painter, frame) {
            painter.harness.pull().unwrap();
            return dropped;
        }
        dropped += 1;
        assert!(dropped < 100, "no frame comes out any more");
    }
}

#[test]
fn late_frames_are_dropped_and_the_next_goes_on() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.iterations();
    painter.iterations();
    let reported = painter.reports().len();
    assert_eq!(reported, 2);
    let dropped = be_late(&mut painter, 4 * DURATION);
    assert!(dropped >= 4, "{dropped}");
    assert_eq!(painter.reports().len(), 1);
    assert_eq!(painter.stats().get::<u32>("iterations").unwrap(), LATER);
}

/// Pushes the next frame with a time stamp, as [`passes`] does.
fn comes_out(painter: &mut Painter, pts: gst::ClockTime) -> bool {
    lasts(painter, pts, DURATION)
}

/// The same, of a frame that lasts for `duration`.
fn lasts(painter: &mut Painter, pts: gst::ClockTime, duration: gst::ClockTime) -> bool {
    let mut frame = painter.next_frame();
    let fields = frame.get_mut().unwrap();
    fields.set_pts(pts);
    fields.set_duration(duration);
    passes(painter, frame)
}

/// Pushes frames that are a microsecond apart, so that each takes longer than the next one is away, until six are painted
/// and the next is due, with every `interval`th one being so. Returns the time stamp of the last, and what the next is
/// expected to take: the second longest time.
fn be_slow(painter: &mut Painter, interval: u64) -> (gst::ClockTime, gst::ClockTime) {
    let mut pts = gst::ClockTime::ZERO;
    let mut times = Vec::new();
    for _ in 0..6 * interval {
        pts += gst::ClockTime::USECOND;
        painter.harness.set_time(pts).unwrap();
        // As a controller does, whose values may stay the same.
        painter.element.set_property("alpha", 1.0);
        assert!(comes_out(painter, pts));
        let stats = painter.stats();
        if stats.get::<&str>("reason").unwrap() != "repeated" {
            times.push(stats.get::<u64>("time").unwrap());
        }
    }
    // The first frame does not count.
    times.remove(0);
    times.sort();
    (pts, gst::ClockTime::from_nseconds(times[3]))
}

/// A sink shows no late frames, so those that it cannot show are not painted.
#[test]
fn frames_that_cannot_be_in_time_are_dropped() {
    let files = Files::new();
    for lateness in [-1, 500] {
        let mut painter = Painter::new(&element(&files));
        let (pts, expected) = be_slow(&mut painter, 1);
        // The harness is a live source, whose frames may not be later than the clock.
        painter.harness.set_time(gst::ClockTime::SECOND).unwrap();
        say(&mut painter, pts, lateness);
        // A frame is in time up to its end.
        let first = pts + expected + gst::ClockTime::from_nseconds(lateness.max(0) as u64)
            - gst::ClockTime::USECOND;
        assert!(!comes_out(&mut painter, first - gst::ClockTime::NSECOND));
        assert!(comes_out(&mut painter, first), "{lateness}");
    }
}

/// Those that repeat a painting take no time.
#[test]
fn with_a_frame_interval_painted_frames_are_in_time_and_repeated_ones_are_not_dropped() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("frame-interval", 3u32);
    let mut painter = Painter::new(&element);
    let (pts, expected) = be_slow(&mut painter, 3);
    painter.harness.set_time(gst::ClockTime::SECOND).unwrap();
    say(&mut painter, pts, -1);
    let mut first = pts + expected - gst::ClockTime::USECOND;
    assert!(!comes_out(&mut painter, first - gst::ClockTime::NSECOND));
    for reason in ["iterations", "repeated", "repeated"] {
        assert!(comes_out(&mut painter, first));
        assert_eq!(painter.stats().get::<&str>("reason").unwrap(), reason);
        say(&mut painter, first, -1);
        first += gst::ClockTime::USECOND;
    }
    assert!(!comes_out(&mut painter, first));
}

/// The painting of a picture that rests is repeated in no time.
#[test]
fn no_frame_of_a_still_picture_is_dropped() {
    let files = Files::new();
    let element = element(&files);
    // So that one painting suffices.
    element.set_property_from_str("init", "content");
    let mut painter = Painter::new(&element);
    let (mut pts, _) = be_slow(&mut painter, 1);
    painter.harness.set_time(gst::ClockTime::SECOND).unwrap();
    for _ in 0..4 {
        pts += gst::ClockTime::USECOND;
        painter.index = 5;
        assert!(comes_out(&mut painter, pts));
        assert_eq!(painter.stats().get::<&str>("reason").unwrap(), "repeated");
        say(&mut painter, pts, -1);
    }
}

/// With a queue before the sink, a frame's QoS event counts for the one after the next.
#[test]
fn frames_that_cannot_be_in_time_after_another_are_dropped() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let second = gst::ClockTime::SECOND;
    be_slow(&mut painter, 1);
    painter.harness.set_time(10 * second).unwrap();
    assert!(lasts(&mut painter, second / 2, second / 2));
    say(&mut painter, second / 2, -1);
    painter.harness.set_time(11 * second).unwrap();
    assert!(comes_out(
        &mut painter,
        second / 2 + gst::ClockTime::USECOND
    ));
    assert!(!comes_out(&mut painter, second));
    // Nothing takes as long as that here.
    assert!(comes_out(&mut painter, 2 * second));
}

/// A decoder drops frames after a late one. The first that it lets through is in time, but the next is as near as
/// ever.
#[test]
fn a_frame_that_cannot_be_in_time_after_a_hole_is_dropped() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let [microsecond, second] = [gst::ClockTime::USECOND, gst::ClockTime::SECOND];
    be_slow(&mut painter, 1);
    painter.harness.set_time(10 * second).unwrap();
    assert!(lasts(&mut painter, second / 2, microsecond));
    say(&mut painter, second / 2, -1);
    assert!(!comes_out(&mut painter, second / 2 + microsecond));
    assert!(comes_out(&mut painter, second));
}

/// Later frames would have to be waited for.
#[test]
fn the_next_frame_of_a_live_source_is_painted_though_it_is_late() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let (pts, _) = be_slow(&mut painter, 1);
    painter.harness.set_time(pts).unwrap();
    say(&mut painter, pts, 1);
    assert!(comes_out(&mut painter, pts + gst::ClockTime::USECOND));
}

#[test]
fn a_fast_machine_drops_none() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    // Nothing takes as long as that here.
    let interval = 900 * gst::ClockTime::MSECOND;
    let second = gst::ClockTime::SECOND;
    for number in 1..7 {
        let pts = number * interval;
        assert!(lasts(&mut painter, pts, interval), "{number}");
        // The next frame is begun long after this one was due.
        painter.harness.set_time(10 * number * second).unwrap();
        say(&mut painter, number * interval, -1);
        let begin = 10 * number * second + 4 * second;
        painter.harness.set_time(begin).unwrap();
    }
}

/// It reports each frame as in time.
#[test]
fn a_sink_that_does_not_wait_gets_all_frames() {
    let files = Files::new();
    let make = gst::ElementFactory::make;
    let gatys = element(&files);
    // Each frame takes longer than the next one is away.
    let caps = gst_video::VideoCapsBuilder::new()
        .format(VideoFormat::Rgb)
        .width(32)
        .height(24)
        .framerate(gst::Fraction::new(5000, 1))
        .build();
    let source = make("videotestsrc").property("num-buffers", 30);
    let sink = make("fakesink").property("sync", false);
    let elements = [
        &source.build().unwrap(),
        &make("capsfilter").property("caps", caps).build().unwrap(),
        &gatys,
        &sink.property("qos", true).build().unwrap(),
    ];
    let pipeline = gst::Pipeline::new();
    pipeline.add_many(elements).unwrap();
    gst::Element::link_many(elements).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    assert_ends(&bus);
    let stats: gst::Structure = elements[3].property("stats");
    assert_eq!(stats.get::<u64>("rendered").unwrap(), 30);
    pipeline.set_state(gst::State::Null).unwrap();
    bus.set_flushing(true);
}

/// Starting anew would only increase the delay.
#[test]
fn however_many_frames_are_dropped_the_next_goes_on() {
    let files = Files::new();
    let element = element(&files);
    // Meanwhile the picture changes so much that it may be taken for another scene.
    element.set_property("scene-cut", 1.0);
    let mut painter = Painter::new(&element);
    painter.iterations();
    let dropped = be_late(&mut painter, 3 * gst::ClockTime::SECOND);
    assert!(dropped >= 30, "{dropped}");
    assert_eq!(painter.stats().get::<u32>("iterations").unwrap(), LATER);
}

/// After a frame that is late, a decoder drops frames for twice that lateness.
#[test]
fn frames_dropped_before_the_element_start_nothing_anew() {
    let files = Files::new();
    let element = element(&files);
    // Meanwhile the picture changes so much that it may be taken for another scene.
    element.set_property("scene-cut", 1.0);
    let mut painter = Painter::new(&element);
    painter.iterations();
    say_late(&mut painter, 2 * gst::ClockTime::SECOND);
    painter.jump(4);
    assert_eq!(painter.iterations(), LATER);
    // A longer gap is a jump.
    say_late(&mut painter, gst::ClockTime::SECOND);
    painter.jump(5);
    assert_eq!(painter.iterations(), FIRST);
    // A flush restarts the running time.
    say_late(&mut painter, 100 * gst::ClockTime::SECOND);
    let segment = gst::FormattedSegment::<gst::ClockTime>::new();
    painter.harness.push_event(gst::event::FlushStart::new());
    painter.harness.push_event(gst::event::FlushStop::new(true));
    painter
        .harness
        .push_event(gst::event::Segment::new(&segment));
    assert_eq!(painter.iterations(), FIRST);
    painter.jump(10);
    assert_eq!(painter.iterations(), FIRST);
}

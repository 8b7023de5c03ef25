// SPDX-License-Identifier: MPL-2.0

//! Frames that a live source loses while one is painted are no reason to start anew.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{FIRST, LATER, Painter, element};
use common::video::{DURATION, info};
use gst::prelude::*;
use gst_video::VideoFormat;

/// A live source, the harness, whose picture may change so much while frames are missing that it would be taken for another
/// scene.
fn uncut(files: &Files) -> Painter {
    let element = element(files);
    element.set_property("scene-cut", 1.0);
    Painter::new(&element)
}

/// A live source loses frames while one is painted. If that were a jump, a slow machine would never get beyond first
/// frames.
#[test]
fn frames_lost_while_one_is_painted_start_nothing_anew() {
    let files = Files::new();
    let mut painter = uncut(&files);
    assert_eq!(painter.iterations(), FIRST);
    arrive(&mut painter, 60);
    assert_eq!(painter.iterations(), LATER);
    // These waited upstream, in a queue or a driver, while the next ones were lost.
    for _ in 0..2 {
        painter
            .harness
            .set_time(18 * gst::ClockTime::SECOND)
            .unwrap();
        assert_eq!(painter.iterations(), LATER);
    }
    arrive(&mut painter, 180);
    assert_eq!(painter.iterations(), LATER);
    // The clock has not come so far.
    painter.jump(2);
    assert_eq!(painter.iterations(), FIRST);
}

/// Makes the next frame of a live source the one with this number, which arrives in time.
fn arrive(painter: &mut Painter, index: u64) {
    painter.index = index;
    painter.harness.set_time(index * DURATION).unwrap();
}

/// As when the camera's resolution is changed.
#[test]
fn frames_lost_while_the_first_of_another_format_is_painted_start_nothing_anew() {
    let files = Files::new();
    let mut painter = uncut(&files);
    assert_eq!(painter.iterations(), FIRST);
    arrive(&mut painter, 1);
    assert_eq!(painter.iterations(), LATER);
    painter.info = info(VideoFormat::Bgra, 32, 24);
    let caps = gst::event::Caps::new(&painter.info.to_caps().unwrap());
    assert!(painter.harness.push_event(caps));
    // These waited while the one before was painted, so that they come late.
    let late = 6 * gst::ClockTime::SECOND;
    painter.harness.set_time(late).unwrap();
    assert_eq!(painter.iterations(), FIRST);
    assert_eq!(painter.iterations(), LATER);
    arrive(&mut painter, 70);
    assert_eq!(painter.iterations(), LATER);
}

/// Frames that waited upstream may still come while the pipeline pauses.
#[test]
fn frames_lost_before_a_pause_start_nothing_anew() {
    let files = Files::new();
    let mut painter = uncut(&files);
    assert_eq!(painter.iterations(), FIRST);
    painter.element.set_state(gst::State::Paused).unwrap();
    painter.jump(5);
    assert_eq!(painter.iterations(), LATER);
}

/// Its frames are always five seconds behind the clock, so what was lost meanwhile cannot explain that one is only two behind.
#[test]
fn a_jump_of_a_delayed_live_source_starts_anew() {
    let files = Files::new();
    let mut painter = uncut(&files);
    for (number, expected) in [FIRST, LATER].into_iter().enumerate() {
        let time = 5 * gst::ClockTime::SECOND + number as u64 * DURATION;
        painter.harness.set_time(time).unwrap();
        assert_eq!(painter.iterations(), expected);
    }
    painter.jump(3);
    assert_eq!(painter.iterations(), FIRST);
}

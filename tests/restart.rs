// SPDX-License-Identifier: MPL-2.0

//! What makes the next frame a first one, and what does not.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{FIRST, LATER, PATIENCE, Painter, assert_ends, element};
use common::video::{DURATION, Pixels, frame, info, picture};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

fn segment() -> gst::Event {
    gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new())
}

/// `picture` painted as a first frame.
fn first(painter: &mut Painter, picture: &Pixels) -> Pixels {
    let painted = painter.paint_picture(picture);
    assert_eq!(painter.stats().get::<u32>("iterations").unwrap(), FIRST);
    painted
}

/// Paints three frames, and asserts that after `event` all is as at the very start.
fn check_anew(files: &Files, event: impl Fn(&mut Painter)) {
    for optimizer in ["lbfgs", "adam"] {
        let element = element(files);
        element.set_property_from_str("optimizer", optimizer);
        let mut painter = Painter::new(&element);
        let content = picture(32, 24, 5);
        let expected = first(&mut painter, &content);
        assert_eq!(painter.iterations(), LATER);
        assert_eq!(painter.iterations(), LATER);
        event(&mut painter);
        let painted = first(&mut painter, &content);
        assert_eq!(painter.iterations(), LATER);
        assert!(
            painted == expected,
            "something was kept of the frames before ({optimizer})"
        );
    }
}

#[test]
fn a_flush_starts_anew() {
    check_anew(&Files::new(), |painter| {
        assert!(painter.harness.push_event(gst::event::FlushStart::new()));
        assert!(painter.harness.push_event(gst::event::FlushStop::new(true)));
        assert!(painter.harness.push_event(segment()));
    });
}

/// As where an application links the element to what plays already, and then starts it.
#[test]
fn what_is_pushed_while_it_starts_is_painted() {
    let files = Files::new();
    let element = element(&files);
    let sink = gst::ElementFactory::make("fakesink").property("async", false);
    let sink = sink.build().unwrap();
    let pipeline = gst::Pipeline::new();
    pipeline.add_many([&element, &sink]).unwrap();
    element.link(&sink).unwrap();
    let source = gst::Pad::new(gst::PadDirection::Src);
    source.link(&element.static_pad("sink").unwrap()).unwrap();
    source.set_active(true).unwrap();

    let (starting, started) = mpsc::channel();
    element.connect_notify(Some("weights-info"), move |_, _| {
        let _ = starting.send(());
        // Time for the other thread to push.
        thread::sleep(Duration::from_millis(300));
    });
    let pushing = thread::spawn(move || {
        started.recv().unwrap();
        let info = info(VideoFormat::Rgb, 32, 24);
        let caps = info.to_caps().unwrap();
        assert!(source.push_event(gst::event::StreamStart::new("video")));
        assert!(source.push_event(gst::event::Caps::new(&caps)));
        assert!(source.push_event(segment()));
        [0, 1, 2].map(|index| {
            let picture = picture(32, 24, index);
            source.push(frame(&info, &picture, index.into(), |_| 0))
        })
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    assert_eq!(pushing.join().unwrap(), [Ok(gst::FlowSuccess::Ok); 3]);
    let stats: gst::Structure = element.property("stats");
    assert_eq!(stats.get::<u64>("frame").unwrap(), 2, "{stats}");
    pipeline.set_state(gst::State::Null).unwrap();
}

/// After a seek while PAUSED no other frame may follow for long.
#[test]
fn a_first_frame_waits_for_the_style_that_is_being_loaded() {
    let files = Files::new();
    // It takes longer to load than the frame to come.
    let large = files.dir.path().join("large.png");
    image::RgbImage::from_fn(3000, 3000, |x, y| {
        image::Rgb([x, y, x * y].map(|value| value as u8))
    })
    .save(&large)
    .unwrap();
    let (element, content) = (element(&files), picture(32, 24, 5));
    let mut painter = Painter::new(&element);
    let before = first(&mut painter, &content);
    element.set_property("style-image", &large);
    assert!(painter.harness.push_event(gst::event::FlushStart::new()));
    assert!(painter.harness.push_event(gst::event::FlushStop::new(true)));
    assert!(painter.harness.push_event(segment()));
    let after = first(&mut painter, &content);
    drop(painter);
    let expected = first(&mut Painter::new(&element), &content);
    assert!(before != expected && after == expected);
}

/// As when an application seeks in a handler of a frame's message, on the streaming thread.
#[test]
fn a_flush_from_a_message_handler_starts_anew() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    assert_eq!(painter.iterations(), FIRST);
    let sink = painter.element.static_pad("sink").unwrap();
    painter.bus.set_sync_handler(move |_, message| {
        if message.type_() == gst::MessageType::Element {
            let flush_stop = gst::event::FlushStop::builder(true).build();
            for event in [gst::event::FlushStart::new(), flush_stop, segment()] {
                assert!(sink.send_event(event));
            }
        }
        gst::BusSyncReply::Pass
    });
    let frame = painter.next_frame();
    let _ = painter.harness.push(frame);
    painter.bus.unset_sync_handler();
    let frame = painter.next_frame();
    painter.harness.push(frame).unwrap();
    assert_eq!(painter.stats().get::<u32>("iterations").unwrap(), FIRST);
}

#[test]
fn a_segment_at_another_time_starts_anew() {
    check_anew(&Files::new(), |painter| {
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_time(10 * gst::ClockTime::SECOND);
        let event = gst::event::Segment::new(&segment);
        assert!(painter.harness.push_event(event));
    });
}

/// One comes after relinking, and with a pad's offset.
#[test]
fn a_segment_at_the_same_time_goes_on() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.iterations();
    assert!(painter.harness.push_event(segment()));
    assert_eq!(painter.iterations(), LATER);
    let mut moved = gst::FormattedSegment::<gst::ClockTime>::new();
    moved.set_base(gst::ClockTime::MSECOND);
    let event = gst::event::Segment::new(&moved);
    assert!(painter.harness.push_event(event));
    assert_eq!(painter.iterations(), LATER);
}

#[test]
fn another_stream_starts_anew() {
    check_anew(&Files::new(), |painter| {
        for id in ["one", "another"] {
            let event = gst::event::StreamStart::new(id);
            assert!(painter.harness.push_event(event));
        }
        assert!(painter.harness.push_event(segment()));
    });
}

/// A demuxer may say again which stream it is.
#[test]
fn the_same_stream_goes_on() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    for iterations in [FIRST, LATER] {
        let event = gst::event::StreamStart::new("one");
        assert!(painter.harness.push_event(event));
        assert!(painter.harness.push_event(segment()));
        // The harness began another stream.
        assert_eq!(painter.iterations(), iterations);
    }
}

/// As GStreamer makes of an identifier that is not UTF-8.
#[test]
fn a_stream_without_an_identifier_goes_on() {
    let files = Files::new();
    if gst::version() >= (1, 26, 0, 0) {
        eprintln!("skipped: GStreamer's own pads refuse such a stream");
        return;
    }
    let mut painter = Painter::new(&element(&files));
    assert_eq!(painter.iterations(), FIRST);
    let mut event = gst::event::StreamStart::new("nameless");
    let fields = event.make_mut().structure_mut();
    fields.remove_field("stream-id");
    assert!(painter.harness.push_event(event));
    assert!(painter.harness.push_event(segment()));
    assert_eq!(painter.iterations(), LATER);
}

/// Frames that are two seconds apart follow each other four times a second, also where the source applies
/// the rate.
#[test]
fn key_frames_of_a_fast_playback_go_on() {
    let mut fast = gst::FormattedSegment::<gst::ClockTime>::new();
    fast.set_rate(8.0);
    check_key_frames(&fast, 20);
    let mut applied = gst::FormattedSegment::<gst::ClockTime>::new();
    applied.set_applied_rate(8.0);
    check_key_frames(&applied, 2);
}

/// Leaves out `frames` frames before each that is painted.
fn check_key_frames(segment: &gst::FormattedSegment<gst::ClockTime>, frames: u64) {
    let files = Files::new();
    let element = element(&files);
    // The picture may change much while frames are left out.
    element.set_property("scene-cut", 1.0);
    let mut painter = Painter::new(&element);
    let event = gst::event::Segment::new(segment);
    assert!(painter.harness.push_event(event));
    assert_eq!(painter.iterations(), FIRST);
    for _ in 0..3 {
        painter.index += frames;
        assert_eq!(painter.iterations(), LATER);
    }
    painter.jump(200);
    assert_eq!(painter.iterations(), FIRST);
}

#[test]
fn a_jump_in_time_starts_anew() {
    check_anew(&Files::new(), |painter| painter.jump(2));
    check_anew(&Files::new(), |painter| {
        painter.jump(10);
        painter.iterations();
        assert_eq!(painter.iterations(), LATER);
        painter.index = 1;
    });
}

#[test]
fn a_short_gap_goes_on() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.iterations();
    painter.index += 5;
    assert_eq!(painter.iterations(), LATER);
    painter.index -= 5;
    assert_eq!(painter.iterations(), LATER);
}

#[test]
fn frames_that_last_over_a_second_go_on() {
    let files = Files::new();
    check_long_frames(&mut Painter::new(&element(&files)), 0..4);
    let mut painter = Painter::new(&element(&files));
    let mut backwards = gst::FormattedSegment::<gst::ClockTime>::new();
    backwards.set_rate(-1.0);
    backwards.set_stop(20 * gst::ClockTime::SECOND);
    let segment = gst::event::Segment::new(&backwards);
    assert!(painter.harness.push_event(segment));
    check_long_frames(&mut painter, (0..4).rev());
}

/// Plays so many frames in so many seconds; 0 frames are a variable rate.
fn at_rate(frames: i32, seconds: i32) -> Painter {
    let info = VideoInfo::builder(VideoFormat::Rgb, 32, 24)
        .fps(gst::Fraction::new(frames, seconds))
        .build();
    Painter::with_info(&element(&Files::new()), info.unwrap())
}

/// Where buffers do not say how long they last, the caps do.
#[test]
fn frames_at_a_rate_below_one_a_second_go_on() {
    for duration in [None, Some(gst::ClockTime::ZERO)] {
        let mut painter = at_rate(1, 5);
        for (number, expected) in [(0, FIRST), (1, LATER), (2, LATER), (4, FIRST)] {
            let mut frame = painter.next_frame();
            let buffer = frame.make_mut();
            buffer.set_pts(5 * number * gst::ClockTime::SECOND);
            buffer.set_duration(duration);
            painter.paint(frame);
            let iterations: u32 = painter.stats().get("iterations").unwrap();
            assert_eq!(iterations, expected, "{number}, {duration:?}");
        }
    }
}

#[test]
fn neither_buffers_nor_caps_need_to_say_how_long_frames_last() {
    let mut painter = at_rate(0, 1);
    for expected in [FIRST, LATER] {
        let mut frame = painter.next_frame();
        frame.make_mut().set_duration(None);
        painter.paint(frame);
        let iterations: u32 = painter.stats().get("iterations").unwrap();
        assert_eq!(iterations, expected);
    }
}

/// Paints frames with these numbers, of five seconds each.
fn check_long_frames(painter: &mut Painter, numbers: impl Iterator<Item = u64>) {
    let long = 5 * gst::ClockTime::SECOND;
    for (index, number) in numbers.enumerate() {
        let mut frame = painter.next_frame();
        let buffer = frame.get_mut().unwrap();
        buffer.set_pts(number * long);
        buffer.set_duration(long);
        painter.paint(frame);
        let iterations: u32 = painter.stats().get("iterations").unwrap();
        assert_eq!(iterations, if index == 0 { FIRST } else { LATER });
    }
}

#[test]
fn stopping_starts_anew() {
    check_anew(&Files::new(), |painter| {
        for state in [gst::State::Ready, gst::State::Null] {
            painter.element.set_state(state).unwrap();
            painter.element.set_state(gst::State::Playing).unwrap();
            assert!(
                painter
                    .element
                    .property::<Option<gst::Structure>>("stats")
                    .is_none()
            );
            for event in [
                gst::event::StreamStart::new("again"),
                gst::event::Caps::new(&painter.info.to_caps().unwrap()),
                segment(),
            ] {
                assert!(painter.harness.push_event(event));
            }
        }
    });
}

#[test]
fn new_caps_start_anew() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let sizes = [(32, 24), (24, 32), (16, 16), (32, 24)];
    let mut painted = Vec::new();
    for (width, height) in sizes {
        painter.info = info(VideoFormat::Rgb, width, height);
        let caps = gst::event::Caps::new(&painter.info.to_caps().unwrap());
        assert!(painter.harness.push_event(caps));
        painted.push(first(&mut painter, &picture(width, height, 0)));
        assert_eq!(painter.iterations(), LATER);
    }
    assert!(
        painted[0] == painted[3],
        "something was kept of the frames before"
    );

    // So does another format of the same size.
    painter.info = info(VideoFormat::Bgra, 32, 24);
    let caps = gst::event::Caps::new(&painter.info.to_caps().unwrap());
    assert!(painter.harness.push_event(caps));
    assert!(first(&mut painter, &picture(32, 24, 0)) == painted[0]);
}

#[test]
fn another_frame_rate_goes_on() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.iterations();
    let mut caps = painter.info.to_caps().unwrap();
    caps.make_mut().set("framerate", gst::Fraction::new(7, 2));
    assert!(painter.harness.push_event(gst::event::Caps::new(&caps)));
    assert_eq!(painter.iterations(), LATER);
}

#[test]
fn a_discontinuity_alone_goes_on() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.iterations();
    for _ in 0..3 {
        let mut frame = painter.next_frame();
        frame
            .get_mut()
            .unwrap()
            .set_flags(gst::BufferFlags::DISCONT);
        painter.paint(frame);
        assert_eq!(painter.stats().get::<u32>("iterations").unwrap(), LATER);
    }
}

/// A pipeline that plays ten frames a second.
struct Playing {
    pipeline: gst::Pipeline,
    /// The times of the frames that enter the element.
    taken: mpsc::Receiver<gst::ClockTime>,
    /// The times and iterations of the frames that leave it.
    given: mpsc::Receiver<(gst::ClockTime, u32)>,
}

fn playing(files: &Files) -> Playing {
    let make = gst::ElementFactory::make;
    let gatys = element(files);
    let caps = info(VideoFormat::Rgb, 32, 24).to_caps().unwrap();
    let filter = make("capsfilter").property("caps", caps).build();
    let elements = [
        &make("videotestsrc").build().unwrap(),
        &filter.unwrap(),
        &gatys,
        &make("fakesink").build().unwrap(),
    ];
    let pipeline = gst::Pipeline::new();
    pipeline.add_many(elements).unwrap();
    gst::Element::link_many(elements).unwrap();
    let (sender, taken) = mpsc::channel();
    let sink = gatys.static_pad("sink").unwrap();
    sink.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        // The receiver is gone once the test has ended.
        let _ = sender.send(info.buffer().unwrap().pts().unwrap());
        gst::PadProbeReturn::Ok
    });
    let (sender, given) = mpsc::channel();
    let source = gatys.static_pad("src").unwrap();
    source.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let gatys = pad.parent_element().unwrap();
        let stats: gst::Structure = gatys.property("stats");
        let pts = info.buffer().unwrap().pts().unwrap();
        let _ = sender.send((pts, stats.get("iterations").unwrap()));
        gst::PadProbeReturn::Ok
    });
    Playing {
        pipeline,
        taken,
        given,
    }
}

impl Playing {
    fn next(&self) -> (gst::ClockTime, u32) {
        self.given.recv_timeout(PATIENCE).unwrap()
    }

    fn stop(&self) {
        self.pipeline.set_state(gst::State::Null).unwrap();
        self.pipeline.bus().unwrap().set_flushing(true);
    }
}

#[test]
fn a_seek_without_a_flush_starts_anew() {
    let files = Files::new();
    let playing = playing(&files);
    playing.pipeline.set_state(gst::State::Playing).unwrap();
    let mut given = vec![playing.next()];
    // Before preroll, a seek without a flush and the sink would wait for each other.
    let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
    let (reached, ..) = playing.pipeline.state(patience);
    assert_eq!(reached, Ok(gst::StateChangeSuccess::Success));
    let goal = 30 * gst::ClockTime::SECOND;
    playing
        .pipeline
        .seek(
            1.0,
            gst::SeekFlags::empty(),
            gst::SeekType::Set,
            goal,
            gst::SeekType::None,
            gst::ClockTime::NONE,
        )
        .unwrap();
    while given.last().unwrap().0 < goal + 2 * DURATION {
        given.push(playing.next());
    }
    playing.stop();
    let taken: Vec<_> = playing.taken.try_iter().take(given.len()).collect();
    assert!(given.iter().map(|(pts, _)| pts).eq(&taken), "{given:?}");
    let before = given.iter().filter(|(pts, _)| *pts < goal).count();
    for (start, given) in [
        (gst::ClockTime::ZERO, &given[..before]),
        (goal, &given[before..]),
    ] {
        for (number, frame) in (0..).zip(given) {
            let iterations = if number == 0 { FIRST } else { LATER };
            assert_eq!(*frame, (start + number * DURATION, iterations));
        }
    }
}

#[test]
fn backwards_each_frame_comes_once_and_goes_on() {
    let files = Files::new();
    let playing = playing(&files);
    playing.pipeline.set_state(gst::State::Paused).unwrap();
    // The frame before the seek.
    assert_eq!(playing.next().0, playing.taken.recv().unwrap());
    playing
        .pipeline
        .seek(
            -1.0,
            gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE,
            gst::SeekType::Set,
            gst::ClockTime::ZERO,
            gst::SeekType::Set,
            gst::ClockTime::SECOND,
        )
        .unwrap();
    playing.pipeline.set_state(gst::State::Playing).unwrap();
    assert_ends(&playing.pipeline.bus().unwrap());
    playing.stop();
    let given: Vec<_> = playing.given.try_iter().collect();
    let taken: Vec<_> = playing.taken.try_iter().collect();
    assert!(taken.len() >= 10 && taken.is_sorted_by(|one, next| one > next));
    let expected = taken.iter().enumerate().map(|(number, &pts)| {
        let iterations = if number == 0 { FIRST } else { LATER };
        (pts, iterations)
    });
    assert_eq!(given, expected.collect::<Vec<_>>());
}

#[test]
fn a_style_image_comes_in_while_caps_change() {
    let files = Files::new();
    let style = files.style(1);
    let other = element(&files);
    other.set_property("style-image", style.to_str().unwrap());
    let small = info(VideoFormat::Rgb, 24, 32);
    let expected = first(
        &mut Painter::with_info(&other, small.clone()),
        &picture(24, 32, 0),
    );

    let mut painter = Painter::new(&element(&files));
    painter.iterations();
    painter
        .element
        .set_property("style-image", style.to_str().unwrap());
    let begun = Instant::now();
    loop {
        for info in [small.clone(), info(VideoFormat::Rgb, 32, 24)] {
            let caps = gst::event::Caps::new(&info.to_caps().unwrap());
            assert!(painter.harness.push_event(caps));
            painter.info = info;
            let content = picture(painter.info.width(), painter.info.height(), 0);
            let painted = first(&mut painter, &content);
            if painted == expected {
                assert_eq!(painter.warnings(), [""; 0]);
                return;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "the style did not come");
    }
}

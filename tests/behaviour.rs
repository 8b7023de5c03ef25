// SPDX-License-Identifier: MPL-2.0

//! The iterations and the time that are spent on a frame, and what is reported about it.
#![cfg(feature = "plugin")]

mod common;

use candle_core::Device;
use common::Files;
use common::painter::{FIRST, LATER, Painter, element, init};
use common::video::{DURATION, Pixels, info, picture};
use gst::prelude::*;
use gst_video::VideoFormat;
use gstgatys::vgg::Precision;

/// Paints `frames` frames.
fn run(element: &gst::Element, frames: u32) -> Vec<Pixels> {
    let mut painter = Painter::with_info(element, info(VideoFormat::Rgb, 64, 48));
    (0..frames).map(|_| painter.paint_next()).collect()
}

#[test]
fn the_first_frame_has_iterations_of_its_own() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let iterations: Vec<u32> = (0..4).map(|_| painter.iterations()).collect();
    assert_eq!(iterations, [FIRST, LATER, LATER, LATER]);
}

#[test]
fn one_iteration_looks_and_changes_nothing() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("initial-iterations", 1u32);
    element.set_property("tv-weight", 0.0);
    // Otherwise it would start in the style's colours.
    element.set_property_from_str("init", "content");
    let mut painter = Painter::new(&element);
    let content = picture(32, 24, 0);
    assert_eq!(painter.paint_picture(&content), content);
    let stats = painter.stats();
    assert_eq!(stats.get::<u32>("iterations").unwrap(), 1);
    assert_eq!(
        stats.get::<f64>("total-loss").unwrap(),
        stats.get::<f64>("initial-loss").unwrap()
    );
    assert_eq!(stats.get::<f64>("content-loss").unwrap(), 0.0);
}

/// The content loss alone would be satisfied by the unmoved previous result, which does not show what moved.
#[test]
fn what_moves_is_followed() {
    check_followed(|_, _| ());
}

#[test]
fn what_moves_is_followed_while_the_size_changes() {
    check_followed(|element, frame| element.set_property("max-size", 96 - frame % 2));
}

/// A square crosses the picture in nine frames; `before` is called before each.
fn check_followed(before: impl Fn(&gst::Element, u32)) {
    const SIDE: usize = 24;
    let (width, height) = (96, 64);
    let square = |left: usize| -> Pixels {
        let inside =
            |x: usize, y: usize| (left..left + SIDE).contains(&x) && (20..20 + SIDE).contains(&y);
        (0..width * height)
            .map(|at| {
                if inside(at % width, at / width) {
                    [230; 3]
                } else {
                    [40; 3]
                }
            })
            .collect()
    };
    let brightness = |painted: &Pixels, left: usize| -> f64 {
        let shown = painted
            .iter()
            .zip(square(left))
            .filter(|(_, square)| square[0] > 128);
        let values: Vec<f64> = shown.map(|(painted, _)| f64::from(painted[1])).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };

    let files = Files::new();
    let element = element(&files);
    element.set_property("weights", "");
    element.set_property("initial-iterations", 20u32);
    let rgb = info(VideoFormat::Rgb, width as u32, height as u32);
    let mut painter = Painter::with_info(&element, rgb);
    let mut painted = Vec::new();
    for index in 0..9 {
        before(&element, index);
        painted.push(painter.paint_picture(&square(8 * index as usize)));
    }
    // The square stands out as it did in the first painting, whose contrast is the style's.
    let (first, last) = (&painted[0], &painted[8]);
    let contrast = brightness(first, 0) - brightness(first, 64);
    let (now, past) = (brightness(last, 64), brightness(last, 0));
    assert!(
        now - past > 0.6 * contrast && contrast > 50.0,
        "{now} where it is, {past} where it was; {contrast} at first"
    );
}

#[test]
fn a_report_says_where_in_time_its_frame_is() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let times = |painter: &Painter| {
        ["pts", "stream-time", "running-time", "duration"]
            .map(|name| painter.stats().get::<u64>(name).unwrap())
    };
    let [position, base] = [3600, 7].map(gst::ClockTime::from_seconds);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_time(position);
    segment.set_base(base);
    painter
        .harness
        .push_event(gst::event::Segment::new(&segment));
    painter.report();
    painter.report();
    let expected = [DURATION, position + DURATION, base + DURATION, DURATION];
    assert_eq!(times(&painter), expected.map(gst::ClockTime::nseconds));
    let mut frame = painter.next_frame();
    frame.get_mut().unwrap().set_pts(None);
    frame.get_mut().unwrap().set_duration(None);
    painter.paint(frame);
    assert_eq!(times(&painter), [u64::MAX; 4]);
}

#[test]
fn each_frame_is_reported_in_full() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    for number in 0..3 {
        let frame = painter.next_frame();
        let pts = frame.pts().unwrap();
        painter.paint(frame);
        let messages = painter.messages(gst::MessageType::Element);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].src(), Some(painter.element.upcast_ref()));
        let report = messages[0].structure().unwrap().to_owned();
        assert_eq!(report.name(), "gatys");
        assert_eq!(report, painter.stats());

        assert_eq!(report.get::<u64>("pts").unwrap(), pts.nseconds());
        assert_eq!(report.get::<u64>("frame").unwrap(), number);
        assert!(report.get::<u32>("iterations").unwrap() > 0);
        assert_eq!(report.get::<&str>("reason").unwrap(), "iterations");
        let loss = |name: &str| report.get::<f64>(name).unwrap();
        assert!(loss("content-loss") > 0.0 && loss("style-loss") > 0.0);
        assert!(loss("content-loss") + 100.0 * loss("style-loss") <= loss("total-loss"));
        assert!(loss("total-loss") <= loss("initial-loss"));
        assert!(report.get::<u64>("time").unwrap() > 0);
        assert_eq!(report.get::<&str>("device").unwrap(), "cpu");
        assert_eq!(report.get::<&str>("precision").unwrap(), "f32");
    }
}

#[test]
fn the_precision_that_was_chosen_is_reported() {
    let files = Files::new();
    // The built-in network's channels are multiples of 32, as bf16 needs on a CPU.
    let (wide, narrow) = ("", files.weights.to_str().unwrap());
    let mut cases = vec![(narrow, None, "f32"), (wide, Some("f32"), "f32")];
    match Precision::Bf16.check(&Device::Cpu) {
        Ok(()) => cases.extend([(wide, None, "bf16"), (wide, Some("bf16"), "bf16")]),
        Err(_) => cases.push((wide, None, "f32")),
    }
    for (weights, value, chosen) in cases {
        let element = element(&files);
        element.set_property("weights", weights);
        let precision = |element: &gst::Element| {
            let value = element.property_value("precision");
            value.serialize().unwrap().to_string()
        };
        assert_eq!(precision(&element), "auto");
        if let Some(value) = value {
            element.set_property_from_str("precision", value);
        }
        let report = Painter::new(&element).report();
        assert_eq!(report.get::<&str>("precision").unwrap(), chosen);
        assert_eq!(precision(&element), value.unwrap_or("auto"));
    }
}

#[test]
fn reports_may_be_had_without_messages() {
    let files = Files::new();
    let element = element(&files);
    assert!(
        element
            .property::<Option<gst::Structure>>("stats")
            .is_none()
    );
    element.set_property("post-messages", false);
    let mut painter = Painter::new(&element);
    assert_eq!(painter.iterations(), FIRST);
    assert!(painter.reports().is_empty());
    painter.element.set_property("post-messages", true);
    assert_eq!(painter.iterations(), LATER);
    assert_eq!(painter.reports().len(), 1);
}

#[test]
fn no_frame_is_made_worse() {
    let files = Files::new();
    for optimizer in ["lbfgs", "adam"] {
        for init in ["previous", "content", "noise"] {
            let element = element(&files);
            element.set_property_from_str("optimizer", optimizer);
            element.set_property_from_str("init", init);
            element.set_property("learning-rate", 0.5);
            let mut painter = Painter::new(&element);
            for _ in 0..8 {
                let report = painter.report();
                let loss = |name: &str| report.get::<f64>(name).unwrap();
                assert!(
                    loss("total-loss") <= loss("initial-loss"),
                    "{optimizer}, {init}: {report}"
                );
            }
        }
    }
}

/// With the built-in weights.
#[test]
fn a_still_frame_comes_to_what_one_long_optimisation_gives() {
    init();
    let files = Files::new();
    let element = || {
        let element = gst::ElementFactory::make("gatys").build().unwrap();
        element.set_property("style-image", files.style.to_str().unwrap());
        element.set_property("initial-iterations", 20u32);
        element.set_property("iterations", 20u32);
        element
    };
    let content = picture(64, 48, 0);
    let paint = |painter: &mut Painter| -> f64 {
        painter.paint_picture(&content);
        painter.stats().get("total-loss").unwrap()
    };
    let start =
        |element: &gst::Element| Painter::with_info(element, info(VideoFormat::Rgb, 64, 48));

    let mut painter = start(&element());
    let losses: Vec<f64> = (0..10).map(|_| paint(&mut painter)).collect();
    let long = element();
    long.set_property("initial-iterations", 300u32);
    let expected = paint(&mut start(&long));
    println!("{losses:?} against {expected}");
    assert!(
        losses.is_sorted_by(|earlier, later| later <= earlier),
        "{losses:?}"
    );
    // The first frame alone is far from it.
    assert!(losses[0] > 1.1 * expected, "{losses:?}, {expected}");
    assert!(
        (losses[9] / expected - 1.0).abs() < 0.05,
        "{losses:?}, {expected}"
    );
}

#[test]
fn frames_between_are_repeated() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("frame-interval", 3u32);
    let painted = run(&element, 7);
    for (number, picture) in painted.iter().enumerate() {
        assert!(picture == &painted[number / 3 * 3], "{number}");
    }
    assert_ne!(painted[0], painted[3]);
    assert_ne!(painted[3], painted[6]);
}

#[test]
fn repeated_frames_are_reported_as_such() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("frame-interval", 3u32);
    let mut painter = Painter::new(&element);
    for number in 0..7 {
        let report = painter.report();
        let reason = report.get::<&str>("reason").unwrap();
        let iterations = report.get::<u32>("iterations").unwrap();
        match number {
            0 => assert_eq!((reason, iterations), ("iterations", FIRST)),
            3 | 6 => assert_eq!((reason, iterations), ("iterations", LATER)),
            _ => assert_eq!((reason, iterations), ("repeated", 0)),
        }
        assert_eq!(report.get::<u64>("frame").unwrap(), number);
    }
    assert_eq!(painter.reports().len(), 7);
}

#[test]
fn a_budget_that_is_spent_leaves_two_iterations() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("time-budget", 1u64);
    let mut painter = Painter::new(&element);
    for _ in 0..3 {
        let report = painter.report();
        assert_eq!(report.get::<&str>("reason").unwrap(), "budget");
        assert_eq!(report.get::<u32>("iterations").unwrap(), 2);
    }
    painter.element.set_property("time-budget", 0u64);
    assert_eq!(painter.iterations(), LATER);
}

#[test]
fn a_budget_that_is_spent_on_the_way_sends_what_there_is() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("initial-iterations", 100_000u32);
    element.set_property("time-budget", gst::ClockTime::from_mseconds(50).nseconds());
    let content = picture(256, 192, 0);
    let mut painter = Painter::with_info(&element, info(VideoFormat::Rgb, 256, 192));
    assert!(painter.paint_picture(&content) != content);
    let report = painter.stats();
    assert_eq!(report.get::<&str>("reason").unwrap(), "budget");
    let iterations = report.get::<u32>("iterations").unwrap();
    assert!((2..100_000).contains(&iterations), "{iterations}");
    let loss = |name: &str| report.get::<f64>(name).unwrap();
    assert!(loss("total-loss") < loss("initial-loss"), "{report}");
}

#[test]
fn a_frame_that_can_be_no_better_ends_early() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("initial-iterations", 100_000u32);
    let mut painter = Painter::with_info(&element, info(VideoFormat::Rgb, 16, 16));
    let report = painter.report();
    assert_eq!(report.get::<&str>("reason").unwrap(), "converged");
    assert!(report.get::<u32>("iterations").unwrap() < 100_000);
}

#[test]
fn a_seed_means_one_noise() {
    let files = Files::new();
    let with_seed = |seed: u64| {
        let element = element(&files);
        element.set_property_from_str("init", "noise");
        element.set_property("seed", seed);
        run(&element, 2)
    };
    assert_eq!(with_seed(7), with_seed(7));
    assert_ne!(with_seed(7), with_seed(8));
}

#[test]
fn noise_is_a_part_of_the_start() {
    let files = Files::new();
    let with_noise = |noise: f64| {
        let element = element(&files);
        element.set_property_from_str("init", "content");
        element.set_property("initial-iterations", 1u32);
        element.set_property("noise", noise);
        run(&element, 1).remove(0)
    };
    let content = picture(64, 48, 0);
    let distance = |painted: &Pixels| -> u32 {
        let values = painted.concat().into_iter().zip(content.concat());
        values.map(|(a, b)| u32::from(a.abs_diff(b))).sum()
    };
    let distances = [0.0, 0.1, 0.5, 1.0].map(|noise| distance(&with_noise(noise)));
    assert_eq!(distances[0], 0);
    assert!(distances.is_sorted_by(|a, b| a < b), "{distances:?}");
}

#[test]
fn the_same_input_gives_the_same_output() {
    let files = Files::new();
    for optimizer in ["lbfgs", "adam"] {
        let with_threads = |threads: u32| {
            let element = element(&files);
            element.set_property_from_str("optimizer", optimizer);
            element.set_property("n-threads", threads);
            run(&element, 4)
        };
        let expected = with_threads(1);
        for threads in [1, 2, 5, 0] {
            assert!(with_threads(threads) == expected, "{optimizer}, {threads}");
        }
    }
}

#[test]
fn latency_covers_the_longest_frame_time() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let latency = |painter: &Painter| painter.harness.query_latency().unwrap_or_default();
    let upstream = latency(&painter);
    painter.harness.set_upstream_latency(gst::ClockTime::SECOND);
    assert_eq!(latency(&painter), upstream + gst::ClockTime::SECOND);
    painter.report();
    // The first frame is not counted.
    assert_eq!(latency(&painter), upstream + gst::ClockTime::SECOND);
    assert!(painter.messages(gst::MessageType::Latency).is_empty());
    painter.reports();

    let (mut longest, mut before) = (gst::ClockTime::ZERO, gst::ClockTime::ZERO);
    for number in 0..20 {
        let time = painter.report().get::<u64>("time").unwrap();
        longest = longest.max(gst::ClockTime::from_nseconds(time));
        let own = latency(&painter) - upstream - gst::ClockTime::SECOND;
        assert!((longest..=2 * longest).contains(&own), "{number}: {own}");
        // Each change is posted.
        let posted = painter.messages(gst::MessageType::Latency).len();
        assert_eq!(posted, usize::from(own != before), "{number}");
        before = own;
    }
    painter.harness.set_upstream_latency(gst::ClockTime::MAX);
    assert_eq!(latency(&painter), gst::ClockTime::MAX);
}

/// Sets a property of an element that has painted a frame, waits for a warning that contains `words`,
/// and asserts that the following frames are not affected.
fn check_refused(property: &str, value: &str, words: &[&str]) {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let mut reference = Painter::new(&element(&files));
    assert!(painter.paint_next() == reference.paint_next());
    painter.element.set_property(property, value);
    let text = painter.await_warning();
    for word in words {
        assert!(text.contains(word), "{text}");
    }
    for _ in 0..3 {
        assert!(painter.paint_next() == reference.paint_next(), "{property}");
    }
    assert_eq!(painter.warnings(), [""; 0]);
}

#[test]
fn a_style_image_that_is_taken_away_stays_in_use() {
    check_refused(
        "style-image",
        "",
        &["style-image is not set", "stays in use"],
    );
}

#[test]
fn weights_stay_in_use_until_it_stops() {
    check_refused("weights", "imagenet", &["weights", "READY", "stays in use"]);
}

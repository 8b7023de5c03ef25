// SPDX-License-Identifier: MPL-2.0

//! Properties may change while the video plays, to good values and to bad ones.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{FIRST, LATER, PATIENCE, Painter, element, init, start_error};
use common::video::{Pixels, picture};
use gst::prelude::*;
use gst_controller::prelude::*;
use std::time::Instant;

/// Every property that may change while playing, with a value that is not its default.
const CHANGES: [(&str, &str); 25] = [
    ("style-scale", "0.5"),
    ("alpha", "3"),
    ("beta", "20"),
    ("content-layers", "conv2_2:0.5,conv3_1:0.5"),
    ("style-layers", "conv1_2"),
    ("iterations", "4"),
    ("initial-iterations", "6"),
    ("time-budget", "1"),
    ("optimizer", "adam"),
    ("learning-rate", "0.25"),
    ("lbfgs-history", "1"),
    ("init", "noise"),
    ("noise", "0.5"),
    ("seed", "9"),
    ("tv-weight", "50"),
    ("temporal-weight", "50"),
    ("motion", "none"),
    ("scene-cut", "0"),
    ("pooling", "max"),
    ("max-size", "24"),
    ("color", "content"),
    ("n-threads", "1"),
    ("post-messages", "false"),
    ("loss-scale", "paper"),
    ("frame-interval", "2"),
];

/// The property that must also be set for a change to have an effect.
const COMPANIONS: [(&str, &str, &str); 6] = [
    ("learning-rate", "optimizer", "adam"),
    ("lbfgs-history", "iterations", "10"),
    ("noise", "init", "content"),
    ("seed", "init", "noise"),
    ("initial-iterations", "init", "content"),
    ("time-budget", "iterations", "10"),
];

fn as_text(element: &gst::Element, property: &str) -> String {
    let value = element.property_value(property);
    match value.get::<Option<String>>() {
        Ok(text) => text.unwrap_or_default(),
        Err(_) => value.serialize().unwrap().to_string(),
    }
}

#[test]
fn the_table_of_changes_is_complete() {
    init();
    let element = gst::ElementFactory::make("gatys").build().unwrap();
    let class = element.class();
    let own = class.list_properties();
    let live = own
        .iter()
        .filter(|spec| spec.owner_type() == element.type_())
        .filter(|spec| spec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING))
        .map(|spec| spec.name().to_owned());
    let mut live: Vec<String> = live
        .filter(|name| !["style-image", "motion-dump", "skip-still"].contains(&name.as_str()))
        .collect();
    let mut changes = CHANGES.map(|(name, _)| name.to_owned()).to_vec();
    live.sort();
    changes.sort();
    assert_eq!(live, changes);
}

/// The next frame's painting, and its statistics without measured times.
fn outcome(painter: &mut Painter) -> (Pixels, gst::Structure) {
    let painted = painter.paint_next();
    let mut stats = painter.stats();
    stats.remove_field("time");
    stats.remove_field("motion-time");
    (painted, stats)
}

/// The third and fourth frame, with `change` made after the second.
fn frames_after(files: &Files, name: &str, change: &str) -> Vec<(Pixels, gst::Structure)> {
    let element = element(files);
    for (_, property, value) in COMPANIONS.iter().filter(|companion| companion.0 == name) {
        element.set_property_from_str(property, value);
    }
    let mut painter = Painter::new(&element);
    outcome(&mut painter);
    outcome(&mut painter);
    if !change.is_empty() {
        element.set_property_from_str(name, change);
        assert_eq!(as_text(&element, name), change);
    }
    if name == "initial-iterations" {
        painter.jump(2);
    }
    let frames = [outcome(&mut painter), outcome(&mut painter)];
    assert!(painter.warnings().is_empty());
    frames.to_vec()
}

#[test]
fn a_change_takes_effect_on_the_next_frame() {
    let files = Files::new();
    for (name, value) in CHANGES {
        let unchanged = frames_after(&files, name, "");
        let changed = frames_after(&files, name, value);
        match name {
            // These two must not affect the picture.
            "n-threads" | "post-messages" => assert!(changed == unchanged, "{name}"),
            // The third frame is the next one that is painted.
            "frame-interval" => {
                assert!(changed[1] != unchanged[1], "{name}");
                assert_eq!(changed[1].1.get::<&str>("reason").unwrap(), "repeated");
            }
            _ => assert!(changed[0] != unchanged[0], "{name}"),
        }
    }
}

#[test]
fn iterations_change_between_two_frames() {
    let files = Files::new();
    let element = element(&files);
    let mut painter = Painter::new(&element);
    painter.iterations();
    for iterations in [1u32, 6, 2] {
        element.set_property("iterations", iterations);
        assert_eq!(painter.iterations(), iterations);
        assert_eq!(painter.iterations(), iterations);
    }
}

#[test]
fn a_bad_value_is_warned_of_once_and_the_old_one_stays_in_use() {
    let files = Files::new();
    for (bad, named) in [
        (&[("content-layers", "conv9_9")][..], "content-layers"),
        (&[("content-layers", "")], "content-layers"),
        (&[("style-layers", "conv1_1:much")], "style-layers"),
        (&[("style-layers", "conv1_1,conv1_1")], "style-layers"),
        (&[("alpha", "0"), ("beta", "0")], "alpha"),
    ] {
        let element = element(&files);
        let mut painter = Painter::new(&element);
        let mut reference = Painter::new(&self::element(&files));
        for _ in 0..2 {
            assert!(outcome(&mut painter) == outcome(&mut reference));
        }
        for (name, value) in bad {
            element.set_property_from_str(name, value);
            assert_eq!(&as_text(&element, name), value);
        }
        for _ in 0..3 {
            assert!(outcome(&mut painter) == outcome(&mut reference), "{bad:?}");
        }
        let warnings = painter.warnings();
        assert_eq!(warnings.len(), 1, "{bad:?}: {warnings:?}");
        assert!(warnings[0].contains(named), "{warnings:?}");
        assert!(painter.messages(gst::MessageType::Error).is_empty());
    }
}

#[test]
fn a_bad_value_does_not_keep_good_ones_out() {
    let files = Files::new();
    let element = element(&files);
    let mut painter = Painter::new(&element);
    painter.iterations();
    element.set_property("content-layers", "conv9_9");
    painter.iterations();
    assert_eq!(painter.warnings().len(), 1);
    for iterations in [1u32, 2, 4] {
        element.set_property("iterations", iterations);
        assert_eq!(painter.iterations(), iterations);
    }
    // It is warned of only once.
    assert_eq!(painter.warnings(), [""; 0]);
    element.set_property("content-layers", "conv8_8");
    painter.iterations();
    assert_eq!(painter.warnings().len(), 1);
    element.set_property("content-layers", "conv3_1");
    let before = painter.report();
    element.set_property("content-layers", "conv2_1");
    assert_ne!(
        painter.report().get::<f64>("content-loss").unwrap(),
        before.get::<f64>("content-loss").unwrap()
    );
    assert_eq!(painter.warnings(), [""; 0]);
}

/// Paints one still picture, each time as a first frame.
fn still(painter: &mut Painter) -> Pixels {
    painter.jump(2);
    painter.paint_picture(&picture(32, 24, 0))
}

/// Paints until the picture is `expected`.
fn paint_until(painter: &mut Painter, expected: &Pixels) {
    let begun = Instant::now();
    while still(painter) != *expected {
        assert!(begun.elapsed() < PATIENCE, "the style did not come");
    }
}

#[test]
fn a_style_image_comes_in_between_two_frames() {
    let files = Files::new();
    let styles = [0, 1, 2].map(|pattern| files.style(pattern).to_str().unwrap().to_owned());
    let alone = styles.clone().map(|style| {
        let element = element(&files);
        element.set_property("style-image", style);
        still(&mut Painter::new(&element))
    });
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2]);

    let element = element(&files);
    element.set_property("style-image", &styles[0]);
    let mut painter = Painter::new(&element);
    assert!(still(&mut painter) == alone[0]);
    element.set_property("style-image", &styles[1]);
    assert_eq!(as_text(&element, "style-image"), styles[1]);
    paint_until(&mut painter, &alone[1]);

    // The last of several wins.
    for number in [0, 1, 0, 1, 0, 2] {
        element.set_property("style-image", &styles[number]);
    }
    paint_until(&mut painter, &alone[2]);
    for _ in 0..20 {
        assert!(still(&mut painter) == alone[2]);
    }
    assert!(painter.warnings().is_empty());
}

#[test]
fn a_style_image_that_cannot_be_read_is_warned_of() {
    let files = Files::new();
    let element = element(&files);
    let mut painter = Painter::new(&element);
    let before = still(&mut painter);
    let broken = files.dir.path().join("broken.png");
    std::fs::write(&broken, b"\x89PNG\r\n\x1a\n and no more").unwrap();
    let missing = files.dir.path().join("missing.png");
    for path in [broken, missing, files.dir.path().to_owned()] {
        let path = path.to_str().unwrap();
        element.set_property("style-image", path);
        let text = painter.await_warning();
        assert!(
            text.contains("style-image") && text.contains(path),
            "{text}"
        );
        assert_eq!(as_text(&element, "style-image"), path);
        assert!(still(&mut painter) == before);
    }
    assert!(painter.warnings().is_empty());
}

#[test]
fn a_property_reads_back_what_was_set() {
    init();
    let element = gst::ElementFactory::make("gatys").build().unwrap();
    for (name, value) in CHANGES.into_iter().chain([
        ("style-image", "/nowhere/style.png"),
        ("weights", "no such weights"),
        ("device", "cuda:77"),
        ("precision", "bf16"),
        ("content-layers", "nonsense"),
        ("style-layers", ""),
    ]) {
        element.set_property_from_str(name, value);
        assert_eq!(as_text(&element, name), value, "{name}");
    }
}

#[test]
fn a_controller_drives_a_property_over_time() {
    let files = Files::new();
    let element = element(&files);
    let control = gst_controller::InterpolationControlSource::new();
    control.set_mode(gst_controller::InterpolationMode::Linear);
    assert!(control.set(gst::ClockTime::ZERO, 10.0));
    assert!(control.set(gst::ClockTime::SECOND, 110.0));
    let binding = gst_controller::DirectControlBinding::new_absolute(&element, "beta", &control);
    element.add_control_binding(&binding).unwrap();
    element.set_property("tv-weight", 0.0);

    let mut painter = Painter::new(&element);
    for number in 0..10 {
        let report = painter.report();
        let beta: f64 = element.property("beta");
        assert!(
            (beta - (10.0 + 10.0 * f64::from(number))).abs() < 1e-9,
            "{beta}"
        );
        // This frame was painted with it.
        let loss = |name: &str| report.get::<f64>(name).unwrap();
        let total = loss("content-loss") + beta * loss("style-loss");
        assert!((total / loss("total-loss") - 1.0).abs() < 1e-9, "{report}");
    }
    element.remove_control_binding(&binding);
    assert_eq!(painter.iterations(), LATER);
    painter.jump(2);
    assert_eq!(painter.iterations(), FIRST);
}

/// File names are bytes, and a C program may set any.
#[test]
fn text_that_is_not_utf8_is_refused_like_any_other() {
    use std::os::unix::ffi::OsStrExt;
    let files = Files::new();
    let bytes = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/nowhere/\xff.png"));
    for property in [
        "style-image",
        "weights",
        "device",
        "content-layers",
        "style-layers",
    ] {
        let element = element(&files);
        element.set_property(property, bytes);
        let error = start_error(&element);
        assert!(error.message().starts_with(property), "{error}");
    }
}

#[test]
fn what_cannot_change_while_playing_is_warned_of() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.report();
    for (property, value) in [("device", "cuda"), ("precision", "bf16")] {
        painter.element.set_property_from_str(property, value);
        let report = painter.report();
        assert_eq!(report.get::<&str>("precision").unwrap(), "f32");
        let warnings = painter.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let of_property = format!("{property} ");
        assert!(warnings[0].starts_with(&of_property), "{warnings:?}");
    }
}

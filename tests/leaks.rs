// SPDX-License-Identifier: MPL-2.0

//! No GStreamer object leaks: the leaks tracer counts the objects of a second process that plays,
//! seeks, renegotiates, changes every property and stops within a frame.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{PATIENCE, element, init};
use gst::glib;
use gst::prelude::*;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

const ROUNDS: u32 = 20;

/// Runs the ignored test `name` in a process of its own under the tracer. Returns whether it
/// succeeded, and its output.
fn traced(name: &str) -> (bool, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("GST_TRACERS", "leaks(check-refs=true)")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .env_remove("GST_DEBUG_FILE")
        .env("G_DEBUG", "fatal_warnings")
        .output()
        .unwrap();
    let written = [output.stdout, output.stderr].concat();
    let written = String::from_utf8_lossy(&written).into_owned();
    assert!(
        written.contains(DONE),
        "it did not come to its end:\n{written}"
    );
    (output.status.success(), written)
}

const DONE: &str = "all rounds are done";

/// Whether a line of the log reports a leaked object; others only declare the format of such lines.
fn is_leak(line: &str) -> bool {
    let of_object = ["object-alive, ", "object-refings, "];
    let named = of_object.iter().any(|kind| line.contains(kind)) && !line.contains("%s");
    named || line.contains("Leaks detected")
}

#[test]
fn nothing_is_left_behind() {
    let (ended_well, written) = traced("play_and_end");
    let leaks: Vec<&str> = written.lines().filter(|line| is_leak(line)).collect();
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
    assert!(ended_well, "{written}");
}

/// The test above would detect a leak.
#[test]
fn the_tracer_sees_what_is_left_behind() {
    let (ended_well, written) = traced("leak_and_end");
    assert!(written.lines().any(is_leak), "{written}");
    assert!(!ended_well);
}

fn end() {
    println!("{DONE}");
    // SAFETY: no GStreamer object is used after this, and no other test runs in this process.
    unsafe { gst::deinit() };
}

#[test]
#[ignore = "nothing_is_left_behind runs it in a process of its own"]
fn play_and_end() {
    init();
    {
        let files = Files::new();
        let other_style = files.style(1);
        for round in 0..ROUNDS {
            play(&files, &other_style, round);
        }
    }
    end();
}

#[test]
#[ignore = "the_tracer_sees_what_is_left_behind runs it in a process of its own"]
fn leak_and_end() {
    std::mem::forget(element(&Files::new()));
    end();
}

fn caps(round: u32, step: u32) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", ["RGB", "BGRx", "GRAY8"][(step % 3) as usize])
        .field("width", 32 + 8 * step as i32)
        .field("height", 24 + round as i32)
        .field("framerate", gst::Fraction::new(10, 1))
        .build()
}

/// One round, with a pipeline of its own.
fn play(files: &Files, other_style: &Path, round: u32) {
    let make = gst::ElementFactory::make;
    let source = make("videotestsrc").build().unwrap();
    let filter = make("capsfilter")
        .property("caps", caps(round, 0))
        .build()
        .unwrap();
    let gatys = element(files);
    let sink = make("fakesink").build().unwrap();
    let pipeline = gst::Pipeline::new();
    pipeline
        .add_many([&source, &filter, &gatys, &sink])
        .unwrap();
    gst::Element::link_many([&source, &filter, &gatys, &sink]).unwrap();

    let (sender, frames) = mpsc::channel();
    let pad = gatys.static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
        // The receiver is gone once the round is over.
        let _ = sender.send(width(pad));
        gst::PadProbeReturn::Ok
    })
    .unwrap();
    let next = || frames.recv_timeout(PATIENCE).unwrap();
    let await_width = |width: i32| while next() != width {};

    pipeline.set_state(gst::State::Playing).unwrap();
    next();
    pipeline
        .seek_simple(gst::SeekFlags::FLUSH, 5 * gst::ClockTime::SECOND)
        .unwrap();
    next();
    for step in [1, 2] {
        filter.set_property("caps", caps(round, step));
        await_width(32 + 8 * step as i32);
    }
    change_all(&gatys, other_style);
    for _ in 0..3 {
        next();
    }

    stop_within_a_frame(&pipeline, &filter, &gatys);
}

/// The width of the frame that is never finished.
const ENDLESS: i32 = 512;

fn width(pad: &gst::Pad) -> i32 {
    let caps = pad.current_caps().unwrap();
    caps.structure(0).unwrap().get("width").unwrap()
}

fn stop_within_a_frame(pipeline: &gst::Pipeline, filter: &gst::Element, gatys: &gst::Element) {
    gatys.set_property_from_str("optimizer", "lbfgs");
    gatys.set_property("max-size", 0u32);
    gatys.set_property("time-budget", 0u64);
    let (sender, started) = mpsc::channel();
    let pad = gatys.static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
        if width(pad) == ENDLESS {
            let gatys = pad.parent_element().unwrap();
            gatys.set_property("initial-iterations", 100_000u32);
            // The receiver is gone once the round is over.
            let _ = sender.send(());
        }
        gst::PadProbeReturn::Ok
    })
    .unwrap();
    let mut caps = caps(0, 0);
    caps.make_mut().set("width", ENDLESS);
    caps.make_mut().set("height", ENDLESS);
    filter.set_property("caps", caps);
    started.recv_timeout(PATIENCE).unwrap();
    pipeline.set_state(gst::State::Null).unwrap();
    pipeline.bus().unwrap().set_flushing(true);
}

/// Sets every property that may change while playing to another value.
fn change_all(gatys: &gst::Element, other_style: &Path) {
    for spec in gatys.list_properties() {
        if !spec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
            continue;
        }
        let name = spec.name();
        let before = gatys.property_value(name);
        let value = if let Some(spec) = spec.downcast_ref::<glib::ParamSpecDouble>() {
            (spec.default_value() / 2.0 + 0.25).to_value()
        } else if let Some(spec) = spec.downcast_ref::<glib::ParamSpecUInt>() {
            (spec.default_value() / 2 + 2).to_value()
        } else if spec.downcast_ref::<glib::ParamSpecUInt64>().is_some() {
            1_000_000_000u64.to_value()
        } else if spec.downcast_ref::<glib::ParamSpecBoolean>().is_some() {
            (!before.get::<bool>().unwrap()).to_value()
        } else if spec.downcast_ref::<glib::ParamSpecEnum>().is_some() {
            let (class, now) = glib::EnumValue::from_value(&before).unwrap();
            let other = class.values().iter().find(|value| *value != now);
            class.to_value_by_nick(other.unwrap().nick()).unwrap()
        } else {
            match name {
                "content-layers" | "style-layers" => "conv2_1,conv3_1".to_value(),
                "style-image" => other_style.to_value(),
                "motion-dump" => other_style.with_extension("motion").to_value(),
                _ => panic!("{name} has no other value"),
            }
        };
        assert_ne!(format!("{value:?}"), format!("{before:?}"), "{name}");
        gatys.set_property_from_value(name, &value);
    }
}

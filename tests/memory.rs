// SPDX-License-Identifier: MPL-2.0

//! Frames that do not fit into memory are not begun.

#![cfg(feature = "plugin")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::files::{gstreamer, run};
use common::painter::{PATIENCE, Painter, element, only_error};
use common::video::info;
use common::{Files, NARROW, random_weights};
use gst::prelude::*;
use gst_video::VideoFormat;
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::style::StyleImage;
use gstgatys::stylizer::{Error, Stylizer};
use gstgatys::vgg::Vgg;
use gstgatys::vgg::weights::MAX_CHANNELS;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Instant;
use sysinfo::System;

fn stylizer(config: &Config) -> Stylizer {
    let vgg = Vgg::new(&random_weights(&NARROW), &Device::Cpu).unwrap();
    let style = StyleImage::load(&Files::new().style).unwrap();
    Stylizer::new(Arc::new(vgg), style, config.clone()).unwrap()
}

/// Settings with which even a frame of 64x64 takes hundreds of terabytes.
fn excessive(config: &Config) -> Config {
    Config {
        lbfgs_history: u32::MAX,
        ..config.clone()
    }
}

#[test]
fn a_frame_that_does_not_fit_is_refused() {
    let frame = Tensor::zeros((64, 64, 3), DType::F32, &Device::Cpu).unwrap();
    let mut stylizer = stylizer(&excessive(&Config::default()));
    let checked = stylizer.check_memory((64, 64)).unwrap_err();
    let painted = stylizer.stylize(&frame, &|| false).unwrap_err();
    for error in [checked, painted] {
        assert!(matches!(error, Error::Memory(_)), "{error}");
    }
}

#[test]
fn a_frame_that_does_not_fit_is_refused_though_one_that_is_optimised_at_its_size_does() {
    let frame = Tensor::zeros((64, 64, 3), DType::F32, &Device::Cpu).unwrap();
    let mut stylizer = stylizer(&Config {
        max_size: Some(64),
        initial_iterations: 2,
        ..Config::default()
    });
    stylizer.stylize(&frame, &|| false).unwrap();
    stylizer.check_memory((64, 64)).unwrap();
    let error = stylizer.check_memory((1 << 22, 1 << 22)).unwrap_err();
    assert!(matches!(error, Error::Memory(_)), "{error}");
}

#[test]
fn settings_with_which_frames_would_not_fit_change_nothing() {
    let frame = Tensor::zeros((64, 64, 3), DType::F32, &Device::Cpu).unwrap();
    let config = Config {
        iterations: 2,
        initial_iterations: 2,
        ..Config::default()
    };
    let mut stylizer = stylizer(&config);
    stylizer.stylize(&frame, &|| false).unwrap();
    for reset in [false, true] {
        if reset {
            stylizer.reset();
        }
        let error = stylizer.set_config(excessive(&config)).unwrap_err();
        assert!(matches!(error, Error::Memory(_)), "{error}");
        assert_eq!(stylizer.config(), &config);
        stylizer.stylize(&frame, &|| false).unwrap();
    }
}

/// An element that is ready for caps and paints frames in their own size.
fn started() -> (gst::Element, gst::Bus) {
    let files = Files::new();
    let element = element(&files);
    element.set_property("max-size", 0u32);
    element.set_property("lbfgs-history", 1000u32);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    element.set_state(gst::State::Paused).unwrap();
    (element, bus)
}

/// Whether the element takes frames of a size. There is none yet.
fn takes(element: &gst::Element, width: u32, height: u32) -> bool {
    let sink = element.static_pad("sink").unwrap();
    sink.send_event(gst::event::StreamStart::new("frames"));
    let caps = info(VideoFormat::Rgb, width, height).to_caps().unwrap();
    sink.send_event(gst::event::Caps::new(&caps))
}

fn stop(element: &gst::Element) {
    element.set_state(gst::State::Null).unwrap();
    element.set_bus(None);
}

/// Each takes over six terabytes.
#[test]
fn caps_of_frames_that_do_not_fit_are_an_error() {
    for side in [16_384, 32_768] {
        let (element, bus) = started();
        assert!(!takes(&element, side, side));
        let error = only_error(&bus);
        assert_eq!(error.kind(), Some(gst::ResourceError::NoSpaceLeft));
        let size = format!("frames of {side}x{side} take about");
        for part in [&size, "MiB of memory, of which", "max-size"] {
            assert!(error.message().contains(part), "{error}");
        }
        println!("{error}");
        stop(&element);
    }
}

/// GStreamer offers refused caps again, with the query or the buffer that follows.
#[test]
fn caps_that_are_refused_again_are_one_error() {
    let (element, bus) = started();
    let refuses = |side: u32| {
        for _ in 0..3 {
            assert!(!takes(&element, side, side));
        }
        only_error(&bus);
    };
    refuses(16_384);
    refuses(32_768);
    assert!(takes(&element, 16, 16));
    refuses(32_768);
    stop(&element);
}

/// They are still in force, and are not offered to the element again.
#[test]
fn the_caps_before_refused_ones_go_on() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("max-size", 0u32);
    element.set_property("lbfgs-history", 1000u32);
    let mut painter = Painter::new(&element);
    painter.report();
    let [accepted, refused] = [painter.info.clone(), info(VideoFormat::Rgb, 32_768, 32_768)]
        .map(|info| gst::event::Caps::new(&info.to_caps().unwrap()));
    for history in [999u32, 998] {
        painter.harness.push_event(refused.clone());
        only_error(&painter.bus);
        assert!(painter.harness.push_event(accepted.clone()));
        painter.report();
        element.set_property("lbfgs-history", history);
        painter.report();
        assert_eq!(painter.warnings(), [""; 0]);
    }

    // What was set meanwhile is not lost.
    let loss = |painter: &mut Painter| painter.report().get::<f64>("style-loss").unwrap();
    let five_layers = loss(&mut painter);
    element.set_property("style-layers", "conv1_1");
    painter.harness.push_event(refused);
    only_error(&painter.bus);
    assert!(painter.harness.push_event(accepted));
    let one_layer = loss(&mut painter);
    println!("{five_layers} with five layers, {one_layer} with one");
    assert!(one_layer > 1.5 * five_layers);
}

/// Settings that have the objective made anew, but on which the memory that a frame takes does not depend.
#[test]
fn caps_that_do_not_fit_are_an_error_whatever_else_has_changed() {
    for (property, value) in [("pooling", "max"), ("color", "content")] {
        let (element, bus) = started();
        element.set_property_from_str(property, value);
        let (answer, answered) = mpsc::channel();
        let asked = element.clone();
        std::thread::spawn(move || answer.send(takes(&asked, 16_384, 16_384)));
        let taken = answered.recv_timeout(PATIENCE);
        assert!(!taken.expect("the element never answers"), "{property}");
        only_error(&bus);
        stop(&element);
    }
}

/// As `ulimit -v` sets it, and batch systems do. What is only written to of the larger frames' memory
/// would fit.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_address_space_is_kept() {
    let files = Files::new();
    let style = files.dir.path().join("large.png");
    image::RgbImage::new(1280, 1280).save(&style).unwrap();
    let paint = |width: u32, height: u32| {
        let mut command = gstreamer("sh");
        // Each thread takes 64 MiB of addresses for its allocations.
        command.env("RAYON_NUM_THREADS", "2");
        command.args([
            "-c",
            "ulimit -v 4500000 && exec \"$@\"",
            "sh",
            "gst-launch-1.0",
        ]);
        command.args(["videotestsrc", "num-buffers=2", "!"]);
        command.arg(format!("video/x-raw,width={width},height={height}"));
        command.args([
            "!",
            "gatys",
            "max-size=0",
            "n-threads=2",
            "device=cpu",
            "precision=f32",
        ]);
        command.args(["iterations=2", "initial-iterations=2"]);
        command.arg(format!("style-image={}", style.display()));
        run(command.args(["!", "fakesink"]))
    };
    paint(64, 48).assert_succeeded("frames that fit");
    let ended = paint(1280, 960);
    ended.assert_refused("frames that do not fit");
    let parts = ["frames of 1280x960 take about", "; max-size="];
    assert!(
        parts.iter().all(|part| ended.stderr.contains(part)),
        "{ended}"
    );
}

#[test]
fn a_smaller_max_size_set_before_the_caps_counts() {
    let (element, bus) = started();
    element.set_property("max-size", 16u32);
    assert!(takes(&element, 4096, 4096));
    assert!(bus.pop_filtered(&[gst::MessageType::Error]).is_none());
    stop(&element);
}

/// The width of frames, and the side of a style image that is twice as large as them at `style-scale=4`.
const WIDTH: u32 = 2048;
const LARGE_STYLE: u32 = 2 * WIDTH;

/// A network with a first layer so wide that, at a `style-scale` of 3.99 or 4, its features of a large style image take
/// more than the machine's memory; and that style image. None where no layer may be so wide.
fn wide() -> Option<(Files, PathBuf)> {
    let mut system = System::new();
    system.refresh_memory();
    let memory = (system.total_memory() + system.total_swap()) as usize;
    let bytes_of_channel = (4 * WIDTH as usize).pow(2) * DType::F32.size_in_bytes();
    let mut channels = NARROW;
    channels[0] = memory * 101 / 100 / bytes_of_channel + 1;
    if channels[0] > MAX_CHANNELS {
        eprintln!("left out: this machine has too much memory");
        return None;
    }
    let files = Files::with_channels(&channels);
    let style = files.dir.path().join("large.png");
    let image = image::GrayImage::from_pixel(LARGE_STYLE, LARGE_STYLE, image::Luma([99]));
    image.save(&style).unwrap();
    Some((files, style))
}

/// The element with that network, at work on wide and low frames.
fn wide_painter(files: &Files, style_scale: f64) -> Painter {
    let element = element(files);
    element.set_property("max-size", 0u32);
    element.set_property("style-scale", style_scale);
    element.set_property_from_str("precision", "f32");
    for layers in ["content-layers", "style-layers"] {
        element.set_property(layers, "conv1_2");
    }
    for iterations in ["initial-iterations", "iterations"] {
        element.set_property(iterations, 2u32);
    }
    Painter::with_info(&element, info(VideoFormat::Rgb, WIDTH, 16))
}

fn assert_warns(warnings: &[String], cause: &str) {
    let [warning] = warnings else {
        panic!("not one warning: {warnings:?}");
    };
    let size = "frames of 2048x16 take about";
    for part in [cause, size, "max-size", "stays in use"] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[test]
fn a_style_image_that_does_not_fit_leaves_the_one_in_use() {
    let Some((files, large)) = wide() else { return };
    let mut painter = wide_painter(&files, 4.0);
    let mut paintings = vec![painter.paint_next()];
    let path = large.to_str().unwrap();
    painter.element.set_property("style-image", path);
    let begun = Instant::now();
    let mut warnings = Vec::new();
    while warnings.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "no warning came");
        paintings.push(painter.paint_next());
        warnings = painter.warnings();
    }
    assert_warns(&warnings, &format!("style-image=‘{path}’"));
    paintings.push(painter.paint_next());
    assert_eq!(painter.warnings(), [""; 0]);

    let mut undisturbed = wide_painter(&files, 4.0);
    for painting in paintings {
        assert!(undisturbed.paint_next() == painting);
    }
}

#[test]
fn a_style_scale_that_does_not_fit_leaves_the_one_in_use() {
    let Some((mut files, large)) = wide() else {
        return;
    };
    files.style = large;
    for after_a_jump in [false, true] {
        let [mut painter, mut undisturbed] = [0.05; 2].map(|scale| wide_painter(&files, scale));
        assert!(painter.paint_next() == undisturbed.paint_next());
        painter.element.set_property("style-scale", 4.0);
        if after_a_jump {
            painter.jump(2);
            undisturbed.jump(2);
        }
        for _ in 0..2 {
            assert!(painter.paint_next() == undisturbed.paint_next());
        }
        assert_warns(&painter.warnings(), "");
    }
}

/// The warning says how much memory is free, which varies.
#[test]
fn a_value_that_does_not_fit_is_warned_of_once_whatever_is_free() {
    let Some((mut files, large)) = wide() else {
        return;
    };
    files.style = large;
    let mut painter = wide_painter(&files, 0.05);
    let mut held = Vec::new();
    for style_scale in [4.0, 3.99] {
        painter.element.set_property("style-scale", style_scale);
        painter.paint_next();
        assert_warns(&painter.warnings(), "");
        for n_threads in 1..4u32 {
            held.push(black_box(vec![1u8; 64 << 20]));
            painter.element.set_property("n-threads", n_threads);
            painter.paint_next();
        }
        assert_eq!(painter.warnings(), [""; 0]);
    }
}

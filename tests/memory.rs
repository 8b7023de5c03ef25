// SPDX-License-Identifier: MPL-2.0

//! Frames that do not fit into memory are not begun.

#![cfg(feature = "plugin")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::painter::element;
use common::video::info;
use common::{Files, NARROW, random_weights};
use gst::prelude::*;
use gst_video::VideoFormat;
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::style::StyleImage;
use gstgatys::stylizer::{Error, Stylizer};
use gstgatys::vgg::Vgg;
use std::sync::Arc;

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
fn settings_with_which_frames_would_not_fit_change_nothing() {
    let frame = Tensor::zeros((64, 64, 3), DType::F32, &Device::Cpu).unwrap();
    let config = Config {
        iterations: 2,
        initial_iterations: 2,
        ..Config::default()
    };
    let mut stylizer = stylizer(&config);
    stylizer.stylize(&frame, &|| false).unwrap();
    let error = stylizer.set_config(excessive(&config)).unwrap_err();
    assert!(matches!(error, Error::Memory(_)), "{error}");
    assert_eq!(stylizer.config(), &config);
    stylizer.stylize(&frame, &|| false).unwrap();
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

/// Each takes over a terabyte.
#[test]
fn caps_of_frames_that_do_not_fit_are_an_error() {
    for side in [8192, 32_768] {
        let (element, bus) = started();
        assert!(!takes(&element, side, side));
        let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(error) = message.view() else {
            unreachable!();
        };
        let error = error.error();
        assert_eq!(error.kind(), Some(gst::ResourceError::NoSpaceLeft));
        let size = format!("frames of {side}x{side} take about");
        for part in [&size, "MiB of memory, of which", "max-size"] {
            assert!(error.message().contains(part), "{error}");
        }
        println!("{error}");
        stop(&element);
    }
}

#[test]
fn a_smaller_max_size_set_before_the_caps_counts() {
    let (element, bus) = started();
    element.set_property("max-size", 16u32);
    assert!(takes(&element, 4096, 4096));
    assert!(bus.pop_filtered(&[gst::MessageType::Error]).is_none());
    stop(&element);
}

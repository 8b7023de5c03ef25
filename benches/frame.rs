// SPDX-License-Identifier: MPL-2.0

//! A whole frame through the element, on the CPU with the other properties at their defaults, beside the
//! stylizer alone on the same frames; and the element's own share of it: conversion, resizing and messages.
//!
//! The share is not the difference of the two, which would drown in their noise, but measured by
//! itself: a frame that shows the last result again is converted and reported without being
//! painted, and resizing is done for itself.
//!
//! `cargo bench --bench frame [-- FILTER]`

mod common;

use candle_core::Tensor;
use common::problem::{name, network, picture, threads};
use common::timing::{median, ms};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::{VideoFormat, VideoInfo};
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::resize::{crop, fit, pad, resize};
use gstgatys::stylizer::style::StyleImage;
use gstgatys::vgg::Precision;
use std::path::Path;
use std::time::{Duration, Instant};

/// Sizes of the video: both are scaled to what is optimised.
const VIDEOS: [(usize, usize); 2] = [(640, 360), (1920, 1080)];

/// The longest frame-interval: the frames in between are not painted.
const LONGEST_INTERVAL: u32 = 100_000;

/// Time of a frame on the screen.
const DURATION: gst::ClockTime = gst::ClockTime::from_mseconds(40);

fn main() {
    gst::init().expect("GStreamer");
    gstgatys::plugin_register_static().expect("plugin");
    let dir = tempfile::tempdir().expect("a directory");
    let style = dir.path().join("style.png");
    let (w, h) = (640, 480);
    let bytes = bytes(&picture((w, h), 2));
    let image = image::RgbImage::from_raw(w as u32, h as u32, bytes).expect("an image");
    image.save(&style).expect("a file");
    let mut criterion = Criterion::default().configure_from_args();
    for size in VIDEOS {
        frame(&mut criterion, size, &style);
    }
    criterion.final_summary();
}

fn frame(criterion: &mut Criterion, size: (usize, usize), style: &Path) {
    // Two pictures that differ by little, in turns: a frame is neither still nor a cut.
    let first = picture(size, 1);
    let second = ((&first * 0.95).expect("a picture") + 0.025).expect("a picture");
    let pictures = [first, second];
    let mut group = criterion.benchmark_group(format!("frame/{}", name(size)));
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1));

    let config = Config {
        // The first frame is not what is measured.
        initial_iterations: Config::default().iterations,
        ..Config::default()
    };
    let whole = measure(&mut group, "element", || {
        let mut player = Player::new(size, style, &pictures, |_| ());
        move || player.frame()
    });
    measure(&mut group, "stylizer alone", || {
        let style = StyleImage::load(style).expect("a style image");
        let mut stylizer =
            Stylizer::new(network(Precision::Auto), style, config.clone()).expect("stylizer");
        let mut frames = pictures.iter().cycle();
        move || {
            let frame = frames.next().expect("a frame");
            stylizer.stylize(frame, &|| false).expect("a painted frame");
        }
    });
    let converted = measure(&mut group, "conversion and messages", || {
        let mut player = Player::new(size, style, &pictures, |element| {
            element.set_property("frame-interval", LONGEST_INTERVAL);
            element.set_property("initial-iterations", 1u32);
        });
        // The one that is shown from then on.
        player.frame();
        move || player.frame()
    });
    let pool = threads(0);
    let resized = measure(&mut group, "resizing", || {
        let (pool, picture) = (&pool, &pictures[0]);
        move || {
            pool.install(|| {
                let (w, h) = size;
                let small = fit((h, w), Config::default().max_size);
                let there = pad(&resize(picture, small)?)?;
                resize(&crop(&there, small)?, (h, w))
            })
            .expect("a resized image");
        }
    });
    group.finish();
    if let (Some(whole), Some(converted), Some(resized)) = (whole, converted, resized) {
        println!(
            "frame/{}: the element's own share is {:.2} %: {converted:.2} ms of conversion and \
             messages and {resized:.2} ms of resizing, of {whole:.1} ms",
            name(size),
            100.0 * (converted + resized) / whole,
        );
    }
}

/// Milliseconds of what `prepare` makes; `None` where that is filtered out.
fn measure<Op: FnMut()>(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    prepare: impl Fn() -> Op,
) -> Option<f64> {
    let mut times = Vec::new();
    let mut op = None;
    group.bench_function(name, |bencher| {
        let op = op.get_or_insert_with(|| {
            let mut op = prepare();
            // The first frame has all to allocate.
            op();
            op
        });
        bencher.iter_custom(|count| {
            let mut all = Duration::ZERO;
            for _ in 0..count {
                let begun = Instant::now();
                op();
                let time = begun.elapsed();
                times.push(ms(time));
                all += time;
            }
            all
        });
    });
    (!times.is_empty()).then(|| median(times))
}

/// An element that is given a video.
struct Player {
    harness: Harness,
    bus: gst::Bus,
    buffers: [gst::Buffer; 2],
    index: u64,
}

impl Player {
    fn new(
        (w, h): (usize, usize),
        style: &Path,
        pictures: &[Tensor; 2],
        set: impl Fn(&gst::Element),
    ) -> Self {
        let element = gst::ElementFactory::make("gatys")
            .property("style-image", style.to_str().expect("a path"))
            .property("device", "cpu")
            .property("initial-iterations", Config::default().iterations)
            .build()
            .expect("an element");
        set(&element);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let info = VideoInfo::builder(VideoFormat::Rgb, w as u32, h as u32)
            .fps(gst::Fraction::new(25, 1))
            .build()
            .expect("a video");
        // The rows are as long as GStreamer has them, without padding at these widths.
        assert_eq!(info.stride()[0] as usize, 3 * w);
        let mut harness = Harness::with_element(&element, Some("sink"), Some("src"));
        harness.set_src_caps(info.to_caps().expect("caps"));
        harness.play();
        let buffers = [0, 1].map(|index| gst::Buffer::from_slice(bytes(&pictures[index])));
        Self {
            harness,
            bus,
            buffers,
            index: 0,
        }
    }

    /// Plays the next frame.
    fn frame(&mut self) {
        let mut buffer = self.buffers[(self.index % 2) as usize].copy();
        let times = buffer.make_mut();
        times.set_pts(self.index * DURATION);
        times.set_duration(DURATION);
        self.index += 1;
        self.harness.push_and_pull(buffer).expect("a painted frame");
        // As an application does.
        while self.bus.pop().is_some() {}
    }
}

/// A picture in bytes.
fn bytes(picture: &Tensor) -> Vec<u8> {
    let values = picture
        .flatten_all()
        .and_then(|values| values.to_vec1::<f32>());
    let values = values.expect("values");
    values
        .iter()
        .map(|value| (255.0 * value).round() as u8)
        .collect()
}

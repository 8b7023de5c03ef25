// SPDX-License-Identifier: MPL-2.0

//! Checks long runs. A picture that is warped for every frame could blur, fade or lose its colour
//! little by little, and the state kept between frames could grow.
//!
//! `cargo bench --bench temporal -- --drift [--frames N --width W --iterations N --sigma S]`: a
//! still scene with sensor noise of standard deviation S/255. The exit status is 0 only if the
//! results' mean, contrast and saturation stay within 2 % of those after a tenth of the frames.
//!
//! `cargo bench --bench temporal -- --memory [--frames N --width W --iterations N]`: a moving clip,
//! back and forth. The exit status is 0 only if memory does not grow after a tenth of the frames
//! (Linux).

use crate::clips::{known_clips, mean, style};
use crate::common::problem::network;
use crate::common::process::{mib, peak, resident};
use crate::common::timing::argument;
use candle_core::Tensor;
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::Config;
use gstgatys::vgg::Precision;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::f32::consts::TAU;
use std::process::ExitCode;

/// How far the results may drift, relative to the first checkpoint.
const MAX_DRIFT: f64 = 0.02;

/// Bytes that the allocator may keep to itself. At the default width and number of frames, one leaked
/// tensor per frame would be ten times as much.
const MAX_GROWTH: usize = 2 << 20;

/// Frames of the moving clip, which is played back and forth.
const CLIP_FRAMES: usize = 16;

/// How often a run is checked.
const CHECKPOINTS: usize = 10;

pub fn drift() -> ExitCode {
    let count = argument("--frames", 500);
    let sigma = argument("--sigma", 3) as f32 / 255.0;
    let scene = known_clips(argument("--width", 128))[0].frame(0);
    let mut stylizer = stylizer(Config {
        // Else the first painting would be repeated.
        skip_still: false,
        ..Config::default()
    });
    let mut rng = StdRng::seed_from_u64(1);
    println!("| frame | mean | contrast | saturation | memory, MiB |");
    println!("|---|---|---|---|---|");
    let mut first: Option<[f64; 3]> = None;
    let mut furthest = 0.0f64;
    for index in 1..=count {
        let frame = noisy(&scene, sigma, &mut rng);
        let (image, _) = stylizer.stylize(&frame, &|| false).expect("a frame");
        if index % (count / CHECKPOINTS).max(1) != 0 {
            continue;
        }
        let current = statistics(&image);
        let first = first.get_or_insert(current);
        let relative = [0, 1, 2].map(|i| current[i] / first[i]);
        furthest = relative
            .iter()
            .map(|part| (part - 1.0).abs())
            .fold(furthest, f64::max);
        let [mean, contrast, saturation] = relative;
        println!(
            "| {index} | {mean:.4} | {contrast:.4} | {saturation:.4} | {} |",
            memory_used()
        );
    }
    println!("\nWithin {:.2} % of the first.", 100.0 * furthest);
    match furthest <= MAX_DRIFT {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

pub fn memory() -> ExitCode {
    let count = argument("--frames", 1000);
    let clip = &known_clips(argument("--width", 64))[0];
    let frames: Vec<Tensor> = (0..CLIP_FRAMES).map(|index| clip.frame(index)).collect();
    let mut stylizer = stylizer(Config {
        iterations: 2,
        ..Config::default()
    });
    println!("| frame | memory, MiB |");
    println!("|---|---|");
    let mut first = None;
    for index in 1..=count {
        let phase = index % (2 * CLIP_FRAMES - 2);
        let frame = &frames[phase.min(2 * CLIP_FRAMES - 2 - phase)];
        stylizer.stylize(frame, &|| false).expect("a frame");
        if index % (count / CHECKPOINTS).max(1) == 0 {
            first = first.or(resident());
            println!("| {index} | {} |", memory_used());
        }
    }
    match (first, resident()) {
        (Some(first), Some(last)) if last > first + MAX_GROWTH => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn stylizer(config: Config) -> Stylizer {
    let iterations = argument("--iterations", config.iterations as usize) as u32;
    let config = Config {
        iterations,
        max_size: None,
        ..config
    };
    Stylizer::new(network(Precision::Auto), style(), config).expect("a stylizer")
}

/// Adds normally distributed noise (Box and Muller 1958).
fn noisy(image: &Tensor, sigma: f32, rng: &mut StdRng) -> Tensor {
    let values = image.flatten_all().and_then(|image| image.to_vec1::<f32>());
    let values = values.expect("values").into_iter().map(|value| {
        let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let normal = radius * (TAU * rng.random::<f32>()).cos();
        (value + sigma * normal).clamp(0.0, 1.0)
    });
    let values = values.collect();
    Tensor::from_vec(values, image.shape(), image.device()).expect("a frame")
}

/// The mean of an image, the standard deviation of its luma (Rec. 601), and the mean distance
/// between a pixel's largest and smallest channel.
fn statistics(image: &Tensor) -> [f64; 3] {
    let values = image.flatten_all().and_then(|image| image.to_vec1::<f32>());
    let values = values.expect("values");
    let pixels = || {
        let pixels = values.as_chunks::<3>().0.iter();
        pixels.map(|pixel| pixel.map(f64::from))
    };
    let luma = || pixels().map(|[r, g, b]| 0.299 * r + 0.587 * g + 0.114 * b);
    let mean_luma = mean(luma());
    let spread = mean(luma().map(|luma| (luma - mean_luma).powi(2)));
    let saturation = pixels().map(|[r, g, b]| r.max(g).max(b) - r.min(g).min(b));
    [mean(pixels().flatten()), spread.sqrt(), mean(saturation)]
}

/// The current and the peak resident memory of this process.
fn memory_used() -> String {
    match (resident(), peak()) {
        (Some(now), Some(most)) => format!("{:.1}, at most {:.1}", mib(now), mib(most)),
        _ => "unknown".into(),
    }
}

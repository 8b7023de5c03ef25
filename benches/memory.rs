// SPDX-License-Identifier: MPL-2.0

//! The peak of this process's memory while a stylizer paints frames of a moving picture, beside what
//! it cannot do without, the activations, the network and the optimiser's state, and beside the
//! stylizer's estimate, by which frames that do not fit are refused. The exit status is 0 only if
//! the peak is within twice the activations plus the others, and within the estimate.
//!
//! `cargo bench --no-default-features --bench memory [-- --size WxH] [--precision NAME] [--adam]
//! [--lbfgs-history N] [--style WxH] [--max-size N]` (Linux), so that GStreamer is not linked

mod common;

use common::problem::{MIDDLE, made_style, name, network, picture, precision, size};
use common::process::{mib, peak, resident};
use common::timing::{argument, flag, text};
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::{Config, OptimizerKind};
use gstgatys::stylizer::optimizer::image_count;
use gstgatys::stylizer::resize::fit;
use gstgatys::vgg::{Layer, Vgg};
use std::process::ExitCode;

/// Iterations of the first frame beyond those that fill the history of L-BFGS, some steps not being
/// taken.
const SPARE_ITERATIONS: u32 = 4;

/// Frames, and the pixels by which the picture moves from each to the next: the last ones look for what
/// the one before hid in all older ones that are kept.
const FRAMES: usize = 6;
const STEP: usize = 4;

fn main() -> ExitCode {
    let frame_size = size_after("--size").unwrap_or(MIDDLE);
    let (w, h) = frame_size;
    let frames = picture((w + STEP * (FRAMES - 1), h), 1);
    let style = made_style(size_after("--style").unwrap_or(frame_size));
    let before = resident();
    let vgg = network(precision());
    let network = resident()
        .zip(before)
        .and_then(|(after, before)| after.checked_sub(before));
    let config = config();
    let optimised = fit((h, w), config.max_size);
    let pixels = optimised.0 * optimised.1;
    let state = image_count(&config) * pixels * 3 * size_of::<f32>();
    let activations = activations(&vgg, optimised, &config);
    println!(
        "{} in {}, {:?}, MiB:",
        name(frame_size),
        vgg.precision(),
        config.optimizer
    );
    print("activations", activations);
    print("optimiser's state", state);

    let mut stylizer = Stylizer::new(vgg, style, config).expect("stylizer");
    let loaded = resident();
    for index in 0..FRAMES {
        let frame = frames.narrow(1, STEP * index, w).expect("a frame");
        let frame = frame.contiguous().expect("a frame");
        stylizer.stylize(&frame, &|| false).expect("a painting");
    }
    let (Some(network), Some(loaded), Some(peak)) = (network, loaded, peak()) else {
        println!("  the peak is unknown: /proc/self/status does not say");
        return ExitCode::SUCCESS;
    };
    let limit = 2 * activations + network + state;
    let (painting, estimate) = (peak - loaded, stylizer.needed_bytes((h, w)));
    print("network", network);
    print("peak", peak);
    print("limit", limit);
    print("peak less what was loaded", painting);
    print("estimate of that", estimate);
    let per_megapixel = painting as f64 / 1e3 / pixels as f64;
    println!("  {per_megapixel:.2} GB for each megapixel that is optimised");
    match peak <= limit && painting <= estimate {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn print(what: &str, bytes: usize) {
    println!("  {what:26} {:8.1}", mib(bytes));
}

/// The size after an option in the program's arguments.
fn size_after(option: &str) -> Option<(usize, usize)> {
    text(option).map(|text| size(&text).unwrap_or_else(|| panic!("{option} takes WxH")))
}

fn config() -> Config {
    let default = Config::default();
    let history = argument("--lbfgs-history", default.lbfgs_history as usize) as u32;
    let max_size = argument("--max-size", 0) as u32;
    Config {
        max_size: (max_size > 0).then_some(max_size),
        optimizer: match flag("--adam") {
            true => OptimizerKind::Adam,
            false => OptimizerKind::Lbfgs,
        },
        initial_iterations: history + SPARE_ITERATIONS,
        iterations: 2,
        lbfgs_history: history,
        ..default
    }
}

/// What the convolutions and poolings of an image give, down to the deepest layer in use.
fn activations(vgg: &Vgg, (h, w): (usize, usize), config: &Config) -> usize {
    let deepest = config
        .content_layers
        .deepest()
        .max(config.style_layers.deepest());
    // The channels, and the size of a value, are all that is asked for.
    let small = vgg.allocate_features(16, 16, deepest).expect("features");
    let value = small.layer(deepest).dtype().size_in_bytes();
    let channels = |layer: Layer| small.layer(layer).dim(2).expect("channels");
    let layers: Vec<Layer> = Layer::all().take_while(|&layer| layer <= deepest).collect();
    let pixels = |block: usize| (h >> block) * (w >> block);
    let convolved = layers
        .iter()
        .map(|&layer| pixels(layer.pools_before()) * channels(layer));
    let pools = layers
        .windows(2)
        .filter(|pair| pair[0].pools_before() != pair[1].pools_before());
    let pooled = pools.map(|pair| pixels(pair[1].pools_before()) * channels(pair[0]));
    convolved.chain(pooled).sum::<usize>() * value
}

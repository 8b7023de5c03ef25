// SPDX-License-Identifier: MPL-2.0

//! The peak of this process's memory while a stylizer paints frames of 640x360, beside what it
//! cannot do without: the activations, the packed kernels and the optimiser's state. The exit
//! status is 0 only if the peak is within twice the activations plus the others.
//!
//! `cargo bench --no-default-features --bench memory [-- --precision NAME]` (Linux), so
//! that GStreamer is not linked

mod common;

use common::problem::{MIDDLE, made_style, name, network, picture, precision};
use common::process::{mib, peak};
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::Config;
use gstgatys::vgg::{Layer, Vgg};
use std::process::ExitCode;

/// Iterations of a frame that fill the history of L-BFGS, its default being 10, some steps not
/// being taken.
const ITERATIONS: u32 = 14;

/// Tensors of the image's size that L-BFGS has beside its pairs, and for each of them; one pair more
/// than the history is kept to be written over.
const LBFGS_TENSORS: usize = 5;
const PAIR_TENSORS: usize = 2;

fn main() -> ExitCode {
    let (w, h) = MIDDLE;
    let start = peak();
    let vgg = network(precision());
    let loaded = peak();

    let config = Config {
        max_size: None,
        initial_iterations: ITERATIONS,
        iterations: 2,
        ..Config::default()
    };
    let activations = activations(&vgg, &config);
    let packed = vgg.packed_bytes();
    let history = config.lbfgs_history as usize;
    let state = (LBFGS_TENSORS + PAIR_TENSORS * (history + 1)) * h * w * 3 * size_of::<f32>();
    let mut stylizer = Stylizer::new(vgg, made_style(MIDDLE), config).expect("stylizer");
    for seed in [1, 3] {
        let frame = picture(MIDDLE, seed);
        stylizer.stylize(&frame, &|| false).expect("a frame");
    }

    println!("{}, L-BFGS with a history of {history}, MiB:", name(MIDDLE));
    for (what, bytes) in [
        ("activations", activations),
        ("packed kernels", packed),
        ("optimiser's state", state),
    ] {
        println!("  {what:18} {:8.1}", mib(bytes));
    }
    let limit = 2 * activations + packed + state;
    let (Some(start), Some(loaded), Some(peak)) = (start, loaded, peak()) else {
        println!("  peak                unknown: /proc/self/status does not say");
        return ExitCode::SUCCESS;
    };
    println!("  {:18} {:8.1}", "peak", mib(peak));
    println!(
        "  {:18} {:8.1}  at the start of the program",
        "",
        mib(start)
    );
    println!(
        "  {:18} {:8.1}  once the weights are loaded",
        "",
        mib(loaded)
    );
    println!(
        "  {:18} {:8.1}  2 activations + kernels + state: the peak is {:.3} of it",
        "limit",
        mib(limit),
        peak as f64 / limit as f64
    );
    match peak <= limit {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// What the convolutions and poolings of an image give, down to the deepest layer in use.
fn activations(vgg: &Vgg, config: &Config) -> usize {
    let (w, h) = MIDDLE;
    let deepest = config
        .content_layers
        .deepest()
        .max(config.style_layers.deepest());
    // The channels, and the size of a value, are all that is asked for.
    let small = vgg.allocate(16, 16, deepest).expect("features");
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

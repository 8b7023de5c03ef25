// SPDX-License-Identifier: MPL-2.0

//! What the previous frame is worth: the loss of each frame of a clip relative to a long
//! optimisation of it from scratch, for different starts and optimisers at equal iterations.
//!
//! `cargo bench --bench warm_start [-- FRAMES ITERATIONS WIDTH]`

mod common;

use candle_core::{Device, Tensor};
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::{Config, Init, OptimizerKind};
use gstgatys::stylizer::style::StyleImage;
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};

/// Iterations of the frame that starts a run, and of the one that the others are compared with.
const INITIAL: u32 = 60;
const LONG: u32 = 150;

struct Row {
    name: &'static str,
    config: Config,
    /// Whether the optimiser begins each frame without what it learned from the last one.
    forget: bool,
}

fn main() {
    let numbers: Vec<u32> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let &[count, iterations, width] = numbers.as_slice() else {
        return run(8, 10, 256);
    };
    run(count, iterations, width);
}

fn run(count: u32, iterations: u32, width: u32) {
    let (clip, style) = common::clip::material();
    println!(
        "{}, {width} wide, {iterations} iterations a frame",
        clip.display()
    );
    let style = StyleImage::load(&style).expect("style image");
    let frames = common::clip::frames(&clip, count as usize, width);
    let base = Config {
        iterations,
        initial_iterations: INITIAL,
        ..Config::default()
    };
    let adam = Config {
        optimizer: OptimizerKind::Adam,
        ..base.clone()
    };
    let content = Config {
        init: Init::Content,
        ..base.clone()
    };
    let rows = [
        Row {
            name: "L-BFGS, frame itself",
            config: content,
            forget: true,
        },
        Row {
            name: "L-BFGS, previous, fresh",
            config: base.clone(),
            forget: true,
        },
        Row {
            name: "L-BFGS, previous, carried",
            config: base.clone(),
            forget: false,
        },
        Row {
            name: "Adam, previous, fresh",
            config: adam.clone(),
            forget: true,
        },
        Row {
            name: "Adam, previous, carried",
            config: adam,
            forget: false,
        },
    ];

    let long = Config {
        init: Init::Content,
        iterations: LONG,
        initial_iterations: LONG,
        ..base
    };
    let long = losses(
        &Row {
            name: "long",
            config: long,
            forget: true,
        },
        &style,
        &frames,
    );
    print_row(&format!("{LONG} iterations, total loss"), &long);
    for row in rows {
        let losses = losses(&row, &style, &frames);
        let relative: Vec<f64> = losses
            .iter()
            .zip(&long)
            .map(|(loss, long)| loss / long)
            .collect();
        print_row(row.name, &relative);
    }
}

fn losses(row: &Row, style: &StyleImage, frames: &[Tensor]) -> Vec<f64> {
    let vgg = Vgg::shared(&WeightsSource::BuiltIn, &Device::Cpu, Precision::Auto).expect("weights");
    let mut stylizer = Stylizer::new(vgg, style.clone(), row.config.clone()).expect("stylizer");
    let other = match row.config.optimizer {
        OptimizerKind::Lbfgs => OptimizerKind::Adam,
        OptimizerKind::Adam => OptimizerKind::Lbfgs,
    };
    let stylize = |frame| {
        if row.forget {
            // Another optimiser and back: what it learned is gone.
            for optimizer in [other, row.config.optimizer] {
                let config = Config {
                    optimizer,
                    ..row.config.clone()
                };
                stylizer.set_config(config).expect("config");
            }
        }
        let (_, report) = stylizer.stylize(frame, &|| false).expect("a painted frame");
        report.losses.total
    };
    frames.iter().map(stylize).collect()
}

fn print_row(name: &str, values: &[f64]) {
    let values: Vec<String> = values.iter().map(|value| format!("{value:6.3}")).collect();
    println!("{name:28} {}", values.join(" "));
}

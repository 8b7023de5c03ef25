// SPDX-License-Identifier: MPL-2.0

//! Evaluations of the objective on request, for `compare.py` to take turns with. A command a line
//! on the standard input, an answer a line on the standard output:
//!
//! - `make SIZE FILE`: writes pictures of a size. Answers `made`.
//! - `load FILE`: takes the pictures in it. Answers `loaded`.
//! - `evaluate PRECISION`: one value and gradient. Answers its milliseconds and the losses: content,
//!   style, variation, total.
//! - `gradient PRECISION FILE`: writes the last gradient. Answers `written`.
//!
//! `peers [--threads N]`; `GATYS_WEIGHTS` names a file of weights. First it says `ready`, its process
//! id, as `cargo bench` stands between, and the precisions that CPU and weights have.

#[path = "../common/mod.rs"]
mod common;

use candle_core::Device;
use common::problem::{Pictures, Problem, size, threads};
use common::timing::{argument, ms, timed};
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg, shared};
use std::io::BufRead;
use std::path::Path;

fn main() {
    threads(argument("--threads", 0)).install(serve);
}

fn serve() {
    let source = match std::env::var_os("GATYS_WEIGHTS") {
        Some(file) => WeightsSource::File(file.into()),
        None => WeightsSource::BuiltIn,
    };
    let network = |precision| match Vgg::shared(&source, &Device::Cpu, precision) {
        Ok(vgg) => Some(vgg),
        Err(shared::Error::Precision(_)) => None,
        Err(error) => panic!("{error}"),
    };
    let networks: Vec<_> = [Precision::F32, Precision::Bf16]
        .into_iter()
        .filter_map(network)
        .collect();
    let mut problems: Vec<(Precision, Problem)> = Vec::new();
    let names = networks.iter().map(|vgg| vgg.precision().to_string());
    let names: Vec<_> = names.collect();
    println!("ready {} {}", std::process::id(), names.join(" "));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a command");
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        let problem = || {
            let mut problems = problems.iter();
            let found = problems.find(|(precision, _)| precision.to_string() == first);
            &found.expect("a precision, after pictures are loaded").1
        };
        match command {
            "make" => {
                let size = size(first).expect("a size such as 640x360");
                let made = Pictures::made(size).save(Path::new(second));
                made.expect("a file");
                println!("made");
            }
            "load" => {
                // The last ones' memory first.
                problems.clear();
                let pictures = Pictures::load(Path::new(rest)).expect("pictures");
                problems.extend(networks.iter().map(|vgg| {
                    let problem = Problem::new(vgg.clone(), &pictures);
                    (vgg.precision(), problem)
                }));
                println!("loaded");
            }
            "evaluate" => {
                let problem = problem();
                let (time, losses) = timed(|| problem.evaluate());
                println!(
                    "{} {} {} {} {}",
                    ms(time),
                    losses.content,
                    losses.style,
                    losses.variation,
                    losses.total
                );
            }
            "gradient" => {
                let tensor = [("gradient", problem().gradient.clone())];
                candle_core::safetensors::save(&tensor.into(), second).expect("a file");
                println!("written");
            }
            _ => panic!("no such command: {line}"),
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The crate's side of `compare.py`: a server that evaluates the objective on request. It reads one
//! command per line from standard input and answers each with a line on standard output:
//!
//! - `make SIZE FILE` generates pictures of a size and writes them to a file; answers `made`.
//! - `load FILE` uses the pictures in a file from now on; answers `loaded`.
//! - `evaluate PRECISION` computes one value and gradient; answers the milliseconds it took and the
//!   losses: content, style, variation, total.
//! - `gradient PRECISION FILE` writes the last gradient to a file; answers `written`.
//!
//! `peers [--threads N]`; `GATYS_WEIGHTS` names a weights file. Its first line is `ready`, its
//! process id, which the client does not know as it started `cargo bench`, and the precisions that
//! the CPU and the weights support.

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
                // Free the previous ones' memory first.
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

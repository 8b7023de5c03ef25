// SPDX-License-Identifier: MPL-2.0

//! Evaluations of the objective on request, for `compare.py` to take turns with. A command a line
//! on the standard input, an answer a line on the standard output:
//!
//! - `make SIZE FILE`: writes pictures of a size. Answers `made`.
//! - `load FILE`: takes the pictures in it. Answers `loaded`.
//! - `evaluate`: one value and gradient. Answers its milliseconds and the losses: content, style,
//!   variation, total.
//! - `gradient FILE`: writes the last gradient. Answers `written`.
//!
//! `peers [--threads N]`; `GATYS_WEIGHTS` names a file of weights. Says `ready` and its process id
//! first, as `cargo bench` stands between.

#[path = "../common/mod.rs"]
mod common;

use candle_core::Device;
use common::problem::{Pictures, Problem, network, size, threads};
use common::timing::{argument, ms, timed};
use gstgatys::vgg::weights::Source;
use gstgatys::vgg::{Precision, Vgg};
use std::io::BufRead;
use std::path::Path;

fn main() {
    threads(argument("--threads", 0)).install(serve);
}

fn serve() {
    let vgg = match std::env::var_os("GATYS_WEIGHTS") {
        Some(file) => Vgg::shared(&Source::File(file.into()), &Device::Cpu, Precision::Auto)
            .expect("a weights file"),
        None => network(),
    };
    let mut problem: Option<Problem> = None;
    println!("ready {}", std::process::id());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a command");
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "make" => {
                let (name, file) = rest.split_once(' ').expect("make SIZE FILE");
                let size = size(name).expect("a size such as 640x360");
                Pictures::made(size).save(Path::new(file)).expect("a file");
                println!("made");
            }
            "load" => {
                // The last one's memory first.
                drop(problem.take());
                let pictures = Pictures::load(Path::new(rest)).expect("pictures");
                problem = Some(Problem::new(vgg.clone(), &pictures));
                println!("loaded");
            }
            "evaluate" => {
                let problem = problem.as_ref().expect("pictures are loaded first");
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
                let problem = problem.as_ref().expect("pictures are loaded first");
                let tensor = [("gradient", problem.gradient.clone())];
                candle_core::safetensors::save(&tensor.into(), rest).expect("a file");
                println!("written");
            }
            _ => panic!("no such command: {line}"),
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Checks a GPU's results against the CPU's, and measures its speed. It needs CUDA's libraries, but
//! neither GStreamer nor the sources; `run.sh` runs it.
//!
//! `gpu [PART ...] [--device cuda:N] [--quick]` prints tables in Markdown; without a part it runs all.
//! The exit status is 0 only if no check failed. `--device cpu` tests the checks themselves, and
//! `--quick` uses small pictures.

#[path = "../common/mod.rs"]
mod common;
mod data;
mod features;
mod frames;
mod instances;
mod learning;
mod losses;
mod problem;
mod report;
mod times;
mod vectors;

use candle_core::Device;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cudnn::result::get_version;
use candle_core::cuda_backend::cudarc::driver::sys::cuDriverGetVersion;
use common::problem::threads;
use data::Bench;
use gstgatys::ops::cuda::compute_capability;
use gstgatys::stylizer::device::DeviceChoice;
use gstgatys::stylizer::memory::free::free_bytes;
use report::{Outcome, Report};
use std::process::ExitCode;

pub struct Options {
    /// Small pictures and few rounds.
    pub quick: bool,
}

/// The parts of `checks`.
const CHECKS: [&str; 8] = [
    "convolutions",
    "pooling",
    "gram",
    "content",
    "vectors",
    "optimizers",
    "recordings",
    "instances",
];
const PARTS: [&str; 4] = ["checks", "losses", "times", "throughput"];
/// A part for profilers, which is run only if it is named.
const EVALUATION: &str = "evaluation";

fn main() -> ExitCode {
    let (mut parts, mut choice) = (Vec::new(), DeviceChoice::Cuda(0));
    let mut options = Options { quick: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => options.quick = true,
            "--device" => match arguments.next().unwrap_or_default().parse() {
                Ok(device) => choice = device,
                Err(error) => return usage(&error.to_string()),
            },
            // Cargo adds this.
            "--bench" => (),
            EVALUATION => parts.push(argument),
            part if PARTS.contains(&part) || CHECKS.contains(&part) => parts.push(argument),
            other => return usage(&format!("there is no ‘{other}’")),
        }
    }
    if parts.is_empty() {
        parts.extend(PARTS.map(String::from));
    }
    let device = match choice.open() {
        Ok((device, _)) => device,
        Err(error) => {
            eprintln!("gpu: {error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = print_device(&device) {
        eprintln!("gpu: the device does not say what it is: {error}");
    }
    let bench = Bench::new(device);
    let mut report = Report::new(&bench.device);
    threads(0).install(|| {
        for part in parts {
            run(&part, &bench, &options, &mut report);
        }
    });
    match report.end() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("gpu: {problem}");
    eprintln!("usage: gpu [PART ...] [--device cuda:N] [--quick]");
    eprintln!(
        "parts: {}; checks is {}; {EVALUATION}, for a profiler, only if it is named",
        PARTS.join(", "),
        CHECKS.join(", ")
    );
    ExitCode::from(2)
}

fn print_device(device: &Device) -> Outcome<()> {
    if device.is_cpu() {
        println!("On the CPU: nothing of this says anything about a GPU.");
        return Ok(());
    }
    let mut driver = 0;
    // SAFETY: it writes to the variable.
    unsafe { cuDriverGetVersion(&mut driver) }.result().w()?;
    let (major, minor) = compute_capability(device)?;
    println!(
        "{}, compute capability {major}.{minor}, {:.1} GiB free; the driver has CUDA {}.{}, cuDNN {}",
        device
            .as_cuda_device()?
            .cuda_stream()
            .context()
            .name()
            .w()?,
        free_bytes(device)?.unwrap_or_default() as f64 / f64::from(1 << 30),
        driver / 1000,
        driver % 1000 / 10,
        get_version(),
    );
    Ok(())
}

fn run(part: &str, bench: &Bench, options: &Options, report: &mut Report) {
    match part {
        "checks" => CHECKS
            .iter()
            .for_each(|part| run(part, bench, options, report)),
        "convolutions" => features::convolutions(bench, options, report),
        "pooling" => features::poolings(bench, report),
        "gram" => features::grams(bench, report),
        "content" => features::contents(bench, report),
        "vectors" => vectors::vectors(bench, report),
        "optimizers" => learning::optimizers(bench, report),
        "recordings" => {
            vectors::repeats(bench, options, report);
            learning::recordings(bench, options, report);
        }
        "instances" => instances::instances(bench, options, report),
        "losses" => losses::losses(bench, options, report),
        "times" => times::times(bench, options, report),
        EVALUATION => frames::evaluation(bench, options, report),
        _ => frames::throughput(bench, options, report),
    }
}

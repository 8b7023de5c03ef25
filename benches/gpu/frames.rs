// SPDX-License-Identifier: MPL-2.0

//! How long evaluations, iterations and frames take.

use crate::Options;
use crate::common::problem::{Pictures, Problem, made_style, name};
use crate::common::timing::{median, ms, timed};
use crate::data::{Bench, noise};
use crate::problem::{on, pan, problem};
use crate::report::{Outcome, Report};
use crate::times::{Size, percent_of, total_flops, warm_up};
use gstgatys::ops::Format;
use gstgatys::ops::elementwise::copy;
use gstgatys::ops::transfer::Transfer;
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};
use std::time::{Duration, Instant};

const ITERATIONS: u32 = 20;

/// When this has passed, three rounds are enough.
const MAX_TIME: Duration = Duration::from_secs(1);

/// Value and gradient, and iterations of L-BFGS.
pub fn evaluations(
    bench: &Bench,
    sizes: &[Size],
    rounds: usize,
    peaks: &[Option<f64>],
    report: &mut Report,
) {
    report.section("Value and gradient, and an iteration of L-BFGS");
    report.head(&[
        "size",
        "precision",
        "value and gradient, ms",
        "iteration, ms",
        "TFLOP/s",
        "of the peak",
    ]);
    for &size in sizes {
        let pictures = Pictures::made(size);
        for (&format, peak) in bench.formats.iter().zip(peaks).rev() {
            let precision = match format {
                Format::F32 => Precision::F32,
                Format::Tf32 => Precision::Tf32,
                Format::Bf16 => Precision::Bf16,
                Format::F16 => Precision::F16,
            };
            report.attempt(&format!("{} {precision}", name(size)), || {
                let problem = problem(&bench.device, precision, &on(&bench.device, &pictures)?)?;
                // Each evaluation ends with the losses on the host. The first ones capture the graph.
                warm_up(300, || {
                    problem.evaluate();
                    Ok(())
                })?;
                let time = median_time(3 * rounds, || Ok(timed(|| problem.evaluate()).0))?;
                let iteration = iteration(&problem, rounds)?;
                let rate = total_flops(size) / (time * 1e9);
                println!(
                    "| {} | {precision} | {time:.3} | {iteration:.3} | {rate:.1} | {} |",
                    name(size),
                    percent_of(rate, *peak)
                );
                Ok(())
            });
        }
    }
}

/// A single value and gradient, with the setup before it.
pub fn evaluation(bench: &Bench, options: &Options, report: &mut Report) {
    let size = if options.quick { (96, 64) } else { (640, 360) };
    report.attempt(&name(size), || {
        let pictures = on(&bench.device, &Pictures::made(size))?;
        problem(&bench.device, Precision::Auto, &pictures)?.evaluate();
        Ok(())
    });
}

/// Milliseconds of an iteration of L-BFGS.
fn iteration(problem: &Problem, rounds: usize) -> Outcome<f64> {
    let image = problem.image.copy()?;
    let mut optimizer = optimizer(&image, &Config::default())?;
    let budget = Budget {
        iterations: ITERATIONS,
        deadline: None,
    };
    let mut once = || {
        copy(&image, &problem.image)?;
        optimizer.next_objective()?;
        let (time, outcome) = timed(|| {
            optimizer.minimize(&image, budget, &mut |image, gradient| {
                Ok(problem.evaluate_at(image, gradient))
            })
        });
        Ok(time / outcome?.iterations)
    };
    once()?;
    median_time(rounds.div_ceil(2), once)
}

/// The median milliseconds of `rounds` rounds, or of fewer if they take long.
fn median_time(rounds: usize, mut once: impl FnMut() -> Outcome<Duration>) -> Outcome<f64> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < rounds && (times.len() < 3 || begun.elapsed() < MAX_TIME) {
        times.push(ms(once()?));
    }
    Ok(median(times))
}

/// Uploads and downloads of a frame.
pub fn transfers(bench: &Bench, sizes: &[Size], rounds: usize, report: &mut Report) {
    report.section("A frame's way to the device and back");
    report.head(&["frame", "up, ms", "down, ms"]);
    for &(w, h) in sizes {
        report.attempt(&name((w, h)), || {
            let frame = noise((h, w, 3), 1);
            let mut transfer = Transfer::default();
            let (mut up, mut down) = (Vec::new(), Vec::new());
            for _ in 0..=rounds {
                let (time, uploaded) = timed(|| {
                    let uploaded = transfer.upload(&frame, &bench.device)?;
                    bench.device.synchronize()?;
                    candle_core::Result::Ok(uploaded)
                });
                up.push(ms(time));
                let uploaded = uploaded?;
                let (time, downloaded) = timed(|| transfer.download(&uploaded));
                downloaded?;
                down.push(ms(time));
            }
            println!(
                "| {} | {:.3} | {:.3} |",
                name((w, h)),
                median(up),
                median(down)
            );
            Ok(())
        });
    }
}

/// The stylizer's frames a second while the camera pans over a picture.
pub fn throughput(bench: &Bench, options: &Options, report: &mut Report) {
    let ((w, h), count) = match options.quick {
        true => ((96, 64), 4),
        false => ((640, 360), 48),
    };
    report.section(&format!("Stylizer at {}, a moving camera", name((w, h))));
    println!(
        "Without the first frame, which has {} iterations.\n",
        Config::default().initial_iterations
    );
    report.head(&[
        "iterations",
        "frames a second",
        "ms a frame, median",
        "of them on motion",
    ]);
    let Some(frames) = report.attempt("frames", || pan((w, h), count, 1)) else {
        return;
    };
    for iterations in [5, 10, 20] {
        report.attempt(&format!("{iterations} iterations"), || {
            let vgg = Vgg::shared(&WeightsSource::BuiltIn, &bench.device, Precision::Auto)?;
            let config = Config {
                iterations,
                max_size: None,
                ..Config::default()
            };
            let mut stylizer = Stylizer::new(vgg, made_style((w, h)), config)?;
            let (mut times, mut motion) = (Vec::new(), Vec::new());
            for (index, frame) in frames.iter().enumerate() {
                let (time, painted) = timed(|| stylizer.stylize(frame, &|| false));
                let (_, done) = painted?;
                if done.scene_cut || (index > 0 && done.iterations != iterations) {
                    return Err(format!("frame {index} had {} iterations", done.iterations).into());
                }
                if index > 0 {
                    times.push(ms(time));
                    motion.push(ms(done.motion_time));
                }
            }
            let rate = 1e3 * times.len() as f64 / times.iter().sum::<f64>();
            println!(
                "| {iterations} | {rate:.1} | {:.2} | {:.2} |",
                median(times),
                median(motion)
            );
            Ok(())
        });
    }
}

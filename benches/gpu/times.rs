// SPDX-License-Identifier: MPL-2.0

//! The time of operations, and through `frames` of evaluations and iterations: medians after a warm-up.

use crate::Options;
use crate::common::problem::name;
use crate::common::timing::{median, ms, timed};
use crate::data::{self, Bench, factor, features, noise, sum};
use crate::frames::{evaluations, transfers};
use crate::problem::take_capture_failures;
use crate::report::{Outcome, Report};
use candle_core::cuda_backend::set_gemm_reduced_precision_f32;
use candle_core::{Device, Tensor};
use gstgatys::ops::Format;
use gstgatys::ops::conv::{Border, Conv3x3};
use gstgatys::ops::cuda::conv::cached_algorithms;
use gstgatys::ops::cuda::graph::CapturedGraph;
use gstgatys::ops::elementwise as vector;
use gstgatys::ops::gram::{gram_backward, gram_residual};
use gstgatys::ops::pool::Pooling;
use std::time::{Duration, Instant};

/// The first convolution of each shape: its block, its input and output channels, and the number of
/// convolutions of the shape up to conv5_1.
const CONVS: [(&str, usize, [usize; 2], usize); 9] = [
    ("conv1_1", 0, [3, 64], 1),
    ("conv1_2", 0, [64, 64], 1),
    ("conv2_1", 1, [64, 128], 1),
    ("conv2_2", 1, [128, 128], 1),
    ("conv3_1", 2, [128, 256], 1),
    ("conv3_2", 2, [256, 256], 3),
    ("conv4_1", 3, [256, 512], 1),
    ("conv4_2", 3, [512, 512], 3),
    ("conv5_1", 4, [512, 512], 1),
];

/// Channels of each block.
const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];

/// Side of the matrices whose product measures the card's peak.
const PRODUCT: usize = 8192;

pub type Size = (usize, usize);

/// Floating point operations of one convolution.
fn flops((w, h): Size, block: usize, [n_in, n_out]: [usize; 2]) -> f64 {
    (2 * 9 * n_in * n_out * (h >> block) * (w >> block)) as f64
}

/// Those of all convolutions of an evaluation, forward and backward.
pub fn total_flops(size: Size) -> f64 {
    let convs = CONVS.iter();
    convs
        .map(|&(_, block, channels, count)| 2.0 * count as f64 * flops(size, block, channels))
        .sum()
}

/// Times an operation on fixed operands. On a GPU many of it are captured as one CUDA graph, so that
/// the host's overhead is not measured.
struct Timer<'a> {
    device: &'a Device,
    rounds: usize,
}

impl Timer<'_> {
    /// Milliseconds.
    fn time(&self, op: impl Fn() -> candle_core::Result<()>) -> Outcome<f64> {
        // The first call allocates scratch memory and measures algorithms.
        op()?;
        self.device.synchronize()?;
        let (single, done) = timed(|| op().and_then(|()| self.device.synchronize()));
        done?;
        let count = (2.0 / ms(single)).clamp(1.0, 20.0) as usize;
        let many = || (0..count).try_for_each(|_| op());
        let mut graph = match self.device.is_cuda() {
            true => {
                let graph = CapturedGraph::capture(self.device, many)?;
                Some(graph.ok_or_else(|| take_capture_failures().unwrap_or_default())?)
            }
            false => None,
        };
        let mut once = || {
            let (time, done) = timed(|| {
                match &mut graph {
                    // SAFETY: `op` borrows its tensors.
                    Some(graph) => unsafe { graph.launch()? },
                    None => many()?,
                }
                self.device.synchronize()
            });
            done?;
            Ok(ms(time) / count as f64)
        };
        warm_up(30, || once().map(drop))?;
        let times: Outcome<Vec<_>> = (0..self.rounds).map(|_| once()).collect();
        Ok(median(times?))
    }
}

/// Runs an operation four times, or more until so many milliseconds have passed, in which the clocks of an
/// idle GPU rise.
pub fn warm_up(least_ms: u64, mut once: impl FnMut() -> Outcome<()>) -> Outcome<()> {
    let begun = Instant::now();
    let mut count = 0;
    while count < 4 || begun.elapsed() < Duration::from_millis(least_ms) {
        once()?;
        count += 1;
    }
    Ok(())
}

pub fn times(bench: &Bench, options: &Options, report: &mut Report) {
    let (sizes, rounds, product): (&[Size], _, _) = match options.quick {
        true => (&[(96, 64)], 2, 256),
        false => (&[(640, 360), (1280, 720), (1920, 1080)], 15, PRODUCT),
    };
    let timer = Timer {
        device: &bench.device,
        rounds,
    };
    let peaks = peaks(bench, &timer, product, report);
    evaluations(bench, sizes, rounds, &peaks, report);
    print_algorithms(report);
    transfers(bench, sizes, rounds, report);
    operations(bench, &timer, sizes[0], &peaks, report);
}

/// TFLOP/s of a large product in each format.
fn peaks(bench: &Bench, timer: &Timer, n: usize, report: &mut Report) -> Vec<Option<f64>> {
    report.section(&format!("Products of {n}x{n} matrices, cuBLAS"));
    report.head(&["format", "ms", "TFLOP/s"]);
    let operand = noise((n, n), 1);
    let measure = |&format: &Format| {
        let name = data::name(format);
        let time = report.attempt(name, || {
            let matrix = operand.to_dtype(format.dtype())?.to_device(&bench.device)?;
            set_gemm_reduced_precision_f32(format == Format::Tf32);
            let mut times = Vec::new();
            for round in 0..=timer.rounds {
                let (time, done) = timed(|| {
                    let product = matrix.matmul(&matrix)?;
                    bench.device.synchronize()?;
                    candle_core::Result::Ok(product)
                });
                done?;
                if round > 0 {
                    times.push(ms(time));
                }
            }
            Ok(median(times))
        });
        set_gemm_reduced_precision_f32(false);
        let rate = 2.0 * (n as f64).powi(3) / (time? * 1e9);
        println!("| {name} | {:.3} | {rate:.1} |", time?);
        Some(rate)
    };
    bench.formats.iter().map(measure).collect()
}

/// A rate in percent of a peak.
pub fn percent_of(rate: f64, peak: Option<f64>) -> String {
    peak.map_or("–".into(), |peak| format!("{:.0} %", 100.0 * rate / peak))
}

/// Each operation at the shapes it has for an image of a size.
fn operations(
    bench: &Bench,
    timer: &Timer,
    size: Size,
    peaks: &[Option<f64>],
    report: &mut Report,
) {
    report.section(&format!("Operations at {}, ms", name(size)));
    println!("Of convolutions also TFLOP/s, and how much that is of the product's.\n");
    let mut head = vec!["operation"];
    head.extend(bench.formats.iter().map(|&format| data::name(format)));
    report.head(&head);
    let mut row = |title: &str,
                   flops: Option<f64>,
                   time: &dyn Fn(Format) -> Outcome<Option<f64>>| {
        let mut cells = vec![title.to_string()];
        for (&format, &peak) in bench.formats.iter().zip(peaks) {
            let time = report.attempt(&format!("{title}, {}", data::name(format)), || time(format));
            let time = time.flatten();
            cells.push(match (time, flops) {
                (Some(time), Some(flops)) => {
                    let rate = flops / (time * 1e9);
                    format!("{time:.4} ({rate:.0}, {})", percent_of(rate, peak))
                }
                (Some(time), None) => format!("{time:.4}"),
                (None, _) => "–".into(),
            });
        }
        report.row(&cells);
    };
    let dims = |block: usize, n: usize| (size.1 >> block, size.0 >> block, n);
    let to_device = |tensor: &Tensor, format: Format| -> Outcome<Tensor> {
        Ok(tensor.to_dtype(format.dtype())?.to_device(&bench.device)?)
    };
    for (layer, block, [n_in, n_out], _) in CONVS {
        let border = if n_in == 3 {
            Border::Replicate
        } else {
            Border::Zeros
        };
        let input = features(dims(block, n_in), 3);
        let output = features(dims(block, n_out), 4);
        let upstream = noise(dims(block, n_out), 5);
        for forward in [true, false] {
            let title = format!("{layer} {}", if forward { "forward" } else { "backward" });
            let flops = flops(size, block, [n_in, n_out]);
            // Where a pool follows, its gradient is masked by the ReLU already.
            let masked = ["conv1_2", "conv2_2"].contains(&layer);
            row(&title, Some(flops), &|format| {
                let kernel = data::kernel([n_in, n_out], 1).to_device(&bench.device)?;
                let bias = noise(n_out, 2).to_device(&bench.device)?;
                let conv = Conv3x3::new(&kernel, &bias, border, format)?;
                let stored = if n_in == 3 { Format::F32 } else { format };
                let input = to_device(&input, stored)?;
                let output = to_device(&output, format)?;
                let upstream = to_device(&upstream, format)?;
                Ok(Some(match forward {
                    true => timer.time(|| conv.forward(&input, &output))?,
                    false => timer.time(|| conv.backward(&upstream, &output, &input, masked))?,
                }))
            });
        }
    }
    // Only convolutions differ in tf32.
    let differs = |format: Format| format != Format::Tf32;
    for (block, n) in CHANNELS.into_iter().enumerate().take(4) {
        let input = features(dims(block, n), 1);
        let output = features(dims(block + 1, n), 2);
        for (pooling, kind) in [(Pooling::Avg, "avg"), (Pooling::Max, "max")] {
            for forward in [true, false] {
                let way = if forward { "forward" } else { "backward" };
                row(
                    &format!("{kind} pooling {} {way}", block + 1),
                    None,
                    &|format| {
                        if !differs(format) {
                            return Ok(None);
                        }
                        let (input, output) =
                            (to_device(&input, format)?, to_device(&output, format)?);
                        let gradient = input.zeros_like()?;
                        Ok(Some(match forward {
                            true => timer.time(|| pooling.forward(&input, &output))?,
                            false => timer.time(|| pooling.backward(&output, &input, &gradient))?,
                        }))
                    },
                );
            }
        }
    }
    for (block, n) in CHANNELS.into_iter().enumerate() {
        let (of, target) = (features(dims(block, n), 1), noise((n, n), 2));
        for forward in [true, false] {
            let what = if forward { "residual" } else { "backward" };
            row(
                &format!("Gram {what} conv{}_1", block + 1),
                None,
                &|format| {
                    if !differs(format) {
                        return Ok(None);
                    }
                    let (of, target) = (to_device(&of, format)?, to_device(&target, Format::F32)?);
                    let (gradient, residual) = (of.zeros_like()?, target.copy()?);
                    let (sum, factor) = (sum(&bench.device)?, factor(0.3, &bench.device)?);
                    Ok(Some(match forward {
                        true => timer.time(|| gram_residual(&of, &target, &residual, &sum))?,
                        false => timer.time(|| {
                            gram_backward(&of, &residual, &sum, &factor, &gradient, true)
                        })?,
                    }))
                },
            );
        }
    }
    row("content conv4_2", None, &|format| {
        if !differs(format) {
            return Ok(None);
        }
        let f = to_device(&features(dims(3, 512), 1), format)?;
        let p = to_device(&features(dims(3, 512), 2), format)?;
        let gradient = f.zeros_like()?;
        let (sum, factor) = (sum(&bench.device)?, factor(0.3, &bench.device)?);
        let content = || vector::content_loss(&f, &p, &factor, &gradient, true, &sum);
        Ok(Some(timer.time(content)?))
    });
    type Op = fn(&[Tensor; 3], &Tensor, &Tensor) -> candle_core::Result<()>;
    // With factors so small that many repetitions do not overflow.
    let ops: [(&str, Op); 5] = [
        ("total variation", |[x, y, _], factor, sum| {
            vector::total_variation(x, factor, y, sum)
        }),
        ("squares", |[x, ..], _, sum| vector::squares(x, sum)),
        ("copy", |[x, y, _], _, _| vector::copy(x, y)),
        ("decay", |[x, y, _], _, _| vector::decay(x, 0.9, y, true)),
        ("Adam's step", |[x, y, z], _, _| {
            vector::adam_step(x, 1e-9, y, 0.5, z)
        }),
    ];
    for (title, op) in ops {
        // Images are f32.
        row(title, None, &|format| {
            if format != Format::F32 {
                return Ok(None);
            }
            let image = |seed| to_device(&features(dims(0, 3), seed), Format::F32);
            let operands = [image(1)?, image(2)?, image(3)?];
            let (sum, factor) = (sum(&bench.device)?, factor(1e-9, &bench.device)?);
            Ok(Some(timer.time(|| op(&operands, &factor, &sum))?))
        });
    }
}

fn print_algorithms(report: &Report) {
    let mut algorithms = cached_algorithms();
    algorithms.sort();
    report.section("cuDNN's algorithms; \"own\" is this project's kernel");
    report.head(&["convolution", "fastest"]);
    for (of, which) in &algorithms {
        report.row(&[of, which]);
    }
}

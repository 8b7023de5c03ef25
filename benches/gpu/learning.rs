// SPDX-License-Identifier: MPL-2.0

//! The optimisers compared with the CPU's, and captured graphs compared with direct execution.

use crate::Options;
use crate::common::problem::{Pictures, name};
use crate::data::{Bench, count_differing, noise, pixels, relative_error, values};
use crate::problem::{on, problem, take_capture_failures};
use crate::report::{Outcome, Report};
use candle_core::{DType, Device, Tensor};
use gstgatys::ops::elementwise::copy;
use gstgatys::ops::transfer::to_host;
use gstgatys::stylizer::config::{Config, OptimizerKind};
use gstgatys::stylizer::objective::Losses;
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::{Error, Precision};

/// The shape of a quadratic's image, which takes several blocks of the kernels of L-BFGS, the last of them in
/// part; and the evaluations of its minimisation.
const SHAPE: [usize; 3] = [43, 53, 3];
const EVALUATIONS: u32 = 15;

pub fn optimizers(bench: &Bench, report: &mut Report) {
    report.checks("Optimisers");
    for (kind, name) in [
        (OptimizerKind::Lbfgs, "L-BFGS"),
        (OptimizerKind::Adam, "Adam"),
    ] {
        // Three frames each, as the optimisers keep something of what they learn from one to the next, and one
        // after a reset.
        let both = report.attempt(name, || {
            Ok((
                quadratic(&Device::Cpu, kind)?,
                quadratic(&bench.device, kind)?,
            ))
        });
        let Some((host, device)) = both else { continue };
        for (frame, (host, device)) in host.iter().zip(&device).enumerate() {
            let title = |what| format!("{name} on a quadratic with bounds, frame {frame}: {what}");
            report.check(&title("evaluations"), 0.0, || {
                Ok(host.evaluations.abs_diff(device.evaluations).into())
            });
            report.check(&title("image"), 1e-3, || {
                relative_error(&device.image, &host.image)
            });
            report.check(&title("value"), 1e-3, || {
                Ok((device.value - host.value).abs() / host.value)
            });
            report.check(&title("what is left of the first value"), 0.9, || {
                Ok(device.value / device.initial)
            });
            report.check(&title("values beyond 0..1"), 0.0, || {
                let values = values(&device.image)?;
                let beyond = values.iter().filter(|value| !(0.0..=1.0).contains(*value));
                Ok(beyond.count() as f64)
            });
        }
    }
}

/// The result of minimising a quadratic.
struct Minimum {
    image: Tensor,
    evaluations: u32,
    initial: f64,
    value: f64,
}

/// Minimises ½ Σ a (x − b)² for four b in turn, with the minima partly outside 0..1.
fn quadratic(device: &Device, kind: OptimizerKind) -> Outcome<Vec<Minimum>> {
    let config = Config {
        optimizer: kind,
        ..Config::default()
    };
    let image = pixels(&SHAPE, 1).to_device(device)?;
    let mut optimizer = optimizer(&image, &config)?;
    let curvature = noise(&SHAPE, 2).affine(20.0, 21.0)?;
    let mut minima = Vec::new();
    for (frame, seed) in [3, 4, 5, 6].into_iter().enumerate() {
        let target = noise(&SHAPE, seed).affine(0.8, 0.5)?;
        let budget = Budget {
            iterations: EVALUATIONS,
            deadline: None,
        };
        // On the CPU, as candle's GPU kernels would have to be compiled first.
        let mut evaluate = |x: &Tensor, gradient: &Tensor| -> Result<Losses, Error> {
            let difference = (to_host(x)? - &target)?;
            let slope = (&difference * &curvature)?;
            copy(gradient, &slope.to_device(device)?)?;
            let products = (slope.to_dtype(DType::F64)? * difference.to_dtype(DType::F64)?)?;
            Ok(Losses {
                total: 0.5 * products.sum_all()?.to_scalar::<f64>()?,
                ..Losses::default()
            })
        };
        match frame {
            3 => optimizer.reset()?,
            _ => optimizer.next_objective()?,
        }
        let outcome = optimizer.minimize(&image, budget, &mut evaluate)?;
        minima.push(Minimum {
            image: to_host(&image)?.copy()?,
            evaluations: outcome.iterations,
            initial: outcome.initial.total,
            value: outcome.best.total,
        });
    }
    Ok(minima)
}

/// An evaluation is captured as a CUDA graph when it is made for the second time; from then on the
/// graph is launched.
pub fn recordings(bench: &Bench, options: &Options, report: &mut Report) {
    report.section("Recorded and replayed");
    report.head(&["check", "values that differ", "limit", ""]);
    if bench.device.is_cuda() {
        report.check("the driver records an operation", 0.0, || {
            graph_differences(&bench.device)
        });
        report.check("the driver records a step of L-BFGS", 0.0, || {
            take_capture_failures();
            quadratic(&bench.device, OptimizerKind::Lbfgs)?;
            take_capture_failures().map_or(Ok(0.0), |why| Err(why.into()))
        });
    }
    let precisions = match bench.device.is_cpu() {
        true => vec![Precision::F32],
        false => vec![
            Precision::F16,
            Precision::Bf16,
            Precision::Tf32,
            Precision::F32,
        ],
    };
    let (w, h) = if options.quick { (67, 45) } else { (250, 170) };
    for precision in precisions {
        let title = format!("gradients at {}, {precision}", name((w, h)));
        report.check(&title, 0.0, || {
            let pictures = on(&bench.device, &Pictures::made((w, h)))?;
            let problem = problem(&bench.device, precision, &pictures)?;
            let launched = || -> Outcome<Tensor> {
                problem.evaluate();
                Ok(to_host(&problem.gradient)?.copy()?)
            };
            // A graph is for certain tensors: with others the evaluation is executed directly.
            let direct = || -> Outcome<Tensor> {
                let gradient = problem.image.zeros_like()?;
                problem.evaluate_at(&problem.image.copy()?, &gradient);
                Ok(to_host(&gradient)?)
            };
            take_capture_failures();
            for _ in 0..3 {
                problem.evaluate();
            }
            if let Some(why) = take_capture_failures() {
                return Err(why.into());
            }
            let first = launched()?;
            let mut differences = count_differing(&first, &direct()?)?;
            // The graph must read the image's new values.
            copy(
                &problem.image,
                &pixels((h, w, 3), 9).to_device(&bench.device)?,
            )?;
            let second = launched()?;
            if count_differing(&second, &first)? == 0.0 {
                return Err("another image has the same gradient".into());
            }
            differences += count_differing(&second, &direct()?)?;
            Ok(differences)
        });
    }
}

/// Whether the driver captures a graph at all: the optimisation would go on without.
fn graph_differences(device: &Device) -> Outcome<f64> {
    use gstgatys::ops::cuda::graph::CapturedGraph;
    use gstgatys::ops::elementwise::decay;
    let x = noise(1001, 1).to_device(device)?;
    let y = noise(1001, 2).to_device(device)?;
    let expected = y.copy()?;
    for _ in 0..3 {
        decay(&expected, 0.7, &x, false)?;
    }
    // Capturing executes it once; two launches follow.
    let mut graph = CapturedGraph::capture(device, || decay(&y, 0.7, &x, false))?
        .ok_or_else(|| take_capture_failures().unwrap_or_default())?;
    for _ in 0..2 {
        // SAFETY: both tensors are there until the end, which waits for the device.
        unsafe { graph.launch()? };
    }
    count_differing(&y, &expected)
}

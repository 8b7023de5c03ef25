// SPDX-License-Identifier: MPL-2.0

//! The optimisers beside the CPU's, and recordings beside what they record.

use crate::Options;
use crate::common::problem::{Pictures, name};
use crate::data::{Bench, difference, differing, noise, pixels, values};
use crate::problem::{on, problem, unrecorded};
use crate::report::{Outcome, Report};
use candle_core::{DType, Device, Tensor};
use gstgatys::ops::elementwise::copy;
use gstgatys::stylizer::config::{Config, OptimizerKind};
use gstgatys::stylizer::objective::Losses;
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::{Error, Precision};

/// Image values of a quadratic, and how many evaluations it gets.
const SHAPE: [usize; 3] = [23, 31, 3];
const EVALUATIONS: u32 = 15;

pub fn optimizers(bench: &Bench, report: &mut Report) {
    report.checks("Optimisers");
    for (kind, name) in [
        (OptimizerKind::Lbfgs, "L-BFGS"),
        (OptimizerKind::Adam, "Adam"),
    ] {
        // Twice: what is learned goes on from one image to the next.
        let both = report.attempt(name, || {
            Ok((
                quadratic(&Device::Cpu, kind)?,
                quadratic(&bench.device, kind)?,
            ))
        });
        let Some((host, there)) = both else { continue };
        for (frame, (host, there)) in host.iter().zip(&there).enumerate() {
            let title = |what| format!("{name} on a quadratic with bounds, frame {frame}: {what}");
            report.check(&title("evaluations"), 0.0, || {
                Ok(host.evaluations.abs_diff(there.evaluations).into())
            });
            report.check(&title("image"), 1e-3, || {
                difference(&there.image, &host.image)
            });
            report.check(&title("value"), 1e-3, || {
                Ok((there.value - host.value).abs() / host.value)
            });
            report.check(&title("what is left of the first value"), 0.9, || {
                Ok(there.value / there.initial)
            });
            report.check(&title("values beyond 0..1"), 0.0, || {
                let values = values(&there.image)?;
                let beyond = values.iter().filter(|it| !(0.0..=1.0).contains(*it));
                Ok(beyond.count() as f64)
            });
        }
    }
}

/// What a quadratic was brought to.
struct Minimum {
    image: Tensor,
    evaluations: u32,
    initial: f64,
    value: f64,
}

/// Two problems ½ Σ a (x − b)² after each other, whose minima lie beyond 0..1 in a part of the values.
fn quadratic(device: &Device, kind: OptimizerKind) -> Outcome<Vec<Minimum>> {
    let config = Config {
        optimizer: kind,
        ..Config::default()
    };
    let image = pixels(&SHAPE, 1).to_device(device)?;
    let mut optimizer = optimizer(&image, &config)?;
    let curvature = noise(&SHAPE, 2).affine(20.0, 21.0)?;
    let mut minima = Vec::new();
    for seed in [3, 4] {
        let target = noise(&SHAPE, seed).affine(0.8, 0.5)?;
        let budget = Budget {
            iterations: EVALUATIONS,
            deadline: None,
        };
        // On the CPU: a GPU would compile candle's operations first.
        let mut evaluate = |x: &Tensor, gradient: &Tensor| -> Result<Losses, Error> {
            let difference = (x.to_device(&Device::Cpu)? - &target)?;
            let slope = (&difference * &curvature)?;
            copy(gradient, &slope.to_device(device)?)?;
            let products = (slope.to_dtype(DType::F64)? * difference.to_dtype(DType::F64)?)?;
            Ok(Losses {
                total: 0.5 * products.sum_all()?.to_scalar::<f64>()?,
                ..Losses::default()
            })
        };
        let outcome = optimizer.minimize(&image, budget, &mut evaluate)?;
        minima.push(Minimum {
            image: image.to_device(&Device::Cpu)?.copy()?,
            evaluations: outcome.iterations,
            initial: outcome.initial.total,
            value: outcome.best.total,
        });
    }
    Ok(minima)
}

/// An evaluation is recorded when it is made for the second time, and replayed from then on.
pub fn recordings(bench: &Bench, options: &Options, report: &mut Report) {
    report.section("Recorded and replayed");
    report.head(&["check", "values that differ", "limit", ""]);
    if bench.device.is_cuda() {
        report.check("the driver records an operation", 0.0, || {
            driver_records(&bench.device)
        });
        report.check("the driver records a step of L-BFGS", 0.0, || {
            unrecorded();
            quadratic(&bench.device, OptimizerKind::Lbfgs)?;
            unrecorded().map_or(Ok(0.0), |why| Err(why.into()))
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
            let replayed = || -> Outcome<Tensor> {
                problem.evaluate();
                Ok(problem.gradient.to_device(&Device::Cpu)?.copy()?)
            };
            // What is recorded is so for these tensors alone.
            let anew = || -> Outcome<Tensor> {
                let gradient = problem.image.zeros_like()?;
                problem.evaluate_at(&problem.image.copy()?, &gradient);
                Ok(gradient.to_device(&Device::Cpu)?)
            };
            unrecorded();
            for _ in 0..3 {
                problem.evaluate();
            }
            if let Some(why) = unrecorded() {
                return Err(why.into());
            }
            let first = replayed()?;
            let mut differences = differing(&first, &anew()?)?;
            // It computes with what is in the image now.
            copy(
                &problem.image,
                &pixels((h, w, 3), 9).to_device(&bench.device)?,
            )?;
            let second = replayed()?;
            if differing(&second, &first)? == 0.0 {
                return Err("another image has the same gradient".into());
            }
            differences += differing(&second, &anew()?)?;
            Ok(differences)
        });
    }
}

/// What [`gstgatys::ops::record::Recorded`] does without where the driver refuses.
fn driver_records(device: &Device) -> Outcome<f64> {
    use gstgatys::ops::cuda::graph::CapturedGraph;
    use gstgatys::ops::elementwise::axpy;
    let x = noise(1001, 1).to_device(device)?;
    let y = noise(1001, 2).to_device(device)?;
    let expected = y.copy()?;
    for _ in 0..3 {
        axpy(0.3, &x, &expected)?;
    }
    // Once as it is recorded, and twice after that.
    let mut recording = CapturedGraph::capture(device, || axpy(0.3, &x, &y))?
        .ok_or_else(|| unrecorded().unwrap_or_default())?;
    recording.launch()?;
    recording.launch()?;
    differing(&y, &expected)
}

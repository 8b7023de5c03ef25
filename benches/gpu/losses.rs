// SPDX-License-Identifier: MPL-2.0

//! The built-in network's losses and gradient in each precision compared with the CPU's in f32.

use crate::Options;
use crate::common::problem::{Pictures, Problem, name};
use crate::data::{Bench, cosine_distance, relative_error};
use crate::problem::{on, problem};
use crate::report::{Outcome, Report};
use candle_core::{Device, Tensor};
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::objective::Losses;
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::Precision;

/// The limits of the relative error of a loss and of 1 - the cosine between gradients. bf16 has less
/// than three decimal digits, and rounds each activation.
const LIMITS: [(Precision, f64, f64); 4] = [
    (Precision::F32, 1e-4, 1e-3),
    (Precision::Tf32, 5e-3, 1e-3),
    (Precision::F16, 5e-3, 1e-3),
    (Precision::Bf16, 2e-2, 5e-3),
];

const ITERATIONS: u32 = 20;

/// A loss that is compared.
type Loss = (&'static str, fn(&Losses) -> f64);
const LOSSES: [Loss; 4] = [
    ("content", |losses| losses.content),
    ("style", |losses| losses.style),
    ("variation", |losses| losses.variation),
    ("total", |losses| losses.total),
];

pub fn losses(bench: &Bench, options: &Options, report: &mut Report) {
    let sizes: &[_] = match options.quick {
        true => &[(67, 45)],
        false => &[(250, 170), (640, 360)],
    };
    for &size in sizes {
        report.checks(&format!("Losses and gradients at {}", name(size)));
        let host = report.attempt("on the CPU", || {
            let pictures = Pictures::made(size);
            let problem = problem(&Device::Cpu, Precision::F32, &pictures)?;
            let losses = problem.evaluate();
            Ok((pictures, problem.gradient.clone(), losses))
        });
        let Some((pictures, gradient, expected)) = host else {
            continue;
        };
        for (precision, limit, cosine_limit) in precisions(bench) {
            let results = report.attempt(&format!("{precision}"), || {
                let problem = problem(&bench.device, precision, &on(&bench.device, &pictures)?)?;
                Ok((problem.evaluate(), problem.gradient.clone()))
            });
            let Some((losses, device_gradient)) = results else {
                continue;
            };
            for (name, loss) in LOSSES {
                report.check(&format!("{precision}: {name} loss"), limit, || {
                    Ok((loss(&losses) / loss(&expected) - 1.0).abs())
                });
            }
            report.check(
                &format!("{precision}: 1 - cosine of the gradient"),
                cosine_limit,
                || cosine_distance(&device_gradient, &gradient),
            );
            if let Ok(error) = relative_error(&device_gradient, &gradient) {
                report.row(&[
                    format!("{precision}: gradient, relative L2").as_str(),
                    &format!("{error:.1e}"),
                    "",
                    "",
                ]);
            }
        }
        optimisations(bench, &pictures, report);
    }
}

fn precisions(bench: &Bench) -> impl Iterator<Item = (Precision, f64, f64)> {
    let count = if bench.device.is_cpu() {
        1
    } else {
        LIMITS.len()
    };
    LIMITS.into_iter().take(count)
}

/// 20 iterations of L-BFGS in f32 on the CPU and on the device.
fn optimisations(bench: &Bench, pictures: &Pictures, report: &mut Report) {
    let title = format!("{ITERATIONS} iterations of L-BFGS");
    let both = report.attempt(&title, || {
        let host = problem(&Device::Cpu, Precision::F32, pictures)?;
        let device = problem(&bench.device, Precision::F32, &on(&bench.device, pictures)?)?;
        Ok((optimise(&host)?, optimise(&device)?))
    });
    if let Some(((host, image), (device, device_image))) = both {
        // Small differences grow in the course of it, and lead lower as well as higher.
        report.check(&format!("{title}, f32: total loss above"), 5e-2, || {
            Ok(device / host - 1.0)
        });
        if let Ok(error) = relative_error(&device_image, &image) {
            report.row(&[
                format!("{title}, f32: image, relative L2").as_str(),
                &format!("{error:.1e}"),
                "",
                "",
            ]);
        }
    }
}

/// The total loss and the image after the iterations.
fn optimise(problem: &Problem) -> Outcome<(f64, Tensor)> {
    let image = problem.image.copy()?;
    let budget = Budget {
        iterations: ITERATIONS,
        deadline: None,
    };
    let mut optimizer = optimizer(&image, &Config::default())?;
    let outcome = optimizer.minimize(&image, budget, &mut |image, gradient| {
        Ok(problem.evaluate_at(image, gradient))
    })?;
    Ok((outcome.best.total, image))
}

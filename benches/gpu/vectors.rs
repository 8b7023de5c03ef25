// SPDX-License-Identifier: MPL-2.0

//! What is done with images and gradients, beside the CPU's.

use crate::Options;
use crate::data::{Bench, difference, differing, factor, noise, pixels, sum};
use crate::report::{Outcome, Report};
use candle_core::{Device, Tensor};
use gstgatys::ops::elementwise as vector;

/// A few roundings in f32, of which a GPU leaves some out.
const LIMIT: f64 = 1e-6;

const SIZES: [[usize; 2]; 3] = [[13, 9], [17, 31], [360, 640]];

/// An operation on three tensors, of which it changes the first.
type Op = fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<()>;

const OPS: [(&str, Op); 10] = [
    ("copy", |x, y, _| vector::copy(x, y)),
    ("clear", |x, _, _| vector::clear(x)),
    ("axpy", |x, y, _| vector::axpy(0.7, y, x)),
    ("scale", |x, _, _| vector::scale(0.7, x)),
    ("difference", vector::difference),
    ("step", |x, y, z| vector::step(x, y, 0.3, z)),
    ("clear outward", |x, y, _| vector::clear_outward(x, y)),
    ("decay", |x, y, _| vector::decay(x, 0.9, y, false)),
    ("decay of squares", |x, y, _| vector::decay(x, 0.9, y, true)),
    // The third is to be positive.
    ("Adam's step", |x, y, z| {
        vector::adam_step(x, 0.02, y, 0.5, z)
    }),
];

pub fn vectors(bench: &Bench, report: &mut Report) {
    report.checks("Vectors");
    for [h, w] in SIZES {
        for (name, op) in OPS {
            report.check(&format!("{name}, {w}x{h}"), LIMIT, || {
                let (x, x_there) = bench.singles(noise((h, w, 3), 1))?;
                let (y, y_there) = bench.singles(pixels((h, w, 3), 2))?;
                let (z, z_there) = bench.singles(noise((h, w, 3), 3).sqr()?)?;
                op(&x, &y, &z)?;
                op(&x_there, &y_there, &z_there)?;
                difference(&x_there, &x)
            });
        }
        report.check(&format!("scale by, {w}x{h}"), LIMIT, || {
            let (x, x_there) = bench.singles(noise((h, w, 3), 1))?;
            vector::scale_by(&factor(0.3, &Device::Cpu)?, &x)?;
            vector::scale_by(&factor(0.3, &bench.device)?, &x_there)?;
            difference(&x_there, &x)
        });
        report.check(&format!("squares, {w}x{h}"), LIMIT, || {
            let (x, x_there) = bench.singles(noise((h, w, 3), 1))?;
            let (expected, there) = (sum(&Device::Cpu)?, sum(&bench.device)?);
            vector::squares(&x, &expected)?;
            vector::squares(&x_there, &there)?;
            difference(&there, &expected)
        });
        terms(bench, report, [h, w]);
    }
    for format in bench.stored() {
        report.check(&format!("clear of {format:?}"), 0.0, || {
            let (_, x) = bench.both(noise((13, 9, 5), 1), format)?;
            vector::clear(&x)?;
            differing(&x, &x.zeros_like()?)
        });
        report.check(&format!("copy of {format:?}"), 0.0, || {
            let (x, x_there) = bench.both(noise((13, 9, 5), 1), format)?;
            let (_, to) = bench.both(noise((13, 9, 5), 2), format)?;
            vector::copy(&to, &x_there)?;
            differing(&to, &x)
        });
    }
}

/// The terms of the objective that are of the image itself: sums and gradients.
fn terms(bench: &Bench, report: &mut Report, [h, w]: [usize; 2]) {
    type Term = fn(&[Tensor; 3], &Tensor, &Tensor) -> candle_core::Result<()>;
    let terms: [(&str, Term); 2] = [
        ("total variation", |[image, _, gradient], factor, sum| {
            vector::total_variation(image, factor, gradient, sum)
        }),
        ("held", |[image, target, gradient], factor, sum| {
            vector::temporal_loss(image, target, factor, gradient, sum)
        }),
    ];
    for (name, term) in terms {
        let on = |device: &Device| -> Outcome<[Tensor; 2]> {
            let operands = [
                pixels((h, w, 3), 1),
                pixels((h, w, 4), 2),
                noise((h, w, 3), 3),
            ];
            let [image, target, gradient] = operands.map(|it| it.to_device(device));
            let operands = [image?, target?, gradient?];
            let sum = sum(device)?;
            term(&operands, &factor(0.6, device)?, &sum)?;
            let [_, _, gradient] = operands;
            Ok([sum, gradient])
        };
        let title = format!("{name}, {w}x{h}");
        let computed = report.attempt(&title, || {
            let ([sum, gradient], [sum_there, gradient_there]) =
                (on(&Device::Cpu)?, on(&bench.device)?);
            Ok((
                difference(&sum_there, &sum)?,
                difference(&gradient_there, &gradient)?,
            ))
        });
        if let Some((sum, gradient)) = computed {
            report.check(&format!("{title}: sum"), LIMIT, || Ok(sum));
            report.check(&format!("{title}: gradient"), LIMIT, || Ok(gradient));
        }
    }
}

/// Whether the same operands give the same, bit for bit, each time.
pub fn repeats(bench: &Bench, options: &Options, report: &mut Report) {
    use crate::data::{features, kernel, name};
    use gstgatys::ops::conv::{Border, Conv3x3};
    use gstgatys::ops::gram::{gram, gram_backward};
    report.section("Repeated");
    report.head(&["check", "values that differ", "limit", ""]);
    let (h, w, n) = match options.quick {
        true => (13, 9, 40),
        false => (45, 80, 512),
    };
    for &format in &bench.formats {
        report.check(&format!("layer and losses, {}", name(format)), 0.0, || {
            let once = || -> Outcome<Vec<Tensor>> {
                let there = |tensor: Tensor| bench.both(tensor, format).map(|it| it.1);
                let (_, kernel) = bench.singles(kernel([n, n], 1))?;
                let (_, bias) = bench.singles(noise(n, 2))?;
                let conv = Conv3x3::with_format(&kernel, &bias, Border::Zeros, format)?;
                let (input, output) = (there(features((h, w, n), 3))?, there(noise((h, w, n), 4))?);
                let (upstream, gradient) = (output.zeros_like()?, output.zeros_like()?);
                let matrix = bench.singles(noise((n, n), 5))?.1;
                let (sum, factor) = (sum(&bench.device)?, factor(0.3, &bench.device)?);
                conv.forward(&input, &output)?;
                gram(&output, &matrix)?;
                vector::squares(&matrix, &sum)?;
                gram_backward(&output, &matrix, &sum, &factor, &upstream, false)?;
                conv.backward(&upstream, &output, &gradient)?;
                Ok(vec![output, matrix, sum, upstream, gradient])
            };
            let first = once()?;
            let mut differences = 0.0;
            for _ in 0..3 {
                for (again, first) in once()?.iter().zip(&first) {
                    differences += differing(again, first)?;
                }
            }
            Ok(differences)
        });
    }
    for [h, w] in SIZES {
        report.check(&format!("dot, {w}x{h}"), 0.0, || {
            let (_, x) = bench.singles(noise((h, w, 3), 1))?;
            let (_, y) = bench.singles(noise((h, w, 3), 2))?;
            let first = vector::dot(&x, &y)?;
            let mut differences = 0.0;
            for _ in 0..3 {
                let again = vector::dot(&x, &y)?;
                differences += f64::from(again.to_bits() != first.to_bits());
            }
            Ok(differences)
        });
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The operations on images and gradients compared with the CPU's.

use crate::Options;
use crate::data::{Bench, count_differing, factor, noise, pixels, relative_error, sum};
use crate::report::{Outcome, Report};
use candle_core::{DType, Device, Tensor};
use gstgatys::ops::elementwise as vector;

/// A few roundings in f32: a GPU contracts products and sums to fused multiply-adds.
const LIMIT: f64 = 1e-6;

const SIZES: [[usize; 2]; 3] = [[13, 9], [17, 31], [360, 640]];

/// An operation on three tensors, the first of which it changes.
type Op = fn(&Tensor, &Tensor, &Tensor) -> candle_core::Result<()>;

const OPS: [(&str, Op); 5] = [
    ("copy", |x, y, _| vector::copy(x, y)),
    ("clear", |x, _, _| vector::clear(x)),
    ("decay", |x, y, _| vector::decay(x, 0.9, y, false)),
    ("decay of squares", |x, y, _| vector::decay(x, 0.9, y, true)),
    // The third must be positive.
    ("Adam's step", |x, y, z| {
        vector::adam_step(x, 0.02, y, 0.5, z)
    }),
];

pub fn vectors(bench: &Bench, report: &mut Report) {
    report.checks("Vectors");
    for [h, w] in SIZES {
        for (name, op) in OPS {
            report.check(&format!("{name}, {w}x{h}"), LIMIT, || {
                let (x, device_x) = bench.host_and_device_f32(noise((h, w, 3), 1))?;
                let (y, device_y) = bench.host_and_device_f32(pixels((h, w, 3), 2))?;
                let (z, device_z) = bench.host_and_device_f32(noise((h, w, 3), 3).sqr()?)?;
                op(&x, &y, &z)?;
                op(&device_x, &device_y, &device_z)?;
                relative_error(&device_x, &x)
            });
        }
        report.check(&format!("scale by, {w}x{h}"), LIMIT, || {
            let (x, device_x) = bench.host_and_device_f32(noise((h, w, 3), 1))?;
            vector::scale_by(&factor(0.3, &Device::Cpu)?, &x)?;
            vector::scale_by(&factor(0.3, &bench.device)?, &device_x)?;
            relative_error(&device_x, &x)
        });
        report.check(&format!("squares, {w}x{h}"), LIMIT, || {
            let (x, device_x) = bench.host_and_device_f32(noise((h, w, 3), 1))?;
            let (expected, result) = (sum(&Device::Cpu)?, sum(&bench.device)?);
            vector::squares(&x, &expected)?;
            vector::squares(&device_x, &result)?;
            relative_error(&result, &expected)
        });
        terms(bench, report, [h, w]);
    }
    for format in bench.storage_formats() {
        report.check(&format!("clear of {format:?}"), 0.0, || {
            let (_, x) = bench.host_and_device(noise((13, 9, 5), 1), format)?;
            vector::clear(&x)?;
            count_differing(&x, &x.zeros_like()?)
        });
        report.check(&format!("copy of {format:?}"), 0.0, || {
            let (x, device_x) = bench.host_and_device(noise((13, 9, 5), 1), format)?;
            let (_, to) = bench.host_and_device(noise((13, 9, 5), 2), format)?;
            vector::copy(&to, &device_x)?;
            count_differing(&to, &x)
        });
    }
    report.check("other types and lengths are refused", 0.0, || {
        let (_, x) = bench.host_and_device_f32(noise((13, 9, 3), 1))?;
        let (_, shorter) = bench.host_and_device_f32(noise((13, 8, 3), 2))?;
        let doubles = noise((13, 9, 3), 3).to_dtype(DType::F64)?;
        let others = [shorter, doubles.to_device(&bench.device)?];
        let taken = |(_, op): &(_, Op)| {
            let taken = others.iter().filter(|other| op(&x, other, other).is_ok());
            taken.count() as f64
        };
        Ok(OPS[2..].iter().map(taken).sum())
    });
}

/// The losses of the image itself, total variation and the temporal loss: sums and gradients.
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
            let [image, target, gradient] = operands.map(|tensor| tensor.to_device(device));
            let operands = [image?, target?, gradient?];
            let sum = sum(device)?;
            term(&operands, &factor(0.6, device)?, &sum)?;
            let [_, _, gradient] = operands;
            Ok([sum, gradient])
        };
        let title = format!("{name}, {w}x{h}");
        let computed = report.attempt(&title, || {
            let ([sum, gradient], [device_sum, device_gradient]) =
                (on(&Device::Cpu)?, on(&bench.device)?);
            Ok((
                relative_error(&device_sum, &sum)?,
                relative_error(&device_gradient, &gradient)?,
            ))
        });
        if let Some((sum, gradient)) = computed {
            report.check(&format!("{title}: sum"), LIMIT, || Ok(sum));
            report.check(&format!("{title}: gradient"), LIMIT, || Ok(gradient));
        }
    }
}

/// Whether the same operands give the same results, bit for bit, each time.
pub fn repeats(bench: &Bench, options: &Options, report: &mut Report) {
    use crate::data::{features, kernel, name};
    use gstgatys::ops::conv::{Border, Conv3x3};
    use gstgatys::ops::gram::{gram_backward, gram_residual};
    report.section("Repeated");
    report.head(&["check", "values that differ", "limit", ""]);
    let (h, w, n) = match options.quick {
        true => (13, 9, 40),
        false => (45, 80, 512),
    };
    for &format in &bench.formats {
        report.check(&format!("layer and losses, {}", name(format)), 0.0, || {
            let once = || -> Outcome<Vec<Tensor>> {
                let to_device =
                    |tensor: Tensor| bench.host_and_device(tensor, format).map(|both| both.1);
                let (_, kernel) = bench.host_and_device_f32(kernel([n, n], 1))?;
                let (_, bias) = bench.host_and_device_f32(noise(n, 2))?;
                let conv = Conv3x3::new(&kernel, &bias, Border::Zeros, format)?;
                let (input, output) = (
                    to_device(features((h, w, n), 3))?,
                    to_device(noise((h, w, n), 4))?,
                );
                let (upstream, gradient) = (output.zeros_like()?, output.zeros_like()?);
                let (target, residual) = (noise((n, n), 5), noise((n, n), 6));
                let target = (&target + target.t()?)?;
                let target = bench.host_and_device_f32(target)?.1;
                let residual = bench.host_and_device_f32(residual)?.1;
                let (sum, factor) = (sum(&bench.device)?, factor(0.3, &bench.device)?);
                conv.forward(&input, &output)?;
                gram_residual(&output, &target, &residual, &sum)?;
                gram_backward(&output, &residual, &sum, &factor, &upstream, false)?;
                conv.backward(&upstream, &output, &gradient, false)?;
                Ok(vec![output, residual, sum, upstream, gradient])
            };
            let first = once()?;
            let mut differences = 0.0;
            for _ in 0..3 {
                for (again, first) in once()?.iter().zip(&first) {
                    differences += count_differing(again, first)?;
                }
            }
            Ok(differences)
        });
    }
    for [h, w] in SIZES {
        report.check(&format!("dot, {w}x{h}"), 0.0, || {
            let (_, x) = bench.host_and_device_f32(noise((h, w, 3), 1))?;
            let (_, y) = bench.host_and_device_f32(noise((h, w, 3), 2))?;
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

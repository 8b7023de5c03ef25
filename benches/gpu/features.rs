// SPDX-License-Identifier: MPL-2.0

//! The operations on features compared with the CPU's in f32 on the same operands.

use crate::Options;
use crate::data::{
    Bench, factor, features, kernel, name, noise, pixels, relative_error, sum, tolerance,
};
use crate::report::{Outcome, Report};
use candle_core::{DType, Device, Tensor};
use gstgatys::ops::Format;
use gstgatys::ops::conv::{Border, Conv3x3};
use gstgatys::ops::elementwise::{content_loss, dot, squares};
use gstgatys::ops::gram::{gram, gram_backward, gram_residual};
use gstgatys::ops::pool::Pooling;

/// Height, width and channels: odd sizes, channels that are no multiple of 16 bytes, and the shapes of
/// conv2_1 and conv4_1 at 640x360.
const SHAPES: [[usize; 3]; 4] = [[13, 9, 24], [7, 5, 5], [180, 320, 128], [45, 80, 512]];

/// The limit of Gram matrices, which are f32 whatever the features are stored in.
const GRAM_LIMIT: f64 = 1e-4;

fn label(what: &str, format: Format, [h, w, n]: [usize; 3]) -> String {
    format!("{what}, {}, {w}x{h}, {n} channels", name(format))
}

pub fn convolutions(bench: &Bench, options: &Options, report: &mut Report) {
    report.checks("Convolutions");
    // The shapes of conv4_2 and conv2_1 at 640x360, or at a quarter of that.
    let part = if options.quick { 4 } else { 1 };
    for &format in &bench.formats {
        for (h, w, n) in [
            (13, 9, [24, 40]),
            (45 / part, 80 / part, [512, 512]),
            (180 / part, 320 / part, [64, 128]),
        ] {
            convolution(bench, report, format, [h, w], n);
        }
        // Not in VGG, but in other networks.
        convolution(bench, report, format, [7, 5], [5, 7]);
        for (h, w, n) in [(13, 9, 24), (16, 17, 7), (180, 320, 64)] {
            convolution(bench, report, format, [h, w], [3, n]);
        }
    }
}

/// Forward and backward; from an image if there are 3 input channels.
fn convolution(
    bench: &Bench,
    report: &mut Report,
    format: Format,
    [h, w]: [usize; 2],
    [n_in, n_out]: [usize; 2],
) {
    let (border, stored) = match n_in {
        // Images, and the kernels for them, are f32 whatever the format.
        3 => (Border::Replicate, Format::F32),
        _ => (Border::Zeros, format),
    };
    let input = match n_in {
        3 => pixels((h, w, 3), 1),
        _ => features((h, w, n_in), 1),
    };
    let title = |way: &str| {
        let kind = if n_in == 3 { "image" } else { "convolution" };
        let what = format!("{kind} {way} to {n_out}");
        label(&what, format, [h, w, n_in])
    };
    let convs = || -> Outcome<_> {
        let (kernel, _) = bench.host_and_device(kernel([n_in, n_out], 2), stored)?;
        let (bias, _) = bench.host_and_device(noise(n_out, 3), stored)?;
        let device_kernel = kernel.to_device(&bench.device)?;
        let device_bias = bias.to_device(&bench.device)?;
        Ok((
            Conv3x3::new(&kernel, &bias, border, Format::F32)?,
            Conv3x3::new(&device_kernel, &device_bias, border, format)?,
        ))
    };
    report.check(&title("forward"), tolerance(format), || {
        let (conv, device_conv) = convs()?;
        let (input, device_input) = bench.host_and_device(input.clone(), stored)?;
        let (output, device_output) = bench.host_and_device(noise((h, w, n_out), 4), format)?;
        conv.forward(&input, &output)?;
        device_conv.forward(&device_input, &device_output)?;
        relative_error(&device_output, &output)
    });
    report.check(&title("backward"), tolerance(format), || {
        let (conv, device_conv) = convs()?;
        let (output, device_output) = bench.host_and_device(features((h, w, n_out), 5), format)?;
        let (upstream, device_upstream) = bench.host_and_device(noise((h, w, n_out), 6), format)?;
        let (gradient, device_gradient) = bench.host_and_device(noise((h, w, n_in), 7), stored)?;
        conv.backward(&upstream, &output, &gradient, false)?;
        device_conv.backward(&device_upstream, &device_output, &device_gradient, false)?;
        relative_error(&device_gradient, &gradient)
    });
}

pub fn poolings(bench: &Bench, report: &mut Report) {
    report.checks("Pooling");
    for format in bench.storage_formats() {
        for [h, w, n] in SHAPES {
            for (pooling, kind) in [(Pooling::Avg, "avg"), (Pooling::Max, "max")] {
                let title = |way: &str| label(&format!("{kind} {way}"), format, [h, w, n]);
                // A maximum involves no rounding.
                let limit = match pooling {
                    Pooling::Avg => tolerance(format),
                    Pooling::Max => 0.0,
                };
                report.check(&title("forward"), limit, || {
                    let (input, device_input) =
                        bench.host_and_device(features((h, w, n), 1), format)?;
                    let (output, device_output) =
                        bench.host_and_device(noise((h / 2, w / 2, n), 2), format)?;
                    pooling.forward(&input, &output)?;
                    pooling.forward(&device_input, &device_output)?;
                    relative_error(&device_output, &output)
                });
                report.check(&title("backward"), limit, || {
                    let (input, device_input) =
                        bench.host_and_device(features((h, w, n), 1), format)?;
                    let (upstream, device_upstream) =
                        bench.host_and_device(noise((h / 2, w / 2, n), 3), format)?;
                    let (gradient, device_gradient) =
                        bench.host_and_device(noise((h, w, n), 4), format)?;
                    pooling.backward(&upstream, &input, &gradient)?;
                    pooling.backward(&device_upstream, &device_input, &device_gradient)?;
                    // A GPU applies the derivative of the ReLU before the pool too.
                    let gradient = match bench.device.is_cpu() {
                        true => gradient,
                        false => (gradient * input.gt(0f64)?.to_dtype(DType::F32)?)?,
                    };
                    relative_error(&device_gradient, &gradient)
                });
            }
        }
    }
}

pub fn grams(bench: &Bench, report: &mut Report) {
    report.checks("Gram matrices");
    let shapes = SHAPES.into_iter().chain([[360, 640, 64]]);
    for format in bench.storage_formats() {
        for [h, w, n] in shapes.clone() {
            report.check(&label("Gram", format, [h, w, n]), GRAM_LIMIT, || {
                let (of, device_of) = bench.host_and_device(features((h, w, n), 1), format)?;
                let (output, device_output) = bench.host_and_device_f32(noise((n, n), 2))?;
                gram(&of, &output)?;
                gram(&device_of, &device_output)?;
                relative_error(&device_output, &output)
            });
            let title = label("Gram residual", format, [h, w, n]);
            let computed = report.attempt(&title, || {
                let (of, device_of) = bench.host_and_device(features((h, w, n), 1), format)?;
                let (other, _) = bench.host_and_device(features((h, w, n), 2), format)?;
                let target = Tensor::zeros((n, n), DType::F32, &Device::Cpu)?;
                gram(&other, &target)?;
                // Random features have nearly the same Gram matrices.
                let target = (target * 0.5)?;
                let compute = |of: &Tensor, device: &Device| {
                    let (residual, sum) = (target.zeros_like()?.to_device(device)?, sum(device)?);
                    gram_residual(of, &target.to_device(device)?, &residual, &sum)?;
                    Outcome::Ok((residual, sum))
                };
                let (residual, sum) = compute(&of, &Device::Cpu)?;
                let (device_residual, device_sum) = compute(&device_of, &bench.device)?;
                Ok((
                    relative_error(&device_residual, &residual)?,
                    relative_error(&device_sum, &sum)?,
                ))
            });
            if let Some((residual, sum)) = computed {
                report.check(&title, GRAM_LIMIT, || Ok(residual));
                report.check(&format!("{title}: sum"), GRAM_LIMIT, || Ok(sum));
            }
            for accumulate in [false, true] {
                let what = if accumulate {
                    "Gram backward, added"
                } else {
                    "Gram backward"
                };
                report.check(&label(what, format, [h, w, n]), tolerance(format), || {
                    let residual = noise((n, n), 3);
                    let residual = (&residual + residual.t()?)?;
                    let gradients = (noise((h, w, n), 4), accumulate);
                    gram_gradient(bench, format, features((h, w, n), 1), residual, gradients)
                });
            }
        }
    }
}

/// The error of the gradient through a Gram matrix.
fn gram_gradient(
    bench: &Bench,
    format: Format,
    of: Tensor,
    residual: Tensor,
    (gradient, accumulate): (Tensor, bool),
) -> Outcome<f64> {
    let (of, device_of) = bench.host_and_device(of, format)?;
    let (residual, device_residual) = bench.host_and_device_f32(residual)?;
    let (gradient, device_gradient) = bench.host_and_device(gradient, format)?;
    let compute = |of: &Tensor, residual: &Tensor, gradient: &Tensor, device: &Device| {
        let (sum, factor) = (sum(device)?, factor(0.3, device)?);
        squares(residual, &sum)?;
        Outcome::Ok(gram_backward(
            of, residual, &sum, &factor, gradient, accumulate,
        )?)
    };
    compute(&of, &residual, &gradient, &Device::Cpu)?;
    compute(
        &device_of,
        &device_residual,
        &device_gradient,
        &bench.device,
    )?;
    relative_error(&device_gradient, &gradient)
}

/// The content loss, and inner products of features.
pub fn contents(bench: &Bench, report: &mut Report) {
    report.checks("Content and sums");
    for format in bench.storage_formats() {
        for [h, w, n] in SHAPES {
            for accumulate in [false, true] {
                let what = if accumulate {
                    "content, added"
                } else {
                    "content"
                };
                let title = label(what, format, [h, w, n]);
                let computed = report.attempt(&title, || {
                    let (f, device_f) = bench.host_and_device(features((h, w, n), 1), format)?;
                    let (p, device_p) = bench.host_and_device(features((h, w, n), 2), format)?;
                    let (gradient, device_gradient) =
                        bench.host_and_device(noise((h, w, n), 3), format)?;
                    let compute = |f: &Tensor, p: &Tensor, gradient: &Tensor, device: &Device| {
                        let (sum, factor) = (sum(device)?, factor(0.7, device)?);
                        content_loss(f, p, &factor, gradient, accumulate, &sum)?;
                        Outcome::Ok(sum)
                    };
                    let sum = compute(&f, &p, &gradient, &Device::Cpu)?;
                    let device_sum =
                        compute(&device_f, &device_p, &device_gradient, &bench.device)?;
                    Ok((
                        relative_error(&device_sum, &sum)?,
                        relative_error(&device_gradient, &gradient)?,
                    ))
                });
                if let Some((sum, gradient)) = computed {
                    report.check(&format!("{title}: sum"), 1e-6, || Ok(sum));
                    let limit = tolerance(format);
                    report.check(&format!("{title}: gradient"), limit, || Ok(gradient));
                }
            }
            report.check(&label("dot", format, [h, w, n]), 1e-6, || {
                let (x, device_x) = bench.host_and_device(features((h, w, n), 1), format)?;
                let (y, device_y) = bench.host_and_device(noise((h, w, n), 2), format)?;
                let (expected, result) = (dot(&x, &y)?, dot(&device_x, &device_y)?);
                Ok((result - expected).abs() / dot(&x, &x)?)
            });
        }
    }
}

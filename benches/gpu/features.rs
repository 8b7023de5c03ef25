// SPDX-License-Identifier: MPL-2.0

//! The operations on features beside the CPU's: of the same operands, in f32.

use crate::data::{
    Bench, difference, factor, features, kernel, name, noise, pixels, sum, tolerance,
};
use crate::report::{Outcome, Report};
use candle_core::{Device, Tensor};
use gstgatys::ops::Format;
use gstgatys::ops::conv::{Border, Conv3x3};
use gstgatys::ops::elementwise::{content_loss, dot, squares};
use gstgatys::ops::gram::{gram, gram_backward};
use gstgatys::ops::pool::Pooling;

/// Height, width and channels: odd sizes, channels that no 16 bytes hold, and conv2_1's and
/// conv4_1's for 640x360.
const SHAPES: [[usize; 3]; 4] = [[13, 9, 24], [7, 5, 5], [180, 320, 128], [45, 80, 512]];

/// Of the products' sums, whatever the features are stored in.
const SUMS: f64 = 1e-4;

fn label(what: &str, format: Format, [h, w, n]: [usize; 3]) -> String {
    format!("{what}, {}, {w}x{h}, {n} channels", name(format))
}

pub fn convolutions(bench: &Bench, report: &mut Report) {
    report.checks("Convolutions");
    for &format in &bench.formats {
        for (h, w, n) in [
            (13, 9, [24, 40]),
            (45, 80, [512, 512]),
            (180, 320, [64, 128]),
        ] {
            convolution(bench, report, format, [h, w], n);
        }
        // Not VGG's, but another network's could be.
        convolution(bench, report, format, [7, 5], [5, 7]);
        for (h, w, n) in [(13, 9, 24), (16, 17, 7), (180, 320, 64)] {
            convolution(bench, report, format, [h, w], [3, n]);
        }
    }
}

/// Both ways; from an image where there are 3 input channels.
fn convolution(
    bench: &Bench,
    report: &mut Report,
    format: Format,
    [h, w]: [usize; 2],
    [n_in, n_out]: [usize; 2],
) {
    let (border, stored) = match n_in {
        // An image is f32 in each format, and so is what is multiplied with it.
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
        let (kernel, _) = bench.both(kernel([n_in, n_out], 2), stored)?;
        let (bias, _) = bench.both(noise(n_out, 3), stored)?;
        let there = kernel.to_device(&bench.device)?;
        let bias_there = bias.to_device(&bench.device)?;
        Ok((
            Conv3x3::new(&kernel, &bias, border)?,
            Conv3x3::with_format(&there, &bias_there, border, format)?,
        ))
    };
    report.check(&title("forward"), tolerance(format), || {
        let (conv, conv_there) = convs()?;
        let (input, input_there) = bench.both(input.clone(), stored)?;
        let (output, output_there) = bench.both(noise((h, w, n_out), 4), format)?;
        conv.forward(&input, &output)?;
        conv_there.forward(&input_there, &output_there)?;
        difference(&output_there, &output)
    });
    report.check(&title("backward"), tolerance(format), || {
        let (conv, conv_there) = convs()?;
        let (output, output_there) = bench.both(features((h, w, n_out), 5), format)?;
        let (upstream, upstream_there) = bench.both(noise((h, w, n_out), 6), format)?;
        let (gradient, gradient_there) = bench.both(noise((h, w, n_in), 7), stored)?;
        conv.backward(&upstream, &output, &gradient)?;
        conv_there.backward(&upstream_there, &output_there, &gradient_there)?;
        difference(&gradient_there, &gradient)
    });
}

pub fn poolings(bench: &Bench, report: &mut Report) {
    report.checks("Pooling");
    for format in bench.stored() {
        for [h, w, n] in SHAPES {
            for (pooling, kind) in [(Pooling::Avg, "avg"), (Pooling::Max, "max")] {
                let title = |way: &str| label(&format!("{kind} {way}"), format, [h, w, n]);
                // The largest of rounded values is one of them.
                let limit = match pooling {
                    Pooling::Avg => tolerance(format),
                    Pooling::Max => 0.0,
                };
                report.check(&title("forward"), limit, || {
                    let (input, input_there) = bench.both(features((h, w, n), 1), format)?;
                    let (output, output_there) = bench.both(noise((h / 2, w / 2, n), 2), format)?;
                    pooling.forward(&input, &output)?;
                    pooling.forward(&input_there, &output_there)?;
                    difference(&output_there, &output)
                });
                report.check(&title("backward"), limit, || {
                    let (input, input_there) = bench.both(features((h, w, n), 1), format)?;
                    let (upstream, upstream_there) =
                        bench.both(noise((h / 2, w / 2, n), 3), format)?;
                    let (gradient, gradient_there) = bench.both(noise((h, w, n), 4), format)?;
                    pooling.backward(&upstream, &input, &gradient)?;
                    pooling.backward(&upstream_there, &input_there, &gradient_there)?;
                    difference(&gradient_there, &gradient)
                });
            }
        }
    }
}

pub fn grams(bench: &Bench, report: &mut Report) {
    report.checks("Gram matrices");
    let shapes = SHAPES.into_iter().chain([[360, 640, 64]]);
    for format in bench.stored() {
        for [h, w, n] in shapes.clone() {
            report.check(&label("Gram", format, [h, w, n]), SUMS, || {
                let (of, of_there) = bench.both(features((h, w, n), 1), format)?;
                let (output, output_there) = bench.singles(noise((n, n), 2))?;
                gram(&of, &output)?;
                gram(&of_there, &output_there)?;
                difference(&output_there, &output)
            });
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

/// The error of a Gram matrix's gradient.
fn gram_gradient(
    bench: &Bench,
    format: Format,
    of: Tensor,
    residual: Tensor,
    (gradient, accumulate): (Tensor, bool),
) -> Outcome<f64> {
    let (of, of_there) = bench.both(of, format)?;
    let (residual, residual_there) = bench.singles(residual)?;
    let (gradient, gradient_there) = bench.both(gradient, format)?;
    let compute = |of: &Tensor, residual: &Tensor, gradient: &Tensor, device: &Device| {
        let (sum, factor) = (sum(device)?, factor(0.3, device)?);
        squares(residual, &sum)?;
        Outcome::Ok(gram_backward(
            of, residual, &sum, &factor, gradient, accumulate,
        )?)
    };
    compute(&of, &residual, &gradient, &Device::Cpu)?;
    compute(&of_there, &residual_there, &gradient_there, &bench.device)?;
    difference(&gradient_there, &gradient)
}

/// The content loss, and sums over features.
pub fn contents(bench: &Bench, report: &mut Report) {
    report.checks("Content and sums");
    for format in bench.stored() {
        for [h, w, n] in SHAPES {
            for accumulate in [false, true] {
                let what = if accumulate {
                    "content, added"
                } else {
                    "content"
                };
                let title = label(what, format, [h, w, n]);
                let computed = report.attempt(&title, || {
                    let (f, f_there) = bench.both(features((h, w, n), 1), format)?;
                    let (p, p_there) = bench.both(features((h, w, n), 2), format)?;
                    let (gradient, gradient_there) = bench.both(noise((h, w, n), 3), format)?;
                    let compute = |f: &Tensor, p: &Tensor, gradient: &Tensor, device: &Device| {
                        let (sum, factor) = (sum(device)?, factor(0.7, device)?);
                        content_loss(f, p, &factor, gradient, accumulate, &sum)?;
                        Outcome::Ok(sum)
                    };
                    let sum = compute(&f, &p, &gradient, &Device::Cpu)?;
                    let sum_there = compute(&f_there, &p_there, &gradient_there, &bench.device)?;
                    Ok((
                        difference(&sum_there, &sum)?,
                        difference(&gradient_there, &gradient)?,
                    ))
                });
                if let Some((sum, gradient)) = computed {
                    report.check(&format!("{title}: sum"), 1e-6, || Ok(sum));
                    let limit = tolerance(format);
                    report.check(&format!("{title}: gradient"), limit, || Ok(gradient));
                }
            }
            report.check(&label("dot", format, [h, w, n]), 1e-6, || {
                let (x, x_there) = bench.both(features((h, w, n), 1), format)?;
                let (y, y_there) = bench.both(noise((h, w, n), 2), format)?;
                let (expected, there) = (dot(&x, &y)?, dot(&x_there, &y_there)?);
                Ok((there - expected).abs() / dot(&x, &x)?)
            });
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

use super::{Buffer, Feature, check, check_sum, launch};
use crate::ops::conv::Border;
use crate::ops::pool::Pooling;
use crate::ops::reference::{self, Array, ReferenceKernel};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Random features, and the same values, as rounded to `T`, for the reference.
fn features<T: Feature>(h: usize, w: usize, n: usize, seed: u64) -> (Buffer<T>, Array) {
    let buffer = Buffer::<T>::random(h * w * n, -1.0, 1.0, seed);
    let values = buffer.values();
    (buffer, Array { h, w, n, values })
}

/// Numbers of channels that a kernel for `width` of them at a time supports.
fn channels(width: usize) -> [usize; 2] {
    if width == 1 {
        [1, 5]
    } else {
        [width, 3 * width]
    }
}

/// The kernel in the layout of `image_conv`, `[9, 3, n]`.
fn packed(kernel: &ReferenceKernel) -> Buffer<f32> {
    let n = kernel.n_out;
    let values: Vec<f64> = (0..27 * n)
        .map(|i| kernel.weights[(i % n * 3 + i / n % 3) * 9 + i / n / 3])
        .collect();
    Buffer::of(&values)
}

/// Height, width, channels and blocks: images of one pixel, one row or one column; of several strips
/// and tiles, the last of them partial, or such that a tile would end between the image and its
/// padding; with more channels than threads.
const IMAGES: [(usize, usize, usize, u32); 13] = [
    (1, 1, 3, 1),
    (1, 7, 20, 1),
    (6, 1, 17, 2),
    (2, 2, 64, 1),
    (11, 67, 5, 3),
    (19, 35, 24, 2),
    (3, 5, 260, 2),
    (16, 16, 64, 1),
    (17, 17, 40, 2),
    (8, 32, 8, 3),
    (7, 31, 8, 3),
    (15, 63, 16, 7),
    (10, 130, 8, 2),
];

fn image_convolution<T: Feature>() {
    let (suffix, _) = T::KERNELS[0];
    for (h, w, n, blocks) in IMAGES {
        let case = format!("{suffix}, {h}x{w}x{n}");
        let (h_, w_, n_) = (h as i32, w as i32, n as i32);
        let kernel = ReferenceKernel::random(n, 3, 5);
        let (weights, bias) = (packed(&kernel), Buffer::<f32>::of(&kernel.bias));

        let image = Array::random(h, w, 3, 1);
        let pixels = Buffer::<f32>::of(&image.values);
        let mut output = Buffer::<T>::unset(h * w * n);
        launch(
            &format!("image_conv_{suffix}"),
            blocks,
            (
                pixels.read(),
                weights.read(),
                bias.read(),
                output.write(),
                h_,
                w_,
                n_,
            ),
        );
        let expected = kernel.forward(&image, Border::Replicate);
        check(&case, &output, &expected.values, 1e-5);

        // Half of the outputs are 0 or below.
        let (upstream, upstream_values) = features::<T>(h, w, n, 2);
        let (output, output_values) = features::<T>(h, w, n, 3);
        let expected = kernel.backward(&upstream_values, &output_values, Border::Replicate);
        let fits = |width: usize| n.is_multiple_of(width);
        for (suffix, _) in T::KERNELS.into_iter().filter(|&(_, width)| fits(width)) {
            let mut gradient = Buffer::<f32>::unset(h * w * 3);
            launch(
                &format!("image_conv_backward_{suffix}"),
                blocks,
                (
                    upstream.read(),
                    output.read(),
                    weights.read(),
                    gradient.write(),
                    h_,
                    w_,
                    n_,
                ),
            );
            let case = format!("{suffix}, {h}x{w}x{n}");
            check(&case, &gradient, &expected.values, 1e-4);
        }
    }
}

#[test]
fn the_convolution_of_the_image_and_its_gradient_are_the_nested_loops() {
    image_convolution::<f32>();
    image_convolution::<f16>();
    image_convolution::<bf16>();
}

/// Sizes of less and more than one tile, with channels that do not fill a tile.
fn convolution<T: Feature>() {
    let (suffix, _) = T::KERNELS[0];
    for (h, w, n_in, n_out, blocks) in [(1, 1, 1, 1, 1), (5, 4, 3, 7, 1), (9, 11, 5, 66, 2)] {
        let case = format!("{suffix}, {h}x{w}, {n_in} to {n_out}");
        let (input, values) = features::<T>(h, w, n_in, 1);
        let random = ReferenceKernel::random(n_out, n_in, 5);
        // The reference's are [n_out, n_in, 9].
        let reference_index = |i: usize| (i / (9 * n_in) * n_in + i % n_in) * 9 + i / n_in % 9;
        let weights: Vec<f64> = (0..9 * n_in * n_out)
            .map(|i| random.weights[reference_index(i)])
            .collect();
        let weights = Buffer::<T>::of(&weights);
        let mut kernel = ReferenceKernel {
            bias: vec![100.0; n_out],
            ..random
        };
        for (i, weight) in weights.values().into_iter().enumerate() {
            kernel.weights[reference_index(i)] = weight;
        }
        let mut output = Buffer::<T>::unset(h * w * n_out);
        let (h_, w_, n_in_, n_out_) = (h as i32, w as i32, n_in as i32, n_out as i32);
        launch(
            &format!("convolution_{suffix}"),
            blocks,
            (
                input.read(),
                weights.read(),
                output.write(),
                h_,
                w_,
                n_in_,
                n_out_,
            ),
        );
        // The bias of 100 keeps the reference's ReLU from clipping.
        let expected = kernel.forward(&values, Border::Zeros).values;
        let expected: Vec<f64> = expected.iter().map(|value| value - 100.0).collect();
        check(&case, &output, &expected, 1e-5);
    }
}

#[test]
fn the_convolution_of_features_is_the_nested_loops() {
    convolution::<f32>();
    convolution::<f16>();
    convolution::<bf16>();
}

fn activations<T: Feature>() {
    for (suffix, width) in T::KERNELS {
        for n in channels(width) {
            let case = format!("{suffix}, {n} channels");
            let (before, values) = features::<T>(9, 23, n, 1);
            let bias = Buffer::<f32>::random(n, -1.0, 1.0, 2);
            let count = (9 * 23 * n) as i64;

            let mut result = before.clone();
            launch(
                &format!("bias_relu_{suffix}"),
                2,
                (result.write(), bias.read(), count, n as i32),
            );
            let bias = bias.values();
            let biased = values.values.iter().enumerate();
            let expected: Vec<f64> = biased.map(|(i, v)| (v + bias[i % n]).max(0.0)).collect();
            check(&case, &result, &expected, 1e-6);

            // Some outputs are 0, as after a ReLU.
            let mut rng = StdRng::seed_from_u64(3);
            let outputs: Vec<f64> = (0..count)
                .map(|_| f64::from(rng.random_range(-1..=1)))
                .collect();
            let output = Buffer::<T>::of(&outputs);
            let mut upstream = before.clone();
            launch(
                &format!("relu_backward_{suffix}"),
                2,
                (upstream.write(), output.read(), count),
            );
            let open = values.values.iter().zip(&outputs);
            let expected: Vec<f64> = open.map(|(&u, &o)| if o > 0.0 { u } else { 0.0 }).collect();
            assert_eq!(upstream.values(), expected, "{case}");
        }
    }
}

#[test]
fn bias_and_relu_are_their_formulas() {
    activations::<f32>();
    activations::<f16>();
    activations::<bf16>();
}

fn pooling<T: Feature>(pooling: Pooling, name: &str) {
    for (suffix, width) in T::KERNELS {
        for (h, w) in [(2, 2), (3, 2), (2, 5), (9, 14), (10, 7)] {
            for n in channels(width) {
                let case = format!("{name}, {suffix}, {h}x{w}x{n}");
                let (h_, w_, n_) = (h as i32, w as i32, n as i32);
                // Few different values, so that windows have ties.
                let mut rng = StdRng::seed_from_u64(1);
                let mut input = Array::zeros(h, w, n);
                input.values.fill_with(|| rng.random_range(0..4).into());
                let values = Buffer::<T>::of(&input.values);

                let mut output = Buffer::<T>::unset((h / 2) * (w / 2) * n);
                launch(
                    &format!("pool_{name}_{suffix}"),
                    2,
                    (values.read(), output.write(), h_, w_, n_),
                );
                let expected = reference::pool(pooling, &input);
                check(&case, &output, &expected.values, 0.0);

                let (upstream, upstream_values) = features::<T>(h / 2, w / 2, n, 2);
                let mut gradient = Buffer::<T>::unset(h * w * n);
                let kernel = format!("pool_{name}_backward_{suffix}");
                let (upstream, to) = (upstream.read(), gradient.write());
                launch(&kernel, 2, (upstream, values.read(), to, h_, w_, n_));
                let mut expected = reference::pool_backward(pooling, &upstream_values, &input);
                // The derivative of the ReLU before it.
                for (gradient, input) in expected.values.iter_mut().zip(&input.values) {
                    *gradient = if *input > 0.0 { *gradient } else { 0.0 };
                }
                check(&case, &gradient, &expected.values, 1e-7);
            }
        }
    }
}

#[test]
fn both_poolings_and_their_gradients_are_the_nested_loops() {
    for (kind, name) in [(Pooling::Avg, "avg"), (Pooling::Max, "max")] {
        pooling::<f32>(kind, name);
        pooling::<f16>(kind, name);
        pooling::<bf16>(kind, name);
    }
}

fn content<T: Feature>() {
    let factor = Buffer::<f32>::of(&[0.4]);
    for (suffix, width) in T::KERNELS {
        for accumulate in [false, true] {
            let case = format!("{suffix}, {accumulate}");
            let count = width * 613;
            let ((f, fs), (p, ps)) = (features::<T>(1, 1, count, 1), features::<T>(1, 1, count, 2));
            let mut gradient = match accumulate {
                true => Buffer::<T>::random(count, -1.0, 1.0, 3),
                false => Buffer::unset(count),
            };
            let differences: Vec<f64> = fs
                .values
                .iter()
                .zip(&ps.values)
                .map(|(f, p)| f - p)
                .collect();
            let before = gradient.values();
            let kept = before.iter().map(|&b| if accumulate { b } else { 0.0 });
            let expected: Vec<f64> = kept.zip(&differences).map(|(b, d)| b + 0.4 * d).collect();
            let mut partials = Buffer::<f64>::unset(2);
            launch(
                &format!("content_loss_{suffix}"),
                2,
                (
                    f.read(),
                    p.read(),
                    factor.read(),
                    gradient.write(),
                    accumulate as i32,
                    partials.write(),
                    count as i64,
                ),
            );
            check(&case, &gradient, &expected, 1e-6);
            check_sum(
                &case,
                partials.sum(),
                differences.iter().map(|d| d * d).sum(),
            );

            if width == 1 {
                launch(
                    &format!("dot_{suffix}"),
                    2,
                    (f.read(), p.read(), partials.write(), count as i64),
                );
                check_sum(&case, partials.sum(), fs.dot(&ps));
            }
        }
    }
}

#[test]
fn the_content_loss_and_inner_products_are_their_formulas() {
    content::<f32>();
    content::<f16>();
    content::<bf16>();
}

#[test]
fn gram_matrices_and_their_residuals_are_averaged_and_symmetric() {
    for (splits, n) in [(1, 1), (3, 7), (21, 20)] {
        let mut products = Buffer::<f32>::random(splits * n * n, -1.0, 1.0, 1);
        // The upper triangle is not read.
        for (i, value) in products.0[..splits * n * n].iter_mut().enumerate() {
            if i / n % n < i % n {
                *value = f32::NAN;
            }
        }
        let lower = |i: usize| (i / n).max(i % n) * n + (i / n).min(i % n);
        let random = Buffer::<f32>::random(n * n, -1.0, 1.0, 2).values();
        let target: Vec<f64> = (0..n * n).map(|i| random[lower(i)]).collect();
        let target = Buffer::<f32>::of(&target);
        let (mut gram, mut residual) = (Buffer::<f32>::unset(n * n), Buffer::<f32>::unset(n * n));
        let mut partials = Buffer::<f64>::unset(2);
        let (splits_, n_) = (splits as i32, n as i32);
        launch(
            "gram_average",
            2,
            (products.read(), splits_, 30f64, gram.write(), n_),
        );
        launch(
            "gram_residual",
            2,
            (
                products.read(),
                splits_,
                30f64,
                target.read(),
                residual.write(),
                partials.write(),
                n_,
            ),
        );
        let products = products.values();
        let expected: Vec<f64> = (0..n * n)
            .map(|i| {
                let splits = products.chunks_exact(n * n);
                splits.map(|split| split[lower(i)]).sum::<f64>() / 30.0
            })
            .collect();
        check("gram", &gram, &expected, 0.0);
        let (gram, target) = (gram.values(), target.values());
        let expected: Vec<f64> = gram.iter().zip(&target).map(|(g, a)| g - a).collect();
        check("residual", &residual, &expected, 0.0);
        let squares = residual.values().iter().map(|d| d * d).sum();
        check_sum("squares", partials.sum(), squares);
    }
}

/// A residual over its root mean square, and α for a factor of 3.
fn normalised_residual<T: Feature>(residual: &Buffer<f32>, squares: f64) -> (Buffer<T>, f64) {
    let count = residual.values().len();
    let (squares, factor) = (Buffer::<f64>::of(&[squares]), Buffer::<f32>::of(&[3.0]));
    let (mut normalised, mut alpha) = (Buffer::<T>::unset(count), Buffer::<f32>::unset(1));
    launch(
        &format!("normalise_residual_{}", T::KERNELS[0].0),
        2,
        (
            residual.read(),
            squares.read(),
            factor.read(),
            normalised.write(),
            alpha.write(),
            count as i32,
        ),
    );
    (normalised, alpha.values()[0])
}

fn residual<T: Feature>() {
    let residual = Buffer::<f32>::random(19 * 19, -1e-9, 1e-9, 1);
    let values = residual.values();
    let squares = values.iter().map(|v| v * v).sum::<f64>();
    let rms = (squares / 361.0).sqrt();
    let (normalised, alpha) = normalised_residual::<T>(&residual, squares);
    let expected: Vec<f64> = values.iter().map(|v| v / rms).collect();
    check("residual", &normalised, &expected, 1e-6);
    check(
        "rms",
        &Buffer::<f32>::of(&[alpha]),
        &[3.0 * rms],
        1e-6 * rms,
    );

    let (normalised, alpha) = normalised_residual::<T>(&Buffer::of(&[0.0; 300]), 0.0);
    assert_eq!((normalised.values(), alpha), (vec![0.0; 300], 0.0));
}

#[test]
fn residuals_are_normalised_whatever_their_size() {
    residual::<f32>();
    residual::<f16>();
    residual::<bf16>();
}

/// Rounding to nearest, ties to even, with overflow to infinity and NaN kept: the residual's kernel
/// with a root mean square of 1.
fn rounding<T: Feature>(step: f64) {
    let (tie, infinity) = (1.0 + step / 2.0, f64::INFINITY);
    let mut values = vec![
        tie,
        tie + step,
        -tie,
        tie * (1.0 + 1e-6),
        tie * (1.0 - 1e-6),
    ];
    values.extend([65519.0, 65520.0, -65520.0, 1e-7, 3e38, infinity, -infinity]);
    // NaNs with all fraction bits set: the rounding must not carry into the sign.
    values.extend([0x7fff_ffff, 0xffff_ffff].map(|bits| f64::from(f32::from_bits(bits))));
    let mut rng = StdRng::seed_from_u64(1);
    values.extend((0..1000).map(|_| f64::from(f32::from_bits(rng.random()))));
    let residual = Buffer::<f32>::of(&values);
    let (normalised, _) = normalised_residual::<T>(&residual, values.len() as f64);
    for (value, result) in residual.values().into_iter().zip(normalised.values()) {
        let expected = T::of(value).to_f64();
        assert!(
            result == expected || (result.is_nan() && value.is_nan()),
            "{value}: {result}, not {expected}"
        );
    }
}

#[test]
fn values_are_rounded_to_the_nearest() {
    rounding::<f32>(f64::from(f32::EPSILON));
    rounding::<f16>(f16::EPSILON.into());
    rounding::<bf16>(bf16::EPSILON.into());
}

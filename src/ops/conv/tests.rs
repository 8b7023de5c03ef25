// SPDX-License-Identifier: MPL-2.0

use super::super::for_each_backend;
use super::super::reference::{Array, ReferenceKernel, relative_error};
use super::*;
use crate::threads::pool;
use candle_core::DType;

const SIZES: [(usize, usize); 8] = [
    (1, 1),
    (1, 7),
    (8, 1),
    (2, 2),
    (5, 6),
    (16, 9),
    (33, 47),
    (3, 900),
];
const CHANNELS: [(usize, usize); 7] = [
    (3, 4),
    (1, 1),
    (5, 3),
    (16, 70),
    (24, 160),
    (32, 96),
    (64, 32),
];
const BORDERS: [Border; 2] = [Border::Zeros, Border::Replicate];

fn each_case(mut check: impl FnMut(&str, Array, ReferenceKernel, Border)) {
    for (h, w) in SIZES {
        for (n_in, n_out) in CHANNELS {
            for border in BORDERS {
                let case = format!("{h}x{w}, {n_in} to {n_out}, {border:?}");
                let input = Array::random(h, w, n_in, 1);
                check(
                    &case,
                    input,
                    ReferenceKernel::random(n_out, n_in, 2),
                    border,
                );
            }
        }
    }
}

#[test]
fn forward_matches_the_reference() {
    each_case(|case, input, kernel, border| {
        let expected = kernel.forward(&input, border);
        for_each_backend(|backend| {
            let (weights, bias) = kernel.tensors();
            let op = Conv3x3::new(&weights, &bias, border, Format::F32).unwrap();
            // What is there before is overwritten.
            let output = Array::random(input.h, input.w, kernel.n_out, 3).tensor();
            op.forward(&input.tensor(), &output).unwrap();
            let error = relative_error(&output, &expected.values);
            assert!(error < 1e-5, "{backend}, {case}: {error}");
        });
    });
}

#[test]
fn backward_matches_the_reference() {
    each_case(|case, input, kernel, border| {
        // The reference's ReLU masks, on both sides of the comparison.
        let output = kernel.forward(&input, border);
        let upstream = Array::random(input.h, input.w, kernel.n_out, 4);
        let gradient = kernel.backward(&upstream, &output, border);
        for_each_backend(|backend| {
            let (weights, bias) = kernel.tensors();
            let op = Conv3x3::new(&weights, &bias, border, Format::F32).unwrap();
            // What is there before is overwritten.
            let result = Array::random(input.h, input.w, kernel.n_in, 5).tensor();
            op.backward(&upstream.tensor(), &output.tensor(), &result, false)
                .unwrap();
            let error = relative_error(&result, &gradient.values);
            assert!(error < 1e-5, "{backend}, {case}: {error}");
        });
    });
}

/// The reference's gradient against its own forward pass: with a bias that keeps every ReLU
/// open, the operation is affine, and ⟨u, f(x) − f(0)⟩ = ⟨fᵀ(u), x⟩.
#[test]
fn reference_backward_is_the_adjoint() {
    each_case(|case, input, mut kernel, border| {
        kernel.bias.fill(1e4);
        let output = kernel.forward(&input, border);
        let upstream = Array::random(input.h, input.w, kernel.n_out, 6);
        let moved = Array {
            values: output.values.iter().map(|value| value - 1e4).collect(),
            ..output.clone()
        };
        let forward = upstream.dot(&moved);
        let backward = kernel.backward(&upstream, &output, border).dot(&input);
        let size = moved.dot(&moved).sqrt() * upstream.dot(&upstream).sqrt();
        assert!(
            (forward - backward).abs() < 1e-9 * size,
            "{case}: {forward} {backward}"
        );
    });
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (n_in, n_out, border) in [(24, 160, Border::Replicate), (32, 256, Border::Zeros)] {
        let (weights, bias) = ReferenceKernel::random(n_out, n_in, 1).tensors();
        let op = Conv3x3::new(&weights, &bias, border, Format::F32).unwrap();
        for (h, w) in [(40, 61), (9, 16)] {
            let input = Array::random(h, w, n_in, 2).tensor();
            let run = |threads| {
                pool(threads).build().unwrap().install(|| {
                    let output = Array::zeros(h, w, n_out).tensor();
                    let gradient = input.zeros_like().unwrap();
                    op.forward(&input, &output).unwrap();
                    op.backward(&output, &output, &gradient, false).unwrap();
                    gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                })
            };
            let one = run(1);
            for threads in [2, 3, 8] {
                assert_eq!(one, run(threads), "{n_in} to {n_out}, {threads} threads");
            }
        }
    }
}

#[test]
fn bf16_is_for_images_and_for_many_channels_between_zeros() {
    if Amx::for_tests().is_none() {
        return;
    }
    for (border, n_in, n_out, fits) in [
        (Border::Zeros, 32, 64, true),
        (Border::Replicate, 3, 64, true),
        (Border::Replicate, 32, 64, false),
        (Border::Zeros, 3, 64, false),
        (Border::Zeros, 64, 48, false),
        (Border::Replicate, 3, 48, false),
    ] {
        let (weights, bias) = ReferenceKernel::random(n_out, n_in, 1).tensors();
        let op = Conv3x3::new(&weights, &bias, border, Format::Bf16);
        assert_eq!(op.is_ok(), fits, "{n_in} to {n_out}, {border:?}");
        let Ok(op) = op else { continue };
        assert_eq!(matches!(op.backend, Backend::AmxImage(_)), n_in == 3);
        // Features are bf16, an image is f32.
        let (image, features) = (DType::F32, DType::BF16);
        let tensor = |n, dtype| Tensor::zeros((5, 5, n), dtype, &Device::Cpu).unwrap();
        let input = if n_in == 3 { image } else { features };
        let (input, output) = (tensor(n_in, input), tensor(n_out, features));
        op.forward(&input, &output).unwrap();
        op.backward(&output, &output, &input, false).unwrap();
        assert!(op.forward(&input, &tensor(n_out, image)).is_err());
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (weights, bias) = ReferenceKernel::random(4, 3, 1).tensors();
    let op = Conv3x3::new(&weights, &bias, Border::Zeros, Format::F32).unwrap();
    let zeros = |h, w, n| Array::zeros(h, w, n).tensor();
    assert!(op.forward(&zeros(5, 5, 4), &zeros(5, 5, 4)).is_err());
    assert!(op.forward(&zeros(5, 5, 3), &zeros(5, 4, 4)).is_err());
    assert!(
        op.backward(&zeros(5, 5, 4), &zeros(4, 5, 4), &zeros(5, 5, 3), false)
            .is_err()
    );
    assert!(Conv3x3::new(&bias, &bias, Border::Zeros, Format::F32).is_err());
    assert!(Conv3x3::new(&weights, &weights, Border::Zeros, Format::F32).is_err());
}

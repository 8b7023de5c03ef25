// SPDX-License-Identifier: MPL-2.0

use super::super::for_each_backend;
use super::super::reference::{self, Array, relative_error};
use super::*;
use crate::threads::pool;

const SHAPES: [(usize, usize, usize); 6] = [
    (1, 1, 3),
    (1, 9, 4),
    (7, 5, 12),
    (90, 70, 5),
    (65, 64, 128),
    (3, 3, 256),
];

#[test]
fn gram_matrices_match_the_reference() {
    for_each_backend(|backend| {
        for (h, w, n) in SHAPES {
            let features = Array::random(h, w, n, 1);
            let output = Tensor::ones((n, n), candle_core::DType::F32, &Device::Cpu).unwrap();
            gram(&features.tensor(), &output).unwrap();
            let error = relative_error(&output, &reference::gram(&features));
            assert!(error < 1e-6, "{backend}, {h}x{w}x{n}: {error}");
        }
    });
}

/// A backend's residuals are its own Gram matrices less the target, bit for bit.
#[test]
fn residuals_are_gram_matrices_less_the_target() {
    for_each_backend(|backend| {
        for (h, w, n) in SHAPES {
            let features = Array::random(h, w, n, 1).tensor();
            let matrix = || Tensor::ones((n, n), DType::F32, &Device::Cpu).unwrap();
            let (target, expected, residual) = (matrix(), matrix(), matrix());
            gram(&Array::random(h, w, n, 2).tensor(), &target).unwrap();
            gram(&features, &expected).unwrap();
            let expected = (expected - &target).unwrap();
            let sum = Tensor::new(&[f64::NAN], &Device::Cpu).unwrap();
            gram_residual(&features, &target, &residual, &sum).unwrap();
            let values = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
            let case = format!("{backend}, {h}x{w}x{n}");
            assert_eq!(values(&residual), values(&expected), "{case}");
            let (sum, expected) = (sum.to_vec1::<f64>().unwrap()[0], squares_of(&expected));
            assert!((sum - expected).abs() <= 1e-9 * expected, "{case}: {sum}");
        }
    });
}

fn squares_of(residual: &Tensor) -> f64 {
    crate::ops::elementwise::dot(residual, residual).unwrap()
}

#[test]
fn gram_backward_is_scaled_features_times_residual() {
    for_each_backend(|backend| {
        for (h, w, n) in SHAPES {
            let features = Array::random(h, w, n, 1);
            let residual = Array::random(n, n, 1, 2);
            let before = Array::random(h, w, n, 3);
            for accumulate in [false, true] {
                let mut expected = Array::zeros(h, w, n).values;
                for (position, row) in features.values.chunks_exact(n).enumerate() {
                    for j in 0..n {
                        let product: f64 = (0..n).map(|i| row[i] * residual.at(i, j, 0)).sum();
                        let kept = if accumulate {
                            before.values[position * n + j]
                        } else {
                            0.0
                        };
                        expected[position * n + j] = kept + 0.3 * product;
                    }
                }
                let gradient = before.tensor();
                let residual = residual.tensor().reshape((n, n)).unwrap();
                let squares = squares_of(&residual);
                let squares = Tensor::new(&[squares], &Device::Cpu).unwrap();
                let factor = Tensor::new(&[0.3f32], &Device::Cpu).unwrap();
                let features = features.tensor();
                gram_backward(
                    &features, &residual, &squares, &factor, &gradient, accumulate,
                )
                .unwrap();
                let error = relative_error(&gradient, &expected);
                assert!(
                    error < 1e-6,
                    "{backend}, {h}x{w}x{n}, {accumulate}: {error}"
                );
            }
        }
    });
}

/// With more positions and channels than one piece has.
#[test]
fn bf16_is_f32_within_its_rounding() {
    if Amx::for_tests().is_none() {
        return;
    }
    let tensor = |h, w, n, seed| {
        let array = Array::random(h, w, n, seed).tensor();
        array.to_dtype(DType::BF16).unwrap()
    };
    let [narrow, matrix] = [tensor(5, 5, 48, 1), tensor(48, 48, 1, 1)];
    let matrix = matrix
        .reshape((48, 48))
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    assert!(gram(&narrow, &matrix).is_err());
    let (squares, factor) = (
        Tensor::new(&[1f64], &Device::Cpu).unwrap(),
        Tensor::new(&[0.5f32], &Device::Cpu).unwrap(),
    );
    let gradient = narrow.copy().unwrap();
    assert!(gram_backward(&narrow, &matrix, &squares, &factor, &gradient, false).is_err());
    for (h, w, n) in [(16, 1, 64), (41, 39, 32), (61, 50, 96)] {
        let (features, before) = (tensor(h, w, n, 1), tensor(h, w, n, 2));
        let residual = tensor(n, n, 1, 3).to_dtype(DType::F32).unwrap();
        let residual = residual.reshape((n, n)).unwrap();
        let run = |dtype, accumulate| {
            let features = features.to_dtype(dtype).unwrap();
            let output = residual.ones_like().unwrap();
            gram(&features, &output).unwrap();
            let gradient = before.to_dtype(dtype).unwrap().copy().unwrap();
            gram_backward(
                &features, &residual, &squares, &factor, &gradient, accumulate,
            )
            .unwrap();
            [output, gradient].map(|tensor| {
                let singles = tensor.to_dtype(DType::F32).unwrap();
                singles.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            })
        };
        for accumulate in [false, true] {
            let both = run(DType::BF16, accumulate);
            let both = both.into_iter().zip(run(DType::F32, accumulate));
            for ((rounded, exact), bound) in both.zip([1e-6, 1.0 / 256.0]) {
                let expected: Vec<f64> = exact.into_iter().map(f64::from).collect();
                let rounded = Tensor::new(rounded, &Device::Cpu).unwrap();
                let error = relative_error(&rounded, &expected);
                assert!(error < bound, "{h}x{w}x{n}, {accumulate}: {error}");
            }
        }
    }
}

#[test]
fn gram_matrices_do_not_depend_on_the_number_of_threads() {
    let features = Array::random(90, 70, 20, 1).tensor();
    let run = |threads| {
        pool(threads).build().unwrap().install(|| {
            let output = Tensor::zeros((20, 20), candle_core::DType::F32, &Device::Cpu).unwrap();
            gram(&features, &output).unwrap();
            output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        })
    };
    assert_eq!(run(1), run(5));
}

// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::ops::for_each_backend;
use crate::ops::reference::{Array, relative_error};

const SIZES: [(usize, usize); 5] = [(1, 1), (1, 6), (5, 1), (7, 9), (130, 70)];

fn close(case: &str, value: f64, expected: f64) {
    let error = (value - expected).abs();
    assert!(
        error <= 1e-6 * expected.abs(),
        "{case}: {value}, not {expected}"
    );
}

fn factor(value: f32) -> Tensor {
    Tensor::new(&[value], &Device::Cpu).unwrap()
}

fn sum() -> Tensor {
    Tensor::new(&[f64::NAN], &Device::Cpu).unwrap()
}

/// The sum that `op` writes.
fn sum_of(op: impl FnOnce(&Tensor) -> Result<()>) -> f64 {
    let sum = sum();
    op(&sum).unwrap();
    sum.to_vec1::<f64>().unwrap()[0]
}

fn random(h: usize, w: usize, seed: u64) -> Array {
    Array::random(h, w, 3, seed)
}

/// Checks `op`, which sets its first operand, against `value` of its operands' values.
fn check(
    name: &str,
    op: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<()>,
    value: impl Fn(f64, f64, f64) -> f64,
) {
    for_each_backend(|backend| {
        for (h, w) in SIZES {
            let (dst, a, b) = (random(h, w, 1), random(h, w, 2), random(h, w, 3));
            let operands = a.values.iter().zip(&b.values);
            let expected: Vec<f64> = dst
                .values
                .iter()
                .zip(operands)
                .map(|(&dst, (&a, &b))| value(dst, a, b))
                .collect();
            let result = dst.tensor();
            op(&result, &a.tensor(), &b.tensor()).unwrap();
            let error = relative_error(&result, &expected);
            assert!(error < 1e-6, "{name}, {backend}, {h}x{w}: {error}");
        }
    });
}

#[test]
fn vector_operations_are_their_formulas() {
    check("copy", |dst, a, _| copy(dst, a), |_, a, _| a);
    check(
        "axpy",
        |dst, a, _| axpy(0.7, a, dst),
        |dst, a, _| dst + 0.7 * a,
    );
    check(
        "scale",
        |dst, _, _| scale(-1.5, dst),
        |dst, _, _| -1.5 * dst,
    );
    check(
        "scale by",
        |dst, _, _| scale_by(&factor(-1.5), dst),
        |dst, _, _| -1.5 * dst,
    );
    check("clear", |dst, _, _| clear(dst), |_, _, _| 0.0);
    check("difference", difference, |_, a, b| a - b);
    check(
        "step",
        |dst, x, d| step(dst, x, 0.8, d),
        |_, x, d| (x + 0.8 * d).clamp(0.0, 1.0),
    );
    check(
        "decay",
        |dst, a, _| decay(dst, 0.9, a, false),
        |dst, a, _| 0.9 * dst + 0.1 * a,
    );
    check(
        "decay²",
        |dst, a, _| decay(dst, 0.9, a, true),
        |dst, a, _| 0.9 * dst + 0.1 * a * a,
    );
    check(
        "adam",
        |dst, m, v| adam_step(dst, 0.1, m, 0.5, &v.abs()?),
        |x, m, v| (x - 0.1 * m / ((v.abs() / 0.5).sqrt() + 1e-8)).clamp(0.0, 1.0),
    );
    // Positions in -1..1: those below 0 are at the bound or beyond it.
    check("project-direction", project_direction, |d, x, g| {
        match x <= 0.0 && (d < 0.0 || g > 0.0) {
            true => 0.0,
            false => d,
        }
    });
}

#[test]
fn directions_are_projected_at_the_upper_bound_too() {
    for_each_backend(|backend| {
        let tensor = |values: [f32; 4]| Tensor::new(&values, &Device::Cpu).unwrap();
        let (d, x) = (tensor([1.0, -1.0, 1.0, -1.0]), tensor([1.0, 1.0, 0.9, 1.0]));
        project_direction(&d, &x, &tensor([1.0, 1.0, -1.0, -1.0])).unwrap();
        let expected = [0.0, -1.0, 1.0, 0.0];
        assert_eq!(d.to_vec1::<f32>().unwrap(), expected, "{backend}");
    });
}

#[test]
fn sums_and_the_content_loss_are_their_formulas() {
    for_each_backend(|backend| {
        for (h, w) in SIZES {
            let (f, p, before) = (random(h, w, 1), random(h, w, 2), random(h, w, 3));
            close(backend, dot(&f.tensor(), &p.tensor()).unwrap(), f.dot(&p));
            close(backend, sum_of(|sum| squares(&f.tensor(), sum)), f.dot(&f));
            let differences: Vec<f64> =
                f.values.iter().zip(&p.values).map(|(f, p)| f - p).collect();
            for accumulate in [false, true] {
                let gradient = before.tensor();
                let (f, p) = (f.tensor(), p.tensor());
                let loss =
                    sum_of(|sum| content_loss(&f, &p, &factor(0.4), &gradient, accumulate, sum));
                close(backend, loss, differences.iter().map(|d| d * d).sum());
                let kept = |b: &f64| if accumulate { *b } else { 0.0 };
                let expected: Vec<f64> = differences
                    .iter()
                    .zip(&before.values)
                    .map(|(d, b)| 0.4 * d + kept(b))
                    .collect();
                assert!(
                    relative_error(&gradient, &expected) < 1e-6,
                    "{backend}, {h}x{w}"
                );
            }
        }
    });
}

/// bf16 features give the same sums as in f32, and the f32 gradient, rounded.
#[test]
fn bf16_is_f32_rounded() {
    let tensor = |seed| random(13, 11, seed).tensor().to_dtype(DType::BF16).unwrap();
    let [f, p, before] = [1, 2, 3].map(tensor);
    for accumulate in [false, true] {
        let run = |dtype| {
            let [f, p, before] = [&f, &p, &before].map(|tensor| tensor.to_dtype(dtype).unwrap());
            let gradient = before.copy().unwrap();
            let loss = sum_of(|sum| content_loss(&f, &p, &factor(0.4), &gradient, accumulate, sum));
            let rounded = gradient.to_dtype(DType::BF16).unwrap();
            let gradient = rounded.flatten_all().unwrap().to_vec1::<bf16>().unwrap();
            (loss, dot(&f, &p).unwrap(), gradient)
        };
        assert_eq!(run(DType::BF16), run(DType::F32));
    }
}

#[test]
fn the_temporal_loss_is_its_formula() {
    for_each_backend(|backend| {
        for (h, w) in SIZES {
            let (image, before) = (random(h, w, 1), random(h, w, 2));
            let target = Array::random(h, w, 4, 3);
            let (mut total, mut expected) = (0.0, before.values.clone());
            for (i, value) in image.values.iter().enumerate() {
                let (pixel, channel) = (i / 3, i % 3);
                let weight = target.values[4 * pixel + 3];
                let difference = value - target.values[4 * pixel + channel];
                total += weight * difference * difference;
                expected[i] += 2.0 * 0.3 * weight * difference;
            }
            let gradient = before.tensor();
            let (image, target) = (image.tensor(), target.tensor());
            let value = sum_of(|sum| temporal_loss(&image, &target, &factor(0.3), &gradient, sum));
            assert!(
                (value - total).abs() < 1e-5 * (h * w) as f64,
                "{backend}, {h}x{w}"
            );
            let error = relative_error(&gradient, &expected);
            assert!(error < 1e-6, "{backend}, {h}x{w}: {error}");
        }
        let (image, target) = (random(4, 5, 1).tensor(), random(4, 5, 2).tensor());
        let (factor, sum) = (factor(1.0), sum());
        assert!(temporal_loss(&image, &target, &factor, &image.copy().unwrap(), &sum).is_err());
    });
}

/// The gradient of a quadratic function by central differences, which are exact for it.
#[test]
fn total_variation_and_its_gradient_agree() {
    let value = |image: &Array| {
        let mut sum = 0.0;
        for y in 0..image.h {
            for x in 0..image.w {
                for c in 0..image.n {
                    if y > 0 {
                        sum += (image.at(y, x, c) - image.at(y - 1, x, c)).powi(2);
                    }
                    if x > 0 {
                        sum += (image.at(y, x, c) - image.at(y, x - 1, c)).powi(2);
                    }
                }
            }
        }
        sum
    };
    for_each_backend(|backend| {
        for (h, w) in [(1, 1), (1, 6), (5, 1), (7, 9)] {
            let (image, before) = (random(h, w, 1), random(h, w, 2));
            let gradient = before.tensor();
            close(
                backend,
                sum_of(|sum| total_variation(&image.tensor(), &factor(0.3), &gradient, sum)),
                value(&image),
            );
            let expected: Vec<f64> = (0..image.values.len())
                .map(|i| {
                    let moved = |by: f64| {
                        let mut image = image.clone();
                        image.values[i] += by;
                        value(&image)
                    };
                    before.values[i] + 0.3 * (moved(0.5) - moved(-0.5))
                })
                .collect();
            assert!(
                relative_error(&gradient, &expected) < 1e-6,
                "{backend}, {h}x{w}"
            );
        }
    });
}

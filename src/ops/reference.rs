// SPDX-License-Identifier: MPL-2.0

//! Reference implementations for the tests: the operations as plain nested loops in `f64`.

use super::conv::Border;
use super::pool::Pooling;
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// An array `[h, w, n]`.
#[derive(Clone, Debug)]
pub struct Array {
    pub h: usize,
    pub w: usize,
    pub n: usize,
    pub values: Vec<f64>,
}

impl Array {
    pub fn zeros(h: usize, w: usize, n: usize) -> Self {
        let values = vec![0.0; h * w * n];
        Self { h, w, n, values }
    }

    /// Values in -1..1 that `f32` represents exactly.
    pub fn random(h: usize, w: usize, n: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let values = (0..h * w * n)
            .map(|_| f64::from(rng.random_range(-1f32..1f32)))
            .collect();
        Self { h, w, n, values }
    }

    pub fn at(&self, y: usize, x: usize, c: usize) -> f64 {
        self.values[(y * self.w + x) * self.n + c]
    }

    pub fn at_mut(&mut self, y: usize, x: usize, c: usize) -> &mut f64 {
        &mut self.values[(y * self.w + x) * self.n + c]
    }

    pub fn to_f32(&self) -> Vec<f32> {
        self.values.iter().map(|&value| value as f32).collect()
    }

    pub fn tensor(&self) -> Tensor {
        Tensor::from_vec(self.to_f32(), (self.h, self.w, self.n), &Device::Cpu).unwrap()
    }

    pub fn dot(&self, other: &Self) -> f64 {
        self.values
            .iter()
            .zip(&other.values)
            .map(|(a, b)| a * b)
            .sum()
    }
}

/// ‖`tensor` − `reference`‖ / ‖`reference`‖
pub fn relative_error(tensor: &Tensor, reference: &[f64]) -> f64 {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values.len(), reference.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = squares(&mut values.iter().zip(reference).map(|(&v, r)| f64::from(v) - r));
    (error / squares(&mut reference.iter().copied()).max(f64::MIN_POSITIVE)).sqrt()
}

/// A convolution's kernel `[out, in, 3, 3]` and bias `[out]`.
pub struct ReferenceKernel {
    pub n_out: usize,
    pub n_in: usize,
    pub weights: Vec<f64>,
    pub bias: Vec<f64>,
}

impl ReferenceKernel {
    pub fn random(n_out: usize, n_in: usize, seed: u64) -> Self {
        Self {
            n_out,
            n_in,
            weights: Array::random(n_out, n_in, 9, seed).values,
            bias: Array::random(1, 1, n_out, seed + 1).values,
        }
    }

    pub fn tensors(&self) -> (Tensor, Tensor) {
        let tensor = |values: &[f64], shape: &[usize]| {
            let values = values.iter().map(|&value| value as f32).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        (
            tensor(&self.weights, &[self.n_out, self.n_in, 3, 3]),
            tensor(&self.bias, &[self.n_out]),
        )
    }

    /// Calls `visit([y, x, output channel], [tap y, tap x, input channel], weight)` for each tap
    /// that lies in the image or, with a replicated border, is clamped to it.
    fn taps(
        &self,
        h: usize,
        w: usize,
        border: Border,
        mut visit: impl FnMut([usize; 3], [usize; 3], f64),
    ) {
        let inside = |at: usize, tap: usize, side: usize| match border {
            Border::Zeros => (at + tap).checked_sub(1).filter(|&at| at < side),
            Border::Replicate => Some((at + tap).saturating_sub(1).min(side - 1)),
        };
        for (i, &weight) in self.weights.iter().enumerate() {
            let (out, input, tap) = (i / (9 * self.n_in), i / 9 % self.n_in, i % 9);
            for y in 0..h {
                for x in 0..w {
                    if let (Some(ty), Some(tx)) = (inside(y, tap / 3, h), inside(x, tap % 3, w)) {
                        visit([y, x, out], [ty, tx, input], weight);
                    }
                }
            }
        }
    }

    /// `relu(input * kernel + bias)`
    pub fn forward(&self, input: &Array, border: Border) -> Array {
        let mut output = Array::zeros(input.h, input.w, self.n_out);
        self.taps(
            input.h,
            input.w,
            border,
            |[y, x, out], [ty, tx, c], weight| {
                *output.at_mut(y, x, out) += weight * input.at(ty, tx, c);
            },
        );
        for (i, value) in output.values.iter_mut().enumerate() {
            *value = (*value + self.bias[i % self.n_out]).max(0.0);
        }
        output
    }

    /// The gradient with respect to the input.
    pub fn backward(&self, upstream: &Array, output: &Array, border: Border) -> Array {
        let mut gradient = Array::zeros(upstream.h, upstream.w, self.n_in);
        self.taps(
            upstream.h,
            upstream.w,
            border,
            |[y, x, out], [ty, tx, c], weight| {
                if output.at(y, x, out) > 0.0 {
                    *gradient.at_mut(ty, tx, c) += weight * upstream.at(y, x, out);
                }
            },
        );
        gradient
    }
}

/// Calls `visit(y, x, share)` for the pixels in the window of pooled pixel `[py, px]`, with their
/// share in its value of channel `c`.
fn shares(
    pooling: Pooling,
    input: &Array,
    [py, px, c]: [usize; 3],
    mut visit: impl FnMut(usize, usize, f64),
) {
    let four = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(dy, dx)| (2 * py + dy, 2 * px + dx));
    match pooling {
        Pooling::Avg => four.iter().for_each(|&(y, x)| visit(y, x, 0.25)),
        Pooling::Max => {
            let mut best = four[0];
            for &(y, x) in &four {
                if input.at(y, x, c) > input.at(best.0, best.1, c) {
                    best = (y, x);
                }
            }
            visit(best.0, best.1, 1.0);
        }
    }
}

pub fn pool(pooling: Pooling, input: &Array) -> Array {
    let mut output = Array::zeros(input.h / 2, input.w / 2, input.n);
    for y in 0..output.h {
        for x in 0..output.w {
            for c in 0..input.n {
                let mut value = 0.0;
                shares(pooling, input, [y, x, c], |y, x, share| {
                    value += share * input.at(y, x, c)
                });
                *output.at_mut(y, x, c) = value;
            }
        }
    }
    output
}

pub fn pool_backward(pooling: Pooling, upstream: &Array, input: &Array) -> Array {
    let mut gradient = Array::zeros(input.h, input.w, input.n);
    for py in 0..upstream.h {
        for px in 0..upstream.w {
            for c in 0..input.n {
                let upstream = upstream.at(py, px, c);
                shares(pooling, input, [py, px, c], |y, x, share| {
                    *gradient.at_mut(y, x, c) += share * upstream;
                });
            }
        }
    }
    gradient
}

/// FᵀF / M, `[n, n]`.
pub fn gram(features: &Array) -> Vec<f64> {
    let (m, n) = (features.h * features.w, features.n);
    let mut gram = vec![0.0; n * n];
    for position in features.values.chunks_exact(n) {
        for i in 0..n {
            for j in 0..n {
                gram[i * n + j] += position[i] * position[j] / m as f64;
            }
        }
    }
    gram
}

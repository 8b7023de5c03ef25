// SPDX-License-Identifier: MPL-2.0

//! Gram matrices of features and the gradient through them.
//!
//! Features `[h, w, N]` are read as a matrix F `[M, N]` of M positions.

use super::{CpuOp, cpu_side, store};
use candle_core::{Device, Result, Tensor, bail};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;
use std::cell::Cell;

/// Positions that a partial Gram matrix is taken over at least, and how many there are at most.
const PIECE_POSITIONS: usize = 2048;
const MAX_PIECES: usize = 64;

/// Bands of rows of a Gram matrix that its tasks compute, where they divide it. A band ends at the
/// diagonal: the rest of the matrix is its mirror image.
const BANDS: usize = 4;

thread_local! {
    /// Partial Gram matrices, kept from call to call.
    static PARTIAL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The Gram matrix of `features` over its number of positions, FᵀF / M, into `output` `[N, N]`
/// (Gatys et al. 2016, eq. 3, which does not divide).
pub fn gram(features: &Tensor, output: &Tensor) -> Result<()> {
    let (h, w, n) = features.dims3()?;
    let m = h * w;
    if output.dims() != [n, n] {
        bail!("a Gram matrix of {n} channels is not {:?}", output.dims());
    }
    match features.device() {
        Device::Cpu if cpu_side() => {
            let op = CpuOp("gram", |output: &mut [f32], features: &[f32]| {
                // Not borrowed: a thread that waits here may be given other work of its pool.
                let mut partial = PARTIAL.take();
                sum_pieces(features, m, n, output, &mut partial);
                PARTIAL.set(partial);
            });
            output.inplace_op2(features, &op)
        }
        _ => {
            let f = features.reshape((m, n))?;
            store(output, &(f.t()?.matmul(&f)? / m as f64)?, false)
        }
    }
}

fn sum_pieces(features: &[f32], m: usize, n: usize, output: &mut [f32], partial: &mut Vec<f32>) {
    let piece = m.div_ceil((m / PIECE_POSITIONS).clamp(1, MAX_PIECES));
    let pieces = m.div_ceil(piece);
    let bands = if n.is_multiple_of(BANDS) { BANDS } else { 1 };
    let rows = n / bands;
    partial.resize(pieces * n * n, 0.0);
    partial
        .par_chunks_exact_mut(rows * n)
        .enumerate()
        .for_each(|(task, band)| {
            let (index, first) = (task / bands, task % bands * rows);
            let features = &features[index * piece * n..((index + 1) * piece).min(m) * n];
            // SAFETY: the operands are [rows, positions] and [positions, first + rows] views of
            // `features`, and `band` is [rows, n].
            unsafe {
                product(
                    [rows, first + rows, features.len() / n],
                    (band, n),
                    (&features[first..], [1, n]),
                    (features, [n, 1]),
                    1.0,
                    false,
                );
            }
        });
    output.par_iter_mut().enumerate().for_each(|(i, value)| {
        let (row, column) = (i / n, i % n);
        let at = row.max(column) * n + row.min(column);
        let sum: f64 = partial[at..]
            .iter()
            .step_by(n * n)
            .map(|&part| f64::from(part))
            .sum();
        *value = (sum / m as f64) as f32;
    });
}

/// `scale` F D into `gradient`, or added to it: the gradient of a style loss with respect to the
/// features, given the residual D of its Gram matrix (Gatys et al. 2016, eq. 6).
pub fn gram_backward(
    features: &Tensor,
    residual: &Tensor,
    scale: f64,
    gradient: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let (h, w, n) = features.dims3()?;
    if residual.dims() != [n, n] || gradient.dims() != features.dims() {
        bail!(
            "features {:?}, residual {:?} and gradient {:?} do not fit",
            features.dims(),
            residual.dims(),
            gradient.dims()
        );
    }
    match features.device() {
        Device::Cpu if cpu_side() => {
            let op = CpuOp(
                "gram-backward",
                |gradient: &mut [f32], features: &[f32], residual: &[f32]| {
                    let pieces = features.par_chunks(PIECE_POSITIONS / 2 * n);
                    gradient
                        .par_chunks_mut(PIECE_POSITIONS / 2 * n)
                        .zip(pieces)
                        .for_each(|(gradient, features)| {
                            // SAFETY: `features` and `gradient` are [positions, n], `residual` [n, n].
                            unsafe {
                                product(
                                    [features.len() / n, n, n],
                                    (gradient, n),
                                    (features, [n, 1]),
                                    (residual, [n, 1]),
                                    scale as f32,
                                    accumulate,
                                );
                            }
                        });
                },
            );
            gradient.inplace_op3(features, residual, &op)
        }
        _ => {
            let f = features.reshape((h * w, n))?;
            store(
                gradient,
                &(f.matmul(residual)? * scale)?.reshape((h, w, n))?,
                accumulate,
            )
        }
    }
}

/// `output = scale * lhs * rhs`, or `+=`, for `[m, k]` and `[k, n]` matrices given with their
/// row and column strides; `output` is `[m, n]` with its row stride.
///
/// # Safety
/// All elements that the dimensions and strides name lie within their slices.
unsafe fn product(
    [m, n, k]: [usize; 3],
    (output, stride): (&mut [f32], usize),
    (lhs, lhs_strides): (&[f32], [usize; 2]),
    (rhs, rhs_strides): (&[f32], [usize; 2]),
    scale: f32,
    accumulate: bool,
) {
    let [lhs_rs, lhs_cs] = lhs_strides.map(|stride| stride as isize);
    let [rhs_rs, rhs_cs] = rhs_strides.map(|stride| stride as isize);
    // SAFETY: the caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            output.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            lhs.as_ptr(),
            lhs_cs,
            lhs_rs,
            rhs.as_ptr(),
            rhs_cs,
            rhs_rs,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::{self, Array, relative_error};
    use super::super::with_both_sides;
    use super::*;

    const SHAPES: [(usize, usize, usize); 6] = [
        (1, 1, 3),
        (1, 9, 4),
        (7, 5, 12),
        (90, 70, 5),
        (65, 64, 128),
        (3, 3, 256),
    ];

    #[test]
    fn gram_matrices_are_the_nested_loops() {
        with_both_sides(|side| {
            for (h, w, n) in SHAPES {
                let features = Array::random(h, w, n, 1);
                let output = Tensor::ones((n, n), candle_core::DType::F32, &Device::Cpu).unwrap();
                gram(&features.tensor(), &output).unwrap();
                let error = relative_error(&output, &reference::gram(&features));
                assert!(error < 1e-6, "{side}, {h}x{w}x{n}: {error}");
            }
        });
    }

    #[test]
    fn gram_backward_is_scaled_features_times_residual() {
        with_both_sides(|side| {
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
                    gram_backward(&features.tensor(), &residual, 0.3, &gradient, accumulate)
                        .unwrap();
                    let error = relative_error(&gradient, &expected);
                    assert!(error < 1e-6, "{side}, {h}x{w}x{n}, {accumulate}: {error}");
                }
            }
        });
    }

    #[test]
    fn gram_matrices_do_not_depend_on_the_number_of_threads() {
        let features = Array::random(90, 70, 20, 1).tensor();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let output =
                    Tensor::zeros((20, 20), candle_core::DType::F32, &Device::Cpu).unwrap();
                gram(&features, &output).unwrap();
                output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            })
        };
        assert_eq!(run(1), run(5));
    }
}

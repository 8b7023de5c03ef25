// SPDX-License-Identifier: MPL-2.0

//! Gram matrices of features, and the gradient with respect to the features.
//!
//! Features `[h, w, N]` are read as a matrix F `[M, N]` of M positions and N channels.

use super::amx::{self, Amx};
use super::elementwise::{axpy, squares};
use super::{op2, op3, read_factor, store, to_f32, use_cpu_kernels};
use candle_core::{DType, Device, Result, Tensor, bail};
use gemm::{Parallelism, gemm};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;

/// Fewest positions per partial Gram matrix of `f32` features, where there are as many.
const F32_PIECE_POSITIONS: usize = 2048;

/// The same for bf16 features, and positions per task of the gradient.
const BF16_PIECE_POSITIONS: usize = 768;

/// Most partial Gram matrices of a Gram matrix.
const MAX_PIECES: usize = 64;

/// Bands of rows that a partial Gram matrix is computed in, a task each, if they divide its rows
/// evenly. A band's columns end at the diagonal, as the matrix is symmetric.
const ROW_BANDS: usize = 4;

thread_local! {
    /// `[pieces, N, N]`, kept between calls to reuse the allocation.
    static PARTIAL_GRAMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// The residual that [`gram_backward`] multiplies by in bf16; likewise.
    static PACKED_RESIDUAL: Cell<Option<amx::VnniMatrix>> = const { Cell::new(None) };
}

/// Writes FᵀF / M, the Gram matrix of `features` divided by the number of positions, to `output`
/// `[N, N]` (Gatys et al. 2016, eq. 3, which does not divide).
pub fn gram(features: &Tensor, output: &Tensor) -> Result<()> {
    let (h, w, n) = features.dims3()?;
    let m = h * w;
    if output.dims() != [n, n] {
        bail!("a Gram matrix of {n} channels is not {:?}", output.dims());
    }
    match features.device() {
        Device::Cpu if use_cpu_kernels() && features.dtype() == DType::BF16 => {
            let amx = require_amx(n)?;
            let op = op2("gram", |output: &mut [f32], features: &[bf16]| {
                reduce_partials(m, n, output, |partial| {
                    partial_grams_bf16(amx, features, n, partial);
                });
            });
            output.inplace_op2(features, &op)
        }
        Device::Cpu if use_cpu_kernels() => {
            let op = op2("gram", |output: &mut [f32], features: &[f32]| {
                reduce_partials(m, n, output, |partial| {
                    partial_grams_f32(features, n, partial)
                });
            });
            output.inplace_op2(features, &op)
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => super::cuda::gram::gram(features, [m, n], output),
        _ => {
            let f = to_f32(features)?.reshape((m, n))?;
            store(output, &(f.t()?.matmul(&f)? / m as f64)?, false)
        }
    }
}

/// Writes FᵀF / M − `target`, where `target` is another Gram matrix that [`gram`] computed, to
/// `residual` `[N, N]`, and the sum of the residual's squares to `sum`.
pub fn gram_residual(
    features: &Tensor,
    target: &Tensor,
    residual: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    let (_, _, n) = features.dims3()?;
    if [target, residual]
        .iter()
        .any(|matrix| matrix.dims() != [n, n])
    {
        bail!(
            "a target {:?} and a residual {:?} do not fit {n} channels",
            target.dims(),
            residual.dims()
        );
    }
    match features.device() {
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => {
            let positions = features.elem_count() / n;
            super::cuda::gram::gram_residual(features, [positions, n], target, (residual, sum))
        }
        _ => {
            gram(features, residual)?;
            axpy(-1.0, target, residual)?;
            squares(residual, sum)
        }
    }
}

/// AMX for bf16 features of `n` channels; an error where it cannot take them or is missing.
fn require_amx(n: usize) -> Result<Amx> {
    if !n.is_multiple_of(amx::CHANNEL_MULTIPLE) {
        bail!(
            "features in bf16 have a multiple of {} channels, not {n}",
            amx::CHANNEL_MULTIPLE
        );
    }
    Amx::require()
}

/// Positions per piece when `m` positions are split into up to [`MAX_PIECES`] of at least `least`.
fn piece_len(m: usize, least: usize) -> usize {
    m.div_ceil((m / least).clamp(1, MAX_PIECES))
}

/// Computes FᵀF over each piece of the positions, `[pieces, n, n]`; only the lower triangles are
/// valid.
fn partial_grams_f32(features: &[f32], n: usize, partial: &mut Vec<f32>) {
    let m = features.len() / n;
    let piece = piece_len(m, F32_PIECE_POSITIONS);
    let bands = if n.is_multiple_of(ROW_BANDS) {
        ROW_BANDS
    } else {
        1
    };
    let rows = n / bands;
    partial.resize(m.div_ceil(piece) * n * n, 0.0);
    partial
        .par_chunks_exact_mut(rows * n)
        .enumerate()
        .for_each(|(task, band)| {
            let (index, first) = (task / bands, task % bands * rows);
            let features = &features[index * piece * n..((index + 1) * piece).min(m) * n];
            // SAFETY: the operands are [rows, positions] and [positions, first + rows] views of
            // `features`, and `band` is [rows, n].
            unsafe {
                matmul(
                    [rows, first + rows, features.len() / n],
                    (band, n),
                    (&features[first..], [1, n]),
                    (features, [n, 1]),
                    1.0,
                    false,
                );
            }
        });
}

/// The same for bf16 features.
fn partial_grams_bf16(amx: Amx, features: &[bf16], n: usize, partial: &mut Vec<f32>) {
    let m = features.len() / n;
    let piece = piece_len(m, BF16_PIECE_POSITIONS);
    partial.resize(m.div_ceil(piece) * n * n, 0.0);
    partial
        .par_chunks_exact_mut(n * n)
        .zip(features.par_chunks(piece * n))
        .for_each(|(partial, features)| amx::gram(amx, features, n, partial));
}

/// Adds up the lower triangles that `pieces` computes, divides by `m` and mirrors the result to the
/// upper triangle.
fn reduce_partials(m: usize, n: usize, output: &mut [f32], pieces: impl FnOnce(&mut Vec<f32>)) {
    // Taken rather than borrowed: while it waits, rayon may run another such task on this thread.
    let mut partial = PARTIAL_GRAMS.take();
    pieces(&mut partial);
    let rows = output.par_chunks_exact_mut(n).enumerate();
    rows.for_each(|(row, values)| {
        for (column, value) in values[..=row].iter_mut().enumerate() {
            let parts = partial[row * n + column..].iter().step_by(n * n);
            let sum: f64 = parts.map(|&part| f64::from(part)).sum();
            *value = (sum / m as f64) as f32;
        }
    });
    for row in 1..n {
        for column in 0..row {
            output[column * n + row] = output[row * n + column];
        }
    }
    PARTIAL_GRAMS.set(partial);
}

/// Writes `factor` F D to `gradient`, or adds it: the gradient of a style loss with respect to the
/// features, where D is the residual of the Gram matrix (Gatys et al. 2016, eq. 6).
///
/// `squares` is the sum of D's squares. By it, backends that round D to the features' format may
/// first scale D to a root mean square of 1, so that it neither overflows nor underflows in f16;
/// AMX does not, as bf16 has the range of f32.
pub fn gram_backward(
    features: &Tensor,
    residual: &Tensor,
    squares: &Tensor,
    factor: &Tensor,
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
        Device::Cpu if use_cpu_kernels() && features.dtype() == DType::BF16 => {
            let (amx, factor) = (require_amx(n)?, read_factor(factor)?);
            let op = op3(
                "gram-backward",
                |gradient: &mut [bf16], features: &[bf16], residual: &[f32]| {
                    gram_backward_bf16(amx, features, (residual, n), factor, gradient, accumulate);
                },
            );
            gradient.inplace_op3(features, residual, &op)
        }
        Device::Cpu if use_cpu_kernels() => {
            let factor = read_factor(factor)?;
            let op = op3(
                "gram-backward",
                |gradient: &mut [f32], features: &[f32], residual: &[f32]| {
                    gram_backward_f32(features, (residual, n), factor, gradient, accumulate);
                },
            );
            gradient.inplace_op3(features, residual, &op)
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => super::cuda::gram::gram_backward(
            features,
            [h * w, n],
            (residual, squares),
            factor,
            (gradient, accumulate),
        ),
        _ => {
            let f = to_f32(features)?.reshape((h * w, n))?;
            let size = (to_f32(squares)? / (n * n) as f64)?.sqrt()?;
            let unit = residual.broadcast_div(&size.maximum(f32::MIN_POSITIVE)?)?;
            let unit = to_f32(&unit.to_dtype(features.dtype())?)?;
            let product = f.matmul(&unit)?.broadcast_mul(&(size * factor)?)?;
            store(gradient, &product.reshape((h, w, n))?, accumulate)
        }
    }
}

/// Of `f32` features `[m, n]` and a residual `[n, n]`.
fn gram_backward_f32(
    features: &[f32],
    (residual, n): (&[f32], usize),
    factor: f32,
    gradient: &mut [f32],
    accumulate: bool,
) {
    let pieces = features.par_chunks(F32_PIECE_POSITIONS / 2 * n);
    gradient
        .par_chunks_mut(F32_PIECE_POSITIONS / 2 * n)
        .zip(pieces)
        .for_each(|(gradient, features)| {
            // SAFETY: `features` and `gradient` are [positions, n], `residual` [n, n].
            unsafe {
                matmul(
                    [features.len() / n, n, n],
                    (gradient, n),
                    (features, [n, 1]),
                    (residual, [n, 1]),
                    factor,
                    accumulate,
                );
            }
        });
}

/// The same for bf16 features.
fn gram_backward_bf16(
    amx: Amx,
    features: &[bf16],
    (residual, n): (&[f32], usize),
    factor: f32,
    gradient: &mut [bf16],
    accumulate: bool,
) {
    let mut packed = PACKED_RESIDUAL.take().unwrap_or_default();
    packed.set(n / amx::CHANNEL_MULTIPLE, n, |row, column| {
        factor * residual[row * n + column]
    });
    let pieces = features.par_chunks(BF16_PIECE_POSITIONS * n);
    gradient
        .par_chunks_mut(BF16_PIECE_POSITIONS * n)
        .zip(pieces)
        .for_each(|(gradient, features)| {
            amx::gram_backward(amx, features, &packed, gradient, accumulate);
        });
    PACKED_RESIDUAL.set(Some(packed));
}

/// `output = scale * lhs * rhs`, or `+=`, of matrices `[m, k]` and `[k, n]`, each with its row and
/// column strides; `output` is `[m, n]` with its row stride.
///
/// # Safety
/// All elements that the dimensions and strides address lie within their slices.
unsafe fn matmul(
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
mod tests;

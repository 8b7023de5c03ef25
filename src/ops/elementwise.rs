// SPDX-License-Identifier: MPL-2.0

//! Element-wise operations and reductions: the vector arithmetic of the optimisers, and the losses
//! that are sums over elements, with their gradients.
//!
//! Images are `f32`, features in the network's [`Format`](super::Format); sums are `f64`.

#[cfg(feature = "cudnn")]
use super::cuda::vector;
use super::transfer::to_host;
use super::{
    Scalar, op1, op2, op3, read_factor, store, to_f32, use_cpu_kernels, with_values, write_sum,
};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use pulp::Arch;
use rayon::prelude::*;
use std::cell::Cell;

/// Partial sums of a reduction, whatever the number of threads.
const PARTS: usize = 64;

/// Elements per task of an operation without a reduction.
const CHUNK: usize = 1 << 14;

/// Σ `term(x, y)`, in `f64`.
fn sum<T: Scalar>(x: &[T], y: &[T], term: impl Fn(f32, f32) -> f64 + Copy + Sync) -> f64 {
    let part = x.len().div_ceil(PARTS).max(1);
    let mut sums = [0.0; PARTS];
    let parts = x.par_chunks(part).zip(y.par_chunks(part));
    sums.par_iter_mut().zip(parts).for_each(|(sum, (x, y))| {
        *sum = Arch::new().dispatch(|| {
            // Independent accumulators, so that the loop vectorises.
            let mut lanes = [0.0; 16];
            let ((x, last_x), (y, last_y)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
            for (x, y) in x.iter().zip(y) {
                for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                    *lane += term(x.as_f32(), y.as_f32());
                }
            }
            for (lane, (x, y)) in lanes.iter_mut().zip(last_x.iter().zip(last_y)) {
                *lane += term(x.as_f32(), y.as_f32());
            }
            lanes.iter().sum()
        });
    });
    sums.iter().sum()
}

fn sum_of<T: Scalar>(
    x: &Tensor,
    y: &Tensor,
    term: impl Fn(f32, f32) -> f64 + Copy + Sync,
) -> Result<f64> {
    with_values([x, y], |[x, y]: [&[T]; 2]| sum(x, y, term))
}

/// The sum of a tensor's elements, `f64` `[1]`.
fn sum_all(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F64)?.sum_all()?.reshape(1)
}

fn expect_same(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        bail!(
            "tensors of one shape are needed, not {:?} and {:?}",
            a.dims(),
            b.dims()
        );
    }
    Ok(())
}

/// Updates each element of `dst` from itself and those of `a` and `b`. `set` should own what it
/// captures: anything behind a reference would be reloaded for each element, which keeps the loop
/// from being vectorised.
fn update<T: Scalar>(
    name: &'static str,
    dst: &Tensor,
    a: &Tensor,
    b: &Tensor,
    set: impl Fn(&mut f32, f32, f32) + Copy + Sync,
) -> Result<()> {
    expect_same(dst, a)?;
    expect_same(dst, b)?;
    let op = op3(name, |dst: &mut [T], a: &[T], b: &[T]| {
        let sources = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
        dst.par_chunks_mut(CHUNK)
            .zip(sources)
            .for_each(|(dst, (a, b))| {
                Arch::new().dispatch(move || {
                    for (dst, (a, b)) in dst.iter_mut().zip(a.iter().zip(b)) {
                        let mut value = dst.as_f32();
                        set(&mut value, a.as_f32(), b.as_f32());
                        *dst = T::nearest(value);
                    }
                });
            });
    });
    dst.inplace_op3(a, b, &op)
}

/// `dst = src`
pub fn copy(dst: &Tensor, src: &Tensor) -> Result<()> {
    expect_same(dst, src)?;
    match dst.device() {
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) if dst.dtype() == src.dtype() => vector::copy(dst, src),
        _ => store(dst, src, false),
    }
}

/// `dst = 0`
pub fn clear(dst: &Tensor) -> Result<()> {
    match dst.device() {
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::clear(dst),
        _ => dst.zero_set(),
    }
}

/// Σ x y
pub fn dot(x: &Tensor, y: &Tensor) -> Result<f64> {
    expect_same(x, y)?;
    match x.device() {
        Device::Cpu if use_cpu_kernels() => {
            let product = |x, y| f64::from(x) * f64::from(y);
            match x.dtype() {
                DType::BF16 => sum_of::<bf16>(x, y, product),
                _ => sum_of::<f32>(x, y, product),
            }
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => {
            let sum = Tensor::zeros(1, DType::F64, x.device())?;
            vector::dot(x, y, &sum)?;
            to_host(&sum)?.squeeze(0)?.to_scalar()
        }
        _ => {
            let products = (x.to_dtype(DType::F64)? * y.to_dtype(DType::F64)?)?;
            to_host(&products.sum_all()?)?.to_scalar()
        }
    }
}

/// Writes Σ x² to `sum`.
pub fn squares(x: &Tensor, sum: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu if use_cpu_kernels() => write_sum(sum, dot(x, x)?),
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::dot(x, x, sum),
        _ => store(sum, &sum_all(&x.to_dtype(DType::F64)?.sqr()?)?, false),
    }
}

/// `y += a x`
pub fn axpy(a: f64, x: &Tensor, y: &Tensor) -> Result<()> {
    match y.device() {
        Device::Cpu if use_cpu_kernels() => {
            let a = a as f32;
            update::<f32>("axpy", y, x, x, move |y, x, _| *y += a * x)
        }
        _ => store(y, &(x * a)?, true),
    }
}

/// `x *= a`
pub fn scale(a: f64, x: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu if use_cpu_kernels() => x.inplace_op1(&op1("scale", |x: &mut [f32]| {
            x.par_chunks_mut(CHUNK)
                .for_each(|x| x.iter_mut().for_each(|x| *x *= a as f32));
        })),
        _ => store(x, &(x * a)?, false),
    }
}

/// `x *= factor`
pub fn scale_by(factor: &Tensor, x: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu if use_cpu_kernels() => scale(read_factor(factor)?.into(), x),
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::scale_by(factor, x),
        _ => store(x, &x.broadcast_mul(factor)?, false),
    }
}

/// `dst = a - b`
pub fn difference(dst: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    match dst.device() {
        Device::Cpu if use_cpu_kernels() => {
            update::<f32>("difference", dst, a, b, |dst, a, b| *dst = a - b)
        }
        _ => store(dst, &(a - b)?, false),
    }
}

/// `dst = x + t d`, clamped to 0..1.
pub fn step(dst: &Tensor, x: &Tensor, t: f64, d: &Tensor) -> Result<()> {
    match dst.device() {
        Device::Cpu if use_cpu_kernels() => {
            let t = t as f32;
            update::<f32>("step", dst, x, d, move |dst, x, d| {
                *dst = (x + t * d).clamp(0.0, 1.0)
            })
        }
        _ => store(dst, &(x + (d * t)?)?.clamp(0f32, 1f32)?, false),
    }
}

/// Zeroes the components of a direction `d` where `x` is at a bound of 0..1 and either `d` or the steepest
/// descent points out of it. A `d` that a positive definite matrix makes of the other components of the
/// gradient remains one of descent (Bertsekas, "Projected Newton methods for optimization problems with
/// simple constraints", 1982).
pub fn project_direction(d: &Tensor, x: &Tensor, gradient: &Tensor) -> Result<()> {
    match d.device() {
        Device::Cpu if use_cpu_kernels() => {
            update::<f32>("project-direction", d, x, gradient, |d, x, g| {
                if (x <= 0.0 && (*d < 0.0 || g > 0.0)) || (x >= 1.0 && (*d > 0.0 || g < 0.0)) {
                    *d = 0.0;
                }
            })
        }
        _ => {
            let low = (x.le(0f64)? * (d.lt(0f64)? + gradient.gt(0f64)?)?)?;
            let high = (x.ge(1f64)? * (d.gt(0f64)? + gradient.lt(0f64)?)?)?;
            let kept = (low + high)?.eq(0u8)?.to_dtype(d.dtype())?;
            store(d, &(d * kept)?, false)
        }
    }
}

/// Updates an exponential moving average: `average = decay average + (1 - decay) x`, or with x² in
/// place of x if `squared`.
pub fn decay(average: &Tensor, decay: f64, x: &Tensor, squared: bool) -> Result<()> {
    match average.device() {
        Device::Cpu if use_cpu_kernels() => {
            let (kept, taken) = (decay as f32, (1.0 - decay) as f32);
            update::<f32>("decay", average, x, x, move |average, x, _| {
                *average = kept * *average + taken * if squared { x * x } else { x };
            })
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::decay(average, decay, x, squared),
        _ => {
            let x = if squared { x.sqr()? } else { x.clone() };
            store(
                average,
                &((average * decay)? + (x * (1.0 - decay))?)?,
                false,
            )
        }
    }
}

/// `x -= rate m / (√(v / correction) + 1e-8)`, clamped to 0..1: a step of Adam (Kingma and Ba 2015,
/// algorithm 1). `rate` includes the bias correction of the first moment, `correction` is that of
/// the second.
pub fn adam_step(x: &Tensor, rate: f64, m: &Tensor, correction: f64, v: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu if use_cpu_kernels() => {
            let (rate, correction) = (rate as f32, correction as f32);
            update::<f32>("adam-step", x, m, v, move |x, m, v| {
                *x = (*x - rate * m / ((v / correction).sqrt() + 1e-8)).clamp(0.0, 1.0);
            })
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::adam_step(x, rate, m, correction, v),
        _ => {
            let step = (m * rate)?.div(&((v / correction)?.sqrt()? + 1e-8)?)?;
            store(x, &(x - step)?.clamp(0f32, 1f32)?, false)
        }
    }
}

/// Writes Σ (f − p)² to `sum`, and writes `factor` (f − p) to `gradient`, or adds it.
pub fn content_loss(
    f: &Tensor,
    p: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    accumulate: bool,
    sum: &Tensor,
) -> Result<()> {
    expect_same(f, p)?;
    match f.device() {
        Device::Cpu if use_cpu_kernels() => {
            let factor = read_factor(factor)?;
            let squares = match f.dtype() {
                DType::BF16 => content_loss_cpu::<bf16>(f, p, factor, gradient, accumulate),
                _ => content_loss_cpu::<f32>(f, p, factor, gradient, accumulate),
            };
            write_sum(sum, squares?)
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::content_loss(f, p, factor, (gradient, accumulate), sum),
        _ => {
            let difference = (to_f32(f)? - to_f32(p)?)?;
            store(gradient, &difference.broadcast_mul(factor)?, accumulate)?;
            squares(&difference, sum)
        }
    }
}

fn content_loss_cpu<T: Scalar>(
    f: &Tensor,
    p: &Tensor,
    factor: f32,
    gradient: &Tensor,
    accumulate: bool,
) -> Result<f64> {
    update::<T>("content", gradient, f, p, move |gradient, f, p| {
        let kept = if accumulate { *gradient } else { 0.0 };
        *gradient = kept + factor * (f - p);
    })?;
    sum_of::<T>(f, p, |f, p| f64::from(f - p) * f64::from(f - p))
}

/// Writes the sum of squared differences between horizontal and vertical neighbours of an image
/// `[h, w, 3]` to `sum`, and adds its gradient times `factor` to `gradient`.
pub fn total_variation(
    image: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    expect_same(image, gradient)?;
    let (h, w, n) = image.dims3()?;
    match image.device() {
        Device::Cpu if use_cpu_kernels() => {
            let (total, factor) = (Cell::new(0.0), read_factor(factor)?);
            let op = op2("total-variation", |gradient: &mut [f32], image: &[f32]| {
                total.set(total_variation_rows([h, w * n, n], image, factor, gradient));
            });
            gradient.inplace_op2(image, &op)?;
            write_sum(sum, total.get())
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::total_variation(image, factor, gradient, sum),
        _ => {
            clear(sum)?;
            for (dim, side) in [(0, h), (1, w)] {
                if side > 1 {
                    let d = (image.narrow(dim, 1, side - 1)? - image.narrow(dim, 0, side - 1)?)?;
                    let back = (d.pad_with_zeros(dim, 1, 0)? - d.pad_with_zeros(dim, 0, 1)?)?;
                    store(gradient, &(back * 2.0)?.broadcast_mul(factor)?, true)?;
                    store(sum, &sum_all(&d.to_dtype(DType::F64)?.sqr()?)?, true)?;
                }
            }
            Ok(())
        }
    }
}

/// Writes Σ c (x − t)² over the values x of an image `[h, w, 3]` to `sum`, and adds its gradient
/// times `factor` to `gradient`. `target` `[h, w, 4]` holds each pixel's three values t and its
/// weight c (Ruder et al. 2016, eq. 7, which divides by the number of values).
pub fn temporal_loss(
    image: &Tensor,
    target: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    expect_same(image, gradient)?;
    let (h, w, n) = image.dims3()?;
    if target.dims() != [h, w, n + 1] || n != 3 {
        bail!("a target for {:?} is not {:?}", image.dims(), target.dims());
    }
    match image.device() {
        Device::Cpu if use_cpu_kernels() => {
            let (total, factor) = (Cell::new(0.0), read_factor(factor)?);
            let op = op3(
                "temporal-loss",
                |gradient: &mut [f32], image: &[f32], target: &[f32]| {
                    let (gradient, image) =
                        (gradient.as_chunks_mut::<3>().0, image.as_chunks::<3>().0);
                    total.set(temporal_loss_pixels(
                        gradient,
                        image,
                        target.as_chunks::<4>().0,
                        factor,
                    ));
                },
            );
            gradient.inplace_op3(image, target, &op)?;
            write_sum(sum, total.get())
        }
        #[cfg(feature = "cudnn")]
        Device::Cuda(_) => vector::temporal_loss(image, target, factor, gradient, sum),
        _ => {
            let weight = target.narrow(2, 3, 1)?;
            let difference = (image - target.narrow(2, 0, 3)?)?;
            let weighted = difference.broadcast_mul(&weight)?;
            let step = (&weighted * 2.0)?.broadcast_mul(factor)?;
            store(gradient, &step, true)?;
            let products = (weighted.to_dtype(DType::F64)? * difference.to_dtype(DType::F64)?)?;
            store(sum, &sum_all(&products)?, false)
        }
    }
}

/// [`temporal_loss`] on the CPU; returns the sum.
fn temporal_loss_pixels(
    gradient: &mut [[f32; 3]],
    image: &[[f32; 3]],
    target: &[[f32; 4]],
    factor: f32,
) -> f64 {
    let part = image.len().div_ceil(PARTS).max(1);
    let mut sums = [0.0; PARTS];
    let sources = image.par_chunks(part).zip(target.par_chunks(part));
    sums.par_iter_mut()
        .zip(gradient.par_chunks_mut(part).zip(sources))
        .for_each(|(sum, (gradient, (image, target)))| {
            for (gradient, (image, target)) in gradient.iter_mut().zip(image.iter().zip(target)) {
                let weight = target[3];
                for channel in 0..3 {
                    let difference = image[channel] - target[channel];
                    gradient[channel] += 2.0 * factor * weight * difference;
                    *sum += f64::from(weight * difference * difference);
                }
            }
        });
    sums.iter().sum()
}

/// [`total_variation`] on the CPU, of `h` rows of `row` values, whose horizontal neighbours are `n`
/// values apart; returns the sum.
fn total_variation_rows(
    [h, row, n]: [usize; 3],
    image: &[f32],
    factor: f32,
    gradient: &mut [f32],
) -> f64 {
    let part = h.div_ceil(PARTS);
    let mut sums = [0.0; PARTS];
    let parts = gradient.par_chunks_mut(part * row).enumerate();
    sums.par_iter_mut()
        .zip(parts)
        .for_each(|(sum, (index, gradient))| {
            for (y, gradient) in (index * part..).zip(gradient.chunks_exact_mut(row)) {
                for (x, gradient) in gradient.iter_mut().enumerate() {
                    let at = y * row + x;
                    let from = |neighbour: usize| image[at] - image[neighbour];
                    let right = if x + n < row { from(at + n) } else { 0.0 };
                    let below = if y + 1 < h { from(at + row) } else { 0.0 };
                    let left = if x >= n { from(at - n) } else { 0.0 };
                    let above = if y > 0 { from(at - row) } else { 0.0 };
                    *sum += f64::from(right * right + below * below);
                    *gradient += 2.0 * factor * ((left + right) + (above + below));
                }
            }
        });
    sums.iter().sum()
}

#[cfg(test)]
mod tests;

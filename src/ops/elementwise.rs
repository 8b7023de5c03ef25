// SPDX-License-Identifier: MPL-2.0

//! Sums over tensors and the vector work of the losses and the optimisers.
//!
//! Values are `f32`, and features `bf16` too; sums are taken in `f64`.

use super::{Value, cpu_side, op1, op2, op3, store, with_values};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use pulp::Arch;
use rayon::prelude::*;
use std::cell::Cell;

/// Parts that a sum is made of, whatever the number of threads.
const PARTS: usize = 64;

/// Values of one task of an operation without a sum.
const CHUNK: usize = 1 << 14;

/// Σ `term(x, y)`, in `f64`.
fn sum<T: Value>(x: &[T], y: &[T], term: impl Fn(f32, f32) -> f64 + Copy + Sync) -> f64 {
    let part = x.len().div_ceil(PARTS).max(1);
    let mut sums = [0.0; PARTS];
    let parts = x.par_chunks(part).zip(y.par_chunks(part));
    sums.par_iter_mut().zip(parts).for_each(|(sum, (x, y))| {
        *sum = Arch::new().dispatch(|| {
            // Sums side by side, for the vector unit.
            let mut lanes = [0.0; 16];
            let ((x, last_x), (y, last_y)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
            for (x, y) in x.iter().zip(y) {
                for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                    *lane += term(x.single(), y.single());
                }
            }
            for (lane, (x, y)) in lanes.iter_mut().zip(last_x.iter().zip(last_y)) {
                *lane += term(x.single(), y.single());
            }
            lanes.iter().sum()
        });
    });
    sums.iter().sum()
}

fn sum_of<T: Value>(
    x: &Tensor,
    y: &Tensor,
    term: impl Fn(f32, f32) -> f64 + Copy + Sync,
) -> Result<f64> {
    with_values(x, |x: &[T]| with_values(y, |y: &[T]| sum(x, y, term)))?
}

fn sum_all(tensor: &Tensor) -> Result<f64> {
    tensor.to_dtype(DType::F64)?.sum_all()?.to_scalar()
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

/// Sets each value of `dst` from itself, `a`'s and `b`'s. What `set` captures it should own: what
/// it refers to would be read again for each value, which keeps the loop from the vector unit.
fn update(
    name: &'static str,
    dst: &Tensor,
    a: &Tensor,
    b: &Tensor,
    set: impl Fn(&mut f32, f32, f32) + Copy + Sync,
) -> Result<()> {
    update_as::<f32>(name, dst, a, b, set)
}

fn update_as<T: Value>(
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
                        let mut value = dst.single();
                        set(&mut value, a.single(), b.single());
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
    store(dst, src, false)
}

/// Σ x y
pub fn dot(x: &Tensor, y: &Tensor) -> Result<f64> {
    expect_same(x, y)?;
    match x.device() {
        Device::Cpu if cpu_side() => {
            let product = |x, y| f64::from(x) * f64::from(y);
            match x.dtype() {
                DType::BF16 => sum_of::<bf16>(x, y, product),
                _ => sum_of::<f32>(x, y, product),
            }
        }
        _ => sum_all(&(x.to_dtype(DType::F64)? * y.to_dtype(DType::F64)?)?),
    }
}

/// `y += a x`
pub fn axpy(a: f64, x: &Tensor, y: &Tensor) -> Result<()> {
    match y.device() {
        Device::Cpu if cpu_side() => {
            let a = a as f32;
            update("axpy", y, x, x, move |y, x, _| *y += a * x)
        }
        _ => store(y, &(x * a)?, true),
    }
}

/// `x *= a`
pub fn scale(a: f64, x: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu if cpu_side() => x.inplace_op1(&op1("scale", |x: &mut [f32]| {
            x.par_chunks_mut(CHUNK)
                .for_each(|x| x.iter_mut().for_each(|x| *x *= a as f32));
        })),
        _ => store(x, &(x * a)?, false),
    }
}

/// `dst = a - b`
pub fn difference(dst: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    match dst.device() {
        Device::Cpu if cpu_side() => update("difference", dst, a, b, |dst, a, b| *dst = a - b),
        _ => store(dst, &(a - b)?, false),
    }
}

/// `dst = x + t d`, held within 0..1.
pub fn step(dst: &Tensor, x: &Tensor, t: f64, d: &Tensor) -> Result<()> {
    match dst.device() {
        Device::Cpu if cpu_side() => {
            let t = t as f32;
            update("step", dst, x, d, move |dst, x, d| {
                *dst = (x + t * d).clamp(0.0, 1.0)
            })
        }
        _ => store(dst, &(x + (d * t)?)?.clamp(0f32, 1f32)?, false),
    }
}

/// Clears the values of a direction `d` that would lead out of 0..1 from `x`.
pub fn clear_outward(d: &Tensor, x: &Tensor) -> Result<()> {
    match d.device() {
        Device::Cpu if cpu_side() => update("clear-outward", d, x, x, |d, x, _| {
            if (x <= 0.0 && *d < 0.0) || (x >= 1.0 && *d > 0.0) {
                *d = 0.0;
            }
        }),
        _ => {
            let low = (x.le(0f64)? * d.lt(0f64)?)?;
            let high = (x.ge(1f64)? * d.gt(0f64)?)?;
            let kept = (low + high)?.eq(0u8)?.to_dtype(d.dtype())?;
            store(d, &(d * kept)?, false)
        }
    }
}

/// `average = decay average + (1 - decay) x`, or of x² where `squared`.
pub fn decay(average: &Tensor, decay: f64, x: &Tensor, squared: bool) -> Result<()> {
    match average.device() {
        Device::Cpu if cpu_side() => {
            let (kept, taken) = (decay as f32, (1.0 - decay) as f32);
            update("decay", average, x, x, move |average, x, _| {
                *average = kept * *average + taken * if squared { x * x } else { x };
            })
        }
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

/// `x -= rate m / (√(v / correction) + 1e-8)`, held within 0..1: a step of Adam (Kingma and Ba
/// 2015, algorithm 1), the first moment's correction being part of `rate`.
pub fn adam_step(x: &Tensor, rate: f64, m: &Tensor, correction: f64, v: &Tensor) -> Result<()> {
    match x.device() {
        Device::Cpu if cpu_side() => {
            let (rate, correction) = (rate as f32, correction as f32);
            update("adam-step", x, m, v, move |x, m, v| {
                *x = (*x - rate * m / ((v / correction).sqrt() + 1e-8)).clamp(0.0, 1.0);
            })
        }
        _ => {
            let step = (m * rate)?.div(&((v / correction)?.sqrt()? + 1e-8)?)?;
            store(x, &(x - step)?.clamp(0f32, 1f32)?, false)
        }
    }
}

/// Σ (f − p)², with `scale` (f − p) into `gradient`, or added to it.
pub fn content(
    f: &Tensor,
    p: &Tensor,
    scale: f64,
    gradient: &Tensor,
    accumulate: bool,
) -> Result<f64> {
    expect_same(f, p)?;
    match f.device() {
        Device::Cpu if cpu_side() => match f.dtype() {
            DType::BF16 => content_cpu::<bf16>(f, p, scale, gradient, accumulate),
            _ => content_cpu::<f32>(f, p, scale, gradient, accumulate),
        },
        _ => {
            let difference = (f - p)?;
            store(gradient, &(&difference * scale)?, accumulate)?;
            sum_all(&difference.to_dtype(DType::F64)?.sqr()?)
        }
    }
}

fn content_cpu<T: Value>(
    f: &Tensor,
    p: &Tensor,
    scale: f64,
    gradient: &Tensor,
    accumulate: bool,
) -> Result<f64> {
    let scale = scale as f32;
    update_as::<T>("content", gradient, f, p, move |gradient, f, p| {
        let kept = if accumulate { *gradient } else { 0.0 };
        *gradient = kept + scale * (f - p);
    })?;
    sum_of::<T>(f, p, |f, p| f64::from(f - p) * f64::from(f - p))
}

/// The sum of the squared differences between horizontal and vertical neighbours of an image
/// `[h, w, 3]`; its gradient times `scale` is added to `gradient`.
pub fn total_variation(image: &Tensor, scale: f64, gradient: &Tensor) -> Result<f64> {
    expect_same(image, gradient)?;
    let (h, w, n) = image.dims3()?;
    match image.device() {
        Device::Cpu if cpu_side() => {
            let total = Cell::new(0.0);
            let op = op2("total-variation", |gradient: &mut [f32], image: &[f32]| {
                total.set(total_variation_rows(
                    [h, w * n, n],
                    image,
                    scale as f32,
                    gradient,
                ));
            });
            gradient.inplace_op2(image, &op)?;
            Ok(total.get())
        }
        _ => {
            let mut total = 0.0;
            for (dim, side) in [(0, h), (1, w)] {
                if side > 1 {
                    let d = (image.narrow(dim, 1, side - 1)? - image.narrow(dim, 0, side - 1)?)?;
                    let back = (d.pad_with_zeros(dim, 1, 0)? - d.pad_with_zeros(dim, 0, 1)?)?;
                    store(gradient, &(back * (2.0 * scale))?, true)?;
                    total += sum_all(&d.to_dtype(DType::F64)?.sqr()?)?;
                }
            }
            Ok(total)
        }
    }
}

/// Σ c (x − t)² over the values x of an image `[h, w, 3]`, for `target` `[h, w, 4]`: the three values
/// t of a pixel and its weight c. Its gradient times `scale` is added to `gradient`.
pub fn held(image: &Tensor, target: &Tensor, scale: f64, gradient: &Tensor) -> Result<f64> {
    expect_same(image, gradient)?;
    let (h, w, n) = image.dims3()?;
    if target.dims() != [h, w, n + 1] || n != 3 {
        bail!("a target for {:?} is not {:?}", image.dims(), target.dims());
    }
    match image.device() {
        Device::Cpu if cpu_side() => {
            let total = Cell::new(0.0);
            let op = op3(
                "held",
                |gradient: &mut [f32], image: &[f32], target: &[f32]| {
                    let (gradient, image) =
                        (gradient.as_chunks_mut::<3>().0, image.as_chunks::<3>().0);
                    total.set(held_pixels(
                        gradient,
                        image,
                        target.as_chunks::<4>().0,
                        scale as f32,
                    ));
                },
            );
            gradient.inplace_op3(image, target, &op)?;
            Ok(total.get())
        }
        _ => {
            let weight = target.narrow(2, 3, 1)?;
            let difference = (image - target.narrow(2, 0, 3)?)?;
            let weighted = difference.broadcast_mul(&weight)?;
            store(gradient, &(&weighted * (2.0 * scale))?, true)?;
            sum_all(&(weighted.to_dtype(DType::F64)? * difference.to_dtype(DType::F64)?)?)
        }
    }
}

/// The CPU side of `held`.
fn held_pixels(
    gradient: &mut [[f32; 3]],
    image: &[[f32; 3]],
    target: &[[f32; 4]],
    scale: f32,
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
                    gradient[channel] += 2.0 * scale * weight * difference;
                    *sum += f64::from(weight * difference * difference);
                }
            }
        });
    sums.iter().sum()
}

/// The CPU side of `total_variation` for `h` rows of `row` values, whose horizontal neighbours
/// lie `n` apart.
fn total_variation_rows(
    [h, row, n]: [usize; 3],
    image: &[f32],
    scale: f32,
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
                    *gradient += 2.0 * scale * ((left + right) + (above + below));
                }
            }
        });
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Array, relative_error};
    use super::super::with_both_sides;
    use super::*;

    const SIZES: [(usize, usize); 5] = [(1, 1), (1, 6), (5, 1), (7, 9), (130, 70)];

    fn close(case: &str, value: f64, expected: f64) {
        let error = (value - expected).abs();
        assert!(
            error <= 1e-6 * expected.abs(),
            "{case}: {value}, not {expected}"
        );
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
        with_both_sides(|side| {
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
                assert!(error < 1e-6, "{name}, {side}, {h}x{w}: {error}");
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
        check(
            "clear-outward",
            |d, x, _| clear_outward(d, x),
            |d, x, _| if x <= 0.0 && d < 0.0 { 0.0 } else { d },
        );
    }

    #[test]
    fn directions_are_cleared_at_the_upper_bound_too() {
        with_both_sides(|side| {
            let tensor = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
            let (d, x) = (tensor([1.0, -1.0, 1.0]), tensor([1.0, 1.0, 0.9]));
            clear_outward(&d, &x).unwrap();
            assert_eq!(d.to_vec1::<f32>().unwrap(), [0.0, -1.0, 1.0], "{side}");
        });
    }

    #[test]
    fn sums_and_the_content_loss_are_their_formulas() {
        with_both_sides(|side| {
            for (h, w) in SIZES {
                let (f, p, before) = (random(h, w, 1), random(h, w, 2), random(h, w, 3));
                close(side, dot(&f.tensor(), &p.tensor()).unwrap(), f.dot(&p));
                let differences: Vec<f64> =
                    f.values.iter().zip(&p.values).map(|(f, p)| f - p).collect();
                for accumulate in [false, true] {
                    let gradient = before.tensor();
                    let loss =
                        content(&f.tensor(), &p.tensor(), 0.4, &gradient, accumulate).unwrap();
                    close(side, loss, differences.iter().map(|d| d * d).sum());
                    let kept = |b: &f64| if accumulate { *b } else { 0.0 };
                    let expected: Vec<f64> = differences
                        .iter()
                        .zip(&before.values)
                        .map(|(d, b)| 0.4 * d + kept(b))
                        .collect();
                    assert!(
                        relative_error(&gradient, &expected) < 1e-6,
                        "{side}, {h}x{w}"
                    );
                }
            }
        });
    }

    /// Of features in bf16, sums are those of f32, and the gradient is that of f32, rounded.
    #[test]
    fn bf16_is_f32_rounded() {
        let tensor = |seed| random(13, 11, seed).tensor().to_dtype(DType::BF16).unwrap();
        let [f, p, before] = [1, 2, 3].map(tensor);
        for accumulate in [false, true] {
            let run = |dtype| {
                let [f, p, before] = [&f, &p, &before].map(|it| it.to_dtype(dtype).unwrap());
                let gradient = before.copy().unwrap();
                let loss = content(&f, &p, 0.4, &gradient, accumulate).unwrap();
                let rounded = gradient.to_dtype(DType::BF16).unwrap();
                let gradient = rounded.flatten_all().unwrap().to_vec1::<bf16>().unwrap();
                (loss, dot(&f, &p).unwrap(), gradient)
            };
            assert_eq!(run(DType::BF16), run(DType::F32));
        }
    }

    #[test]
    fn what_pixels_are_held_to_is_its_formula() {
        with_both_sides(|side| {
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
                let value = held(&image.tensor(), &target.tensor(), 0.3, &gradient).unwrap();
                assert!(
                    (value - total).abs() < 1e-5 * (h * w) as f64,
                    "{side}, {h}x{w}"
                );
                let error = relative_error(&gradient, &expected);
                assert!(error < 1e-6, "{side}, {h}x{w}: {error}");
            }
            let (image, target) = (random(4, 5, 1).tensor(), random(4, 5, 2).tensor());
            assert!(held(&image, &target, 1.0, &image.copy().unwrap()).is_err());
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
        with_both_sides(|side| {
            for (h, w) in [(1, 1), (1, 6), (5, 1), (7, 9)] {
                let (image, before) = (random(h, w, 1), random(h, w, 2));
                let gradient = before.tensor();
                close(
                    side,
                    total_variation(&image.tensor(), 0.3, &gradient).unwrap(),
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
                    "{side}, {h}x{w}"
                );
            }
        });
    }
}

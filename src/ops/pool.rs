// SPDX-License-Identifier: MPL-2.0

//! 2x2 pooling with stride 2 and its gradient. An odd last row or column is ignored, as in VGG, and
//! gets a zero gradient.

#[cfg(feature = "cudnn")]
use super::cuda::pool as cuda;
use super::{Scalar, op2, op3, store, to_f32, use_cpu_kernels};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use pulp::Arch;
use rayon::prelude::*;

/// How the four values of a window are pooled to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean: smoother gradients, as Gatys et al. recommend.
    #[default]
    Avg,
    /// The largest, as VGG was trained with on ImageNet.
    Max,
}

impl Pooling {
    /// Pools `input` `[h, w, channels]` to `output` `[h / 2, w / 2, channels]`.
    pub fn forward(self, input: &Tensor, output: &Tensor) -> Result<()> {
        let (_, w, n) = pooled_dims(input, output)?;
        match input.device() {
            Device::Cpu if use_cpu_kernels() => match input.dtype() {
                DType::BF16 => self.forward_cpu::<bf16>([w, n], input, output),
                _ => self.forward_cpu::<f32>([w, n], input, output),
            },
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => cuda::forward(self, input, output),
            _ => {
                let four = split_windows(&to_f32(input)?)?;
                let pooled = match self {
                    Self::Avg => (((&four[0] + &four[1])? + (&four[2] + &four[3])?)? * 0.25)?,
                    Self::Max => composed_max(&four)?,
                };
                store(output, &pooled, false)
            }
        }
    }

    /// Writes the gradient with respect to `input` to `gradient` of the same shape, from
    /// `upstream`, that with respect to the output. Of several equal maxima the first gets the
    /// gradient. `input` is the output of a ReLU, so that the gradient is made 0 where `input` is;
    /// the CPU's kernels leave that to the convolution before.
    pub fn backward(self, upstream: &Tensor, input: &Tensor, gradient: &Tensor) -> Result<()> {
        let (h, w, n) = pooled_dims(input, upstream)?;
        if gradient.dims() != input.dims() {
            bail!(
                "a gradient of shape {:?} is needed, not {:?}",
                input.dims(),
                gradient.dims()
            );
        }
        match input.device() {
            Device::Cpu if use_cpu_kernels() => match input.dtype() {
                DType::BF16 => self.backward_cpu::<bf16>([w, n], upstream, input, gradient),
                _ => self.backward_cpu::<f32>([w, n], upstream, input, gradient),
            },
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => cuda::backward(self, upstream, input, gradient),
            _ => {
                let shares: [Tensor; 4] = match self {
                    Self::Avg => {
                        let quarter = (to_f32(upstream)? * 0.25)?;
                        [quarter.clone(), quarter.clone(), quarter.clone(), quarter]
                    }
                    Self::Max => composed_route_to_first_max(
                        &split_windows(&to_f32(input)?)?,
                        &to_f32(upstream)?,
                    )?,
                };
                let mask = to_f32(&input.gt(0f64)?)?;
                store(gradient, &(join_windows(&shares, h, w)? * mask)?, false)
            }
        }
    }

    fn forward_cpu<T: Scalar>(
        self,
        [w, n]: [usize; 2],
        input: &Tensor,
        output: &Tensor,
    ) -> Result<()> {
        let op = op2("pool2x2", |output: &mut [T], input: &[T]| {
            output
                .par_chunks_exact_mut(w / 2 * n)
                .zip(input.par_chunks_exact(2 * w * n))
                .for_each(|(output, rows)| {
                    Arch::new().dispatch(|| self.pool_row([w, n], rows, output));
                });
        });
        output.inplace_op2(input, &op)
    }

    /// Pools a pair of rows `[2, w, n]` to one row `[w / 2, n]`.
    #[inline(always)]
    fn pool_row<T: Scalar>(self, [w, n]: [usize; 2], rows: &[T], output: &mut [T]) {
        for (x, output) in output.chunks_exact_mut(n).enumerate() {
            let corners = corners(rows, x, w, n);
            for (i, value) in output.iter_mut().enumerate() {
                let [a, b, c, d] = corners.map(|corner| corner[i].as_f32());
                *value = T::nearest(match self {
                    Self::Avg => 0.25 * ((a + b) + (c + d)),
                    Self::Max => larger(larger(a, b), larger(c, d)),
                });
            }
        }
    }

    fn backward_cpu<T: Scalar>(
        self,
        [w, n]: [usize; 2],
        upstream: &Tensor,
        input: &Tensor,
        gradient: &Tensor,
    ) -> Result<()> {
        let op = op3(
            "pool2x2-backward",
            |gradient: &mut [T], upstream: &[T], input: &[T]| {
                gradient
                    .par_chunks_mut(2 * w * n)
                    .zip(input.par_chunks(2 * w * n))
                    .enumerate()
                    .for_each(|(y, (gradient, rows))| {
                        if gradient.len() == 2 * w * n {
                            let upstream = &upstream[y * (w / 2) * n..][..w / 2 * n];
                            Arch::new()
                                .dispatch(|| self.unpool_row([w, n], upstream, rows, gradient));
                        } else {
                            gradient.fill(T::zero());
                        }
                    });
            },
        );
        gradient.inplace_op3(upstream, input, &op)
    }

    /// The adjoint of [`Self::pool_row`]: from the gradient with respect to a row `[w / 2, n]`,
    /// that with respect to the pair of rows `[2, w, n]`.
    #[inline(always)]
    fn unpool_row<T: Scalar>(
        self,
        [w, n]: [usize; 2],
        upstream: &[T],
        rows: &[T],
        gradient: &mut [T],
    ) {
        let (top, bottom) = gradient.split_at_mut(w * n);
        for (x, upstream) in upstream.chunks_exact(n).enumerate() {
            let (top, bottom) = (&mut top[2 * x * n..], &mut bottom[2 * x * n..]);
            match self {
                Self::Avg => {
                    for row in [top, bottom] {
                        let (left, right) = row[..2 * n].split_at_mut(n);
                        for ((left, right), upstream) in left.iter_mut().zip(right).zip(upstream) {
                            *left = T::nearest(0.25 * upstream.as_f32());
                            *right = *left;
                        }
                    }
                }
                Self::Max => {
                    let corners = corners(rows, x, w, n);
                    let (left, right) = top[..2 * n].split_at_mut(n);
                    let (lower_left, lower_right) = bottom[..2 * n].split_at_mut(n);
                    let mut shares = [left, right, lower_left, lower_right];
                    for first in (0..n).step_by(CHANNEL_CHUNK) {
                        let range = first..(first + CHANNEL_CHUNK).min(n);
                        route_to_first_max(
                            corners.map(|corner| &corner[range.clone()]),
                            &upstream[range.clone()],
                            shares.each_mut().map(|shares| &mut shares[range.clone()]),
                        );
                    }
                }
            }
        }
        for row in [top, bottom] {
            row[w / 2 * 2 * n..].fill(T::zero());
        }
    }
}

/// The input's dimensions, once those of the output are checked against them.
fn pooled_dims(input: &Tensor, output: &Tensor) -> Result<(usize, usize, usize)> {
    let (h, w, n) = input.dims3()?;
    if h < 2 || w < 2 || output.dims() != [h / 2, w / 2, n] {
        bail!("{:?} cannot be pooled to {:?}", input.dims(), output.dims());
    }
    Ok((h, w, n))
}

/// As an expression that vectorises.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The most channels that [`route_to_first_max`] processes at a time.
const CHANNEL_CHUNK: usize = 128;

/// For each of up to [`CHANNEL_CHUNK`] channels, writes `upstream` to the share of the first of the four
/// corners that holds the maximum, zeros to the others'. Goes through the channels once for each
/// corner: a loop over all slices at once would not vectorise.
#[inline(always)]
fn route_to_first_max<T: Scalar>(corners: [&[T]; 4], upstream: &[T], shares: [&mut [T]; 4]) {
    let n = upstream.len();
    let (mut largest, mut remaining) = ([0.0; CHANNEL_CHUNK], [T::zero(); CHANNEL_CHUNK]);
    let (largest, remaining) = (&mut largest[..n], &mut remaining[..n]);
    remaining.copy_from_slice(upstream);
    for (i, largest) in largest.iter_mut().enumerate() {
        let [a, b, c, d] = corners.map(|corner| corner[i].as_f32());
        *largest = larger(larger(a, b), larger(c, d));
    }
    for (corner, shares) in corners.into_iter().zip(shares) {
        let channels = corner.iter().zip(&*largest).zip(&mut *remaining);
        for (((value, largest), remaining), share) in channels.zip(shares) {
            let first = value.as_f32() == *largest;
            *share = if first { *remaining } else { T::zero() };
            *remaining = if first { T::zero() } else { *remaining };
        }
    }
}

/// The four pixels `[n]` of the window of output pixel `x`, in a pair of rows `[2, w, n]`.
#[inline(always)]
fn corners<T>(rows: &[T], x: usize, w: usize, n: usize) -> [&[T]; 4] {
    [0, n, w * n, (w + 1) * n].map(|corner| &rows[2 * x * n + corner..][..n])
}

/// The four corners of all windows, each `[h / 2, w / 2, channels]`.
fn split_windows(input: &Tensor) -> Result<[Tensor; 4]> {
    let (h, w, n) = input.dims3()?;
    let even = input.narrow(0, 0, h / 2 * 2)?.narrow(1, 0, w / 2 * 2)?;
    let split = even.contiguous()?.reshape((h / 2, 2, w / 2, 2, n))?;
    let corner = |y, x| {
        split
            .narrow(1, y, 1)?
            .narrow(3, x, 1)?
            .reshape((h / 2, w / 2, n))
    };
    Ok([corner(0, 0)?, corner(0, 1)?, corner(1, 0)?, corner(1, 1)?])
}

/// The inverse of [`split_windows`] for an image `[h, w, channels]`: zeros in an odd last row or
/// column.
fn join_windows(corners: &[Tensor; 4], h: usize, w: usize) -> Result<Tensor> {
    let rows = |left: &Tensor, right: &Tensor| -> Result<Tensor> {
        let (h, w, n) = left.dims3()?;
        Tensor::stack(&[left, right], 2)?.reshape((h, 2 * w, n))
    };
    let top = rows(&corners[0], &corners[1])?;
    let bottom = rows(&corners[2], &corners[3])?;
    let (half, even, n) = top.dims3()?;
    let even_rows = Tensor::stack(&[top, bottom], 1)?.reshape((2 * half, even, n))?;
    even_rows
        .pad_with_zeros(0, 0, h % 2)?
        .pad_with_zeros(1, 0, w % 2)
}

fn composed_max(corners: &[Tensor; 4]) -> Result<Tensor> {
    let right = corners[2].maximum(&corners[3])?;
    corners[0].maximum(&corners[1])?.maximum(&right)
}

/// [`route_to_first_max`] composed of candle's operations.
fn composed_route_to_first_max(corners: &[Tensor; 4], upstream: &Tensor) -> Result<[Tensor; 4]> {
    let largest = composed_max(corners)?;
    let mut remaining = upstream.clone();
    let mut shares = Vec::with_capacity(4);
    for corner in corners {
        let share = (&remaining * corner.eq(&largest)?.to_dtype(remaining.dtype())?)?;
        remaining = (remaining - &share)?;
        shares.push(share);
    }
    shares
        .try_into()
        .map_err(|_| candle_core::Error::Msg("a window has four corners".into()))
}

#[cfg(test)]
mod tests {
    use super::super::for_each_backend;
    use super::super::reference::{Array, pool, pool_backward, relative_error};
    use super::*;

    const SIZES: [(usize, usize); 6] = [(2, 2), (3, 2), (2, 3), (7, 9), (8, 16), (33, 20)];

    #[test]
    fn both_poolings_and_their_gradients_match_the_reference() {
        for_each_backend(|backend| {
            for (h, w) in SIZES {
                for n in [1, 3, 20, 150] {
                    for pooling in [Pooling::Avg, Pooling::Max] {
                        let case = format!("{backend}, {h}x{w}x{n}, {pooling:?}");
                        check(&case, pooling, Array::random(h, w, n, 1));
                    }
                }
            }
        });
    }

    fn check(case: &str, pooling: Pooling, input: Array) {
        let (h, w, n) = (input.h, input.w, input.n);
        let output = Array::random(h / 2, w / 2, n, 2).tensor();
        pooling.forward(&input.tensor(), &output).unwrap();
        let error = relative_error(&output, &pool(pooling, &input).values);
        assert!(error < 1e-6, "{case}: {error}");

        let upstream = Array::random(h / 2, w / 2, n, 3);
        // Where the input is not above 0, the gradient may be masked or not.
        let mask: Vec<f64> = input.values.iter().map(|x| f64::from(*x > 0.0)).collect();
        let expected = pool_backward(pooling, &upstream, &input).values;
        let expected: Vec<f64> = expected.iter().zip(&mask).map(|(g, m)| g * m).collect();
        // What is there before is overwritten.
        let gradient = Array::random(h, w, n, 4).tensor();
        pooling
            .backward(&upstream.tensor(), &input.tensor(), &gradient)
            .unwrap();
        let mask = Array {
            values: mask,
            ..input
        }
        .tensor();
        let error = relative_error(&(gradient * mask).unwrap(), &expected);
        assert!(error < 1e-6, "{case}, gradient: {error}");
    }

    /// bf16 features give the f32 results, rounded.
    #[test]
    fn bf16_is_f32_rounded() {
        for pooling in [Pooling::Avg, Pooling::Max] {
            let tensor = |h, w, seed| {
                let array = Array::random(h, w, 37, seed).tensor();
                array.to_dtype(DType::BF16).unwrap()
            };
            let (input, upstream) = (tensor(9, 7, 1), tensor(4, 3, 2));
            let run = |dtype| {
                let [input, upstream] =
                    [&input, &upstream].map(|tensor| tensor.to_dtype(dtype).unwrap());
                let (output, gradient) = (upstream.ones_like(), input.ones_like());
                let (output, gradient) = (output.unwrap(), gradient.unwrap());
                pooling.forward(&input, &output).unwrap();
                pooling.backward(&upstream, &input, &gradient).unwrap();
                [output, gradient].map(|tensor| {
                    let rounded = tensor.to_dtype(DType::BF16).unwrap();
                    rounded.flatten_all().unwrap().to_vec1::<bf16>().unwrap()
                })
            };
            assert_eq!(run(DType::BF16), run(DType::F32), "{pooling:?}");
        }
    }

    /// ⟨u, pool(x)⟩ = ⟨poolᵀ(u), x⟩: with the positions of the maxima fixed, pooling is linear.
    #[test]
    fn reference_backward_is_the_adjoint() {
        for pooling in [Pooling::Avg, Pooling::Max] {
            let input = Array::random(7, 9, 3, 1);
            let upstream = Array::random(3, 4, 3, 2);
            let forward = upstream.dot(&pool(pooling, &input));
            let backward = pool_backward(pooling, &upstream, &input).dot(&input);
            assert!(
                (forward - backward).abs() < 1e-12,
                "{pooling:?}: {forward} {backward}"
            );
        }
    }

    #[test]
    fn of_equal_largest_values_the_first_takes_the_gradient() {
        for_each_backend(|backend| {
            let input = Tensor::ones((2, 2, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
            let upstream =
                (Tensor::ones((1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap() * 3.0)
                    .unwrap();
            let gradient = input.zeros_like().unwrap();
            Pooling::Max.backward(&upstream, &input, &gradient).unwrap();
            let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values, [3.0, 0.0, 0.0, 0.0], "{backend}");
        });
    }

    #[test]
    fn a_side_of_one_pixel_cannot_be_pooled() {
        let input = Array::zeros(1, 4, 2).tensor();
        let output = Array::zeros(1, 2, 2).tensor();
        assert!(Pooling::Avg.forward(&input, &output).is_err());
    }
}

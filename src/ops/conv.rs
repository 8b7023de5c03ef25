// SPDX-License-Identifier: MPL-2.0

//! 3x3 convolution, stride 1, padding 1, with bias and ReLU in one, and its gradient with respect
//! to the input.
//!
//! The kernels are frozen, so the gradient with respect to them is never computed. The gradient
//! with respect to the input is the same convolution with the kernel rotated by 180 degrees and
//! its two channel axes swapped.

use super::amx::{self, Amx};
#[cfg(feature = "cudnn")]
use super::cuda::conv as cuda;
use super::winograd::{self, Sink, Source};
use super::{Format, cpu_side, op2, op3, patches, singles, store};
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Conv2d, Conv2dConfig, Module};
use half::bf16;
use pulp::Simd;

/// What lies beyond the edge of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// Zeros, as VGG was trained with.
    Zeros,
    /// The nearest pixel of the input.
    Replicate,
}

/// `relu(input * kernel + bias)` over `[height, width, in_channels]`, giving
/// `[height, width, out_channels]`.
pub struct Conv3x3 {
    in_channels: usize,
    out_channels: usize,
    border: Border,
    side: Side,
}

enum Side {
    /// On the CPU, for many channels and a border of zeros.
    Winograd {
        forward: winograd::Kernel,
        adjoint: winograd::Kernel,
        bias: Vec<f32>,
    },
    /// The same for features in bf16, with AMX.
    Bf16(amx::Conv),
    /// From an image to features in bf16, between copies of its edge.
    Bf16Image(amx::ImageConv),
    /// On the CPU, for the others: conv1_1.
    Patches {
        kernel: patches::Kernel,
        bias: Vec<f32>,
    },
    /// On a GPU, between features and from an image.
    #[cfg(feature = "cudnn")]
    Gpu(cuda::Conv),
    #[cfg(feature = "cudnn")]
    GpuImage(cuda::ImageConv),
    Candle {
        forward: Conv2d,
        adjoint: Conv2d,
        format: Format,
    },
}

impl Conv3x3 {
    /// An operation in `f32` with a kernel `[out_channels, in_channels, 3, 3]` and a bias
    /// `[out_channels]`, both `f32`, for the device that they are on.
    pub fn new(kernel: &Tensor, bias: &Tensor, border: Border) -> Result<Self> {
        Self::with_format(kernel, bias, border, Format::F32)
    }

    /// The same for features in `format`, on a GPU.
    pub fn with_format(
        kernel: &Tensor,
        bias: &Tensor,
        border: Border,
        format: Format,
    ) -> Result<Self> {
        Self::with(kernel, bias, border, || match kernel.device() {
            Device::Cpu if cpu_side() => match format {
                Format::F32 => Side::cpu(kernel, bias, border, None),
                _ => bail!("{format:?} is for a GPU"),
            },
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => Side::gpu(kernel, bias, border, format),
            _ => Side::composed(kernel, bias, border, format),
        })
    }

    /// The same for features in bf16 on the CPU: from an image, which is `f32`, between copies of
    /// its edge, or between features, whose channels are multiples of [`amx::CHANNELS`], between
    /// zeros.
    pub fn bf16(kernel: &Tensor, bias: &Tensor, border: Border, amx: Amx) -> Result<Self> {
        Self::with(kernel, bias, border, || {
            Side::cpu(kernel, bias, border, Some(amx))
        })
    }

    fn with(
        kernel: &Tensor,
        bias: &Tensor,
        border: Border,
        side: impl FnOnce() -> Result<Side>,
    ) -> Result<Self> {
        let (out_channels, in_channels, kh, kw) = kernel.dims4()?;
        if (kh, kw) != (3, 3) || bias.dims() != [out_channels] {
            bail!(
                "a 3x3 kernel with a bias is needed, not {:?} with {:?}",
                kernel.dims(),
                bias.dims()
            );
        }
        Ok(Self {
            in_channels,
            out_channels,
            border,
            side: side()?,
        })
    }

    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// What the kernels and the bias take up in memory, in the form that they are used in.
    pub fn packed_bytes(&self) -> usize {
        match &self.side {
            Side::Winograd {
                forward,
                adjoint,
                bias,
            } => forward.bytes() + adjoint.bytes() + size_of_val(bias.as_slice()),
            Side::Bf16(conv) => conv.bytes(),
            Side::Bf16Image(conv) => conv.bytes(),
            #[cfg(feature = "cudnn")]
            Side::Gpu(conv) => conv.bytes(),
            #[cfg(feature = "cudnn")]
            Side::GpuImage(conv) => conv.bytes(),
            Side::Patches { kernel, bias } => kernel.bytes() + size_of_val(bias.as_slice()),
            Side::Candle {
                forward, adjoint, ..
            } => [forward, adjoint]
                .map(|conv| {
                    let bias = conv.bias().map_or(0, Tensor::elem_count);
                    (conv.weight().elem_count() + bias) * size_of::<f32>()
                })
                .iter()
                .sum(),
        }
    }

    /// `output = relu(input * kernel + bias)`.
    pub fn forward(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        let (h, w, _) = input.dims3()?;
        expect(input, [h, w, self.in_channels])?;
        expect(output, [h, w, self.out_channels])?;
        match &self.side {
            Side::Winograd { forward, bias, .. } => {
                let op = op2("conv3x3", |output: &mut [f32], input: &[f32]| {
                    let input = Pixels {
                        values: input,
                        channels: self.in_channels,
                    };
                    forward.correlate([h, w], &input, output, &Activation { bias });
                });
                output.inplace_op2(input, &op)
            }
            Side::Bf16(conv) => {
                let op = op2("conv3x3", |output: &mut [bf16], input: &[bf16]| {
                    conv.forward([h, w], input, output);
                });
                output.inplace_op2(input, &op)
            }
            Side::Bf16Image(conv) => {
                let op = op2("conv3x3", |output: &mut [bf16], input: &[f32]| {
                    conv.forward([h, w], input, output);
                });
                output.inplace_op2(input, &op)
            }
            Side::Patches { kernel, bias } => {
                let op = op2("conv3x3", |output: &mut [f32], input: &[f32]| {
                    kernel.forward([h, w], input, output, |pixel, sums| {
                        for ((value, sum), bias) in pixel.iter_mut().zip(sums).zip(bias) {
                            *value = (sum + bias).max(0.0);
                        }
                    });
                });
                output.inplace_op2(input, &op)
            }
            #[cfg(feature = "cudnn")]
            Side::Gpu(conv) => conv.forward([h, w], input, output),
            #[cfg(feature = "cudnn")]
            Side::GpuImage(conv) => conv.forward([h, w], input, output),
            Side::Candle {
                forward, format, ..
            } => {
                let input = self.operand(*format, input)?;
                let input = input.permute((2, 0, 1))?.unsqueeze(0)?;
                let input = match self.border {
                    Border::Zeros => input,
                    Border::Replicate => input.pad_with_same(2, 1, 1)?.pad_with_same(3, 1, 1)?,
                };
                let features = forward.forward(&input)?.relu()?;
                store(output, &features.squeeze(0)?.permute((1, 2, 0))?, false)
            }
        }
    }

    /// The gradient with respect to the input, written to `gradient` `[height, width,
    /// in_channels]`. `upstream` is the gradient with respect to the output and `output` the
    /// output itself: where it is not above 0 the ReLU lets nothing back. A GPU clears `upstream`
    /// there.
    pub fn backward(&self, upstream: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<()> {
        let (h, w, _) = output.dims3()?;
        expect(output, [h, w, self.out_channels])?;
        expect(upstream, [h, w, self.out_channels])?;
        expect(gradient, [h, w, self.in_channels])?;
        match &self.side {
            Side::Winograd { adjoint, .. } => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [f32], upstream: &[f32], output: &[f32]| {
                        let pixels = |values| Pixels {
                            values,
                            channels: self.out_channels,
                        };
                        let input = Masked {
                            upstream: pixels(upstream),
                            output: pixels(output),
                        };
                        adjoint.correlate([h, w], &input, gradient, &Gradient);
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            Side::Bf16(conv) => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [bf16], upstream: &[bf16], output: &[bf16]| {
                        conv.backward([h, w], upstream, output, gradient);
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            Side::Bf16Image(conv) => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [f32], upstream: &[bf16], output: &[bf16]| {
                        conv.backward([h, w], upstream, output, gradient);
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            Side::Patches { kernel, .. } => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [f32], upstream: &[f32], output: &[f32]| {
                        kernel.adjoint([h, w], gradient, |pixel, values| {
                            let range = pixel * values.len()..(pixel + 1) * values.len();
                            let active = upstream[range.clone()].iter().zip(&output[range]);
                            for (value, (upstream, output)) in values.iter_mut().zip(active) {
                                // Without a branch, which could not be predicted.
                                let open = u32::from(*output > 0.0).wrapping_neg();
                                *value = f32::from_bits(upstream.to_bits() & open);
                            }
                        });
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            #[cfg(feature = "cudnn")]
            Side::Gpu(conv) => conv.backward([h, w], upstream, output, gradient),
            #[cfg(feature = "cudnn")]
            Side::GpuImage(conv) => conv.backward([h, w], upstream, output, gradient),
            Side::Candle {
                adjoint, format, ..
            } => {
                let mask = singles(&output.gt(0f64)?)?;
                let masked = (self.operand(*format, upstream)? * mask)?;
                let masked = masked.permute((2, 0, 1))?.unsqueeze(0)?;
                let full = adjoint.forward(&masked)?.squeeze(0)?;
                let full = match self.border {
                    Border::Zeros => full,
                    Border::Replicate => fold(&fold(&full, 1)?, 2)?,
                };
                store(gradient, &full.permute((1, 2, 0))?, false)
            }
        }
    }
}

impl Conv3x3 {
    /// An operand of a composed convolution. conv1_1's are `f32` on a GPU in every format.
    fn operand(&self, format: Format, tensor: &Tensor) -> Result<Tensor> {
        match self.border {
            Border::Zeros => format.operand(tensor),
            Border::Replicate => singles(tensor),
        }
    }
}

fn expect(tensor: &Tensor, shape: [usize; 3]) -> Result<()> {
    if tensor.dims() != shape {
        bail!(
            "a tensor of shape {shape:?} is needed, not {:?}",
            tensor.dims()
        );
    }
    Ok(())
}

/// Adds the first and the last slice of `tensor` along `dim` to their neighbours and drops them:
/// the adjoint of replication by one.
fn fold(tensor: &Tensor, dim: usize) -> Result<Tensor> {
    let n = tensor.dim(dim)? - 2;
    let first = tensor.narrow(dim, 0, 1)?.pad_with_zeros(dim, 0, n - 1)?;
    let last = tensor
        .narrow(dim, n + 1, 1)?
        .pad_with_zeros(dim, n - 1, 0)?;
    tensor.narrow(dim, 1, n)? + first + last
}

/// The pixels of an image `[h, w, channels]`.
struct Pixels<'a> {
    values: &'a [f32],
    channels: usize,
}

impl Source for Pixels<'_> {
    #[inline(always)]
    fn load<S: Simd>(&self, _: S, pixel: usize, channel: usize) -> S::f32s {
        let start = pixel * self.channels + channel;
        S::as_simd_f32s(&self.values[start..start + S::F32_LANES]).0[0]
    }
}

/// The gradient with respect to a convolution's output, where the ReLU lets it through.
struct Masked<'a> {
    upstream: Pixels<'a>,
    output: Pixels<'a>,
}

impl Source for Masked<'_> {
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, pixel: usize, channel: usize) -> S::f32s {
        let zero = simd.splat_f32s(0.0);
        let active = simd.less_than_f32s(zero, self.output.load(simd, pixel, channel));
        simd.select_f32s(active, self.upstream.load(simd, pixel, channel), zero)
    }
}

/// `relu(sums + bias)`
struct Activation<'a> {
    bias: &'a [f32],
}

impl Sink for Activation<'_> {
    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, place: &mut S::f32s, channel: usize, sums: S::f32s) {
        let bias = S::as_simd_f32s(&self.bias[channel..channel + S::F32_LANES]).0[0];
        *place = simd.max_f32s(simd.add_f32s(sums, bias), simd.splat_f32s(0.0));
    }
}

/// The sums as they are.
struct Gradient;

impl Sink for Gradient {
    #[inline(always)]
    fn store<S: Simd>(&self, _: S, place: &mut S::f32s, _: usize, sums: S::f32s) {
        *place = sums;
    }
}

impl Side {
    fn cpu(kernel: &Tensor, bias: &Tensor, border: Border, amx: Option<Amx>) -> Result<Self> {
        let (n_out, n_in, _, _) = kernel.dims4()?;
        let weights = kernel.flatten_all()?.to_vec1::<f32>()?;
        let weight = |out: usize, input: usize, tap: usize| weights[(out * n_in + input) * 9 + tap];
        let adjoint = |out: usize, input: usize, tap: usize| weight(input, out, 8 - tap);
        let bias = bias.to_vec1::<f32>()?;
        let many = |channels: usize| {
            border == Border::Zeros
                && n_in.is_multiple_of(channels)
                && n_out.is_multiple_of(channels)
        };
        Ok(match amx {
            Some(amx) if many(amx::CHANNELS) => Self::Bf16(amx::Conv::new(amx, n_in, bias, weight)),
            Some(amx)
                if border == Border::Replicate
                    && n_in == 3
                    && n_out.is_multiple_of(amx::CHANNELS) =>
            {
                Self::Bf16Image(amx::ImageConv::new(amx, bias, weight))
            }
            Some(_) => bail!(
                "features in bf16 have a multiple of {} channels, not {n_in} and {n_out}",
                amx::CHANNELS
            ),
            None if many(winograd::CHANNELS) => Self::Winograd {
                forward: winograd::Kernel::new(n_in, n_out, weight),
                adjoint: winograd::Kernel::new(n_out, n_in, adjoint),
                bias,
            },
            None => Self::Patches {
                kernel: patches::Kernel::new(n_in, n_out, border, weight),
                bias,
            },
        })
    }

    #[cfg(feature = "cudnn")]
    fn gpu(kernel: &Tensor, bias: &Tensor, border: Border, format: Format) -> Result<Self> {
        match (border, kernel.dims()[1]) {
            (Border::Zeros, _) => cuda::Conv::new(kernel, bias, format).map(Self::Gpu),
            (Border::Replicate, 3) => {
                cuda::ImageConv::new(kernel, bias, format).map(Self::GpuImage)
            }
            (Border::Replicate, n) => bail!("an image has 3 channels, not {n}"),
        }
    }

    fn composed(kernel: &Tensor, bias: &Tensor, border: Border, format: Format) -> Result<Self> {
        let (kernel, forward_padding, adjoint_padding) = match border {
            Border::Zeros => (format.operand(kernel)?, 1, 1),
            Border::Replicate => (kernel.clone(), 0, 2),
        };
        let config = |padding| Conv2dConfig {
            padding,
            ..Default::default()
        };
        let rotated = kernel.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?;
        Ok(Self::Candle {
            forward: Conv2d::new(kernel, Some(bias.clone()), config(forward_padding)),
            adjoint: Conv2d::new(rotated, None, config(adjoint_padding)),
            format,
        })
    }
}

#[cfg(test)]
mod tests;

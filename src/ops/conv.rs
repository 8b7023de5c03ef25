// SPDX-License-Identifier: MPL-2.0

//! 3x3 convolution, stride 1, padding 1, fused with bias and ReLU, and its gradient with respect to
//! the input.
//!
//! The kernels are frozen, so the gradient with respect to them is never computed. The gradient
//! with respect to the input (the *adjoint*) is the same convolution with the kernel rotated by 180
//! degrees and its two channel axes swapped.

use super::amx::{self, Amx};
#[cfg(feature = "cudnn")]
use super::cuda::conv as cuda;
use super::im2col::Im2colKernel;
use super::winograd::{self, Epilogue, Loader, WinogradKernel};
use super::{Format, op2, op3, store, to_f32, use_cpu_kernels};
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Conv2d, Conv2dConfig, Module};
use half::bf16;
use pulp::Simd;

/// How the input is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// With zeros, as VGG was trained.
    Zeros,
    /// With the nearest pixel of the input.
    Replicate,
}

/// `relu(input * kernel + bias)` over `[height, width, in_channels]`, giving
/// `[height, width, out_channels]`.
pub struct Conv3x3 {
    in_channels: usize,
    out_channels: usize,
    border: Border,
    backend: Backend,
}

enum Backend {
    /// CPU, `f32`: many channels and a border of zeros.
    Winograd {
        forward: WinogradKernel,
        adjoint: WinogradKernel,
        bias: Vec<f32>,
    },
    /// CPU, bf16: the same.
    Amx(amx::AmxConv),
    /// CPU, bf16: from an image, its border replicated, to features (conv1_1).
    AmxImage(amx::AmxImageConv),
    /// CPU, `f32`: any other, which is conv1_1.
    Im2col {
        kernel: Im2colKernel,
        bias: Vec<f32>,
    },
    /// CUDA, from features.
    #[cfg(feature = "cudnn")]
    Cuda(cuda::Conv),
    /// CUDA, from an image (conv1_1).
    #[cfg(feature = "cudnn")]
    CudaImage(cuda::ImageConv),
    /// Candle's operations.
    Composed {
        forward: Conv2d,
        adjoint: Conv2d,
        format: Format,
    },
}

impl Conv3x3 {
    /// A convolution in `f32`, on the device of its kernel `[out_channels, in_channels, 3, 3]` and
    /// bias `[out_channels]`, both `f32`.
    pub fn new(kernel: &Tensor, bias: &Tensor, border: Border) -> Result<Self> {
        Self::with_format(kernel, bias, border, Format::F32)
    }

    /// The same in `format`; the CPU takes [`Format::F32`] only.
    pub fn with_format(
        kernel: &Tensor,
        bias: &Tensor,
        border: Border,
        format: Format,
    ) -> Result<Self> {
        Self::with(kernel, bias, border, || match kernel.device() {
            Device::Cpu if use_cpu_kernels() => match format {
                Format::F32 => Backend::cpu(kernel, bias, border, None),
                _ => bail!("{format:?} is for a GPU"),
            },
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => Backend::cuda(kernel, bias, border, format),
            _ => Backend::composed(kernel, bias, border, format),
        })
    }

    /// The same in bf16 on the CPU: either from an `f32` image with a replicated border, or between
    /// features padded with zeros. The numbers of feature channels are multiples of
    /// [`amx::CHANNEL_MULTIPLE`].
    pub fn bf16(kernel: &Tensor, bias: &Tensor, border: Border, amx: Amx) -> Result<Self> {
        Self::with(kernel, bias, border, || {
            Backend::cpu(kernel, bias, border, Some(amx))
        })
    }

    fn with(
        kernel: &Tensor,
        bias: &Tensor,
        border: Border,
        backend: impl FnOnce() -> Result<Backend>,
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
            backend: backend()?,
        })
    }

    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Size of the packed kernels and the bias in bytes.
    pub fn packed_bytes(&self) -> usize {
        match &self.backend {
            Backend::Winograd {
                forward,
                adjoint,
                bias,
            } => forward.bytes() + adjoint.bytes() + size_of_val(bias.as_slice()),
            Backend::Amx(conv) => conv.bytes(),
            Backend::AmxImage(conv) => conv.bytes(),
            #[cfg(feature = "cudnn")]
            Backend::Cuda(conv) => conv.bytes(),
            #[cfg(feature = "cudnn")]
            Backend::CudaImage(conv) => conv.bytes(),
            Backend::Im2col { kernel, bias } => kernel.bytes() + size_of_val(bias.as_slice()),
            Backend::Composed {
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
        match &self.backend {
            Backend::Winograd { forward, bias, .. } => {
                let op = op2("conv3x3", |output: &mut [f32], input: &[f32]| {
                    let input = FeatureLoader {
                        values: input,
                        channels: self.in_channels,
                    };
                    forward.convolve([h, w], &input, output, &BiasRelu { bias });
                });
                output.inplace_op2(input, &op)
            }
            Backend::Amx(conv) => {
                let op = op2("conv3x3", |output: &mut [bf16], input: &[bf16]| {
                    conv.forward([h, w], input, output);
                });
                output.inplace_op2(input, &op)
            }
            Backend::AmxImage(conv) => {
                let op = op2("conv3x3", |output: &mut [bf16], input: &[f32]| {
                    conv.forward([h, w], input, output);
                });
                output.inplace_op2(input, &op)
            }
            Backend::Im2col { kernel, bias } => {
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
            Backend::Cuda(conv) => conv.forward([h, w], input, output),
            #[cfg(feature = "cudnn")]
            Backend::CudaImage(conv) => conv.forward([h, w], input, output),
            Backend::Composed {
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

    /// Writes the gradient with respect to the input to `gradient` `[height, width, in_channels]`.
    ///
    /// `output` is the output of [`Self::forward`], and `upstream` the gradient with respect to it,
    /// which counts only where `output` is above 0: elsewhere the ReLU passes none. The CUDA backend
    /// makes it 0 there, in `upstream` itself. `masked` says that a pool has done so already. The CPU's pools
    /// never do, and its convolutions look at `output` in any case.
    pub fn backward(
        &self,
        upstream: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
        masked: bool,
    ) -> Result<()> {
        let (h, w, _) = output.dims3()?;
        expect(output, [h, w, self.out_channels])?;
        expect(upstream, [h, w, self.out_channels])?;
        expect(gradient, [h, w, self.in_channels])?;
        match &self.backend {
            Backend::Winograd { adjoint, .. } => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [f32], upstream: &[f32], output: &[f32]| {
                        let pixels = |values| FeatureLoader {
                            values,
                            channels: self.out_channels,
                        };
                        let input = MaskedGradientLoader {
                            upstream: pixels(upstream),
                            output: pixels(output),
                        };
                        adjoint.convolve([h, w], &input, gradient, &StoreSums);
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            Backend::Amx(conv) => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [bf16], upstream: &[bf16], output: &[bf16]| {
                        conv.backward([h, w], upstream, output, gradient);
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            Backend::AmxImage(conv) => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [f32], upstream: &[bf16], output: &[bf16]| {
                        conv.backward([h, w], upstream, output, gradient);
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            Backend::Im2col { kernel, .. } => {
                let op = op3(
                    "conv3x3-backward",
                    |gradient: &mut [f32], upstream: &[f32], output: &[f32]| {
                        kernel.adjoint([h, w], gradient, |pixel, values| {
                            let range = pixel * values.len()..(pixel + 1) * values.len();
                            let active = upstream[range.clone()].iter().zip(&output[range]);
                            for (value, (upstream, output)) in values.iter_mut().zip(active) {
                                // A bit mask, as a branch would be unpredictable.
                                let mask = u32::from(*output > 0.0).wrapping_neg();
                                *value = f32::from_bits(upstream.to_bits() & mask);
                            }
                        });
                    },
                );
                gradient.inplace_op3(upstream, output, &op)
            }
            #[cfg(feature = "cudnn")]
            Backend::Cuda(conv) => conv.backward([h, w], upstream, output, gradient, masked),
            #[cfg(feature = "cudnn")]
            Backend::CudaImage(conv) => conv.backward([h, w], upstream, output, gradient),
            Backend::Composed {
                adjoint, format, ..
            } => {
                let upstream = self.operand(*format, upstream)?;
                let upstream = match masked {
                    true => upstream,
                    false => (upstream * to_f32(&output.gt(0f64)?)?)?,
                };
                let upstream = upstream.permute((2, 0, 1))?.unsqueeze(0)?;
                let full = adjoint.forward(&upstream)?.squeeze(0)?;
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
    /// An operand of the composed convolution. That of conv1_1 is `f32` in every format, as on
    /// CUDA.
    fn operand(&self, format: Format, tensor: &Tensor) -> Result<Tensor> {
        match self.border {
            Border::Zeros => format.operand(tensor),
            Border::Replicate => to_f32(tensor),
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
/// the adjoint of replicate padding by one.
fn fold(tensor: &Tensor, dim: usize) -> Result<Tensor> {
    let n = tensor.dim(dim)? - 2;
    let first = tensor.narrow(dim, 0, 1)?.pad_with_zeros(dim, 0, n - 1)?;
    let last = tensor
        .narrow(dim, n + 1, 1)?
        .pad_with_zeros(dim, n - 1, 0)?;
    tensor.narrow(dim, 1, n)? + first + last
}

/// Loads features `[h, w, channels]`.
struct FeatureLoader<'a> {
    values: &'a [f32],
    channels: usize,
}

impl Loader for FeatureLoader<'_> {
    #[inline(always)]
    fn load<S: Simd>(&self, _: S, pixel: usize, channel: usize) -> S::f32s {
        let start = pixel * self.channels + channel;
        S::as_simd_f32s(&self.values[start..start + S::F32_LANES]).0[0]
    }
}

/// Loads the gradient with respect to a convolution's output, masked by the ReLU's derivative.
struct MaskedGradientLoader<'a> {
    upstream: FeatureLoader<'a>,
    output: FeatureLoader<'a>,
}

impl Loader for MaskedGradientLoader<'_> {
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, pixel: usize, channel: usize) -> S::f32s {
        let zero = simd.splat_f32s(0.0);
        let active = simd.less_than_f32s(zero, self.output.load(simd, pixel, channel));
        simd.select_f32s(active, self.upstream.load(simd, pixel, channel), zero)
    }
}

/// `relu(sums + bias)`
struct BiasRelu<'a> {
    bias: &'a [f32],
}

impl Epilogue for BiasRelu<'_> {
    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, dst: &mut S::f32s, channel: usize, sums: S::f32s) {
        let bias = S::as_simd_f32s(&self.bias[channel..channel + S::F32_LANES]).0[0];
        *dst = simd.max_f32s(simd.add_f32s(sums, bias), simd.splat_f32s(0.0));
    }
}

/// Stores the sums unchanged.
struct StoreSums;

impl Epilogue for StoreSums {
    #[inline(always)]
    fn store<S: Simd>(&self, _: S, dst: &mut S::f32s, _: usize, sums: S::f32s) {
        *dst = sums;
    }
}

impl Backend {
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
            Some(amx) if many(amx::CHANNEL_MULTIPLE) => {
                Self::Amx(amx::AmxConv::new(amx, n_in, bias, weight))
            }
            Some(amx)
                if border == Border::Replicate
                    && n_in == 3
                    && n_out.is_multiple_of(amx::CHANNEL_MULTIPLE) =>
            {
                Self::AmxImage(amx::AmxImageConv::new(amx, bias, weight))
            }
            Some(_) => bail!(
                "features in bf16 have a multiple of {} channels, not {n_in} and {n_out}",
                amx::CHANNEL_MULTIPLE
            ),
            None if many(winograd::CHANNEL_MULTIPLE) => Self::Winograd {
                forward: WinogradKernel::new(n_in, n_out, weight),
                adjoint: WinogradKernel::new(n_out, n_in, adjoint),
                bias,
            },
            None => Self::Im2col {
                kernel: Im2colKernel::new(n_in, n_out, border, weight),
                bias,
            },
        })
    }

    #[cfg(feature = "cudnn")]
    fn cuda(kernel: &Tensor, bias: &Tensor, border: Border, format: Format) -> Result<Self> {
        match (border, kernel.dims()[1]) {
            (Border::Zeros, _) => cuda::Conv::new(kernel, bias, format).map(Self::Cuda),
            (Border::Replicate, 3) => {
                cuda::ImageConv::new(kernel, bias, format).map(Self::CudaImage)
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
        Ok(Self::Composed {
            forward: Conv2d::new(kernel, Some(bias.clone()), config(forward_padding)),
            adjoint: Conv2d::new(rotated, None, config(adjoint_padding)),
            format,
        })
    }
}

#[cfg(test)]
mod tests;

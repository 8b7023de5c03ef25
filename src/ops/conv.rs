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
use super::im2col::Im2colConv;
use super::winograd;
use super::winograd::convolution::WinogradConv;
use super::{Format, Scalar, op2, op3, store, to_f32, use_cpu_kernels};
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::{Conv2d, Conv2dConfig, Module};

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
    Winograd(WinogradConv),
    /// CPU, bf16: the same.
    Amx(amx::AmxConv),
    /// CPU, bf16: from an image, its border replicated, to features (conv1_1).
    AmxImage(amx::AmxImageConv),
    /// CPU, `f32`: any other, which is conv1_1.
    Im2col(Im2colConv),
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
    /// A convolution in `format`, on the device of its kernel `[out_channels, in_channels, 3, 3]` and bias
    /// `[out_channels]`, both `f32`.
    ///
    /// On the CPU, bf16 needs AMX, and either an image with a replicated border as the input or features
    /// padded with zeros; the numbers of feature channels are multiples of [`amx::CHANNEL_MULTIPLE`].
    /// An image is `f32` in every format.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device lacks the format.
    pub fn new(kernel: &Tensor, bias: &Tensor, border: Border, format: Format) -> Result<Self> {
        let (out_channels, in_channels, kh, kw) = kernel.dims4()?;
        if (kh, kw) != (3, 3) || bias.dims() != [out_channels] {
            bail!(
                "a 3x3 kernel with a bias is needed, not {:?} with {:?}",
                kernel.dims(),
                bias.dims()
            );
        }
        let backend = match kernel.device() {
            Device::Cpu if use_cpu_kernels() => Backend::cpu(kernel, bias, border, format),
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => Backend::cuda(kernel, bias, border, format),
            _ => Backend::composed(kernel, bias, border, format),
        };
        Ok(Self {
            in_channels,
            out_channels,
            border,
            backend: backend?,
        })
    }

    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// `output = relu(input * kernel + bias)`.
    pub fn forward(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        let (h, w, _) = input.dims3()?;
        expect(input, [h, w, self.in_channels])?;
        expect(output, [h, w, self.out_channels])?;
        let (size, tensors) = ([h, w], [input, output]);
        match &self.backend {
            Backend::Winograd(conv) => forward_cpu(tensors, |x, y| conv.forward(size, x, y)),
            Backend::Amx(conv) => forward_cpu(tensors, |x, y| conv.forward(size, x, y)),
            Backend::AmxImage(conv) => forward_cpu(tensors, |x, y| conv.forward(size, x, y)),
            Backend::Im2col(conv) => forward_cpu(tensors, |x, y| conv.forward(size, x, y)),
            #[cfg(feature = "cudnn")]
            Backend::Cuda(conv) => conv.forward(size, input, output),
            #[cfg(feature = "cudnn")]
            Backend::CudaImage(conv) => conv.forward(size, input, output),
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
        let (size, tensors) = ([h, w], [upstream, output, gradient]);
        match &self.backend {
            Backend::Winograd(conv) => {
                backward_cpu(tensors, |u, y, g| conv.backward(size, u, y, g))
            }
            Backend::Amx(conv) => backward_cpu(tensors, |u, y, g| conv.backward(size, u, y, g)),
            Backend::AmxImage(conv) => {
                backward_cpu(tensors, |u, y, g| conv.backward(size, u, y, g))
            }
            Backend::Im2col(conv) => backward_cpu(tensors, |u, y, g| conv.backward(size, u, y, g)),
            #[cfg(feature = "cudnn")]
            Backend::Cuda(conv) => conv.backward(size, upstream, output, gradient, masked),
            #[cfg(feature = "cudnn")]
            Backend::CudaImage(conv) => conv.backward(size, upstream, output, gradient),
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

    /// An operand of the composed convolution. That of conv1_1 is `f32` in every format, as on
    /// CUDA.
    fn operand(&self, format: Format, tensor: &Tensor) -> Result<Tensor> {
        match self.border {
            Border::Zeros => format.operand(tensor),
            Border::Replicate => to_f32(tensor),
        }
    }
}

/// Calls `forward` of a backend on the CPU with the values of input and output.
fn forward_cpu<I: Scalar, O: Scalar>(
    [input, output]: [&Tensor; 2],
    forward: impl Fn(&[I], &mut [O]),
) -> Result<()> {
    let op = op2("conv3x3", |output: &mut [O], input: &[I]| {
        forward(input, output);
    });
    output.inplace_op2(input, &op)
}

/// The same for `backward`, with those of the upstream gradient, the output and the gradient.
fn backward_cpu<O: Scalar, I: Scalar>(
    [upstream, output, gradient]: [&Tensor; 3],
    backward: impl Fn(&[O], &[O], &mut [I]),
) -> Result<()> {
    let op = op3(
        "conv3x3-backward",
        |gradient: &mut [I], upstream: &[O], output: &[O]| {
            backward(upstream, output, gradient);
        },
    );
    gradient.inplace_op3(upstream, output, &op)
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

impl Backend {
    fn cpu(kernel: &Tensor, bias: &Tensor, border: Border, format: Format) -> Result<Self> {
        let amx = match format {
            Format::F32 => None,
            Format::Bf16 => Some(Amx::require()?),
            Format::Tf32 | Format::F16 => bail!("{format:?} is for a GPU"),
        };
        let (n_out, n_in, _, _) = kernel.dims4()?;
        let weights = kernel.flatten_all()?.to_vec1::<f32>()?;
        let weight = |out: usize, input: usize, tap: usize| weights[(out * n_in + input) * 9 + tap];
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
            None if many(winograd::CHANNEL_MULTIPLE) => {
                Self::Winograd(WinogradConv::new(n_in, bias, weight))
            }
            None => Self::Im2col(Im2colConv::new(n_in, bias, border, weight)),
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

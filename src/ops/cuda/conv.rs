// SPDX-License-Identifier: MPL-2.0

//! The convolutions of a network on a GPU, and their gradients.

use super::super::Format;
use super::super::remembered::{Remembered, file};
use super::cudnn::{Algorithm, Convolution, Operands};
use super::notes::{Note, note};
use super::{Arg, BLOCKS, Gpu, Work, address, at, features_at, lock, suffix};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cudnn::result::get_version;
use candle_core::{DType, Device, Result, Tensor, bail};
use once_cell::sync::Lazy;
use std::sync::Mutex;

/// Between features, with a border of zeros.
pub struct Conv {
    format: Format,
    n_in: usize,
    n_out: usize,
    /// `[n_out, 3, 3, n_in]`
    kernel: Tensor,
    /// `[n_in, 3, 3, n_out]`, rotated by half a turn.
    adjoint: Tensor,
    /// `[n_out]`, as it is and in the format.
    bias: Tensor,
    rounded_bias: Tensor,
}

impl Conv {
    /// With a kernel `[n_out, n_in, 3, 3]` and a bias `[n_out]`, `f32`, for the device they are on.
    pub fn new(kernel: &Tensor, bias: &Tensor, format: Format) -> Result<Self> {
        let (n_out, n_in, _, _) = kernel.dims4()?;
        let device = kernel.device();
        let [kernel, bias] = [kernel, bias].map(|it| it.to_device(&Device::Cpu));
        let (kernel, bias) = (kernel?, bias?);
        let last = |kernel: &Tensor| -> Result<Tensor> {
            let kernel = kernel.permute((0, 2, 3, 1))?.to_dtype(format.dtype())?;
            kernel.contiguous()?.to_device(device)
        };
        Ok(Self {
            format,
            n_in,
            n_out,
            kernel: last(&kernel)?,
            adjoint: last(&kernel.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?)?,
            bias: bias.to_device(device)?,
            rounded_bias: bias.to_dtype(format.dtype())?.to_device(device)?,
        })
    }

    pub fn bytes(&self) -> usize {
        let tensors = [&self.kernel, &self.adjoint, &self.bias, &self.rounded_bias];
        let bytes = |tensor: &&Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        tensors.iter().map(bytes).sum()
    }

    /// `output = relu(input * kernel + bias)`
    pub fn forward(&self, size: [usize; 2], input: &Tensor, output: &Tensor) -> Result<()> {
        let gpu = Gpu::of(input.device())?;
        let operands = Operands {
            input: address(input)?,
            kernel: address(&self.kernel)?,
            adjoint: None,
            bias: Some(address(&self.rounded_bias)?),
            output: address(output)?,
        };
        let convolution = Convolution::new(self.format, size, [self.n_in, self.n_out])?;
        let bias = features_at(&self.bias)?;
        let count = output.elem_count();
        let activation = |work: &Work| {
            let args = [
                Arg::Features(operands.output),
                bias,
                Arg::Long(count as i64),
                Arg::Int(self.n_out as i32),
            ];
            let dtype = self.format.dtype();
            work.each_feature("bias_relu", dtype, (count, self.n_out), &args)
                .map(drop)
        };
        let of = self.described("forward", size, [self.n_in, self.n_out], &gpu)?;
        compute(&gpu.work()?, &of, &convolution, operands, activation)
    }

    /// The gradient with respect to the input, into `gradient`. Of `upstream`, what the ReLU does
    /// not let through becomes 0.
    pub fn backward(
        &self,
        size: [usize; 2],
        upstream: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<()> {
        let gpu = Gpu::of(upstream.device())?;
        let operands = Operands {
            input: address(upstream)?,
            kernel: address(&self.adjoint)?,
            adjoint: Some(address(&self.kernel)?),
            bias: None,
            output: address(gradient)?,
        };
        let convolution = Convolution::new(self.format, size, [self.n_out, self.n_in])?;
        let of = self.described("backward", size, [self.n_out, self.n_in], &gpu)?;
        let work = gpu.work()?;
        let count = upstream.elem_count();
        let args = [
            features_at(upstream)?,
            features_at(output)?,
            Arg::Long(count as i64),
        ];
        work.each_feature(
            "relu_backward",
            self.format.dtype(),
            (count, self.n_out),
            &args,
        )?;
        compute(&work, &of, &convolution, operands, |_| Ok(()))
    }

    /// What a measurement is of.
    fn described(
        &self,
        direction: &str,
        [h, w]: [usize; 2],
        [n_in, n_out]: [usize; 2],
        gpu: &Gpu,
    ) -> Result<String> {
        let name = gpu.device.cuda_stream().context().name().w()?;
        Ok(format!(
            "{name}, cuDNN {}: {direction} {:?} {h}x{w} {n_in} to {n_out}",
            get_version(),
            self.format
        ))
    }
}

static REMEMBERED: Lazy<Mutex<Remembered>> = Lazy::new(|| Mutex::new(Remembered::open(file())));

/// Computes a convolution by the algorithm that is known to be the fastest, or that is found to be.
fn compute(
    work: &Work,
    of: &str,
    convolution: &Convolution,
    operands: Operands,
    after: impl Fn(&Work) -> Result<()>,
) -> Result<()> {
    let mut remembered = lock(&REMEMBERED);
    for _ in 0..2 {
        let name = remembered.of(of, || {
            let (fastest, tried) = convolution.fastest(work, operands, &after);
            note(Note::Found(format!("{of}{tried}")));
            match fastest {
                Some(algorithm) => Ok(algorithm.name()),
                None => bail!("cuDNN has no such convolution{tried}"),
            }
        })?;
        let known = Algorithm::all(Format::F32).find(|algorithm| algorithm.name() == name);
        if let Some(algorithm) = known {
            match convolution.run(work, algorithm, operands) {
                Ok(()) if algorithm.is_fused() => return Ok(()),
                Ok(()) => return after(work),
                // It is the recording that does not work; nor could anything be measured there.
                Err(error) if work.is_captured()? => return Err(error),
                Err(_) => (),
            }
        }
        // A line that somebody else wrote, or another driver's.
        remembered.forget(of);
    }
    bail!("none of cuDNN's algorithms can be relied on for {of}")
}

/// From an image `[h, w, 3]` in `f32` to features, between copies of its edge.
pub struct ImageConv {
    format: Format,
    n_out: usize,
    /// `[3, 3, 3 input channels, n_out]`, `f32`.
    kernel: Tensor,
    bias: Tensor,
}

impl ImageConv {
    /// With a kernel `[n_out, 3, 3, 3]` and a bias `[n_out]`, `f32`, for the device they are on.
    pub fn new(kernel: &Tensor, bias: &Tensor, format: Format) -> Result<Self> {
        Ok(Self {
            format,
            n_out: kernel.dims()[0],
            kernel: kernel
                .to_device(&Device::Cpu)?
                .permute((2, 3, 1, 0))?
                .contiguous()?
                .to_device(kernel.device())?,
            bias: bias.clone(),
        })
    }

    pub fn bytes(&self) -> usize {
        (self.kernel.elem_count() + self.bias.elem_count()) * DType::F32.size_in_bytes()
    }

    /// `output = relu(input * kernel + bias)`
    pub fn forward(&self, [h, w]: [usize; 2], image: &Tensor, output: &Tensor) -> Result<()> {
        let args = [
            at(image)?,
            at(&self.kernel)?,
            at(&self.bias)?,
            at(output)?,
            Arg::Int(h as i32),
            Arg::Int(w as i32),
            Arg::Int(self.n_out as i32),
        ];
        self.launch("image_conv", image.device(), &args)
    }

    /// The gradient with respect to the image, `f32`.
    pub fn backward(
        &self,
        [h, w]: [usize; 2],
        upstream: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<()> {
        let args = [
            at(upstream)?,
            at(output)?,
            at(&self.kernel)?,
            at(gradient)?,
            Arg::Int(h as i32),
            Arg::Int(w as i32),
            Arg::Int(self.n_out as i32),
        ];
        self.launch("image_conv_backward", gradient.device(), &args)
    }

    /// Over strips of the image, which the blocks share out among themselves.
    fn launch(&self, kernel: &str, device: &Device, args: &[Arg]) -> Result<()> {
        let name = format!("{kernel}_{}", suffix(self.format.dtype())?);
        Gpu::of(device)?.work()?.launch(&name, (BLOCKS, 1), args)
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The convolutions of a network on a GPU, and their gradients.

use super::super::Format;
use super::super::algorithm_cache::{AlgorithmCache, default_file};
use super::super::conv_algorithm::ConvAlgorithm;
use super::cudnn::CudnnConvolution;
use super::diagnostics::{Note, note};
use super::plan::ConvOperands;
use super::{
    Arg, Gpu, MAX_BLOCKS, StreamGuard, address, checked_address, features, floats, is_capturing,
    suffix,
};
use crate::ops::transfer::to_host;
use crate::threads::lock;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cudnn::result::get_version;
use candle_core::{DType, Result, Tensor, bail};
use std::sync::{LazyLock, Mutex};

/// 3x3 convolution of features with bias and ReLU, stride 1, zero padding.
pub struct Conv {
    format: Format,
    n_in: usize,
    n_out: usize,
    /// `[n_out, 3, 3, n_in]`
    kernel: Tensor,
    /// The kernel of the input gradient, `[n_in, 3, 3, n_out]`: rotated by 180 degrees.
    adjoint: Tensor,
    /// `[n_out]`, `f32`.
    bias: Tensor,
    /// The same in the format of the features.
    rounded_bias: Tensor,
}

impl Conv {
    /// Takes a kernel `[n_out, n_in, 3, 3]` and a bias `[n_out]`, both `f32`, on the device to use.
    pub fn new(kernel: &Tensor, bias: &Tensor, format: Format) -> Result<Self> {
        let (n_out, n_in, 3, 3) = kernel.dims4()? else {
            bail!("a kernel of 3x3 is needed, not {:?}", kernel.dims());
        };
        let device = kernel.device();
        let [kernel, bias] = [kernel, bias].map(to_host);
        let (kernel, bias) = (kernel?, bias?);
        let channels_last = |kernel: &Tensor| -> Result<Tensor> {
            let kernel = kernel.permute((0, 2, 3, 1))?.to_dtype(format.dtype())?;
            kernel.contiguous()?.to_device(device)
        };
        Ok(Self {
            format,
            n_in,
            n_out,
            kernel: channels_last(&kernel)?,
            adjoint: channels_last(&kernel.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?)?,
            bias: bias.to_device(device)?,
            rounded_bias: bias.to_dtype(format.dtype())?.to_device(device)?,
        })
    }

    /// `output = relu(input * kernel + bias)` for an input of height and width `size`.
    pub fn forward(&self, size: [usize; 2], input: &Tensor, output: &Tensor) -> Result<()> {
        let gpu = Gpu::of(input.device())?;
        let (dtype, positions) = (self.format.dtype(), size[0] * size[1]);
        let count = positions * self.n_out;
        let operands = ConvOperands {
            input: checked_address(input, dtype, positions * self.n_in)?,
            kernel: address(&self.kernel)?,
            adjoint: None,
            bias: Some(checked_address(&self.rounded_bias, dtype, self.n_out)?),
            output: checked_address(output, dtype, count)?,
        };
        let convolution = CudnnConvolution::new(self.format, size, [self.n_in, self.n_out]);
        let bias = features(&self.bias, DType::F32, self.n_out)?;
        let bias_relu = |stream: &StreamGuard| {
            let args = [
                Arg::Features(operands.output),
                bias,
                Arg::Long(count as i64),
                Arg::Int(self.n_out as i32),
            ];
            stream
                .launch_features("bias_relu", dtype, (count, self.n_out), &args)
                .map(drop)
        };
        let key = self.cache_key("forward", size, [self.n_in, self.n_out], &gpu)?;
        run_fastest(&gpu.lock_stream()?, &key, &convolution, operands, bias_relu)
    }

    /// The gradient with respect to the input, into `gradient`. The ReLU's derivative is applied to
    /// `upstream` in place, unless `upstream` is `masked` by it already.
    pub fn backward(
        &self,
        size: [usize; 2],
        upstream: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
        masked: bool,
    ) -> Result<()> {
        let gpu = Gpu::of(upstream.device())?;
        let (dtype, positions) = (self.format.dtype(), size[0] * size[1]);
        let count = positions * self.n_out;
        let operands = ConvOperands {
            input: checked_address(upstream, dtype, count)?,
            kernel: address(&self.adjoint)?,
            adjoint: Some(address(&self.kernel)?),
            bias: None,
            output: checked_address(gradient, dtype, positions * self.n_in)?,
        };
        let convolution = CudnnConvolution::new(self.format, size, [self.n_out, self.n_in]);
        let key = self.cache_key("backward", size, [self.n_out, self.n_in], &gpu)?;
        let stream = gpu.lock_stream()?;
        // cuDNN has engines that take the derivative along, but compiles each at run time.
        if !masked {
            let args = [
                Arg::Features(operands.input),
                features(output, dtype, count)?,
                Arg::Long(count as i64),
            ];
            stream.launch_features("relu_backward", dtype, (count, self.n_out), &args)?;
        }
        run_fastest(&stream, &key, &convolution, operands, |_| Ok(()))
    }

    /// All that the fastest algorithm depends on.
    fn cache_key(
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

static ALGORITHMS: LazyLock<Mutex<AlgorithmCache>> =
    LazyLock::new(|| Mutex::new(AlgorithmCache::open(default_file())));

/// The algorithms of the convolutions that were computed, now or in earlier runs: what of, on which GPU, and
/// the algorithm's name.
pub fn cached_algorithms() -> Vec<(String, String)> {
    let algorithms = lock(&ALGORITHMS);
    let entry = |(key, algorithm): (&String, &ConvAlgorithm)| (key.clone(), algorithm.to_string());
    algorithms.iter().map(entry).collect()
}

/// Computes a convolution by its fastest algorithm, which is searched for if it is not cached.
/// `epilogue` enqueues what algorithms without a fused one must be followed by.
fn run_fastest(
    stream: &StreamGuard,
    key: &str,
    convolution: &CudnnConvolution,
    operands: ConvOperands,
    epilogue: impl Fn(&StreamGuard) -> Result<()>,
) -> Result<()> {
    // A lack of memory is an error of its own, not one of the algorithms that need a workspace.
    stream.workspace()?;
    let mut algorithms = lock(&ALGORITHMS);
    let mut failures = String::new();
    for _ in 0..2 {
        let algorithm = algorithms.get_or_measure(key, || {
            let (fastest, results) = convolution.find_fastest(stream, operands, &epilogue);
            note(Note::Info(format!("{key}{results}")));
            match fastest {
                Some(algorithm) => Ok(algorithm),
                None => bail!("cuDNN has no such convolution{results}"),
            }
        })?;
        match convolution.run(stream, &algorithm, operands) {
            Ok(()) if algorithm.is_fused() => return Ok(()),
            Ok(()) => return epilogue(stream),
            // The capture may be what failed, and during one nothing can be measured.
            Err(error) if is_capturing(&stream.handles.stream)? => return Err(error),
            // It does not work here: the cache's file may be foreign.
            Err(error) => {
                let failure = format!("; {algorithm}: {error}");
                note(Note::Info(format!("{key}{failure}")));
                failures += &failure;
                algorithms.remove(key);
            }
        }
    }
    bail!("none of cuDNN's algorithms can be relied on for {key}{failures}")
}

/// 3x3 convolution of an image `[h, w, 3]`, `f32`, to features, with bias and ReLU, stride 1. The image
/// is padded by replicating its edge.
pub struct ImageConv {
    format: Format,
    n_out: usize,
    /// `[3, 3, 3 input channels, n_out]`, `f32`.
    kernel: Tensor,
    bias: Tensor,
}

impl ImageConv {
    /// Takes a kernel `[n_out, 3, 3, 3]` and a bias `[n_out]`, both `f32`, on the device to use.
    pub fn new(kernel: &Tensor, bias: &Tensor, format: Format) -> Result<Self> {
        Ok(Self {
            format,
            n_out: kernel.dims()[0],
            kernel: to_host(kernel)?
                .permute((2, 3, 1, 0))?
                .contiguous()?
                .to_device(kernel.device())?,
            bias: bias.clone(),
        })
    }

    /// `output = relu(image * kernel + bias)`
    pub fn forward(&self, [h, w]: [usize; 2], image: &Tensor, output: &Tensor) -> Result<()> {
        let dtype = self.format.dtype();
        let args = [
            floats(image, h * w * 3)?,
            floats(&self.kernel, 27 * self.n_out)?,
            floats(&self.bias, self.n_out)?,
            features(output, dtype, h * w * self.n_out)?,
            Arg::Int(h as i32),
            Arg::Int(w as i32),
            Arg::Int(self.n_out as i32),
        ];
        let kernel = format!("image_conv_{}", suffix(dtype)?);
        // The blocks stride over strips of the image.
        Gpu::of(image.device())?
            .lock_stream()?
            .launch(&kernel, MAX_BLOCKS, &args)
    }

    /// The gradient with respect to the image, `f32`.
    pub fn backward(
        &self,
        [h, w]: [usize; 2],
        upstream: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<()> {
        let (dtype, count) = (self.format.dtype(), h * w * self.n_out);
        let args = [
            features(upstream, dtype, count)?,
            features(output, dtype, count)?,
            floats(&self.kernel, 27 * self.n_out)?,
            floats(gradient, h * w * 3)?,
            Arg::Int(h as i32),
            Arg::Int(w as i32),
            Arg::Int(self.n_out as i32),
        ];
        // The blocks stride over tiles of the image.
        Gpu::of(gradient.device())?
            .lock_stream()?
            .launch_features("image_conv_backward", dtype, (count, self.n_out), &args)
            .map(drop)
    }
}

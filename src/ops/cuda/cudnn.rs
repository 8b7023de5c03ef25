// SPDX-License-Identifier: MPL-2.0

//! 3x3 convolutions of features `[h, w, channels]` with `f32` accumulation, by those of cuDNN's
//! algorithms that are deterministic.

use super::super::Format;
use super::{Arg, StreamGuard, suffix};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cudnn::result::{self, CudnnError};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnActivationDescriptor_t, cudnnActivationMode_t, cudnnConvolutionBwdDataAlgo_t as Backward,
    cudnnConvolutionDescriptor_t, cudnnConvolutionFwdAlgo_t as Forward, cudnnConvolutionMode_t,
    cudnnDataType_t, cudnnFilterDescriptor_t, cudnnHandle_t, cudnnMathType_t,
    cudnnNanPropagation_t, cudnnStatus_t, cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{Error, Result};
use std::ffi::c_void;
use std::ptr::from_ref;

/// The workspace of an algorithm, at most.
pub const WORKSPACE_BYTES: usize = 256 << 20;

/// Positions and channels of a block of the fallback kernel: `TILE` in `kernels/convolution.cuh`.
const FALLBACK_TILE: usize = 64;

/// How often an algorithm is timed; the minimum counts.
const TIMING_ROUNDS: usize = 5;

/// Runs that are timed together: as many as take about so long in milliseconds, and at most so many.
/// The host launches later ones while the GPU computes, so that launches count less.
const ROUND_MS: f32 = 1.0;
const MAX_ROUND_RUNS: usize = 10;

/// A cuDNN handle that enqueues on one stream, for one thread at a time.
pub struct CudnnHandle(cudnnHandle_t);

// SAFETY: any thread may use a handle, one at a time; it is never shared.
unsafe impl Send for CudnnHandle {}

impl CudnnHandle {
    pub fn new(stream: &CudaStream) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        let handle = Self(result::create_handle().map_err(Error::wrap)?);
        // SAFETY: the handle was made just now.
        unsafe { result::set_stream(handle.0, stream.cu_stream().cast()) }.map_err(Error::wrap)?;
        Ok(handle)
    }
}

impl Drop for CudnnHandle {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConvAlgorithm {
    /// A forward convolution fused with bias and ReLU.
    Fused(Forward),
    /// A forward convolution; bias and ReLU, if any, follow as an epilogue.
    Plain(Forward),
    /// The input gradient ("backward data") of the convolution that this one is the adjoint of.
    Data(Backward),
    /// The kernel in `kernels/convolution.cuh`, which takes any size and format.
    Fallback,
}

const FORWARD: [(&str, Forward); 5] = [
    (
        "implicit-precomp-gemm",
        Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
    ),
    (
        "implicit-gemm",
        Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
    ),
    ("gemm", Forward::CUDNN_CONVOLUTION_FWD_ALGO_GEMM),
    ("winograd", Forward::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD),
    (
        "winograd-nonfused",
        Forward::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
    ),
];

const BACKWARD: [(&str, Backward); 3] = [
    ("1", Backward::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1),
    (
        "winograd",
        Backward::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD,
    ),
    (
        "winograd-nonfused",
        Backward::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED,
    ),
];

impl ConvAlgorithm {
    /// The candidates for a format. Winograd's transforms lose too much precision in all but `f32`.
    pub fn all(format: Format) -> impl Iterator<Item = Self> {
        let fits = move |name: &str| format == Format::F32 || !name.starts_with("winograd");
        let forward = FORWARD.into_iter().filter(move |(name, _)| fits(name));
        let backward = BACKWARD.into_iter().filter(move |(name, _)| fits(name));
        forward
            .flat_map(|(_, algorithm)| [Self::Fused(algorithm), Self::Plain(algorithm)])
            .chain(backward.map(|(_, algorithm)| Self::Data(algorithm)))
            .chain([Self::Fallback])
    }

    /// Whether it includes bias and ReLU.
    pub fn is_fused(self) -> bool {
        matches!(self, Self::Fused(_))
    }

    /// The name in the cache's file and in reports.
    pub fn name(self) -> String {
        let name = |kind: &str, name: Option<&str>| format!("{kind} {}", name.unwrap_or("?"));
        let forward = |wanted| FORWARD.iter().find(|(_, algorithm)| *algorithm == wanted);
        let backward = |wanted| BACKWARD.iter().find(|(_, algorithm)| *algorithm == wanted);
        match self {
            Self::Fused(algorithm) => name("fused", forward(algorithm).map(|found| found.0)),
            Self::Plain(algorithm) => name("plain", forward(algorithm).map(|found| found.0)),
            Self::Data(algorithm) => name("data", backward(algorithm).map(|found| found.0)),
            Self::Fallback => "own".into(),
        }
    }
}

/// An owned descriptor of cuDNN's.
struct Descriptor<T: Copy> {
    inner: T,
    destroy: unsafe fn(T) -> std::result::Result<(), CudnnError>,
}

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: `destroy` matches the descriptor's type, and nothing uses the descriptor any more.
        let _ = unsafe { (self.destroy)(self.inner) };
    }
}

unsafe fn destroy_activation(
    descriptor: cudnnActivationDescriptor_t,
) -> std::result::Result<(), CudnnError> {
    use candle_core::cuda_backend::cudarc::cudnn::sys::cudnnDestroyActivationDescriptor;
    // SAFETY: the caller's promise.
    unsafe { cudnnDestroyActivationDescriptor(descriptor) }.result()
}

/// The device addresses of a convolution's operands.
#[derive(Clone, Copy)]
pub struct ConvOperands {
    pub input: u64,
    /// `[n_out, 3, 3, n_in]`
    pub kernel: u64,
    /// The kernel of the convolution that this one is the adjoint of, `[n_in, 3, 3, n_out]`.
    pub adjoint: Option<u64>,
    /// `[n_out]`, in the format of the features.
    pub bias: Option<u64>,
    pub output: u64,
}

/// The descriptors of a 3x3 convolution of features of one size, stride 1, zero padding.
pub struct CudnnConvolution {
    format: Format,
    /// h, w, n_in, n_out
    dims: [usize; 4],
    input: Descriptor<cudnnTensorDescriptor_t>,
    output: Descriptor<cudnnTensorDescriptor_t>,
    bias: Descriptor<cudnnTensorDescriptor_t>,
    kernel: Descriptor<cudnnFilterDescriptor_t>,
    adjoint: Descriptor<cudnnFilterDescriptor_t>,
    convolution: Descriptor<cudnnConvolutionDescriptor_t>,
    relu: Descriptor<cudnnActivationDescriptor_t>,
}

impl CudnnConvolution {
    pub fn new(format: Format, [h, w]: [usize; 2], [n_in, n_out]: [usize; 2]) -> Result<Self> {
        Self::with_dims(format, [h, w, n_in, n_out]).map_err(Error::wrap)
    }

    fn with_dims(format: Format, dims: [usize; 4]) -> std::result::Result<Self, CudnnError> {
        let [h, w, n_in, n_out] = dims.map(|dim| dim as i32);
        let features = |h, w, n| {
            let descriptor = Descriptor {
                inner: result::create_tensor_descriptor()?,
                destroy: result::destroy_tensor_descriptor,
            };
            // SAFETY: the descriptor was created above.
            unsafe {
                result::set_tensor4d_descriptor(
                    descriptor.inner,
                    cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
                    data_type(format),
                    [1, n, h, w],
                )?;
            }
            Ok(descriptor)
        };
        let kernel = |n_out, n_in| {
            let descriptor = Descriptor {
                inner: result::create_filter_descriptor()?,
                destroy: result::destroy_filter_descriptor,
            };
            // SAFETY: as above.
            unsafe {
                result::set_filter4d_descriptor(
                    descriptor.inner,
                    data_type(format),
                    cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
                    [n_out, n_in, 3, 3],
                )?;
            }
            Ok(descriptor)
        };
        let convolution = Descriptor {
            inner: result::create_convolution_descriptor()?,
            destroy: result::destroy_convolution_descriptor,
        };
        let relu = Descriptor {
            inner: result::create_activation_descriptor()?,
            destroy: destroy_activation,
        };
        let (mode, accumulator) = (
            cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
            cudnnDataType_t::CUDNN_DATA_FLOAT,
        );
        let math = match format {
            Format::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            Format::Tf32 | Format::Bf16 | Format::F16 => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        // SAFETY: as above.
        unsafe {
            let inner = convolution.inner;
            result::set_convolution2d_descriptor(inner, 1, 1, 1, 1, 1, 1, mode, accumulator)?;
            result::set_convolution_math_type(inner, math)?;
            result::set_activation_descriptor(
                relu.inner,
                cudnnActivationMode_t::CUDNN_ACTIVATION_RELU,
                cudnnNanPropagation_t::CUDNN_NOT_PROPAGATE_NAN,
                0.0,
            )?;
        }
        Ok(Self {
            format,
            dims,
            input: features(h, w, n_in)?,
            output: features(h, w, n_out)?,
            bias: features(1, 1, n_out)?,
            kernel: kernel(n_out, n_in)?,
            adjoint: kernel(n_in, n_out)?,
            convolution,
            relu,
        })
    }

    /// Times the candidate algorithms, each with `epilogue` after it unless that is fused. Returns the
    /// fastest that works, if any, and a report of each result. The output is overwritten.
    pub fn find_fastest(
        &self,
        stream: &StreamGuard,
        operands: ConvOperands,
        mut epilogue: impl FnMut(&StreamGuard) -> Result<()>,
    ) -> (Option<ConvAlgorithm>, String) {
        let mut fastest: Option<(f32, ConvAlgorithm)> = None;
        let mut results = String::new();
        for algorithm in ConvAlgorithm::all(self.format) {
            let applies = match algorithm {
                ConvAlgorithm::Fused(_) => operands.bias.is_some(),
                ConvAlgorithm::Plain(_) => true,
                // It is slow: only for what no other algorithm supports.
                ConvAlgorithm::Fallback => fastest.is_none(),
                ConvAlgorithm::Data(_) => operands.adjoint.is_some(),
            };
            if !applies {
                continue;
            }
            let shortest = fastest.map_or(f32::INFINITY, |(time, _)| time);
            let result = match self.time(stream, (algorithm, shortest), operands, &mut epilogue) {
                Ok(time) => {
                    if time < shortest {
                        fastest = Some((time, algorithm));
                    }
                    format!("{time:.4} ms")
                }
                Err(error) => error.to_string(),
            };
            results += &format!("; {}: {result}", algorithm.name());
        }
        (fastest.map(|(_, algorithm)| algorithm), results)
    }

    /// The time of a run of an algorithm in milliseconds, the minimum over some rounds; over fewer if it
    /// is more than twice `limit`, and over none if a single run takes a round's time more than that.
    fn time(
        &self,
        stream: &StreamGuard,
        (algorithm, limit): (ConvAlgorithm, f32),
        operands: ConvOperands,
        epilogue: &mut impl FnMut(&StreamGuard) -> Result<()>,
    ) -> Result<f32> {
        use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        let cuda_stream = stream.handles.stream.clone();
        let mut run = || {
            self.run(stream, algorithm, operands)?;
            match algorithm.is_fused() {
                true => Ok(()),
                false => epilogue(stream),
            }
        };
        let mut time = |runs: usize| {
            let begun = cuda_stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
            (0..runs).try_for_each(|_| run())?;
            let ended = cuda_stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
            cuda_stream.synchronize().w()?;
            Ok::<_, Error>(begun.elapsed_ms(&ended).w()? / runs as f32)
        };
        // A warm-up, which shows whether the algorithm is supported.
        time(1)?;
        let single = time(1)?;
        if single > 2.0 * limit + ROUND_MS {
            return Ok(single);
        }
        let runs = ((ROUND_MS / single) as usize).clamp(1, MAX_ROUND_RUNS);
        let mut shortest = f32::INFINITY;
        for _ in 0..TIMING_ROUNDS {
            shortest = shortest.min(time(runs)?);
            if shortest > 2.0 * limit {
                break;
            }
        }
        Ok(shortest)
    }

    /// Enqueues the convolution by an algorithm.
    pub fn run(
        &self,
        stream: &StreamGuard,
        algorithm: ConvAlgorithm,
        operands: ConvOperands,
    ) -> Result<()> {
        if let ConvAlgorithm::Fallback = algorithm {
            return self.run_fallback(stream, operands);
        }
        let workspace = stream.scratch("workspace", WORKSPACE_BYTES)?;
        let handle = stream.handles.cudnn.0;
        let done = self.run_cudnn(handle, algorithm, operands, workspace as *mut c_void);
        done.map_err(Error::wrap)
    }

    fn run_fallback(&self, stream: &StreamGuard, operands: ConvOperands) -> Result<()> {
        let [h, w, _, n_out] = self.dims;
        let tiles = (h * w).div_ceil(FALLBACK_TILE) * n_out.div_ceil(FALLBACK_TILE);
        let dims = self.dims.map(|dim| Arg::Int(dim as i32));
        let operands = [operands.input, operands.kernel, operands.output].map(Arg::Address);
        let kernel = format!("convolution_{}", suffix(self.format.dtype())?);
        let grid = (tiles.min(i32::MAX as usize) as u32, 1);
        stream.launch(&kernel, grid, &[&operands[..], &dims].concat())
    }

    fn run_cudnn(
        &self,
        handle: cudnnHandle_t,
        algorithm: ConvAlgorithm,
        operands: ConvOperands,
        workspace: *mut c_void,
    ) -> std::result::Result<(), CudnnError> {
        let pointer = |address: u64| address as *mut c_void;
        let missing = CudnnError(cudnnStatus_t::CUDNN_STATUS_BAD_PARAM);
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = (from_ref(&one).cast(), from_ref(&zero).cast());
        let (input, output) = (pointer(operands.input), pointer(operands.output));
        let convolution = self.convolution.inner;
        let needed = self.workspace_bytes(handle, algorithm)?;
        if needed > WORKSPACE_BYTES {
            return Err(CudnnError(cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED));
        }
        // SAFETY: the operands lie on the handle's device and have the sizes in the descriptors, which
        // `Conv` sees to; the workspace is large enough.
        unsafe {
            match algorithm {
                ConvAlgorithm::Plain(algorithm) => result::convolution_forward(
                    handle,
                    one,
                    self.input.inner,
                    input,
                    self.kernel.inner,
                    pointer(operands.kernel),
                    convolution,
                    algorithm,
                    workspace,
                    needed,
                    zero,
                    self.output.inner,
                    output,
                ),
                ConvAlgorithm::Fused(algorithm) => result::convolution_bias_activation_forward(
                    handle,
                    one,
                    self.input.inner,
                    input,
                    self.kernel.inner,
                    pointer(operands.kernel),
                    convolution,
                    algorithm,
                    workspace,
                    needed,
                    zero,
                    self.output.inner,
                    output,
                    self.bias.inner,
                    pointer(operands.bias.ok_or(missing)?),
                    self.relu.inner,
                    self.output.inner,
                    output,
                ),
                ConvAlgorithm::Fallback => {
                    Err(CudnnError(cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED))
                }
                ConvAlgorithm::Data(algorithm) => result::convolution_backward_data(
                    handle,
                    one,
                    self.adjoint.inner,
                    pointer(operands.adjoint.ok_or(missing)?),
                    self.input.inner,
                    input,
                    convolution,
                    algorithm,
                    workspace,
                    needed,
                    zero,
                    self.output.inner,
                    output,
                ),
            }
        }
    }

    /// The bytes of workspace that an algorithm needs.
    fn workspace_bytes(
        &self,
        handle: cudnnHandle_t,
        algorithm: ConvAlgorithm,
    ) -> std::result::Result<usize, CudnnError> {
        let convolution = self.convolution.inner;
        // SAFETY: the handle and the descriptors are alive.
        unsafe {
            match algorithm {
                ConvAlgorithm::Fused(algorithm) | ConvAlgorithm::Plain(algorithm) => {
                    result::get_convolution_forward_workspace_size(
                        handle,
                        self.input.inner,
                        self.kernel.inner,
                        convolution,
                        self.output.inner,
                        algorithm,
                    )
                }
                ConvAlgorithm::Fallback => Ok(0),
                ConvAlgorithm::Data(algorithm) => {
                    result::get_convolution_backward_data_workspace_size(
                        handle,
                        self.adjoint.inner,
                        self.input.inner,
                        convolution,
                        self.output.inner,
                        algorithm,
                    )
                }
            }
        }
    }
}

fn data_type(format: Format) -> cudnnDataType_t {
    match format {
        Format::F32 | Format::Tf32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
        Format::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        Format::F16 => cudnnDataType_t::CUDNN_DATA_HALF,
    }
}

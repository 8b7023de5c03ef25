// SPDX-License-Identifier: MPL-2.0

//! 3x3 convolutions over features `[h, w, channels]`, with `f32` sums, by those of cuDNN's algorithms
//! that compute the same bit for bit each time.

use super::super::Format;
use super::{Arg, Work, suffix};
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

/// What an algorithm may work in.
pub const WORKSPACE: usize = 256 << 20;

/// Positions and channels of a block of the kernel of our own.
const OWN_TILE: usize = 64;

/// How often an algorithm is timed; the shortest time counts.
const ROUNDS: usize = 5;

/// A handle, for one thread at a time.
pub struct Cudnn(cudnnHandle_t);

// SAFETY: a handle may be used by any thread, by one at a time; it is never shared.
unsafe impl Send for Cudnn {}

impl Cudnn {
    pub fn new(stream: &CudaStream) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        let handle = Self(result::create_handle().map_err(Error::wrap)?);
        // SAFETY: the handle was made just now.
        unsafe { result::set_stream(handle.0, stream.cu_stream().cast()) }.map_err(Error::wrap)?;
        Ok(handle)
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        // SAFETY: nothing has the handle any more.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// With bias and ReLU in one.
    Fused(Forward),
    /// Bias and ReLU, where there are any, come after it.
    Plain(Forward),
    /// As the gradient of the convolution that it is the adjoint of.
    Data(Backward),
    /// By a kernel of our own, which takes any.
    Own,
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

impl Algorithm {
    /// Those that may be taken for a format: Winograd's transforms round too much in 16 bits.
    pub fn all(format: Format) -> impl Iterator<Item = Self> {
        let fits = move |name: &str| format == Format::F32 || !name.starts_with("winograd");
        let forward = FORWARD.into_iter().filter(move |(name, _)| fits(name));
        let backward = BACKWARD.into_iter().filter(move |(name, _)| fits(name));
        forward
            .flat_map(|(_, algorithm)| [Self::Fused(algorithm), Self::Plain(algorithm)])
            .chain(backward.map(|(_, algorithm)| Self::Data(algorithm)))
            .chain([Self::Own])
    }

    /// Whether bias and ReLU are done with it.
    pub fn is_fused(self) -> bool {
        matches!(self, Self::Fused(_))
    }

    pub fn name(self) -> String {
        let of = |kind: &str, name: Option<&str>| format!("{kind} {}", name.unwrap_or("?"));
        let forward = |it| FORWARD.iter().find(|(_, algorithm)| *algorithm == it);
        let backward = |it| BACKWARD.iter().find(|(_, algorithm)| *algorithm == it);
        match self {
            Self::Fused(it) => of("fused", forward(it).map(|it| it.0)),
            Self::Plain(it) => of("plain", forward(it).map(|it| it.0)),
            Self::Data(it) => of("data", backward(it).map(|it| it.0)),
            Self::Own => "own".into(),
        }
    }
}

/// A descriptor of cuDNN's, which goes with its owner.
struct Descriptor<T: Copy> {
    inner: T,
    destroy: unsafe fn(T) -> std::result::Result<(), CudnnError>,
}

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: it was made with the descriptor, which nothing has any more.
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

/// Where the operands of a convolution lie.
#[derive(Clone, Copy)]
pub struct Operands {
    pub input: u64,
    /// `[n_out, 3, 3, n_in]`
    pub kernel: u64,
    /// The kernel of the convolution that this one is the adjoint of, `[n_in, 3, 3, n_out]`.
    pub adjoint: Option<u64>,
    /// `[n_out]`, in the format of the features.
    pub bias: Option<u64>,
    pub output: u64,
}

/// A convolution of features of one size, stride 1, with a border of zeros.
pub struct Convolution {
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

impl Convolution {
    pub fn new(format: Format, [h, w]: [usize; 2], [n_in, n_out]: [usize; 2]) -> Result<Self> {
        Self::described(format, [h, w, n_in, n_out]).map_err(Error::wrap)
    }

    fn described(format: Format, dims: [usize; 4]) -> std::result::Result<Self, CudnnError> {
        let [h, w, n_in, n_out] = dims.map(|it| it as i32);
        let features = |h, w, n| {
            let descriptor = Descriptor {
                inner: result::create_tensor_descriptor()?,
                destroy: result::destroy_tensor_descriptor,
            };
            // SAFETY: made just now, as those below are.
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
        let (mode, sums) = (
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
            result::set_convolution2d_descriptor(inner, 1, 1, 1, 1, 1, 1, mode, sums)?;
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

    /// The fastest algorithm that computes it, with `after` done after those that are plain, and
    /// what became of each that was tried. It is computed in the course of it.
    pub fn fastest(
        &self,
        work: &Work,
        operands: Operands,
        mut after: impl FnMut(&Work) -> Result<()>,
    ) -> (Option<Algorithm>, String) {
        let mut fastest: Option<(f32, Algorithm)> = None;
        let mut tried = String::new();
        for algorithm in Algorithm::all(self.format) {
            let fits = match algorithm {
                Algorithm::Fused(_) => operands.bias.is_some(),
                Algorithm::Plain(_) => true,
                // It is there for what no other can do, and slow.
                Algorithm::Own => fastest.is_none(),
                Algorithm::Data(_) => operands.adjoint.is_some(),
            };
            if !fits {
                continue;
            }
            let shortest = fastest.map_or(f32::INFINITY, |(time, _)| time);
            let became = match self.time(work, (algorithm, shortest), operands, &mut after) {
                Ok(time) => {
                    if time < shortest {
                        fastest = Some((time, algorithm));
                    }
                    format!("{time:.4} ms")
                }
                Err(error) => error.to_string(),
            };
            tried += &format!("; {}: {became}", algorithm.name());
        }
        (fastest.map(|(_, algorithm)| algorithm), tried)
    }

    /// Milliseconds of an algorithm, only roughly where it takes more than twice `limit`.
    fn time(
        &self,
        work: &Work,
        (algorithm, limit): (Algorithm, f32),
        operands: Operands,
        after: &mut impl FnMut(&Work) -> Result<()>,
    ) -> Result<f32> {
        use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        let stream = work.lane.stream.clone();
        let mut shortest = f32::INFINITY;
        // The first round warms up, and shows whether it works.
        for round in 0..=ROUNDS {
            let begun = stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
            self.run(work, algorithm, operands)?;
            if !algorithm.is_fused() {
                after(work)?;
            }
            let ended = stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
            stream.synchronize().w()?;
            if round > 0 {
                shortest = shortest.min(begun.elapsed_ms(&ended).w()?);
                if shortest > 2.0 * limit {
                    break;
                }
            }
        }
        Ok(shortest)
    }

    /// Computes it.
    pub fn run(&self, work: &Work, algorithm: Algorithm, operands: Operands) -> Result<()> {
        if let Algorithm::Own = algorithm {
            return self.run_own(work, operands);
        }
        let workspace = work.scratch("workspace", WORKSPACE)?;
        let handle = work.lane.cudnn.0;
        let done = self.call(handle, algorithm, operands, workspace as *mut c_void);
        done.map_err(Error::wrap)
    }

    fn run_own(&self, work: &Work, operands: Operands) -> Result<()> {
        let [h, w, _, n_out] = self.dims;
        let tiles = (h * w).div_ceil(OWN_TILE) * n_out.div_ceil(OWN_TILE);
        let dims = self.dims.map(|it| Arg::Int(it as i32));
        let operands = [operands.input, operands.kernel, operands.output].map(Arg::Address);
        let kernel = format!("convolution_{}", suffix(self.format.dtype())?);
        let grid = (tiles.min(i32::MAX as usize) as u32, 1);
        work.launch(&kernel, grid, &[&operands[..], &dims].concat())
    }

    fn call(
        &self,
        handle: cudnnHandle_t,
        algorithm: Algorithm,
        operands: Operands,
        workspace: *mut c_void,
    ) -> std::result::Result<(), CudnnError> {
        let pointer = |address: u64| address as *mut c_void;
        let missing = CudnnError(cudnnStatus_t::CUDNN_STATUS_BAD_PARAM);
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = (from_ref(&one).cast(), from_ref(&zero).cast());
        let (input, output) = (pointer(operands.input), pointer(operands.output));
        let convolution = self.convolution.inner;
        let needed = self.workspace(handle, algorithm)?;
        if needed > WORKSPACE {
            return Err(CudnnError(cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED));
        }
        // SAFETY: the descriptors say what the operands are, which lie in memory of those sizes on
        // the handle's device, as their kernels and `Conv` see to.
        unsafe {
            match algorithm {
                Algorithm::Plain(algorithm) => result::convolution_forward(
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
                Algorithm::Fused(algorithm) => result::convolution_bias_activation_forward(
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
                Algorithm::Own => Err(CudnnError(cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED)),
                Algorithm::Data(algorithm) => result::convolution_backward_data(
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

    /// Bytes that an algorithm works in.
    fn workspace(
        &self,
        handle: cudnnHandle_t,
        algorithm: Algorithm,
    ) -> std::result::Result<usize, CudnnError> {
        let convolution = self.convolution.inner;
        // SAFETY: the handle and the descriptors are alive.
        unsafe {
            match algorithm {
                Algorithm::Fused(algorithm) | Algorithm::Plain(algorithm) => {
                    result::get_convolution_forward_workspace_size(
                        handle,
                        self.input.inner,
                        self.kernel.inner,
                        convolution,
                        self.output.inner,
                        algorithm,
                    )
                }
                Algorithm::Own => Ok(0),
                Algorithm::Data(algorithm) => result::get_convolution_backward_data_workspace_size(
                    handle,
                    self.adjoint.inner,
                    self.input.inner,
                    convolution,
                    self.output.inner,
                    algorithm,
                ),
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

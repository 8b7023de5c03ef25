// SPDX-License-Identifier: MPL-2.0

//! The operations on an NVIDIA GPU: this project's kernels, cuDNN's convolutions and cuBLAS's matrix
//! products.
//!
//! All work of a device is enqueued on its main stream, in the order of the calls, whichever thread
//! makes them. CUDA graphs are captured on a stream of their own and launched on the main stream. The work
//! of a graph is executed on that stream once before, in the main stream's order: each waits for the other.

mod backend;
pub mod conv;
mod cudnn;
pub mod diagnostics;
pub mod gram;
pub mod graph;
pub mod pairs;
mod plan;
pub mod pool;
pub mod read_back;
pub mod step_sums;
pub mod transfer;
pub mod vector;

use crate::threads::lock;
use candle_core::cuda_backend::cudarc::cublas::CudaBlas;
use candle_core::cuda_backend::cudarc::driver::sys::CUstreamCaptureStatus;
use candle_core::cuda_backend::cudarc::driver::{
    CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{DType, Device, Error, Result, Storage, Tensor, bail};
use cudnn::CudnnStream;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

/// Threads per block; the same as `THREADS` in `kernels/common.cuh`.
const THREADS: u32 = 256;

/// Blocks per grid at most. Each writes a partial sum, so a fixed limit keeps the order of the
/// additions the same on all GPUs.
const MAX_BLOCKS: u32 = 1024;

static KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// A stream and the library handles that enqueue on it, for one thread at a time.
pub(super) struct StreamHandles {
    cudnn: CudnnStream,
    blas: CudaBlas,
    /// It outlives the handles.
    stream: Arc<CudaStream>,
}

/// A device and what is set up on it once per process. A panic under one of its locks leaves what
/// that guards whole: handles, and memory that is added in one step.
pub(super) struct Gpu {
    device: CudaDevice,
    kernels: Arc<CudaModule>,
    /// The device's main stream, which candle uses too.
    main: Mutex<StreamHandles>,
    /// The stream that graphs are captured on.
    capture: Mutex<StreamHandles>,
    /// Held while a graph is captured: one capture at a time.
    capture_turn: Mutex<()>,
    /// Temporary memory of operations, by purpose and size. It is never freed or moved, as captured
    /// graphs refer to it.
    scratch: Mutex<HashMap<(&'static str, usize), CudaSlice<u8>>>,
    /// 0 and 1, as β of cuBLAS in device memory.
    betas: CudaSlice<f32>,
}

static GPUS: LazyLock<Mutex<HashMap<DeviceId, Arc<Gpu>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Whether this thread enqueues on the capture stream.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Arg {
    Address(u64),
    /// An address that kernels with vectorised loads need 16-byte aligned: of features, or of a value
    /// for each channel.
    Features(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

/// Upper bound of the scratch memory of all operations, in bytes.
pub const SCRATCH_BYTES: usize =
    plan::WORKSPACE_BYTES + gram::WORKSPACE_BYTES + 5 * gram::MAX_PARTIAL_VALUES * size_of::<f32>();

/// Bytes of a vectorised load or store.
const VECTOR_BYTES: usize = 16;

impl StreamHandles {
    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            cudnn: CudnnStream::new(&stream)?,
            blas: CudaBlas::new(stream.clone()).map_err(Error::wrap)?,
            stream,
        })
    }
}

impl Gpu {
    /// The GPU of a device, set up at the first call.
    pub(super) fn of(device: &Device) -> Result<Arc<Self>> {
        let device = device.as_cuda_device()?;
        let mut gpus = lock(&GPUS);
        if let Some(gpu) = gpus.get(&device.id()) {
            return Ok(gpu.clone());
        }
        let stream = device.cuda_stream();
        let context = stream.context();
        let gpu = Arc::new(Self {
            kernels: context.load_module(KERNELS.into()).w()?,
            main: Mutex::new(StreamHandles::new(stream.clone())?),
            capture: Mutex::new(StreamHandles::new(context.new_stream().w()?)?),
            capture_turn: Mutex::new(()),
            scratch: Mutex::default(),
            betas: device.clone_htod(&[0f32, 1f32])?,
            device: device.clone(),
        });
        gpus.insert(device.id(), gpu.clone());
        Ok(gpu)
    }

    /// Locks the stream that this thread enqueues on. Until the guard is dropped no other thread's
    /// operation comes in between.
    pub(super) fn lock_stream(&self) -> Result<StreamGuard<'_>> {
        let handles = lock(match CAPTURING.get() {
            true => &self.capture,
            false => &self.main,
        });
        handles.stream.context().bind_to_thread().w()?;
        Ok(StreamGuard { gpu: self, handles })
    }

    /// The device address of cuBLAS's β: 1 to add to the output, 0 to overwrite it.
    fn beta(&self, accumulate: bool) -> u64 {
        let start = self.betas.device_ptr(self.betas.stream()).0;
        start
            + if accumulate {
                size_of::<f32>() as u64
            } else {
                0
            }
    }
}

/// Exclusive use of a stream, for one operation.
pub(super) struct StreamGuard<'a> {
    gpu: &'a Gpu,
    handles: MutexGuard<'a, StreamHandles>,
}

/// Whether a stream is being captured, so that operations are not executed.
fn is_capturing(stream: &CudaStream) -> Result<bool> {
    let status = stream.capture_status().w()?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

impl StreamGuard<'_> {
    /// The address of `bytes` of scratch memory for a purpose, with arbitrary contents. Work is done
    /// in stream order, so the next operation may use it again.
    fn scratch(&self, purpose: &'static str, bytes: usize) -> Result<u64> {
        let mut scratch = lock(&self.gpu.scratch);
        let bytes = bytes.max(1);
        if let Some(slice) = scratch.get(&(purpose, bytes)) {
            return Ok(slice.device_ptr(slice.stream()).0);
        }
        let slice = self.gpu.device.alloc_zeros::<u8>(bytes)?;
        // It is allocated and cleared in main-stream order, which the capture stream must wait for.
        self.handles.stream.join(slice.stream()).w()?;
        let address = slice.device_ptr(slice.stream()).0;
        scratch.insert((purpose, bytes), slice);
        Ok(address)
    }

    /// The workspace of cuDNN's plans, [`plan::WORKSPACE_BYTES`].
    fn workspace(&self) -> Result<u64> {
        self.scratch("workspace", plan::WORKSPACE_BYTES)
    }

    /// Scratch memory for the partial sums of one sum.
    fn partials(&self) -> Result<u64> {
        self.scratch("partials", MAX_BLOCKS as usize * size_of::<f64>())
    }

    /// Launches a kernel with a grid of so many blocks.
    fn launch(&self, kernel: &str, blocks: u32, args: &[Arg]) -> Result<()> {
        let function = self.gpu.kernels.load_function(kernel).w()?;
        let mut builder = self.handles.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Address(value) | Arg::Features(value) => builder.arg(value),
                Arg::Int(value) => builder.arg(value),
                Arg::Long(value) => builder.arg(value),
                Arg::Float(value) => builder.arg(value),
                Arg::Double(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the callers pass the arguments in the types and order of the kernel's parameters; the
        // addresses are those of scratch memory and of tensors that the callers made, or whose types and
        // lengths `checked_address` compares, in the sizes that the kernel expects.
        unsafe { builder.launch(config) }.w().map(drop)
    }

    /// Launches a kernel over `items`. Returns the number of blocks, which is that of the partial sums
    /// if the kernel writes any.
    fn launch_1d(&self, kernel: &str, items: usize, args: &[Arg]) -> Result<u32> {
        let blocks = grid_size(items);
        self.launch(kernel, blocks, args)?;
        Ok(blocks)
    }

    /// Launches a kernel over `items` of features: the variant with vectorised loads and stores if
    /// rows of `channels` and the addresses of features are multiples of [`VECTOR_BYTES`].
    fn launch_features(
        &self,
        kernel: &str,
        dtype: DType,
        (items, channels): (usize, usize),
        args: &[Arg],
    ) -> Result<u32> {
        let width = VECTOR_BYTES / dtype.size_in_bytes();
        let aligned = |arg: &Arg| match arg {
            Arg::Features(address) => address.is_multiple_of(VECTOR_BYTES as u64),
            _ => true,
        };
        let vectorised = channels.is_multiple_of(width) && args.iter().all(aligned);
        let (suffix, items) = match (dtype, vectorised) {
            (DType::F32, true) => ("f32x4", items / width),
            (DType::F16, true) => ("f16x8", items / width),
            (DType::BF16, true) => ("bf16x8", items / width),
            (dtype, _) => (suffix(dtype)?, items),
        };
        // The kernels' indices of 32 bits also count the four positions of a pool's window.
        if items > u32::MAX as usize / 4 {
            bail!("{items} features are too many for a GPU's kernels");
        }
        self.launch_1d(&format!("{kernel}_{suffix}"), items, args)
    }

    /// Adds up `partials` `[rows, parts]` over the parts, into `sums`: a reduction's second stage.
    fn sum_partials(&self, partials: u64, parts: u32, rows: u32, sums: u64) -> Result<()> {
        self.launch(
            "sum_partials",
            rows,
            &[
                Arg::Address(partials),
                Arg::Int(parts as i32),
                Arg::Double(1.0),
                Arg::Address(sums),
            ],
        )
    }
}

/// Blocks of a grid-stride loop over `items`.
fn grid_size(items: usize) -> u32 {
    items
        .div_ceil(THREADS as usize)
        .clamp(1, MAX_BLOCKS as usize) as u32
}

/// The suffix of the kernels for features of a type.
fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        dtype => bail!("there are no features of {dtype:?}"),
    }
}

/// The device address of a contiguous tensor.
fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("a tensor on a GPU is needed")
    };
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("a contiguous tensor is needed, not one of layout {layout:?}")
    };
    let base = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(slice.stream()).0,
        CudaStorageSlice::F64(slice) => slice.device_ptr(slice.stream()).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(slice.stream()).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(slice.stream()).0,
        _ => bail!("there is no operation on {:?}", tensor.dtype()),
    };
    Ok(base + (start * tensor.dtype().size_in_bytes()) as u64)
}

/// The device address of a contiguous tensor, which must have `count` values of a type.
fn checked_address(tensor: &Tensor, dtype: DType, count: usize) -> Result<u64> {
    if tensor.dtype() != dtype || tensor.elem_count() != count {
        bail!(
            "a tensor of {count} values in {dtype:?} is needed, not {:?} in {:?}",
            tensor.dims(),
            tensor.dtype()
        );
    }
    address(tensor)
}

/// A tensor of the caller's own as a kernel's argument.
fn arg(tensor: &Tensor) -> Result<Arg> {
    address(tensor).map(Arg::Address)
}

/// `count` values in `f32`.
fn floats(tensor: &Tensor, count: usize) -> Result<Arg> {
    checked_address(tensor, DType::F32, count).map(Arg::Address)
}

/// `count` sums in `f64`.
fn sums(tensor: &Tensor, count: usize) -> Result<Arg> {
    checked_address(tensor, DType::F64, count).map(Arg::Address)
}

/// `count` values of features.
fn features(tensor: &Tensor, dtype: DType, count: usize) -> Result<Arg> {
    checked_address(tensor, dtype, count).map(Arg::Features)
}

/// Sets up a GPU for the operations, which its first operation would do otherwise.
///
/// # Errors
/// If the driver is too old for the kernels, or cuDNN or cuBLAS cannot be used.
pub fn set_up(device: &Device) -> Result<()> {
    Gpu::of(device).map(drop)
}

/// A GPU's compute capability: (8, 0) for Ampere's A100, (9, 0) for Hopper.
pub fn compute_capability(device: &Device) -> Result<(i32, i32)> {
    let stream = device.as_cuda_device()?.cuda_stream();
    stream.context().compute_capability().w()
}

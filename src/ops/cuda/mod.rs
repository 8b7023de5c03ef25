// SPDX-License-Identifier: MPL-2.0

//! The operations on an NVIDIA GPU: kernels of our own, cuDNN's convolutions and cuBLAS's products.
//!
//! All work of a device is done on its one stream, in the order in which it is given, whichever
//! thread gives it. What is recorded is given to a stream of its own instead, and done on the
//! device's when it is replayed.

pub mod conv;
mod cudnn;
pub mod gram;
pub mod notes;
pub mod pairs;
pub mod record;
pub mod transfer;
pub mod vector;

use candle_core::cuda_backend::cudarc::cublas::CudaBlas;
use candle_core::cuda_backend::cudarc::driver::sys::CUstreamCaptureStatus;
use candle_core::cuda_backend::cudarc::driver::{
    CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{DType, Device, Error, Result, Storage, Tensor, bail};
use cudnn::Cudnn;
use once_cell::sync::Lazy;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Threads of a block, as the kernels have it.
const THREADS: u32 = 256;

/// Blocks of a grid at most. Each leaves a part of a sum, so that the order of the additions is the
/// same on all GPUs.
const BLOCKS: u32 = 1024;

/// Rows of sums that are taken at a time at most, but for those of [`pairs`].
const ROWS: usize = 4;

static KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Where a stream's work is given: what belongs to one thread at a time.
pub(super) struct Lane {
    stream: Arc<CudaStream>,
    cudnn: Cudnn,
    blas: CudaBlas,
}

/// A device and what lasts there.
pub(super) struct Gpu {
    device: CudaDevice,
    kernels: Arc<CudaModule>,
    /// The device's own stream.
    lane: Mutex<Lane>,
    /// The one that is recorded, and who records on it.
    recording: Mutex<Lane>,
    recorder: Mutex<()>,
    /// Memory that operations work in, by what it is for and its size. It stays where it is, as
    /// recordings refer to it.
    scratch: Mutex<HashMap<(&'static str, usize), CudaSlice<u8>>>,
    /// 0 and 1.
    constants: CudaSlice<f32>,
}

static GPUS: Lazy<Mutex<HashMap<DeviceId, Arc<Gpu>>>> = Lazy::new(Mutex::default);

thread_local! {
    /// Whether what this thread does is recorded.
    static RECORDING: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Arg {
    Address(u64),
    /// Of features, or what goes with their channels.
    Features(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

/// Bytes of a GPU's memory that operations of all sizes work in.
pub const SCRATCH: usize =
    cudnn::WORKSPACE + gram::WORKSPACE + 5 * gram::MAX_VALUES * size_of::<f32>();

/// Bytes that a thread reads or writes at once, if it can.
const WIDE: usize = 16;

impl Lane {
    fn new(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            cudnn: Cudnn::new(&stream)?,
            blas: CudaBlas::new(stream.clone()).map_err(Error::wrap)?,
            stream,
        })
    }
}

impl Gpu {
    /// The GPU of a device, made ready when it is first asked for.
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
            lane: Mutex::new(Lane::new(stream.clone())?),
            recording: Mutex::new(Lane::new(context.new_stream().w()?)?),
            recorder: Mutex::new(()),
            scratch: Mutex::default(),
            constants: device.clone_htod(&[0f32, 1f32])?,
            device: device.clone(),
        });
        gpus.insert(device.id(), gpu.clone());
        Ok(gpu)
    }

    /// What an operation is given to. While it is there no other thread's comes in between.
    pub(super) fn work(&self) -> Result<Work<'_>> {
        let lane = lock(match RECORDING.get() {
            true => &self.recording,
            false => &self.lane,
        });
        lane.stream.context().bind_to_thread().w()?;
        Ok(Work { gpu: self, lane })
    }

    /// Where 1, or else 0, is found in `f32`.
    fn constant(&self, one: bool) -> u64 {
        let start = self.constants.device_ptr(self.constants.stream()).0;
        start + if one { size_of::<f32>() as u64 } else { 0 }
    }
}

/// An operation's turn on the GPU.
pub(super) struct Work<'a> {
    gpu: &'a Gpu,
    lane: MutexGuard<'a, Lane>,
}

impl Work<'_> {
    /// Memory of `bytes` for a purpose, of no particular content. The device's work is done in
    /// order, so that whatever comes next may have it.
    fn scratch(&self, purpose: &'static str, bytes: usize) -> Result<u64> {
        let mut scratch = lock(&self.gpu.scratch);
        let bytes = bytes.max(1);
        if let Some(slice) = scratch.get(&(purpose, bytes)) {
            return Ok(slice.device_ptr(slice.stream()).0);
        }
        let slice = self.gpu.device.alloc_zeros::<u8>(bytes)?;
        // It is made in the device's own stream, of which the one that is recorded knows nothing.
        self.lane.stream.join(slice.stream()).w()?;
        let address = slice.device_ptr(slice.stream()).0;
        scratch.insert((purpose, bytes), slice);
        Ok(address)
    }

    /// Whether what is given is recorded rather than done.
    fn is_captured(&self) -> Result<bool> {
        let status = self.lane.stream.capture_status().w()?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Parts of up to [`ROWS`] sums.
    fn partials(&self) -> Result<u64> {
        self.scratch("partials", ROWS * BLOCKS as usize * size_of::<f64>())
    }

    /// Runs a kernel over a grid.
    fn launch(&self, kernel: &str, (x, y): (u32, u32), args: &[Arg]) -> Result<()> {
        let function = self.gpu.kernels.load_function(kernel).w()?;
        let mut builder = self.lane.stream.launch_builder(&function);
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
            grid_dim: (x, y, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are the kernel's own, as each caller names them; the addresses are
        // those of tensors and scratch memory of the sizes that the kernel takes.
        unsafe { builder.launch(config) }.w().map(drop)
    }

    /// Runs a kernel over `items`. What comes back is the number of blocks, which each leave a part
    /// of a sum.
    fn each(&self, kernel: &str, items: usize, args: &[Arg]) -> Result<u32> {
        let blocks = blocks(items);
        self.launch(kernel, (blocks, 1), args)?;
        Ok(blocks)
    }

    /// Runs a kernel for features over `items`, in the form that reads and writes 16 bytes at a
    /// time where rows of `channels` and the addresses of features are multiples of that.
    fn each_feature(
        &self,
        kernel: &str,
        dtype: DType,
        (items, channels): (usize, usize),
        args: &[Arg],
    ) -> Result<u32> {
        let together = WIDE / dtype.size_in_bytes();
        let aligned = |arg: &Arg| match arg {
            Arg::Features(address) => address.is_multiple_of(WIDE as u64),
            _ => true,
        };
        let wide = channels.is_multiple_of(together) && args.iter().all(aligned);
        let (suffix, items) = match (dtype, wide) {
            (DType::F32, true) => ("f32x4", items / together),
            (DType::F16, true) => ("f16x8", items / together),
            (DType::BF16, true) => ("bf16x8", items / together),
            (dtype, _) => (suffix(dtype)?, items),
        };
        self.each(&format!("{kernel}_{suffix}"), items, args)
    }

    /// Adds up the parts of `rows` sums of `parts` each, into `sums`.
    fn finish(&self, partials: u64, parts: u32, rows: u32, sums: u64) -> Result<()> {
        self.launch(
            "sum_partials",
            (rows, 1),
            &[
                Arg::Address(partials),
                Arg::Int(parts as i32),
                Arg::Double(1.0),
                Arg::Address(sums),
            ],
        )
    }
}

/// Blocks for so many items.
fn blocks(items: usize) -> u32 {
    items.div_ceil(THREADS as usize).clamp(1, BLOCKS as usize) as u32
}

fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        dtype => bail!("there are no features of {dtype:?}"),
    }
}

/// Where the values of a contiguous tensor lie.
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

/// [`address`] as an argument.
fn at(tensor: &Tensor) -> Result<Arg> {
    address(tensor).map(Arg::Address)
}

/// The same for features.
fn features_at(tensor: &Tensor) -> Result<Arg> {
    address(tensor).map(Arg::Features)
}

/// What generation a GPU is of: (8, 0) for Ampere, (9, 0) for Hopper.
pub fn compute_capability(device: &Device) -> Result<(i32, i32)> {
    let stream = device.as_cuda_device()?.cuda_stream();
    stream.context().compute_capability().w()
}

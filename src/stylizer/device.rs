// SPDX-License-Identifier: MPL-2.0

//! The device that the network runs on, and its memory.

use crate::threads::lock;
use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::sys;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use once_cell::sync::Lazy;
use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "cuda")]
use std::ptr::{from_mut, null_mut};
use std::str::FromStr;
use std::sync::Mutex;
use sysinfo::System;

/// The device that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if it works, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("‘{0}’ is not a device: auto, cpu, cuda or cuda:N is expected")]
    Unknown(String),
    #[error("this build has no CUDA support; one with the Cargo feature ‘cuda’ does")]
    NoCuda,
    #[error("GPU {0} cannot be used: {1}")]
    Cuda(usize, String),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || Error::Unknown(name.into());
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                number.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl DeviceChoice {
    /// Opens the device. Where `Auto` fell back to the CPU, the error says why.
    pub fn open(self) -> Result<(Device, Option<Error>), Error> {
        match self {
            Self::Cpu => Ok((Device::Cpu, None)),
            Self::Cuda(ordinal) => Ok((cuda(ordinal)?, None)),
            Self::Auto => match cuda(0) {
                Ok(device) => Ok((device, None)),
                Err(Error::NoCuda) => Ok((Device::Cpu, None)),
                Err(error) => Ok((Device::Cpu, Some(error))),
            },
        }
    }
}

/// The process's one candle device for each GPU: tensors of two devices do not mix, even on one
/// GPU.
static GPUS: Lazy<Mutex<HashMap<usize, Device>>> = Lazy::new(Mutex::default);

fn cuda(ordinal: usize) -> Result<Device, Error> {
    if !cfg!(feature = "cuda") {
        return Err(Error::NoCuda);
    }
    let mut gpus = lock(&GPUS);
    if let Some(device) = gpus.get(&ordinal) {
        return Ok(device.clone());
    }
    // Not the calling thread's stream, as GStreamer changes threads. Without a driver, cudarc can
    // panic.
    let open = || Device::new_cuda_with_stream(ordinal).and_then(configured);
    let device = catch_unwind(AssertUnwindSafe(open))
        .map_err(|_| Error::Cuda(ordinal, "there is no CUDA driver".into()))?
        .map_err(|error| Error::Cuda(ordinal, error.to_string()))?;
    gpus.insert(ordinal, device.clone());
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn configured(device: Device) -> candle_core::Result<Device> {
    Ok(device)
}

/// Makes a GPU keep freed memory for later allocations, and record no event for each use of a
/// tensor.
#[cfg(feature = "cuda")]
fn configured(device: Device) -> candle_core::Result<Device> {
    let gpu = device.as_cuda_device()?;
    let mut threshold = u64::MAX;
    // Some GPUs, such as virtual ones, have no memory pools: there each allocation goes to the
    // driver.
    if let Ok(pool) = memory_pool(gpu) {
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute's value is a u64.
        let _ =
            unsafe { sys::cuMemPoolSetAttribute(pool, attribute, from_mut(&mut threshold).cast()) };
    }
    // SAFETY: all uses of a tensor are in the device's one stream, which orders them without
    // events.
    unsafe { gpu.disable_event_tracking() };
    Ok(device)
}

/// The pool that a GPU's memory is allocated from.
#[cfg(feature = "cuda")]
fn memory_pool(gpu: &CudaDevice) -> candle_core::Result<sys::CUmemoryPool> {
    let stream = gpu.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().w()?;
    let mut pool = null_mut();
    // SAFETY: the device is that of a live context.
    unsafe { sys::cuDeviceGetMemPool(&mut pool, context.cu_device()) }
        .result()
        .w()?;
    Ok(pool)
}

#[cfg(not(feature = "cuda"))]
pub fn give_back_memory(_: &Device) {}

/// Returns the freed memory that the pool keeps to the driver.
#[cfg(feature = "cuda")]
pub fn give_back_memory(device: &Device) {
    let Device::Cuda(gpu) = device else { return };
    // Frees take effect in stream order, so wait for them. An error only means that the memory is
    // kept.
    let _ = gpu.cuda_stream().synchronize();
    if let Ok(pool) = memory_pool(gpu) {
        // SAFETY: the pool is that of a live context.
        let _ = unsafe { sys::cuMemPoolTrimTo(pool, 0) };
    }
}

/// The scratch memory of the operations on images of a height and width on a GPU, in bytes.
#[cfg(feature = "cudnn")]
pub fn scratch_bytes(_: (usize, usize)) -> usize {
    crate::ops::cuda::SCRATCH_BYTES
}

/// The scratch memory of candle's convolution at its largest: conv1_2's 64 channels, unfolded to
/// the nine values under the kernel.
#[cfg(not(feature = "cudnn"))]
pub fn scratch_bytes((h, w): (usize, usize)) -> usize {
    9 * 64 * h * w * size_of::<f32>()
}

/// The free memory of a GPU or, for the CPU, of the machine in bytes. None if it is not known.
pub fn free_bytes(device: &Device) -> candle_core::Result<Option<usize>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => gpu_free_bytes(gpu).map(Some),
        _ => Ok(machine_free_bytes()),
    }
}

/// The memory, swap included, that this process can still get from the system or, if that is less,
/// from the container that it runs in.
fn machine_free_bytes() -> Option<usize> {
    let mut system = System::new();
    system.refresh_memory();
    // As where /proc is not mounted.
    if system.total_memory() == 0 {
        return None;
    }
    let free = system.available_memory().saturating_add(system.free_swap());
    let in_container = system.cgroup_limits().map(|limits| {
        // Not `free_memory`, which takes the cache of files for used.
        let free = limits.total_memory.saturating_sub(limits.rss);
        free.saturating_add(limits.free_swap)
    });
    let free = in_container.map_or(free, |in_container| free.min(in_container));
    Some(free.try_into().unwrap_or(usize::MAX))
}

/// What the limit of this process' address space (`ulimit -v`) leaves, in bytes. None if there is none,
/// or it is not known, as elsewhere than under Linux.
pub fn free_address_space() -> Option<usize> {
    let number = |file: &str, label: &str| {
        // The name of the process, in `status`, need not be UTF-8.
        let text = fs::read(file).ok()?;
        let text = String::from_utf8_lossy(&text);
        let (_, rest) = text.split_once(label)?;
        rest.split_whitespace().next()?.parse::<usize>().ok()
    };
    let limit = number("/proc/self/limits", "Max address space")?;
    let used = 1024 * number("/proc/self/status", "VmSize:")?;
    Some(limit.saturating_sub(used))
}

#[cfg(feature = "cuda")]
fn gpu_free_bytes(gpu: &CudaDevice) -> candle_core::Result<usize> {
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as RESERVED, CU_MEMPOOL_ATTR_USED_MEM_CURRENT as USED,
    };
    let attribute = |pool, attribute| {
        let mut bytes = 0u64;
        // SAFETY: these attributes' values are u64.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, from_mut(&mut bytes).cast()) }
            .result()
            .w()?;
        candle_core::Result::Ok(bytes as usize)
    };
    // The pool's unused memory counts as free.
    let kept = memory_pool(gpu)
        .and_then(|pool| Ok(attribute(pool, RESERVED)?.saturating_sub(attribute(pool, USED)?)));
    let (free, _) = gpu.cuda_stream().context().mem_get_info().w()?;
    Ok(free + kept.unwrap_or(0))
}

/// The name of a device in reports: `cpu` or `cuda:N`.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in [
            "",
            "banana",
            "CPU",
            "CUDA",
            " cpu",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:1.5",
            "cuda:99999999999999999999",
            "cuda0",
            "gpu",
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(
                matches!(&error, Error::Unknown(name) if name == text),
                "{error}"
            );
            let start = format!("‘{text}’ is not a device: auto, cpu, cuda");
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        let (device, fallback) = DeviceChoice::Cpu.open().unwrap();
        assert!(device.is_cpu() && fallback.is_none());
        assert_eq!(name(&device), "cpu");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn auto_says_why_it_falls_back_to_the_cpu() {
        let (device, fallback) = DeviceChoice::Auto.open().unwrap();
        assert_eq!(device.is_cpu(), fallback.is_some());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let (device, fallback) = DeviceChoice::Auto.open().unwrap();
        assert!(device.is_cpu() && fallback.is_none());
        for ordinal in [0, 7] {
            let error = DeviceChoice::Cuda(ordinal).open().unwrap_err();
            assert!(matches!(error, Error::NoCuda), "{error}");
            let message = error.to_string();
            assert!(message.contains("no CUDA support"), "{message}");
            assert!(message.contains("Cargo feature ‘cuda’"), "{message}");
        }
    }
}

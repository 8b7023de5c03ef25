// SPDX-License-Identifier: MPL-2.0

//! The device that the network runs on.

#[cfg(feature = "cuda")]
use super::memory::free::memory_pool;
use crate::threads::lock;
use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::sys;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "cuda")]
use std::ptr::from_mut;
use std::str::FromStr;
use std::sync::{LazyLock, Mutex};

/// The device that the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if it works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
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
static GPUS: LazyLock<Mutex<HashMap<usize, Device>>> = LazyLock::new(Mutex::default);

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
        .map_err(|_| {
            Error::Cuda(
                ordinal,
                "there is no CUDA driver, or it does not work".into(),
            )
        })?
        .map_err(|error| Error::Cuda(ordinal, error.to_string()))?;
    gpus.insert(ordinal, device.clone());
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn configured(device: Device) -> candle_core::Result<Device> {
    Ok(device)
}

/// Makes a GPU keep freed memory for later allocations, and record no event for each use of a
/// tensor. With cuDNN it is set up for the operations, too: fails where the driver cannot load the kernels.
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
    // SAFETY: all uses of a tensor are in the device's main stream, or in the capture stream, which
    // waits for it and for which it waits (`ops::cuda::graph`): they are ordered without an event each.
    unsafe { gpu.disable_event_tracking() };
    #[cfg(feature = "cudnn")]
    crate::ops::cuda::set_up(&device)?;
    Ok(device)
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

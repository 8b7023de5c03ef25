// SPDX-License-Identifier: MPL-2.0

//! Where the work is done.

use candle_core::Device;
use once_cell::sync::Lazy;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// What the user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if it works, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("‘{0}’ is not a device; auto, cpu, cuda and cuda:N are")]
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
    /// The device, and why it is not the GPU where `Auto` had to do without one.
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

/// One device for each GPU of the process: tensors of two devices do not mix, even on one GPU.
static GPUS: Lazy<Mutex<HashMap<usize, Device>>> = Lazy::new(Mutex::default);

fn cuda(ordinal: usize) -> Result<Device, Error> {
    if !cfg!(feature = "cuda") {
        return Err(Error::NoCuda);
    }
    let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = gpus.get(&ordinal) {
        return Ok(device.clone());
    }
    // A stream of its own: GStreamer changes threads. Without a driver, the binding can panic.
    let device = catch_unwind(AssertUnwindSafe(|| Device::new_cuda_with_stream(ordinal)))
        .map_err(|_| Error::Cuda(ordinal, "there is no CUDA driver".into()))?
        .map_err(|error| Error::Cuda(ordinal, error.to_string()))?;
    gpus.insert(ordinal, device.clone());
    Ok(device)
}

/// How a device is called in reports: `cpu` or `cuda:N`.
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
            "", "banana", "CPU", " cpu", "cuda:", "cuda:-1", "cuda:1.5", "cuda0", "gpu",
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(
                matches!(&error, Error::Unknown(name) if name == text),
                "{error}"
            );
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        let (device, fallback) = DeviceChoice::Cpu.open().unwrap();
        assert!(device.is_cpu() && fallback.is_none());
        assert_eq!(name(&device), "cpu");
        assert!(DeviceChoice::Auto.open().is_ok());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let (device, fallback) = DeviceChoice::Auto.open().unwrap();
        assert!(device.is_cpu() && fallback.is_none());
        assert!(matches!(DeviceChoice::Cuda(0).open(), Err(Error::NoCuda)));
        assert!(matches!(DeviceChoice::Cuda(7).open(), Err(Error::NoCuda)));
    }
}

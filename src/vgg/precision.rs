// SPDX-License-Identifier: MPL-2.0

//! What the network's features are computed in. Pixels, the optimiser and the losses are f32 or
//! wider whatever this is.

use crate::ops::amx::Amx;
use candle_core::Device;
use std::fmt;

/// What features, gradients and weights are rounded to where a convolution multiplies them. Sums
/// are f32 or wider in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// f32 on each device. That bf16 is faster on CPUs with AMX has been measured on no machine yet,
    /// so it has to be asked for.
    #[default]
    Auto,
    F32,
    Tf32,
    /// On CPUs with AMX. conv1_1, and layers whose channels are no multiple of 32, stay in f32.
    Bf16,
    F16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// Why a device cannot compute in a precision.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this CPU has no AMX, or the system does not let it be used; auto and f32 need none")]
    NoAmx,
    #[error("a CPU computes in f32, or in bf16 where it has AMX")]
    NotOnCpu,
    #[error("a GPU computes in f32 alone so far")]
    NotOnGpu,
}

/// A precision that a device has, and what it takes.
pub(super) enum Chosen {
    F32,
    Bf16(Amx),
}

impl Precision {
    /// Whether `device` has it.
    pub fn check(self, device: &Device) -> Result<(), Error> {
        self.choose(device).map(drop)
    }

    pub(super) fn choose(self, device: &Device) -> Result<Chosen, Error> {
        match (self, device) {
            (Self::Auto | Self::F32, _) => Ok(Chosen::F32),
            (Self::Bf16, Device::Cpu) => Amx::new().map(Chosen::Bf16).ok_or(Error::NoAmx),
            (_, Device::Cpu) => Err(Error::NotOnCpu),
            _ => Err(Error::NotOnGpu),
        }
    }
}

impl Chosen {
    pub(super) fn precision(&self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16(_) => Precision::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_of_the_cpu() {
        for precision in [Precision::Auto, Precision::F32] {
            let chosen = precision.choose(&Device::Cpu).unwrap();
            assert_eq!(chosen.precision(), Precision::F32);
        }
        for precision in [Precision::Tf32, Precision::F16] {
            let error = precision.check(&Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::NotOnCpu), "{precision}");
        }
        match (Amx::new(), Precision::Bf16.choose(&Device::Cpu)) {
            (Some(_), Ok(chosen)) => assert_eq!(chosen.precision(), Precision::Bf16),
            (None, Err(Error::NoAmx)) => (),
            (amx, _) => panic!("with AMX: {}", amx.is_some()),
        }
    }
}

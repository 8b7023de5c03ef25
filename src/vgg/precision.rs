// SPDX-License-Identifier: MPL-2.0

//! What the network's features are computed in. Pixels, the optimiser and the losses are f32 or
//! wider whatever this is.

use super::weights::Weights;
use crate::ops::amx::{Amx, CHANNELS};
use candle_core::{DType, Device};
use std::fmt;

/// What features, gradients with respect to them, and weights are rounded to. Sums are f32 or
/// wider in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// The fastest that keeps the gradient's direction: bf16 on CPUs with AMX, else f32.
    #[default]
    Auto,
    F32,
    Tf32,
    /// On CPUs with AMX, for networks whose numbers of channels are multiples of 32.
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
    #[error(
        "bf16 takes layers whose channels are multiples of 32, which those of these weights are not; \
         auto and f32 take any"
    )]
    Narrow,
    #[error("a CPU computes in f32, or in bf16 where it has AMX")]
    NotOnCpu,
    #[error("a GPU computes in f32 alone so far")]
    NotOnGpu,
}

/// A precision that a device has, and what it takes.
#[derive(Clone, Copy)]
pub(super) enum Chosen {
    F32,
    Bf16(Amx),
}

impl Precision {
    /// Whether `device` has it.
    pub fn check(self, device: &Device) -> Result<(), Error> {
        self.on(device).map(drop)
    }

    /// What it is on `device`, for a network that all precisions take.
    pub(super) fn on(self, device: &Device) -> Result<Chosen, Error> {
        match (self, device) {
            (Self::F32, _) => Ok(Chosen::F32),
            (Self::Auto, Device::Cpu) => Ok(Amx::new().map_or(Chosen::F32, Chosen::Bf16)),
            (Self::Auto, _) => Ok(Chosen::F32),
            (Self::Bf16, Device::Cpu) => Amx::new().map(Chosen::Bf16).ok_or(Error::NoAmx),
            (_, Device::Cpu) => Err(Error::NotOnCpu),
            _ => Err(Error::NotOnGpu),
        }
    }

    /// What it is on `device` for a network with these convolutions.
    pub(super) fn choose(self, device: &Device, weights: &Weights) -> Result<Chosen, Error> {
        match self.on(device)? {
            Chosen::Bf16(_) if weights.channels().any(|n| !n.is_multiple_of(CHANNELS)) => {
                match self {
                    Self::Auto => Ok(Chosen::F32),
                    _ => Err(Error::Narrow),
                }
            }
            chosen => Ok(chosen),
        }
    }
}

impl Chosen {
    /// Of features and of gradients with respect to them.
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16(_) => DType::BF16,
        }
    }

    pub(super) fn precision(self) -> Precision {
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
        let on_cpu = |precision: Precision| precision.on(&Device::Cpu).map(Chosen::precision);
        assert_eq!(on_cpu(Precision::F32).unwrap(), Precision::F32);
        for precision in [Precision::Tf32, Precision::F16] {
            let error = precision.check(&Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::NotOnCpu), "{precision}");
        }
        let auto = on_cpu(Precision::Auto).unwrap();
        match (Amx::new(), on_cpu(Precision::Bf16)) {
            (Some(_), Ok(Precision::Bf16)) => assert_eq!(auto, Precision::Bf16),
            (None, Err(Error::NoAmx)) => assert_eq!(auto, Precision::F32),
            (amx, _) => panic!("with AMX: {}", amx.is_some()),
        }
    }
}

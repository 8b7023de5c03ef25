// SPDX-License-Identifier: MPL-2.0

//! The precision of the network's features. Pixels, the optimiser and the losses are f32 or wider in
//! any case.

use super::weights::Weights;
use crate::ops::Format;
use crate::ops::amx::{Amx, CHANNEL_MULTIPLE};
use candle_core::Device;
use std::fmt;

/// The format that weights, features and the gradients with respect to them are rounded to; with AMX not
/// the weights of conv1_1, which keep 16 bits. Sums are f32 or wider in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// The fastest that keeps the gradient's direction: f16 on GPUs with cuDNN, bf16 on CPUs with AMX,
    /// else f32.
    #[default]
    Auto,
    /// On any device.
    F32,
    /// On GPUs from Ampere on, with cuDNN.
    Tf32,
    /// The same, and on CPUs with AMX if the network's channels are multiples of 32.
    Bf16,
    /// On GPUs with cuDNN: more precise than bf16, but activations beyond 65504 overflow.
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
    #[error("this CPU has no AMX, or the system does not let it be used; use auto or f32")]
    NoAmx,
    #[error(
        "bf16 needs layers with multiples of 32 channels, which these weights do not all have; use auto or f32"
    )]
    Narrow,
    #[error("a CPU computes in f32, or in bf16 where it has AMX")]
    NotOnCpu,
    #[error(
        "this build has no cuDNN, without which a GPU computes in f32 only; one with the Cargo feature ‘cudnn’ does"
    )]
    NoCudnn,
    #[error(
        "this GPU is older than Ampere (compute capability 8.0), which bf16 and tf32 need; use auto, f16 or f32"
    )]
    BeforeAmpere,
}

impl Precision {
    /// Whether finite f32 values can become infinite in it: only f16's range is narrower than f32's.
    pub fn can_overflow(self) -> bool {
        self == Self::F16
    }

    /// Checks that `device` has it.
    pub fn check(self, device: &Device) -> Result<(), Error> {
        self.on(device).map(drop)
    }

    /// The format that it is on `device`, for a network that suits all of them.
    pub(super) fn on(self, device: &Device) -> Result<Format, Error> {
        if !device.is_cpu() {
            return self.on_gpu(GpuSupport::of(device));
        }
        match (self, Amx::new()) {
            (Self::F32, _) | (Self::Auto, None) => Ok(Format::F32),
            (Self::Bf16 | Self::Auto, Some(_)) => Ok(Format::Bf16),
            (Self::Bf16, None) => Err(Error::NoAmx),
            (Self::Tf32 | Self::F16, _) => Err(Error::NotOnCpu),
        }
    }

    fn on_gpu(self, gpu: GpuSupport) -> Result<Format, Error> {
        match (self, gpu) {
            (Self::F32, _) | (Self::Auto, GpuSupport::WithoutCudnn) => Ok(Format::F32),
            (_, GpuSupport::WithoutCudnn) => Err(Error::NoCudnn),
            (Self::F16 | Self::Auto, _) => Ok(Format::F16),
            (_, GpuSupport::BeforeAmpere) => Err(Error::BeforeAmpere),
            (Self::Bf16, GpuSupport::Ampere) => Ok(Format::Bf16),
            (Self::Tf32, GpuSupport::Ampere) => Ok(Format::Tf32),
        }
    }

    /// The format that it is on `device` for a network with these weights.
    pub(super) fn resolve(self, device: &Device, weights: &Weights) -> Result<Format, Error> {
        let format = self.on(device)?;
        let narrow = format == Format::Bf16
            && device.is_cpu()
            && weights
                .channels()
                .any(|n| !n.is_multiple_of(CHANNEL_MULTIPLE));
        match (narrow, self) {
            (false, _) => Ok(format),
            (true, Self::Auto) => Ok(Format::F32),
            (true, _) => Err(Error::Narrow),
        }
    }
}

/// What limits the precisions of a GPU. A build has only the first, or only the other two.
#[derive(Clone, Copy)]
#[allow(dead_code)]
enum GpuSupport {
    WithoutCudnn,
    BeforeAmpere,
    Ampere,
}

impl GpuSupport {
    #[cfg(not(feature = "cudnn"))]
    fn of(_: &Device) -> Self {
        Self::WithoutCudnn
    }

    #[cfg(feature = "cudnn")]
    fn of(device: &Device) -> Self {
        match crate::ops::cuda::compute_capability(device) {
            Ok((8.., _)) => Self::Ampere,
            _ => Self::BeforeAmpere,
        }
    }
}

impl From<Format> for Precision {
    fn from(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::Tf32 => Self::Tf32,
            Format::Bf16 => Self::Bf16,
            Format::F16 => Self::F16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_of_gpus() {
        use Precision::*;
        let formats =
            |gpu| [Auto, F32, Tf32, Bf16, F16].map(|precision| precision.on_gpu(gpu).ok());
        let [f32, f16] = [Format::F32, Format::F16].map(Some);
        assert_eq!(
            formats(GpuSupport::BeforeAmpere),
            [f16, f32, None, None, f16]
        );
        let [tf32, bf16] = [Format::Tf32, Format::Bf16].map(Some);
        assert_eq!(formats(GpuSupport::Ampere), [f16, f32, tf32, bf16, f16]);
        assert_eq!(
            formats(GpuSupport::WithoutCudnn),
            [f32, f32, None, None, None]
        );
        for precision in [Tf32, Bf16] {
            let refused = precision.on_gpu(GpuSupport::BeforeAmpere);
            assert!(matches!(refused, Err(Error::BeforeAmpere)), "{precision}");
        }
    }

    #[test]
    fn precisions_of_the_cpu() {
        let on_cpu = |precision: Precision| precision.on(&Device::Cpu).map(Precision::from);
        assert_eq!(on_cpu(Precision::F32).unwrap(), Precision::F32);
        for precision in [Precision::Tf32, Precision::F16] {
            let error = precision.check(&Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::NotOnCpu), "{precision}");
            assert!(error.to_string().contains("computes in f32"), "{error}");
        }
        let auto = on_cpu(Precision::Auto).unwrap();
        match (Amx::new(), on_cpu(Precision::Bf16)) {
            (Some(_), Ok(Precision::Bf16)) => assert_eq!(auto, Precision::Bf16),
            (None, Err(Error::NoAmx)) => assert_eq!(auto, Precision::F32),
            (amx, _) => panic!("with AMX: {}", amx.is_some()),
        }
    }
}

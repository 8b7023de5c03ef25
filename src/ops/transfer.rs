// SPDX-License-Identifier: MPL-2.0

//! Transfers between the host and the device, on CUDA through page-locked memory.

use candle_core::{Device, Result, Tensor};

/// Copies a tensor to the CPU, once what computes it is done.
///
/// A copy to memory that is not page-locked may still be under way when CUDA's call returns: the
/// driver waits for it as a rule, but that is not promised.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    let host = tensor.to_device(&Device::Cpu)?;
    tensor.device().synchronize()?;
    Ok(host)
}

/// Copies images to a device and back, on CUDA through page-locked staging memory.
#[derive(Default)]
pub struct Transfer {
    #[cfg(feature = "cudnn")]
    staging: Option<super::cuda::transfer::Staging>,
}

impl Transfer {
    /// Copies an image from the CPU to `device`. On CUDA this is asynchronous: the copy is enqueued
    /// after the GPU's work so far, and the caller goes on.
    pub fn upload(&mut self, image: &Tensor, device: &Device) -> Result<Tensor> {
        match device {
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => self.staging(device)?.upload(image),
            _ => image.to_device(device),
        }
    }

    /// Copies an image from its device to the CPU, once what computes it is done.
    pub fn download(&mut self, image: &Tensor) -> Result<Tensor> {
        match image.device() {
            #[cfg(feature = "cudnn")]
            device @ Device::Cuda(_) => self.staging(device)?.download(image),
            _ => to_host(image)?.copy(),
        }
    }

    #[cfg(feature = "cudnn")]
    fn staging(&mut self, device: &Device) -> Result<&mut super::cuda::transfer::Staging> {
        let staging = match self.staging.take() {
            Some(staging) => staging,
            None => super::cuda::transfer::Staging::new(device)?,
        };
        Ok(self.staging.insert(staging))
    }
}

/// Reads the values of one tensor of sums again and again.
pub struct SumsReader {
    /// `f64` `[n]`
    sums: Tensor,
    #[cfg(feature = "cudnn")]
    read_back: Option<super::cuda::read_back::ReadBack>,
}

impl SumsReader {
    /// For sums `f64` `[n]`.
    pub fn new(sums: Tensor) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "cudnn")]
            read_back: match sums.device() {
                device @ Device::Cuda(_) => Some(super::cuda::read_back::ReadBack::new(
                    sums.elem_count(),
                    device,
                )?),
                _ => None,
            },
            sums,
        })
    }

    /// The sums, once what computes them is done.
    pub fn read(&mut self) -> Result<Vec<f64>> {
        #[cfg(feature = "cudnn")]
        if let Some(read_back) = &mut self.read_back {
            read_back.copy(&self.sums)?;
            return Ok(read_back.read()?.to_vec());
        }
        to_host(&self.sums)?.to_vec1()
    }
}

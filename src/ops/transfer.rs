// SPDX-License-Identifier: MPL-2.0

//! Image transfers between the host and the device.

use candle_core::{Device, Result, Tensor};

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
            _ => image.to_device(&Device::Cpu)?.copy(),
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

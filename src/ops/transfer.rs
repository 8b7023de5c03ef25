// SPDX-License-Identifier: MPL-2.0

//! Images between the host and the device that the work is done on.

use candle_core::{Device, Result, Tensor};

/// The way of images to a device and back.
#[derive(Default)]
pub struct Transfer {
    #[cfg(feature = "cudnn")]
    staging: Option<super::cuda::transfer::Staging>,
}

impl Transfer {
    /// An image on the CPU as one on `device`. A GPU takes it while it computes and the caller goes
    /// on.
    pub fn upload(&mut self, image: &Tensor, device: &Device) -> Result<Tensor> {
        match device {
            #[cfg(feature = "cudnn")]
            Device::Cuda(_) => self.staging(device)?.upload(image),
            _ => image.to_device(device),
        }
    }

    /// A copy on the CPU of an image on its device.
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

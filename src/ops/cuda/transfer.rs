// SPDX-License-Identifier: MPL-2.0

//! Images between the host and a GPU, by way of memory that the GPU reads and writes by itself.

use super::super::with_values;
use super::Gpu;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{Device, Result, Storage, Tensor, bail};
use std::sync::Arc;

/// Images that are kept room for: frames, starts, and what pixels are held to, of a size or two.
const UPLOADS: usize = 8;

/// What images pass through, kept from frame to frame.
pub struct Staging {
    gpu: Arc<Gpu>,
    /// What brings images up while the device's own stream computes.
    stream: Arc<CudaStream>,
    /// Each with the event of its last image being up: as uses of memory are not marked, nothing
    /// else knows.
    uploads: Vec<(PinnedHostSlice<f32>, Option<CudaEvent>)>,
    download: Option<PinnedHostSlice<f32>>,
}

impl Staging {
    pub fn new(device: &Device) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let stream = gpu.device.cuda_stream().context().new_stream().w()?;
        Ok(Self {
            gpu,
            stream,
            uploads: Vec::new(),
            download: None,
        })
    }

    /// A copy of an image on the CPU, which the device's work from now on waits for.
    pub fn upload(&mut self, image: &Tensor) -> Result<Tensor> {
        let (device, count) = (&self.gpu.device, image.elem_count());
        let main = device.cuda_stream();
        let is_free = |(pinned, up): &(PinnedHostSlice<f32>, Option<CudaEvent>)| {
            pinned.len() == count && up.as_ref().is_none_or(CudaEvent::is_complete)
        };
        let index = match self.uploads.iter().position(is_free) {
            Some(index) => index,
            None => {
                if self.uploads.len() == UPLOADS {
                    self.stream.synchronize().w()?;
                    self.uploads.clear();
                }
                // SAFETY: it is written before it is read.
                let pinned = unsafe { main.context().alloc_pinned(count) }.w()?;
                self.uploads.push((pinned, None));
                self.uploads.len() - 1
            }
        };
        let (pinned, up) = &mut self.uploads[index];
        let place = pinned.as_mut_slice().w()?;
        with_values(image, |values: &[f32]| place.copy_from_slice(values))?;
        // SAFETY: it is written before anything reads it, as the streams wait for each other.
        let mut slice = unsafe { device.alloc::<f32>(count)? };
        self.stream.join(&main).w()?;
        self.stream.memcpy_htod(pinned, &mut slice).w()?;
        *up = Some(self.stream.record_event(None).w()?);
        main.join(&self.stream).w()?;
        let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
        Ok(Tensor::from_storage(
            Storage::Cuda(storage),
            image.shape(),
            BackpropOp::none(),
            false,
        ))
    }

    /// A copy on the CPU of an image, when all that computes it is done.
    pub fn download(&mut self, image: &Tensor) -> Result<Tensor> {
        let main = self.gpu.device.cuda_stream();
        let count = image.elem_count();
        let pinned = match self.download.take() {
            Some(pinned) if pinned.len() == count => pinned,
            // SAFETY: it is written before it is read.
            _ => unsafe { main.context().alloc_pinned_with_flags(count, 0) }.w()?,
        };
        let pinned = self.download.insert(pinned);
        {
            let (storage, layout) = image.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else {
                bail!("an image on a GPU is needed")
            };
            let Some((start, end)) = layout.contiguous_offsets() else {
                bail!("a contiguous image is needed, not one of layout {layout:?}")
            };
            let values = storage.as_cuda_slice::<f32>()?.slice(start..end);
            main.memcpy_dtoh(&values, pinned).w()?;
        }
        main.synchronize().w()?;
        Tensor::from_slice(pinned.as_slice().w()?, image.shape(), &Device::Cpu)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What is on its way up is read until it is there.
        let _ = self.stream.synchronize();
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Transfers of images between the host and a GPU, through pinned host memory.

use super::super::with_values;
use super::Gpu;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DeviceRepr, PinnedHostSlice,
};
use candle_core::cuda_backend::{CudaDType, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{Device, Result, Storage, Tensor, bail};
use std::sync::Arc;

/// Enough for frames, initial images and temporal targets of one or two sizes.
const MAX_UPLOAD_BUFFERS: usize = 8;

/// Pinned memory that is uploaded from.
struct UploadBuffer {
    memory: PinnedHostSlice<f32>,
    /// Completes with the latest upload. The memory does not know: event tracking is disabled.
    uploaded: Option<CudaEvent>,
}

impl UploadBuffer {
    fn is_free(&self) -> bool {
        self.uploaded.as_ref().is_none_or(CudaEvent::is_complete)
    }
}

/// Pinned buffers that are kept from frame to frame.
pub struct Staging {
    gpu: Arc<Gpu>,
    uploads: Vec<UploadBuffer>,
    download: Option<PinnedHostSlice<f32>>,
}

impl Staging {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            gpu: Gpu::of(device)?,
            uploads: Vec::new(),
            download: None,
        })
    }

    /// Copies an image from the CPU on the main stream, without waiting for the copy. A stream of its own
    /// would gain nothing: the image's memory is allocated in the order of the main stream's work.
    pub fn upload(&mut self, image: &Tensor) -> Result<Tensor> {
        let (device, count) = (&self.gpu.device, image.elem_count());
        let main = device.cuda_stream();
        // The events are asked in the thread's context, and cudarc does not set it for that.
        main.context().bind_to_thread().w()?;
        let fits = |buffer: &UploadBuffer| buffer.memory.len() == count && buffer.is_free();
        let index = match self.uploads.iter().position(fits) {
            Some(index) => index,
            None => {
                if self.uploads.len() == MAX_UPLOAD_BUFFERS {
                    main.synchronize().w()?;
                    self.uploads.clear();
                }
                // SAFETY: it is written before it is read.
                let memory = unsafe { main.context().alloc_pinned(count) }.w()?;
                self.uploads.push(UploadBuffer {
                    memory,
                    uploaded: None,
                });
                self.uploads.len() - 1
            }
        };
        let UploadBuffer { memory, uploaded } = &mut self.uploads[index];
        let host = memory.as_mut_slice().w()?;
        with_values([image], |[values]: [&[f32]; 1]| {
            host.copy_from_slice(values)
        })?;
        // SAFETY: it is written before it is read.
        let mut slice = unsafe { device.alloc::<f32>(count)? };
        main.memcpy_htod(memory, &mut slice).w()?;
        *uploaded = Some(main.record_event(None).w()?);
        let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
        Ok(Tensor::from_storage(
            Storage::Cuda(storage),
            image.shape(),
            BackpropOp::none(),
            false,
        ))
    }

    /// Copies an image to the CPU, after the main stream's work so far.
    pub fn download(&mut self, image: &Tensor) -> Result<Tensor> {
        let main = self.gpu.device.cuda_stream();
        let count = image.elem_count();
        let pinned = match self.download.take() {
            Some(pinned) if pinned.len() == count => pinned,
            // SAFETY: it is written before it is read.
            _ => unsafe { main.context().alloc_pinned_with_flags(count, 0) }.w()?,
        };
        let pinned = self.download.insert(pinned);
        copy_to_pinned(image, &main, pinned)?;
        main.synchronize().w()?;
        Tensor::from_slice(pinned.as_slice().w()?, image.shape(), &Device::Cpu)
    }
}

/// Enqueues a copy of a contiguous tensor on a GPU to pinned memory of its length.
pub(super) fn copy_to_pinned<T: CudaDType + DeviceRepr>(
    tensor: &Tensor,
    stream: &Arc<CudaStream>,
    pinned: &mut PinnedHostSlice<T>,
) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("a tensor on a GPU is needed")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a contiguous tensor is needed, not one of layout {layout:?}")
    };
    let values = storage.as_cuda_slice::<T>()?.slice(start..end);
    stream.memcpy_dtoh(&values, pinned).w()
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Uploads in flight still read the pinned memory.
        let _ = self.gpu.device.cuda_stream().synchronize();
    }
}

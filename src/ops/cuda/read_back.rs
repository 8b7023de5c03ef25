// SPDX-License-Identifier: MPL-2.0

//! Sums that the host reads in each iteration.

use super::Gpu;
use super::transfer::copy_to_pinned;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice};
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// A copy of sums, `f64`, in pinned host memory.
pub struct ReadBack {
    gpu: Arc<Gpu>,
    host: PinnedHostSlice<f64>,
    /// Completes with the copy. `host` does not know: event tracking is disabled.
    copied: CudaEvent,
}

impl ReadBack {
    /// For `len` sums on `device`, which are 0 before the first copy.
    pub fn new(len: usize, device: &Device) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let context = gpu.device.cuda_stream().context().clone();
        // SAFETY: it is written before it is read.
        let mut host = unsafe { context.alloc_pinned_with_flags(len, 0) }.w()?;
        host.as_mut_slice().w()?.fill(0.0);
        Ok(Self {
            host,
            copied: context.new_event(None).w()?,
            gpu,
        })
    }

    /// Enqueues a copy of `sums`, after the main stream's work so far.
    pub fn copy(&mut self, sums: &Tensor) -> Result<()> {
        let stream = self.gpu.device.cuda_stream();
        copy_to_pinned(sums, &stream, &mut self.host)?;
        self.copied.record(&stream).w()
    }

    /// The sums of the last copy; waits for that, not for what was enqueued after it.
    pub fn read(&self) -> Result<&[f64]> {
        self.copied.synchronize().w()?;
        self.host.as_slice().w()
    }
}

impl Drop for ReadBack {
    fn drop(&mut self) {
        // A copy in flight still writes to the pinned memory.
        let _ = self.copied.synchronize();
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The sums over a trial step of L-BFGS's line search, which the host needs in each iteration.

use super::transfer::copy_to_pinned;
use super::vector::reduce;
use super::{Arg, Gpu, arg};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

/// Σ (trial − image)² and Σ gradient (trial − image). Their copy to the host is enqueued with them: it
/// is done long before the losses of the trial are, for which the host waits.
pub struct StepSums {
    gpu: Arc<Gpu>,
    /// `f64` `[2]`
    sums: Tensor,
    host: PinnedHostSlice<f64>,
    /// Completes with the copy. `host` does not know: event tracking is disabled.
    copied: CudaEvent,
}

impl StepSums {
    pub fn new(device: &Device) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let context = gpu.device.cuda_stream().context().clone();
        // SAFETY: it is written before it is read.
        let mut host = unsafe { context.alloc_pinned_with_flags(2, 0) }.w()?;
        host.as_mut_slice().w()?.fill(0.0);
        Ok(Self {
            sums: Tensor::zeros(2, DType::F64, device)?,
            host,
            copied: context.new_event(None).w()?,
            gpu,
        })
    }

    /// Enqueues the sums and their copy to the host.
    pub fn measure(&mut self, image: &Tensor, gradient: &Tensor, trial: &Tensor) -> Result<()> {
        let values = image.elem_count();
        reduce(&self.sums, |stream, partials| {
            let count = Arg::Long(values as i64);
            let args = [arg(image)?, arg(trial)?, arg(gradient)?, partials, count];
            stream.launch_1d("lbfgs_step_sums", values, &args)
        })?;
        let stream = self.gpu.device.cuda_stream();
        copy_to_pinned(&self.sums, &stream, &mut self.host)?;
        self.copied.record(&stream).w()
    }

    /// The sums of the last step; waits for their copy, not for what was enqueued after it.
    pub fn read(&self) -> Result<[f64; 2]> {
        self.copied.synchronize().w()?;
        let host = self.host.as_slice().w()?;
        Ok([host[0], host[1]])
    }
}

impl Drop for StepSums {
    fn drop(&mut self) {
        // A copy in flight still writes to the pinned memory.
        let _ = self.copied.synchronize();
    }
}

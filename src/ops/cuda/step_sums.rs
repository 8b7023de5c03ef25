// SPDX-License-Identifier: MPL-2.0

//! A trial step of L-BFGS's line search, and the sums over it, which the host needs in each iteration.

use super::pairs::tiles;
use super::transfer::copy_to_pinned;
use super::{Arg, Gpu, arg};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

/// Σ (trial − image)² and Σ gradient (trial − image). Their partial sums are copied to the host right
/// after the step: that is done long before the losses of the trial are, for which the host waits.
pub struct StepSums {
    gpu: Arc<Gpu>,
    /// `f64` `[2, tiles]`
    partials: Tensor,
    host: PinnedHostSlice<f64>,
    /// Completes with the copy. `host` does not know: event tracking is disabled.
    copied: CudaEvent,
}

impl StepSums {
    /// For images of `values` values.
    pub fn new(values: usize, device: &Device) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let context = gpu.device.cuda_stream().context().clone();
        let tiles = tiles(values);
        // SAFETY: it is written before it is read.
        let mut host = unsafe { context.alloc_pinned_with_flags(2 * tiles, 0) }.w()?;
        host.as_mut_slice().w()?.fill(0.0);
        Ok(Self {
            partials: Tensor::zeros((2, tiles), DType::F64, device)?,
            host,
            copied: context.new_event(None).w()?,
            gpu,
        })
    }

    /// Enqueues the step of a length along `direction` to `trial`, projected onto 0..1, and the copy of the
    /// sums over it.
    pub fn step(
        &mut self,
        (image, gradient): (&Tensor, &Tensor),
        (length, direction): (f64, &Tensor),
        trial: &Tensor,
    ) -> Result<()> {
        let values = image.elem_count();
        let args = [
            arg(image)?,
            arg(gradient)?,
            Arg::Float(length as f32),
            arg(direction)?,
            arg(trial)?,
            arg(&self.partials)?,
            Arg::Long(values as i64),
        ];
        let grid = (self.partials.dim(1)? as u32, 1);
        self.gpu.lock_stream()?.launch("lbfgs_step", grid, &args)?;
        let stream = self.gpu.device.cuda_stream();
        copy_to_pinned(&self.partials, &stream, &mut self.host)?;
        self.copied.record(&stream).w()
    }

    /// The sums of the last step; waits for their copy, not for what was enqueued after it.
    pub fn read(&self) -> Result<[f64; 2]> {
        self.copied.synchronize().w()?;
        let (squares, slopes) = self.host.as_slice().w()?.split_at(self.host.len() / 2);
        Ok([squares.iter().sum(), slopes.iter().sum()])
    }
}

impl Drop for StepSums {
    fn drop(&mut self) {
        // A copy in flight still writes to the pinned memory.
        let _ = self.copied.synchronize();
    }
}

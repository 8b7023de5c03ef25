// SPDX-License-Identifier: MPL-2.0

//! A trial step of L-BFGS's line search, and the sums over it, which the host needs in each iteration.

use super::pairs::tiles;
use super::read_back::ReadBack;
use super::{Arg, Gpu, arg, floats};
use candle_core::{DType, Device, Result, Tensor};

/// Σ (trial − image)² and Σ gradient (trial − image). Their partial sums are copied to the host right
/// after the step: that is done long before the losses of the trial are, for which the host waits.
pub struct StepSums {
    /// `f64` `[2, tiles]`
    partials: Tensor,
    on_host: ReadBack,
}

impl StepSums {
    /// For images of `values` values.
    pub fn new(values: usize, device: &Device) -> Result<Self> {
        let tiles = tiles(values);
        Ok(Self {
            partials: Tensor::zeros((2, tiles), DType::F64, device)?,
            on_host: ReadBack::new(2 * tiles, device)?,
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
            floats(image, values)?,
            floats(gradient, values)?,
            Arg::Float(length as f32),
            floats(direction, values)?,
            floats(trial, values)?,
            arg(&self.partials)?,
            Arg::Long(values as i64),
        ];
        let tiles = self.partials.dim(1)? as u32;
        let gpu = Gpu::of(image.device())?;
        gpu.lock_stream()?.launch("lbfgs_step", tiles, &args)?;
        self.on_host.copy(&self.partials)
    }

    /// The sums of the last step; waits for their copy, not for what was enqueued after it.
    pub fn read(&self) -> Result<[f64; 2]> {
        let partials = self.on_host.read()?;
        let (squares, slopes) = partials.split_at(partials.len() / 2);
        Ok([squares.iter().sum(), slopes.iter().sum()])
    }
}

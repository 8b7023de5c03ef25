// SPDX-License-Identifier: MPL-2.0

//! The displacement of a trial of the line search, after its projection onto 0..1.

use super::inverse_hessian::Point;
#[cfg(feature = "cudnn")]
use crate::ops::cuda::step_sums::StepSums;
use crate::ops::elementwise::{difference, dot};
use candle_core::{Result, Tensor};

/// The sums over the displacement s = trial − image: sᵀs and gᵀs.
pub struct TrialStep {
    sums: Sums,
    /// The number of an image's values.
    values: f64,
}

enum Sums {
    Host {
        displacement: Tensor,
        sums: [f64; 2],
    },
    #[cfg(feature = "cudnn")]
    Gpu(StepSums),
}

impl TrialStep {
    /// For images of the shape and device of `image`.
    pub fn new(image: &Tensor) -> Result<Self> {
        Ok(Self {
            sums: match image.device() {
                #[cfg(feature = "cudnn")]
                device @ candle_core::Device::Cuda(_) => Sums::Gpu(StepSums::new(device)?),
                _ => Sums::Host {
                    displacement: image.zeros_like()?,
                    sums: [0.0; 2],
                },
            },
            values: image.elem_count() as f64,
        })
    }

    /// Computes the sums for the step from a point to `trial`; a GPU does while the host goes on.
    pub fn measure(&mut self, (image, gradient): Point, trial: &Tensor) -> Result<()> {
        match &mut self.sums {
            Sums::Host { displacement, sums } => {
                difference(displacement, trial, image)?;
                *sums = [
                    dot(displacement, displacement)?,
                    dot(gradient, displacement)?,
                ];
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Sums::Gpu(sums) => sums.measure(image, gradient, trial),
        }
    }

    /// The root mean square of s, and the directional derivative gᵀs.
    pub fn read(&self) -> Result<(f64, f64)> {
        let [squares, derivative] = match &self.sums {
            Sums::Host { sums, .. } => *sums,
            #[cfg(feature = "cudnn")]
            Sums::Gpu(sums) => sums.read()?,
        };
        Ok(((squares / self.values).sqrt(), derivative))
    }
}

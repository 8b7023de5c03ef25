// SPDX-License-Identifier: MPL-2.0

//! A trial step of the line search, and its displacement after the projection onto 0..1.

use super::inverse_hessian::Point;
#[cfg(feature = "cudnn")]
use crate::ops::cuda::step_sums::StepSums;
use crate::ops::elementwise::{difference, dot, step};
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
                device @ candle_core::Device::Cuda(_) => {
                    Sums::Gpu(StepSums::new(image.elem_count(), device)?)
                }
                _ => Sums::Host {
                    displacement: image.zeros_like()?,
                    sums: [0.0; 2],
                },
            },
            values: image.elem_count() as f64,
        })
    }

    /// Steps from a point to `trial`: by a length along a direction, projected onto 0..1. Computes the sums,
    /// too; a GPU does while the host goes on.
    pub fn take(
        &mut self,
        (image, gradient): Point,
        (length, direction): (f64, &Tensor),
        trial: &Tensor,
    ) -> Result<()> {
        match &mut self.sums {
            Sums::Host { displacement, sums } => {
                step(trial, image, length, direction)?;
                difference(displacement, trial, image)?;
                *sums = [
                    dot(displacement, displacement)?,
                    dot(gradient, displacement)?,
                ];
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Sums::Gpu(sums) => sums.step((image, gradient), (length, direction), trial),
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

// SPDX-License-Identifier: MPL-2.0

//! The displacement of a trial of the line search, after its projection onto 0..1.

use super::inverse_hessian::Point;
#[cfg(feature = "cudnn")]
use crate::ops::cuda::pairs as gpu;
use crate::ops::elementwise::{difference, dot};
use candle_core::{DType, Result, Tensor};

/// The displacement s = trial − image, and the sums over it. They are read only when they are
/// needed, so that a GPU computes them while the host goes on.
pub struct TrialStep {
    /// s, except on a GPU.
    displacement: Tensor,
    /// sᵀs and gᵀs, `f64` `[2]`.
    sums: Tensor,
}

impl TrialStep {
    pub fn new(image: &Tensor) -> Result<Self> {
        Ok(Self {
            displacement: image.zeros_like()?,
            sums: Tensor::zeros(2, DType::F64, image.device())?,
        })
    }

    /// Computes the sums for the step from a point to `trial`.
    pub fn measure(&self, (image, gradient): Point, trial: &Tensor) -> Result<()> {
        match image.device() {
            #[cfg(feature = "cudnn")]
            candle_core::Device::Cuda(_) => {
                gpu::DevicePairs::step_sums(image, trial, gradient, &self.sums)
            }
            device => {
                let s = &self.displacement;
                difference(s, trial, image)?;
                let sums = [dot(s, s)?, dot(gradient, s)?];
                self.sums.slice_set(&Tensor::new(&sums, device)?, 0, 0)
            }
        }
    }

    /// The root mean square of s, and the directional derivative gᵀs.
    pub fn read(&self) -> Result<(f64, f64)> {
        let sums = self.sums.to_vec1::<f64>()?;
        let count = self.displacement.elem_count() as f64;
        Ok(((sums[0] / count).sqrt(), sums[1]))
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The curvature pairs of L-BFGS on a GPU, and the search direction from them. The host only chooses
//! step lengths, so only [`DevicePairs::count_and_curvature`] waits for the device.

use super::{Arg, Gpu, THREADS, address, arg, floats, vector};
use crate::ops::transfer::to_host;
use candle_core::{DType, Device, Result, Tensor};

/// Values that a block takes; the same as `BLOCK_VALUES` in `kernels/lbfgs.cuh`.
const BLOCK_VALUES: usize = 12 * THREADS as usize;

/// The tiles that blocks take of a number of values.
pub(super) fn tiles(values: usize) -> usize {
    values.div_ceil(BLOCK_VALUES).max(1)
}

/// A ring buffer of the latest displacements s and gradient changes y. `kernels/lbfgs.cuh` has the
/// algorithm and the layouts.
pub struct DevicePairs {
    history: usize,
    values: usize,
    /// s of each slot, then y of each slot, in whole tiles: `[2 slots, tiles * BLOCK_VALUES]`.
    vectors: Tensor,
    /// `f64` `[4]`: the number of pairs, the spare slot, the curvature scale sᵀy / yᵀy, which is the latest
    /// pair's, and that of the objective's first pair; both 0 if unknown.
    state: Tensor,
    /// The inner products of the slots' rows, `f64` `[2 slots, 2 slots]`.
    products: Tensor,
    /// `f64` `[6 slots + 1, tiles]`, of `sums`.
    partials: Tensor,
    /// The inner products that a step needs, and the squared norm of the gradient, `f64` `[6 slots + 1]`.
    sums: Tensor,
    /// The direction as a linear combination: a coefficient for each row of the slots, and one for the
    /// projected steepest descent. `f64` `[2 slots + 1]`.
    coefficients: Tensor,
}

/// What [`DevicePairs::advance`] goes by.
pub struct Thresholds {
    /// A step is taken as a pair if the cosine between its s and y is above this.
    pub min_cosine: f64,
    /// The root mean square of the direction while the curvature is unknown.
    pub first_step: f64,
}

impl DevicePairs {
    /// Room for `history` pairs over images of `values` values.
    pub fn new(history: usize, values: usize, device: &Device) -> Result<Self> {
        let (slots, tiles) = (history + 1, tiles(values));
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F64, device);
        Ok(Self {
            history,
            values,
            vectors: Tensor::zeros((2 * slots, tiles * BLOCK_VALUES), DType::F32, device)?,
            state: zeros(&[4])?,
            products: zeros(&[2 * slots, 2 * slots])?,
            partials: zeros(&[6 * slots + 1, tiles])?,
            sums: zeros(&[6 * slots + 1])?,
            coefficients: zeros(&[2 * slots + 1])?,
        })
    }

    /// Moves `image` and `gradient` to those of the trial, takes the step as a pair if it has curvature
    /// enough, and writes a direction of descent into `direction`: −H `gradient`, projected where `image` is
    /// at a bound of 0..1. The trial may be the image itself: a step of length 0 is no pair.
    pub fn advance(
        &self,
        (image, gradient): (&Tensor, &Tensor),
        (trial, trial_gradient): (&Tensor, &Tensor),
        direction: &Tensor,
        thresholds: &Thresholds,
    ) -> Result<()> {
        let gpu = Gpu::of(image.device())?;
        let stream = gpu.lock_stream()?;
        let (history, values) = (Arg::Int(self.history as i32), Arg::Long(self.values as i64));
        let (image, gradient) = (floats(image, self.values)?, floats(gradient, self.values)?);
        let [state, vectors, sums] = [arg(&self.state)?, arg(&self.vectors)?, arg(&self.sums)?];
        let coefficients = arg(&self.coefficients)?;
        let (rows, tiles) = self.partials.dims2()?;
        let (rows, tiles) = (rows as u32, tiles as u32);
        let partials = address(&self.partials)?;
        let args = [
            image,
            gradient,
            floats(trial, self.values)?,
            floats(trial_gradient, self.values)?,
            state,
            vectors,
            Arg::Address(partials),
            history,
            values,
        ];
        stream.launch("lbfgs_products", tiles, &args)?;
        stream.sum_partials(partials, tiles, rows, address(&self.sums)?)?;
        let args = [
            state,
            arg(&self.products)?,
            sums,
            coefficients,
            history,
            values,
            Arg::Double(thresholds.min_cosine),
            Arg::Double(thresholds.first_step),
        ];
        stream.launch("lbfgs_coefficients", 1, &args)?;
        let args = [
            state,
            vectors,
            coefficients,
            image,
            gradient,
            floats(direction, self.values)?,
            history,
            values,
        ];
        stream.launch("lbfgs_combine", tiles, &args)
    }

    /// Prepares for another objective: drops the pairs, and returns to the curvature scale of the first
    /// pair of the objective so far.
    pub fn next_objective(&self) -> Result<()> {
        let gpu = Gpu::of(self.state.device())?;
        let stream = gpu.lock_stream()?;
        stream.launch("lbfgs_next_objective", 1, &[arg(&self.state)?])
    }

    /// The number of pairs and the curvature scale, 0 if unknown. Waits for the device.
    pub fn count_and_curvature(&self) -> Result<(usize, f64)> {
        let state = to_host(&self.state)?.to_vec1::<f64>()?;
        Ok((state[0] as usize, state[2]))
    }

    /// Drops the pairs, but not the curvature scale.
    pub fn reset(&self) -> Result<()> {
        vector::clear(&self.state.narrow(0, 0, 1)?)
    }

    /// Drops both curvature scales.
    pub fn reset_curvature(&self) -> Result<()> {
        vector::clear(&self.state.narrow(0, 2, 2)?)
    }
}

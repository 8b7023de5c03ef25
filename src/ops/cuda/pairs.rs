// SPDX-License-Identifier: MPL-2.0

//! The curvature pairs of L-BFGS on a GPU, and the search direction from them. The host only chooses
//! step lengths, so only [`DevicePairs::count_and_curvature`] waits for the device.

use super::{Arg, Gpu, StreamGuard, address, arg, grid_size};
use candle_core::{DType, Device, Result, Tensor};

/// Blocks per row of inner products at most. There are many rows, so that more would only add up fewer
/// values each.
const MAX_ROW_BLOCKS: u32 = 128;

/// A ring buffer of the latest displacements s and gradient changes y. `kernels/lbfgs.cuh` has the
/// algorithm and the layouts.
pub struct DevicePairs {
    history: usize,
    values: usize,
    /// `[2 history + 2, values]`: s of each slot, y of each slot, and s and y of the candidate.
    vectors: Tensor,
    /// `f64` `[5]`: the number of pairs, the slot of the next, whether the candidate was accepted, the
    /// curvature scale sᵀy / yᵀy, which is the latest pair's, and that of the objective's first pair; both
    /// 0 if unknown.
    state: Tensor,
    /// The inner products of the slots' rows, `f64` `[2 history, 2 history]`.
    products: Tensor,
    /// The inner products of all rows with one or two vectors, `f64` `[2, 2 history + 2]`.
    row_products: Tensor,
    /// The direction as a linear combination: a coefficient for each row of the slots, and one for the
    /// projected steepest descent. `f64` `[2 history + 1]`.
    coefficients: Tensor,
    /// Partial sums of inner products, `f64`.
    partials: Tensor,
    /// The squared norm of the gradient, `f64` `[1]`.
    gradient_squares: Tensor,
}

impl DevicePairs {
    /// Room for `history` pairs over images of `values` values.
    pub fn new(history: usize, values: usize, device: &Device) -> Result<Self> {
        let (rows, doubles) = (2 * history, DType::F64);
        Ok(Self {
            history,
            values,
            vectors: Tensor::zeros((rows + 2, values), DType::F32, device)?,
            state: Tensor::zeros(5, doubles, device)?,
            products: Tensor::zeros((rows, rows), doubles, device)?,
            row_products: Tensor::zeros((2, rows + 2), doubles, device)?,
            coefficients: Tensor::zeros(rows + 1, doubles, device)?,
            partials: Tensor::zeros((rows + 2, MAX_ROW_BLOCKS as usize), doubles, device)?,
            gradient_squares: Tensor::zeros(1, doubles, device)?,
        })
    }

    pub fn history(&self) -> usize {
        self.history
    }

    /// Takes the step from `image` to `trial` as a pair, if the cosine between its s and y is above
    /// `min_cosine`.
    pub fn update(
        &self,
        (image, gradient): (&Tensor, &Tensor),
        (trial, trial_gradient): (&Tensor, &Tensor),
        min_cosine: f64,
    ) -> Result<()> {
        let gpu = Gpu::of(image.device())?;
        let stream = gpu.lock_stream()?;
        let (vectors, history) = (arg(&self.vectors)?, Arg::Int(self.history as i32));
        let values = Arg::Long(self.values as i64);
        let points = [
            arg(image)?,
            arg(trial)?,
            arg(gradient)?,
            arg(trial_gradient)?,
        ];
        let args = [&points[..], &[vectors, history, values]].concat();
        stream.launch_1d("lbfgs_candidate", self.values, &args)?;
        let candidate = |row: usize| -> Result<u64> {
            let start = (2 * self.history + row) * self.values * size_of::<f32>();
            Ok(address(&self.vectors)? + start as u64)
        };
        let [s, y] = [self.row_products(0)?, self.row_products(1)?];
        self.inner_products(&stream, candidate(0)?, s)?;
        self.inner_products(&stream, candidate(1)?, y)?;
        let state = arg(&self.state)?;
        let args = [
            state,
            Arg::Address(s),
            Arg::Address(y),
            arg(&self.products)?,
            history,
            Arg::Double(min_cosine),
        ];
        stream.launch("lbfgs_update", (1, 1), &args)?;
        let args = [state, vectors, history, values];
        stream
            .launch_1d("lbfgs_store", self.values, &args)
            .map(drop)
    }

    /// Prepares for another objective: drops the pairs, and returns to the curvature scale of the first
    /// pair of the objective so far.
    pub fn next_objective(&self) -> Result<()> {
        let gpu = Gpu::of(self.state.device())?;
        let stream = gpu.lock_stream()?;
        stream.launch("lbfgs_next_objective", (1, 1), &[arg(&self.state)?])
    }

    /// −H `gradient` into `direction`, without the components that point out of 0..1 where `image` is at
    /// a bound. While the curvature is unknown, its root mean square is `first_step`.
    pub fn direction(
        &self,
        (image, gradient): (&Tensor, &Tensor),
        direction: &Tensor,
        first_step: f64,
    ) -> Result<()> {
        let gpu = Gpu::of(image.device())?;
        let stream = gpu.lock_stream()?;
        let (values, history) = (Arg::Long(self.values as i64), Arg::Int(self.history as i32));
        let args = [arg(gradient)?, arg(image)?, arg(direction)?, values];
        stream.launch_1d("lbfgs_steepest_descent", self.values, &args)?;
        let products = self.row_products(0)?;
        self.inner_products(&stream, address(direction)?, products)?;
        let partials = stream.partials()?;
        let args = [
            arg(gradient)?,
            arg(gradient)?,
            Arg::Address(partials),
            values,
        ];
        let parts = stream.launch_1d("dot_f32", self.values, &args)?;
        stream.sum_partials(partials, parts, 1, address(&self.gradient_squares)?)?;
        let args = [
            arg(&self.state)?,
            arg(&self.products)?,
            Arg::Address(products),
            arg(&self.gradient_squares)?,
            arg(&self.coefficients)?,
            history,
            values,
            Arg::Double(first_step),
        ];
        stream.launch("lbfgs_coefficients", (1, 1), &args)?;
        let args = [
            arg(&self.vectors)?,
            arg(&self.coefficients)?,
            arg(image)?,
            arg(direction)?,
            history,
            values,
        ];
        stream
            .launch_1d("lbfgs_combine", self.values, &args)
            .map(drop)
    }

    /// The number of pairs and the curvature scale, 0 if unknown. Waits for the device.
    pub fn count_and_curvature(&self) -> Result<(usize, f64)> {
        let state = self.state.to_vec1::<f64>()?;
        Ok((state[0] as usize, state[3]))
    }

    /// Drops the pairs, but not the curvature scale.
    pub fn reset(&self) -> Result<()> {
        self.state.narrow(0, 0, 1)?.zero_set()
    }

    /// Drops both curvature scales.
    pub fn reset_curvature(&self) -> Result<()> {
        self.state.narrow(0, 3, 2)?.zero_set()
    }

    /// The address of the inner products with the first or the second vector. `direction` uses the first
    /// as scratch.
    fn row_products(&self, which: usize) -> Result<u64> {
        let start = which * (2 * self.history + 2) * size_of::<f64>();
        Ok(address(&self.row_products)? + start as u64)
    }

    /// The inner products of all rows with a vector, into `products`.
    fn inner_products(&self, stream: &StreamGuard, vector: u64, products: u64) -> Result<()> {
        let rows = 2 * self.history as u32 + 2;
        let partials = address(&self.partials)?;
        let parts = grid_size(self.values).min(MAX_ROW_BLOCKS);
        let args = [
            arg(&self.vectors)?,
            Arg::Address(vector),
            Arg::Address(partials),
            Arg::Long(self.values as i64),
        ];
        stream.launch("inner_products", (parts, rows), &args)?;
        stream.sum_partials(partials, parts, rows, products)
    }
}

// SPDX-License-Identifier: MPL-2.0

//! What L-BFGS has learned, on a GPU: the host decides how long a step is, and waits for nothing
//! else.

use super::vector::summed;
use super::{Arg, BLOCKS, Gpu, Work, address, at, blocks};
use candle_core::{DType, Device, Result, Tensor};

/// A ring of the last displacements s and changes y of the gradient.
pub struct Pairs {
    history: usize,
    values: usize,
    /// Rows of `values`: s of each slot, y of each, and s and y of the step made last.
    vectors: Tensor,
    /// `f64` `[4]`: the number of pairs, the slot of the next, whether the last step became one, and
    /// the curvature sᵀy / yᵀy, 0 where it is not known.
    state: Tensor,
    /// The inner products of the slots' rows, `f64`.
    products: Tensor,
    /// Those of all rows with one vector or two.
    row_products: Tensor,
    /// What a direction is made of, a coefficient for each row of a slot and one for its start.
    coefficients: Tensor,
    partials: Tensor,
    /// Of the gradient's squares.
    sum: Tensor,
}

impl Pairs {
    /// Room for `history` pairs over images of so many values.
    pub fn new(history: usize, values: usize, device: &Device) -> Result<Self> {
        let (rows, doubles) = (2 * history, DType::F64);
        Ok(Self {
            history,
            values,
            vectors: Tensor::zeros((rows + 2, values), DType::F32, device)?,
            state: Tensor::zeros(4, doubles, device)?,
            products: Tensor::zeros((rows, rows), doubles, device)?,
            row_products: Tensor::zeros((2, rows + 2), doubles, device)?,
            coefficients: Tensor::zeros(rows + 1, doubles, device)?,
            partials: Tensor::zeros((rows + 2, BLOCKS as usize), doubles, device)?,
            sum: Tensor::zeros(1, doubles, device)?,
        })
    }

    pub fn history(&self) -> usize {
        self.history
    }

    /// Σ (trial − image)² and Σ gradient (trial − image) into `sums`, `f64` `[2]`.
    pub fn moved(image: &Tensor, trial: &Tensor, gradient: &Tensor, sums: &Tensor) -> Result<()> {
        let values = image.elem_count();
        let count = Arg::Long(values as i64);
        summed(sums, |work, partials| {
            let args = [at(image)?, at(trial)?, at(gradient)?, partials, count];
            work.each("lbfgs_step_sums", values, &args)
        })
    }

    /// Learns from the step from `image` to `trial`, if its cosine with the change of the gradient
    /// is above `min_cosine`.
    pub fn learn(
        &self,
        (image, gradient): (&Tensor, &Tensor),
        (trial, trial_gradient): (&Tensor, &Tensor),
        min_cosine: f64,
    ) -> Result<()> {
        let gpu = Gpu::of(image.device())?;
        let work = gpu.work()?;
        let (vectors, history) = (at(&self.vectors)?, Arg::Int(self.history as i32));
        let values = Arg::Long(self.values as i64);
        let points = [at(image)?, at(trial)?, at(gradient)?, at(trial_gradient)?];
        let args = [&points[..], &[vectors, history, values]].concat();
        work.each("lbfgs_candidate", self.values, &args)?;
        let step = |row: usize| -> Result<u64> {
            let start = (2 * self.history + row) * self.values * size_of::<f32>();
            Ok(address(&self.vectors)? + start as u64)
        };
        let [s, y] = [self.row_products(0)?, self.row_products(1)?];
        self.multiply(&work, step(0)?, s)?;
        self.multiply(&work, step(1)?, y)?;
        let state = at(&self.state)?;
        let args = [
            state,
            Arg::Address(s),
            Arg::Address(y),
            at(&self.products)?,
            history,
            Arg::Double(min_cosine),
        ];
        work.launch("lbfgs_update", (1, 1), &args)?;
        let args = [state, vectors, history, values];
        work.each("lbfgs_store", self.values, &args).map(drop)
    }

    /// −H `gradient` at `image` into `direction`, as far as it does not lead out of 0..1. Before
    /// anything is known of the curvature its root mean square is `first_step`.
    pub fn direction(
        &self,
        (image, gradient): (&Tensor, &Tensor),
        direction: &Tensor,
        first_step: f64,
    ) -> Result<()> {
        let gpu = Gpu::of(image.device())?;
        let work = gpu.work()?;
        let (values, history) = (Arg::Long(self.values as i64), Arg::Int(self.history as i32));
        let args = [at(gradient)?, at(image)?, at(direction)?, values];
        work.each("lbfgs_steepest_descent", self.values, &args)?;
        let products = self.row_products(0)?;
        self.multiply(&work, address(direction)?, products)?;
        let partials = address(&self.partials)?;
        let args = [at(gradient)?, at(gradient)?, Arg::Address(partials), values];
        let parts = work.each("dot_f32", self.values, &args)?;
        work.finish(partials, parts, 1, address(&self.sum)?)?;
        let args = [
            at(&self.state)?,
            at(&self.products)?,
            Arg::Address(products),
            at(&self.sum)?,
            at(&self.coefficients)?,
            history,
            values,
            Arg::Double(first_step),
        ];
        work.launch("lbfgs_coefficients", (1, 1), &args)?;
        let args = [
            at(&self.vectors)?,
            at(&self.coefficients)?,
            at(image)?,
            at(direction)?,
            history,
            values,
        ];
        work.each("lbfgs_combine", self.values, &args).map(drop)
    }

    /// The number of pairs and the curvature.
    pub fn known(&self) -> Result<(usize, f64)> {
        let state = self.state.to_vec1::<f64>()?;
        Ok((state[0] as usize, state[3]))
    }

    /// Drops the pairs.
    pub fn forget(&self) -> Result<()> {
        self.state.narrow(0, 0, 1)?.zero_set()
    }

    /// Drops the curvature.
    pub fn forget_curvature(&self) -> Result<()> {
        self.state.narrow(0, 3, 1)?.zero_set()
    }

    fn row_products(&self, which: usize) -> Result<u64> {
        let start = which * (2 * self.history + 2) * size_of::<f64>();
        Ok(address(&self.row_products)? + start as u64)
    }

    /// The inner products of all rows with a vector, into `products`.
    fn multiply(&self, work: &Work, vector: u64, products: u64) -> Result<()> {
        let rows = 2 * self.history as u32 + 2;
        let (partials, parts) = (address(&self.partials)?, blocks(self.values));
        let args = [
            at(&self.vectors)?,
            Arg::Address(vector),
            Arg::Address(partials),
            Arg::Long(self.values as i64),
        ];
        work.launch("inner_products", (parts, rows), &args)?;
        work.finish(partials, parts, rows, products)
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Pooling on a GPU.

use super::super::pool::Pooling;
use super::{Arg, Gpu, features};
use candle_core::{Result, Tensor};

pub fn forward(pooling: Pooling, input: &Tensor, output: &Tensor) -> Result<()> {
    let kernel = match pooling {
        Pooling::Avg => "pool_avg",
        Pooling::Max => "pool_max",
    };
    let ([count, pooled], dtype) = (counts(input)?, input.dtype());
    let args = [
        features(input, dtype, count)?,
        features(output, dtype, pooled)?,
    ];
    launch_pooling(kernel, input, output, &args)
}

pub fn backward(
    pooling: Pooling,
    upstream: &Tensor,
    input: &Tensor,
    gradient: &Tensor,
) -> Result<()> {
    let kernel = match pooling {
        Pooling::Avg => "pool_avg_backward",
        Pooling::Max => "pool_max_backward",
    };
    let ([count, pooled], dtype) = (counts(input)?, input.dtype());
    let args = [
        features(upstream, dtype, pooled)?,
        features(input, dtype, count)?,
        features(gradient, dtype, count)?,
    ];
    launch_pooling(kernel, input, gradient, &args)
}

/// The values of `input` `[h, w, n]`, and of its output.
fn counts(input: &Tensor) -> Result<[usize; 2]> {
    let (h, w, n) = input.dims3()?;
    Ok([h * w * n, (h / 2) * (w / 2) * n])
}

/// Launches a kernel over `dst` whose last parameters are the dimensions of `input`.
fn launch_pooling(kernel: &str, input: &Tensor, dst: &Tensor, args: &[Arg]) -> Result<()> {
    let (h, w, n) = input.dims3()?;
    let dims = [h, w, n].map(|it| Arg::Int(it as i32));
    let args: Vec<Arg> = [args, &dims].concat();
    let gpu = Gpu::of(dst.device())?;
    let (dtype, count) = (input.dtype(), dst.elem_count());
    let stream = gpu.lock_stream()?;
    stream
        .launch_features(kernel, dtype, (count, n), &args)
        .map(drop)
}

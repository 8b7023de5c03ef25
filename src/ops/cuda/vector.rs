// SPDX-License-Identifier: MPL-2.0

//! Sums over tensors and the vector work of the losses and the optimisers, on a GPU.

use super::super::pool::Pooling;
use super::{Arg, Gpu, Work, address, at, features_at, suffix};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtod_async, memset_d8_async};
use candle_core::{Result, Tensor};

/// Runs a kernel over the values of `dst`, whose last parameter is their number.
fn over(kernel: &str, dst: &Tensor, args: &[Arg]) -> Result<()> {
    let count = dst.elem_count();
    let args: Vec<Arg> = [args, &[Arg::Long(count as i64)]].concat();
    let gpu = Gpu::of(dst.device())?;
    gpu.work()?.each(kernel, count, &args).map(drop)
}

pub fn clear(dst: &Tensor) -> Result<()> {
    let gpu = Gpu::of(dst.device())?;
    let work = gpu.work()?;
    let bytes = dst.elem_count() * dst.dtype().size_in_bytes();
    // SAFETY: the memory is the tensor's.
    unsafe { memset_d8_async(address(dst)?, 0, bytes, work.lane.stream.cu_stream()) }.w()
}

pub fn copy(dst: &Tensor, src: &Tensor) -> Result<()> {
    let gpu = Gpu::of(dst.device())?;
    let work = gpu.work()?;
    let bytes = dst.elem_count() * dst.dtype().size_in_bytes();
    // SAFETY: the memory is that of two tensors of one type and size.
    unsafe {
        memcpy_dtod_async(
            address(dst)?,
            address(src)?,
            bytes,
            work.lane.stream.cu_stream(),
        )
    }
    .w()
}

pub fn axpy(a: f64, x: &Tensor, y: &Tensor) -> Result<()> {
    over("axpy", y, &[Arg::Float(a as f32), at(x)?, at(y)?])
}

pub fn scale(a: f64, x: &Tensor) -> Result<()> {
    over("scale", x, &[Arg::Float(a as f32), at(x)?])
}

pub fn scale_by(factor: &Tensor, x: &Tensor) -> Result<()> {
    over("scale_by", x, &[at(factor)?, at(x)?])
}

pub fn difference(dst: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    over("difference", dst, &[at(dst)?, at(a)?, at(b)?])
}

pub fn step(dst: &Tensor, x: &Tensor, t: f64, d: &Tensor) -> Result<()> {
    let args = [at(dst)?, at(x)?, Arg::Float(t as f32), at(d)?];
    over("step", dst, &args)
}

pub fn clear_outward(d: &Tensor, x: &Tensor) -> Result<()> {
    over("clear_outward", d, &[at(d)?, at(x)?])
}

pub fn decay(average: &Tensor, decay: f64, x: &Tensor, squared: bool) -> Result<()> {
    let (decay, squared) = (Arg::Float(decay as f32), Arg::Int(squared.into()));
    over("decay", average, &[at(average)?, decay, at(x)?, squared])
}

pub fn adam_step(x: &Tensor, rate: f64, m: &Tensor, correction: f64, v: &Tensor) -> Result<()> {
    let [rate, correction] = [rate, correction].map(|it| Arg::Float(it as f32));
    over("adam_step", x, &[at(x)?, rate, at(m)?, correction, at(v)?])
}

/// Adds up what the blocks of a kernel leave, into `sums`: a row of parts for each, at the address
/// that `launch` gives the kernel. What comes back from it is the number of blocks.
pub(super) fn summed(sums: &Tensor, launch: impl FnOnce(&Work, Arg) -> Result<u32>) -> Result<()> {
    let gpu = Gpu::of(sums.device())?;
    let work = gpu.work()?;
    let partials = work.partials()?;
    let parts = launch(&work, Arg::Address(partials))?;
    work.finish(partials, parts, sums.elem_count() as u32, address(sums)?)
}

/// Σ x y into `sum`.
pub fn dot(x: &Tensor, y: &Tensor, sum: &Tensor) -> Result<()> {
    let count = x.elem_count();
    let kernel = format!("dot_{}", suffix(x.dtype())?);
    summed(sum, |work, partials| {
        let args = [at(x)?, at(y)?, partials, Arg::Long(count as i64)];
        work.each(&kernel, count, &args)
    })
}

pub fn content(
    f: &Tensor,
    p: &Tensor,
    factor: &Tensor,
    (gradient, accumulate): (&Tensor, bool),
    sum: &Tensor,
) -> Result<()> {
    let (_, _, n) = f.dims3()?;
    let count = f.elem_count();
    summed(sum, |work, partials| {
        let args = [
            features_at(f)?,
            features_at(p)?,
            at(factor)?,
            features_at(gradient)?,
            Arg::Int(accumulate.into()),
            partials,
            Arg::Long(count as i64),
        ];
        work.each_feature("content_loss", f.dtype(), (count, n), &args)
    })
}

pub fn total_variation(
    image: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    let (h, w, _) = image.dims3()?;
    let [rows, columns] = [h, w].map(|it| Arg::Int(it as i32));
    summed(sum, |work, partials| {
        let args = [
            at(image)?,
            at(factor)?,
            at(gradient)?,
            partials,
            rows,
            columns,
        ];
        work.each("total_variation", image.elem_count(), &args)
    })
}

pub fn held(
    image: &Tensor,
    target: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    let (h, w, _) = image.dims3()?;
    let pixels = Arg::Long((h * w) as i64);
    summed(sum, |work, partials| {
        let args = [
            at(image)?,
            at(target)?,
            at(factor)?,
            at(gradient)?,
            partials,
            pixels,
        ];
        work.each("temporal_loss", h * w, &args)
    })
}

pub fn pool(pooling: Pooling, input: &Tensor, output: &Tensor) -> Result<()> {
    let kernel = match pooling {
        Pooling::Avg => "pool_avg",
        Pooling::Max => "pool_max",
    };
    over_pixels(
        kernel,
        input,
        output,
        &[features_at(input)?, features_at(output)?],
    )
}

pub fn pool_backward(
    pooling: Pooling,
    upstream: &Tensor,
    input: &Tensor,
    gradient: &Tensor,
) -> Result<()> {
    match pooling {
        Pooling::Avg => {
            let args = [features_at(upstream)?, features_at(gradient)?];
            over_pixels("pool_avg_backward", input, gradient, &args)
        }
        Pooling::Max => {
            let args = [
                features_at(upstream)?,
                features_at(input)?,
                features_at(gradient)?,
            ];
            over_pixels("pool_max_backward", input, gradient, &args)
        }
    }
}

/// Runs a kernel over the values of `dst`, whose last parameters are the dimensions of `input`.
fn over_pixels(kernel: &str, input: &Tensor, dst: &Tensor, args: &[Arg]) -> Result<()> {
    let (h, w, n) = input.dims3()?;
    let dims = [h, w, n].map(|it| Arg::Int(it as i32));
    let args: Vec<Arg> = [args, &dims].concat();
    let gpu = Gpu::of(dst.device())?;
    let (dtype, count) = (input.dtype(), dst.elem_count());
    let work = gpu.work()?;
    work.each_feature(kernel, dtype, (count, n), &args)
        .map(drop)
}

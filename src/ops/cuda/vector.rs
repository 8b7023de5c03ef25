// SPDX-License-Identifier: MPL-2.0

//! The GPU side of [`elementwise`](crate::ops::elementwise): vector operations, Adam's step, sums,
//! and the losses but for style.

use super::{Arg, Gpu, StreamGuard, address, checked_address, features, floats, suffix};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtod_async, memset_d8_async};
use candle_core::{DType, Result, Tensor};

/// Launches a kernel over the values of `dst` whose last parameter is their number.
fn launch_over(kernel: &str, dst: &Tensor, args: &[Arg]) -> Result<()> {
    let count = dst.elem_count();
    let args: Vec<Arg> = [args, &[Arg::Long(count as i64)]].concat();
    let gpu = Gpu::of(dst.device())?;
    gpu.lock_stream()?.launch_1d(kernel, count, &args).map(drop)
}

pub fn clear(dst: &Tensor) -> Result<()> {
    let gpu = Gpu::of(dst.device())?;
    let stream = gpu.lock_stream()?;
    let bytes = dst.elem_count() * dst.dtype().size_in_bytes();
    // SAFETY: the memory is that of the tensor.
    unsafe { memset_d8_async(address(dst)?, 0, bytes, stream.handles.stream.cu_stream()) }.w()
}

pub fn copy(dst: &Tensor, src: &Tensor) -> Result<()> {
    let gpu = Gpu::of(dst.device())?;
    let stream = gpu.lock_stream()?;
    let (dtype, count) = (dst.dtype(), dst.elem_count());
    let bytes = count * dtype.size_in_bytes();
    // SAFETY: the memory is that of two tensors of the same type and size.
    unsafe {
        memcpy_dtod_async(
            address(dst)?,
            checked_address(src, dtype, count)?,
            bytes,
            stream.handles.stream.cu_stream(),
        )
    }
    .w()
}

pub fn scale_by(factor: &Tensor, x: &Tensor) -> Result<()> {
    let values = floats(x, x.elem_count())?;
    launch_over("scale_by", x, &[floats(factor, 1)?, values])
}

pub fn decay(average: &Tensor, decay: f64, x: &Tensor, squared: bool) -> Result<()> {
    let (decay, squared) = (Arg::Float(decay as f32), Arg::Int(squared.into()));
    let count = average.elem_count();
    let [values, x] = [floats(average, count)?, floats(x, count)?];
    launch_over("decay", average, &[values, decay, x, squared])
}

pub fn adam_step(x: &Tensor, rate: f64, m: &Tensor, correction: f64, v: &Tensor) -> Result<()> {
    let [rate, correction] = [rate, correction].map(|value| Arg::Float(value as f32));
    let count = x.elem_count();
    let [values, m, v] = [floats(x, count)?, floats(m, count)?, floats(v, count)?];
    launch_over("adam_step", x, &[values, rate, m, correction, v])
}

/// A reduction in two stages, into `sum`. `launch` launches a kernel that writes partial sums to the given
/// address, and returns the number of blocks.
pub(super) fn reduce(
    sum: &Tensor,
    launch: impl FnOnce(&StreamGuard, Arg) -> Result<u32>,
) -> Result<()> {
    let gpu = Gpu::of(sum.device())?;
    let stream = gpu.lock_stream()?;
    let partials = stream.partials()?;
    let parts = launch(&stream, Arg::Address(partials))?;
    let sum = checked_address(sum, DType::F64, 1)?;
    stream.sum_partials(partials, parts, 1, sum)
}

/// Σ x y into `sum`.
pub fn dot(x: &Tensor, y: &Tensor, sum: &Tensor) -> Result<()> {
    let (dtype, count) = (x.dtype(), x.elem_count());
    let kernel = format!("dot_{}", suffix(dtype)?);
    reduce(sum, |stream, partials| {
        let [x, y] = [features(x, dtype, count)?, features(y, dtype, count)?];
        let args = [x, y, partials, Arg::Long(count as i64)];
        stream.launch_1d(&kernel, count, &args)
    })
}

pub fn content_loss(
    f: &Tensor,
    p: &Tensor,
    factor: &Tensor,
    (gradient, accumulate): (&Tensor, bool),
    sum: &Tensor,
) -> Result<()> {
    let (_, _, n) = f.dims3()?;
    let (dtype, count) = (f.dtype(), f.elem_count());
    reduce(sum, |stream, partials| {
        let args = [
            features(f, dtype, count)?,
            features(p, dtype, count)?,
            floats(factor, 1)?,
            features(gradient, dtype, count)?,
            Arg::Int(accumulate.into()),
            partials,
            Arg::Long(count as i64),
        ];
        stream.launch_features("content_loss", dtype, (count, n), &args)
    })
}

pub fn total_variation(
    image: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    let (h, w, _) = image.dims3()?;
    let [rows, columns] = [h, w].map(|side| Arg::Int(side as i32));
    let count = h * w * 3;
    reduce(sum, |stream, partials| {
        let args = [
            floats(image, count)?,
            floats(factor, 1)?,
            floats(gradient, count)?,
            partials,
            rows,
            columns,
        ];
        stream.launch_1d("total_variation", count, &args)
    })
}

pub fn temporal_loss(
    image: &Tensor,
    target: &Tensor,
    factor: &Tensor,
    gradient: &Tensor,
    sum: &Tensor,
) -> Result<()> {
    let (h, w, _) = image.dims3()?;
    let pixels = h * w;
    reduce(sum, |stream, partials| {
        let args = [
            floats(image, pixels * 3)?,
            floats(target, pixels * 4)?,
            floats(factor, 1)?,
            floats(gradient, pixels * 3)?,
            partials,
            Arg::Long(pixels as i64),
        ];
        stream.launch_1d("temporal_loss", pixels, &args)
    })
}

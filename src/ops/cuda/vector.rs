// SPDX-License-Identifier: MPL-2.0

//! The GPU side of [`elementwise`](crate::ops::elementwise): vector operations, Adam's step, sums,
//! and the losses but for style.

use super::{Arg, Gpu, StreamGuard, address, arg, features_arg, suffix};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtod_async, memset_d8_async};
use candle_core::{Result, Tensor};

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
    let bytes = dst.elem_count() * dst.dtype().size_in_bytes();
    // SAFETY: the memory is that of two tensors of the same type and size.
    unsafe {
        memcpy_dtod_async(
            address(dst)?,
            address(src)?,
            bytes,
            stream.handles.stream.cu_stream(),
        )
    }
    .w()
}

pub fn scale_by(factor: &Tensor, x: &Tensor) -> Result<()> {
    launch_over("scale_by", x, &[arg(factor)?, arg(x)?])
}

pub fn decay(average: &Tensor, decay: f64, x: &Tensor, squared: bool) -> Result<()> {
    let (decay, squared) = (Arg::Float(decay as f32), Arg::Int(squared.into()));
    launch_over("decay", average, &[arg(average)?, decay, arg(x)?, squared])
}

pub fn adam_step(x: &Tensor, rate: f64, m: &Tensor, correction: f64, v: &Tensor) -> Result<()> {
    let [rate, correction] = [rate, correction].map(|value| Arg::Float(value as f32));
    launch_over(
        "adam_step",
        x,
        &[arg(x)?, rate, arg(m)?, correction, arg(v)?],
    )
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
    stream.sum_partials(partials, parts, 1, address(sum)?)
}

/// Σ x y into `sum`.
pub fn dot(x: &Tensor, y: &Tensor, sum: &Tensor) -> Result<()> {
    let count = x.elem_count();
    let kernel = format!("dot_{}", suffix(x.dtype())?);
    reduce(sum, |stream, partials| {
        let args = [arg(x)?, arg(y)?, partials, Arg::Long(count as i64)];
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
    let count = f.elem_count();
    reduce(sum, |stream, partials| {
        let args = [
            features_arg(f)?,
            features_arg(p)?,
            arg(factor)?,
            features_arg(gradient)?,
            Arg::Int(accumulate.into()),
            partials,
            Arg::Long(count as i64),
        ];
        stream.launch_features("content_loss", f.dtype(), (count, n), &args)
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
    reduce(sum, |stream, partials| {
        let args = [
            arg(image)?,
            arg(factor)?,
            arg(gradient)?,
            partials,
            rows,
            columns,
        ];
        stream.launch_1d("total_variation", image.elem_count(), &args)
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
    let pixels = Arg::Long((h * w) as i64);
    reduce(sum, |stream, partials| {
        let args = [
            arg(image)?,
            arg(target)?,
            arg(factor)?,
            arg(gradient)?,
            partials,
            pixels,
        ];
        stream.launch_1d("temporal_loss", h * w, &args)
    })
}

// SPDX-License-Identifier: MPL-2.0

//! Test data, and measures of the difference between results.

use crate::report::Outcome;
use candle_core::{DType, Device, Shape, Tensor};
use gstgatys::ops::Format;
use gstgatys::ops::transfer::to_host;
use rayon::prelude::*;

/// The device under test, and the formats it supports.
pub struct Bench {
    pub device: Device,
    pub formats: Vec<Format>,
}

impl Bench {
    pub fn new(device: Device) -> Self {
        let formats = match device.is_cpu() {
            true => vec![Format::F32],
            false => vec![Format::F32, Format::Tf32, Format::Bf16, Format::F16],
        };
        Self { device, formats }
    }

    /// The formats that differ in storage: tf32 is `f32` in memory, and only convolutions use it.
    pub fn storage_formats(&self) -> impl Iterator<Item = Format> + use<> {
        let formats = self.formats.clone().into_iter();
        formats.filter(|&format| format != Format::Tf32)
    }

    /// Values rounded to `format`: on the CPU in f32, and on the device in the format.
    pub fn host_and_device(&self, values: Tensor, format: Format) -> Outcome<(Tensor, Tensor)> {
        let rounded = values.to_dtype(format.dtype())?;
        Ok((
            rounded.to_dtype(DType::F32)?,
            rounded.to_device(&self.device)?,
        ))
    }

    /// The same for what is f32 whatever the format.
    pub fn host_and_device_f32(&self, values: Tensor) -> Outcome<(Tensor, Tensor)> {
        self.host_and_device(values, Format::F32)
    }
}

/// The relative L2 error that results in a format may have beside those in f32 of the same operands:
/// from sums in another order and from rounding when stored.
pub fn tolerance(format: Format) -> f64 {
    match format {
        Format::F32 => 5e-5,
        Format::Tf32 => 2e-3,
        Format::Bf16 => 6e-3,
        Format::F16 => 1e-3,
    }
}

pub fn name(format: Format) -> &'static str {
    match format {
        Format::F32 => "f32",
        Format::Tf32 => "tf32",
        Format::Bf16 => "bf16",
        Format::F16 => "f16",
    }
}

/// Uniform noise in -1..1 on the CPU.
pub fn noise(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    // SplitMix64 of the index, as it runs in parallel: there are hundreds of millions of values.
    let value = |index: usize| {
        let mut bits = (seed << 40)
            .wrapping_add(index as u64 + 1)
            .wrapping_mul(0x9e3779b97f4a7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d049bb133111eb);
        ((bits ^ (bits >> 31)) as i64 >> 40) as f32 / (1 << 23) as f32
    };
    let values = (0..shape.elem_count()).into_par_iter().map(value);
    Tensor::from_vec(values.collect(), shape, &Device::Cpu).expect("values of that shape")
}

/// Features: noise after a ReLU, so that about half of them are 0.
pub fn features(shape: impl Into<Shape>, seed: u64) -> Tensor {
    noise(shape, seed).relu().expect("features")
}

/// Pixels in 0..1, some of them at the bounds.
pub fn pixels(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let values = noise(shape, seed).affine(0.6, 0.5);
    let values = values.and_then(|values| values.clamp(0f32, 1f32));
    values.expect("pixels")
}

/// A kernel whose outputs are about as large as its inputs.
pub fn kernel([n_in, n_out]: [usize; 2], seed: u64) -> Tensor {
    let scale = (2.0 / (9.0 * n_in as f64)).sqrt() * 2.0;
    let kernel = noise((n_out, n_in, 3, 3), seed).affine(scale, 0.0);
    kernel.expect("a kernel")
}

/// A factor, f32 `[1]`, on a device.
pub fn factor(value: f32, device: &Device) -> Outcome<Tensor> {
    Ok(Tensor::new(&[value], device)?)
}

/// The output of an operation that computes a sum, f64 `[1]`; the initial value is overwritten.
pub fn sum(device: &Device) -> Outcome<Tensor> {
    Ok(Tensor::new(&[3f64], device)?)
}

/// The values of a tensor on any device.
pub fn values(tensor: &Tensor) -> Outcome<Vec<f64>> {
    let tensor = to_host(tensor)?.flatten_all()?;
    Ok(tensor.to_dtype(DType::F64)?.to_vec1()?)
}

/// The relative L2 error, |result - reference| / |reference|.
pub fn relative_error(result: &Tensor, reference: &Tensor) -> Outcome<f64> {
    let (result, reference) = (values(result)?, values(reference)?);
    if result.len() != reference.len() {
        return Err("the results differ in their number of values".into());
    }
    let pairs = result.iter().zip(&reference);
    let error: f64 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = reference.iter().map(|b| b * b).sum();
    match size > 0.0 {
        true => Ok((error / size).sqrt()),
        false => Ok(error.sqrt()),
    }
}

/// 1 - the cosine between two tensors.
pub fn cosine_distance(a: &Tensor, b: &Tensor) -> Outcome<f64> {
    let (a, b) = (values(a)?, values(b)?);
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    Ok(1.0 - dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt())
}

/// The number of values that are not the same in two tensors, bit for bit.
pub fn count_differing(a: &Tensor, b: &Tensor) -> Outcome<f64> {
    let (a, b) = (values(a)?, values(b)?);
    let pairs = a.iter().zip(&b);
    let differing = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    Ok((differing + a.len().abs_diff(b.len())) as f64)
}

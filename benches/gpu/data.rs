// SPDX-License-Identifier: MPL-2.0

//! Values to compute with, and how far results are from each other.

use crate::report::Outcome;
use candle_core::{DType, Device, Shape, Tensor};
use gstgatys::ops::Format;
use rayon::prelude::*;

/// The device that is checked, and the formats that it has.
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

    /// The formats that differ in memory: only convolutions know tf32.
    pub fn stored(&self) -> impl Iterator<Item = Format> + use<> {
        let formats = self.formats.clone().into_iter();
        formats.filter(|&format| format != Format::Tf32)
    }

    /// Values on the CPU, as rounded as `format` has them, and the same on the device.
    pub fn both(&self, values: Tensor, format: Format) -> Outcome<(Tensor, Tensor)> {
        let rounded = values.to_dtype(format.dtype())?;
        Ok((
            rounded.to_dtype(DType::F32)?,
            rounded.to_device(&self.device)?,
        ))
    }

    /// The same for what is f32 in each format.
    pub fn singles(&self, values: Tensor) -> Outcome<(Tensor, Tensor)> {
        self.both(values, Format::F32)
    }
}

/// How much a format's results may differ from those in f32 of the same operands, as relative L2:
/// sums in another order, and the rounding of what is stored.
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

/// Values within -1..1 on the CPU, others for each seed.
pub fn noise(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    // SplitMix64, as there are hundreds of millions of values.
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

/// Features: about half of them are 0, as behind a ReLU.
pub fn features(shape: impl Into<Shape>, seed: u64) -> Tensor {
    noise(shape, seed).relu().expect("features")
}

/// Pixels, within 0..1, some of them at either end.
pub fn pixels(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let values = noise(shape, seed).affine(0.6, 0.5);
    let values = values.and_then(|values| values.clamp(0f32, 1f32));
    values.expect("pixels")
}

/// A kernel whose sums are about as large as their operands.
pub fn kernel([n_in, n_out]: [usize; 2], seed: u64) -> Tensor {
    let scale = (2.0 / (9.0 * n_in as f64)).sqrt() * 2.0;
    let kernel = noise((n_out, n_in, 3, 3), seed).affine(scale, 0.0);
    kernel.expect("a kernel")
}

/// One value, f32, on a device.
pub fn factor(value: f32, device: &Device) -> Outcome<Tensor> {
    Ok(Tensor::new(&[value], device)?)
}

/// Where an operation leaves a sum, or finds one: what was there before is overwritten.
pub fn sum(device: &Device) -> Outcome<Tensor> {
    Ok(Tensor::new(&[3f64], device)?)
}

/// The values of a tensor on whatever device.
pub fn values(tensor: &Tensor) -> Outcome<Vec<f64>> {
    let tensor = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(tensor.to_dtype(DType::F64)?.to_vec1()?)
}

/// |result - reference| / |reference|, in L2.
pub fn difference(result: &Tensor, reference: &Tensor) -> Outcome<f64> {
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
pub fn turned(a: &Tensor, b: &Tensor) -> Outcome<f64> {
    let (a, b) = (values(a)?, values(b)?);
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    Ok(1.0 - dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt())
}

/// How many values of two tensors are not the same, bit for bit.
pub fn differing(a: &Tensor, b: &Tensor) -> Outcome<f64> {
    let (a, b) = (values(a)?, values(b)?);
    let pairs = a.iter().zip(&b);
    let differing = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    Ok((differing + a.len().abs_diff(b.len())) as f64)
}

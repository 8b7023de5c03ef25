// SPDX-License-Identifier: MPL-2.0

//! The sizes that an image goes through: down to what is optimised and back.

use crate::vgg::MIN_SIDE;
use candle_core::{Device, Result, Tensor};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

/// Width and height scaled by `scale`, at least a pixel each.
pub fn scaled((h, w): (usize, usize), scale: f64) -> (usize, usize) {
    let side = |side: usize| ((side as f64 * scale).round() as usize).max(1);
    (side(h), side(w))
}

/// The size whose longest side is at most `max_size`.
pub fn fit((h, w): (usize, usize), max_size: Option<u32>) -> (usize, usize) {
    match max_size.map(|max| max as usize) {
        Some(max) if max < h.max(w) => scaled((h, w), max as f64 / h.max(w) as f64),
        _ => (h, w),
    }
}

/// An image `[h, w, 3]` on the CPU, scaled to a size by a Lanczos filter of three lobes and held
/// within 0..1.
pub fn resize(image: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (source_h, source_w, _) = image.dims3()?;
    if (source_h, source_w) == (h, w) {
        return Ok(image.clone());
    }
    let pixels: Vec<F32x3> = image
        .flatten_all()?
        .to_vec1::<f32>()?
        .chunks_exact(3)
        .map(|rgb| F32x3::new([rgb[0], rgb[1], rgb[2]]))
        .collect();
    let source = TypedImageRef::new(source_w as u32, source_h as u32, &pixels)
        .map_err(candle_core::Error::wrap)?;
    let mut target = TypedImage::<F32x3>::new(w as u32, h as u32);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .map_err(candle_core::Error::wrap)?;
    let values = target
        .pixels()
        .iter()
        .flat_map(|pixel| pixel.0)
        .map(|value| value.clamp(0.0, 1.0));
    Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu)
}

/// An image `[h, w, 3]` whose sides of less than [`MIN_SIDE`] are filled up with its last row or
/// column.
pub fn pad(image: &Tensor) -> Result<Tensor> {
    let (h, w, _) = image.dims3()?;
    let padded = image.pad_with_same(0, 0, MIN_SIDE.saturating_sub(h))?;
    padded
        .pad_with_same(1, 0, MIN_SIDE.saturating_sub(w))?
        .contiguous()
}

/// The top left `[h, w, 3]` of an image: what [`pad`] was given.
pub fn crop(image: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    image.narrow(0, 0, h)?.narrow(1, 0, w)?.contiguous()
}

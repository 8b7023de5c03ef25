// SPDX-License-Identifier: MPL-2.0

//! Resizing and padding: from the size of the frame to the one that is optimised, and back.

use crate::ops::with_values;
use crate::vgg::MIN_SIDE;
use candle_core::{Device, Result, Tensor};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{F32x3, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use rayon::prelude::*;

/// Height and width scaled by `scale`, at least a pixel each.
pub fn scaled((h, w): (usize, usize), scale: f64) -> (usize, usize) {
    let side = |side: usize| ((side as f64 * scale).round() as usize).max(1);
    (side(h), side(w))
}

/// The longest side that an optimised image may have: along it, positions in 256ths of a pixel are
/// still whole numbers in `f32`.
pub const MAX_SIDE: u32 = 1 << 15;

/// The size whose longest side is at most `max_size`, and at most [`MAX_SIDE`].
pub fn fit((h, w): (usize, usize), max_size: Option<u32>) -> (usize, usize) {
    let max = max_size.unwrap_or(MAX_SIDE).min(MAX_SIDE) as usize;
    match max < h.max(w) {
        true => scaled((h, w), max as f64 / h.max(w) as f64),
        false => (h, w),
    }
}

/// Values that are worth a thread to clamp.
const CLAMPED_AT_ONCE: usize = 1 << 14;

/// An image `[h, w, 3]` on the CPU, resampled to a size by a Lanczos-3 filter and clamped to 0..1.
pub fn resize(image: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (source_h, source_w, _) = image.dims3()?;
    if (source_h, source_w) == (h, w) {
        return Ok(image.clone());
    }
    let mut resized = vec![0f32; 3 * h * w];
    let bytes = cast_slice_mut(&mut resized);
    let mut target = TypedImage::<F32x3>::from_buffer(w as u32, h as u32, bytes)
        .map_err(candle_core::Error::wrap)?;
    with_values([&image.contiguous()?], |[values]: [&[f32]; 1]| {
        let bytes = cast_slice(values);
        lanczos((source_h, source_w), bytes, &mut target)
    })??;
    resized.par_chunks_mut(CLAMPED_AT_ONCE).for_each(|values| {
        for value in values {
            *value = value.clamp(0.0, 1.0);
        }
    });
    Tensor::from_vec(resized, (h, w, 3), &Device::Cpu)
}

/// RGB bytes of the size `source`, resampled to another, as `[h, w, 3]` in 0..1. A large source is
/// never converted to floats.
pub fn resize_bytes(rgb: &[u8], source: (usize, usize), (h, w): (usize, usize)) -> Result<Tensor> {
    let mut target = TypedImage::<U8x3>::new(w as u32, h as u32);
    lanczos(source, rgb, &mut target)?;
    let values = target.pixels().iter().flat_map(|pixel| pixel.0);
    let values = values.map(|value| f32::from(value) / 255.0);
    Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu)
}

/// Resamples the pixels in `bytes`, of an image of height `h` and width `w`.
fn lanczos<P: PixelTrait>(
    (h, w): (usize, usize),
    bytes: &[u8],
    target: &mut TypedImage<P>,
) -> Result<()> {
    let source = TypedImageRef::<P>::from_buffer(w as u32, h as u32, bytes)
        .map_err(candle_core::Error::wrap)?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new()
        .resize_typed(&source, target, &options)
        .map_err(candle_core::Error::wrap)
}

/// Pads an image `[h, w, 3]` to at least [`MIN_SIDE`] on both sides by repeating its last row and
/// column.
pub fn pad(image: &Tensor) -> Result<Tensor> {
    let (h, w, _) = image.dims3()?;
    let padded = image.pad_with_same(0, 0, MIN_SIDE.saturating_sub(h))?;
    padded
        .pad_with_same(1, 0, MIN_SIDE.saturating_sub(w))?
        .contiguous()
}

/// The top left `[h, w, 3]` of an image: undoes [`pad`].
pub fn crop(image: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    image.narrow(0, 0, h)?.narrow(1, 0, w)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(h: usize, w: usize, value: impl Fn(usize, usize, usize) -> f32) -> Tensor {
        let values = (0..h * w * 3).map(|i| value(i / 3 / w, i / 3 % w, i % 3));
        Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu).unwrap()
    }

    fn values(image: &Tensor) -> Vec<f32> {
        image.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn sizes() {
        assert_eq!(scaled((100, 50), 0.5), (50, 25));
        assert_eq!(scaled((3, 5), 0.5), (2, 3));
        assert_eq!(scaled((1000, 1), 0.01), (10, 1));
        assert_eq!(scaled((1, 1), 1e-9), (1, 1));

        assert_eq!(fit((1080, 1920), Some(512)), (288, 512));
        assert_eq!(fit((1920, 1080), Some(512)), (512, 288));
        assert_eq!(fit((288, 512), Some(512)), (288, 512));
        assert_eq!(fit((10, 20), Some(512)), (10, 20));
        assert_eq!(fit((1080, 1920), None), (1080, 1920));
        assert_eq!(fit((50, 40_000), None), (41, 32_768));
        assert_eq!(fit((1, 4000), Some(16)), (1, 16));
        assert_eq!(fit((4000, 3000), Some(1)), (1, 1));
    }

    #[test]
    fn the_longest_side_is_what_was_asked_for() {
        for h in [1, 2, 479, 480, 1081, 4001] {
            for w in [1, 640, 853, 1919, 4096] {
                for max in [1, 17, 255, 512] {
                    let (to_h, to_w) = fit((h, w), Some(max));
                    assert_eq!(to_h.max(to_w), h.max(w).min(max as usize), "{h}x{w} {max}");
                    assert!(to_h.min(to_w) >= 1);
                }
            }
        }
    }

    #[test]
    fn a_uniform_colour_stays_the_same() {
        let colour = [0.0, 0.25, 1.0];
        let source = image(19, 31, |_, _, c| colour[c]);
        for size in [(7, 5), (1, 1), (19, 31), (40, 90)] {
            let scaled = resize(&source, size).unwrap();
            assert_eq!(scaled.dims(), [size.0, size.1, 3]);
            for (i, value) in values(&scaled).iter().enumerate() {
                assert!((value - colour[i % 3]).abs() < 1e-6, "{size:?}: {value}");
            }
        }
    }

    #[test]
    fn channels_and_axes_are_not_mixed_up() {
        // A smooth wave along one axis in each channel: resampling it is close to computing it
        // at the other size.
        let wave = |at: usize, side: usize| 0.5 + 0.4 * (at as f32 / side as f32 * 6.0).sin();
        let smooth = |h: usize, w: usize| {
            image(h, w, |y, x, c| match c {
                0 => wave(2 * y + 1, 2 * h),
                1 => wave(2 * x + 1, 2 * w),
                _ => 0.5,
            })
        };
        let scaled = resize(&smooth(64, 96), (32, 24)).unwrap();
        for (scaled, direct) in values(&scaled).iter().zip(values(&smooth(32, 24))) {
            assert!((scaled - direct).abs() < 0.02, "{scaled} {direct}");
        }
    }

    #[test]
    fn sharp_edges_do_not_overshoot() {
        let edges = image(24, 24, |y, x, _| ((x / 4 + y / 4) % 2) as f32);
        for size in [(60, 60), (11, 17)] {
            let scaled = values(&resize(&edges, size).unwrap());
            assert!(scaled.iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }

    #[test]
    fn padding_repeats_the_last_row_and_column() {
        let small = image(2, 3, |y, x, c| (y * 10 + x * 3 + c) as f32 / 100.0);
        let padded = pad(&small).unwrap();
        assert_eq!(padded.dims(), [MIN_SIDE, MIN_SIDE, 3]);
        assert!(padded.is_contiguous());
        let expected = image(MIN_SIDE, MIN_SIDE, |y, x, c| {
            (y.min(1) * 10 + x.min(2) * 3 + c) as f32 / 100.0
        });
        assert_eq!(values(&padded), values(&expected));
    }

    #[test]
    fn cropping_undoes_padding() {
        for size in [(1, 1), (1, 40), (40, 1), (15, 16), (17, 16)] {
            let source = image(size.0, size.1, |y, x, c| (y * 7 + x * 3 + c) as f32 / 400.0);
            let padded = pad(&source).unwrap();
            assert_eq!(
                padded.dims(),
                [size.0.max(MIN_SIDE), size.1.max(MIN_SIDE), 3]
            );
            let cropped = crop(&padded, size).unwrap();
            assert_eq!(cropped.dims(), source.dims());
            assert_eq!(values(&cropped), values(&source));
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! What is done to colours before and after the optimisation.
//!
//! Transfer in luminance only (Gatys et al., "Preserving Color in Neural Artistic Style
//! Transfer", 2016, section 4): the frame and the style image are made grey before the
//! optimisation, and the frame's chrominance is put back after it. The style's luma is not matched
//! to the frame's, as is suggested there: it would be another style for each frame.

use crate::ops::with_values;
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Fewest pixels that are worth a thread.
const MIN_PIXELS: usize = 1 << 12;

/// The weights of R, G and B in luma (Rec. 601).
pub const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// The luma of a pixel.
#[inline(always)]
pub fn luma(rgb: &[f32; 3]) -> f32 {
    LUMA[0] * rgb[0] + LUMA[1] * rgb[1] + LUMA[2] * rgb[2]
}

/// An image `[h, w, 3]` in grey.
pub fn grey(image: &Tensor) -> Result<Tensor> {
    let weights = Tensor::new(&LUMA, image.device())?;
    let luma = image.broadcast_mul(&weights)?.sum_keepdim(2)?;
    luma.broadcast_as(image.shape())?.contiguous()
}

/// `result`'s luma with `frame`'s chrominance, both contiguous `[h, w, 3]` on the CPU, clamped to 0..1.
pub fn with_chrominance(result: &Tensor, frame: &Tensor) -> Result<Tensor> {
    let mut image = vec![0.0; frame.elem_count()];
    with_values([result, frame], |[result, frame]: [&[f32]; 2]| {
        let pixels = image.as_chunks_mut::<3>().0.par_iter_mut();
        let others = (result.as_chunks::<3>().0, frame.as_chunks::<3>().0);
        let pixels = pixels.zip(others).with_min_len(MIN_PIXELS);
        pixels.for_each(|(pixel, (result, frame))| {
            let change = luma(result) - luma(frame);
            *pixel = frame.map(|value| (value + change).clamp(0.0, 1.0));
        });
    })?;
    Tensor::from_vec(image, frame.shape(), &Device::Cpu)
}

/// Added to the deviation of an image that is [matched](matched), in quadrature: so the noise of an
/// almost uniform one grows at most tenfold.
const NOISE_DEVIATION: f64 = 0.05;

/// The mean and the variance of each channel of an image, both `[1, 1, 3]`.
pub struct Statistics {
    mean: Tensor,
    variance: Tensor,
}

impl Statistics {
    /// Those of an image `[h, w, 3]`.
    pub fn of(image: &Tensor) -> Result<Self> {
        // Columns first: a sum of all pixels at once would lose its small addends in f32.
        let mean_of = |image: &Tensor| image.mean_keepdim(0)?.mean_keepdim(1);
        let mean = mean_of(image)?;
        let variance = mean_of(&image.broadcast_sub(&mean)?.sqr()?)?;
        Ok(Self { mean, variance })
    }
}

/// `image` `[h, w, 3]` with the mean and the standard deviation of each channel of another, clamped
/// to 0..1 (Reinhard et al., "Color Transfer between Images", 2001, equations 10 and 11, but of
/// R'G'B' instead of lαβ).
pub fn matched(image: &Tensor, other: &Statistics) -> Result<Tensor> {
    let Statistics { mean, variance } = Statistics::of(image)?;
    let gain = (&other.variance / (variance + NOISE_DEVIATION * NOISE_DEVIATION)?)?.sqrt()?;
    image
        .broadcast_sub(&mean)?
        .broadcast_mul(&gain)?
        .broadcast_add(&other.mean)?
        .clamp(0f32, 1f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pixels: &[[f32; 3]]) -> Tensor {
        let values = pixels.concat();
        Tensor::from_vec(values, (1, pixels.len(), 3), &Device::Cpu).unwrap()
    }

    fn pixels(image: &Tensor) -> Vec<Vec<f32>> {
        image.squeeze(0).unwrap().to_vec2().unwrap()
    }

    fn luma_of(rgb: &[f32]) -> f32 {
        0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    }

    #[track_caller]
    fn assert_close(a: f32, b: f32) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn grey_is_rec_601_luma() {
        let colours = image(&[
            [1.0, 0.0, 0.0],
            [0.0, 1.0, 0.0],
            [0.0, 0.0, 1.0],
            [0.2, 0.2, 0.2],
        ]);
        let grey = grey(&colours).unwrap();
        assert!(grey.is_contiguous());
        for (pixel, luma) in pixels(&grey).iter().zip([0.299, 0.587, 0.114, 0.2]) {
            pixel.iter().for_each(|&value| assert_close(value, luma));
        }
    }

    #[test]
    fn luma_is_the_results_and_chrominance_the_frames() {
        let result = image(&[[0.5, 0.4, 0.3], [0.6, 0.6, 0.6]]);
        let frame = image(&[[0.3, 0.5, 0.4], [0.45, 0.5, 0.55]]);
        let mixed = pixels(&with_chrominance(&result, &frame).unwrap());
        for ((mixed, result), frame) in mixed.iter().zip(pixels(&result)).zip(pixels(&frame)) {
            assert_close(luma_of(mixed), luma_of(&result));
            for channel in 0..3 {
                assert_close(
                    mixed[channel] - luma_of(mixed),
                    frame[channel] - luma_of(&frame),
                );
            }
        }
    }

    #[test]
    fn the_frame_keeps_its_colours_where_nothing_was_painted() {
        let frame = image(&[[0.9, 0.1, 0.2], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]);
        let same = with_chrominance(&grey(&frame).unwrap(), &frame).unwrap();
        for (same, frame) in pixels(&same).concat().iter().zip(pixels(&frame).concat()) {
            assert_close(*same, frame);
        }
    }

    #[test]
    fn a_matched_image_has_the_mean_and_the_contrast_of_the_other() {
        let reference = image(&[[0.2, 0.5, 0.3], [0.8, 0.5, 0.1]]);
        let reference = Statistics::of(&reference).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (value, expected) in values(&reference.mean).iter().zip([0.5, 0.5, 0.2]) {
            assert_close(*value, expected);
        }
        for (value, expected) in values(&reference.variance).iter().zip([0.09, 0.0, 0.01]) {
            assert_close(*value, expected);
        }
        // Its contrast is so far above the noise that this hardly lowers it.
        let matched = matched(&image(&[[0.0; 3], [1.0; 3]]), &reference).unwrap();
        let expected = [[0.2, 0.5, 0.1], [0.8, 0.5, 0.3]];
        for (value, expected) in values(&matched).iter().zip(expected.concat()) {
            assert!(
                (value - expected).abs() < 0.002,
                "{value} is not {expected}"
            );
        }
    }

    #[test]
    fn a_large_image_has_its_mean() {
        let large = Tensor::full(0.7f32, (4096, 4096, 3), &Device::Cpu).unwrap();
        let mean = Statistics::of(&large).unwrap().mean;
        let mean: Vec<f32> = mean.flatten_all().unwrap().to_vec1().unwrap();
        mean.iter()
            .for_each(|&mean| assert!((mean - 0.7).abs() < 1e-4, "{mean}"));
    }

    #[test]
    fn noise_of_a_black_image_stays_noise() {
        let noise = image(&[[0.0; 3], [0.01; 3]]);
        let reference = image(&[[0.0; 3], [1.0; 3]]);
        let matched = matched(&noise, &Statistics::of(&reference).unwrap()).unwrap();
        for value in pixels(&matched).concat() {
            assert!((value - 0.5).abs() < 0.06, "{value}");
        }
    }

    #[test]
    fn colours_stay_within_their_range() {
        let white = image(&[[1.0; 3], [0.0; 3]]);
        let frame = image(&[[0.9, 0.1, 0.2], [0.1, 0.9, 0.8]]);
        let mixed = with_chrominance(&white, &frame).unwrap();
        assert!(
            pixels(&mixed)
                .concat()
                .iter()
                .all(|value| (0.0..=1.0).contains(value))
        );
    }
}

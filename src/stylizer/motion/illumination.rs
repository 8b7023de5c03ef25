// SPDX-License-Identifier: MPL-2.0

//! The illumination of a picture: its low-pass filtered colours, at a scale coarser than brush strokes.

use super::bilinear::{LerpIndex, lerp_indices};
use super::thumbnail::{Rgb, SQUARE, Thumbnail};
use crate::stylizer::color::luma;

/// Side of a block, in squares of the thumbnail and in pixels of the frame: larger than a brush stroke.
const SQUARES: usize = 2;
const BLOCK: usize = SQUARES * SQUARE;

/// The RGB means of a picture's blocks of 16x16 pixels, blurred by a 3x3 binomial kernel, `[h, w]`. It
/// is the low-pass colour, not an estimate of the light alone.
#[derive(Clone)]
pub struct Illumination {
    h: usize,
    w: usize,
    values: Vec<Rgb>,
}

impl Illumination {
    /// Of the image that the thumbnail is of.
    pub fn new(thumbnail: &Thumbnail) -> Self {
        let (h, w) = (thumbnail.h.div_ceil(SQUARES), thumbnail.w.div_ceil(SQUARES));
        let mean = |block: usize| {
            let (y, x) = (SQUARES * (block / w), SQUARES * (block % w));
            let mut sum = [0.0; 3];
            let mut count = 0.0;
            for y in y..(y + SQUARES).min(thumbnail.h) {
                for x in x..(x + SQUARES).min(thumbnail.w) {
                    let value = thumbnail.values[y * thumbnail.w + x];
                    let (h, w) = thumbnail.square_size(y, x);
                    let pixels = (h * w) as f32;
                    sum = [0, 1, 2].map(|i| sum[i] + pixels * value[i]);
                    count += pixels;
                }
            }
            sum.map(|sum| sum / count)
        };
        let values = (0..h * w).map(mean).collect();
        Self { h, w, values }.blurred()
    }

    /// Convolves with the binomial kernel 1, 2, 1 along both axes.
    fn blurred(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for y in 0..self.h {
            for x in 0..self.w {
                let mut sum = [0.0; 3];
                for (dy, wy) in [(0, 0.25), (1, 0.5), (2, 0.25)] {
                    for (dx, wx) in [(0, 0.25), (1, 0.5), (2, 0.25)] {
                        let y = (y + dy).saturating_sub(1).min(self.h - 1);
                        let x = (x + dx).saturating_sub(1).min(self.w - 1);
                        for (sum, value) in sum.iter_mut().zip(self.values[y * self.w + x]) {
                            *sum += wy * wx * value;
                        }
                    }
                }
                values.push(sum);
            }
        }
        Self { values, ..*self }
    }

    /// The largest absolute difference of any channel to the illumination of a picture of the same
    /// size.
    pub fn difference(&self, other: &Self) -> f32 {
        let values = self.values.as_flattened().iter();
        let pairs = values.zip(other.values.as_flattened());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// The illumination of the picture in grey.
    pub fn grey(&self) -> Self {
        let grey = |rgb: &Rgb| [luma(rgb); 3];
        Self {
            values: self.values.iter().map(grey).collect(),
            ..*self
        }
    }

    /// The illumination for a picture of `h` by `w` pixels, interpolated across only.
    pub fn upsampled(&self, (h, w): (usize, usize)) -> UpsampledIllumination {
        let columns = lerp_indices(w, BLOCK, self.w);
        let mut values = Vec::with_capacity(self.h * w);
        for row in self.values.chunks_exact(self.w) {
            values.extend(columns.iter().map(|&(before, after, t)| {
                let (before, after) = (row[before], row[after]);
                [0, 1, 2].map(|i| before[i] + t * (after[i] - before[i]))
            }));
        }
        UpsampledIllumination {
            w,
            rows: lerp_indices(h, BLOCK, self.h),
            values,
        }
    }
}

/// Illumination upsampled across only: at each column of a picture, but only at the rows of blocks.
/// Whoever reads it interpolates down, with the rows and the weight of [`Self::row`].
pub struct UpsampledIllumination {
    w: usize,
    rows: Vec<LerpIndex>,
    /// `[rows of blocks, w]`
    values: Vec<Rgb>,
}

impl UpsampledIllumination {
    /// The rows of RGB values above and below a row of the picture, and the weight of the latter.
    #[inline(always)]
    pub fn row(&self, y: usize) -> ([&[f32]; 2], f32) {
        let (above, below, t) = self.rows[y];
        let row = |y: usize| self.values[y * self.w..][..self.w].as_flattened();
        ([row(above), row(below)], t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn illumination(h: usize, w: usize, value: impl Fn(usize, usize) -> f32) -> Illumination {
        let pixel = |i: usize| [value(i / w, i % w), 0.25, 1.0];
        let image: Vec<f32> = (0..h * w).flat_map(pixel).collect();
        Illumination::new(&Thumbnail::new(&image, (h, w)))
    }

    fn at(illumination: &Illumination, size: (usize, usize), y: usize, x: usize) -> Rgb {
        let upsampled = illumination.upsampled(size);
        let ([above, below], t) = upsampled.row(y);
        [0, 1, 2].map(|i| above[3 * x + i] + t * (below[3 * x + i] - above[3 * x + i]))
    }

    #[test]
    fn a_uniform_picture_is_its_own_illumination_at_every_size() {
        for (h, w) in [(16, 16), (17, 40), (100, 31)] {
            let illumination = illumination(h, w, |_, _| 0.7);
            for y in 0..h {
                for x in 0..w {
                    let values = at(&illumination, (h, w), y, x);
                    for (value, expected) in values.iter().zip([0.7, 0.25, 1.0]) {
                        assert!((value - expected).abs() < 1e-5, "{h}x{w} {y} {x}: {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn shading_is_illumination_and_strokes_are_not() {
        let strokes = illumination(96, 96, |y, x| 0.5 + 0.5 * ((x + y) as f32 * 1.3).sin());
        let shading = illumination(96, 96, |_, x| x as f32 / 95.0);
        for i in 24..72 {
            let stroke = at(&strokes, (96, 96), i, i)[0];
            assert!((stroke - 0.5).abs() < 0.05, "{stroke}");
            let value = at(&shading, (96, 96), i, i)[0];
            assert!((value - i as f32 / 95.0).abs() < 0.01, "{value}");
        }
    }
}

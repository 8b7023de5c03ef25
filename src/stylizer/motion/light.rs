// SPDX-License-Identifier: MPL-2.0

//! The light of a picture: what is left of it at a small size.

use super::spline::Pixel;
use super::{Place, mixed, places};

/// Pixels across and down of which one value is left: larger than a brush stroke.
const BLOCK: usize = 16;

/// The means of a picture's blocks, blurred.
pub struct Light {
    h: usize,
    w: usize,
    values: Vec<Pixel>,
}

impl Light {
    /// Of an image `[h, w, 3]`.
    pub fn new(image: &[f32], (h, w): (usize, usize)) -> Self {
        let (rows, columns) = (h.div_ceil(BLOCK), w.div_ceil(BLOCK));
        let mut values = vec![[0.0; 4]; rows * columns];
        for (y, row) in image.chunks_exact(3 * w).enumerate() {
            let means = &mut values[y / BLOCK * columns..][..columns];
            let height = BLOCK.min(h - y / BLOCK * BLOCK);
            for (mean, block) in means.iter_mut().zip(row.chunks(3 * BLOCK)) {
                let share = 1.0 / (height * block.len() / 3) as f32;
                for pixel in block.as_chunks::<3>().0 {
                    for (mean, value) in mean.iter_mut().zip(pixel) {
                        *mean += share * value;
                    }
                }
            }
        }
        let light = Self {
            h: rows,
            w: columns,
            values,
        };
        light.blurred()
    }

    /// Each value the mean of those around it, of weights 1, 2, 1 along both axes.
    fn blurred(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for y in 0..self.h {
            for x in 0..self.w {
                let mut sum = [0.0; 4];
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

    /// The largest difference of a channel to another picture's light of the same size.
    pub fn difference(&self, other: &Self) -> f32 {
        let values = self.values.as_flattened().iter();
        let pairs = values.zip(other.values.as_flattened());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// The light on each row of the picture, `[h, columns]`.
    pub fn rows(&self, h: usize) -> Vec<Vec<Pixel>> {
        let row = |&(above, below, t): &(usize, usize, f32)| {
            let at = |y: usize, x: usize| self.values[y * self.w + x];
            (0..self.w)
                .map(|x| mixed(at(above, x), at(below, x), t))
                .collect()
        };
        places(h, BLOCK, self.h).iter().map(row).collect()
    }

    /// Where the columns of a picture `w` wide are between those of a row.
    pub fn columns(&self, w: usize) -> Vec<Place> {
        places(w, BLOCK, self.w)
    }
}

#[cfg(test)]
mod tests {
    use super::super::between;
    use super::*;

    fn light(h: usize, w: usize, value: impl Fn(usize, usize) -> f32) -> Light {
        let pixel = |at: usize| [value(at / w, at % w), 0.25, 1.0];
        let image: Vec<f32> = (0..h * w).flat_map(pixel).collect();
        Light::new(&image, (h, w))
    }

    fn at(light: &Light, (h, w): (usize, usize), y: usize, x: usize) -> Pixel {
        between(&light.rows(h)[y], light.columns(w)[x])
    }

    #[test]
    fn an_even_picture_is_its_light_at_every_size() {
        for (h, w) in [(16, 16), (17, 40), (100, 31)] {
            let light = light(h, w, |_, _| 0.7);
            for y in 0..h {
                for x in 0..w {
                    for (value, expected) in at(&light, (h, w), y, x).iter().zip([0.7, 0.25, 1.0]) {
                        assert!((value - expected).abs() < 1e-5, "{h}x{w} {y} {x}: {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn strokes_are_not_light_and_shades_are() {
        let strokes = light(96, 96, |y, x| 0.5 + 0.5 * ((x + y) as f32 * 1.3).sin());
        let shade = light(96, 96, |_, x| x as f32 / 95.0);
        for at in 24..72 {
            let stroke = self::at(&strokes, (96, 96), at, at)[0];
            assert!((stroke - 0.5).abs() < 0.05, "{stroke}");
            let value = self::at(&shade, (96, 96), at, at)[0];
            assert!((value - at as f32 / 95.0).abs() < 0.01, "{value}");
        }
    }
}

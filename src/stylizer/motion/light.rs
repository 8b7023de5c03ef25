// SPDX-License-Identifier: MPL-2.0

//! What is left of a picture at small sizes: a thumbnail, and its light.

use super::grid::{Place, places};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Pixels across and down of which a thumbnail has one.
pub const SQUARE: usize = 8;

/// Squares across and down of which one value of light is left: larger than a brush stroke.
const SQUARES: usize = 2;
const BLOCK: usize = SQUARES * SQUARE;

pub type Rgb = [f32; 3];

/// The weights of R, G and B in luma (Rec. 601).
pub const LUMA: Rgb = [0.299, 0.587, 0.114];

/// The means of a picture's squares.
pub struct Thumbnail {
    /// Height and width of the picture.
    size: (usize, usize),
    pub h: usize,
    pub w: usize,
    pub values: Vec<Rgb>,
}

impl Thumbnail {
    /// Of an image `[h, w, 3]`.
    pub fn new(image: &[f32], (h, w): (usize, usize)) -> Self {
        let (rows, columns) = (h.div_ceil(SQUARE), w.div_ceil(SQUARE));
        let mut values = vec![[0.0; 3]; rows * columns];
        let bands = image.par_chunks(SQUARE * 3 * w);
        let means = values.par_chunks_exact_mut(columns).with_min_len(2);
        means
            .zip(bands)
            .for_each(|(means, band)| Arch::new().dispatch(Means { means, band, w }));
        Self {
            size: (h, w),
            h: rows,
            w: columns,
            values,
        }
    }

    /// Height and width of a square: those at the end may be smaller than others.
    pub fn square(&self, y: usize, x: usize) -> (usize, usize) {
        let side = |at: usize, side: usize| SQUARE.min(side - at * SQUARE);
        (side(y, self.size.0), side(x, self.size.1))
    }
}

/// The means of a picture's blocks, blurred.
#[derive(Clone)]
pub struct Light {
    h: usize,
    w: usize,
    values: Vec<Rgb>,
}

impl Light {
    pub fn new(thumbnail: &Thumbnail) -> Self {
        let (h, w) = (thumbnail.h.div_ceil(SQUARES), thumbnail.w.div_ceil(SQUARES));
        let mean = |block: usize| {
            let (y, x) = (SQUARES * (block / w), SQUARES * (block % w));
            let mut sum = [0.0; 3];
            let mut count = 0.0;
            for y in y..(y + SQUARES).min(thumbnail.h) {
                for x in x..(x + SQUARES).min(thumbnail.w) {
                    let value = thumbnail.values[y * thumbnail.w + x];
                    let (h, w) = thumbnail.square(y, x);
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

    /// Each value the mean of those around it, of weights 1, 2, 1 along both axes.
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

    /// The largest difference of a channel to another picture's light of the same size.
    pub fn difference(&self, other: &Self) -> f32 {
        let values = self.values.as_flattened().iter();
        let pairs = values.zip(other.values.as_flattened());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// That of the picture in grey.
    pub fn grey(&self) -> Self {
        let grey = |rgb: &Rgb| [rgb.iter().zip(LUMA).map(|(value, luma)| value * luma).sum(); 3];
        Self {
            values: self.values.iter().map(grey).collect(),
            ..*self
        }
    }

    /// The light on a picture of `h` by `w`.
    pub fn on(&self, (h, w): (usize, usize)) -> OnPicture {
        let columns = places(w, BLOCK, self.w);
        let mut values = Vec::with_capacity(self.h * w);
        for row in self.values.chunks_exact(self.w) {
            values.extend(columns.iter().map(|&(before, after, t)| {
                let (before, after) = (row[before], row[after]);
                [0, 1, 2].map(|i| before[i] + t * (after[i] - before[i]))
            }));
        }
        OnPicture {
            w,
            rows: places(h, BLOCK, self.h),
            values,
        }
    }
}

/// Light at each column of a picture.
pub struct OnPicture {
    w: usize,
    rows: Vec<Place>,
    values: Vec<Rgb>,
}

impl OnPicture {
    /// The RGB values between which a row of the picture is, and how far it is from the first to
    /// the second.
    #[inline(always)]
    pub fn row(&self, y: usize) -> ([&[f32]; 2], f32) {
        let (above, below, t) = self.rows[y];
        let row = |y: usize| self.values[y * self.w..][..self.w].as_flattened();
        ([row(above), row(below)], t)
    }
}

/// The means of the squares in a band of rows.
struct Means<'a> {
    means: &'a mut [Rgb],
    band: &'a [f32],
    w: usize,
}

impl NullaryFnOnce for Means<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let mut sums = vec![0.0; 3 * self.w];
        let rows = self.band.chunks_exact(3 * self.w);
        let height = rows.len();
        for row in rows {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        for (mean, block) in self.means.iter_mut().zip(sums.chunks(3 * SQUARE)) {
            for (i, mean) in mean.iter_mut().enumerate() {
                let sum: f32 = block.iter().skip(i).step_by(3).sum();
                *mean = sum / (height * block.len() / 3) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn light(h: usize, w: usize, value: impl Fn(usize, usize) -> f32) -> Light {
        let pixel = |at: usize| [value(at / w, at % w), 0.25, 1.0];
        let image: Vec<f32> = (0..h * w).flat_map(pixel).collect();
        Light::new(&Thumbnail::new(&image, (h, w)))
    }

    fn at(light: &Light, size: (usize, usize), y: usize, x: usize) -> Rgb {
        let light = light.on(size);
        let ([above, below], t) = light.row(y);
        [0, 1, 2].map(|i| above[3 * x + i] + t * (below[3 * x + i] - above[3 * x + i]))
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

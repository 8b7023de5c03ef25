// SPDX-License-Identifier: MPL-2.0

//! The image pyramid: the luma of an image at successively halved sizes.

use super::bilinear::Bilinear;
use super::illumination::Illumination;
use super::lanes::{LANES, lanes};
use super::thumbnail::Thumbnail;
use crate::ops::with_values;
use crate::stylizer::color::LUMA;
use candle_core::{Result, Tensor};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Pixels of each level by which its edge is replicated on every side, for patches that reach beyond it.
pub const PAD: usize = 16;

/// Lower bound of a level's shorter side: a patch of the flow still fits in.
const MIN_SIDE: usize = 8;

/// Lower bound of the longer side of a halved level, where a displacement by a quarter of the picture is some
/// pixels, and of the shorter side of an image whose finest level has half its size.
const COARSEST_SIDE: usize = 24;

/// The finest level of images with more pixels than this has half their size: patches see enough
/// there, in a quarter of the time.
const MAX_PIXELS: usize = 1 << 14;

/// Fewest rows that are worth a thread.
const MIN_ROWS: usize = 16;

/// The weights of R, G and B of 0..1 in luma of 0..255.
const LUMA_255: [f32; 3] = [255.0 * LUMA[0], 255.0 * LUMA[1], 255.0 * LUMA[2]];

/// Luma 0..255 at one size, `[h, w]`, with its edge replicated by [`PAD`] pixels.
pub struct Level {
    pub h: usize,
    pub w: usize,
    padded: Vec<f32>,
}

impl Level {
    fn new(h: usize, w: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let stride = w + 2 * PAD;
        let mut padded = vec![0.0; (h + 2 * PAD) * stride];
        let rows = padded[PAD * stride..][..h * stride].par_chunks_exact_mut(stride);
        let rows = rows.with_min_len(MIN_ROWS).enumerate();
        rows.for_each(|(y, row)| {
            fill(y, &mut row[PAD..PAD + w]);
            let (first, last) = (row[PAD], row[PAD + w - 1]);
            row[..PAD].fill(first);
            row[PAD + w..].fill(last);
        });
        for y in 0..PAD {
            padded.copy_within(PAD * stride..(PAD + 1) * stride, y * stride);
            let last = PAD + h - 1;
            padded.copy_within(last * stride..(last + 1) * stride, (last + 1 + y) * stride);
        }
        Self { h, w, padded }
    }

    /// Values from one row to the next in [`Self::slice_from`].
    pub fn stride(&self) -> usize {
        self.w + 2 * PAD
    }

    /// The padded values from row `y`, column `x` on, which may be up to [`PAD`] before the image.
    #[inline(always)]
    pub fn slice_from(&self, y: isize, x: isize) -> &[f32] {
        let start = (y + PAD as isize) * self.stride() as isize + x + PAD as isize;
        &self.padded[start as usize..]
    }

    /// A row of the image without its padding.
    #[inline(always)]
    pub fn row(&self, y: usize) -> &[f32] {
        &self.slice_from(y as isize, 0)[..self.w]
    }

    /// Interpolates the luma at points between pixels, which lie at integer coordinates.
    #[inline(always)]
    pub fn sample<const N: usize>(&self, y: [f32; N], x: [f32; N]) -> [f32; N] {
        let size = (self.h + 2 * PAD, self.stride());
        let [y, x] = [y, x].map(|points| points.map(|point| point + PAD as f32));
        Bilinear::new(size, y, x).sample(&self.padded)
    }

    /// The level at half its size, each pixel the mean of four.
    fn halved(&self) -> Self {
        Self::new(self.h / 2, self.w / 2, |y, row| {
            let (above, below) = (self.row(2 * y), self.row(2 * y + 1));
            let (above, below) = (above.as_chunks::<2>().0, below.as_chunks::<2>().0);
            for (value, (above, below)) in row.iter_mut().zip(above.iter().zip(below)) {
                *value = 0.25 * ((above[0] + above[1]) + (below[0] + below[1]));
            }
        })
    }
}

/// The luma pyramid of an image, and the image's colours at small sizes.
pub struct Pyramid {
    /// log₂ of the finest level's downscaling factor: 0 or 1.
    pub finest: u32,
    /// From the finest to the coarsest, each half the size of the one before.
    pub levels: Vec<Level>,
    pub thumbnail: Thumbnail,
    pub illumination: Illumination,
}

impl Pyramid {
    /// Of an image `[h, w, 3]`, RGB 0..1 on the CPU, neither side below [`crate::vgg::MIN_SIDE`].
    ///
    /// # Errors
    /// Fails for tensors of another shape, or that are not contiguous ones on the CPU.
    pub fn new(image: &Tensor) -> Result<Self> {
        let (h, w, _) = image.dims3()?;
        let halved = h * w > MAX_PIXELS && h.min(w) >= COARSEST_SIDE;
        let (level, thumbnail) = with_values([image], |[image]: [&[f32]; 1]| {
            let row = |y: usize| &image[3 * w * y..][..3 * w];
            let level = match halved {
                true => Level::new(h / 2, w / 2, |y, half| {
                    let rows = [row(2 * y), row(2 * y + 1)];
                    Arch::new().dispatch(HalfLuma { rows, half });
                }),
                false => Level::new(h, w, |y, values| {
                    for (value, rgb) in values.iter_mut().zip(row(y).as_chunks::<3>().0) {
                        *value = luma(rgb.map(clamp_to_unit));
                    }
                }),
            };
            (level, Thumbnail::new(image, (h, w)))
        })?;
        let mut levels = vec![level];
        while let Some(last) = levels.last()
            && last.h.min(last.w) / 2 >= MIN_SIDE
            && last.h.max(last.w) / 2 >= COARSEST_SIDE
        {
            let halved = last.halved();
            levels.push(halved);
        }
        Ok(Self {
            finest: u32::from(halved),
            levels,
            illumination: Illumination::new(&thumbnail),
            thumbnail,
        })
    }

    /// The index of the finest level of at most so many pixels, or of the coarsest one.
    pub fn first_level(&self, max_pixels: usize) -> usize {
        let fits = |level: &Level| level.h * level.w <= max_pixels;
        let coarsest = self.levels.len() - 1;
        self.levels.iter().position(fits).unwrap_or(coarsest)
    }
}

/// Clamps to 0..1, and NaN to 0, so that every image has a finite flow.
#[inline(always)]
fn clamp_to_unit(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

#[inline(always)]
fn luma([r, g, b]: [f32; 3]) -> f32 {
    LUMA_255[0] * r + LUMA_255[1] * g + LUMA_255[2] * b
}

/// One row of luma at half the size of an image, of two of its rows. Dispatched by SIMD instruction
/// set.
struct HalfLuma<'a> {
    rows: [&'a [f32]; 2],
    half: &'a mut [f32],
}

impl NullaryFnOnce for HalfLuma<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // RGB of two columns go into each value.
        const VALUES: usize = 6 * LANES;
        let [above, below] = self.rows.map(|row| row.chunks(VALUES));
        let parts = self.half.chunks_mut(LANES).zip(above.zip(below));
        for (half, (above, below)) in parts {
            let mut sums = [0.0; VALUES];
            for (sum, (above, below)) in sums.iter_mut().zip(above.iter().zip(below)) {
                *sum = clamp_to_unit(*above) + clamp_to_unit(*below);
            }
            let channel = |i: usize, c: usize| sums[6 * i + c] + sums[6 * i + 3 + c];
            let values = lanes(|i| 0.25 * luma([channel(i, 0), channel(i, 1), channel(i, 2)]));
            half.copy_from_slice(&values[..half.len()]);
        }
    }
}

#[cfg(test)]
impl Pyramid {
    /// Of a grey image of a height and width, whose luma, 0..255, is `luma(y, x)`.
    pub fn of((h, w): (usize, usize), luma: impl Fn(f32, f32) -> f32) -> Self {
        let values = (0..h * w).flat_map(|i| [luma((i / w) as f32, (i % w) as f32) / 255.0; 3]);
        let image = Tensor::from_vec(values.collect(), (h, w, 3), &candle_core::Device::Cpu);
        Self::new(&image.unwrap()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pixel_is_the_mean_of_four() {
        let pyramid = Pyramid::of((37, 102), |y, x| y * 3.0 + x);
        assert_eq!(pyramid.finest, 0);
        let [fine, coarse, ..] = &pyramid.levels[..] else {
            panic!("{} levels", pyramid.levels.len());
        };
        assert_eq!((coarse.h, coarse.w), (18, 51));
        for (y, x) in [(0, 0), (0, 50), (17, 0), (17, 50), (9, 20)] {
            let (above, below) = (fine.row(2 * y), fine.row(2 * y + 1));
            let mean = (above[2 * x] + above[2 * x + 1] + below[2 * x] + below[2 * x + 1]) / 4.0;
            assert!((coarse.row(y)[x] - mean).abs() < 1e-4);
            assert!((mean - (6 * y + 2 * x + 2) as f32).abs() < 1e-3);
        }
    }

    #[test]
    fn the_edge_is_replicated() {
        let pyramid = Pyramid::of((16, 20), |y, x| y * 10.0 + x);
        let (level, pad) = (&pyramid.levels[0], PAD as isize);
        assert_eq!(level.slice_from(-pad, -pad)[0], level.row(0)[0]);
        assert_eq!(level.slice_from(-1, 19 + pad)[0], level.row(0)[19]);
        assert_eq!(level.slice_from(15 + pad, -1)[0], level.row(15)[0]);
        assert_eq!(level.slice_from(15 + pad, 19 + pad)[0], level.row(15)[19]);
    }

    #[test]
    fn large_images_begin_at_half_their_size() {
        let pyramid = Pyramid::of((180, 321), |_, _| 0.0);
        assert_eq!(pyramid.finest, 1);
        let sizes: Vec<_> = pyramid
            .levels
            .iter()
            .map(|level| (level.h, level.w))
            .collect();
        assert_eq!(sizes, [(90, 160), (45, 80), (22, 40)]);
    }
}

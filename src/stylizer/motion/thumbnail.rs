// SPDX-License-Identifier: MPL-2.0

//! A picture reduced to the mean colours of squares of 8x8 pixels.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Side of a square, in pixels of the frame.
pub const SQUARE: usize = 8;

pub type Rgb = [f32; 3];

/// The mean colours of a picture's squares, `[h, w]`.
pub struct Thumbnail {
    /// Height and width of the picture, in pixels.
    size: (usize, usize),
    pub h: usize,
    pub w: usize,
    pub values: Vec<Rgb>,
}

impl Thumbnail {
    /// Reduces an image `[h, w, 3]`.
    pub fn new(image: &[f32], (h, w): (usize, usize)) -> Self {
        let (rows, columns) = (h.div_ceil(SQUARE), w.div_ceil(SQUARE));
        let mut values = vec![[0.0; 3]; rows * columns];
        let bands = image.par_chunks(SQUARE * 3 * w);
        let means = values.par_chunks_exact_mut(columns).with_min_len(2);
        means
            .zip(bands)
            .for_each(|(means, band)| Arch::new().dispatch(SquareMeans { means, band, w }));
        Self {
            size: (h, w),
            h: rows,
            w: columns,
            values,
        }
    }

    /// Height and width of a square in pixels. The last of a row or column may be cut off by the edge.
    pub fn square_size(&self, y: usize, x: usize) -> (usize, usize) {
        let side = |at: usize, side: usize| SQUARE.min(side - at * SQUARE);
        (side(y, self.size.0), side(x, self.size.1))
    }

    /// The mean over the squares of the channel that differs most from that of a picture of the same
    /// size, 0..1.
    pub fn mean_difference(&self, other: &Self) -> f32 {
        let difference = |(a, b): (&Rgb, &Rgb)| {
            let channels = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            channels.fold(0.0, f32::max).min(1.0)
        };
        let pairs = self.values.iter().zip(&other.values);
        pairs.map(difference).sum::<f32>() / self.values.len() as f32
    }
}

/// The means of one row of squares, dispatched by SIMD instruction set.
struct SquareMeans<'a> {
    means: &'a mut [Rgb],
    /// At most [`SQUARE`] rows of `w` pixels.
    band: &'a [f32],
    w: usize,
}

impl NullaryFnOnce for SquareMeans<'_> {
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

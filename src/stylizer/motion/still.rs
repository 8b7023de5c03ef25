// SPDX-License-Identifier: MPL-2.0

//! Whether two frames show the same still picture, but for noise.

use super::pyramid::{Level, Pyramid};
use super::thumbnail::{Rgb, SQUARE, Thumbnail};
use crate::stylizer::color::luma;
use std::array;

/// The largest difference of luma between encoded frames of a still picture: at the picture's own
/// size, at half of it and so on, as measured with x264 at a quantiser of 23, rounded up.
const CODING_ERROR: [f32; 5] = [40.0, 24.0, 12.0, 8.0, 4.5];
/// The same of the mean over the picture.
const MEAN_CODING_ERROR: f64 = 1.0;

/// The same of a channel less luma, in squares of the thumbnail: as measured from one frame to the next
/// with x264 at 1 Mbit/s and VP8 at 1.5, 640x360, rounded up.
const CHROMA_CODING_ERROR: f32 = 16.0;

/// Differences in a still picture stay below this many standard deviations of the noise.
const NOISE_DEVIATIONS: f32 = 5.5;

/// Standard deviation of the luma difference, at the picture's own size, above which no picture counts as
/// still.
const MAX_NOISE: f32 = 20.0;
/// Lower bound of that standard deviation at the finest level: what rounding and an encoder leave where
/// most pixels are the same.
const MIN_NOISE: f32 = 1.0;

/// The displacement above which a tile or the picture counts as moved, in pixels of the finest level.
const MIN_DISPLACEMENT: f64 = 0.08;
/// The same in standard deviations of its estimate; both have to be exceeded.
const MIN_SIGNIFICANCE: f64 = 8.0;
/// Tiles along each side, by which the finest level is searched for motion: each is a quarter of its
/// height by a quarter of its width.
const TILES: usize = 4;
/// How many tiles must have moved: an encoder lets single ones drift.
const MOVED_TILES: usize = 4;

/// The standard deviation of B - Y over that of luma Y, where the channels' noise is independent.
const CHROMA_NOISE: f32 = 1.65;

/// The largest difference of illumination, in any channel of 0..1, that an encoder or a sensor's noise
/// makes. It shows faint changes of large parts.
const MAX_ILLUMINATION_DIFFERENCE: f32 = 4.0 / 255.0;

/// The standard deviation of a normal distribution over its median absolute deviation.
const DEVIATION_PER_MAD: f32 = 1.4826;

/// Whether `now` shows the picture of `before`, but for the noise of a sensor or an encoder.
///
/// The noise is estimated from the median difference. Small things that move exceed it at the level
/// where they are as large as a pixel, or in colour in the thumbnail, and changes of brightness in the
/// mean. A slow motion of the whole picture is below the noise at each pixel, but the differences
/// correlate with the gradients.
pub fn is_still(now: &Pyramid, before: &Pyramid) -> bool {
    let change = now.illumination.difference(&before.illumination);
    if change > MAX_ILLUMINATION_DIFFERENCE {
        return false;
    }
    let noise = noise(&now.levels[0], &before.levels[0]);
    let pixel_noise = noise * (1u32 << now.finest) as f32;
    if pixel_noise > MAX_NOISE || changes_colour(&now.thumbnail, &before.thumbnail, pixel_noise) {
        return false;
    }
    let levels = now.levels.iter().zip(&before.levels).zip(0..);
    for ((now_level, before_level), index) in levels {
        let scale = (now.finest + index) as usize;
        let coding_error = CODING_ERROR[scale.min(CODING_ERROR.len() - 1)];
        // Each level has the means of four pixels, and so half of the noise.
        let bound = coding_error.max(NOISE_DEVIATIONS * noise / (1u32 << index) as f32);
        if differences(now_level, before_level).any(|difference| difference.abs() > bound) {
            return false;
        }
    }
    let (now, before) = (&now.levels[0], &before.levels[0]);
    let sum: f64 = differences(now, before).map(f64::from).sum();
    if (sum / (now.h * now.w) as f64).abs() > MEAN_CODING_ERROR {
        return false;
    }
    let mut picture = NormalEquations::default();
    let mut moved_tiles = 0;
    for index in 0..TILES * TILES {
        let tile = NormalEquations::of_tile(now, before, [index / TILES, index % TILES]);
        picture.add(&tile);
        moved_tiles += usize::from(tile.has_moved(noise));
    }
    moved_tiles < MOVED_TILES && !picture.has_moved(noise)
}

/// Whether any square changes its colour, other than its luma, by more than noise or an encoder makes it.
/// The noise is that of a pixel's luma.
fn changes_colour(now: &Thumbnail, before: &Thumbnail, noise: f32) -> bool {
    let squares = (0..now.h).flat_map(|y| (0..now.w).map(move |x| (y, x)));
    let mut pairs = squares.zip(now.values.iter().zip(&before.values));
    pairs.any(|((y, x), (after, before))| {
        let change: Rgb = array::from_fn(|i| 255.0 * (after[i] - before[i]));
        let luma = luma(&change);
        // Squares that the edge cuts off are means of fewer pixels.
        let (h, w) = now.square_size(y, x);
        let side = ((h * w) as f32).sqrt();
        let coding_error = CHROMA_CODING_ERROR * SQUARE as f32 / side;
        let bound = coding_error.max(NOISE_DEVIATIONS * CHROMA_NOISE * noise / side);
        change.iter().any(|c| (c - luma).abs() > bound)
    })
}

fn differences(now: &Level, before: &Level) -> impl Iterator<Item = f32> {
    let rows = (0..now.h).map(|y| now.row(y).iter().zip(before.row(y)));
    rows.flatten().map(|(now, before)| now - before)
}

/// The standard deviation of the differences without outliers, by their median absolute deviation.
fn noise(now: &Level, before: &Level) -> f32 {
    const BINS_PER_LUMA: f32 = 8.0;
    let mut histogram = [0; 256 * BINS_PER_LUMA as usize];
    for difference in differences(now, before) {
        let bin = (difference.abs() * BINS_PER_LUMA) as usize;
        histogram[bin.min(histogram.len() - 1)] += 1;
    }
    let mut below = 0;
    let median = histogram.iter().position(|count| {
        below += count;
        2 * below >= now.h * now.w
    });
    let median = median.unwrap_or(histogram.len()) as f32 / BINS_PER_LUMA;
    (DEVIATION_PER_MAD * median).max(MIN_NOISE)
}

/// The normal equations of a part's displacement (Lucas and Kanade 1981): Σ ∇I ∇Iᵀ, as xx, xy and yy, and
/// Σ ∇I (I − I₀), as x and y.
#[derive(Default)]
struct NormalEquations([f64; 5]);

impl NormalEquations {
    fn of_tile(now: &Level, before: &Level, [row, column]: [usize; 2]) -> Self {
        let range = |index: usize, side: usize| index * side / TILES..(index + 1) * side / TILES;
        let columns = range(column, now.w);
        let mut sums = Self::default();
        for y in range(row, now.h) {
            let at = |dy: isize| now.slice_from(y as isize + dy, columns.start as isize - 1);
            let (above, here, below) = (at(-1), at(0), at(1));
            let before = &before.row(y)[columns.clone()];
            let mut row = [0.0f32; 5];
            for (j, before) in before.iter().enumerate() {
                let dx = 0.5 * (here[j + 2] - here[j]);
                let dy = 0.5 * (below[j + 1] - above[j + 1]);
                let difference = here[j + 1] - before;
                let products = [dx * dx, dx * dy, dy * dy, dx * difference, dy * difference];
                row.iter_mut()
                    .zip(products)
                    .for_each(|(sum, product)| *sum += product);
            }
            sums.add(&Self(row.map(f64::from)));
        }
        sums
    }

    fn add(&mut self, other: &Self) {
        for (sum, value) in self.0.iter_mut().zip(other.0) {
            *sum += value;
        }
    }

    /// Whether the least-squares displacement is large and significant under so much noise.
    fn has_moved(&self, noise: f32) -> bool {
        let [xx, xy, yy, x, y] = self.0;
        let determinant = xx * yy - xy * xy;
        // The aperture problem: gradients along one direction do not constrain the other.
        if determinant <= 1e-3 * xx * yy {
            return false;
        }
        let u = (yy * x - xy * y) / determinant;
        let v = (xx * y - xy * x) / determinant;
        let deviation = f64::from(noise) * ((xx + yy) / determinant).sqrt();
        u.hypot(v) > MIN_DISPLACEMENT.max(MIN_SIGNIFICANCE * deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stylizer::motion::pyramid::Pyramid;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn waves(y: f32, x: f32) -> f32 {
        128.0 + 40.0 * (0.31 * x + 0.1 * y).sin() + 40.0 * (0.27 * y - 0.05 * x).cos()
    }

    #[test]
    fn a_picture_is_still_beside_itself() {
        for size in [(16, 16), (17, 35), (90, 160), (360, 640)] {
            for luma in [|_, _| 0.0, |_, _| 255.0, waves] {
                let picture = Pyramid::of(size, luma);
                assert!(is_still(&picture, &picture), "{size:?}");
            }
        }
    }

    #[test]
    fn changes_of_brightness_and_motion_are_noticed() {
        for size in [(64, 64), (90, 160), (360, 640)] {
            let before = Pyramid::of(size, waves);
            let brighter = Pyramid::of(size, |y, x| waves(y, x) + 2.0);
            assert!(!is_still(&brighter, &before), "{size:?}");
            let moved = Pyramid::of(size, |y, x| waves(y, x + 0.3));
            assert!(!is_still(&moved, &before), "{size:?}");
            let (h, w) = (size.0 as f32 / 2.0, size.1 as f32 / 2.0);
            let zoomed = Pyramid::of(size, |y, x| waves(h + (y - h) * 1.01, w + (x - w) * 1.01));
            assert!(!is_still(&zoomed, &before), "{size:?}");
        }
    }

    #[test]
    fn the_noise_is_measured_despite_outliers() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut next = || rng.random::<f32>() - 0.5;
        // Twelve uniform numbers add up to a variance of one; a tenth of the picture changed.
        let values: Vec<f32> = (0..100 * 100)
            .map(|i| {
                128.0 + 5.0 * (0..12).map(|_| next()).sum::<f32>() + f32::from(i % 10 == 0) * 90.0
            })
            .collect();
        let now = Pyramid::of((100, 100), |y, x| values[y as usize * 100 + x as usize]);
        let before = Pyramid::of((100, 100), |_, _| 128.0);
        let noise = noise(&now.levels[0], &before.levels[0]);
        assert!((5.0..6.2).contains(&noise), "{noise}");
    }
}

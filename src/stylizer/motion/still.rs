// SPDX-License-Identifier: MPL-2.0

//! Whether two frames show the same picture but for noise.

use super::pyramid::{Level, Pyramid};

/// Differences of luma that an encoder makes of a picture that rests: at the picture's own size,
/// at the half of it and so on, as measured with x264 at a quantiser of 23, rounded up.
const ENCODED: [f32; 5] = [40.0, 24.0, 12.0, 8.0, 4.5];
/// The same of the mean over the picture.
const ENCODED_MEAN: f64 = 1.0;

/// Standard deviations of noise that none of a frame's pixels exceeds.
const DEVIATIONS: f32 = 5.5;

/// Noise of the difference, at the picture's own size, beyond which nothing is called still.
const MOST_NOISE: f32 = 20.0;
/// What rounding to whole numbers and an encoder leave where most pixels are the same.
const LEAST_NOISE: f32 = 1.0;

/// A movement that counts: in pixels of the finest level, and in standard deviations.
const MOVEMENT: f64 = 0.08;
const CERTAINTY: f64 = 8.0;
/// Tiles along each side in which movement is looked for, and how many must have moved: an encoder
/// lets single ones drift.
const TILES: usize = 4;
const MOVED: usize = 4;

/// What the light of a picture differs by for an encoder or the noise of a sensor, 0..1: a change of
/// colour leaves luma as it is.
const LIGHT: f32 = 4.0 / 255.0;

/// A median absolute deviation times this is the standard deviation of a normal distribution.
const MAD: f32 = 1.4826;

/// Whether `now` shows the picture of `before` but for noise, that of a sensor or of an encoder.
///
/// The noise is as strong as most differences are. A small thing that moved exceeds it at the level
/// where it is as large as a pixel, a change of light in the mean. A slow movement of the whole is
/// less than the noise at each pixel, but all over the picture it goes along with the slopes.
pub fn is_still(now: &Pyramid, before: &Pyramid) -> bool {
    if now.light.difference(&before.light) > LIGHT {
        return false;
    }
    let noise = noise(&now.levels[0], &before.levels[0]);
    if noise * (1u32 << now.finest) as f32 > MOST_NOISE {
        return false;
    }
    let levels = now.levels.iter().zip(&before.levels).zip(0..);
    for ((now_level, before_level), index) in levels {
        let scale = (now.finest + index) as usize;
        let encoded = ENCODED[scale.min(ENCODED.len() - 1)];
        // Each level has the means of four pixels, and half of the noise.
        let bound = encoded.max(DEVIATIONS * noise / (1u32 << index) as f32);
        if differences(now_level, before_level).any(|difference| difference.abs() > bound) {
            return false;
        }
    }
    let (now, before) = (&now.levels[0], &before.levels[0]);
    let sum: f64 = differences(now, before).map(f64::from).sum();
    if (sum / (now.h * now.w) as f64).abs() > ENCODED_MEAN {
        return false;
    }
    let mut picture = Slopes::default();
    let mut moved = 0;
    for index in 0..TILES * TILES {
        let tile = Slopes::of(now, before, [index / TILES, index % TILES]);
        picture.add(&tile);
        moved += usize::from(tile.have_moved(noise));
    }
    moved < MOVED && !picture.have_moved(noise)
}

fn differences(now: &Level, before: &Level) -> impl Iterator<Item = f32> {
    let rows = (0..now.h).map(|y| now.row(y).iter().zip(before.row(y)));
    rows.flatten().map(|(now, before)| now - before)
}

/// The standard deviation of the differences but for outliers.
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
    (MAD * median).max(LEAST_NOISE)
}

/// Sums over a part of a picture: Σ ∇I ∇Iᵀ (xx, xy, yy) and Σ ∇I (I − I₀).
#[derive(Default)]
struct Slopes {
    squares: [f64; 3],
    differences: [f64; 2],
}

impl Slopes {
    fn of(now: &Level, before: &Level, [row, column]: [usize; 2]) -> Self {
        let range = |index: usize, side: usize| index * side / TILES..(index + 1) * side / TILES;
        let columns = range(column, now.w);
        let mut sums = Self::default();
        for y in range(row, now.h) {
            let at = |dy: isize| now.from(y as isize + dy, columns.start as isize - 1);
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
            let [xx, xy, yy, x, y] = row.map(f64::from);
            sums.add(&Self {
                squares: [xx, xy, yy],
                differences: [x, y],
            });
        }
        sums
    }

    fn add(&mut self, other: &Self) {
        for (sum, value) in self.squares.iter_mut().zip(other.squares) {
            *sum += value;
        }
        for (sum, value) in self.differences.iter_mut().zip(other.differences) {
            *sum += value;
        }
    }

    /// Whether the movement that fits the differences best (least squares) is surely one.
    fn have_moved(&self, noise: f32) -> bool {
        let ([xx, xy, yy], [x, y]) = (self.squares, self.differences);
        let determinant = xx * yy - xy * xy;
        // Slopes of one direction tell nothing of a movement across it.
        if determinant <= 1e-3 * xx * yy {
            return false;
        }
        let u = (yy * x - xy * y) / determinant;
        let v = (xx * y - xy * x) / determinant;
        let deviation = f64::from(noise) * ((xx + yy) / determinant).sqrt();
        u.hypot(v) > MOVEMENT.max(CERTAINTY * deviation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stylizer::motion::pyramid::Pyramid;
    use candle_core::{Device, Tensor};

    fn pyramid((h, w): (usize, usize), luma: impl Fn(f32, f32) -> f32) -> Pyramid {
        let values = (0..h * w).flat_map(|i| [luma((i / w) as f32, (i % w) as f32) / 255.0; 3]);
        let image = Tensor::from_vec(values.collect::<Vec<_>>(), (h, w, 3), &Device::Cpu);
        Pyramid::new(&image.unwrap()).unwrap()
    }

    fn waves(y: f32, x: f32) -> f32 {
        128.0 + 40.0 * (0.31 * x + 0.1 * y).sin() + 40.0 * (0.27 * y - 0.05 * x).cos()
    }

    #[test]
    fn a_picture_is_still_beside_itself() {
        for size in [(16, 16), (17, 35), (90, 160), (360, 640)] {
            for luma in [|_, _| 0.0, |_, _| 255.0, waves] {
                let picture = pyramid(size, luma);
                assert!(is_still(&picture, &picture), "{size:?}");
            }
        }
    }

    #[test]
    fn light_and_movement_are_noticed() {
        for size in [(64, 64), (90, 160), (360, 640)] {
            let before = pyramid(size, waves);
            let brighter = pyramid(size, |y, x| waves(y, x) + 2.0);
            assert!(!is_still(&brighter, &before), "{size:?}");
            let moved = pyramid(size, |y, x| waves(y, x + 0.3));
            assert!(!is_still(&moved, &before), "{size:?}");
            let (h, w) = (size.0 as f32 / 2.0, size.1 as f32 / 2.0);
            let zoomed = pyramid(size, |y, x| waves(h + (y - h) * 1.01, w + (x - w) * 1.01));
            assert!(!is_still(&zoomed, &before), "{size:?}");
        }
    }

    #[test]
    fn the_noise_is_measured_despite_outliers() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        // Twelve uniform numbers add up to a variance of one; a tenth of the picture changed.
        let values: Vec<f32> = (0..100 * 100)
            .map(|i| {
                128.0 + 5.0 * (0..12).map(|_| next()).sum::<f32>() + f32::from(i % 10 == 0) * 90.0
            })
            .collect();
        let now = pyramid((100, 100), |y, x| values[y as usize * 100 + x as usize]);
        let before = pyramid((100, 100), |_, _| 128.0);
        let noise = noise(&now.levels[0], &before.levels[0]);
        assert!((5.0..6.2).contains(&noise), "{noise}");
    }
}

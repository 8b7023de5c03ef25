// SPDX-License-Identifier: MPL-2.0

//! Whether a frame shows another scene than the one before.

use super::flow::Field;
use super::pyramid::{Level, PAD, Pyramid};
use pulp::Arch;

/// The [`change`] from which a frame is a new scene, halfway between the largest that was measured
/// without a cut (0.65: a pan that begins with 100 pixels in one frame) and the smallest at one
/// (0.75: from a picture out of focus to another; 0.83 in focus, from a picture to its mirror
/// image).
pub const DEFAULT_SCENE_CUT: f64 = 0.7;

/// Structure is compared at the finest level of at most so many pixels.
const COMPARED_PIXELS: usize = 1 << 14;
/// A pan is looked for first at the finest level of at most so many.
const SEARCHED_PIXELS: usize = 1 << 10;
/// Nor beyond so many pixels: that level of a thin picture is long.
const MAX_REACH: isize = 64;

/// Side of a block.
const BLOCK: usize = 8;
const AREA: f32 = (BLOCK * BLOCK) as f32;

/// A block's standard deviation at which it counts half: grain of 10 in each channel leaves less.
const FAINT: f32 = 3.0;
/// The same for two frames as wholes: the first frame of a fade from black stays below it.
const FAINT_FRAME: f64 = 3.0;

/// Luma from which what a block shows may be lost to overexposure, and how much less it counts.
const OVEREXPOSED: f32 = 245.0;
const DISTRUST: f32 = 0.9;

/// The share of a block's variance that unrelated structure explains too, and the one that tells
/// that it is the same.
const CHANCE: f32 = 0.2;
const SAME: f32 = 0.8;

/// The variance that rounding to whole numbers makes, which is no structure.
const ROUNDING: f32 = 0.01;

/// How far the flow back may miss where the flow there began: in pixels, and as a share of it.
const MISS: f32 = 0.5;
const RELATIVE_MISS: f32 = 0.1;
/// How much the flow may differ across a block, in pixels a pixel: where there is nothing to
/// follow it bends as it likes.
const BEND: f32 = 0.4;

/// A change that the flow explains up to less than this is none: no pan is looked for.
const CLEAR: f64 = 0.2;

/// The weight, in blocks a block, of the guess that a frame shows the same scene.
const PRIOR: f64 = 0.01;

/// How far `now` is a new scene, 0..1: the share of its structure that `before` has neither where
/// the flow leads nor anywhere along a pan. `flows` lead from `now` to `before` and back.
///
/// Structure is what blocks vary by around their means, and is explained up to a gain and an
/// offset: a flash or a fade is no new scene, nor is a frame without structure. A pan is looked for
/// because flow does not follow one by a large part of the picture.
pub fn change(now: &Pyramid, before: &Pyramid, flows: &[Field; 2]) -> f64 {
    Arch::new().dispatch(
        #[inline(always)]
        || unexplained(now, before, flows),
    )
}

/// The first level of at most so many pixels.
fn level_of(pyramid: &Pyramid, pixels: usize) -> usize {
    let fits = |level: &Level| level.h * level.w <= pixels;
    let last = pyramid.levels.len() - 1;
    pyramid.levels.iter().position(fits).unwrap_or(last)
}

#[inline(always)]
fn unexplained(now: &Pyramid, before: &Pyramid, flows: &[Field; 2]) -> f64 {
    let compared = level_of(now, COMPARED_PIXELS);
    let (level, other) = (&now.levels[compared], &before.levels[compared]);
    let (rows, columns) = (level.h / BLOCK, level.w / BLOCK);
    let count = (rows * columns) as f64;
    let mut blocks = Vec::with_capacity(rows * columns);
    let (mut total, mut explained, mut variance) = (0.0, 0.0, 0.0);
    for index in 0..rows * columns {
        let place = [index / columns * BLOCK, index % columns * BLOCK];
        let block = Block::new(level, place);
        variance += f64::from(block.variance + Block::new(other, place).variance);
        let trust = 1.0 - DISTRUST * overexposed(other, place);
        let weight = f64::from(trust * half_at(block.variance / (FAINT * FAINT)));
        let found = f64::from(block.along(flows, other, compared));
        total += weight;
        explained += weight * found;
        blocks.push((block, weight, found));
    }
    let structure = half_at((variance / count / (FAINT_FRAME * FAINT_FRAME)) as f32);
    let unexplained = |explained: f64| {
        f64::from(structure) * (total - explained).max(0.0) / (total + PRIOR * count)
    };
    if unexplained(explained) < CLEAR {
        return unexplained(explained);
    }
    let pan = pan(now, before, compared);
    for (block, weight, found) in &blocks {
        let panned = f64::from(block.panned(pan, other));
        explained += weight * (panned - found).max(0.0);
    }
    unexplained(explained)
}

/// From 0 to 1, a half at 1.
#[inline(always)]
fn half_at(value: f32) -> f32 {
    1.0 - 1.0 / (1.0 + value * value)
}

/// The share of a block's pixels that are overexposed.
#[inline(always)]
fn overexposed(level: &Level, [y, x]: [usize; 2]) -> f32 {
    let rows = (y..y + BLOCK).map(|y| &level.row(y)[x..x + BLOCK]);
    rows.flatten()
        .map(|&luma| f32::from(luma > OVEREXPOSED))
        .sum::<f32>()
        / AREA
}

struct Block {
    place: [f32; 2],
    /// Less its mean.
    luma: [[f32; BLOCK]; BLOCK],
    variance: f32,
}

impl Block {
    #[inline(always)]
    fn new(level: &Level, [y, x]: [usize; 2]) -> Self {
        let mut luma = [[0.0; BLOCK]; BLOCK];
        for (i, row) in luma.iter_mut().enumerate() {
            row.copy_from_slice(&level.row(y + i)[x..x + BLOCK]);
        }
        let mean = sum(|i, j| luma[i][j]) / AREA;
        luma.iter_mut().flatten().for_each(|luma| *luma -= mean);
        let variance = sum(|i, j| luma[i][j] * luma[i][j]) / AREA;
        Self {
            place: [y as f32, x as f32],
            luma,
            variance,
        }
    }

    /// How surely the block lies in `level` at `by` from its own place, 0..1, by the share ρ² of
    /// its variance that is explained there.
    #[inline(always)]
    fn likeness(&self, level: &Level, by: [f32; 2]) -> f32 {
        // The edge's repetition ends after PAD pixels.
        let reach = |i: usize, side: usize| {
            (self.place[i] + by[i]).clamp(-(PAD as f32), (side + PAD - BLOCK - 1) as f32)
        };
        let (y, x) = (reach(0, level.h), reach(1, level.w));
        let (fy, fx) = (y - y.floor(), x - x.floor());
        let values = level.from(y.floor() as isize, x.floor() as isize);
        let rows: [[f32; BLOCK]; BLOCK + 1] = std::array::from_fn(|i| {
            let row = &values[i * level.stride()..][..BLOCK + 1];
            std::array::from_fn(|j| row[j] + fx * (row[j + 1] - row[j]))
        });
        let there = |i: usize, j: usize| rows[i][j] + fy * (rows[i + 1][j] - rows[i][j]);
        let mean = sum(there) / AREA;
        let variance = sum(|i, j| (there(i, j) - mean) * (there(i, j) - mean));
        let covariance = sum(|i, j| there(i, j) * self.luma[i][j]).max(0.0);
        let explained =
            covariance * covariance / ((variance + ROUNDING * AREA) * self.variance * AREA + 1e-3);
        ((explained - CHANCE) / (SAME - CHANCE)).clamp(0.0, 1.0)
    }

    /// Where the flow leads, if the flow back leads back and the flow beside goes along.
    #[inline(always)]
    fn along(&self, [there, back]: &[Field; 2], before: &Level, compared: usize) -> f32 {
        let scale = (1usize << compared) as f32;
        let [y, x] = self.place.map(|at| scale * (at + 0.5 * BLOCK as f32) - 0.5);
        let (u, v) = there.at(y, x);
        let (back_u, back_v) = back.at(y + v, x + u);
        let miss = (u + back_u).hypot(v + back_v);
        let bound = MISS * scale + RELATIVE_MISS * u.hypot(v);
        let agreement = (1.0 - miss / bound).max(0.0);
        let reach = 0.5 * scale * BLOCK as f32;
        let bend = |dy: f32, dx: f32| {
            let ((u0, v0), (u1, v1)) = (there.at(y - dy, x - dx), there.at(y + dy, x + dx));
            (u1 - u0).hypot(v1 - v0) / (2.0 * reach)
        };
        let steadiness = (1.0 - bend(reach, 0.0).max(bend(0.0, reach)) / BEND).max(0.0);
        (agreement * steadiness).sqrt() * self.likeness(before, [v / scale, u / scale])
    }

    /// Where the pan leads or a pixel beside it, so far as that is in the picture.
    #[inline(always)]
    fn panned(&self, pan: [f32; 2], before: &Level) -> f32 {
        let inside = |i: usize, side: usize| {
            (-1.0..=(side - BLOCK + 1) as f32).contains(&(self.place[i] + pan[i]))
        };
        if !inside(0, before.h) || !inside(1, before.w) {
            return 0.0;
        }
        let beside = |i: u8| {
            let by = [i / 3, i % 3].map(|i| f32::from(i) - 1.0);
            self.likeness(before, [pan[0] + by[0], pan[1] + by[1]])
        };
        (0..9).map(beside).fold(0.0, f32::max)
    }
}

/// The sum over a block, side by side for the vector unit.
#[inline(always)]
fn sum(value: impl Fn(usize, usize) -> f32) -> f32 {
    let mut lanes = [0.0; BLOCK];
    for i in 0..BLOCK {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += value(i, j);
        }
    }
    lanes.iter().sum()
}

/// The movement down and across, by up to half of the picture, by which most of `now` lies in
/// `before`: found at a coarse level and followed up to level `to`, in pixels of that.
#[inline(always)]
fn pan(now: &Pyramid, before: &Pyramid, to: usize) -> [f32; 2] {
    let first = level_of(now, SEARCHED_PIXELS).max(to);
    let mut at = [0isize; 2];
    for index in (to..=first).rev() {
        let [now, before] = [now, before].map(|frame| Details::new(&frame.levels[index]));
        let (centre, reach) = match index == first {
            true => (
                [0, 0],
                [now.h, now.w].map(|side| (side as isize / 2).min(MAX_REACH)),
            ),
            false => (at.map(|at| 2 * at), [1, 1]),
        };
        at = centre;
        let mut best = now.correlation(&before, centre);
        for dy in -reach[0]..=reach[0] {
            for dx in -reach[1]..=reach[1] {
                let there = [centre[0] + dy, centre[1] + dx];
                let correlation = now.correlation(&before, there);
                if correlation > best {
                    (at, best) = (there, correlation);
                }
            }
        }
        if index == to {
            let beside = |dy, dx| now.correlation(&before, [at[0] + dy, at[1] + dx]);
            return [
                at[0] as f32 + peak([beside(-1, 0), best, beside(1, 0)]),
                at[1] as f32 + peak([beside(0, -1), best, beside(0, 1)]),
            ];
        }
    }
    [0.0; 2]
}

/// Where the parabola through three values has its peak, from the second's place.
fn peak([left, middle, right]: [f64; 3]) -> f32 {
    let curvature = left - 2.0 * middle + right;
    match curvature < -1e-6 {
        true => (0.5 * (left - right) / curvature).clamp(-0.5, 0.5) as f32,
        false => 0.0,
    }
}

/// Details of a frame, `[h, w]`.
struct Details {
    h: usize,
    w: usize,
    values: Vec<f32>,
    /// Sums of squares of what lies above and to the left, `[h + 1, w + 1]`.
    squares: Vec<f64>,
}

impl Details {
    /// A level less its means over 5x5 pixels: light and shade of two scenes are too much alike.
    #[inline(always)]
    fn new(level: &Level) -> Self {
        let (h, w) = (level.h, level.w);
        let mut values = Vec::with_capacity(h * w);
        let mut squares = vec![0.0; w + 1];
        let mut columns = vec![0.0f32; w + 4];
        for y in 0..h {
            columns.fill(0.0);
            for dy in -2..=2 {
                let row = level.from(y as isize + dy, -2);
                columns
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, luma)| *sum += luma);
            }
            let means = columns
                .windows(5)
                .map(|sums| sums.iter().sum::<f32>() / 25.0);
            values.extend(
                level
                    .row(y)
                    .iter()
                    .zip(means)
                    .map(|(luma, mean)| luma - mean),
            );
            squares.push(0.0);
            let mut sum = 0.0;
            for x in 0..w {
                sum += f64::from(values[y * w + x]).powi(2);
                squares.push(squares[y * (w + 1) + x + 1] + sum);
            }
        }
        Self {
            h,
            w,
            values,
            squares,
        }
    }

    /// Σ over `h` by `w` values from row `y`, column `x` on of their squares.
    #[inline(always)]
    fn energy(&self, [y, x]: [usize; 2], [h, w]: [usize; 2]) -> f64 {
        let at = |y: usize, x: usize| self.squares[y * (self.w + 1) + x];
        at(y + h, x + w) - at(y, x + w) - at(y + h, x) + at(y, x)
    }

    /// With `other` where both overlap, if this one lies at `by` in it.
    #[inline(always)]
    fn correlation(&self, other: &Self, by: [isize; 2]) -> f64 {
        const LANES: usize = 8;
        let size = [self.h, self.w];
        if by[0].unsigned_abs() >= size[0] || by[1].unsigned_abs() >= size[1] {
            return 0.0;
        }
        let start = by.map(|by| (-by).max(0) as usize);
        let there = by.map(|by| by.max(0) as usize);
        let [h, w] = [0, 1].map(|i| size[i] - by[i].unsigned_abs());
        let mut sums = [0.0f32; LANES];
        for y in 0..h {
            let row = |details: &Self, [top, left]: [usize; 2]| (top + y) * details.w + left;
            let one = &self.values[row(self, start)..][..w];
            let two = &other.values[row(other, there)..][..w];
            let ((one, one_rest), (two, two_rest)) =
                (one.as_chunks::<LANES>(), two.as_chunks::<LANES>());
            for (one, two) in one.iter().zip(two) {
                for i in 0..LANES {
                    sums[i] += one[i] * two[i];
                }
            }
            for (sum, (one, two)) in sums.iter_mut().zip(one_rest.iter().zip(two_rest)) {
                *sum += one * two;
            }
        }
        let energy = self.energy(start, [h, w]) * other.energy(there, [h, w]);
        f64::from(sums.iter().sum::<f32>()) / (energy + 1.0).sqrt()
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MPL-2.0

//! Scene cuts: whether a frame shows another scene than the one before.

mod pan;

use super::flow::Field;
use super::pyramid::{Level, PAD, Pyramid};
use pan::pan;
use pulp::Arch;

/// The [`cut_score`] from which a frame is a new scene, halfway between the largest that was measured
/// without a cut (0.62: the first frame of a fade from black in 8 frames) and the smallest at one (0.79:
/// from a texture to its mirror image).
pub const DEFAULT_SCENE_CUT: f64 = 0.7;

/// Most pixels of the level at which structure is compared.
const MAX_COMPARED_PIXELS: usize = 1 << 14;

/// Side of a block, in pixels of the compared level.
const BLOCK: usize = 8;
/// Pixels of a block.
const AREA: f32 = (BLOCK * BLOCK) as f32;

/// The standard deviation of a block's luma at which its weight is one half. Grain with a deviation of 10
/// in each channel stays below it.
const HALF_WEIGHT_DEVIATION: f32 = 3.0;
/// The same for the frames as wholes: the root of their blocks' mean variance, summed over both. The
/// first frame of a fade from black in 8 frames is hardly above it.
const HALF_WEIGHT_FRAME_DEVIATION: f64 = 3.5;

/// Luma (0..255) of the frame before above which structure may be lost to overexposure.
const OVEREXPOSED_LUMA: f32 = 245.0;
/// The part by which the weight of a block is reduced if all its pixels are overexposed.
const OVEREXPOSURE_DISCOUNT: f32 = 0.9;

/// The squared normalised cross-correlation ρ², which is the share of a block's variance that is
/// explained, up to which the likeness may be by chance.
const CHANCE_SQUARED_CORRELATION: f32 = 0.2;
/// ρ² from which it is surely the same structure.
const SAME_SQUARED_CORRELATION: f32 = 0.8;

/// The variance of luma that rounding to integers makes, which is no structure.
const ROUNDING_VARIANCE: f32 = 0.01;

/// The forward-backward error of the flow at which it is not trusted: in pixels of the compared level,
/// plus a share of the displacement.
const MAX_FLOW_ERROR: f32 = 0.5;
const RELATIVE_FLOW_ERROR: f32 = 0.1;
/// The gradient of the flow across a block, in pixels per pixel, at which it is not trusted. Flow without
/// structure to follow is arbitrary.
const MAX_FLOW_GRADIENT: f32 = 0.4;

/// A [`cut_score`] by the flow alone below this is final: no pan is searched for.
const CLEAR_SCORE: f64 = 0.2;

/// The weight of the change from the frame before, per block: it decides where a frame has no structure.
/// A block of full structure weighs 1.
const CHANGE_WEIGHT: f64 = 0.01;

/// The changes to a frame without structure that are as much as one half: of the blocks' deviation of
/// luma, in the mean, and of their colours. The last step of a fade of a photograph in 8 frames stays below
/// both, and so does a small thing that leaves; a picture that is cut to black is far above them.
const HALF_LOST_DEVIATION: f64 = 5.0;
const HALF_COLOR_CHANGE: f64 = 0.18;
/// The share of the structure's amplitude that is still there at which a change counts half. An encoder
/// leaves 0.005 of the picture before at a cut, and a tenth of the light a tenth.
const HALF_LEFT: f64 = 0.05;
/// The mean deviation of luma that counts as no structure there.
const FAINT_DEVIATION: f64 = 1.0;

/// How surely `now` begins a new scene, 0..1: the share of its structure that is found in `before`
/// neither along the flow nor along a pan or, if it has none, how much of `before` it lost at once.
///
/// Structure is the variation of blocks around their mean, compared up to gain and offset, so that a
/// flash or a fade is no new scene. A pan is searched for because flow does not follow one by a large
/// part of the picture.
pub fn cut_score(now: &Pyramid, before: &Pyramid, backward: &Field, forward: &Field) -> f64 {
    Arch::new().dispatch(
        #[inline(always)]
        || score(now, before, [backward, forward]),
    )
}

#[inline(always)]
fn score(now: &Pyramid, before: &Pyramid, flows: [&Field; 2]) -> f64 {
    let compared = now.first_level(MAX_COMPARED_PIXELS);
    let (level, other) = (&now.levels[compared], &before.levels[compared]);
    let (rows, columns) = (level.h / BLOCK, level.w / BLOCK);
    let count = (rows * columns) as f64;
    let mut blocks = Vec::with_capacity(rows * columns);
    let (mut total, mut explained, mut variance) = (0.0, 0.0, 0.0);
    let mut lost = Lost::default();
    for index in 0..rows * columns {
        let origin = [index / columns * BLOCK, index % columns * BLOCK];
        let block = Block::new(level, origin);
        let earlier = Block::new(other, origin);
        variance += f64::from(block.variance + earlier.variance);
        lost.add(&block, &earlier);
        let trust = 1.0 - OVEREXPOSURE_DISCOUNT * overexposed(other, origin);
        let weight = f64::from(
            trust * soft_step(block.variance / (HALF_WEIGHT_DEVIATION * HALF_WEIGHT_DEVIATION)),
        );
        let found = f64::from(block.found_by_flow(flows, other, compared));
        total += weight;
        explained += weight * found;
        blocks.push((block, weight, found));
    }
    let structure = f64::from(soft_step(
        (variance / count / (HALF_WEIGHT_FRAME_DEVIATION * HALF_WEIGHT_FRAME_DEVIATION)) as f32,
    ));
    let change_weight = CHANGE_WEIGHT * count;
    let unexplained =
        |explained: f64| structure * (total - explained).max(0.0) / (total + change_weight);
    let color_change = f64::from(now.thumbnail.mean_difference(&before.thumbnail));
    let change =
        change_weight / (structure * total + change_weight) * lost.score(count, color_change);
    if unexplained(explained) < CLEAR_SCORE {
        return unexplained(explained) + change;
    }
    let pan = pan(now, before, compared);
    for (block, weight, found) in &blocks {
        let by_pan = f64::from(block.found_by_pan(pan, other));
        explained += weight * (by_pan - found).max(0.0);
    }
    unexplained(explained) + change
}

/// A smooth step from 0 at 0 to 1 at infinity, one half at 1.
#[inline(always)]
fn soft_step(value: f32) -> f32 {
    1.0 - 1.0 / (1.0 + value * value)
}

/// The share of a block's pixels that are overexposed.
#[inline(always)]
fn overexposed(level: &Level, [y, x]: [usize; 2]) -> f32 {
    let rows = (y..y + BLOCK).map(|y| &level.row(y)[x..x + BLOCK]);
    rows.flatten()
        .map(|&luma| f32::from(luma > OVEREXPOSED_LUMA))
        .sum::<f32>()
        / AREA
}

/// What a frame lost of the structure at the same places of the one before.
#[derive(Default)]
struct Lost {
    /// The sum of the blocks' deviations before.
    before: f64,
    /// The same in the frame.
    now: f64,
    /// The part of that which is as before.
    left: f64,
}

impl Lost {
    #[inline(always)]
    fn add(&mut self, now: &Block, before: &Block) {
        let covariance = sum(|i, j| now.luma[i][j] * before.luma[i][j]) / AREA;
        let deviation = before.variance.sqrt();
        self.before += f64::from(deviation);
        self.now += f64::from(now.variance.sqrt());
        self.left += f64::from(covariance / (deviation + ROUNDING_VARIANCE.sqrt()));
    }

    /// How surely the frame begins a new scene if it has no structure, by that and its change of colour.
    fn score(&self, count: f64, color_change: f64) -> f64 {
        let deviation = (self.before - self.now).max(0.0) / count;
        let left = (self.left / (self.before + FAINT_DEVIATION * count)).max(0.0);
        let change =
            (deviation / HALF_LOST_DEVIATION).powi(2) + (color_change / HALF_COLOR_CHANGE).powi(2);
        f64::from(soft_step(change as f32) * (1.0 - soft_step((left / HALF_LEFT) as f32)))
    }
}

struct Block {
    /// Row and column of its first pixel.
    origin: [f32; 2],
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
            origin: [y as f32, x as f32],
            luma,
            variance,
        }
    }

    /// How surely `level` shows the block at a displacement `by` (down, across), 0..1, by the squared
    /// normalised cross-correlation ρ².
    #[inline(always)]
    fn similarity(&self, level: &Level, by: [f32; 2]) -> f32 {
        // The padding ends PAD pixels beyond the edge.
        let position = |i: usize, side: usize| {
            (self.origin[i] + by[i]).clamp(-(PAD as f32), (side + PAD - BLOCK - 1) as f32)
        };
        let (y, x) = (position(0, level.h), position(1, level.w));
        let (fy, fx) = (y - y.floor(), x - x.floor());
        let values = level.slice_from(y.floor() as isize, x.floor() as isize);
        let rows: [[f32; BLOCK]; BLOCK + 1] = std::array::from_fn(|i| {
            let row = &values[i * level.stride()..][..BLOCK + 1];
            std::array::from_fn(|j| row[j] + fx * (row[j + 1] - row[j]))
        });
        let other = |i: usize, j: usize| rows[i][j] + fy * (rows[i + 1][j] - rows[i][j]);
        let mean = sum(other) / AREA;
        let variance = sum(|i, j| (other(i, j) - mean) * (other(i, j) - mean));
        let covariance = sum(|i, j| other(i, j) * self.luma[i][j]).max(0.0);
        let explained = covariance * covariance
            / ((variance + ROUNDING_VARIANCE * AREA) * self.variance * AREA + 1e-3);
        ((explained - CHANCE_SQUARED_CORRELATION)
            / (SAME_SQUARED_CORRELATION - CHANCE_SQUARED_CORRELATION))
            .clamp(0.0, 1.0)
    }

    /// The similarity where the flow leads, weighted by the flow's forward-backward consistency and
    /// smoothness. `compared` is the level of `before`; the flows are those of the finest one.
    #[inline(always)]
    fn found_by_flow(
        &self,
        [backward, forward]: [&Field; 2],
        before: &Level,
        compared: usize,
    ) -> f32 {
        let scale = (1usize << compared) as f32;
        let [y, x] = self
            .origin
            .map(|at| scale * (at + 0.5 * BLOCK as f32) - 0.5);
        let (u, v) = backward.sample(y, x);
        let (forward_u, forward_v) = forward.sample(y + v, x + u);
        let error = (u + forward_u).hypot(v + forward_v);
        let bound = MAX_FLOW_ERROR * scale + RELATIVE_FLOW_ERROR * u.hypot(v);
        let consistency = (1.0 - error / bound).max(0.0);
        let reach = 0.5 * scale * BLOCK as f32;
        let gradient = |dy: f32, dx: f32| {
            let (u0, v0) = backward.sample(y - dy, x - dx);
            let (u1, v1) = backward.sample(y + dy, x + dx);
            (u1 - u0).hypot(v1 - v0) / (2.0 * reach)
        };
        let smoothness =
            (1.0 - gradient(reach, 0.0).max(gradient(0.0, reach)) / MAX_FLOW_GRADIENT).max(0.0);
        (consistency * smoothness).sqrt() * self.similarity(before, [v / scale, u / scale])
    }

    /// The largest similarity within a pixel of where the pan leads, or 0 outside the picture.
    #[inline(always)]
    fn found_by_pan(&self, pan: [f32; 2], before: &Level) -> f32 {
        let inside = |i: usize, side: usize| {
            (-1.0..=(side - BLOCK + 1) as f32).contains(&(self.origin[i] + pan[i]))
        };
        if !inside(0, before.h) || !inside(1, before.w) {
            return 0.0;
        }
        let beside = |i: u8| {
            let by = [i / 3, i % 3].map(|i| f32::from(i) - 1.0);
            self.similarity(before, [pan[0] + by[0], pan[1] + by[1]])
        };
        (0..9).map(beside).fold(0.0, f32::max)
    }
}

/// The sum over a block's rows, then over its columns, so that it vectorises.
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

#[cfg(test)]
mod tests;

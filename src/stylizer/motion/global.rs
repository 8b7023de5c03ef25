// SPDX-License-Identifier: MPL-2.0

//! The motion of the picture as a whole, for the patches to start from: a translation at the coarsest
//! level, and the dominant affine motion of each level.

use super::pyramid::Level;
use super::search::{PatchFlow, PatchSearch};
use pulp::{Arch, Simd, WithSimd};

/// Scales σ of the Geman-McClure weights of each fit of the dominant motion: a patch that misses it by
/// so many pixels counts a quarter.
const SCALES: [f64; 6] = [8.0, 4.0, 2.0, 1.0, 1.0, 0.5];

/// Shifts of the whole picture are searched up to 1 / this of its sides, in pixels of the coarsest level.
const SHIFT_DIVISOR: isize = 4;

/// Nor beyond so many pixels: the coarsest level of a thin picture is long.
const MAX_SHIFT: isize = 64;

/// A shift has to reduce the variance of the difference to less than this part.
const MAX_VARIANCE_RATIO: f32 = 0.8;

/// The part of the structure that has to follow the dominant motion for it to count as one.
const MIN_AGREEMENT: f64 = 0.2;

/// Patches that have to follow it: any three follow some affine motion.
const MIN_PATCHES: f64 = 5.0;

/// The shift (u, v) by whole pixels under which the difference of the images varies least where they
/// overlap, by exhaustive search up to a quarter of each side; 0 unless that is clearly better.
///
/// It is where a flow starts at its coarsest level. `scene::pan` would not do: it has a translation for
/// any two frames, however little they have in common, and a wrong start would lead every patch astray.
pub fn shift(from: &Level, to: &Level) -> (f32, f32) {
    Arch::new().dispatch(ShiftSearch { from, to })
}

/// [`shift`], dispatched by SIMD instruction set.
struct ShiftSearch<'a> {
    from: &'a Level,
    to: &'a Level,
}

impl ShiftSearch<'_> {
    /// The variance of the difference under a shift, which a flash does not change.
    #[inline(always)]
    fn variance<S: Simd>(&self, simd: S, dy: isize, dx: isize) -> f32 {
        let (h, w) = (self.from.h as isize, self.from.w as isize);
        let (start, len) = (0.max(-dx), (w - dx.abs()) as usize);
        let [mut total, mut squares] = [simd.splat_f32s(0.0); 2];
        let mut add = |from, to| {
            let difference = simd.sub_f32s(to, from);
            total = simd.add_f32s(total, difference);
            squares = simd.mul_add_e_f32s(difference, difference, squares);
        };
        for y in 0.max(-dy)..h.min(h - dy) {
            let (from, from_end) = S::as_simd_f32s(&self.from.slice_from(y, start)[..len]);
            let (to, to_end) = S::as_simd_f32s(&self.to.slice_from(y + dy, start + dx)[..len]);
            for (from, to) in from.iter().zip(to) {
                add(*from, *to);
            }
            add(
                simd.partial_load_f32s(from_end),
                simd.partial_load_f32s(to_end),
            );
        }
        let count = (len as isize * (h - dy.abs())) as f32;
        let total = simd.reduce_sum_f32s(total);
        (simd.reduce_sum_f32s(squares) - total * total / count) / count
    }
}

impl WithSimd for ShiftSearch<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
        let mut least = MAX_VARIANCE_RATIO * self.variance(simd, 0, 0);
        let mut best = (0.0, 0.0);
        let reach = |side: usize| (side as isize / SHIFT_DIVISOR).min(MAX_SHIFT);
        let (reach_y, reach_x) = (reach(self.from.h), reach(self.from.w));
        for dy in -reach_y..=reach_y {
            for dx in -reach_x..=reach_x {
                let variance = self.variance(simd, dy, dx);
                if variance < least {
                    (least, best) = (variance, (dx as f32, dy as f32));
                }
            }
        }
        best
    }
}

/// An affine motion: the coefficients of 1, x and y in each of u and v.
#[derive(Default)]
pub struct Affine([[f64; 3]; 2]);

impl Affine {
    /// The displacement (u, v) at a point.
    pub fn at(&self, y: f32, x: f32) -> (f32, f32) {
        let [u, v] = self.0.map(|[constant, by_x, by_y]| {
            (constant + by_x * f64::from(x) + by_y * f64::from(y)) as f32
        });
        (u, v)
    }

    /// The same motion at twice the size.
    pub fn doubled(&self) -> Self {
        Self(
            self.0
                .map(|[constant, by_x, by_y]| [2.0 * constant - 0.5 * (by_x + by_y), by_x, by_y]),
        )
    }
}

/// Solves two 3x3 systems with the same symmetric matrix ((a, b, c), (b, d, e), (c, e, f)), unless it
/// is singular.
fn solve([a, b, c, d, e, f]: [f64; 6], right: [[f64; 3]; 2]) -> Option<[[f64; 3]; 2]> {
    let inverse = [
        [d * f - e * e, c * e - b * f, b * e - c * d],
        [c * e - b * f, a * f - c * c, b * c - a * e],
        [b * e - c * d, b * c - a * e, a * d - b * b],
    ];
    let determinant = a * inverse[0][0] + b * inverse[0][1] + c * inverse[0][2];
    // Patches along a line say nothing about the motion across it.
    if determinant <= 1e-9 * a * d * f {
        return None;
    }
    let row = |row: [f64; 3], right: [f64; 3]| {
        (row[0] * right[0] + row[1] * right[1] + row[2] * right[2]) / determinant
    };
    let solved = right.map(|right| inverse.map(|inverse| row(inverse, right)));
    solved
        .iter()
        .flatten()
        .all(|value| value.is_finite())
        .then_some(solved)
}

/// The median of a value of the patches, weighted by their structure.
fn median(patches: &[PatchFlow], value: impl Fn(&PatchFlow) -> f32) -> f32 {
    let pair = |patch: &PatchFlow| (value(patch), f64::from(patch.structure));
    let mut values: Vec<_> = patches.iter().map(pair).collect();
    values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let half = 0.5 * values.iter().map(|(_, structure)| structure).sum::<f64>();
    let mut below = 0.0;
    let median = values.iter().find(|(_, structure)| {
        below += structure;
        below >= half
    });
    median.map_or(0.0, |(value, _)| *value)
}

/// The affine motion that much of the structure follows, if there is one: iteratively reweighted
/// least squares over the patches, from their median, with a scale that shrinks (graduated
/// non-convexity).
pub fn dominant(search: &PatchSearch, patches: &[PatchFlow]) -> Option<Affine> {
    let start = [
        median(patches, |patch| patch.u),
        median(patches, |patch| patch.v),
    ];
    let mut model = Affine(start.map(|constant| [constant.into(), 0.0, 0.0]));
    let total: f64 = patches.iter().map(|patch| f64::from(patch.structure)).sum();
    for scale in SCALES {
        let mut sums = [0.0; 6];
        let mut products = [[0.0; 3]; 2];
        let (mut agreement, mut count) = (0.0, 0.0);
        for (patch, (y, x)) in patches.iter().zip(search.centres()) {
            let (u, v) = model.at(y, x);
            let squared_error = f64::from((patch.u - u).powi(2) + (patch.v - v).powi(2));
            let structure = f64::from(patch.structure);
            let part = (1.0 + squared_error / (scale * scale)).powi(-2);
            let weight = structure * part;
            agreement += weight;
            count += part;
            let (x, y) = (f64::from(x), f64::from(y));
            for (sum, value) in sums.iter_mut().zip([1.0, x, y, x * x, x * y, y * y]) {
                *sum += weight * value;
            }
            for (products, value) in products.iter_mut().zip([patch.u, patch.v]) {
                for (sum, position) in products.iter_mut().zip([1.0, x, y]) {
                    *sum += weight * position * f64::from(value);
                }
            }
        }
        if agreement < MIN_AGREEMENT * total || count < MIN_PATCHES {
            return None;
        }
        model = Affine(solve(sums, products)?);
    }
    Some(model)
}

#[cfg(test)]
mod tests {
    use super::super::pyramid::Pyramid;
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// The dominant motion of patches whose displacement and structure `patch` returns, at a point.
    fn dominant_at(
        (y, x): (f32, f32),
        mut patch: impl FnMut() -> ([f32; 2], f32),
    ) -> Option<(f32, f32)> {
        let pyramid = Pyramid::of((64, 96), |_, _| 0.0);
        let level = &pyramid.levels[0];
        let search = PatchSearch::new(level, level);
        let patch = |_| {
            let ([u, v], structure) = patch();
            PatchFlow { u, v, structure }
        };
        let patches: Vec<_> = search.centres().map(patch).collect();
        dominant(&search, &patches).map(|motion| motion.at(y, x))
    }

    /// A seventh of the patches, as of a logo, stands still.
    #[test]
    fn a_motion_that_most_patches_share_is_dominant_however_fast() {
        for (u, v) in [(0.0, 0.0), (3.0, -1.0), (12.0, -5.0), (-40.0, 30.0)] {
            let mut number = 0;
            let patch = || {
                number += 1;
                let part = if number % 7 == 0 { 0.0 } else { 1.0 };
                ([part * u, part * v], 1.0)
            };
            let (found_u, found_v) = dominant_at((20.0, 50.0), patch).unwrap();
            let error = (found_u - u).hypot(found_v - v);
            assert!(error < 0.1, "({found_u}, {found_v}), not ({u}, {v})");
        }
    }

    /// Though a few of them may have much of the structure, and some affine motion in common.
    #[test]
    fn patches_that_move_each_by_itself_have_no_dominant_motion() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..50 {
            let patch = || {
                let motion = [0; 2].map(|_| rng.random_range(-20.0..20.0));
                (motion, rng.random_range(-4f32..4.0).exp())
            };
            assert_eq!(dominant_at((30.0, 40.0), patch), None);
        }
    }
}

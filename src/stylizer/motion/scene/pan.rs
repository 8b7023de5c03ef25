// SPDX-License-Identifier: MPL-2.0

//! The translation between two frames as wholes, by up to half of the picture.

use crate::stylizer::motion::pyramid::{Level, Pyramid};

/// Most pixels of the coarse level at which all translations are tried.
const MAX_SEARCHED_PIXELS: usize = 1 << 10;

/// The largest translation tried there, in its pixels: that level of a thin picture is long.
const MAX_REACH: isize = 64;

/// The translation [down, across] from `now` to `before`, in pixels of level `to`, of the largest
/// normalised cross-correlation of the high-pass filtered levels: exhaustive search up to half of each
/// side at a coarse level, refined up to level `to` and to fractions of its pixels.
///
/// It serves to find a scene's structure where the flow does not. `global::shift`, from which the flow
/// starts, would not do: it reaches a quarter of the picture, in whole pixels of the coarsest level, and
/// compares luma unfiltered, in which the shading of unrelated scenes matches.
#[inline(always)]
pub fn pan(now: &Pyramid, before: &Pyramid, to: usize) -> [f32; 2] {
    let mut index = now.first_level(MAX_SEARCHED_PIXELS).max(to);
    let coarse = &now.levels[index];
    let mut reach = [coarse.h, coarse.w].map(|side| (side as isize / 2).min(MAX_REACH));
    let mut centre = [0isize; 2];
    loop {
        let [now, before] = [now, before].map(|frame| HighPass::new(&frame.levels[index]));
        let (mut at, mut best) = (centre, now.correlation(&before, centre));
        for dy in -reach[0]..=reach[0] {
            for dx in -reach[1]..=reach[1] {
                let by = [centre[0] + dy, centre[1] + dx];
                let correlation = now.correlation(&before, by);
                if correlation > best {
                    (at, best) = (by, correlation);
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
        index -= 1;
        (centre, reach) = (at.map(|at| 2 * at), [1, 1]);
    }
}

/// The offset of the peak of the parabola through three neighbouring values from the second.
fn peak([left, middle, right]: [f64; 3]) -> f32 {
    let curvature = left - 2.0 * middle + right;
    match curvature < -1e-6 {
        true => (0.5 * (left - right) / curvature).clamp(-0.5, 0.5) as f32,
        false => 0.0,
    }
}

/// A high-pass filtered level, `[h, w]`.
struct HighPass {
    h: usize,
    w: usize,
    values: Vec<f32>,
    /// Summed-area table of the squared values, `[h + 1, w + 1]`.
    squares: Vec<f64>,
}

impl HighPass {
    /// A level less its means over 5x5 pixels, since the shading of unrelated scenes correlates.
    #[inline(always)]
    fn new(level: &Level) -> Self {
        let (h, w) = (level.h, level.w);
        let mut values = Vec::with_capacity(h * w);
        let mut squares = vec![0.0; w + 1];
        let mut columns = vec![0.0f32; w + 4];
        for y in 0..h {
            columns.fill(0.0);
            for dy in -2..=2 {
                let row = level.slice_from(y as isize + dy, -2);
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

    /// The sum of the squares of `h` by `w` values from row `y`, column `x` on.
    #[inline(always)]
    fn energy(&self, [y, x]: [usize; 2], [h, w]: [usize; 2]) -> f64 {
        let at = |y: usize, x: usize| self.squares[y * (self.w + 1) + x];
        at(y + h, x + w) - at(y, x + w) - at(y + h, x) + at(y, x)
    }

    /// The normalised cross-correlation of the overlap with `other`, in which this one lies at `by`.
    #[inline(always)]
    fn correlation(&self, other: &Self, by: [isize; 2]) -> f64 {
        const SUMS: usize = 8;
        let size = [self.h, self.w];
        if by[0].unsigned_abs() >= size[0] || by[1].unsigned_abs() >= size[1] {
            return 0.0;
        }
        let start = by.map(|by| (-by).max(0) as usize);
        let other_start = by.map(|by| by.max(0) as usize);
        let [h, w] = [0, 1].map(|i| size[i] - by[i].unsigned_abs());
        let mut sums = [0.0f32; SUMS];
        for y in 0..h {
            let row = |level: &Self, [top, left]: [usize; 2]| (top + y) * level.w + left;
            let one = &self.values[row(self, start)..][..w];
            let two = &other.values[row(other, other_start)..][..w];
            let ((one, one_rest), (two, two_rest)) =
                (one.as_chunks::<SUMS>(), two.as_chunks::<SUMS>());
            for (one, two) in one.iter().zip(two) {
                for i in 0..SUMS {
                    sums[i] += one[i] * two[i];
                }
            }
            for (sum, (one, two)) in sums.iter_mut().zip(one_rest.iter().zip(two_rest)) {
                *sum += one * two;
            }
        }
        let energy = self.energy(start, [h, w]) * other.energy(other_start, [h, w]);
        f64::from(sums.iter().sum::<f32>()) / (energy + 1.0).sqrt()
    }
}

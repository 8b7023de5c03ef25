// SPDX-License-Identifier: MPL-2.0

//! Sharpens motion boundaries. A patch across one follows the side with more structure, so that the
//! flow of a moving thing spills over onto what is beside it, as far as a patch reaches.

use super::flow::Field;
use super::lanes::{LANES, Lanes, lanes, load, load_partial};
use super::planes::PaddedRow;
use super::pyramid::{Level, PAD};
use pulp::{Arch, NullaryFnOnce};

/// Side of a cell, which chooses its motion as a whole, in pixels of the finest level.
const CELL: usize = 2;
/// Side of the window around a cell in which the images are compared for it, in the same pixels. With the
/// cell alone, noise would choose.
const WINDOW: usize = CELL + 2;

/// Pixels of that level from a cell to the motions that it chooses from: the side of a patch.
const REACH: usize = 8;

/// Motions that differ by less than this, in pixels, count as the same.
const MIN_DIFFERENCE: f32 = 0.6;

/// The second difference of the flow across 2 [`REACH`], in pixels, from which a pixel is near a boundary.
const MIN_SECOND_DIFFERENCE: f32 = 0.7;

/// A cell keeps a motion that leaves a mean absolute residual below this, in luma.
const GOOD_RESIDUAL: f32 = 0.75;

/// The change of brightness, as a part of it, from which it counts as a flash.
const FLASH: f32 = 0.05;

const _: () = assert!(LANES.is_multiple_of(CELL) && REACH <= LANES);

/// Gives each cell near a motion boundary that motion of those around it under which the images differ
/// least there.
pub fn sharpen(from: &Level, to: &Level, field: &mut Field) {
    let gain = brightness(to) / brightness(from);
    // Smaller gains come from what enters or leaves the picture.
    let gain = match (gain - 1.0).abs() > FLASH && gain.is_finite() {
        true => gain,
        false => 1.0,
    };
    Arch::new().dispatch(Sharpen {
        from,
        to,
        gain,
        field,
    });
}

/// The sum of the luma of every fourth row.
fn brightness(level: &Level) -> f32 {
    let rows = (0..level.h).step_by(4);
    rows.map(|y| level.row(y).iter().sum::<f32>()).sum()
}

/// [`sharpen`], dispatched by SIMD instruction set.
struct Sharpen<'a> {
    from: &'a Level,
    to: &'a Level,
    /// The factor from the brightness of `from` to that of `to`.
    gain: f32,
    field: &'a mut Field,
}

impl NullaryFnOnce for Sharpen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Field { h, w, .. } = *self.field;
        let mut row = [PaddedRow::new(w), PaddedRow::new(w)];
        let mut changes = Vec::new();
        for y in (0..h).step_by(CELL) {
            for (row, values) in row.iter_mut().zip([&self.field.u, &self.field.v]) {
                set_replicated(row, &values[y * w..][..w]);
            }
            for x in (0..w).step_by(LANES) {
                let boundary_mask = self.boundary_mask(y, x, &row);
                if boundary_mask == [0.0; LANES] {
                    continue;
                }
                for i in (0..LANES.min(w - x)).step_by(CELL) {
                    if boundary_mask[i] > 0.0
                        && let Some(motion) = self.better_motion(y, x + i)
                    {
                        changes.push((y, x + i, motion));
                    }
                }
            }
        }
        for (y, x, (u, v)) in changes {
            let columns = x..(x + CELL).min(w);
            for y in y..(y + CELL).min(h) {
                self.field.u[y * w..][columns.clone()].fill(u);
                self.field.v[y * w..][columns.clone()].fill(v);
            }
        }
    }
}

/// Sets a row from values, and replicates the first and the last into its padding.
#[inline(always)]
fn set_replicated(row: &mut PaddedRow, values: &[f32]) {
    let w = values.len();
    row.0[..LANES].fill(values[0]);
    row.0[LANES..][..w].copy_from_slice(values);
    row.0[LANES + w..].fill(values[w - 1]);
}

impl Sharpen<'_> {
    /// The rows above and below from which row `y` chooses.
    #[inline(always)]
    fn candidate_rows(&self, y: usize) -> [usize; 2] {
        [y.saturating_sub(REACH), (y + REACH).min(self.field.h - 1)]
    }

    /// A mask of the pixels from `x` on: 1 near a motion boundary, by the second difference of the flow,
    /// which a rotation or a zoom leaves at 0 but near the picture's edge. `row` is the flow of row `y`.
    #[inline(always)]
    fn boundary_mask(&self, y: usize, x: usize, row: &[PaddedRow; 2]) -> Lanes {
        let w = self.field.w;
        let count = LANES.min(w - x);
        let mut bend = [0.0; LANES];
        for (row, values) in row.iter().zip([&self.field.u, &self.field.v]) {
            let here = load(&row.0, LANES + x);
            let left = load(&row.0, LANES + x - REACH);
            let right = load(&row.0, LANES + x + REACH);
            let [above, below] = self
                .candidate_rows(y)
                .map(|y| load_partial(&values[y * w + x..][..count], count));
            for i in 0..LANES {
                let across = (left[i] + right[i] - 2.0 * here[i]).abs();
                let down = (above[i] + below[i] - 2.0 * here[i]).abs();
                bend[i] = across.max(down).max(bend[i]);
            }
        }
        lanes(|i| f32::from(bend[i] >= MIN_SECOND_DIFFERENCE && i < count))
    }

    /// The motion around a cell that leaves the smallest residual, if that is not its own.
    #[inline(always)]
    fn better_motion(&self, y: usize, x: usize) -> Option<(f32, f32)> {
        let Field { w, u, v, .. } = &*self.field;
        let [above, below] = self.candidate_rows(y);
        let motion = |y: usize, x: usize| (u[y * w + x], v[y * w + x]);
        let motions = [
            motion(y, x),
            motion(y, x.saturating_sub(REACH)),
            motion(y, (x + REACH).min(w - 1)),
            motion(above, x),
            motion(below, x),
        ];
        let mut least = self.residual(y, x, motions[0]);
        if least < GOOD_RESIDUAL * (WINDOW * WINDOW) as f32 {
            return None;
        }
        let mut best = None;
        for (i, &(u, v)) in motions.iter().enumerate().skip(1) {
            let differs =
                |tried: &(f32, f32)| (u - tried.0).abs().max((v - tried.1).abs()) >= MIN_DIFFERENCE;
            if motions[..i].iter().all(differs) {
                let residual = self.residual(y, x, (u, v));
                if residual < least {
                    (least, best) = (residual, Some((u, v)));
                }
            }
        }
        best
    }

    /// The sum of absolute differences in the window around a cell under a motion.
    #[inline(always)]
    fn residual(&self, y: usize, x: usize, (u, v): (f32, f32)) -> f32 {
        let stride = self.to.stride();
        // The padding ends PAD pixels beyond the edge.
        let last = |side: usize| (side + 2 * PAD - WINDOW - 2) as f32;
        let to_y = ((y + PAD - 1) as f32 + v).clamp(0.0, last(self.to.h));
        let to_x = ((x + PAD - 1) as f32 + u).clamp(0.0, last(self.to.w));
        let (y0, x0) = (to_y as u32, to_x as u32);
        let (fy, fx) = (to_y - y0 as f32, to_x - x0 as f32);
        let to = self.to.slice_from(-(PAD as isize), -(PAD as isize));
        let to = &to[y0 as usize * stride + x0 as usize..][..WINDOW * stride + WINDOW + 1];
        let from = self.from.slice_from(y as isize - 1, x as isize - 1);
        let from = &from[..(WINDOW - 1) * stride + WINDOW];
        let lerp_x = |i: usize| {
            let row = &to[i * stride..][..WINDOW + 1];
            let mut values = [0.0; WINDOW];
            for j in 0..WINDOW {
                values[j] = row[j] + fx * (row[j + 1] - row[j]);
            }
            values
        };
        let mut sums = [0.0; WINDOW];
        let mut above = lerp_x(0);
        for i in 0..WINDOW {
            let (below, from) = (lerp_x(i + 1), &from[i * stride..][..WINDOW]);
            for j in 0..WINDOW {
                let value = above[j] + fy * (below[j] - above[j]);
                sums[j] += (value - self.gain * from[j]).abs();
            }
            above = below;
        }
        sums.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pyramid::Pyramid;
    use super::*;

    const SIZE: (usize, usize) = (64, 96);
    const MIDDLE: usize = 48;

    /// An irregular texture, displaced by `by` on the right of the middle.
    fn picture(by: f32) -> Pyramid {
        Pyramid::of(SIZE, |y, x| {
            let x = if x < MIDDLE as f32 { x } else { x - by };
            127.5 + 51.0 * (0.9 * x + 0.5 * y).sin() + 51.0 * (0.4 * x - 1.1 * y).cos()
        })
    }

    /// A flow of 3 pixels to the right from column `from` on.
    fn field(from: usize) -> Field {
        let mut field = Field::zeros(SIZE.0, SIZE.1);
        for row in field.u.chunks_exact_mut(SIZE.1) {
            row[from..].fill(3.0);
        }
        field
    }

    #[test]
    fn flow_that_spills_over_a_boundary_is_taken_back() {
        let (still, moved) = (picture(0.0), picture(3.0));
        let mut sharpened = field(MIDDLE - 6);
        sharpen(&still.levels[0], &moved.levels[0], &mut sharpened);
        let correct = |field: &Field| {
            let expected = self::field(MIDDLE);
            let pixels = field.u.iter().zip(&expected.u);
            pixels.filter(|(u, expected)| u == expected).count()
        };
        let all = SIZE.0 * SIZE.1;
        assert_eq!(correct(&field(MIDDLE - 6)), all - 6 * SIZE.0);
        // But for those right at the boundary.
        assert!(correct(&sharpened) >= all - 2 * SIZE.0);
        assert!(sharpened.v.iter().all(|v| *v == 0.0));
    }

    #[test]
    fn the_flow_of_a_uniform_picture_stays() {
        let uniform = Pyramid::of(SIZE, |_, _| 127.5);
        let mut sharpened = field(30);
        sharpen(&uniform.levels[0], &uniform.levels[0], &mut sharpened);
        assert_eq!(sharpened.u, field(30).u);
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The boundaries of motions. A patch that lies across one follows the side with more to see, so that
//! a thing that passes takes along what is beside it, as far as a patch reaches.

use super::flow::Field;
use super::planes::{LANES, Lanes, Row, lanes, load, load_some};
use super::pyramid::{Level, PAD};
use pulp::{Arch, NullaryFnOnce};

/// Side of the squares of pixels that choose between motions, and of what around one is compared.
/// Without the pixel around it, noise chooses.
const CELL: usize = 2;
const WINDOW: usize = CELL + 2;

/// Pixels from a cell to the motions that it chooses from: a patch's side.
const REACH: usize = 8;

/// Motions that differ by this, in pixels, are two.
const OTHER: f32 = 0.6;

/// They are looked for where the flow bends by this.
const BEND: f32 = 0.7;

/// Under a motion that leaves less than this in luma at each pixel, a cell is at home.
const ALIKE: f32 = 0.75;

/// A picture that becomes brighter or darker by more than this part is in another light.
const FLASH: f32 = 0.05;

const _: () = assert!(LANES.is_multiple_of(CELL) && REACH <= LANES);

/// Where motions meet, gives each cell of a flow the one of those around it under which the images
/// are the most alike there.
pub fn sharpen(from: &Level, to: &Level, field: &mut Field) {
    let gain = brightness(to) / brightness(from);
    // A flash is no difference; smaller gains are what comes into the picture.
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

/// Luma in all, of some of the rows.
fn brightness(level: &Level) -> f32 {
    let rows = (0..level.h).step_by(4);
    rows.map(|y| level.row(y).iter().sum::<f32>()).sum()
}

/// A function of its own, which is compiled for each kind of vector unit.
struct Sharpen<'a> {
    from: &'a Level,
    to: &'a Level,
    /// How much brighter `to` is.
    gain: f32,
    field: &'a mut Field,
}

impl NullaryFnOnce for Sharpen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Field { h, w, .. } = *self.field;
        let mut row = [Row::new(w), Row::new(w)];
        let mut chosen = Vec::new();
        for y in (0..h).step_by(CELL) {
            for (row, values) in row.iter_mut().zip([&self.field.u, &self.field.v]) {
                extend(row, &values[y * w..][..w]);
            }
            for x in (0..w).step_by(LANES) {
                let others = self.others(y, x, &row);
                if others == [0.0; LANES] {
                    continue;
                }
                for i in (0..LANES.min(w - x)).step_by(CELL) {
                    if others[i] > 0.0
                        && let Some(motion) = self.choose(y, x + i)
                    {
                        chosen.push((y, x + i, motion));
                    }
                }
            }
        }
        for (y, x, (u, v)) in chosen {
            let columns = x..(x + CELL).min(w);
            for y in y..(y + CELL).min(h) {
                self.field.u[y * w..][columns.clone()].fill(u);
                self.field.v[y * w..][columns.clone()].fill(v);
            }
        }
    }
}

/// Sets a row to values and, before and after them, the first and the last.
#[inline(always)]
fn extend(row: &mut Row, values: &[f32]) {
    let w = values.len();
    row.0[..LANES].fill(values[0]);
    row.0[LANES..][..w].copy_from_slice(values);
    row.0[LANES + w..].fill(values[w - 1]);
}

impl Sharpen<'_> {
    /// The rows above and below that `y` chooses from.
    #[inline(always)]
    fn rows(&self, y: usize) -> [usize; 2] {
        [y.saturating_sub(REACH), (y + REACH).min(self.field.h - 1)]
    }

    /// 1 for the pixels from `x` on that have another motion around them, other than by the slope of
    /// a turn or a zoom (but near the edge, where one side shows it). `row` is the flow there.
    #[inline(always)]
    fn others(&self, y: usize, x: usize, row: &[Row; 2]) -> Lanes {
        let w = self.field.w;
        let count = LANES.min(w - x);
        let mut most = [0.0; LANES];
        for (row, values) in row.iter().zip([&self.field.u, &self.field.v]) {
            let here = load(&row.0, LANES + x);
            let left = load(&row.0, LANES + x - REACH);
            let right = load(&row.0, LANES + x + REACH);
            let [above, below] = self
                .rows(y)
                .map(|y| load_some(&values[y * w + x..][..count], count));
            for i in 0..LANES {
                let across = (left[i] + right[i] - 2.0 * here[i]).abs();
                let down = (above[i] + below[i] - 2.0 * here[i]).abs();
                most[i] = across.max(down).max(most[i]);
            }
        }
        lanes(|i| f32::from(most[i] >= BEND && i < count))
    }

    /// The motion of a cell, where another than its own suits it better.
    #[inline(always)]
    fn choose(&self, y: usize, x: usize) -> Option<(f32, f32)> {
        let Field { w, u, v, .. } = &*self.field;
        let [above, below] = self.rows(y);
        let motion = |y: usize, x: usize| (u[y * w + x], v[y * w + x]);
        let motions = [
            motion(y, x),
            motion(y, x.saturating_sub(REACH)),
            motion(y, (x + REACH).min(w - 1)),
            motion(above, x),
            motion(below, x),
        ];
        let mut least = self.difference(y, x, motions[0]);
        if least < ALIKE * (WINDOW * WINDOW) as f32 {
            return None;
        }
        let mut best = None;
        for (i, &(u, v)) in motions.iter().enumerate().skip(1) {
            let is_other =
                |known: &(f32, f32)| (u - known.0).abs().max((v - known.1).abs()) >= OTHER;
            if motions[..i].iter().all(is_other) {
                let difference = self.difference(y, x, (u, v));
                if difference < least {
                    (least, best) = (difference, Some((u, v)));
                }
            }
        }
        best
    }

    /// How far the images are from alike around a cell under a motion.
    #[inline(always)]
    fn difference(&self, y: usize, x: usize, (u, v): (f32, f32)) -> f32 {
        let stride = self.to.stride();
        // The edge's repetition ends after PAD pixels.
        let last = |side: usize| (side + 2 * PAD - WINDOW - 2) as f32;
        let to_y = ((y + PAD - 1) as f32 + v).clamp(0.0, last(self.to.h));
        let to_x = ((x + PAD - 1) as f32 + u).clamp(0.0, last(self.to.w));
        let (y0, x0) = (to_y as u32, to_x as u32);
        let (fy, fx) = (to_y - y0 as f32, to_x - x0 as f32);
        let to = self.to.from(-(PAD as isize), -(PAD as isize));
        let to = &to[y0 as usize * stride + x0 as usize..][..WINDOW * stride + WINDOW + 1];
        let from = self.from.from(y as isize - 1, x as isize - 1);
        let from = &from[..(WINDOW - 1) * stride + WINDOW];
        let across = |i: usize| {
            let row = &to[i * stride..][..WINDOW + 1];
            let mut across = [0.0; WINDOW];
            for j in 0..WINDOW {
                across[j] = row[j] + fx * (row[j + 1] - row[j]);
            }
            across
        };
        let mut sums = [0.0; WINDOW];
        let mut above = across(0);
        for i in 0..WINDOW {
            let (below, from) = (across(i + 1), &from[i * stride..][..WINDOW]);
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
    use candle_core::{Device, Tensor};

    const SIZE: (usize, usize) = (64, 96);
    const MIDDLE: usize = 48;

    /// Something irregular that has moved by `by` on the right of the middle.
    fn picture(by: f32) -> Pyramid {
        let (h, w) = SIZE;
        let pixels = (0..h * w).flat_map(|i| {
            let (y, x) = ((i / w) as f32, (i % w) as f32);
            let x = if i % w < MIDDLE { x } else { x - by };
            [0.5 + 0.2 * (0.9 * x + 0.5 * y).sin() + 0.2 * (0.4 * x - 1.1 * y).cos(); 3]
        });
        let image = Tensor::from_vec(pixels.collect(), (h, w, 3), &Device::Cpu).unwrap();
        Pyramid::new(&image).unwrap()
    }

    /// A flow of 3 pixels from column `from` on.
    fn field(from: usize) -> Field {
        let mut field = Field::zeros(SIZE.0, SIZE.1);
        for row in field.u.chunks_exact_mut(SIZE.1) {
            row[from..].fill(3.0);
        }
        field
    }

    #[test]
    fn what_is_beside_something_that_moves_is_not_taken_along() {
        let (still, moved) = (picture(0.0), picture(3.0));
        let mut sharpened = field(MIDDLE - 6);
        sharpen(&still.levels[0], &moved.levels[0], &mut sharpened);
        let right = |field: &Field| {
            let expected = self::field(MIDDLE);
            let pixels = field.u.iter().zip(&expected.u);
            pixels.filter(|(u, expected)| u == expected).count()
        };
        let all = SIZE.0 * SIZE.1;
        assert_eq!(right(&field(MIDDLE - 6)), all - 6 * SIZE.0);
        // But for those right at the boundary.
        assert!(right(&sharpened) >= all - 2 * SIZE.0);
        assert!(sharpened.v.iter().all(|v| *v == 0.0));
    }

    #[test]
    fn where_nothing_tells_motions_apart_each_stays() {
        let (h, w) = SIZE;
        let image = Tensor::full(0.5f32, (h, w, 3), &Device::Cpu).unwrap();
        let even = Pyramid::new(&image).unwrap();
        let mut sharpened = field(30);
        sharpen(&even.levels[0], &even.levels[0], &mut sharpened);
        assert_eq!(sharpened.u, field(30).u);
    }
}

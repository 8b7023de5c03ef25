// SPDX-License-Identifier: MPL-2.0

//! Paintings that are moved along with the picture, row by row.

use super::Motion;
use super::alike::Alike;
use super::grid::{Corners, Place, places};
use super::light::{OnPicture, SQUARE};
use super::planes::{self, LANES, Lanes, lanes, load, store};
use super::spline::{Pixel, Spline, inside, pixel};
use pulp::NullaryFnOnce;

const NOTHING: Lanes = [0.0; LANES];

/// A painting, and how a frame moved since.
pub struct Source<'a> {
    paint: &'a Spline,
    motion: &'a Motion,
    /// Where the frame's rows are in the motion's.
    rows: Vec<Place>,
}

/// What rows are made in.
pub struct Scratch {
    /// Of the latest painting the flow across and down in pixels of the frame, and whether it is
    /// reliable.
    known: [planes::Row; 3],
    spare: planes::Row,
    /// The part of each pixel that no painting has shown yet.
    left: Vec<f32>,
    /// What the paintings show, and room for what is beside the last pixel.
    paint: Vec<f32>,
}

impl Scratch {
    /// For rows of `w` pixels.
    pub fn new(w: usize) -> Self {
        let row = || planes::Row::new(w);
        let len = w.next_multiple_of(LANES);
        Self {
            known: [row(), row(), row()],
            spare: row(),
            left: vec![0.0; len],
            paint: vec![0.0; 3 * len + 1],
        }
    }
}

impl<'a> Source<'a> {
    /// For frames of `h` rows.
    pub fn new(paint: &'a Spline, motion: &'a Motion, h: usize) -> Self {
        Self {
            paint,
            motion,
            rows: places(h, motion.scale, motion.visible.h),
        }
    }

    /// Sets what is known along row `y` of a frame `w` wide.
    #[inline(always)]
    fn set_known(&self, y: usize, w: usize, scratch: &mut Scratch) {
        let (above, below, t) = self.rows[y];
        for (known, (grid, unit)) in scratch.known.iter_mut().zip(self.motion.grids()) {
            let len = self.motion.visible.w;
            let (above, below) = (&grid[above * len..][..len], &grid[below * len..][..len]);
            let row = &mut known.0[LANES..][..len];
            for x in 0..len {
                row[x] = unit * (above[x] + t * (below[x] - above[x]));
            }
            if self.motion.scale == 2 {
                double(known, len, &mut scratch.spare, w);
                std::mem::swap(known, &mut scratch.spare);
            }
        }
    }

    /// Adds the latest painting to row `y` of the paint.
    #[inline(always)]
    fn add(&self, y: usize, w: usize, scratch: &mut Scratch) {
        self.set_known(y, w, scratch);
        for x in (0..w).step_by(LANES) {
            let [u, v, reliable] = &scratch.known;
            let load = |row: &planes::Row| load(&row.0, LANES + x);
            let (flow, reliable) = ([load(u), load(v)], load(reliable));
            self.add_part(y, x, flow, reliable, scratch, |paint, pixel| {
                // What is beside a pixel is overwritten by the next one.
                paint.copy_from_slice(&pixel);
            });
        }
    }

    /// Adds an older painting where the later ones left something, as far as it is sure.
    #[inline(always)]
    fn add_older(&self, y: usize, w: usize, scratch: &mut Scratch) {
        let Motion {
            flows: [flow, _],
            reliable,
            ..
        } = self.motion;
        let scale = self.motion.scale as f32;
        let within = |at: usize| (at as f32 + 0.5) / scale - 0.5;
        for x in (0..w).step_by(LANES) {
            if load(&scratch.left, x) == NOTHING {
                continue;
            }
            let size = (reliable.h, reliable.w);
            let corners = Corners::new(size, [within(y); LANES], lanes(|i| within(x + i)));
            let reliable = corners.between(&reliable.values);
            if reliable == NOTHING {
                continue;
            }
            let [u, v] = [&flow.u, &flow.v];
            let (u, v) = (corners.between(u), corners.between(v));
            let flow = [lanes(|i| scale * u[i]), lanes(|i| scale * v[i])];
            self.add_part(y, x, flow, reliable, scratch, |paint, pixel| {
                for (paint, value) in paint.iter_mut().zip(&pixel[..3]) {
                    *paint += value;
                }
            });
        }
    }

    /// Adds to row `y`, from `x` on, the painting from where the flow leads, as far as that is
    /// reliable and something is left. Where two motions meet it is not: frame by frame the strokes
    /// would be drawn out there.
    #[inline(always)]
    fn add_part(
        &self,
        y: usize,
        x: usize,
        [u, v]: [Lanes; 2],
        reliable: Lanes,
        scratch: &mut Scratch,
        set: impl Fn(&mut [f32], Pixel),
    ) {
        let left = load(&scratch.left, x);
        let from_y = lanes(|i| y as f32 + v[i]);
        let from_x = lanes(|i| x as f32 + i as f32 + u[i]);
        let shown = lanes(|i| {
            let inside = self.paint.contains(from_y[i], from_x[i]);
            left[i] * reliable[i] * f32::from(inside)
        });
        if shown == NOTHING {
            return;
        }
        let mut phases = [[0; 2]; LANES];
        for i in 0..LANES {
            phases[i] = self.paint.phase(from_y[i], from_x[i]);
        }
        let mut parts = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            if shown[i] > 0.0 {
                parts[i] = self.paint.parts(phases[i]);
            }
        }
        for i in 0..LANES {
            let pixel = pixel(&parts[i]).map(|value| shown[i] * value);
            set(&mut scratch.paint[3 * (x + i)..][..4], pixel);
        }
        store(&mut scratch.left, x, lanes(|i| left[i] - shown[i]));
    }
}

/// Sets `to` to a row at twice its length, or one more.
#[inline(always)]
fn double(row: &mut planes::Row, len: usize, to: &mut planes::Row, doubled: usize) {
    let row = &mut row.0;
    row[LANES - 1] = row[LANES];
    row[LANES + len] = row[LANES + len - 1];
    for x in (0..doubled).step_by(LANES) {
        let near = load(row, LANES + x / 2 - 1);
        let between = lanes(|i| 0.75 * near[i / 2 + 1] + 0.25 * near[i / 2 + i % 2 * 2]);
        store(&mut to.0, LANES + x, between);
    }
}

/// Where RGB differs from the frame before by less than the first in all, strokes stay where they
/// were; by more than the second, something else is there.
const SAME: f32 = 0.1;
const OTHER: f32 = 0.3;

/// One row of a start.
pub struct Row<'a> {
    pub y: usize,
    pub light: &'a OnPicture,
    pub latest: Option<&'a Source<'a>>,
    pub older: &'a [Source<'a>],
    pub alike: Option<&'a Alike>,
    /// All rows of the frame, the one before and its painting.
    pub frames: [&'a [f32]; 3],
    pub image: &'a mut [f32],
    pub held: &'a mut [f32],
    pub scratch: &'a mut Scratch,
}

impl NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let w = self.held.len();
        self.scratch.left.fill(0.0);
        self.scratch.left[..w].fill(1.0);
        self.scratch.paint.fill(0.0);
        if let Some(latest) = self.latest {
            latest.add(self.y, w, self.scratch);
        }
        for older in self.older {
            older.add_older(self.y, w, self.scratch);
        }
        for x in (0..w).step_by(LANES) {
            self.finish(x, LANES.min(w - x));
        }
        for (held, left) in self.held.iter_mut().zip(&self.scratch.left) {
            *held = 1.0 - left;
        }
    }
}

impl Row<'_> {
    /// Sets `count` pixels of the image from `x` on.
    #[inline(always)]
    fn finish(&mut self, x: usize, count: usize) {
        let place = 3 * x..3 * (x + count);
        let ([above, below], t) = self.light.row(self.y);
        let (above, below) = (&above[place.clone()], &below[place.clone()]);
        let light = |i: usize| above[i] + t * (below[i] - above[i]);
        let paint = &self.scratch.paint[place.clone()];
        let left = load(&self.scratch.left, x);
        if left == NOTHING {
            let image = &mut self.image[place];
            for i in 0..image.len() {
                image[i] = (paint[i] + light(i)).clamp(0.0, 1.0);
            }
            return;
        }
        let fill = self.fill(x, count);
        let image = &mut self.image[place];
        let mut lefts = [0.0; 3 * LANES];
        for i in 0..3 * LANES {
            lefts[i] = left[i / 3];
        }
        for i in 0..image.len() {
            let value = paint[i] + (1.0 - lefts[i]) * light(i) + lefts[i] * fill[i];
            image[i] = value.clamp(0.0, 1.0);
        }
    }

    /// The frame with strokes of the last painting, for `count` pixels from `x` on: those that were
    /// there, or, where something else is there now or comes into the picture, those of what looks
    /// like it. At the picture's edge the same strokes would be drawn out, frame by frame.
    #[inline(always)]
    fn fill(&self, x: usize, count: usize) -> [f32; 3 * LANES] {
        let [now, before, result] = self.frames;
        let w = self.held.len();
        let h = now.len() / 3 / w;
        let place = 3 * (self.y * w + x)..3 * (self.y * w + x + count);
        let (now, there) = (&now[place.clone()], &before[place.clone()]);
        let painted = &result[place];
        let mut fill = [0.0; 3 * LANES];
        let mut changes = [0.0; 3 * LANES];
        let pixels = now.iter().zip(there).zip(painted);
        for ((fill, change), ((now, there), painted)) in
            fill.iter_mut().zip(&mut changes).zip(pixels)
        {
            *fill = painted - there + now;
            *change = (now - there).abs();
        }
        let Some(alike) = self.alike else {
            return fill;
        };
        let [u, v, _] = &self.scratch.known;
        let (u, v) = (load(&u.0, LANES + x), load(&v.0, LANES + x));
        let other = lanes(|i| {
            let (from_y, from_x) = (self.y as f32 + v[i], (x + i) as f32 + u[i]);
            let comes_in = !inside(from_y, h) | !inside(from_x, w);
            let change = changes[3 * i] + changes[3 * i + 1] + changes[3 * i + 2];
            let part = (change - SAME) / (OTHER - SAME);
            part.clamp(0.0, 1.0).max(f32::from(comes_in))
        });
        for start in (0..count).step_by(SQUARE) {
            let (y, from) = alike.place(self.y, x + start);
            let y = y.min(h - 1);
            for i in start..(start + SQUARE).min(count) {
                let at = 3 * (y * w + (from + i - start).min(w - 1));
                for c in 0..3 {
                    let stroke = result[at + c] - before[at + c] + now[3 * i + c];
                    fill[3 * i + c] += other[i] * (stroke - fill[3 * i + c]);
                }
            }
        }
        fill
    }
}

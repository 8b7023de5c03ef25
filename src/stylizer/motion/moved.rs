// SPDX-License-Identifier: MPL-2.0

//! Paintings that are moved along with the picture, row by row.

use super::Motion;
use super::grid::{Corners, Place, places};
use super::light::OnPicture;
use super::planes::{self, LANES, Lanes, lanes, load, store};
use super::spline::{Pixel, Spline, pixel};
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
    /// The flow across and down in pixels of the frame, whether pixels are visible where it leads
    /// and whether reliably.
    known: [planes::Row; 4],
    spare: planes::Row,
    /// The part of each pixel that no painting has shown yet.
    left: Vec<f32>,
    held: Vec<f32>,
    /// What the paintings show, and room for what is beside the last pixel.
    paint: Vec<f32>,
}

impl Scratch {
    /// For rows of `w` pixels.
    pub fn new(w: usize) -> Self {
        let row = || planes::Row::new(w);
        let len = w.next_multiple_of(LANES);
        Self {
            known: [row(), row(), row(), row()],
            spare: row(),
            left: vec![0.0; len],
            held: vec![0.0; len],
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
            let [u, v, visible, reliable] = &scratch.known;
            let load = |row: &planes::Row| load(&row.0, LANES + x);
            let (flow, masks) = ((load(u), load(v)), [load(visible), load(reliable)]);
            self.add_part(y, x, flow, masks, scratch, |paint, pixel| {
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
            let flow = (lanes(|i| scale * u[i]), lanes(|i| scale * v[i]));
            self.add_part(y, x, flow, [reliable; 2], scratch, |paint, pixel| {
                for (paint, value) in paint.iter_mut().zip(&pixel[..3]) {
                    *paint += value;
                }
            });
        }
    }

    /// Adds to row `y`, from `x` on, the painting from where the flow leads, as far as that is
    /// visible and something is left.
    #[inline(always)]
    fn add_part(
        &self,
        y: usize,
        x: usize,
        (u, v): (Lanes, Lanes),
        [visible, reliable]: [Lanes; 2],
        scratch: &mut Scratch,
        set: impl Fn(&mut [f32], Pixel),
    ) {
        let left = load(&scratch.left, x);
        let from_y = lanes(|i| y as f32 + v[i]);
        let from_x = lanes(|i| x as f32 + i as f32 + u[i]);
        let shown = lanes(|i| {
            let inside = self.paint.contains(from_y[i], from_x[i]);
            left[i] * visible[i] * f32::from(inside)
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
        let held = load(&scratch.held, x);
        let held = lanes(|i| held[i] + left[i] * reliable[i] * f32::from(shown[i] > 0.0));
        store(&mut scratch.held, x, held);
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

/// One row of a start.
pub struct Row<'a> {
    pub y: usize,
    pub light: &'a OnPicture,
    pub latest: Option<&'a Source<'a>>,
    pub older: &'a [Source<'a>],
    /// The frame, the one before and its painting.
    pub frames: [&'a [f32]; 3],
    pub image: &'a mut [f32],
    pub held: &'a mut [f32],
    pub scratch: &'a mut Scratch,
}

impl NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (w, scratch) = (self.held.len(), self.scratch);
        scratch.left.fill(0.0);
        scratch.left[..w].fill(1.0);
        scratch.held.fill(0.0);
        scratch.paint.fill(0.0);
        if let Some(latest) = self.latest {
            latest.add(self.y, w, scratch);
        }
        for older in self.older {
            older.add_older(self.y, w, scratch);
        }
        let ([above, below], t) = self.light.row(self.y);
        let [now, before, result] = self.frames;
        for (x, image) in (0..).step_by(LANES).zip(self.image.chunks_mut(3 * LANES)) {
            let place = 3 * x..3 * x + image.len();
            let (above, below) = (&above[place.clone()], &below[place.clone()]);
            let paint = &scratch.paint[place.clone()];
            let light = |i: usize| above[i] + t * (below[i] - above[i]);
            let left = load(&scratch.left, x);
            if left == NOTHING {
                for i in 0..image.len() {
                    image[i] = (paint[i] + light(i)).clamp(0.0, 1.0);
                }
                continue;
            }
            let mut parts = [0.0; 3 * LANES];
            for i in 0..3 * LANES {
                parts[i] = left[i / 3];
            }
            let [now, before, result] = [now, before, result].map(|rows| &rows[place.clone()]);
            for i in 0..image.len() {
                let fill = result[i] + now[i] - before[i];
                let shown = paint[i] + (1.0 - parts[i]) * light(i);
                image[i] = (shown + parts[i] * fill).clamp(0.0, 1.0);
            }
        }
        self.held.copy_from_slice(&scratch.held[..w]);
    }
}

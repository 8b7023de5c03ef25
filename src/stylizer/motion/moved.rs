// SPDX-License-Identifier: MPL-2.0

//! Warps paintings and composes a frame's start of them, row by row. What is warped is a painting's
//! detail: the painting less the illumination of its frame. That of the new frame is added to it.

use super::Motion;
use super::bilinear::{Bilinear, LerpIndex, lerp_indices, to_level};
use super::exemplars::Exemplars;
use super::illumination::UpsampledIllumination;
use super::lanes::{LANES, Lanes, lanes, load, store};
use super::planes::PaddedRow;
use super::spline::{Pixel, Spline, is_inside, sum_columns};
use super::thumbnail::Rgb;
use pulp::NullaryFnOnce;

const ZERO: Lanes = [0.0; LANES];

/// The detail of a painting, and the motion of a frame since.
pub struct MovedPainting<'a> {
    detail: &'a Spline,
    motion: &'a Motion,
    /// The position of each of the frame's rows among those of the motion.
    rows: Vec<LerpIndex>,
}

/// Buffers for the rows of a start, each of which needs one at a time.
pub struct StartScratch {
    /// The latest painting's backward flow u and v, in pixels of the frame, and its reliability.
    flow: [PaddedRow; 3],
    spare: PaddedRow,
    /// The part of each pixel that no painting covers yet.
    uncovered: Vec<f32>,
    /// The warped details, RGB, with room for the last pixel's fourth value.
    warped: Vec<f32>,
}

impl StartScratch {
    /// For rows of `w` pixels.
    pub fn new(w: usize) -> Self {
        let row = || PaddedRow::new(w);
        let len = w.next_multiple_of(LANES);
        Self {
            flow: [row(), row(), row()],
            spare: row(),
            uncovered: vec![0.0; len],
            warped: vec![0.0; 3 * len + 1],
        }
    }
}

impl<'a> MovedPainting<'a> {
    /// For frames of `h` rows.
    pub fn new(detail: &'a Spline, motion: &'a Motion, h: usize) -> Self {
        Self {
            detail,
            motion,
            rows: lerp_indices(h, motion.scale, motion.visible.h),
        }
    }

    /// Interpolates the flow and its reliability to row `y` of a frame `w` wide.
    #[inline(always)]
    fn set_flow(&self, y: usize, w: usize, scratch: &mut StartScratch) {
        let (above, below, t) = self.rows[y];
        for (row, (grid, scale)) in scratch.flow.iter_mut().zip(self.motion.grids()) {
            let len = self.motion.visible.w;
            let (above, below) = (&grid[above * len..][..len], &grid[below * len..][..len]);
            let values = &mut row.0[LANES..][..len];
            for x in 0..len {
                values[x] = scale * (above[x] + t * (below[x] - above[x]));
            }
            if self.motion.scale == 2 {
                upsample(row, len, &mut scratch.spare, w);
                std::mem::swap(row, &mut scratch.spare);
            }
        }
    }

    /// Sets row `y`, which is yet zero, to the detail of the latest painting.
    #[inline(always)]
    fn set_latest(&self, y: usize, w: usize, scratch: &mut StartScratch) {
        self.set_flow(y, w, scratch);
        for x in (0..w).step_by(LANES) {
            let [u, v, reliable] = &scratch.flow;
            let load = |row: &PaddedRow| load(&row.0, LANES + x);
            let (flow, reliable) = ([load(u), load(v)], load(reliable));
            self.add_pixels(y, x, flow, reliable, scratch, |warped, pixel| {
                // Pixels are written as four values at a stride of three. The fourth, which is padding,
                // spills into the next pixel, which is written after it.
                warped.copy_from_slice(&pixel);
            });
        }
    }

    /// Adds the detail of an older painting to row `y` where later ones left pixels uncovered and its
    /// flow is reliable.
    #[inline(always)]
    fn add_older(&self, y: usize, w: usize, scratch: &mut StartScratch) {
        let Motion {
            backward, reliable, ..
        } = self.motion;
        let scale = self.motion.scale as f32;
        let to_grid = |pixel: usize| to_level(pixel as f32, scale);
        for x in (0..w).step_by(LANES) {
            if load(&scratch.uncovered, x) == ZERO {
                continue;
            }
            let size = (reliable.h, reliable.w);
            let points = Bilinear::new(size, [to_grid(y); LANES], lanes(|i| to_grid(x + i)));
            let reliable = points.sample(&reliable.values);
            if reliable == ZERO {
                continue;
            }
            let [u, v] = [&backward.u, &backward.v];
            let (u, v) = (points.sample(u), points.sample(v));
            let flow = [lanes(|i| scale * u[i]), lanes(|i| scale * v[i])];
            self.add_pixels(y, x, flow, reliable, scratch, |warped, pixel| {
                for (warped, value) in warped.iter_mut().zip(&pixel[..3]) {
                    *warped += value;
                }
            });
        }
    }

    /// Adds the warped detail to [`LANES`] pixels of row `y` from `x` on, as far as they are uncovered and
    /// the flow is reliable, which it is not at motion boundaries: strokes would be drawn out there,
    /// frame by frame. `add` takes the destination and the weighted pixel, four values each.
    #[inline(always)]
    fn add_pixels(
        &self,
        y: usize,
        x: usize,
        [u, v]: [Lanes; 2],
        reliable: Lanes,
        scratch: &mut StartScratch,
        add: impl Fn(&mut [f32], Pixel),
    ) {
        let uncovered = load(&scratch.uncovered, x);
        let source_y = lanes(|i| y as f32 + v[i]);
        let source_x = lanes(|i| x as f32 + i as f32 + u[i]);
        let covered = lanes(|i| {
            let inside = self.detail.contains(source_y[i], source_x[i]);
            uncovered[i] * reliable[i] * f32::from(inside)
        });
        if covered == ZERO {
            return;
        }
        let mut phases = [[0; 2]; LANES];
        for i in 0..LANES {
            phases[i] = self.detail.phase(source_y[i], source_x[i]);
        }
        let mut columns = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            if covered[i] > 0.0 {
                columns[i] = self.detail.columns(phases[i]);
            }
        }
        for i in 0..LANES {
            let pixel = sum_columns(&columns[i]).map(|value| covered[i] * value);
            add(&mut scratch.warped[3 * (x + i)..][..4], pixel);
        }
        store(
            &mut scratch.uncovered,
            x,
            lanes(|i| uncovered[i] - covered[i]),
        );
    }
}

/// Interpolates a row of `len` values to `doubled`, which is twice as many or one more.
#[inline(always)]
fn upsample(row: &mut PaddedRow, len: usize, to: &mut PaddedRow, doubled: usize) {
    let row = &mut row.0;
    row[LANES - 1] = row[LANES];
    row[LANES + len] = row[LANES + len - 1];
    for x in (0..doubled).step_by(LANES) {
        let near = load(row, LANES + x / 2 - 1);
        let between = lanes(|i| 0.75 * near[i / 2 + 1] + 0.25 * near[i / 2 + i % 2 * 2]);
        store(&mut to.0, LANES + x, between);
    }
}

/// The sum of the absolute RGB differences (0..1 each) to the frame before up to which an uncovered
/// pixel keeps the strokes that were there. From here to [`OTHER_COLOR`] its exemplar's are blended in.
const SAME_COLOR: f32 = 0.1;
/// The same sum from which an uncovered pixel takes its exemplar's strokes alone.
const OTHER_COLOR: f32 = 0.3;

/// One row of a start, dispatched by SIMD instruction set.
pub struct StartRow<'a> {
    pub y: usize,
    pub illumination: &'a UpsampledIllumination,
    pub latest: &'a MovedPainting<'a>,
    pub older: &'a [MovedPainting<'a>],
    pub exemplars: &'a Exemplars,
    /// All rows of the frame.
    pub now: &'a [f32],
    /// All rows of the frame before and of its painting.
    pub before: &'a [f32],
    pub painting: &'a [f32],
    /// This row of the start.
    pub image: &'a mut [f32],
    pub confidence: &'a mut [f32],
    pub scratch: &'a mut StartScratch,
}

impl NullaryFnOnce for StartRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let w = self.confidence.len();
        self.scratch.uncovered.fill(0.0);
        self.scratch.uncovered[..w].fill(1.0);
        self.scratch.warped.fill(0.0);
        self.latest.set_latest(self.y, w, self.scratch);
        for older in self.older {
            older.add_older(self.y, w, self.scratch);
        }
        for x in (0..w).step_by(LANES) {
            self.compose(x, LANES.min(w - x));
        }
        for (confidence, uncovered) in self.confidence.iter_mut().zip(&self.scratch.uncovered) {
            *confidence = 1.0 - uncovered;
        }
    }
}

impl StartRow<'_> {
    /// Sets `count` pixels of the image from `x` on: the warped detail in this frame's illumination, and
    /// the fill where it does not cover them.
    #[inline(always)]
    fn compose(&mut self, x: usize, count: usize) {
        let range = 3 * x..3 * (x + count);
        let ([above, below], t) = self.illumination.row(self.y);
        let (above, below) = (&above[range.clone()], &below[range.clone()]);
        let illumination = |i: usize| above[i] + t * (below[i] - above[i]);
        let warped = &self.scratch.warped[range.clone()];
        let uncovered = load(&self.scratch.uncovered, x);
        if uncovered == ZERO {
            let image = &mut self.image[range];
            for i in 0..image.len() {
                image[i] = (warped[i] + illumination(i)).clamp(0.0, 1.0);
            }
            return;
        }
        let fill = self.fill(x, count, uncovered);
        let image = &mut self.image[range];
        let mut weights = [0.0; 3 * LANES];
        for i in 0..3 * LANES {
            weights[i] = uncovered[i / 3];
        }
        for i in 0..image.len() {
            let value = warped[i] + (1.0 - weights[i]) * illumination(i) + weights[i] * fill[i];
            image[i] = value.clamp(0.0, 1.0);
        }
    }

    /// The fill of `count` pixels from `x` on, where they are `uncovered`.
    #[inline(always)]
    fn fill(&self, x: usize, count: usize, uncovered: Lanes) -> [f32; 3 * LANES] {
        let mut fill = [0.0; 3 * LANES];
        for (i, pixel) in fill.chunks_exact_mut(3).take(count).enumerate() {
            if uncovered[i] > 0.0 {
                pixel.copy_from_slice(&self.fill_pixel(x + i));
            }
        }
        fill
    }

    /// The frame with strokes of the last painting: those that were there or, where the picture has
    /// changed or comes in from beyond its edge, those of the pixel's exemplar. At the edge the same
    /// strokes would be drawn out frame by frame.
    ///
    /// Frames are compared by local means: a glint of one pixel is no stroke, but would stay in the
    /// painting like one.
    #[inline(always)]
    fn fill_pixel(&self, x: usize) -> Rgb {
        let Self {
            y,
            now,
            before,
            painting,
            ..
        } = *self;
        let w = self.confidence.len();
        let size @ (h, _) = (now.len() / 3 / w, w);
        let colour = local_mean(size, (y, x), |i| now[i]);
        let strokes = |y: usize, x: usize| -> Rgb {
            let under = local_mean(size, (y, x), |i| before[i]);
            [0, 1, 2].map(|c| painting[3 * (y * w + x) + c] - under[c] + colour[c])
        };
        let [u, v, _] = &self.scratch.flow;
        let (source_y, source_x) = (y as f32 + v.0[LANES + x], x as f32 + u.0[LANES + x]);
        let weight = match is_inside(source_y, h) && is_inside(source_x, w) {
            true => {
                let change = local_mean(size, (y, x), |i| (now[i] - before[i]).abs());
                let change = change.iter().sum::<f32>();
                ((change - SAME_COLOR) / (OTHER_COLOR - SAME_COLOR)).clamp(0.0, 1.0)
            }
            false => 1.0,
        };
        let own = strokes(y, x);
        if weight == 0.0 {
            return own;
        }
        let (row, column) = self.exemplars.source(y, x);
        let exemplar = strokes(row, column);
        [0, 1, 2].map(|c| own[c] + weight * (exemplar[c] - own[c]))
    }
}

/// The mean over 3x3 pixels of an RGB image of `h` by `w`, whose values are numbered row by row;
/// beyond its edge they are those of the edge.
#[inline(always)]
fn local_mean((h, w): (usize, usize), (y, x): (usize, usize), value: impl Fn(usize) -> f32) -> Rgb {
    let mut sum = [0.0; 3];
    for row in [y.saturating_sub(1), y, (y + 1).min(h - 1)] {
        for column in [x.saturating_sub(1), x, (x + 1).min(w - 1)] {
            for (c, sum) in sum.iter_mut().enumerate() {
                *sum += value(3 * (row * w + column) + c);
            }
        }
    }
    sum.map(|sum| sum / 9.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_doubled_by_interpolation() {
        for (len, doubled) in [(8, 16), (8, 17), (37, 74), (37, 75), (64, 129)] {
            let (mut row, mut to) = (PaddedRow::new(doubled), PaddedRow::new(doubled));
            let values: Vec<f32> = (0..len).map(|x| (x * x % 11) as f32).collect();
            row.0[LANES..][..len].copy_from_slice(&values);
            upsample(&mut row, len, &mut to, doubled);
            let positions = lerp_indices(doubled, 2, len);
            for (x, (value, (before, after, t))) in to.0[LANES..].iter().zip(positions).enumerate()
            {
                let expected = values[before] + t * (values[after] - values[before]);
                assert_eq!(*value, expected, "{x} of {doubled}");
            }
        }
    }
}

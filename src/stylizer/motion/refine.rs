// SPDX-License-Identifier: MPL-2.0

//! The variational refinement of a dense flow (Kroeger et al. 2016, section 2.3, after Brox, Bruhn,
//! Papenberg and Weickert, "High accuracy optical flow estimation based on a theory for warping",
//! ECCV 2004): the flow w that keeps luma and its gradient and is smooth, each but for outliers.
//!
//! What is minimised is δ Σ Ψ(luma) + γ Σ Ψ(gradient) + α Σ Ψ(|∇u|² + |∇v|²), Ψ(x²) = √(x² + ε²).
//! Around the flow that is there, all are squares of something linear in w with the weight Ψ′ each,
//! so that w solves a linear system: at each pixel (A + Σ weights) w = b + Σ weights · neighbours.

use super::flow::Field;
use super::grid::whole;
use super::planes::{Halves, LANES, Lanes, Plane, Row, lanes, load, store};
use super::pyramid::{Level, PAD};
use pulp::Arch;

/// δ, γ and α. The paper's are 5, 10 and 10: less of the luma bears a flash, and patches at half
/// the image's size already follow its details, so that the field may be smoother.
const DELTA: f32 = 1.0;
const GAMMA: f32 = 10.0;
const ALPHA: f32 = 20.0;

/// ε² of the penaliser. With the 1e-6 that is usual the few sweeps come less far.
const EPSILON_SQUARED: f32 = 1e-3;

/// ζ²: gradients below ζ, in luma a pixel, say little (ζ is the paper's).
const ZETA_SQUARED: f32 = 0.01;

/// Sweeps over each linear system, of each colour of a chessboard in turn, and their over-relaxation.
const SWEEPS: usize = 5;
const OMEGA: f32 = 1.6;

/// Each half of a sweep follows one row behind the one before it and the first one row behind the
/// setting up, so that what they need of the system is a band of so many rows, which stays in the
/// cache.
const HALF_SWEEPS: usize = 2 * SWEEPS;
const BAND: usize = (HALF_SWEEPS + 2).next_power_of_two();

/// `to` where the flow leads.
#[inline(always)]
fn warp(to: &Level, field: &Field, plane: &mut Plane) {
    let w = field.w;
    let last_y = (field.h + 2 * PAD - 2) as f32;
    let last_x = (w + 2 * PAD - 2) as f32;
    let stride = to.stride();
    let values = to.from(-(PAD as isize), -(PAD as isize));
    for y in 0..field.h {
        let (mut u, mut v) = ([0.0; LANES], [0.0; LANES]);
        for x in (0..w).step_by(LANES) {
            let count = LANES.min(w - x);
            let start = y * w + x;
            u[..count].copy_from_slice(&field.u[start..start + count]);
            v[..count].copy_from_slice(&field.v[start..start + count]);
            // The edge's repetition ends after PAD pixels.
            let top = (y + PAD) as f32;
            let at_y = lanes(|i| (top + v[i]).clamp(0.5, last_y));
            let at_x = lanes(|i| ((x + PAD) as f32 + i as f32 + u[i]).clamp(0.5, last_x));
            let (mut fy, mut fx, mut places) = ([0.0; LANES], [0.0; LANES], [0; LANES]);
            for i in 0..LANES {
                let (y0, x0) = (whole(at_y[i]), whole(at_x[i]));
                fy[i] = at_y[i] - y0 as i32 as f32;
                fx[i] = at_x[i] - x0 as i32 as f32;
                places[i] = y0 * stride as u32 + x0;
            }
            let mut corners = [[0.0; LANES]; 4];
            for i in 0..LANES {
                let values = &values[places[i] as usize..][..stride + 2];
                corners[0][i] = values[0];
                corners[1][i] = values[1];
                corners[2][i] = values[stride];
                corners[3][i] = values[stride + 1];
            }
            let mut warped = [0.0; LANES];
            for i in 0..LANES {
                let above = corners[0][i] + fx[i] * (corners[1][i] - corners[0][i]);
                let below = corners[2][i] + fx[i] * (corners[3][i] - corners[2][i]);
                warped[i] = above + fy[i] * (below - above);
            }
            let place = plane.place(y as isize, x as isize);
            store(&mut plane.values, place, warped);
        }
    }
}

/// The linear system of one level.
struct System {
    /// Luma, the mean of both images, and its difference between them.
    mean: Plane,
    t: Plane,
    /// The flow around which the system is linear.
    base: [Plane; 2],
    /// The flow that solves it, and a row around it.
    flow: [Halves; 2],
    /// Of a band of the rows (A + Σ weights)⁻¹: xx, xy, yy.
    inverse: [Halves; 3],
    /// The same of b.
    b: [Halves; 2],
    /// And how strongly each pixel is held to the one on its right and the one below it; 0 at the edge.
    right: Halves,
    below: Halves,
}

/// Rows of the system before their values are parted.
struct Scratch {
    rows: [Row; 5],
    right: Row,
    above: Row,
    below: Row,
}

impl Scratch {
    fn new(w: usize) -> Self {
        let row = || Row::new(w);
        Self {
            rows: std::array::from_fn(|_| row()),
            right: row(),
            above: row(),
            below: row(),
        }
    }
}

#[inline(always)]
fn inverse_root(square: f32) -> f32 {
    1.0 / square.sqrt()
}

impl System {
    fn new(h: usize, w: usize) -> Self {
        let plane = || Plane::new(h, w);
        let flow = || Halves::new(h + 2, w);
        let halves = || Halves::new(BAND, w);
        Self {
            mean: plane(),
            t: plane(),
            base: [plane(), plane()],
            flow: [flow(), flow()],
            inverse: [halves(), halves(), halves()],
            b: [halves(), halves()],
            right: halves(),
            below: halves(),
        }
    }

    #[inline(always)]
    fn set_images(&mut self, from: &Level, to: &Level, field: &Field) {
        let (h, w) = (field.h, field.w);
        warp(to, field, &mut self.mean);
        for y in 0..h {
            for (base, values) in self.base.iter_mut().zip([&field.u, &field.v]) {
                base.row_mut(y).copy_from_slice(&values[y * w..][..w]);
            }
            let source = from.from(y as isize, 0);
            for x in (0..w).step_by(LANES) {
                let place = self.mean.place(y as isize, x as isize);
                let (source, target) = (load(source, x), load(&self.mean.values, place));
                store(&mut self.t.values, place, lanes(|i| target[i] - source[i]));
                let mean = lanes(|i| 0.5 * (target[i] + source[i]));
                store(&mut self.mean.values, place, mean);
            }
        }
        let [u, v] = &mut self.base;
        for plane in [&mut self.mean, &mut self.t, u, v] {
            plane.extend();
        }
    }

    /// Sets up row `y` of `h`; those above it are there.
    #[inline(always)]
    fn set_row(&mut self, y: usize, h: usize, scratch: &mut Scratch) {
        let Scratch {
            rows,
            right,
            above,
            below,
        } = scratch;
        let (at, w) = (y as isize, self.mean.w);
        std::mem::swap(above, below);
        for x in (0..w).step_by(LANES) {
            let weights = self.smoothness(at, x as isize);
            store(&mut right.0, LANES + x, weights);
            store(&mut below.0, LANES + x, weights);
        }
        right.0[LANES + w - 1] = 0.0;
        if y + 1 == h {
            below.0.fill(0.0);
        }
        for x in (0..w).step_by(LANES) {
            let (a, b) = self.data(at, x as isize);
            let place = LANES + x;
            let left = load(&right.0, place - 1);
            let (right, above, below) = (
                load(&right.0, place),
                load(&above.0, place),
                load(&below.0, place),
            );
            let mut inverse = [[0.0; LANES]; 3];
            for i in 0..LANES {
                let hold = (left[i] + right[i]) + (above[i] + below[i]);
                let (p, q, r) = (a[0][i] + hold, a[1][i], a[2][i] + hold);
                let over = 1.0 / (p * r - q * q);
                inverse[0][i] = over * r;
                inverse[1][i] = -over * q;
                inverse[2][i] = over * p;
            }
            for (row, values) in rows.iter_mut().zip(inverse.into_iter().chain(b)) {
                store(&mut row.0, place, values);
            }
        }
        let halves = self.inverse.iter_mut().chain(&mut self.b);
        for (halves, row) in halves.zip(&mut *rows) {
            halves.set_row(y, row.finish(w));
        }
        self.right.set_row(y, right.finish(w));
        self.below.set_row(y, below.finish(w));
        for (flow, base) in self.flow.iter_mut().zip(&mut self.base) {
            rows[0].0[LANES..][..w].copy_from_slice(base.row_mut(y));
            flow.set_row(y, rows[0].finish(w));
        }
    }

    /// αΨ′ of the smoothness.
    #[inline(always)]
    fn smoothness(&self, y: isize, x: isize) -> Lanes {
        let [u, v] = &self.base;
        let (ur, ub) = (u.load(y, x + 1), u.load(y + 1, x));
        let (vr, vb) = (v.load(y, x + 1), v.load(y + 1, x));
        let (u, v) = (u.load(y, x), v.load(y, x));
        lanes(|i| {
            let (ux, uy, vx, vy) = (ur[i] - u[i], ub[i] - u[i], vr[i] - v[i], vb[i] - v[i]);
            ALPHA * inverse_root((ux * ux + uy * uy) + (vx * vx + vy * vy) + EPSILON_SQUARED)
        })
    }

    /// A (xx, xy, yy) and b of the data terms.
    #[inline(always)]
    fn data(&self, y: isize, x: isize) -> ([Lanes; 3], [Lanes; 2]) {
        let (mean, t) = (&self.mean, &self.t);
        let (u, v) = (self.base[0].load(y, x), self.base[1].load(y, x));
        let (m, it) = (mean.load(y, x), t.load(y, x));
        let (ml, mr) = (mean.load(y, x - 1), mean.load(y, x + 1));
        let (ma, mb) = (mean.load(y - 1, x), mean.load(y + 1, x));
        let (mll, mrr) = (mean.load(y, x - 2), mean.load(y, x + 2));
        let (maa, mbb) = (mean.load(y - 2, x), mean.load(y + 2, x));
        let (mal, mar) = (mean.load(y - 1, x - 1), mean.load(y - 1, x + 1));
        let (mbl, mbr) = (mean.load(y + 1, x - 1), mean.load(y + 1, x + 1));
        let (tl, tr) = (t.load(y, x - 1), t.load(y, x + 1));
        let (ta, tb) = (t.load(y - 1, x), t.load(y + 1, x));
        let mut a = [[0.0; LANES]; 3];
        let mut b = [[0.0; LANES]; 2];
        for i in 0..LANES {
            let (ix, iy) = (0.5 * (mr[i] - ml[i]), 0.5 * (mb[i] - ma[i]));
            let ixx = 0.25 * ((mrr[i] - m[i]) - (m[i] - mll[i]));
            let iyy = 0.25 * ((mbb[i] - m[i]) - (m[i] - maa[i]));
            let ixy = 0.25 * ((mbr[i] - mbl[i]) - (mar[i] - mal[i]));
            let (it, ixt, iyt) = (it[i], 0.5 * (tr[i] - tl[i]), 0.5 * (tb[i] - ta[i]));

            // With each term over its gradient's square n, Ψ′ / n = 1 / √(n (rest² + ε² n)).
            let n = ix * ix + iy * iy + ZETA_SQUARED;
            let weight = DELTA * inverse_root(n * (it * it + EPSILON_SQUARED * n));
            // The same for the gradient, whose two parts have a Ψ in common.
            let nx = ixx * ixx + ixy * ixy + ZETA_SQUARED;
            let ny = iyy * iyy + ixy * ixy + ZETA_SQUARED;
            let rest = ixt * ixt * ny + iyt * iyt * nx + EPSILON_SQUARED * nx * ny;
            let gradient = GAMMA * inverse_root(nx * ny * rest);
            let (weight_x, weight_y) = (gradient * ny, gradient * nx);

            // What the differences would be without any flow.
            let t = it - ix * u[i] - iy * v[i];
            let xt = ixt - ixx * u[i] - ixy * v[i];
            let yt = iyt - ixy * u[i] - iyy * v[i];
            let (wx, wy) = (weight * ix, weight * iy);
            let (wxx, wxy) = (weight_x * ixx, weight_x * ixy);
            let (wyx, wyy) = (weight_y * ixy, weight_y * iyy);
            a[0][i] = wx * ix + wxx * ixx + wyx * ixy;
            a[1][i] = wx * iy + wxx * ixy + wyx * iyy;
            a[2][i] = wy * iy + wxy * ixy + wyy * iyy;
            b[0][i] = -(wx * t + wxx * xt + wyx * yt);
            b[1][i] = -(wy * t + wxy * xt + wyy * yt);
        }
        (a, b)
    }

    /// Relaxes the pixels of a row whose columns are even (0) or odd (1).
    #[inline(always)]
    fn relax(&mut self, y: isize, odd: usize) {
        let [flow_u, flow_v] = &mut self.flow;
        // Of an even column the right neighbour has the same place in its half, of an odd one the
        // left.
        let beside = |halves: &Halves| halves.place(y, 1 - odd) + odd;
        let band = &self.right;
        let (own, own_right) = (band.place(y, odd), beside(band));
        let own_above = band.place(y - 1, odd);
        let (here, right) = (flow_u.place(y, odd), beside(flow_u));
        let (above, below) = (flow_u.place(y - 1, odd), flow_u.place(y + 1, odd));
        for x in (0..band.len - LANES).step_by(LANES) {
            let (own, own_left, own_above) = (own + x, own_right + x - 1, own_above + x);
            let (wl, wr) = (
                load(&self.right.values, own_left),
                load(&self.right.values, own),
            );
            let (wa, wb) = (
                load(&self.below.values, own_above),
                load(&self.below.values, own),
            );
            let (here, left, right) = (here + x, right + x - 1, right + x);
            let (above, below) = (above + x, below + x);
            let (ul, ur) = (load(&flow_u.values, left), load(&flow_u.values, right));
            let (ua, ub) = (load(&flow_u.values, above), load(&flow_u.values, below));
            let (vl, vr) = (load(&flow_v.values, left), load(&flow_v.values, right));
            let (va, vb) = (load(&flow_v.values, above), load(&flow_v.values, below));
            let (u, v) = (load(&flow_u.values, here), load(&flow_v.values, here));
            let (b1, b2) = (load(&self.b[0].values, own), load(&self.b[1].values, own));
            let xx = load(&self.inverse[0].values, own);
            let xy = load(&self.inverse[1].values, own);
            let yy = load(&self.inverse[2].values, own);
            let (mut new_u, mut new_v) = ([0.0; LANES], [0.0; LANES]);
            for i in 0..LANES {
                let s = b1[i] + (wl[i] * ul[i] + wr[i] * ur[i]) + (wa[i] * ua[i] + wb[i] * ub[i]);
                let t = b2[i] + (wl[i] * vl[i] + wr[i] * vr[i]) + (wa[i] * va[i] + wb[i] * vb[i]);
                new_u[i] = u[i] + OMEGA * (xx[i] * s + xy[i] * t - u[i]);
                new_v[i] = v[i] + OMEGA * (xy[i] * s + yy[i] * t - v[i]);
            }
            store(&mut flow_u.values, here, new_u);
            store(&mut flow_v.values, here, new_v);
        }
    }
}

/// Improves the flow of a level. In each round the image is moved and the system set up anew.
pub fn refine(from: &Level, to: &Level, field: &mut Field, rounds: usize) {
    Arch::new().dispatch(Refine {
        from,
        to,
        field,
        rounds,
    });
}

/// A function of its own, which is compiled for each kind of vector unit.
struct Refine<'a> {
    from: &'a Level,
    to: &'a Level,
    field: &'a mut Field,
    rounds: usize,
}

impl pulp::NullaryFnOnce for Refine<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        solve(self.from, self.to, self.field, self.rounds);
    }
}

#[inline(always)]
fn solve(from: &Level, to: &Level, field: &mut Field, rounds: usize) {
    let (h, w) = (field.h, field.w);
    let mut system = System::new(h, w);
    let mut scratch = Scratch::new(w);
    for _ in 0..rounds {
        system.set_images(from, to, field);
        system.below.clear_border();
        for front in 0..h + HALF_SWEEPS {
            if front < h {
                system.set_row(front, h, &mut scratch);
            }
            for half in 0..HALF_SWEEPS.min(front) {
                let y = front - 1 - half;
                if y < h {
                    system.relax(y as isize, (y + half) % 2);
                }
            }
        }
        for (values, flow) in [&mut field.u, &mut field.v].into_iter().zip(&system.flow) {
            for (y, values) in values.chunks_exact_mut(w).enumerate() {
                flow.copy_row(y, values);
            }
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The variational refinement of a dense flow (Kroeger et al. 2016, section 2.3, after Brox, Bruhn,
//! Papenberg and Weickert, "High accuracy optical flow estimation based on a theory for warping",
//! ECCV 2004): brightness and gradient constancy and smoothness, with robust penalisers.
//!
//! It minimises δ Σ Ψ(luma) + γ Σ Ψ(gradient) + α Σ Ψ(|∇u|² + |∇v|²) with Ψ(x²) = √(x² + ε²) over the
//! flow w. Linearised around the flow so far, each term is a square of weight Ψ′, so that w solves a
//! sparse linear system: at each pixel (A + Σ weights) w = b + Σ weights · neighbours.

use super::bilinear::loose_floor;
use super::flow::Field;
use super::lanes::{LANES, Lanes, lanes, load, store};
use super::planes::{PaddedRow, Plane, RedBlackRows};
use super::pyramid::{Level, PAD};
use pulp::{Arch, NullaryFnOnce};

/// δ, γ and α. The paper's are 5, 10 and 10. A smaller weight of the luma tolerates a flash, and the
/// field may be smoother since patches at half the image's size follow its details already.
const DELTA: f32 = 1.0;
const GAMMA: f32 = 10.0;
const ALPHA: f32 = 20.0;

/// ε² of the penaliser. With the usual 1e-6, so few sweeps converge less far.
const EPSILON_SQUARED: f32 = 1e-3;

/// ζ² of the constancy terms' normalisation (the paper's ζ): gradients below ζ, in luma per pixel, count
/// less.
const ZETA_SQUARED: f32 = 0.01;

/// Sweeps of red-black SOR over each linear system, and their relaxation factor ω.
const SWEEPS: usize = 5;
const OMEGA: f32 = 1.6;

/// All half-sweeps, one for each colour, run as a wavefront: each follows the one before it by a row,
/// and the first follows the set-up of the system. So only a band of so many rows of the system is
/// needed at a time, which stays in the cache.
const HALF_SWEEPS: usize = 2 * SWEEPS;
/// Rows of the level in that band.
const BAND: usize = (HALF_SWEEPS + 2).next_power_of_two();

/// Warps `to` by the flow, bilinearly.
#[inline(always)]
fn warp(to: &Level, field: &Field, plane: &mut Plane) {
    let w = field.w;
    let last_y = (field.h + 2 * PAD - 2) as f32;
    let last_x = (w + 2 * PAD - 2) as f32;
    let stride = to.stride();
    let values = to.slice_from(-(PAD as isize), -(PAD as isize));
    for y in 0..field.h {
        let (mut u, mut v) = ([0.0; LANES], [0.0; LANES]);
        for x in (0..w).step_by(LANES) {
            let count = LANES.min(w - x);
            let start = y * w + x;
            u[..count].copy_from_slice(&field.u[start..start + count]);
            v[..count].copy_from_slice(&field.v[start..start + count]);
            // The padding ends PAD pixels beyond the edge. All of it replicates the edge, so that clamping
            // to 0.5 gives the same value as clamping to 0.
            let top = (y + PAD) as f32;
            let at_y = lanes(|i| (top + v[i]).clamp(0.5, last_y));
            let at_x = lanes(|i| ((x + PAD) as f32 + i as f32 + u[i]).clamp(0.5, last_x));
            let (mut fy, mut fx, mut indices) = ([0.0; LANES], [0.0; LANES], [0; LANES]);
            for i in 0..LANES {
                let (y0, x0) = (loose_floor(at_y[i]), loose_floor(at_x[i]));
                fy[i] = at_y[i] - y0 as i32 as f32;
                fx[i] = at_x[i] - x0 as i32 as f32;
                indices[i] = y0 * stride as u32 + x0;
            }
            let mut corners = [[0.0; LANES]; 4];
            for i in 0..LANES {
                let values = &values[indices[i] as usize..][..stride + 2];
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
            let index = plane.index(y as isize, x as isize);
            store(&mut plane.values, index, warped);
        }
    }
}

/// The linear system of one level. What is said to be of a band keeps [`BAND`] rows at a time.
struct System {
    /// The mean luma of the source and the warped target, whose derivatives are taken.
    mean: Plane,
    /// The temporal derivative: the warped target less the source.
    temporal: Plane,
    /// The flow u and v around which the terms are linearised.
    base: [Plane; 2],
    /// The flow that solves the system, with a row above and below the image.
    flow: [RedBlackRows; 2],
    /// Of a band, (A + Σ weights)⁻¹: xx, xy, yy.
    inverse: [RedBlackRows; 3],
    /// Of a band, b.
    b: [RedBlackRows; 2],
    /// Of a band, the smoothness weights between a pixel and its neighbours on the right and below; 0
    /// at the edge.
    weight_right: RedBlackRows,
    weight_below: RedBlackRows,
}

/// A row of the system in column order, before it is split by colour.
struct SystemRow {
    /// The inverse and b.
    rows: [PaddedRow; 5],
    /// The smoothness weights to the right, and between this row and those above and below it.
    right: PaddedRow,
    above: PaddedRow,
    below: PaddedRow,
}

impl SystemRow {
    fn new(w: usize) -> Self {
        let row = || PaddedRow::new(w);
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
        let flow = || RedBlackRows::new(h + 2, w);
        let band = || RedBlackRows::new(BAND, w);
        Self {
            mean: plane(),
            temporal: plane(),
            base: [plane(), plane()],
            flow: [flow(), flow()],
            inverse: [band(), band(), band()],
            b: [band(), band()],
            weight_right: band(),
            weight_below: band(),
        }
    }

    /// Sets what does not depend on the solution: the images' mean and difference under the flow of
    /// `field`, and that flow.
    #[inline(always)]
    fn set_images(&mut self, from: &Level, to: &Level, field: &Field) {
        let (h, w) = (field.h, field.w);
        warp(to, field, &mut self.mean);
        for y in 0..h {
            for (base, values) in self.base.iter_mut().zip([&field.u, &field.v]) {
                base.row_mut(y).copy_from_slice(&values[y * w..][..w]);
            }
            let source = from.slice_from(y as isize, 0);
            for x in (0..w).step_by(LANES) {
                let index = self.mean.index(y as isize, x as isize);
                let (source, target) = (load(source, x), load(&self.mean.values, index));
                let temporal = lanes(|i| target[i] - source[i]);
                store(&mut self.temporal.values, index, temporal);
                let mean = lanes(|i| 0.5 * (target[i] + source[i]));
                store(&mut self.mean.values, index, mean);
            }
        }
        let [u, v] = &mut self.base;
        for plane in [&mut self.mean, &mut self.temporal, u, v] {
            plane.replicate_edge();
        }
    }

    /// Sets up row `y` of `h`. The one above it has to be set up already, with the same `scratch`.
    #[inline(always)]
    fn set_row(&mut self, y: usize, h: usize, scratch: &mut SystemRow) {
        let SystemRow {
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
            let start = LANES + x;
            let left = load(&right.0, start - 1);
            let (right, above, below) = (
                load(&right.0, start),
                load(&above.0, start),
                load(&below.0, start),
            );
            let mut inverse = [[0.0; LANES]; 3];
            for i in 0..LANES {
                let weights = (left[i] + right[i]) + (above[i] + below[i]);
                let (p, q, r) = (a[0][i] + weights, a[1][i], a[2][i] + weights);
                let inverse_determinant = 1.0 / (p * r - q * q);
                inverse[0][i] = inverse_determinant * r;
                inverse[1][i] = -inverse_determinant * q;
                inverse[2][i] = inverse_determinant * p;
            }
            for (row, values) in rows.iter_mut().zip(inverse.into_iter().chain(b)) {
                store(&mut row.0, start, values);
            }
        }
        let bands = self.inverse.iter_mut().chain(&mut self.b);
        for (band, row) in bands.zip(&mut *rows) {
            band.set_row(y, row.zero_padded(w));
        }
        self.weight_right.set_row(y, right.zero_padded(w));
        self.weight_below.set_row(y, below.zero_padded(w));
        for (flow, base) in self.flow.iter_mut().zip(&mut self.base) {
            rows[0].0[LANES..][..w].copy_from_slice(base.row_mut(y));
            flow.set_row(y, rows[0].zero_padded(w));
        }
    }

    /// αΨ′ of the smoothness term, by forward differences.
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

    /// A (xx, xy, yy) and b of the data terms. Of the locals, m is the mean image and t the temporal
    /// derivative, at the neighbours on the left (l), right (r), above (a) and below (b), twice for two
    /// pixels away; ix to iyt are the derivatives of the image by x, y and time.
    #[inline(always)]
    fn data(&self, y: isize, x: isize) -> ([Lanes; 3], [Lanes; 2]) {
        let (mean, temporal) = (&self.mean, &self.temporal);
        let (u, v) = (self.base[0].load(y, x), self.base[1].load(y, x));
        let (m, it) = (mean.load(y, x), temporal.load(y, x));
        let (ml, mr) = (mean.load(y, x - 1), mean.load(y, x + 1));
        let (ma, mb) = (mean.load(y - 1, x), mean.load(y + 1, x));
        let (mll, mrr) = (mean.load(y, x - 2), mean.load(y, x + 2));
        let (maa, mbb) = (mean.load(y - 2, x), mean.load(y + 2, x));
        let (mal, mar) = (mean.load(y - 1, x - 1), mean.load(y - 1, x + 1));
        let (mbl, mbr) = (mean.load(y + 1, x - 1), mean.load(y + 1, x + 1));
        let (tl, tr) = (temporal.load(y, x - 1), temporal.load(y, x + 1));
        let (ta, tb) = (temporal.load(y - 1, x), temporal.load(y + 1, x));
        let mut a = [[0.0; LANES]; 3];
        let mut b = [[0.0; LANES]; 2];
        for i in 0..LANES {
            let (ix, iy) = (0.5 * (mr[i] - ml[i]), 0.5 * (mb[i] - ma[i]));
            let ixx = 0.25 * ((mrr[i] - m[i]) - (m[i] - mll[i]));
            let iyy = 0.25 * ((mbb[i] - m[i]) - (m[i] - maa[i]));
            let ixy = 0.25 * ((mbr[i] - mbl[i]) - (mar[i] - mal[i]));
            let (it, ixt, iyt) = (it[i], 0.5 * (tr[i] - tl[i]), 0.5 * (tb[i] - ta[i]));

            // With the residual r normalised by the squared gradient n, Ψ′ / n = 1 / √(n (r² + ε² n)).
            let n = ix * ix + iy * iy + ZETA_SQUARED;
            let weight = DELTA * inverse_root(n * (it * it + EPSILON_SQUARED * n));
            // The same for gradient constancy, whose two components share a Ψ.
            let nx = ixx * ixx + ixy * ixy + ZETA_SQUARED;
            let ny = iyy * iyy + ixy * ixy + ZETA_SQUARED;
            let squared = ixt * ixt * ny + iyt * iyt * nx + EPSILON_SQUARED * nx * ny;
            let gradient = GAMMA * inverse_root(nx * ny * squared);
            let (weight_x, weight_y) = (gradient * ny, gradient * nx);

            // The linearised residuals at w = 0.
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

    /// Relaxes the pixels in the even (`odd` = 0) or odd (1) columns of a row by one step of SOR: at each,
    /// w ← w + ω ((A + Σ g)⁻¹ (b + Σ g wₙ) − w), where w = (u, v), and g is the smoothness weight between
    /// it and its neighbour n.
    ///
    /// Of the locals, wl, wr, wa and wb are the weights g of the neighbours on the left, right, above and
    /// below, ul to vb the flow of those, and s and t the components of b + Σ g wₙ.
    #[inline(always)]
    fn relax(&mut self, y: isize, odd: usize) {
        let [flow_u, flow_v] = &mut self.flow;
        // The right neighbours' index in the other half: that of the pixel itself for even columns, one
        // more for odd ones.
        let beside = |rows: &RedBlackRows| rows.index(y, 1 - odd) + odd;
        let band = &self.weight_right;
        let (own, own_right) = (band.index(y, odd), beside(band));
        let own_above = band.index(y - 1, odd);
        let (here, right) = (flow_u.index(y, odd), beside(flow_u));
        let (above, below) = (flow_u.index(y - 1, odd), flow_u.index(y + 1, odd));
        for x in (0..band.len - LANES).step_by(LANES) {
            let (own, own_left, own_above) = (own + x, own_right + x - 1, own_above + x);
            let (wl, wr) = (
                load(&self.weight_right.values, own_left),
                load(&self.weight_right.values, own),
            );
            let (wa, wb) = (
                load(&self.weight_below.values, own_above),
                load(&self.weight_below.values, own),
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

/// Refines the flow of a level. For each of the `warps`, the target is warped by the flow so far and
/// the system set up anew.
pub fn refine(from: &Level, to: &Level, field: &mut Field, warps: usize) {
    Arch::new().dispatch(Refine {
        from,
        to,
        field,
        warps,
    });
}

/// [`refine`], dispatched by SIMD instruction set.
struct Refine<'a> {
    from: &'a Level,
    to: &'a Level,
    field: &'a mut Field,
    warps: usize,
}

impl NullaryFnOnce for Refine<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            from,
            to,
            field,
            warps,
        } = self;
        let (h, w) = (field.h, field.w);
        let mut system = System::new(h, w);
        let mut scratch = SystemRow::new(w);
        for _ in 0..warps {
            system.set_images(from, to, field);
            system.weight_below.clear_border();
            for front in 0..h + HALF_SWEEPS {
                if front < h {
                    system.set_row(front, h, &mut scratch);
                }
                for half_sweep in 0..HALF_SWEEPS.min(front) {
                    let y = front - 1 - half_sweep;
                    if y < h {
                        system.relax(y as isize, (y + half_sweep) % 2);
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
}

#[cfg(test)]
mod tests;

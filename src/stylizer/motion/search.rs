// SPDX-License-Identifier: MPL-2.0

//! The inverse search for the patches of one level (Kroeger et al. 2016, section 2.1), and the
//! densification of their displacements to a flow field.

use super::flow::Field;
use super::global::Affine;
use super::pyramid::{Level, PAD};
use pulp::{Scalar256b, Simd, WithSimd};

/// Side of a patch and distance from one to the next, in pixels (θ_ps and, by their overlap, θ_ov of
/// the paper). A row of a patch is one SIMD vector.
const PATCH: usize = 8;
const STRIDE: usize = 4;
/// The stride at levels of more pixels than this, which take most of the time. The end-point error is
/// 0.34 pixels with either.
const LARGE_LEVEL: usize = 1 << 14;
const LARGE_STRIDE: usize = 6;

const PIXELS: f32 = (PATCH * PATCH) as f32;

/// The dominant motion wins if its error exceeds the best one by less than this: a squared luma of 1
/// at each pixel.
const DOMINANT_MARGIN: f32 = PIXELS;

/// Starts closer than this to the best, in pixels, are not tried: the search from them ends in the
/// same minimum.
const MIN_SEPARATION: f32 = 0.25;

/// Steps below this, in pixels, are not evaluated.
const MIN_STEP: f32 = 0.02;

/// Added to the Hessian's diagonal, so that a patch without gradients stays where it is.
const DAMPING: f32 = 64.0;

/// Lower bound of the luma differences by whose inverse patches are weighted. The paper's 1 gives
/// more weight to patches across a motion boundary.
const MIN_DIFFERENCE: f32 = 0.1;

/// The displacement of a patch, and how well its structure constrains that ([`Template::structure`]).
#[derive(Clone, Copy, Default)]
pub struct PatchFlow {
    pub u: f32,
    pub v: f32,
    pub structure: f32,
}

/// The order in which patches are searched for: forward, displacements propagate to the right and
/// down; backward, to the left and up.
#[derive(Clone, Copy)]
pub enum ScanOrder {
    Forward,
    Backward,
}

/// The patches of one level.
pub struct PatchSearch<'a> {
    from: &'a Level,
    to: &'a Level,
    stride: usize,
    /// Patches down and across.
    rows: usize,
    columns: usize,
}

/// The number of patches along a side, where the last ends.
fn count(side: usize, stride: usize) -> usize {
    (side - PATCH).div_ceil(stride) + 1
}

impl<'a> PatchSearch<'a> {
    pub fn new(from: &'a Level, to: &'a Level) -> Self {
        let large = from.h * from.w > LARGE_LEVEL;
        let stride = if large { LARGE_STRIDE } else { STRIDE };
        Self {
            from,
            to,
            stride,
            rows: count(from.h, stride),
            columns: count(from.w, stride),
        }
    }

    /// The pixel (y, x) at the top left of a patch.
    #[inline(always)]
    fn origin(&self, row: usize, column: usize) -> (usize, usize) {
        let start = |index: usize, side: usize| (index * self.stride).min(side - PATCH);
        (start(row, self.from.h), start(column, self.from.w))
    }

    /// The centre (y, x) of each patch.
    pub fn centres(&self) -> impl Iterator<Item = (f32, f32)> {
        let centre = (PATCH - 1) as f32 / 2.0;
        let patches =
            (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| (row, column)));
        patches.map(move |(row, column)| {
            let (y, x) = self.origin(row, column);
            (y as f32 + centre, x as f32 + centre)
        })
    }

    /// Updates the displacement of each patch by a search from the best of its own, the dominant
    /// motion and those of the neighbours that were searched for before it.
    pub fn run(
        &self,
        order: ScanOrder,
        patches: &mut [PatchFlow],
        dominant: Option<&Affine>,
        densifier: Option<&mut Densifier>,
    ) {
        let pass = SearchPass {
            search: self,
            order,
            patches,
            dominant,
            densifier,
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, pass);
        }
        Simd::vectorize(Scalar256b, pass);
    }
}

/// [`PatchSearch::run`], compiled for vectors of eight.
struct SearchPass<'a> {
    search: &'a PatchSearch<'a>,
    order: ScanOrder,
    patches: &'a mut [PatchFlow],
    dominant: Option<&'a Affine>,
    densifier: Option<&'a mut Densifier>,
}

impl WithSimd for SearchPass<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            search,
            order,
            patches,
            dominant,
            mut densifier,
        } = self;
        let PatchSearch {
            to, rows, columns, ..
        } = *search;
        let last = patches.len() - 1;
        for step in 0..=last {
            let index = match order {
                ScanOrder::Forward => step,
                ScanOrder::Backward => last - step,
            };
            let (row, column) = (index / columns, index % columns);
            let neighbours = match order {
                ScanOrder::Forward => [
                    (column > 0).then(|| index - 1),
                    (row > 0).then(|| index - columns),
                ],
                ScanOrder::Backward => [
                    (column + 1 < columns).then(|| index + 1),
                    (row + 1 < rows).then(|| index + columns),
                ],
            };
            let (y, x) = search.origin(row, column);
            let template = Template::new(simd, search.from, y, x);
            let start = &patches[index];
            let mut best = Candidate::new(simd, to, &template, start.u, start.v);
            let mut others = [None; 3];
            if let Some(dominant) = dominant {
                let centre = (PATCH - 1) as f32 / 2.0;
                let (u, v) = dominant.at(y as f32 + centre, x as f32 + centre);
                others[0] = Some((u, v, DOMINANT_MARGIN));
            }
            for (other, neighbour) in others[1..].iter_mut().zip(neighbours) {
                if let Some(neighbour) = neighbour {
                    let PatchFlow { u, v, .. } = patches[neighbour];
                    *other = Some((u, v, 0.0));
                }
            }
            for (u, v, margin) in others.into_iter().flatten() {
                if (u - best.u).abs().max((v - best.v).abs()) >= MIN_SEPARATION {
                    let candidate = Candidate::new(simd, to, &template, u, v);
                    if candidate.error < best.error + margin {
                        best = candidate;
                    }
                }
            }
            let best = best.step(simd, to, &template);
            patches[index] = PatchFlow {
                u: best.u,
                v: best.v,
                structure: template.structure,
            };
            if let Some(densifier) = &mut densifier {
                densifier.add(simd, to, &template, &best);
            }
        }
    }
}

#[inline(always)]
fn load<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&values[at..at + PATCH]).0[0]
}

/// A patch of the source image, with what its search needs of it.
struct Template<S: Simd> {
    /// Its top left pixel.
    y: usize,
    x: usize,
    luma: [S::f32s; PATCH],
    dx: [S::f32s; PATCH],
    dy: [S::f32s; PATCH],
    /// The means of `dx` and `dy`.
    mean: [f32; 2],
    /// det H / tr H, between half of H's smaller eigenvalue and all of it.
    structure: f32,
    /// The inverse of H = Σ ∇I ∇Iᵀ, of zero-mean derivatives and damped: xx, xy, yy.
    inverse_hessian: [f32; 3],
}

impl<S: Simd> Template<S> {
    #[inline(always)]
    fn new(simd: S, from: &Level, y: usize, x: usize) -> Self {
        let stride = from.stride();
        let values = from.slice_from(y as isize - 1, x as isize - 1);
        let zero = simd.splat_f32s(0.0);
        let half = simd.splat_f32s(0.5);
        let (mut luma, mut dx, mut dy) = ([zero; PATCH], [zero; PATCH], [zero; PATCH]);
        let [mut x_, mut y_, mut xx, mut xy, mut yy] = [zero; 5];
        let mut above = load::<S>(values, 1);
        let mut here = load::<S>(values, stride + 1);
        for i in 0..PATCH {
            let left = load::<S>(values, (i + 1) * stride);
            let right = load::<S>(values, (i + 1) * stride + 2);
            let below = load::<S>(values, (i + 2) * stride + 1);
            let across = simd.mul_f32s(half, simd.sub_f32s(right, left));
            let down = simd.mul_f32s(half, simd.sub_f32s(below, above));
            luma[i] = here;
            dx[i] = across;
            dy[i] = down;
            x_ = simd.add_f32s(x_, across);
            y_ = simd.add_f32s(y_, down);
            xx = simd.mul_add_e_f32s(across, across, xx);
            xy = simd.mul_add_e_f32s(across, down, xy);
            yy = simd.mul_add_e_f32s(down, down, yy);
            above = here;
            here = below;
        }
        let (sum_x, sum_y) = (simd.reduce_sum_f32s(x_), simd.reduce_sum_f32s(y_));
        let mean = [sum_x / PIXELS, sum_y / PIXELS];
        let xx = simd.reduce_sum_f32s(xx) - sum_x * mean[0] + DAMPING;
        let xy = simd.reduce_sum_f32s(xy) - sum_x * mean[1];
        let yy = simd.reduce_sum_f32s(yy) - sum_y * mean[1] + DAMPING;
        let determinant = xx * yy - xy * xy;
        Self {
            y,
            x,
            luma,
            dx,
            dy,
            mean,
            structure: determinant / (xx + yy),
            inverse_hessian: [yy / determinant, -xy / determinant, xx / determinant],
        }
    }
}

/// The square of the target image at a displacement, with one pixel more to interpolate from.
struct Window<'a, S: Simd> {
    values: &'a [f32],
    stride: usize,
    fy: S::f32s,
    fx: S::f32s,
}

impl<'a, S: Simd> Window<'a, S> {
    #[inline(always)]
    fn new(simd: S, to: &'a Level, template: &Template<S>, u: f32, v: f32) -> Self {
        // The padding ends PAD pixels beyond the edge.
        let last = |side: usize| (side + 2 * PAD - PATCH - 2) as f32;
        let y = ((template.y + PAD) as f32 + v).clamp(0.0, last(to.h));
        let x = ((template.x + PAD) as f32 + u).clamp(0.0, last(to.w));
        let (y0, x0) = (y as u32, x as u32);
        let stride = to.stride();
        let values = to.slice_from(-(PAD as isize), -(PAD as isize));
        let start = y0 as usize * stride + x0 as usize;
        Self {
            values: &values[start..start + PATCH * stride + PATCH + 1],
            stride,
            fy: simd.splat_f32s(y - y0 as f32),
            fx: simd.splat_f32s(x - x0 as f32),
        }
    }

    /// Row `i`, interpolated horizontally.
    #[inline(always)]
    fn lerp_x(&self, simd: S, i: usize) -> S::f32s {
        let left = load::<S>(self.values, i * self.stride);
        let right = load::<S>(self.values, i * self.stride + 1);
        simd.mul_add_e_f32s(self.fx, simd.sub_f32s(right, left), left)
    }

    /// A row of the patch, from the horizontally interpolated ones above and below it.
    #[inline(always)]
    fn lerp_y(&self, simd: S, above: S::f32s, below: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(self.fy, simd.sub_f32s(below, above), above)
    }
}

/// A displacement of a template, with the residual I₁ − I₀ that it leaves.
#[derive(Clone, Copy)]
struct Candidate {
    u: f32,
    v: f32,
    /// The residual's mean.
    mean: f32,
    /// Zero-mean SSD: Σ (I₁ − I₀ − mean)².
    error: f32,
    /// Σ ∇I (I₁ − I₀), of zero-mean derivatives.
    gradient: [f32; 2],
}

impl Candidate {
    #[inline(always)]
    fn new<S: Simd>(simd: S, to: &Level, template: &Template<S>, u: f32, v: f32) -> Self {
        let window = Window::new(simd, to, template, u, v);
        let [mut total, mut squares, mut x, mut y] = [simd.splat_f32s(0.0); 4];
        let mut above = window.lerp_x(simd, 0);
        for i in 0..PATCH {
            let below = window.lerp_x(simd, i + 1);
            let difference = simd.sub_f32s(window.lerp_y(simd, above, below), template.luma[i]);
            total = simd.add_f32s(total, difference);
            squares = simd.mul_add_e_f32s(difference, difference, squares);
            x = simd.mul_add_e_f32s(difference, template.dx[i], x);
            y = simd.mul_add_e_f32s(difference, template.dy[i], y);
            above = below;
        }
        let total = simd.reduce_sum_f32s(total);
        let [mean_x, mean_y] = template.mean;
        Self {
            u,
            v,
            mean: total / PIXELS,
            error: simd.reduce_sum_f32s(squares) - total * total / PIXELS,
            gradient: [
                simd.reduce_sum_f32s(x) - mean_x * total,
                simd.reduce_sum_f32s(y) - mean_y * total,
            ],
        }
    }

    /// The candidate after one Gauss-Newton step (the inverse search), if its error is smaller.
    /// More steps lead patches astray; coarse-to-fine and the refinement bring the rest.
    #[inline(always)]
    fn step<S: Simd>(self, simd: S, to: &Level, template: &Template<S>) -> Self {
        let ([xx, xy, yy], [x, y]) = (template.inverse_hessian, self.gradient);
        let (du, dv) = (xx * x + xy * y, xy * x + yy * y);
        if du.abs().max(dv.abs()) > PATCH as f32 || du * du + dv * dv < MIN_STEP * MIN_STEP {
            return self;
        }
        let candidate = Self::new(simd, to, template, self.u - du, self.v - dv);
        if candidate.error < self.error {
            candidate
        } else {
            self
        }
    }
}

/// Averages the displacements of the patches over each pixel, weighted by the inverse of the residual
/// that they leave there (the densification).
pub struct Densifier {
    /// Sums of weighted displacements.
    field: Field,
    weights: Vec<f32>,
}

impl Densifier {
    pub fn new(h: usize, w: usize) -> Self {
        Self {
            field: Field::zeros(h, w),
            weights: vec![0.0; h * w],
        }
    }

    #[inline(always)]
    fn add<S: Simd>(&mut self, simd: S, to: &Level, template: &Template<S>, found: &Candidate) {
        let window = Window::new(simd, to, template, found.u, found.v);
        let (u, v) = (simd.splat_f32s(found.u), simd.splat_f32s(found.v));
        let mean = simd.splat_f32s(found.mean);
        let (one, floor) = (simd.splat_f32s(1.0), simd.splat_f32s(MIN_DIFFERENCE));
        let mut above = window.lerp_x(simd, 0);
        for i in 0..PATCH {
            let below = window.lerp_x(simd, i + 1);
            let difference = simd.sub_f32s(window.lerp_y(simd, above, below), template.luma[i]);
            above = below;
            let difference = simd.abs_f32s(simd.sub_f32s(difference, mean));
            let weight = simd.div_f32s(one, simd.max_f32s(difference, floor));
            let start = (template.y + i) * self.field.w + template.x;
            let row = start..start + PATCH;
            let sum = &mut S::as_mut_simd_f32s(&mut self.field.u[row.clone()]).0[0];
            *sum = simd.mul_add_e_f32s(weight, u, *sum);
            let sum = &mut S::as_mut_simd_f32s(&mut self.field.v[row.clone()]).0[0];
            *sum = simd.mul_add_e_f32s(weight, v, *sum);
            let sum = &mut S::as_mut_simd_f32s(&mut self.weights[row]).0[0];
            *sum = simd.add_f32s(*sum, weight);
        }
    }

    /// The weighted means.
    pub fn into_field(self) -> Field {
        let Self { mut field, weights } = self;
        for values in [&mut field.u, &mut field.v] {
            for (value, weight) in values.iter_mut().zip(&weights) {
                *value /= weight;
            }
        }
        field
    }
}

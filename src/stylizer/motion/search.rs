// SPDX-License-Identifier: MPL-2.0

//! The inverse search for the patches of one level (Kroeger et al. 2016, section 2.1), and the dense
//! field that they make.

use super::flow::{Affine, Field};
use super::pyramid::{Level, PAD};
use pulp::{Scalar256b, Simd, WithSimd};

/// Side of a patch, and the distance from one to the next (θ_ps and θ_ov of the paper). A row of a
/// patch is a vector.
const PATCH: usize = 8;
const STRIDE: usize = 4;
/// The same for levels of more pixels than this, where most of the time would go: with either, known
/// motions are missed by 0.34 pixels.
const LARGE: usize = 1 << 14;
const LARGE_STRIDE: usize = 6;

const PIXELS: f32 = (PATCH * PATCH) as f32;

/// A patch that looks this much less like its template may still be it: by a level of luma at each
/// pixel.
const INDIFFERENT: f32 = PIXELS;

/// Movements closer than this, in pixels, lead a search to the same place.
const SAME: f32 = 0.25;

/// A step below this, in pixels, is not worth a look.
const MIN_STEP: f32 = 0.02;

/// Added to the squares of a patch's gradients, so that one without any stays where it is.
const DAMPING: f32 = 64.0;

/// Differences of luma below this count alike when patches are averaged. The paper's 1 lets patches
/// across an edge of the motion count for more.
const MIN_DIFFERENCE: f32 = 0.1;

/// Where a patch was found, and how much structure it has: its gradients' squares.
#[derive(Clone, Copy, Default)]
pub struct Found {
    pub u: f32,
    pub v: f32,
    pub structure: f32,
}

#[derive(Clone, Copy)]
pub enum Order {
    Forward,
    Backward,
}

/// The patches of one level.
pub struct Search<'a> {
    from: &'a Level,
    to: &'a Level,
    stride: usize,
    /// Patches down and across.
    rows: usize,
    columns: usize,
}

/// Places of patches along a side: the last ends with it.
fn count(side: usize, stride: usize) -> usize {
    (side - PATCH).div_ceil(stride) + 1
}

impl<'a> Search<'a> {
    pub fn new(from: &'a Level, to: &'a Level) -> Self {
        let large = from.h * from.w > LARGE;
        let stride = if large { LARGE_STRIDE } else { STRIDE };
        Self {
            from,
            to,
            stride,
            rows: count(from.h, stride),
            columns: count(from.w, stride),
        }
    }

    /// The row and column of the image where a patch begins.
    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> (usize, usize) {
        let within = |index: usize, side: usize| (index * self.stride).min(side - PATCH);
        (within(row, self.from.h), within(column, self.from.w))
    }

    /// The centre of each patch, down and across.
    pub fn centres(&self) -> impl Iterator<Item = (f32, f32)> {
        let centre = (PATCH - 1) as f32 / 2.0;
        let patches =
            (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| (row, column)));
        patches.map(move |(row, column)| {
            let (y, x) = self.place(row, column);
            (y as f32 + centre, x as f32 + centre)
        })
    }

    /// Searches for each patch from where it was found, the dominant motion or where the neighbours
    /// before it are, whichever looks most like it.
    pub fn run(
        &self,
        order: Order,
        found: &mut [Found],
        dominant: Option<&Affine>,
        sums: Option<&mut Sums>,
    ) {
        let run = Run {
            search: self,
            order,
            found,
            dominant,
            sums,
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, run);
        }
        Simd::vectorize(Scalar256b, run);
    }
}

/// A function of its own, which is compiled for vectors of eight.
struct Run<'a> {
    search: &'a Search<'a>,
    order: Order,
    found: &'a mut [Found],
    dominant: Option<&'a Affine>,
    sums: Option<&'a mut Sums>,
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            search,
            order,
            found,
            dominant,
            mut sums,
        } = self;
        let Search {
            to, rows, columns, ..
        } = *search;
        let last = found.len() - 1;
        for step in 0..=last {
            let index = match order {
                Order::Forward => step,
                Order::Backward => last - step,
            };
            let (row, column) = (index / columns, index % columns);
            let neighbours = match order {
                Order::Forward => [
                    (column > 0).then(|| index - 1),
                    (row > 0).then(|| index - columns),
                ],
                Order::Backward => [
                    (column + 1 < columns).then(|| index + 1),
                    (row + 1 < rows).then(|| index + columns),
                ],
            };
            let (y, x) = search.place(row, column);
            let template = Template::new(simd, search.from, y, x);
            let start = &found[index];
            let mut best = Patch::new(simd, to, &template, start.u, start.v);
            let mut others = [None; 3];
            if let Some(dominant) = dominant {
                let centre = (PATCH - 1) as f32 / 2.0;
                let (u, v) = dominant.at(y as f32 + centre, x as f32 + centre);
                others[0] = Some((u, v, INDIFFERENT));
            }
            for (other, neighbour) in others[1..].iter_mut().zip(neighbours) {
                if let Some(neighbour) = neighbour {
                    let Found { u, v, .. } = found[neighbour];
                    *other = Some((u, v, 0.0));
                }
            }
            for (u, v, margin) in others.into_iter().flatten() {
                if (u - best.u).abs().max((v - best.v).abs()) >= SAME {
                    let patch = Patch::new(simd, to, &template, u, v);
                    if patch.error < best.error + margin {
                        best = patch;
                    }
                }
            }
            let best = best.descend(simd, to, &template);
            found[index] = Found {
                u: best.u,
                v: best.v,
                structure: template.structure,
            };
            if let Some(sums) = &mut sums {
                sums.add(simd, to, &template, &best);
            }
        }
    }
}

#[inline(always)]
fn load<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&values[at..at + PATCH]).0[0]
}

/// What stays the same while a patch is searched for.
struct Template<S: Simd> {
    y: usize,
    x: usize,
    luma: [S::f32s; PATCH],
    dx: [S::f32s; PATCH],
    dy: [S::f32s; PATCH],
    /// The means of `dx` and `dy`.
    mean: [f32; 2],
    /// Σ |∇I|², of the derivatives less their means.
    structure: f32,
    /// The inverse of Σ ∇I ∇Iᵀ: xx, xy, yy.
    inverse: [f32; 3],
}

impl<S: Simd> Template<S> {
    #[inline(always)]
    fn new(simd: S, from: &Level, y: usize, x: usize) -> Self {
        let stride = from.stride();
        let values = from.from(y as isize - 1, x as isize - 1);
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
            inverse: [yy / determinant, -xy / determinant, xx / determinant],
        }
    }
}

/// The square of the other image at a movement.
struct Window<'a, S: Simd> {
    values: &'a [f32],
    stride: usize,
    fy: S::f32s,
    fx: S::f32s,
}

impl<'a, S: Simd> Window<'a, S> {
    #[inline(always)]
    fn new(simd: S, to: &'a Level, template: &Template<S>, u: f32, v: f32) -> Self {
        // The edge's repetition ends after PAD pixels.
        let last = |side: usize| (side + 2 * PAD - PATCH - 2) as f32;
        let y = ((template.y + PAD) as f32 + v).clamp(0.0, last(to.h));
        let x = ((template.x + PAD) as f32 + u).clamp(0.0, last(to.w));
        let (y0, x0) = (y as u32, x as u32);
        let stride = to.stride();
        let values = to.from(-(PAD as isize), -(PAD as isize));
        let start = y0 as usize * stride + x0 as usize;
        Self {
            values: &values[start..start + PATCH * stride + PATCH + 1],
            stride,
            fy: simd.splat_f32s(y - y0 as f32),
            fx: simd.splat_f32s(x - x0 as f32),
        }
    }

    /// Row `i`, between the pixels across but not down.
    #[inline(always)]
    fn across(&self, simd: S, i: usize) -> S::f32s {
        let left = load::<S>(self.values, i * self.stride);
        let right = load::<S>(self.values, i * self.stride + 1);
        simd.mul_add_e_f32s(self.fx, simd.sub_f32s(right, left), left)
    }

    /// A row between the pixels, of those above and below it across.
    #[inline(always)]
    fn down(&self, simd: S, above: S::f32s, below: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(self.fy, simd.sub_f32s(below, above), above)
    }
}

/// A patch of the other image, less the template.
#[derive(Clone, Copy)]
struct Patch {
    u: f32,
    v: f32,
    mean: f32,
    /// Σ (I₁ − I₀ − their mean)²
    error: f32,
    /// Σ ∇I (I₁ − I₀), of the derivatives less their means.
    slope: [f32; 2],
}

impl Patch {
    /// The one that lies `u`, `v` from the template's place.
    #[inline(always)]
    fn new<S: Simd>(simd: S, to: &Level, template: &Template<S>, u: f32, v: f32) -> Self {
        let window = Window::new(simd, to, template, u, v);
        let [mut total, mut squares, mut x, mut y] = [simd.splat_f32s(0.0); 4];
        let mut above = window.across(simd, 0);
        for i in 0..PATCH {
            let below = window.across(simd, i + 1);
            let difference = simd.sub_f32s(window.down(simd, above, below), template.luma[i]);
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
            slope: [
                simd.reduce_sum_f32s(x) - mean_x * total,
                simd.reduce_sum_f32s(y) - mean_y * total,
            ],
        }
    }

    /// The patch a Gauss-Newton step away (the inverse compositional search, eq. 3) if it looks more
    /// like the template. One step is enough: the levels and the refinement bring the rest, where
    /// more steps lead patches astray.
    #[inline(always)]
    fn descend<S: Simd>(self, simd: S, to: &Level, template: &Template<S>) -> Self {
        let ([xx, xy, yy], [x, y]) = (template.inverse, self.slope);
        let (du, dv) = (xx * x + xy * y, xy * x + yy * y);
        if du.abs().max(dv.abs()) > PATCH as f32 || du * du + dv * dv < MIN_STEP * MIN_STEP {
            return self;
        }
        let patch = Self::new(simd, to, template, self.u - du, self.v - dv);
        if patch.error < self.error {
            patch
        } else {
            self
        }
    }
}

/// The patches over each pixel, those that look like it there counting most (eq. 6).
pub struct Sums {
    field: Field,
    weights: Vec<f32>,
}

impl Sums {
    pub fn new(h: usize, w: usize) -> Self {
        Self {
            field: Field::zeros(h, w),
            weights: vec![0.0; h * w],
        }
    }

    #[inline(always)]
    fn add<S: Simd>(&mut self, simd: S, to: &Level, template: &Template<S>, patch: &Patch) {
        let window = Window::new(simd, to, template, patch.u, patch.v);
        let (u, v) = (simd.splat_f32s(patch.u), simd.splat_f32s(patch.v));
        let mean = simd.splat_f32s(patch.mean);
        let (one, floor) = (simd.splat_f32s(1.0), simd.splat_f32s(MIN_DIFFERENCE));
        let mut above = window.across(simd, 0);
        for i in 0..PATCH {
            let below = window.across(simd, i + 1);
            let difference = simd.sub_f32s(window.down(simd, above, below), template.luma[i]);
            above = below;
            let difference = simd.abs_f32s(simd.sub_f32s(difference, mean));
            let weight = simd.div_f32s(one, simd.max_f32s(difference, floor));
            let place = (template.y + i) * self.field.w + template.x;
            let row = place..place + PATCH;
            let sum = &mut S::as_mut_simd_f32s(&mut self.field.u[row.clone()]).0[0];
            *sum = simd.mul_add_e_f32s(weight, u, *sum);
            let sum = &mut S::as_mut_simd_f32s(&mut self.field.v[row.clone()]).0[0];
            *sum = simd.mul_add_e_f32s(weight, v, *sum);
            let sum = &mut S::as_mut_simd_f32s(&mut self.weights[row]).0[0];
            *sum = simd.add_f32s(*sum, weight);
        }
    }

    pub fn mean(self) -> Field {
        let Self { mut field, weights } = self;
        for values in [&mut field.u, &mut field.v] {
            for (value, weight) in values.iter_mut().zip(&weights) {
                *value /= weight;
            }
        }
        field
    }
}

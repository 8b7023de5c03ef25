// SPDX-License-Identifier: MPL-2.0

//! Where a flow can be relied on: the forward-backward consistency and motion boundary conditions of
//! Ruder, Dosovitskiy and Brox, "Artistic style transfer for videos" (GCPR 2016), eq. 5 and 6, after
//! Sundaram, Brox and Keutzer (ECCV 2010).

use super::bilinear::Bilinear;
use super::flow::Field;
use super::lanes::{LANES, lanes, load_partial};
use super::pyramid::Level;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Fewest rows that are worth a thread.
const MIN_ROWS: usize = 16;

/// The most by which the luma of the same thing, 0..255, differs in frames up to four apart.
const MAX_DIFFERENCE: f32 = 6.0;

/// Pixels of the flow on either side that its central differences reach. With the nearest alone, a motion
/// boundary would be narrower than the band around it where the flow is uncertain.
const GRADIENT_SPAN: usize = 2;

/// A weight of 0 or 1 for each pixel of a flow, `[h, w]`.
pub struct Mask {
    pub h: usize,
    pub w: usize,
    pub values: Vec<f32>,
}

impl Mask {
    /// The part of the pixels whose weight is 1.
    pub fn mean(&self) -> f32 {
        self.values.iter().sum::<f32>() / self.values.len() as f32
    }
}

/// |w|² in pixels of the frame, for a flow at 1 / `scale` of its size.
#[inline(always)]
fn squared_length(u: f32, v: f32, scale: usize) -> f32 {
    (scale * scale) as f32 * (u * u + v * v)
}

/// Which pixels of a frame an earlier one shows too, and which of those have a reliable flow.
/// `backward` is the flow w from the frame to the earlier one and `forward` the flow ŵ from that to
/// the frame, both at 1 / `scale` of the frame's size.
///
/// A pixel is disoccluded where |w + ŵ|² > 0.01 (|w|² + |ŵ|²) + 0.5, with ŵ sampled at the end of w
/// (eq. 5), and not visible either where w leads beyond the edge. A visible one is at a motion
/// boundary, and not reliable, where |∇u|² + |∇v|² > 0.01 |w|² + 0.002 (eq. 6).
pub fn masks(backward: &Field, forward: &Field, scale: usize) -> [Mask; 2] {
    let (h, w) = (backward.h, backward.w);
    let [mut visible, mut reliable] = [(); 2].map(|()| Mask {
        h,
        w,
        values: vec![0.0; h * w],
    });
    let rows = visible.values.par_chunks_exact_mut(w);
    let rows = rows.zip(reliable.values.par_chunks_exact_mut(w));
    let rows = rows.with_min_len(MIN_ROWS).enumerate();
    rows.for_each(|(y, (visible, reliable))| {
        Arch::new().dispatch(MaskRow {
            y,
            visible,
            reliable,
            backward,
            forward,
            scale,
        });
    });
    [visible, reliable]
}

/// A row of both masks, dispatched by SIMD instruction set.
struct MaskRow<'a> {
    y: usize,
    visible: &'a mut [f32],
    reliable: &'a mut [f32],
    backward: &'a Field,
    forward: &'a Field,
    scale: usize,
}

impl NullaryFnOnce for MaskRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        self.set_visible();
        self.set_reliable();
    }
}

impl MaskRow<'_> {
    #[inline(always)]
    fn set_visible(&mut self) {
        let (y, scale, backward) = (self.y, self.scale, self.backward);
        let (h, w) = (backward.h, backward.w);
        let (bottom, right) = ((h - 1) as f32, (w - 1) as f32);
        let [us, vs] = [&backward.u, &backward.v].map(|values| &values[y * w..][..w]);
        for (x, row) in (0..).step_by(LANES).zip(self.visible.chunks_mut(LANES)) {
            let (u, v) = (
                load_partial(&us[x..], row.len()),
                load_partial(&vs[x..], row.len()),
            );
            let target_y = lanes(|i| y as f32 + v[i]);
            let target_x = lanes(|i| x as f32 + i as f32 + u[i]);
            let points = Bilinear::new((h, w), target_y, target_x);
            let forward_u = points.sample(&self.forward.u);
            let forward_v = points.sample(&self.forward.v);
            let visible = lanes(|i| {
                let beyond_y = (target_y[i] - target_y[i].clamp(0.0, bottom)).abs();
                let beyond_x = (target_x[i] - target_x[i].clamp(0.0, right)).abs();
                let lengths = squared_length(u[i], v[i], scale)
                    + squared_length(forward_u[i], forward_v[i], scale);
                let error = squared_length(u[i] + forward_u[i], v[i] + forward_v[i], scale);
                let inside = f32::from(beyond_y.max(beyond_x) <= 0.5);
                inside * f32::from(error <= 0.01 * lengths + 0.5)
            });
            row.copy_from_slice(&visible[..row.len()]);
        }
    }

    /// Needs `visible` to be set.
    #[inline(always)]
    fn set_reliable(&mut self) {
        let Field { h, w, u, v } = self.backward;
        let (y, last) = (self.y, w - 1);
        let ys = [
            y.saturating_sub(GRADIENT_SPAN),
            y,
            (y + GRADIENT_SPAN).min(h - 1),
        ];
        let height = ys[2] - ys[0];
        let [u, v] = [u, v].map(|values| ys.map(|y| &values[y * w..][..*w]));
        self.reliable.copy_from_slice(self.visible);
        let start = GRADIENT_SPAN.min(*w);
        let end = w.saturating_sub(GRADIENT_SPAN).max(start);
        for x in (0..start).chain(end..*w) {
            let columns = [
                x.saturating_sub(GRADIENT_SPAN),
                x,
                (x + GRADIENT_SPAN).min(last),
            ];
            self.reliable[x] *= smooth_mask(u, v, columns, height, self.scale);
        }
        for (value, x) in self.reliable[start..end].iter_mut().zip(start..) {
            let columns = [x - GRADIENT_SPAN, x, x + GRADIENT_SPAN];
            *value *= smooth_mask(u, v, columns, height, self.scale);
        }
    }
}

/// The mask of one pixel: 0 at a motion boundary, else 1. `u` and `v` are the rows above, at and below
/// the pixel, the first `height` from the last, and the columns are the one on its left, its own and the
/// one on its right.
#[inline(always)]
fn smooth_mask(
    u: [&[f32]; 3],
    v: [&[f32]; 3],
    [left, x, right]: [usize; 3],
    height: usize,
    scale: usize,
) -> f32 {
    let [squared_w, squared_h] = [right - left, height].map(|span| (span * span) as f32);
    let (ux, uy) = (u[1][right] - u[1][left], u[2][x] - u[0][x]);
    let (vx, vy) = (v[1][right] - v[1][left], v[2][x] - v[0][x]);
    // Unlike lengths, gradients do not depend on the scale.
    let gradients = (ux * ux + vx * vx) / squared_w + (uy * uy + vy * vy) / squared_h;
    f32::from(gradients <= 0.01 * squared_length(u[1][x], v[1][x], scale) + 0.002)
}

/// Clears a mask where the luma of a frame differs from what its flow leads to in an earlier one.
/// Several frames back, something else may have been in the place of what was disoccluded, and the
/// flows be consistent all the same.
pub fn clear_mismatches(mask: &mut Mask, backward: &Field, [now, before]: [&Level; 2]) {
    Arch::new().dispatch(ClearMismatches {
        mask,
        backward,
        now,
        before,
    });
}

struct ClearMismatches<'a> {
    mask: &'a mut Mask,
    backward: &'a Field,
    now: &'a Level,
    before: &'a Level,
}

impl NullaryFnOnce for ClearMismatches<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let w = self.mask.w;
        for (y, row) in self.mask.values.chunks_exact_mut(w).enumerate() {
            let [u, v] = [&self.backward.u, &self.backward.v].map(|values| &values[y * w..][..w]);
            for (x, row) in (0..).step_by(LANES).zip(row.chunks_mut(LANES)) {
                let (u, v) = (
                    load_partial(&u[x..], row.len()),
                    load_partial(&v[x..], row.len()),
                );
                let target_y = lanes(|i| y as f32 + v[i]);
                let target_x = lanes(|i| x as f32 + i as f32 + u[i]);
                let before = self.before.sample(target_y, target_x);
                let now = load_partial(&self.now.row(y)[x..], row.len());
                for (i, value) in row.iter_mut().enumerate() {
                    *value *= f32::from((before[i] - now[i]).abs() <= MAX_DIFFERENCE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pyramid::Pyramid;
    use super::*;

    const H: usize = 12;
    const W: usize = 20;

    fn field(flow: impl Fn(usize, usize) -> (f32, f32)) -> Field {
        let (u, v) = (0..H * W).map(|i| flow(i / W, i % W)).unzip();
        Field { h: H, w: W, u, v }
    }

    /// How many pixels of each column are set.
    fn columns(mask: &Mask) -> Vec<usize> {
        let count = |x| {
            (0..mask.h)
                .filter(|y| mask.values[y * mask.w + x] == 1.0)
                .count()
        };
        (0..mask.w).map(count).collect()
    }

    #[test]
    fn what_comes_from_beyond_the_edge_was_not_seen() {
        let [mask, _] = masks(&field(|_, _| (3.0, 0.0)), &field(|_, _| (-3.0, 0.0)), 1);
        let expected = [[12; 17].as_slice(), &[0; 3]].concat();
        assert_eq!(columns(&mask), expected);
    }

    #[test]
    fn flows_agree_within_a_bound_that_grows_with_them() {
        // |w + ŵ|² against 0.01 (|w|² + |ŵ|²) + 0.5
        for (backward, forward, scale, agree) in [
            (0.0, 0.7, 1, true),
            (0.0, 0.72, 1, false),
            (0.0, 0.35, 2, true),
            (0.0, 0.36, 2, false),
            (3.0, -2.21, 1, true),
            (3.0, -2.19, 1, false),
        ] {
            let [mask, _] = masks(
                &field(|_, _| (0.0, backward)),
                &field(|_, _| (0.0, forward)),
                scale,
            );
            assert_eq!(
                mask.values[4 * W + 10] == 1.0,
                agree,
                "{backward} {forward} {scale}"
            );
        }
    }

    #[test]
    fn what_is_disoccluded_was_not_seen() {
        // The columns from 10 on stand still and those before came from the right: of two columns
        // whose flow leads to the same one, only the still one is led back to.
        let backward = field(|_, x| (if x < 10 { 4.0 } else { 0.0 }, 0.0));
        let [mask, _] = masks(
            &backward,
            &field(|_, x| (if x < 10 { -4.0 } else { 0.0 }, 0.0)),
            1,
        );
        let expected = [[12; 6].as_slice(), &[0; 4], &[12; 10]].concat();
        assert_eq!(columns(&mask), expected);
    }

    /// Also beside the edge, where central differences reach less far.
    #[test]
    fn a_gradient_is_the_same_everywhere() {
        let rest = field(|_, _| (0.0, 0.0));
        // 0.06² is above the bound where the flow is shorter than 0.4.
        let ramps = [
            field(|_, x| (0.06 * x as f32, 0.0)),
            field(|y, _| (0.0, 0.06 * y as f32)),
        ];
        for (ramp, rows, columns) in [(&ramps[0], 0..H, 0..6), (&ramps[1], 0..6, 0..W)] {
            let [_, reliable] = masks(ramp, &rest, 1);
            for y in rows {
                for x in columns.clone() {
                    assert_eq!(reliable.values[y * W + x], 0.0, "{y} {x}");
                }
            }
        }
    }

    #[test]
    fn a_motion_boundary_is_not_reliable() {
        let boundary = field(|_, x| (if x < 10 { 0.5 } else { 0.0 }, 0.0));
        let still = field(|_, _| (0.0, 0.0));
        let [visible, reliable] = masks(&boundary, &still, 1);
        assert_eq!(columns(&visible), [12; 20]);
        let expected = [[12; 8].as_slice(), &[0; 4], &[12; 8]].concat();
        assert_eq!(columns(&reliable), expected);
        // |∇u|² + |∇v|² against 0.01 |w|² + 0.002, where |w| alone grows with the scale.
        for (slope, constant, scale, smooth) in [
            (0.04, 0.0, 1, true),
            (0.05, 0.0, 1, false),
            (0.05, 3.0, 1, true),
            (0.04, 0.0, 2, true),
            (0.05, 0.1, 2, false),
            (0.05, 0.15, 1, false),
            (0.05, 0.15, 2, true),
        ] {
            let motion = |x: usize| slope * (x as f32 - 10.0) + constant;
            let backward = field(|_, x| (motion(x), 0.0));
            let [visible, reliable] = masks(&backward, &field(|_, x| (-motion(x), 0.0)), scale);
            assert_eq!(visible.values[4 * W + 10], 1.0);
            assert_eq!(
                reliable.values[4 * W + 10] == 1.0,
                smooth,
                "{slope} {constant} {scale}"
            );
        }
        // Nor is what is disoccluded.
        let [_, reliable] = masks(&still, &field(|_, _| (0.0, 0.9)), 1);
        assert_eq!(columns(&reliable), [0; 20]);
    }

    #[test]
    fn what_looks_otherwise_is_cleared() {
        let now = Pyramid::of((16, 20), |_, x| 40.0 + 10.0 * x);
        let before = Pyramid::of((16, 20), |_, x| {
            10.0 * x + if x < 8.0 { 10.0 } else { 20.0 }
        });
        let mut mask = Mask {
            h: 16,
            w: 20,
            values: vec![1.0; 16 * 20],
        };
        let mut flow = Field::zeros(16, 20);
        flow.u.fill(2.0);
        clear_mismatches(&mut mask, &flow, [&now.levels[0], &before.levels[0]]);
        let expected = [[0; 6].as_slice(), &[16; 12], &[0; 2]].concat();
        assert_eq!(columns(&mask), expected);
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Where a flow can be relied on, by the conditions of Ruder, Dosovitskiy and Brox, "Artistic style
//! transfer for videos" (GCPR 2016), eq. 5 and 6, after Sundaram, Brox and Keutzer (ECCV 2010).

use super::flow::Field;
use super::grid::Corners;
use super::planes::{LANES, lanes, load_some};
use super::pyramid::Level;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Rows that are worth a thread.
const MIN_ROWS: usize = 16;

/// Luma that what is the same differs by at most in frames that are some apart.
const UNLIKE: f32 = 6.0;

/// Pixels on either side that a flow's slope is taken over. With the nearest alone, the band where
/// two motions meet would be narrower than the flow is unsure there.
const SPAN: usize = 2;

/// A weight of 0 or 1 for each pixel of a flow, `[h, w]`.
pub struct Mask {
    pub h: usize,
    pub w: usize,
    pub values: Vec<f32>,
}

impl Mask {
    /// The part of the pixels that count.
    pub fn share(&self) -> f32 {
        self.values.iter().sum::<f32>() / self.values.len() as f32
    }

    /// Between pixels, as [`Field::at`].
    #[inline(always)]
    pub fn at(&self, y: f32, x: f32) -> f32 {
        let [value] = Corners::new((self.h, self.w), [y], [x]).between(&self.values);
        value
    }
}

/// |w|² in pixels of the frame, for a flow of 1 / `scale` of its size.
#[inline(always)]
fn square(u: f32, v: f32, scale: usize) -> f32 {
    (scale * scale) as f32 * (u * u + v * v)
}

/// Which pixels of a frame are seen in another, and which of them reliably: `backward` is the flow w
/// from the frame to the other, `forward` the flow ŵ back, both of 1 / `scale` of the frame's size.
/// A pixel is hidden where |w + ŵ|² > 0.01 (|w|² + |ŵ|²) + 0.5, ŵ being taken where w ends (eq. 5),
/// or beyond the edge. It is not reliable where two motions meet:
/// |∇u|² + |∇v|² > 0.01 |w|² + 0.002 (eq. 6).
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
        Arch::new().dispatch(Row {
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

/// A row of both masks.
struct Row<'a> {
    y: usize,
    visible: &'a mut [f32],
    reliable: &'a mut [f32],
    backward: &'a Field,
    forward: &'a Field,
    scale: usize,
}

impl NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        self.set_visible();
        self.set_reliable();
    }
}

impl Row<'_> {
    #[inline(always)]
    fn set_visible(&mut self) {
        let (y, scale, backward) = (self.y, self.scale, self.backward);
        let (h, w) = (backward.h, backward.w);
        let (bottom, right) = ((h - 1) as f32, (w - 1) as f32);
        let [us, vs] = [&backward.u, &backward.v].map(|values| &values[y * w..][..w]);
        for (x, row) in (0..).step_by(LANES).zip(self.visible.chunks_mut(LANES)) {
            let (u, v) = (
                load_some(&us[x..], row.len()),
                load_some(&vs[x..], row.len()),
            );
            let there_y = lanes(|i| y as f32 + v[i]);
            let there_x = lanes(|i| x as f32 + i as f32 + u[i]);
            let corners = Corners::new((h, w), there_y, there_x);
            let back_u = corners.between(&self.forward.u);
            let back_v = corners.between(&self.forward.v);
            let seen = lanes(|i| {
                let beyond_y = (there_y[i] - there_y[i].clamp(0.0, bottom)).abs();
                let beyond_x = (there_x[i] - there_x[i].clamp(0.0, right)).abs();
                let lengths = square(u[i], v[i], scale) + square(back_u[i], back_v[i], scale);
                let apart = square(u[i] + back_u[i], v[i] + back_v[i], scale);
                let inside = f32::from(beyond_y.max(beyond_x) <= 0.5);
                inside * f32::from(apart <= 0.01 * lengths + 0.5)
            });
            row.copy_from_slice(&seen[..row.len()]);
        }
    }

    /// What is visible has to be set.
    #[inline(always)]
    fn set_reliable(&mut self) {
        let Field { h, w, u, v } = self.backward;
        let (y, last) = (self.y, w - 1);
        let ys = [y.saturating_sub(SPAN), y, (y + SPAN).min(h - 1)];
        let [u, v] = [u, v].map(|values| ys.map(|y| &values[y * w..][..*w]));
        self.reliable.copy_from_slice(self.visible);
        let start = SPAN.min(*w);
        let end = w.saturating_sub(SPAN).max(start);
        for x in (0..start).chain(end..*w) {
            let columns = [x.saturating_sub(SPAN), x, (x + SPAN).min(last)];
            self.reliable[x] *= steady(u, v, columns, self.scale);
        }
        for (value, x) in self.reliable[start..end].iter_mut().zip(start..) {
            *value *= steady(u, v, [x - SPAN, x, x + SPAN], self.scale);
        }
    }
}

/// 0 where two motions meet, else 1: of rows above, at and below a place, and columns around it.
#[inline(always)]
fn steady(u: [&[f32]; 3], v: [&[f32]; 3], [left, x, right]: [usize; 3], scale: usize) -> f32 {
    const SQUARE_SPAN: f32 = (4 * SPAN * SPAN) as f32;
    let (ux, uy) = (u[1][right] - u[1][left], u[2][x] - u[0][x]);
    let (vx, vy) = (v[1][right] - v[1][left], v[2][x] - v[0][x]);
    // A slope is the same at each size.
    let slopes = ((ux * ux + uy * uy) + (vx * vx + vy * vy)) / SQUARE_SPAN;
    f32::from(slopes <= 0.01 * square(u[1][x], v[1][x], scale) + 0.002)
}

/// Clears in a mask where a frame does not look like another that the flow leads to: where that is
/// several frames back, something else may have come into the place of what was hidden, and the
/// flows still agree.
pub fn clear_unlike(mask: &mut Mask, backward: &Field, [now, before]: [&Level; 2]) {
    Arch::new().dispatch(Unlike {
        mask,
        backward,
        now,
        before,
    });
}

struct Unlike<'a> {
    mask: &'a mut Mask,
    backward: &'a Field,
    now: &'a Level,
    before: &'a Level,
}

impl NullaryFnOnce for Unlike<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let w = self.mask.w;
        for (y, row) in self.mask.values.chunks_exact_mut(w).enumerate() {
            let [u, v] = [&self.backward.u, &self.backward.v].map(|values| &values[y * w..][..w]);
            for (x, row) in (0..).step_by(LANES).zip(row.chunks_mut(LANES)) {
                let (u, v) = (load_some(&u[x..], row.len()), load_some(&v[x..], row.len()));
                let there_y = lanes(|i| y as f32 + v[i]);
                let there_x = lanes(|i| x as f32 + i as f32 + u[i]);
                let before = self.before.at(there_y, there_x);
                let now = load_some(&self.now.row(y)[x..], row.len());
                for (i, value) in row.iter_mut().enumerate() {
                    *value *= f32::from((before[i] - now[i]).abs() <= UNLIKE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pyramid::Pyramid;
    use super::*;
    use candle_core::{Device, Tensor};

    /// A flow of 20x12 pixels.
    fn field(flow: impl Fn(usize, usize) -> (f32, f32)) -> Field {
        let (h, w) = (12, 20);
        let (u, v) = (0..h * w).map(|place| flow(place / w, place % w)).unzip();
        Field { h, w, u, v }
    }

    /// How many of the pixels of each column count.
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
        for (there, back, scale, agree) in [
            (0.0, 0.7, 1, true),
            (0.0, 0.72, 1, false),
            (0.0, 0.35, 2, true),
            (0.0, 0.36, 2, false),
            (3.0, -2.21, 1, true),
            (3.0, -2.19, 1, false),
        ] {
            let [mask, _] = masks(
                &field(|_, _| (0.0, there)),
                &field(|_, _| (0.0, back)),
                scale,
            );
            assert_eq!(mask.at(4.0, 10.0) == 1.0, agree, "{there} {back} {scale}");
        }
    }

    #[test]
    fn what_was_behind_something_was_not_seen() {
        // The columns from 10 on stand still, those before came from the right: of the two that
        // lead to one place only the ones that stand still are led back to.
        let backward = field(|_, x| (if x < 10 { 4.0 } else { 0.0 }, 0.0));
        let [mask, _] = masks(
            &backward,
            &field(|_, x| (if x < 10 { -4.0 } else { 0.0 }, 0.0)),
            1,
        );
        let expected = [[12; 6].as_slice(), &[0; 4], &[12; 10]].concat();
        assert_eq!(columns(&mask), expected);
    }

    #[test]
    fn where_two_motions_meet_is_not_reliable() {
        let meeting = field(|_, x| (if x < 10 { 0.5 } else { 0.0 }, 0.0));
        let still = field(|_, _| (0.0, 0.0));
        let [visible, reliable] = masks(&meeting, &still, 1);
        assert_eq!(columns(&visible), [12; 20]);
        let expected = [[12; 8].as_slice(), &[0; 4], &[12; 8]].concat();
        assert_eq!(columns(&reliable), expected);
        // |∇u|² + |∇v|² against 0.01 |w|² + 0.002
        for (slope, constant, agree) in [(0.04, 0.0, true), (0.05, 0.0, false), (0.05, 3.0, true)] {
            let motion = |x: usize| slope * (x as f32 - 10.0) + constant;
            let backward = field(|_, x| (motion(x), 0.0));
            let [visible, reliable] = masks(&backward, &field(|_, x| (-motion(x), 0.0)), 1);
            assert_eq!(visible.at(4.0, 10.0), 1.0);
            assert_eq!(reliable.at(4.0, 10.0) == 1.0, agree, "{slope} {constant}");
        }
        // What is hidden is not.
        let [_, reliable] = masks(&still, &field(|_, _| (0.0, 0.9)), 1);
        assert_eq!(columns(&reliable), [0; 20]);
    }

    #[test]
    fn what_looks_otherwise_is_cleared() {
        let frame = |luma: fn(usize) -> f32| {
            let pixels = (0..16 * 20).flat_map(|i| [luma(i % 20) / 255.0; 3]);
            let image = Tensor::from_vec(pixels.collect(), (16, 20, 3), &Device::Cpu).unwrap();
            Pyramid::new(&image).unwrap()
        };
        let now = frame(|x| 40.0 + 10.0 * x as f32);
        let before = frame(|x| 10.0 * x as f32 + if x < 8 { 10.0 } else { 20.0 });
        let mut mask = Mask {
            h: 16,
            w: 20,
            values: vec![1.0; 16 * 20],
        };
        let mut flow = Field::zeros(16, 20);
        flow.u.fill(2.0);
        clear_unlike(&mut mask, &flow, [&now.levels[0], &before.levels[0]]);
        let expected = [[0; 6].as_slice(), &[16; 12], &[0; 2]].concat();
        assert_eq!(columns(&mask), expected);
    }
}

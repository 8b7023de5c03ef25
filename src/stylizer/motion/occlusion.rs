// SPDX-License-Identifier: MPL-2.0

//! Where a flow can be relied on, by the conditions of Ruder, Dosovitskiy and Brox, "Artistic style
//! transfer for videos" (GCPR 2016), eq. 5 and 6, after Sundaram, Brox and Keutzer (ECCV 2010).

use super::flow::Field;

/// A weight of 0 or 1 for each pixel of a flow, `[h, w]`.
pub struct Mask {
    pub h: usize,
    pub w: usize,
    pub values: Vec<f32>,
}

impl Mask {
    /// Between pixels, as [`Field::at`].
    #[inline(always)]
    pub fn at(&self, y: f32, x: f32) -> f32 {
        let y = y.clamp(0.0, (self.h - 1) as f32);
        let x = x.clamp(0.0, (self.w - 1) as f32);
        let (y0, x0) = (y as usize, x as usize);
        let (y1, x1) = ((y0 + 1).min(self.h - 1), (x0 + 1).min(self.w - 1));
        let (fy, fx) = (y - y0 as f32, x - x0 as f32);
        let at = |y: usize, x: usize| self.values[y * self.w + x];
        (1.0 - fy) * ((1.0 - fx) * at(y0, x0) + fx * at(y0, x1))
            + fy * ((1.0 - fx) * at(y1, x0) + fx * at(y1, x1))
    }
}

/// |w|² in pixels of the frame, for a flow of 1 / `scale` of its size.
#[inline(always)]
fn square(u: f32, v: f32, scale: usize) -> f32 {
    (scale * scale) as f32 * (u * u + v * v)
}

/// Which pixels of a frame are seen in another: `backward` is the flow w from the frame to the
/// other, `forward` the flow ŵ back, both of 1 / `scale` of the frame's size. A pixel is hidden
/// where |w + ŵ|² > 0.01 (|w|² + |ŵ|²) + 0.5, ŵ being taken where w ends (eq. 5), or beyond the
/// edge.
pub fn visible(backward: &Field, forward: &Field, scale: usize) -> Mask {
    let (h, w) = (backward.h, backward.w);
    let mut values = vec![0.0; h * w];
    for (y, row) in values.chunks_exact_mut(w).enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let (u, v) = (backward.u[y * w + x], backward.v[y * w + x]);
            let (there_y, there_x) = (y as f32 + v, x as f32 + u);
            let inside = (-0.5..=h as f32 - 0.5).contains(&there_y)
                && (-0.5..=w as f32 - 0.5).contains(&there_x);
            let (back_u, back_v) = forward.at(there_y, there_x);
            let lengths = square(u, v, scale) + square(back_u, back_v, scale);
            let apart = square(u + back_u, v + back_v, scale);
            *value = f32::from(inside && apart <= 0.01 * lengths + 0.5);
        }
    }
    Mask { h, w, values }
}

/// Which of the `visible` pixels are not where two motions meet: there
/// |∇u|² + |∇v|² > 0.01 |w|² + 0.002 (eq. 6).
pub fn reliable(visible: &Mask, backward: &Field, scale: usize) -> Mask {
    let (h, w) = (backward.h, backward.w);
    let mut values = visible.values.clone();
    for (y, row) in values.chunks_exact_mut(w).enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let place = y * w + x;
            let (left, right) = (place - usize::from(x > 0), place + usize::from(x + 1 < w));
            let (above, below) = (
                place - w * usize::from(y > 0),
                place + w * usize::from(y + 1 < h),
            );
            // A slope is the same at each size.
            let slope = |values: &[f32]| {
                let across = 0.5 * (values[right] - values[left]);
                let down = 0.5 * (values[below] - values[above]);
                across * across + down * down
            };
            let length = square(backward.u[place], backward.v[place], scale);
            if slope(&backward.u) + slope(&backward.v) > 0.01 * length + 0.002 {
                *value = 0.0;
            }
        }
    }
    Mask { h, w, values }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mask = visible(&field(|_, _| (3.0, 0.0)), &field(|_, _| (-3.0, 0.0)), 1);
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
            let mask = visible(
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
        let mask = visible(
            &backward,
            &field(|_, x| (if x < 10 { -4.0 } else { 0.0 }, 0.0)),
            1,
        );
        let expected = [[12; 6].as_slice(), &[0; 4], &[12; 10]].concat();
        assert_eq!(columns(&mask), expected);
    }

    #[test]
    fn where_two_motions_meet_is_not_reliable() {
        let all = Mask {
            h: 12,
            w: 20,
            values: vec![1.0; 240],
        };
        let meeting = field(|_, x| (if x < 10 { 1.0 } else { 0.0 }, 0.0));
        let expected = [[12; 9].as_slice(), &[0; 2], &[12; 9]].concat();
        assert_eq!(columns(&reliable(&all, &meeting, 1)), expected);
        // |∇u|² + |∇v|² against 0.01 |w|² + 0.002
        for (slope, constant, agree) in [(0.04, 0.0, true), (0.05, 0.0, false), (0.05, 3.0, true)] {
            let field = field(|_, x| (slope * (x as f32 - 10.0), constant));
            let mask = reliable(&all, &field, 1);
            assert_eq!(mask.at(4.0, 10.0) == 1.0, agree, "{slope} {constant}");
        }
        // What is hidden stays hidden.
        let none = Mask {
            values: vec![0.0; 240],
            ..all
        };
        assert_eq!(
            reliable(&none, &field(|_, _| (0.0, 0.0)), 1).values,
            none.values
        );
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Bilinear interpolation between the values of a grid.

/// A value of 0..2²³, rounded to the nearest integer. Coordinates in 256ths of a pixel are within that
/// range: see [`MAX_SIDE`](crate::stylizer::resize::MAX_SIDE).
///
/// Adding 2²³ leaves the integer in the low bits of the mantissa. That vectorises, where `as` handles
/// NaN and overflow too, value by value.
#[inline(always)]
pub fn round_to_u32(value: f32) -> u32 {
    const SHIFT: f32 = (1 << 23) as f32;
    (value + SHIFT).to_bits() - SHIFT.to_bits()
}

/// The floor of a value of 0..2²³, except that a whole number may give the one below it. Then the
/// fraction is 1, which interpolates to the same.
#[inline(always)]
pub fn loose_floor(value: f32) -> u32 {
    round_to_u32((value - 0.5).max(0.0))
}

/// A coordinate clamped to an axis of `side` values. NaN, which [`round_to_u32`] does not bear,
/// becomes 0.
#[inline(always)]
pub fn clamp_to_side(at: f32, side: usize) -> f32 {
    at.max(0.0).min((side - 1) as f32)
}

/// Bilinear interpolation at `N` points of a grid, whose edge is replicated beyond it.
pub struct Bilinear<const N: usize> {
    /// Indices of each point's four neighbours: top left, top right, bottom left, bottom right.
    corners: [[u32; N]; 4],
    /// How far each point is from the row above it and from the column on its left, 0..1.
    fy: [f32; N],
    fx: [f32; N],
}

impl<const N: usize> Bilinear<N> {
    /// At points of a grid of `h` by `w`, whose values lie at integer coordinates.
    #[inline(always)]
    pub fn new((h, w): (usize, usize), y: [f32; N], x: [f32; N]) -> Self {
        let mut points = Self {
            corners: [[0; N]; 4],
            fy: [0.0; N],
            fx: [0.0; N],
        };
        for i in 0..N {
            let (y, x) = (clamp_to_side(y[i], h), clamp_to_side(x[i], w));
            let (y0, x0) = (loose_floor(y), loose_floor(x));
            points.fy[i] = y - y0 as i32 as f32;
            points.fx[i] = x - x0 as i32 as f32;
            let (y1, x1) = ((y0 + 1).min(h as u32 - 1), (x0 + 1).min(w as u32 - 1));
            let (above, below) = (y0 * w as u32, y1 * w as u32);
            points.corners[0][i] = above + x0;
            points.corners[1][i] = above + x1;
            points.corners[2][i] = below + x0;
            points.corners[3][i] = below + x1;
        }
        points
    }

    /// The points' values in a grid.
    #[inline(always)]
    pub fn sample(&self, values: &[f32]) -> [f32; N] {
        let mut corners = [[0.0; N]; 4];
        for (corners, indices) in corners.iter_mut().zip(&self.corners) {
            for i in 0..N {
                corners[i] = values[indices[i] as usize];
            }
        }
        let mut sampled = [0.0; N];
        for i in 0..N {
            let above = corners[0][i] + self.fx[i] * (corners[1][i] - corners[0][i]);
            let below = corners[2][i] + self.fx[i] * (corners[3][i] - corners[2][i]);
            sampled[i] = above + self.fy[i] * (below - above);
        }
        sampled
    }
}

/// Converts a coordinate to a level of 1 / `scale` of the size. Pixel centres lie at integers at both
/// sizes, and the picture's edge at -0.5.
#[inline(always)]
pub fn to_level(at: f32, scale: f32) -> f32 {
    (at + 0.5) / scale - 0.5
}

/// A pixel's position along one axis of a smaller grid: the indices of the values before and after
/// it, and the weight of the latter.
pub type LerpIndex = (usize, usize, f32);

/// The positions of `pixels` along `side` values, each the mean of `scale` pixels.
pub fn lerp_indices(pixels: usize, scale: usize, side: usize) -> Vec<LerpIndex> {
    let index = |pixel: usize| {
        let at = to_level(pixel as f32, scale as f32);
        let at = at.clamp(0.0, (side - 1) as f32);
        let before = at as usize;
        (before, (before + 1).min(side - 1), at - before as f32)
    };
    (0..pixels).map(index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_exact_up_to_the_bound() {
        for number in [0, 1, 255, 1 << 22, (1 << 23) - 256, (1 << 23) - 1] {
            assert_eq!(round_to_u32(number as f32), number);
            assert!((number.max(1) - 1..=number).contains(&loose_floor(number as f32)));
        }
        for value in [0.4f32, 0.6, 1000.3, 4_194_303.3, 4_194_303.8] {
            assert_eq!(round_to_u32(value), value.round() as u32);
            assert!((0.0..=1.0).contains(&(value - loose_floor(value) as f32)));
        }
    }
}

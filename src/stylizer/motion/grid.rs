// SPDX-License-Identifier: MPL-2.0

//! Values between those of a grid.

/// The whole number that is nearest to a value, which is from 0 on and below 2²³: places on the
/// longest side that `max-size` names, 2¹⁵ pixels, are below that in 256ths of a pixel too.
///
/// A sum with 2²³ has no bits behind the point, and the number in its last ones. The conversion that
/// the language has takes care of all values, one by one.
#[inline(always)]
pub fn nearest(value: f32) -> u32 {
    const SHIFT: f32 = (1 << 23) as f32;
    (value + SHIFT).to_bits() - SHIFT.to_bits()
}

/// A whole number at most 1 below a value, which is from 0 on and below 2²³.
#[inline(always)]
pub fn whole(value: f32) -> u32 {
    nearest((value - 0.5).max(0.0))
}

/// A place along an axis of `side` values, which has to be a number for [`nearest`].
#[inline(always)]
pub fn within(at: f32, side: usize) -> f32 {
    at.max(0.0).min((side - 1) as f32)
}

/// The values of a grid around `N` places, beyond the edge those of the edge.
pub struct Corners<const N: usize> {
    /// Above and below, on the left and on the right of each.
    places: [[u32; N]; 4],
    down: [f32; N],
    across: [f32; N],
}

impl<const N: usize> Corners<N> {
    /// Around places of a grid of `h` by `w`, whose values lie at whole numbers.
    #[inline(always)]
    pub fn new((h, w): (usize, usize), y: [f32; N], x: [f32; N]) -> Self {
        let mut corners = Self {
            places: [[0; N]; 4],
            down: [0.0; N],
            across: [0.0; N],
        };
        for i in 0..N {
            let (y, x) = (within(y[i], h), within(x[i], w));
            let (y0, x0) = (whole(y), whole(x));
            corners.down[i] = y - y0 as i32 as f32;
            corners.across[i] = x - x0 as i32 as f32;
            let (y1, x1) = ((y0 + 1).min(h as u32 - 1), (x0 + 1).min(w as u32 - 1));
            let (above, below) = (y0 * w as u32, y1 * w as u32);
            corners.places[0][i] = above + x0;
            corners.places[1][i] = above + x1;
            corners.places[2][i] = below + x0;
            corners.places[3][i] = below + x1;
        }
        corners
    }

    /// The values at the places.
    #[inline(always)]
    pub fn between(&self, values: &[f32]) -> [f32; N] {
        let mut corners = [[0.0; N]; 4];
        for (corners, places) in corners.iter_mut().zip(&self.places) {
            for i in 0..N {
                corners[i] = values[places[i] as usize];
            }
        }
        let mut between = [0.0; N];
        for i in 0..N {
            let above = corners[0][i] + self.across[i] * (corners[1][i] - corners[0][i]);
            let below = corners[2][i] + self.across[i] * (corners[3][i] - corners[2][i]);
            between[i] = above + self.down[i] * (below - above);
        }
        between
    }
}

/// Where a pixel is along an axis of a smaller grid: the values before and after it, and how far it
/// is from the one to the other.
pub type Place = (usize, usize, f32);

/// The places of `pixels` in a grid of `side` values that stand for `scale` pixels each.
pub fn places(pixels: usize, scale: usize, side: usize) -> Vec<Place> {
    let place = |pixel: usize| {
        let at = (pixel as f32 + 0.5) / scale as f32 - 0.5;
        let at = at.clamp(0.0, (side - 1) as f32);
        let before = at as usize;
        (before, (before + 1).min(side - 1), at - before as f32)
    };
    (0..pixels).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_up_to_the_bound() {
        for number in [0, 1, 255, 1 << 22, (1 << 23) - 256, (1 << 23) - 1] {
            assert_eq!(nearest(number as f32), number);
            assert!((number.max(1) - 1..=number).contains(&whole(number as f32)));
        }
        for value in [0.4f32, 0.6, 1000.3, 4_194_303.3, 4_194_303.8] {
            assert_eq!(nearest(value), value.round() as u32);
            assert!((0.0..=1.0).contains(&(value - whole(value) as f32)));
        }
    }
}

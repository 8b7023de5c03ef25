// SPDX-License-Identifier: MPL-2.0

//! Layouts of the values of the variational refinement, so that SIMD loads are contiguous.

use super::lanes::{LANES, Lanes, lanes, load, store};
use aligned_vec::AVec;

/// Pixels beyond a plane's edges, for second derivatives.
const BORDER: usize = 2;

fn zeros(len: usize) -> AVec<f32> {
    let mut values = AVec::new(0);
    values.resize(len, 0.0);
    values
}

/// Values `[h, w]` with a border of [`BORDER`] pixels. A row starts after [`LANES`] values, the last
/// of which are its left border, and is padded to whole lanes with unspecified values.
pub struct Plane {
    h: usize,
    pub w: usize,
    stride: usize,
    pub values: AVec<f32>,
}

impl Plane {
    pub fn new(h: usize, w: usize) -> Self {
        let stride = LANES + w.next_multiple_of(LANES);
        Self {
            h,
            w,
            stride,
            values: zeros((h + 2 * BORDER) * stride + 2 * LANES),
        }
    }

    /// The index of a pixel, which may be in the border.
    #[inline(always)]
    pub fn index(&self, y: isize, x: isize) -> usize {
        let row = (y + BORDER as isize) as usize * self.stride + LANES;
        (row as isize + x) as usize
    }

    #[inline(always)]
    pub fn load(&self, y: isize, x: isize) -> Lanes {
        load(&self.values, self.index(y, x))
    }

    #[inline(always)]
    pub fn row_mut(&mut self, y: usize) -> &mut [f32] {
        let start = self.index(y as isize, 0);
        &mut self.values[start..][..self.w]
    }

    /// Replicates the edge into the border.
    #[inline(always)]
    pub fn replicate_edge(&mut self) {
        let w = self.w;
        for y in 0..self.h {
            let start = self.index(y as isize, 0);
            let (first, last) = (self.values[start], self.values[start + w - 1]);
            self.values[start - BORDER..start].fill(first);
            self.values[start + w..][..BORDER].fill(last);
        }
        let h = self.h as isize;
        for (row, edge) in [(-2, 0), (-1, 0), (h, h - 1), (h + 1, h - 1)] {
            let [row, edge] = [row, edge].map(|y| self.index(y, -(BORDER as isize)));
            self.values.copy_within(edge..edge + w + 2 * BORDER, row);
        }
    }
}

/// Rows `w` wide with their even and odd columns stored apart, so that the pixels of one colour of a
/// red-black ordering are contiguous. [`LANES`] zeros precede each half of a row. The rows form a ring
/// buffer, in which row `y` shares its storage with row `y + rows`: a band that moves down an image
/// takes only its own height.
pub struct RedBlackRows {
    /// Values of half a row, with its padding.
    pub len: usize,
    rows: usize,
    pub values: AVec<f32>,
}

impl RedBlackRows {
    pub fn new(rows: usize, w: usize) -> Self {
        let len = LANES + w.div_ceil(2).next_multiple_of(LANES);
        Self {
            len,
            rows,
            values: zeros(rows * 2 * len + LANES),
        }
    }

    /// The index of the first even (`odd` = 0) or odd (1) column of a row, the first of which is -1.
    #[inline(always)]
    pub fn index(&self, y: isize, odd: usize) -> usize {
        ((y + 1) as usize % self.rows * 2 + odd) * self.len + LANES
    }

    /// Zeroes row -1.
    #[inline(always)]
    pub fn clear_border(&mut self) {
        self.values[..2 * self.len].fill(0.0);
    }

    /// Sets a row from values in column order, padded to whole pairs of lanes.
    #[inline(always)]
    pub fn set_row(&mut self, y: usize, row: &[f32]) {
        let [even, odd] = [0, 1].map(|odd| self.index(y as isize, odd));
        for (i, pairs) in row.as_chunks::<{ 2 * LANES }>().0.iter().enumerate() {
            let pairs = *pairs;
            store(&mut self.values, even + i * LANES, lanes(|i| pairs[2 * i]));
            store(
                &mut self.values,
                odd + i * LANES,
                lanes(|i| pairs[2 * i + 1]),
            );
        }
    }

    /// Copies a row's values in column order.
    #[inline(always)]
    pub fn copy_row(&self, y: usize, row: &mut [f32]) {
        let [even, odd] = [0, 1].map(|odd| &self.values[self.index(y as isize, odd)..]);
        let (pairs, last) = row.as_chunks_mut::<2>();
        for ((pair, even), odd) in pairs.iter_mut().zip(even).zip(odd) {
            *pair = [*even, *odd];
        }
        if let [last] = last {
            *last = even[pairs.len()];
        }
    }
}

/// One row of values, preceded by [`LANES`] others and padded to whole pairs of lanes.
pub struct PaddedRow(pub AVec<f32>);

impl PaddedRow {
    pub fn new(w: usize) -> Self {
        Self(zeros(2 * LANES + w.next_multiple_of(2 * LANES)))
    }

    /// The row with its padding, which is set to zero.
    #[inline(always)]
    pub fn zero_padded(&mut self, w: usize) -> &[f32] {
        self.0[LANES + w..].fill(0.0);
        &self.0[LANES..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_and_odd_columns_are_put_together_again() {
        for w in [8, 15, 16, 31, 32, 33, 63, 64, 65] {
            let values: Vec<f32> = (1..=w).map(|value| value as f32).collect();
            let mut row = PaddedRow::new(w);
            row.0[LANES..][..w].copy_from_slice(&values);
            let mut rows = RedBlackRows::new(4, w);
            rows.set_row(1, row.zero_padded(w));
            let [even, odd] = [0, 1].map(|odd| rows.index(1, odd));
            assert_eq!(rows.values[even - 1..even + 3], [0.0, 1.0, 3.0, 5.0]);
            assert_eq!(rows.values[odd - 1..odd + 3], [0.0, 2.0, 4.0, 6.0]);
            let mut back = vec![0.0; w];
            rows.copy_row(1, &mut back);
            assert_eq!(back, values);
        }
    }

    #[test]
    fn planes_repeat_their_edge() {
        for (h, w) in [(8, 9), (9, 16), (10, 33)] {
            let mut plane = Plane::new(h, w);
            for y in 0..h {
                for (x, value) in plane.row_mut(y).iter_mut().enumerate() {
                    *value = (100 * y + x) as f32;
                }
            }
            plane.replicate_edge();
            for y in -2..h as isize + 2 {
                for x in -2..w as isize + 2 {
                    let inside = (y.clamp(0, h as isize - 1), x.clamp(0, w as isize - 1));
                    let value = (100 * inside.0 + inside.1) as f32;
                    assert_eq!(plane.values[plane.index(y, x)], value);
                }
            }
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Where the refinement keeps its values, so that the vector unit has them side by side.

use aligned_vec::AVec;

/// Values that are worked on at a time, for the vector unit. Passed by value, so that no store can
/// change what was loaded.
pub const LANES: usize = 16;
pub type Lanes = [f32; LANES];

/// Rows beyond the edge of a plane, for second derivatives.
const BORDER: usize = 2;

#[inline(always)]
pub fn load(values: &[f32], at: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[at..at + LANES]);
    lanes
}

/// The first `count` values, and zeros.
#[inline(always)]
pub fn load_some(values: &[f32], count: usize) -> Lanes {
    match values.first_chunk() {
        Some(values) => *values,
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..count].copy_from_slice(&values[..count]);
            lanes
        }
    }
}

#[inline(always)]
pub fn store(values: &mut [f32], at: usize, lanes: Lanes) {
    values[at..at + LANES].copy_from_slice(&lanes);
}

/// The lanes' values by a formula.
#[inline(always)]
pub fn lanes(value: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = value(i);
    }
    lanes
}

fn zeros(len: usize) -> AVec<f32> {
    let mut values = AVec::new(0);
    values.resize(len, 0.0);
    values
}

/// Values `[h, w]` with [`BORDER`] of them around. A row begins after whole lanes of which the last
/// are its border, and is filled up to whole lanes, with numbers that mean nothing.
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

    /// Where a pixel is, which may be in the border.
    #[inline(always)]
    pub fn place(&self, y: isize, x: isize) -> usize {
        let row = (y + BORDER as isize) as usize * self.stride + LANES;
        (row as isize + x) as usize
    }

    #[inline(always)]
    pub fn load(&self, y: isize, x: isize) -> Lanes {
        load(&self.values, self.place(y, x))
    }

    #[inline(always)]
    pub fn row_mut(&mut self, y: usize) -> &mut [f32] {
        let place = self.place(y as isize, 0);
        &mut self.values[place..][..self.w]
    }

    /// Repeats the edge in the border.
    #[inline(always)]
    pub fn extend(&mut self) {
        let w = self.w;
        for y in 0..self.h {
            let place = self.place(y as isize, 0);
            let (first, last) = (self.values[place], self.values[place + w - 1]);
            self.values[place - BORDER..place].fill(first);
            self.values[place + w..][..BORDER].fill(last);
        }
        let h = self.h as isize;
        for (row, edge) in [(-2, 0), (-1, 0), (h, h - 1), (h + 1, h - 1)] {
            let [row, edge] = [row, edge].map(|y| self.place(y, -(BORDER as isize)));
            self.values.copy_within(edge..edge + w + 2 * BORDER, row);
        }
    }
}

/// Rows `w` wide of which the values of even and of odd columns lie apart, so that the pixels of one
/// colour of a chessboard are side by side. Before each half of a row there are whole lanes, which
/// are zero. Row `y` shares its place with `y` + `rows`: a band that moves down an image needs no
/// more room than its height.
pub struct Halves {
    pub len: usize,
    rows: usize,
    pub values: AVec<f32>,
}

impl Halves {
    pub fn new(rows: usize, w: usize) -> Self {
        let len = LANES + w.div_ceil(2).next_multiple_of(LANES);
        Self {
            len,
            rows,
            values: zeros(rows * 2 * len + LANES),
        }
    }

    /// Where the even (0) or odd (1) values of a row begin, which may be one before the image.
    #[inline(always)]
    pub fn place(&self, y: isize, odd: usize) -> usize {
        ((y + 1) as usize % self.rows * 2 + odd) * self.len + LANES
    }

    /// Sets the row before the first to zero.
    #[inline(always)]
    pub fn clear_border(&mut self) {
        self.values[..2 * self.len].fill(0.0);
    }

    /// Sets a row to values in their order.
    #[inline(always)]
    pub fn set_row(&mut self, y: usize, row: &[f32]) {
        let [even, odd] = [0, 1].map(|odd| self.place(y as isize, odd));
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

    /// A row's values in their order.
    #[inline(always)]
    pub fn copy_row(&self, y: usize, row: &mut [f32]) {
        let [even, odd] = [0, 1].map(|odd| &self.values[self.place(y as isize, odd)..]);
        let (pairs, last) = row.as_chunks_mut::<2>();
        for ((pair, even), odd) in pairs.iter_mut().zip(even).zip(odd) {
            *pair = [*even, *odd];
        }
        if let [last] = last {
            *last = even[pairs.len()];
        }
    }
}

/// Values of one row, from after whole lanes on.
pub struct Row(pub AVec<f32>);

impl Row {
    pub fn new(w: usize) -> Self {
        Self(zeros(2 * LANES + w.next_multiple_of(2 * LANES)))
    }

    /// The values, up to whole lanes; beyond the image they are zero.
    #[inline(always)]
    pub fn finish(&mut self, w: usize) -> &[f32] {
        self.0[LANES + w..].fill(0.0);
        &self.0[LANES..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_put_together_again() {
        for w in [8, 15, 16, 31, 32, 33, 63, 64, 65] {
            let values: Vec<f32> = (1..=w).map(|value| value as f32).collect();
            let mut row = Row::new(w);
            row.0[LANES..][..w].copy_from_slice(&values);
            let mut halves = Halves::new(4, w);
            halves.set_row(1, row.finish(w));
            let [even, odd] = [0, 1].map(|odd| halves.place(1, odd));
            assert_eq!(halves.values[even - 1..even + 3], [0.0, 1.0, 3.0, 5.0]);
            assert_eq!(halves.values[odd - 1..odd + 3], [0.0, 2.0, 4.0, 6.0]);
            let mut back = vec![0.0; w];
            halves.copy_row(1, &mut back);
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
            plane.extend();
            for y in -2..h as isize + 2 {
                for x in -2..w as isize + 2 {
                    let inside = (y.clamp(0, h as isize - 1), x.clamp(0, w as isize - 1));
                    let value = (100 * inside.0 + inside.1) as f32;
                    assert_eq!(plane.values[plane.place(y, x)], value);
                }
            }
        }
    }
}

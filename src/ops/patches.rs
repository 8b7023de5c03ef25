// SPDX-License-Identifier: MPL-2.0

//! The CPU's 3x3 convolution for any number of channels and any border: a product of patches of
//! pixels and the kernel. Its adjoint puts the products with the transposed kernel back to where
//! the patches' pixels came from. It is made for few input channels: those of an image.

use super::conv::Border;
use super::product::{PANEL_VECTORS, groups, grown, lanes, multiply};
use aligned_vec::AVec;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a piece of work.
const PIECE_ROWS: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        values: AVec::new(0),
        group: AVec::new(0),
        products: AVec::new(0),
    });
}

/// What a row of pixels needs, kept from call to call.
struct Scratch {
    /// `[pixels, depth]`
    values: AVec<f32>,
    /// The values of a group of pixels as [`multiply`] reads them.
    group: AVec<f32>,
    /// `[pixels, columns]`
    products: AVec<f32>,
}

/// A matrix as panels that [`multiply`] reads.
struct Matrix {
    rows: usize,
    /// The rows, rounded up to whole vectors.
    depth: usize,
    /// Columns, rounded up to whole panels.
    columns: usize,
    /// `[columns / panel, depth, panel]`, zeros where there is nothing.
    values: AVec<f32>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let panel = PANEL_VECTORS * lanes();
        let depth = rows.next_multiple_of(lanes());
        let mut values = AVec::new(0);
        values.resize(depth * columns.next_multiple_of(panel), 0.0);
        for row in 0..rows {
            for column in 0..columns {
                values[(column / panel * depth + row) * panel + column % panel] =
                    value(row, column);
            }
        }
        Self {
            rows,
            depth,
            columns: columns.next_multiple_of(panel),
            values,
        }
    }

    /// `products` `[rows, columns]` of rows of values, which `fill` writes.
    fn multiply<'a>(
        &self,
        rows: usize,
        scratch: &'a mut Scratch,
        mut fill: impl FnMut(usize, &mut [f32]),
    ) -> &'a [f32] {
        let values = grown(&mut scratch.values, rows * self.depth);
        for (row, values) in values.chunks_exact_mut(self.depth).enumerate() {
            let (values, padding) = values.split_at_mut(self.rows);
            fill(row, values);
            padding.fill(0.0);
        }
        let products = grown(&mut scratch.products, rows * self.columns);
        Arch::new().dispatch(Product {
            matrix: self,
            rows,
            values,
            group: grown(&mut scratch.group, rows * self.depth),
            products,
        });
        products
    }
}

struct Product<'a> {
    matrix: &'a Matrix,
    rows: usize,
    values: &'a [f32],
    group: &'a mut [f32],
    products: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.matrix.depth / S::F32_LANES;
        let stride = self.matrix.columns / S::F32_LANES;
        let matrix = S::as_simd_f32s(&self.matrix.values).0;
        let products = S::as_mut_simd_f32s(self.products).0;
        for rows in groups::<S>(self.rows) {
            let len = rows.len();
            let group = &mut self.group[..len * self.matrix.depth];
            let values = &self.values[rows.start * self.matrix.depth..rows.end * self.matrix.depth];
            let vectors_of = S::as_simd_f32s(values).0.chunks_exact(vectors);
            for (at, values) in vectors_of.enumerate() {
                let group = S::as_mut_simd_f32s(group).0;
                for (vector, value) in values.iter().enumerate() {
                    group[vector * len + at] = *value;
                }
            }
            let panels = matrix.chunks_exact(self.matrix.depth * PANEL_VECTORS);
            for (index, panel) in panels.enumerate() {
                let products = &mut products[rows.start * stride + index * PANEL_VECTORS..];
                multiply(simd, len, group, panel, &[], products, stride);
            }
        }
    }
}

/// A kernel, and its transpose.
pub struct Kernel {
    n_in: usize,
    n_out: usize,
    border: Border,
    /// `[taps * n_in, n_out]`
    forward: Matrix,
    /// `[n_out, taps * n_in]`
    adjoint: Matrix,
}

impl Kernel {
    /// The kernel whose weight is `weight(output channel, input channel, tap)`, its taps counted
    /// row by row.
    pub fn new(
        n_in: usize,
        n_out: usize,
        border: Border,
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let at = |out: usize, place: usize| weight(out, place % n_in, place / n_in);
        Self {
            n_in,
            n_out,
            border,
            forward: Matrix::new(9 * n_in, n_out, |place, out| at(out, place)),
            adjoint: Matrix::new(n_out, 9 * n_in, at),
        }
    }

    /// Size of the packed kernel in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.forward.values.as_slice()) + size_of_val(self.adjoint.values.as_slice())
    }

    /// Correlates `input` `[h, w, n_in]`; `write(pixel, sums)` takes the sums of a pixel of
    /// `output` `[h, w, n_out]`.
    pub fn forward(
        &self,
        [h, w]: [usize; 2],
        input: &[f32],
        output: &mut [f32],
        write: impl Fn(&mut [f32], &[f32]) + Sync,
    ) {
        let n = self.n_in;
        let rows = output.par_chunks_exact_mut(w * self.n_out).enumerate();
        rows.with_min_len(PIECE_ROWS).for_each(|(y, output)| {
            SCRATCH.with_borrow_mut(|scratch| {
                let sums = self.forward.multiply(w, scratch, |x, values| {
                    for (dy, values) in values.chunks_exact_mut(3 * n).enumerate() {
                        self.for_each_run([h, w], [y + dy, x], |taps, pixel| match pixel {
                            Some(pixel) => {
                                let start = pixel * n;
                                let values = &mut values[taps.start * n..taps.end * n];
                                values.copy_from_slice(&input[start..start + values.len()]);
                            }
                            None => values[taps.start * n..taps.end * n].fill(0.0),
                        });
                    }
                });
                let sums = sums.chunks_exact(self.forward.columns);
                for (pixel, sums) in output.chunks_exact_mut(self.n_out).zip(sums) {
                    write(pixel, sums);
                }
            });
        });
    }

    /// The adjoint of the correlation: `gradient` `[h, w, n_in]` is what comes back from the
    /// gradient with respect to its sums, which `read(pixel, values)` gives a pixel of.
    pub fn adjoint(
        &self,
        [h, w]: [usize; 2],
        gradient: &mut [f32],
        read: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let n = self.n_in;
        let pieces = gradient.par_chunks_mut(PIECE_ROWS * w * n).enumerate();
        pieces.for_each(|(index, gradient)| {
            let rows = index * PIECE_ROWS..(index * PIECE_ROWS + PIECE_ROWS).min(h);
            let own = rows.start * w..rows.end * w;
            gradient.fill(0.0);
            SCRATCH.with_borrow_mut(|scratch| {
                // The rows around the piece's have taps in it.
                for y in rows.start.saturating_sub(1)..(rows.end + 1).min(h) {
                    let products = self.adjoint.multiply(w, scratch, |x, values| {
                        read(y * w + x, values);
                    });
                    let products = products.chunks_exact(self.adjoint.columns).enumerate();
                    for (x, products) in products {
                        for (dy, products) in products.chunks_exact(3 * n).take(3).enumerate() {
                            self.for_each_run([h, w], [y + dy, x], |taps, pixel| {
                                let Some(pixel) = pixel.filter(|pixel| own.contains(pixel)) else {
                                    return;
                                };
                                let products = &products[taps.start * n..taps.end * n];
                                let pixels = &mut gradient[(pixel - own.start) * n..];
                                for (value, product) in pixels.iter_mut().zip(products) {
                                    *value += product;
                                }
                            });
                        }
                    }
                }
            });
        });
    }

    /// Calls `visit` with runs of the three taps whose middle one is above column `x`, in the row
    /// that is one above `y`, and with the pixel under the first of them, if there is one.
    #[inline(always)]
    fn for_each_run(
        &self,
        [h, w]: [usize; 2],
        [y, x]: [usize; 2],
        mut visit: impl FnMut(Range<usize>, Option<usize>),
    ) {
        let inside = |at: usize, side: usize| match self.border {
            Border::Zeros => at.checked_sub(1).filter(|&at| at < side),
            Border::Replicate => Some(at.saturating_sub(1).min(side - 1)),
        };
        let Some(row) = inside(y, h) else {
            return visit(0..3, None);
        };
        if 0 < x && x + 1 < w {
            return visit(0..3, Some(row * w + x - 1));
        }
        for tap in 0..3 {
            visit(tap..tap + 1, inside(x + tap, w).map(|x| row * w + x));
        }
    }
}

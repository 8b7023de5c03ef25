// SPDX-License-Identifier: MPL-2.0

//! im2col: the CPU's `f32` 3x3 convolution for any number of channels and any border, as the
//! product of a matrix of 3x3 patches and the kernel. Its adjoint is col2im: products with the
//! transposed kernel are added to the pixels that the patches came from. It is meant for few input
//! channels, those of an image.

use super::conv::Border;
use super::microkernel::{PANEL_VECTORS, lanes, multiply, row_groups, scratch_slice};
use aligned_vec::AVec;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Image rows per parallel task.
const TASK_ROWS: usize = 8;

thread_local! {
    static ROW_SCRATCH: RefCell<RowScratch> = RefCell::new(RowScratch {
        values: AVec::new(0),
        group: AVec::new(0),
        products: AVec::new(0),
    });
}

/// Buffers for a row of pixels, kept between calls.
struct RowScratch {
    /// `[pixels, depth]`
    values: AVec<f32>,
    /// A group of rows of `values`, packed for [`multiply`].
    group: AVec<f32>,
    /// `[pixels, columns]`
    products: AVec<f32>,
}

/// A matrix packed in panels for [`multiply`].
struct PanelMatrix {
    rows: usize,
    /// `rows`, rounded up to whole vectors.
    depth: usize,
    /// The number of columns, rounded up to whole panels.
    columns: usize,
    /// `[columns / panel, depth, panel]`, padded with zeros.
    values: AVec<f32>,
}

impl PanelMatrix {
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

    /// Multiplies `rows` rows, each written by `fill(row, values)`, by the matrix: `[rows,
    /// columns]`.
    fn multiply<'a>(
        &self,
        rows: usize,
        scratch: &'a mut RowScratch,
        mut fill: impl FnMut(usize, &mut [f32]),
    ) -> &'a [f32] {
        let values = scratch_slice(&mut scratch.values, rows * self.depth);
        for (row, values) in values.chunks_exact_mut(self.depth).enumerate() {
            let (values, padding) = values.split_at_mut(self.rows);
            fill(row, values);
            padding.fill(0.0);
        }
        let products = scratch_slice(&mut scratch.products, rows * self.columns);
        Arch::new().dispatch(PanelProduct {
            matrix: self,
            rows,
            values,
            group: scratch_slice(&mut scratch.group, rows * self.depth),
            products,
        });
        products
    }
}

/// `products = values * matrix`.
struct PanelProduct<'a> {
    matrix: &'a PanelMatrix,
    rows: usize,
    values: &'a [f32],
    group: &'a mut [f32],
    products: &'a mut [f32],
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.matrix.depth / S::F32_LANES;
        let stride = self.matrix.columns / S::F32_LANES;
        let matrix = S::as_simd_f32s(&self.matrix.values).0;
        let products = S::as_mut_simd_f32s(self.products).0;
        for rows in row_groups::<S>(self.rows) {
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

/// `relu(input * kernel + bias)`. Features are row-major.
pub struct Im2colConv {
    n_in: usize,
    bias: Vec<f32>,
    border: Border,
    /// `[taps * n_in, n_out]`
    forward: PanelMatrix,
    /// `[n_out, taps * n_in]`
    adjoint: PanelMatrix,
}

impl Im2colConv {
    /// The convolution whose weights are `weight(output channel, input channel, tap)`, taps in
    /// row-major order.
    pub fn new(
        n_in: usize,
        bias: Vec<f32>,
        border: Border,
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let n_out = bias.len();
        let at = |out: usize, row: usize| weight(out, row % n_in, row / n_in);
        Self {
            n_in,
            border,
            forward: PanelMatrix::new(9 * n_in, n_out, |row, out| at(out, row)),
            adjoint: PanelMatrix::new(n_out, 9 * n_in, at),
            bias,
        }
    }

    /// `output = relu(input * kernel + bias)`, from `[h, w, n_in]` to `[h, w, n_out]`.
    pub fn forward(&self, [h, w]: [usize; 2], input: &[f32], output: &mut [f32]) {
        let (n, n_out) = (self.n_in, self.bias.len());
        let rows = output.par_chunks_exact_mut(w * n_out).enumerate();
        rows.with_min_len(TASK_ROWS).for_each(|(y, output)| {
            ROW_SCRATCH.with_borrow_mut(|scratch| {
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
                for (pixel, sums) in output.chunks_exact_mut(n_out).zip(sums) {
                    for ((value, sum), bias) in pixel.iter_mut().zip(sums).zip(&self.bias) {
                        *value = (sum + bias).max(0.0);
                    }
                }
            });
        });
    }

    /// Writes the gradient with respect to the input `[h, w, n_in]`: `upstream`, where `output` is above
    /// 0, both `[h, w, n_out]`, convolved with the adjoint.
    pub fn backward(
        &self,
        [h, w]: [usize; 2],
        upstream: &[f32],
        output: &[f32],
        gradient: &mut [f32],
    ) {
        let n = self.n_in;
        let tasks = gradient.par_chunks_mut(TASK_ROWS * w * n).enumerate();
        tasks.for_each(|(index, gradient)| {
            let rows = index * TASK_ROWS..(index * TASK_ROWS + TASK_ROWS).min(h);
            let own = rows.start * w..rows.end * w;
            gradient.fill(0.0);
            ROW_SCRATCH.with_borrow_mut(|scratch| {
                // The rows next to the task's own have taps in it.
                for y in rows.start.saturating_sub(1)..(rows.end + 1).min(h) {
                    let products = self.adjoint.multiply(w, scratch, |x, values| {
                        let start = (y * w + x) * values.len();
                        let range = start..start + values.len();
                        let active = upstream[range.clone()].iter().zip(&output[range]);
                        for (value, (upstream, output)) in values.iter_mut().zip(active) {
                            // A bit mask, as a branch would be unpredictable.
                            let mask = u32::from(*output > 0.0).wrapping_neg();
                            *value = f32::from_bits(upstream.to_bits() & mask);
                        }
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

    /// Calls `visit(taps, pixel)` for runs of the three taps in input row `y - 1` whose middle one
    /// is at column `x`: `pixel` is the one at the first tap of the run, and those at its other
    /// taps follow it. None is a run of zeros.
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

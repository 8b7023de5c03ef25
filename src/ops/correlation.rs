// SPDX-License-Identifier: MPL-2.0

//! The CPU's 3x3 correlation, which convolution and its gradient are made of.

use super::conv::Border;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Positions of a strip: its rows and their products stay within a core's L2 cache, and are
/// enough to repay the packing of the kernel that `gemm` does for each strip.
const STRIP_POSITIONS: usize = 768;

/// Pieces that an image is cut into at least, over its rows and then over the output channels,
/// so that many cores find work.
const MIN_PIECES: usize = 16;

/// Output channels of a piece at least: below this, copying the strip costs more than it gives.
const MIN_CHANNELS: usize = 64;

thread_local! {
    /// A strip's padded input and its sums, kept from call to call.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// A 3x3 correlation of an image `[h, w, n_in]`, done a strip of rows and a range of output
/// channels at a time.
///
/// With the channels last, the three pixels under a row of taps lie side by side, and those of
/// the next position begin one pixel later. So a padded strip is its own matrix of patches,
/// `[positions, 3 * n_in]` with a row stride of `n_in`, and the correlation is the sum of three
/// matrix products, one for each row of taps.
pub struct Correlation<'a> {
    h: usize,
    w: usize,
    n_in: usize,
    n_out: usize,
    /// Pixels around the image. With 2 there are sums for the pixels just outside too, and they
    /// count towards the nearest pixel inside: the adjoint of a replicated border.
    padding: usize,
    border: Border,
    /// `[3, 3 * n_in, n_out]`
    kernel: &'a [f32],
    strip_rows: usize,
    strips: usize,
    block_channels: usize,
    blocks: usize,
}

impl<'a> Correlation<'a> {
    pub fn new(
        [h, w]: [usize; 2],
        n_in: usize,
        n_out: usize,
        padding: usize,
        border: Border,
        kernel: &'a [f32],
    ) -> Self {
        assert_eq!(kernel.len(), 9 * n_in * n_out);
        let strip_rows = (STRIP_POSITIONS / (w + 2 * padding)).clamp(1, h);
        let strips = h.div_ceil(strip_rows);
        let blocks = MIN_PIECES
            .div_ceil(strips)
            .min(n_out.div_ceil(MIN_CHANNELS));
        Self {
            h,
            w,
            n_in,
            n_out,
            padding,
            border,
            kernel,
            strip_rows,
            strips,
            block_channels: n_out.div_ceil(blocks),
            blocks,
        }
    }

    /// `read(y, row)` gives row `y` of the image, `[w, n_in]`; `write(pixel, channels, sums)` takes
    /// the sums of a pixel of the output for a range of its channels.
    pub fn run(
        &self,
        output: &mut [f32],
        read: impl Fn(usize, &mut [f32]) + Sync,
        write: impl Fn(&mut [f32], Range<usize>, &[f32]) + Sync,
    ) {
        let output = Shared(output.as_mut_ptr(), output.len());
        (0..self.strips * self.blocks)
            .into_par_iter()
            .for_each(|piece| {
                let (strip, block) = (piece / self.blocks, piece % self.blocks);
                let rows = strip * self.strip_rows..((strip + 1) * self.strip_rows).min(self.h);
                let start = (block * self.block_channels).min(self.n_out);
                let channels = start..(start + self.block_channels).min(self.n_out);
                SCRATCH.with_borrow_mut(|(strip, sums)| {
                    let summed = self.summed_rows(&rows);
                    self.fill(&summed, strip, &read);
                    self.multiply(summed.len(), &channels, strip, sums);
                    let width = self.w + 2 * self.padding;
                    for (row, sums) in summed.zip(sums.chunks_exact(width * channels.len())) {
                        let y = self.inside(row, self.h);
                        let pixels = sums
                            .chunks_exact(channels.len())
                            .take(width - 2)
                            .enumerate();
                        for (column, sums) in pixels {
                            let at = (y * self.w + self.inside(column, self.w)) * self.n_out;
                            // SAFETY: pieces differ in `channels` or in `rows`, and `y` is in `rows`.
                            let pixel =
                                unsafe { output.range(at + channels.start, channels.len()) };
                            write(pixel, channels.clone(), sums);
                        }
                    }
                });
            });
    }

    /// The rows of sums that count towards `rows` of the output, numbered from the first there is.
    fn summed_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let outside = self.padding - 1;
        let start = if rows.start == 0 {
            0
        } else {
            rows.start + outside
        };
        let end = if rows.end == self.h {
            rows.end + 2 * outside
        } else {
            rows.end + outside
        };
        start..end
    }

    /// The row (or column) of the output that a row (or column) of sums counts towards.
    fn inside(&self, index: usize, side: usize) -> usize {
        index.saturating_sub(self.padding - 1).min(side - 1)
    }

    /// Fills `strip` with the padded rows under `summed`, `[summed + 2, w + 2 * padding, n_in]`.
    fn fill(&self, summed: &Range<usize>, strip: &mut Vec<f32>, read: &impl Fn(usize, &mut [f32])) {
        let width = (self.w + 2 * self.padding) * self.n_in;
        let edge = self.padding * self.n_in;
        strip.resize((summed.len() + 2) * width, 0.0);
        for (row, padded) in (summed.start..).zip(strip.chunks_exact_mut(width)) {
            let beyond = row < self.padding || row >= self.h + self.padding;
            if beyond && self.border == Border::Zeros {
                padded.fill(0.0);
                continue;
            }
            let (left, rest) = padded.split_at_mut(edge);
            let (middle, right) = rest.split_at_mut(self.w * self.n_in);
            read(row.saturating_sub(self.padding).min(self.h - 1), middle);
            match self.border {
                Border::Zeros => {
                    left.fill(0.0);
                    right.fill(0.0);
                }
                Border::Replicate => {
                    let (first, last) = (&middle[..self.n_in], &middle[middle.len() - self.n_in..]);
                    left.chunks_exact_mut(self.n_in)
                        .for_each(|pixel| pixel.copy_from_slice(first));
                    right
                        .chunks_exact_mut(self.n_in)
                        .for_each(|pixel| pixel.copy_from_slice(last));
                }
            }
        }
    }

    /// `sums` `[rows, w + 2 * padding, channels]`, whose last two of a row have no meaning.
    fn multiply(&self, rows: usize, channels: &Range<usize>, strip: &[f32], sums: &mut Vec<f32>) {
        let width = self.w + 2 * self.padding;
        let (positions, taps, n) = (rows * width - 2, 3 * self.n_in, channels.len());
        sums.resize(rows * width * n, 0.0);
        for (row, kernel) in self.kernel.chunks_exact(taps * self.n_out).enumerate() {
            let patches = &strip[row * width * self.n_in..];
            assert!(patches.len() >= (positions - 1) * self.n_in + taps);
            // SAFETY: `patches` holds the last position's taps by the assertion, `kernel`
            // [taps, n_out] the channels from `channels.start` on, and `sums` its [positions, n].
            unsafe {
                gemm(
                    positions,
                    n,
                    taps,
                    sums.as_mut_ptr(),
                    1,
                    n as isize,
                    row > 0,
                    patches.as_ptr(),
                    1,
                    self.n_in as isize,
                    kernel[channels.start..].as_ptr(),
                    1,
                    self.n_out as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        }
    }
}

/// The output of a correlation, which its pieces write at the same time.
struct Shared(*mut f32, usize);

// SAFETY: it is only a pointer; what is written through it at the same time does not overlap, as
// `range` demands.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// Nobody else may use the range while the slice lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn range(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.1);
        // SAFETY: in bounds by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

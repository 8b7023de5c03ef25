// SPDX-License-Identifier: MPL-2.0

//! conv1_1 on the tile registers: from an f32 image, its border replicated, to bf16 features, and
//! the gradient back to the image.
//!
//! Pixels and weights are each split into two bf16 parts, the rounded value and the rounding error,
//! and a product is the sum of three of the four products of parts, all but error times error. So
//! both keep 16 significant bits: pixels, because the optimiser's steps need them, and weights,
//! because rounding those of this layer turned the gradient more than all other rounding.

use super::super::DisjointSlices;
use super::convolution::{self, BiasReluBf16, ConvInput, Convolution, TileEpilogue};
use super::microkernel::{
    Accumulators, LeftOperand, Line, STRIPS, TILE_COLUMNS, TILE_DEPTH, TILE_ROWS, VnniMatrix,
    multiply,
};
use super::tiles::TilesGuard;
use super::{Amx, avx512};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Channels of an image.
const RGB: usize = 3;

/// Values of a patch: nine taps of three channels.
const PATCH_VALUES: usize = 9 * RGB;

/// Parts that a value is split into: rounded to bf16, and the rounding error. A patch has a line of
/// each.
const SPLIT_PARTS: usize = 2;

/// The patch's line of each step: both times the rounded weights, then the rounded values times the
/// weights' rounding errors.
const STEP_PARTS: [usize; 3] = [0, 1, 0];

/// Columns of the adjoint product that make up a pixel's gradient.
const GRADIENT_COLUMNS: usize = SPLIT_PARTS * RGB;

/// Image rows per parallel task.
const TASK_ROWS: usize = 8;

thread_local! {
    static PATCH_SCRATCH: Cell<PatchScratch> = const {
        Cell::new(PatchScratch {
            patches: Vec::new(),
            padded: Vec::new(),
            rows: [const { Vec::new() }; SPLIT_PARTS],
        })
    };
    /// The gradient with respect to the padded image, kept between calls.
    static PADDED_GRADIENT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Buffers for the patches of a task's rows, kept between calls.
#[derive(Default)]
struct PatchScratch {
    /// `[pixels, 2]`
    patches: Vec<Line>,
    /// A row of the padded image, `[w + 2, 3]`.
    padded: Vec<f32>,
    /// The padded image's rows, split, `[rows + 2, w + 2, 3]`, each row padded to whole vectors.
    rows: [Vec<bf16>; SPLIT_PARTS],
}

/// conv1_1 with its bias and ReLU.
pub struct AmxImageConv {
    amx: Amx,
    forward: VnniMatrix,
    /// Three columns of rounded weights, three of their rounding errors, and zeros.
    adjoint: VnniMatrix,
    bias: Vec<f32>,
}

impl AmxImageConv {
    /// Packs a kernel of weights `weight(output channel, input channel, tap)`, taps in row-major
    /// order. The number of output channels is a multiple of [`super::CHANNEL_MULTIPLE`].
    pub fn new(
        amx: Amx,
        bias: Vec<f32>,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let n_out = bias.len();
        let parts = |out, input, tap| {
            let weight = weight(out, input, tap);
            let rounded = bf16::from_f32(weight).to_f32();
            [rounded, weight - rounded]
        };
        let forward = VnniMatrix::new(STEP_PARTS.len(), n_out, |row, out| match row % TILE_DEPTH {
            index @ 0..PATCH_VALUES => {
                parts(out, index % RGB, index / RGB)[row / TILE_DEPTH / SPLIT_PARTS]
            }
            _ => 0.0,
        });
        let adjoint = convolution::kernel(n_out, TILE_COLUMNS, |column, out, tap| match column {
            0..GRADIENT_COLUMNS => parts(out, column % RGB, 8 - tap)[column / RGB],
            _ => 0.0,
        });
        Self {
            amx,
            forward,
            adjoint,
            bias,
        }
    }

    /// Computes `output` `[h, w, n_out]` from `image` `[h, w, 3]`.
    pub fn forward(&self, [h, w]: [usize; 2], image: &[f32], output: &mut [bf16]) {
        assert_eq!(
            [image.len(), output.len()],
            [RGB, self.bias.len()].map(|n| h * w * n)
        );
        let epilogue = BiasReluBf16 {
            bias: &self.bias,
            output: DisjointSlices::new(output),
        };
        let tasks = (0..h.div_ceil(TASK_ROWS)).into_par_iter();
        tasks.for_each(|task| {
            let rows = task * TASK_ROWS..((task + 1) * TASK_ROWS).min(h);
            let mut scratch = PATCH_SCRATCH.take();
            // SAFETY: a processor with AMX has the features, and tasks' rows do not overlap.
            unsafe { self.forward_rows([h, w], rows, image, &epilogue, &mut scratch) };
            PATCH_SCRATCH.set(scratch);
        });
    }

    /// # Safety
    /// The processor has these features, and nothing else accesses the rows of the output.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn forward_rows(
        &self,
        [h, w]: [usize; 2],
        rows: Range<usize>,
        image: &[f32],
        epilogue: &impl TileEpilogue,
        scratch: &mut PatchScratch,
    ) {
        let pixels = rows.len() * w;
        gather_patches([h, w], &rows, image, scratch);
        let positions = LeftOperand {
            lines: &scratch.patches,
            stride: SPLIT_PARTS,
        };
        let tiles = TilesGuard::configure(self.amx);
        let mut sums = Accumulators::ZEROS;
        for first in (0..pixels).step_by(STRIPS * TILE_ROWS) {
            let starts = std::array::from_fn(|strip| (first + strip * TILE_ROWS) * SPLIT_PARTS);
            for channel in (0..self.bias.len()).step_by(TILE_COLUMNS) {
                let panel = self.forward.panel(channel);
                multiply(&tiles, positions, starts, &STEP_PARTS, panel, &mut sums);
                let sums = sums.0.as_flattened();
                for (pixel, sums) in (first..pixels).zip(sums) {
                    // SAFETY: the pixel is in `rows`, which are the caller's.
                    unsafe { epilogue.store(rows.start * w + pixel, channel, sums) };
                }
            }
        }
    }

    /// Computes `gradient` `[h, w, 3]`, with respect to the image, from `upstream`, that with
    /// respect to `output`, both `[h, w, n_out]`: where `output` is not above 0, the ReLU passes
    /// none.
    pub fn backward(
        &self,
        [h, w]: [usize; 2],
        upstream: &[bf16],
        output: &[bf16],
        gradient: &mut [f32],
    ) {
        assert_eq!(gradient.len(), h * w * RGB);
        let source = ConvInput::MaskedGradient(upstream, output);
        let n = self.bias.len();
        let mut padded = PADDED_GRADIENT.take();
        padded.resize((h + 2) * (w + 2) * RGB, 0.0);
        let epilogue = StorePixelSums(DisjointSlices::new(&mut padded));
        Convolution::new(self.amx, [h, w], n, 2, source, &self.adjoint).compute(epilogue);
        // A pixel at the edge also gets the gradients of its copies in the border.
        let copies = |at: usize, side: usize| {
            let first = if at == 0 { 0 } else { at + 1 };
            let last = if at + 1 == side { at + 2 } else { at + 1 };
            first..last + 1
        };
        let rows = gradient.par_chunks_exact_mut(w * RGB).enumerate();
        rows.for_each(|(y, row)| {
            row.fill(0.0);
            for padded in copies(y, h).map(|y| &padded[y * (w + 2) * RGB..][..(w + 2) * RGB]) {
                let (pixels, padded) = (row.as_chunks_mut::<RGB>().0, padded.as_chunks::<RGB>().0);
                for (x, pixel) in pixels.iter_mut().enumerate() {
                    for copy in &padded[copies(x, w)] {
                        for (value, copy) in pixel.iter_mut().zip(copy) {
                            *value += copy;
                        }
                    }
                }
            }
        });
        PADDED_GRADIENT.set(padded);
    }
}

/// Copies the patches of all pixels of `rows` to `scratch.patches` (im2col), with room for the
/// unused positions of the last strips.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn gather_patches(
    [h, w]: [usize; 2],
    rows: &Range<usize>,
    image: &[f32],
    scratch: &mut PatchScratch,
) {
    /// Values copied for three neighbouring taps, which are nine contiguous values. The excess is
    /// overwritten by the next three taps or, after the last, multiplied by weights of zero.
    const COPIED: usize = TILE_DEPTH - 2 * 3 * RGB;
    let row_len = ((w + 2) * RGB).next_multiple_of(avx512::LANES);
    let PatchScratch {
        patches,
        padded,
        rows: parts,
    } = scratch;
    padded.resize(row_len, 0.0);
    for part in parts.iter_mut() {
        part.resize((rows.len() + 2) * row_len + COPIED, bf16::ZERO);
    }
    for (at, y) in (rows.start..rows.end + 2).enumerate() {
        let row = &image[y.saturating_sub(1).min(h - 1) * w * RGB..][..w * RGB];
        let (inside, last) = (RGB..RGB + row.len(), row.len() - RGB);
        padded[..RGB].copy_from_slice(&row[..RGB]);
        padded[inside.clone()].copy_from_slice(row);
        padded[inside.end..inside.end + RGB].copy_from_slice(&row[last..]);
        let [rounded, rest] = parts.each_mut().map(|part| {
            let part = &mut part[at * row_len..][..row_len];
            part.as_chunks_mut::<{ avx512::LANES }>().0
        });
        let pixels = padded.as_chunks::<{ avx512::LANES }>().0;
        for ((rounded, rest), pixels) in rounded.iter_mut().zip(rest).zip(pixels) {
            let pixels = avx512::load(pixels);
            *rounded = avx512::round(pixels);
            *rest = avx512::round(avx512::difference(pixels, avx512::widen(*rounded)));
        }
    }
    let pixels = rows.len() * w;
    let len = pixels.next_multiple_of(STRIPS * TILE_ROWS) * SPLIT_PARTS;
    if patches.len() < len {
        patches.resize(len, Line::ZEROS);
    }
    for (pixel, lines) in patches.as_chunks_mut::<SPLIT_PARTS>().0[..pixels]
        .iter_mut()
        .enumerate()
    {
        let start = pixel / w * row_len + pixel % w * RGB;
        for (line, values) in lines.iter_mut().zip(parts.iter()) {
            for dy in 0..3 {
                let taps = &values[start + dy * row_len..][..COPIED];
                line.0[dy * 3 * RGB..][..COPIED].copy_from_slice(taps);
            }
        }
    }
}

/// Stores the gradient with respect to the padded image.
struct StorePixelSums<'a>(DisjointSlices<'a, f32>);

// SAFETY: `DisjointSlices` borrows the output mutably, and is not `Clone`.
unsafe impl TileEpilogue for StorePixelSums<'_> {
    #[inline]
    unsafe fn store(&self, pixel: usize, _: usize, sums: &[f32; TILE_COLUMNS]) {
        // SAFETY: the caller's promise.
        let pixel = unsafe { self.0.slice_mut(pixel * RGB, RGB) };
        let [sums, rest] = [&sums[..RGB], &sums[RGB..GRADIENT_COLUMNS]];
        for ((value, sum), rest) in pixel.iter_mut().zip(sums).zip(rest) {
            *value = sum + rest;
        }
    }
}

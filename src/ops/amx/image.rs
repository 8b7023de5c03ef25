// SPDX-License-Identifier: MPL-2.0

//! conv1_1 on the tiles: from the f32 pixels of an image, whose border is replicated, to features
//! in bf16, and back.

use super::super::Shared;
use super::convolution::{self, Activation, Convolution, Sink, Source};
use super::product::{COLUMNS, DEPTH, Line, Matrix, POSITIONS, Positions, STRIPS, Sums, multiply};
use super::tiles::Tiles;
use super::{Amx, values};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Channels of an image.
const RGB: usize = 3;

/// Values that a pixel's sums are made of: nine taps of three channels.
const PATCH: usize = 9 * RGB;

/// Lines of a patch. The first has the values rounded to bf16, the second what the rounding took
/// away: pixels keep the 16 bits that the optimiser's steps need, and weights 16 too, because
/// rounding those of this layer turned the gradient more than all other rounding.
const PARTS: usize = 2;

/// The lines of a patch that a step multiplies: both by the rounded weights, and the first by what
/// was taken from them.
const STEPS: [usize; 3] = [0, 1, 0];

/// Sums that a pixel's gradient is made of.
const PIXEL_SUMS: usize = PARTS * RGB;

/// Rows of a piece of work.
const PIECE_ROWS: usize = 8;

thread_local! {
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch {
            patches: Vec::new(),
            padded: Vec::new(),
            rows: [const { Vec::new() }; PARTS],
        })
    };
    /// The gradient with respect to the padded image, kept from call to call.
    static PADDED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

#[derive(Default)]
struct Scratch {
    /// `[pixels, 2]`
    patches: Vec<Line>,
    /// A row of the padded image, `[w + 2, 3]`.
    padded: Vec<f32>,
    /// The padded image's rows, `[rows + 2, w + 2, 3]`, each as whole vectors.
    rows: [Vec<bf16>; PARTS],
}

/// conv1_1, its ReLU included.
pub struct ImageConv {
    amx: Amx,
    forward: Matrix,
    /// Three columns of the rounded weights, three of what was taken from them, and zeros.
    adjoint: Matrix,
    bias: Vec<f32>,
}

impl ImageConv {
    /// With a kernel whose weight is `weight(output channel, input channel, tap)`, its taps
    /// counted row by row. The number of output channels is a multiple of [`super::CHANNELS`].
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
        let forward = Matrix::new(STEPS.len(), n_out, |row, out| match row % DEPTH {
            place @ 0..PATCH => parts(out, place % RGB, place / RGB)[row / DEPTH / PARTS],
            _ => 0.0,
        });
        let adjoint = convolution::kernel(n_out, COLUMNS, |column, out, tap| match column {
            0..PIXEL_SUMS => parts(out, column % RGB, 8 - tap)[column / RGB],
            _ => 0.0,
        });
        Self {
            amx,
            forward,
            adjoint,
            bias,
        }
    }

    /// Size of the packed kernels and the bias in bytes.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.adjoint.bytes() + size_of_val(self.bias.as_slice())
    }

    /// From `image` `[h, w, 3]` to `output` `[h, w, n_out]`.
    pub fn forward(&self, [h, w]: [usize; 2], image: &[f32], output: &mut [bf16]) {
        assert_eq!(
            [image.len(), output.len()],
            [RGB, self.bias.len()].map(|n| h * w * n)
        );
        let sink = Activation {
            bias: &self.bias,
            output: Shared::new(output),
        };
        let pieces = (0..h.div_ceil(PIECE_ROWS)).into_par_iter();
        pieces.for_each(|piece| {
            let rows = piece * PIECE_ROWS..((piece + 1) * PIECE_ROWS).min(h);
            let mut scratch = SCRATCH.take();
            // SAFETY: a processor with AMX has the instructions, and pieces do not overlap.
            unsafe { self.forward_rows([h, w], rows, image, &sink, &mut scratch) };
            SCRATCH.set(scratch);
        });
    }

    /// # Safety
    /// The processor has these features, and nobody else uses the rows of the output.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn forward_rows(
        &self,
        [h, w]: [usize; 2],
        rows: Range<usize>,
        image: &[f32],
        sink: &impl Sink,
        scratch: &mut Scratch,
    ) {
        let pixels = rows.len() * w;
        lay_patches([h, w], &rows, image, scratch);
        let positions = Positions {
            lines: &scratch.patches,
            stride: PARTS,
        };
        let tiles = Tiles::configure(self.amx);
        let mut sums = Sums::ZEROS;
        for first in (0..pixels).step_by(STRIPS * POSITIONS) {
            let starts = std::array::from_fn(|strip| (first + strip * POSITIONS) * PARTS);
            for channel in (0..self.bias.len()).step_by(COLUMNS) {
                let panel = self.forward.panel(channel);
                multiply(&tiles, positions, starts, &STEPS, panel, &mut sums);
                let sums = sums.0.as_flattened();
                for (pixel, sums) in (first..pixels).zip(sums) {
                    // SAFETY: the pixel is in the rows, which are the caller's.
                    unsafe { sink.store(rows.start * w + pixel, channel, sums) };
                }
            }
        }
    }

    /// From `upstream`, the gradient with respect to `output`, both `[h, w, n_out]`, to the `gradient`
    /// with respect to the image, `[h, w, 3]`: where `output` is not above 0 the ReLU lets nothing
    /// back.
    pub fn backward(
        &self,
        [h, w]: [usize; 2],
        upstream: &[bf16],
        output: &[bf16],
        gradient: &mut [f32],
    ) {
        assert_eq!(gradient.len(), h * w * RGB);
        let source = Source::Active(upstream, output);
        let n = self.bias.len();
        let mut padded = PADDED.take();
        padded.resize((h + 2) * (w + 2) * RGB, 0.0);
        let sink = Pixels(Shared::new(&mut padded));
        Convolution::new(self.amx, [h, w], n, 2, source, &self.adjoint).compute(&sink);
        // The pixels beyond an edge are copies of those at the edge.
        let places = |at: usize, side: usize| {
            let first = if at == 0 { 0 } else { at + 1 };
            let last = if at + 1 == side { at + 2 } else { at + 1 };
            first..last + 1
        };
        let rows = gradient.par_chunks_exact_mut(w * RGB).enumerate();
        rows.for_each(|(y, row)| {
            row.fill(0.0);
            for padded in places(y, h).map(|y| &padded[y * (w + 2) * RGB..][..(w + 2) * RGB]) {
                let (pixels, padded) = (row.as_chunks_mut::<RGB>().0, padded.as_chunks::<RGB>().0);
                for (x, pixel) in pixels.iter_mut().enumerate() {
                    for copy in &padded[places(x, w)] {
                        for (value, copy) in pixel.iter_mut().zip(copy) {
                            *value += copy;
                        }
                    }
                }
            }
        });
        PADDED.set(padded);
    }
}

/// Lays out the patches of all pixels of `rows`, and room for as many more as the last strips reach
/// beyond them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn lay_patches([h, w]: [usize; 2], rows: &Range<usize>, image: &[f32], scratch: &mut Scratch) {
    /// Three neighbouring taps are nine values that lie together. So many are copied; the next
    /// nine overwrite the rest, or else it meets weights of zero.
    const COPIED: usize = DEPTH - 2 * 3 * RGB;
    let row_len = ((w + 2) * RGB).next_multiple_of(values::LANES);
    let Scratch {
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
            part.as_chunks_mut::<{ values::LANES }>().0
        });
        let pixels = padded.as_chunks::<{ values::LANES }>().0;
        for ((rounded, rest), pixels) in rounded.iter_mut().zip(rest).zip(pixels) {
            let pixels = values::load(pixels);
            *rounded = values::round(pixels);
            *rest = values::round(values::difference(pixels, values::widen(*rounded)));
        }
    }
    let pixels = rows.len() * w;
    let len = pixels.next_multiple_of(STRIPS * POSITIONS) * PARTS;
    if patches.len() < len {
        patches.resize(len, Line::ZEROS);
    }
    for (pixel, lines) in patches.as_chunks_mut::<PARTS>().0[..pixels]
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

/// The gradient with respect to a padded image.
struct Pixels<'a>(Shared<'a, f32>);

impl Sink for Pixels<'_> {
    #[inline]
    unsafe fn store(&self, pixel: usize, _: usize, sums: &[f32; COLUMNS]) {
        // SAFETY: the caller's promise.
        let pixel = unsafe { self.0.range(pixel * RGB, RGB) };
        let [sums, rest] = [&sums[..RGB], &sums[RGB..PIXEL_SUMS]];
        for ((value, sum), rest) in pixel.iter_mut().zip(sums).zip(rest) {
            *value = sum + rest;
        }
    }
}

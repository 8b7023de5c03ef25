// SPDX-License-Identifier: MPL-2.0

//! The 3x3 convolution of features on the tile registers, as an implicit GEMM: a product with a
//! matrix of patches that is never built.
//!
//! Each piece of the input is copied to a buffer that fits in a core's L2 cache, with a border of
//! zeros. In it, a given tap of output pixel `(y, x)` is a constant number of lines past `(y, x)`,
//! so that 32 channels of 16 neighbouring pixels are a left tile as they are in memory.
//!
//! A *position* is the index of a pixel in this buffer: output pixel `(y, x)` of the piece is at
//! position `y * (w + 2) + x`, where its first tap is. Positions include the two border pixels
//! between rows, whose sums are discarded.

use super::super::DisjointSlices;
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

/// Most bytes of a piece's copy: with part of the kernel, it stays in the L2 cache (2 MB on cores
/// with AMX) while it is read once for each 32 output channels.
const MAX_PIECE_BYTES: usize = 768 << 10;

/// Pieces per thread, if the output is large enough, for load balance.
const PIECES_PER_THREAD: usize = 3;

/// Output channels per pass over the input, for which each part of it is read while in the L1
/// cache: as many as fill a cache line of the output.
const PASS_CHANNELS: usize = 32;

thread_local! {
    static PIECE_SCRATCH: Cell<PieceScratch> = const {
        Cell::new(PieceScratch {
            lines: Vec::new(),
            strips: Vec::new(),
        })
    };
}

/// Buffers of a piece, kept between calls.
#[derive(Default)]
struct PieceScratch {
    lines: Vec<Line>,
    strips: Vec<Strip>,
}

/// The input of a convolution.
#[derive(Clone, Copy)]
pub enum ConvInput<'a> {
    /// `[h, w, n_in]`
    Features(&'a [bf16]),
    /// A gradient, and activations: it counts as 0 where they are not above 0. Both `[h, w, n_in]`.
    MaskedGradient(&'a [bf16], &'a [bf16]),
}

/// What is applied to the sums as they are stored.
///
/// # Safety
/// The owner of an epilogue has its output to itself: it borrows the output mutably, and there is
/// no copy of it.
pub unsafe trait TileEpilogue: Sync {
    /// Stores the sums of a pixel, of 16 output channels from `channel` on.
    ///
    /// # Safety
    /// The processor has the features of [`avx512`], and nothing else accesses that part of the
    /// output meanwhile.
    unsafe fn store(&self, pixel: usize, channel: usize, sums: &[f32; TILE_COLUMNS]);
}

/// Packs the kernel of weights `weight(output channel, input channel, tap)`, taps in row-major
/// order. Its steps are the nine taps of 32 input channels, then those of the next 32, so that a
/// tap finds in the L1 cache what those before it have read.
pub fn kernel(
    n_in: usize,
    n_out: usize,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> VnniMatrix {
    assert!(n_in > 0 && n_in.is_multiple_of(TILE_DEPTH));
    VnniMatrix::new(9 * n_in / TILE_DEPTH, n_out, |row, out| {
        let (step, channel) = (row / TILE_DEPTH, row % TILE_DEPTH);
        weight(out, step / 9 * TILE_DEPTH + channel, step % 9)
    })
}

/// A convolution of one input.
pub struct Convolution<'a> {
    amx: Amx,
    /// Size of the output.
    h: usize,
    w: usize,
    n_in: usize,
    /// Width of the border of zeros around the input, in pixels.
    border: usize,
    source: ConvInput<'a>,
    kernel: &'a VnniMatrix,
    /// Distance between neighbouring positions in the copy, in lines: an odd number, so one more than
    /// the channels take where that is even. In the L1 cache, lines whose distance is a multiple of 64
    /// share 12 places: with 16 lines to a position, say, strips would drive each other out between
    /// one tap and the next.
    stride: usize,
    /// Distance of each step's lines from a position's first line, in lines.
    offsets: Vec<usize>,
}

/// The part of an output that a task computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub rows: Range<usize>,
    pub channels: Range<usize>,
}

/// Up to 16 positions from an output pixel on.
#[derive(Clone, Copy)]
struct Strip {
    y: usize,
    x: usize,
}

impl<'a> Convolution<'a> {
    /// Of an input `[h, w, n_in]` and a border of zeros: of one pixel for an output of the same
    /// size, of two for an output larger by a pixel on each side.
    pub fn new(
        amx: Amx,
        [h, w]: [usize; 2],
        n_in: usize,
        border: usize,
        source: ConvInput<'a>,
        kernel: &'a VnniMatrix,
    ) -> Self {
        assert!(h > 0 && w > 0 && border > 0);
        match source {
            ConvInput::Features(values) => assert_eq!(values.len(), h * w * n_in),
            ConvInput::MaskedGradient(values, active) => {
                assert_eq!([values.len(), active.len()], [h * w * n_in; 2]);
            }
        }
        let (h, w) = (h + 2 * border - 2, w + 2 * border - 2);
        let chunks = n_in / TILE_DEPTH;
        let stride = chunks | 1;
        let offsets = (0..9 * chunks).map(|step| {
            let (chunk, tap) = (step / 9, step % 9);
            (tap / 3 * (w + 2) + tap % 3) * stride + chunk
        });
        Self {
            amx,
            h,
            w,
            n_in,
            border,
            source,
            kernel,
            stride,
            offsets: offsets.collect(),
        }
    }

    /// Computes the whole output.
    pub fn compute(&self, epilogue: impl TileEpilogue) {
        self.pieces(rayon::current_num_threads())
            .with_max_len(1)
            // SAFETY: pieces do not overlap, and the epilogue is owned here, so its output is too.
            .for_each(|piece| unsafe { self.run(&piece, &epilogue) });
    }

    /// Splits the output into pieces for a number of threads. No sum depends on the split.
    pub fn pieces(&self, threads: usize) -> impl IndexedParallelIterator<Item = Piece> + use<> {
        let (h, n_out) = (self.h, self.kernel.columns());
        let row_bytes = (self.w + 2) * self.stride * size_of::<Line>();
        let most = (MAX_PIECE_BYTES / row_bytes).saturating_sub(2).clamp(1, h);
        // A multiple of the number of threads, so that all finish at about the same time.
        let bands = h.div_ceil(most).next_multiple_of(threads).min(h);
        let rows = h.div_ceil(bands);
        let bands = h.div_ceil(rows);
        let wanted = (PIECES_PER_THREAD * threads).div_ceil(bands);
        let parts = wanted.min(n_out.div_ceil(2 * PASS_CHANNELS));
        let channels = n_out.div_ceil(parts).next_multiple_of(PASS_CHANNELS);
        let parts = n_out.div_ceil(channels);
        (0..bands * parts).into_par_iter().map(move |index| {
            let (row, channel) = (index / parts * rows, index % parts * channels);
            Piece {
                rows: row..(row + rows).min(h),
                channels: channel..(channel + channels).min(n_out),
            }
        })
    }

    /// Computes a piece of the output.
    ///
    /// # Safety
    /// Nothing else may access the piece's part of the output meanwhile.
    pub unsafe fn run(&self, piece: &Piece, epilogue: &impl TileEpilogue) {
        let mut scratch = PIECE_SCRATCH.take();
        // SAFETY: a processor with AMX has the features; the rest is the caller's promise.
        unsafe { self.run_with(piece, epilogue, &mut scratch) };
        PIECE_SCRATCH.set(scratch);
    }

    /// # Safety
    /// As [`Self::run`], on a processor with these features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run_with(
        &self,
        piece: &Piece,
        epilogue: &impl TileEpilogue,
        scratch: &mut PieceScratch,
    ) {
        let Piece { rows, channels } = piece;
        assert!(rows.end <= self.h && channels.end <= self.kernel.columns());
        let (pitch, stride) = (self.w + 2, self.stride);
        // Past the last pixel's taps, room for the unused positions of the last strip.
        let len = ((rows.len() + 2) * pitch + TILE_ROWS) * stride;
        if scratch.lines.len() < len {
            scratch.lines.resize(len, Line::ZEROS);
        }
        let lines = &mut scratch.lines[..len];
        for (y, row) in (rows.start..).zip(lines.chunks_exact_mut(pitch * stride)) {
            if y < rows.end + 2 {
                self.copy_row(y, row);
            }
        }
        self.layout_strips(rows, &mut scratch.strips);

        let positions = LeftOperand { lines, stride };
        let tiles = TilesGuard::configure(self.amx);
        let mut sums = Accumulators::ZEROS;
        for pass in channels.clone().step_by(PASS_CHANNELS) {
            for strips in scratch.strips.chunks(STRIPS) {
                // If fewer than three are left, the last one fills up the rest.
                let starts = std::array::from_fn(|i| {
                    let strip = strips[i.min(strips.len() - 1)];
                    ((strip.y - rows.start) * pitch + strip.x) * stride
                });
                for channel in
                    (pass..(pass + PASS_CHANNELS).min(channels.end)).step_by(TILE_COLUMNS)
                {
                    let panel = self.kernel.panel(channel);
                    multiply(&tiles, positions, starts, &self.offsets, panel, &mut sums);
                    for (strip, sums) in strips.iter().zip(&sums.0) {
                        // SAFETY: pixels and channels are within the piece, which is the caller's.
                        unsafe { self.store(*strip, rows.end, channel, sums, epilogue) };
                    }
                }
            }
        }
    }

    /// Stores the sums of those positions of a strip that are output pixels in rows before `end`.
    ///
    /// # Safety
    /// As [`Self::run_with`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(
        &self,
        Strip { mut y, mut x }: Strip,
        end: usize,
        channel: usize,
        sums: &[[f32; TILE_COLUMNS]; TILE_ROWS],
        epilogue: &impl TileEpilogue,
    ) {
        for sums in sums {
            if x < self.w {
                // SAFETY: the caller's promise.
                unsafe { epilogue.store(y * self.w + x, channel, sums) };
            }
            x += 1;
            if x == self.w + 2 {
                (y, x) = (y + 1, 0);
                if y == end {
                    return;
                }
            }
        }
    }

    /// Copies the input row of the first tap of output row `y` to `to` `[w + 2, stride]`, with its
    /// border.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn copy_row(&self, y: usize, to: &mut [Line]) {
        let (h, w) = (self.h + 2 - 2 * self.border, self.w + 2 - 2 * self.border);
        let Some(y) = y.checked_sub(self.border).filter(|&y| y < h) else {
            return to.fill(Line::ZEROS);
        };
        let edge = self.border * self.stride;
        let (left, rest) = to.split_at_mut(edge);
        let (inside, right) = rest.split_at_mut(w * self.stride);
        left.fill(Line::ZEROS);
        right.fill(Line::ZEROS);
        let row = |values: &'a [bf16]| {
            let values = &values[y * w * self.n_in..][..w * self.n_in];
            let chunks = values.as_chunks::<TILE_DEPTH>().0;
            chunks.chunks_exact(self.n_in / TILE_DEPTH)
        };
        let pixels = inside.chunks_exact_mut(self.stride);
        match self.source {
            ConvInput::Features(values) => {
                for (lines, values) in pixels.zip(row(values)) {
                    for (line, values) in lines.iter_mut().zip(values) {
                        line.0 = *values;
                    }
                }
            }
            ConvInput::MaskedGradient(values, active) => {
                for ((lines, values), active) in pixels.zip(row(values)).zip(row(active)) {
                    for ((line, values), active) in lines.iter_mut().zip(values).zip(active) {
                        avx512::copy_active(values, active, &mut line.0);
                    }
                }
            }
        }
    }

    /// Covers `rows` with strips, ordered so that each three in a row are close: stacked where
    /// possible, to share rows of the input.
    ///
    /// Either each row begins a new strip, or strips run on across the border, whichever takes
    /// fewer. At widths that are multiples of 16 the former wastes nothing, and the latter 2
    /// positions per row, 1 in 9 at a width of 16. At widths of 20 and 40, the former wastes 12 of
    /// 32 and 8 of 48, the latter 1 in 11 and 1 in 21. No sum depends on the choice.
    fn layout_strips(&self, rows: &Range<usize>, strips: &mut Vec<Strip>) {
        strips.clear();
        let pitch = self.w + 2;
        let span = rows.len() * pitch - 2;
        if rows.len() * self.w.div_ceil(TILE_ROWS) > span.div_ceil(TILE_ROWS) {
            strips.extend((0..span).step_by(TILE_ROWS).map(|position| Strip {
                y: rows.start + position / pitch,
                x: position % pitch,
            }));
            return;
        }
        let stacked = rows.start + rows.len() / STRIPS * STRIPS;
        for top in (rows.start..stacked).step_by(STRIPS) {
            for x in (0..self.w).step_by(TILE_ROWS) {
                strips.extend((top..top + STRIPS).map(|y| Strip { y, x }));
            }
        }
        for y in stacked..rows.end {
            strips.extend((0..self.w).step_by(TILE_ROWS).map(|x| Strip { y, x }));
        }
    }
}

/// Stores `relu(sums + bias)`, rounded to bf16.
pub struct BiasReluBf16<'a> {
    pub bias: &'a [f32],
    /// `[h, w, bias.len()]`
    pub output: DisjointSlices<'a, bf16>,
}

// SAFETY: `DisjointSlices` borrows the output mutably, and is not `Clone`.
unsafe impl TileEpilogue for BiasReluBf16<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(&self, pixel: usize, channel: usize, sums: &[f32; TILE_COLUMNS]) {
        use std::arch::x86_64::{_mm512_add_ps, _mm512_max_ps, _mm512_setzero_ps};
        let bias = self.bias[channel..]
            .first_chunk()
            .expect("a bias for each channel");
        let sums = _mm512_add_ps(avx512::load(sums), avx512::load(bias));
        let rounded = avx512::round(_mm512_max_ps(sums, _mm512_setzero_ps()));
        let at = pixel * self.bias.len() + channel;
        // SAFETY: the caller's promise.
        unsafe { self.output.slice_mut(at, TILE_COLUMNS) }.copy_from_slice(&rounded);
    }
}

/// Stores the sums, rounded to bf16.
pub struct StoreBf16<'a> {
    pub channels: usize,
    /// `[h, w, channels]`
    pub output: DisjointSlices<'a, bf16>,
}

// SAFETY: `DisjointSlices` borrows the output mutably, and is not `Clone`.
unsafe impl TileEpilogue for StoreBf16<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(&self, pixel: usize, channel: usize, sums: &[f32; TILE_COLUMNS]) {
        let rounded = avx512::round(avx512::load(sums));
        let at = pixel * self.channels + channel;
        // SAFETY: the caller's promise.
        unsafe { self.output.slice_mut(at, TILE_COLUMNS) }.copy_from_slice(&rounded);
    }
}

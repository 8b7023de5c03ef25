// SPDX-License-Identifier: MPL-2.0

//! The 3x3 convolution of features on the tiles.
//!
//! A piece of the input is copied to where a core's L2 cache keeps it, with a border of zeros
//! around it. There the pixel under a tap of output pixel `(y, x)` lies a constant number of lines
//! behind `(y, x)`, so that 16 neighbouring pixels and 32 of their channels are an operand of the
//! tile product as they lie in memory. Nothing is copied into patches.
//!
//! A *position* numbers a pixel as the piece's rows lie in memory: its output pixel `(y, x)` is at
//! position `y * (w + 2) + x`, and its taps begin at that pixel of the copy. It runs on across the
//! two pixels between rows, where sums have no meaning.

use super::super::Shared;
use super::product::{COLUMNS, DEPTH, Line, Matrix, POSITIONS, Positions, STRIPS, Sums, multiply};
use super::tiles::Tiles;
use super::{Amx, values};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Bytes of the copy of a piece at most, so that it stays in a core's L2 cache (2 MB where there
/// is AMX) while the output channels pass over it, 32 at a time, with their part of the kernel.
const PIECE_BYTES: usize = 768 << 10;

/// Pieces for each thread, where the output is large enough, so that none waits long for the last.
const THREAD_PIECES: usize = 3;

/// Output channels that a part of the input is multiplied by while it is in the L1 cache: as many
/// as fill a cache line of the output.
const PASS: usize = 32;

thread_local! {
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch {
            lines: Vec::new(),
            strips: Vec::new(),
        })
    };
}

/// What a piece needs, kept from call to call.
#[derive(Default)]
struct Scratch {
    lines: Vec<Line>,
    strips: Vec<Strip>,
}

/// Where the pixels come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// `[h, w, n_in]`
    Features(&'a [bf16]),
    /// A gradient where these activations are above 0, zeros elsewhere; both `[h, w, n_in]`.
    Active(&'a [bf16], &'a [bf16]),
}

/// What becomes of the sums.
pub trait Sink: Sync {
    /// Takes the sums of a pixel, of 16 output channels from `channel` on.
    ///
    /// # Safety
    /// The processor has the instructions of [`values`], and nobody else uses that part of the
    /// output meanwhile.
    unsafe fn store(&self, pixel: usize, channel: usize, sums: &[f32; COLUMNS]);
}

/// The matrix of a kernel whose weight is `weight(output channel, input channel, tap)`, its taps
/// counted row by row: for 32 input channels at a time, the nine taps, so that a step finds in the
/// L1 cache what the taps before it have read.
pub fn kernel(
    n_in: usize,
    n_out: usize,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Matrix {
    assert!(n_in > 0 && n_in.is_multiple_of(DEPTH));
    Matrix::new(9 * n_in / DEPTH, n_out, |row, out| {
        let (step, channel) = (row / DEPTH, row % DEPTH);
        weight(out, step / 9 * DEPTH + channel, step % 9)
    })
}

/// A convolution of one input.
pub struct Convolution<'a> {
    amx: Amx,
    /// Of the output.
    h: usize,
    w: usize,
    n_in: usize,
    /// Pixels of zeros around the input.
    border: usize,
    source: Source<'a>,
    kernel: &'a Matrix,
    /// What each step's lines are behind those of a position.
    offsets: Vec<usize>,
}

/// Part of an output: some of its rows, and some of its channels.
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
    /// Of an input `[h, w, n_in]` inside a border of zeros, one pixel wide for an output of the
    /// same size, two for one that is larger by a pixel on each side.
    pub fn new(
        amx: Amx,
        [h, w]: [usize; 2],
        n_in: usize,
        border: usize,
        source: Source<'a>,
        kernel: &'a Matrix,
    ) -> Self {
        assert!(h > 0 && w > 0 && border > 0);
        match source {
            Source::Features(values) => assert_eq!(values.len(), h * w * n_in),
            Source::Active(values, active) => {
                assert_eq!([values.len(), active.len()], [h * w * n_in; 2]);
            }
        }
        let (h, w) = (h + 2 * border - 2, w + 2 * border - 2);
        let chunks = n_in / DEPTH;
        let offsets = (0..9 * chunks).map(|step| {
            let (chunk, tap) = (step / 9, step % 9);
            (tap / 3 * (w + 2) + tap % 3) * chunks + chunk
        });
        Self {
            amx,
            h,
            w,
            n_in,
            border,
            source,
            kernel,
            offsets: offsets.collect(),
        }
    }

    /// Computes the whole output.
    pub fn compute(&self, sink: &impl Sink) {
        self.pieces(rayon::current_num_threads())
            .with_max_len(1)
            // SAFETY: pieces do not overlap, and `sink` is for the output that it borrows.
            .for_each(|piece| unsafe { self.run(&piece, sink) });
    }

    /// The whole output in pieces, for a number of threads. They decide about no sum.
    pub fn pieces(&self, threads: usize) -> impl IndexedParallelIterator<Item = Piece> + use<> {
        let (h, n_out) = (self.h, self.kernel.columns());
        let row_bytes = (self.w + 2) * self.n_in * size_of::<bf16>();
        let most = (PIECE_BYTES / row_bytes).saturating_sub(2).clamp(1, h);
        // As many as there are threads, or a multiple, so that none is left alone in the end.
        let strips = h.div_ceil(most).next_multiple_of(threads).min(h);
        let rows = h.div_ceil(strips);
        let strips = h.div_ceil(rows);
        let wanted = (THREAD_PIECES * threads).div_ceil(strips);
        let parts = wanted.min(n_out.div_ceil(2 * PASS));
        let channels = n_out.div_ceil(parts).next_multiple_of(PASS);
        let parts = n_out.div_ceil(channels);
        (0..strips * parts).into_par_iter().map(move |index| {
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
    /// Nobody else may use the piece's part of the output meanwhile.
    pub unsafe fn run(&self, piece: &Piece, sink: &impl Sink) {
        let mut scratch = SCRATCH.take();
        // SAFETY: a processor with AMX has the instructions; the rest is the caller's promise.
        unsafe { self.run_with(piece, sink, &mut scratch) };
        SCRATCH.set(scratch);
    }

    /// # Safety
    /// As [`Self::run`], on a processor with these features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run_with(&self, piece: &Piece, sink: &impl Sink, scratch: &mut Scratch) {
        let Piece { rows, channels } = piece;
        assert!(rows.end <= self.h && channels.end <= self.kernel.columns());
        let (pitch, chunks) = (self.w + 2, self.n_in / DEPTH);
        // Behind the last pixel's taps, what the last strip reads in vain.
        let len = ((rows.len() + 2) * pitch + POSITIONS) * chunks;
        if scratch.lines.len() < len {
            scratch.lines.resize(len, Line::ZEROS);
        }
        let lines = &mut scratch.lines[..len];
        for (y, row) in (rows.start..).zip(lines.chunks_exact_mut(pitch * chunks)) {
            if y < rows.end + 2 {
                self.copy_row(y, row);
            }
        }
        self.lay_strips(rows, &mut scratch.strips);

        let positions = Positions {
            lines,
            stride: chunks,
        };
        let tiles = Tiles::configure(self.amx);
        let mut sums = Sums::ZEROS;
        for pass in channels.clone().step_by(PASS) {
            for strips in scratch.strips.chunks(STRIPS) {
                // Where there are not three, the last is computed again.
                let starts = std::array::from_fn(|i| {
                    let strip = strips[i.min(strips.len() - 1)];
                    ((strip.y - rows.start) * pitch + strip.x) * chunks
                });
                for channel in (pass..(pass + PASS).min(channels.end)).step_by(COLUMNS) {
                    let panel = self.kernel.panel(channel);
                    multiply(&tiles, positions, starts, &self.offsets, panel, &mut sums);
                    for (strip, sums) in strips.iter().zip(&sums.0) {
                        // SAFETY: pixels and channels are of the piece, which is the caller's.
                        unsafe { self.store(*strip, rows.end, channel, sums, sink) };
                    }
                }
            }
        }
    }

    /// Hands on the sums of a strip's positions that are pixels.
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
        sums: &[[f32; COLUMNS]; POSITIONS],
        sink: &impl Sink,
    ) {
        for sums in sums {
            if x < self.w {
                // SAFETY: the caller's promise.
                unsafe { sink.store(y * self.w + x, channel, sums) };
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

    /// The row of the input that is the first tap's for row `y` of the output, `[w + 2, n_in]`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn copy_row(&self, y: usize, to: &mut [Line]) {
        let (h, w) = (self.h + 2 - 2 * self.border, self.w + 2 - 2 * self.border);
        let Some(y) = y.checked_sub(self.border).filter(|&y| y < h) else {
            return to.fill(Line::ZEROS);
        };
        let edge = self.border * self.n_in / DEPTH;
        let (left, rest) = to.split_at_mut(edge);
        let (inside, right) = rest.split_at_mut(w * self.n_in / DEPTH);
        left.fill(Line::ZEROS);
        right.fill(Line::ZEROS);
        let row = |values: &'a [bf16]| {
            let values = &values[y * w * self.n_in..][..w * self.n_in];
            values.as_chunks::<DEPTH>().0
        };
        match self.source {
            Source::Features(values) => {
                for (line, values) in inside.iter_mut().zip(row(values)) {
                    line.0 = *values;
                }
            }
            Source::Active(values, active) => {
                let sources = row(values).iter().zip(row(active));
                for (line, (values, active)) in inside.iter_mut().zip(sources) {
                    values::copy_active(values, active, &mut line.0);
                }
            }
        }
    }

    /// The strips that cover `rows`, in an order in which each three that follow one another are
    /// near: one above the other, where that can be, so that they share rows of the input.
    ///
    /// Either each row begins a strip, or strips run on across the border; what takes fewer. For
    /// a width of 16 or 32, 64, 80, 128, 256, 640 the former wastes nothing, while the latter
    /// wastes 2 positions of each row, 1 in 9 at a width of 16. For 20 and 40, the former wastes
    /// 12 of 32 and 8 of 48, the latter 1 in 11 and 1 in 21. The choice changes no sum.
    fn lay_strips(&self, rows: &Range<usize>, strips: &mut Vec<Strip>) {
        strips.clear();
        let pitch = self.w + 2;
        let span = rows.len() * pitch - 2;
        if rows.len() * self.w.div_ceil(POSITIONS) > span.div_ceil(POSITIONS) {
            strips.extend((0..span).step_by(POSITIONS).map(|position| Strip {
                y: rows.start + position / pitch,
                x: position % pitch,
            }));
            return;
        }
        let stacked = rows.start + rows.len() / STRIPS * STRIPS;
        for top in (rows.start..stacked).step_by(STRIPS) {
            for x in (0..self.w).step_by(POSITIONS) {
                strips.extend((top..top + STRIPS).map(|y| Strip { y, x }));
            }
        }
        for y in stacked..rows.end {
            strips.extend((0..self.w).step_by(POSITIONS).map(|x| Strip { y, x }));
        }
    }
}

/// `relu(sums + bias)`
pub struct Activation<'a> {
    pub bias: &'a [f32],
    /// `[h, w, bias.len()]`
    pub output: Shared<'a, bf16>,
}

impl Sink for Activation<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(&self, pixel: usize, channel: usize, sums: &[f32; COLUMNS]) {
        use std::arch::x86_64::{_mm512_add_ps, _mm512_max_ps, _mm512_setzero_ps};
        let bias = self.bias[channel..]
            .first_chunk()
            .expect("a bias for each channel");
        let sums = _mm512_add_ps(values::load(sums), values::load(bias));
        let rounded = values::round(_mm512_max_ps(sums, _mm512_setzero_ps()));
        let at = pixel * self.bias.len() + channel;
        // SAFETY: the caller's promise.
        unsafe { self.output.range(at, COLUMNS) }.copy_from_slice(&rounded);
    }
}

/// The sums as they are.
pub struct Gradient<'a> {
    pub channels: usize,
    /// `[h, w, channels]`
    pub output: Shared<'a, bf16>,
}

impl Sink for Gradient<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store(&self, pixel: usize, channel: usize, sums: &[f32; COLUMNS]) {
        let rounded = values::round(values::load(sums));
        let at = pixel * self.channels + channel;
        // SAFETY: the caller's promise.
        unsafe { self.output.range(at, COLUMNS) }.copy_from_slice(&rounded);
    }
}

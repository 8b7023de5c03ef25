// SPDX-License-Identifier: MPL-2.0

//! The convolution of a padded image on the tiles.
//!
//! Sums are f32 and stay in the tile registers over all nine taps and all input channels, in one
//! order whatever the image is cut into, so results are the same bit for bit for any pieces and
//! any number of threads.
//!
//! With the border there, the pixel under a tap of output pixel `(y, x)` lies a constant number of
//! elements behind `(y, x)`, so 16 neighbouring pixels and 32 of their channels are an operand of
//! the tile product as they lie in memory, 16 rows of 64 bytes that are a pixel apart. Nothing is
//! copied into patches.
//!
//! A *position* numbers a pixel as the padded rows lie in memory: output pixel `(y, x)` is at
//! position `y * (w + 2) + x`, and its taps begin at that pixel of the padded input. It runs on
//! across the two pixels of border between rows, where sums have no meaning.

use super::super::Shared;
use super::Amx;
use super::kernel::{CHANNELS, Kernel, KernelTile};
use super::tiles::Tiles;
use half::bf16;
use rayon::prelude::*;
use std::arch::asm;
use std::ops::Range;

/// Rows of a tile: the positions it holds.
const POSITIONS: usize = 16;

/// Bytes of the input under a piece at most, so that it stays in a core's L2 cache (2 MB where
/// there is AMX) while the piece's output channels pass over it, 32 at a time. Their part of the
/// kernel, up to 288 KiB, is read for every block of positions and has to stay there too.
const PIECE_BYTES: usize = 768 << 10;

/// Pieces that an image is cut into at least, over its rows and then over the output channels,
/// so that many cores find work.
const MIN_PIECES: usize = 32;

/// Output channels of a piece at least, so that an input that was fetched is used more than once.
const MIN_CHANNELS: usize = 64;

/// What becomes of the sums.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// They are stored as they are.
    Sums,
    /// `relu(sums + bias)`
    BiasRelu(&'a [f32]),
}

impl Epilogue<'_> {
    /// Stores the sums of a pixel, of the 32 output channels from `channel` on.
    #[inline(always)]
    fn store(self, sums: &[f32; CHANNELS], channel: usize, to: &mut [f32]) {
        match self {
            Self::Sums => to.copy_from_slice(sums),
            Self::BiasRelu(bias) => {
                let bias = &bias[channel..channel + CHANNELS];
                for ((to, sum), bias) in to.iter_mut().zip(sums).zip(bias) {
                    *to = (sum + bias).max(0.0);
                }
            }
        }
    }
}

/// Part of an output: some of its rows, and some of its channels, in steps of 32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub rows: Range<usize>,
    pub channels: Range<usize>,
}

/// A convolution of one input.
pub struct Convolution<'a> {
    h: usize,
    w: usize,
    /// `[h + 2, w + 2, n_in]`
    input: &'a [bf16],
    kernel: &'a Kernel,
}

/// Up to 16 positions side by side whose sums are wanted.
struct Strip {
    /// The position that the tile begins at.
    start: usize,
    /// The rows of the tile that are wanted.
    wanted: Range<usize>,
}

/// The sums of a block, `[2, 16, 32]`: of two strips, each 16 positions.
#[repr(C, align(64))]
struct Sums([[[f32; CHANNELS]; POSITIONS]; 2]);

impl<'a> Convolution<'a> {
    /// A convolution of `input` `[h + 2, w + 2, kernel.n_in()]`, whose border is zeros; fastest
    /// where it begins with a cache line. There is AMX for it, as an [`Amx`] shows.
    pub fn new(_: &Amx, [h, w]: [usize; 2], input: &'a [bf16], kernel: &'a Kernel) -> Self {
        assert!(h > 0 && w > 0);
        assert_eq!(input.len(), (h + 2) * (w + 2) * kernel.n_in());
        Self {
            h,
            w,
            input,
            kernel,
        }
    }

    /// Computes `output` `[h, w, kernel.n_out()]`.
    pub fn compute(&self, output: &mut [f32], epilogue: Epilogue) {
        let output = Shared::new(output);
        self.pieces().for_each(|piece| {
            // SAFETY: pieces do not overlap, and nobody else has the output.
            unsafe { self.run(&piece, &output, epilogue) }
        });
    }

    /// The whole output in pieces, whose number depends on sizes alone.
    pub fn pieces(&self) -> impl IndexedParallelIterator<Item = Piece> + use<> {
        let (h, n_out) = (self.h, self.kernel.n_out());
        let row_bytes = (self.w + 2) * self.kernel.n_in() * size_of::<bf16>();
        let rows = (PIECE_BYTES / row_bytes).saturating_sub(2).clamp(1, h);
        let strips = h.div_ceil(rows);
        let rows = h.div_ceil(strips);
        let parts = MIN_PIECES
            .div_ceil(strips)
            .min(n_out.div_ceil(MIN_CHANNELS));
        let channels = (n_out / CHANNELS).div_ceil(parts) * CHANNELS;
        let (strips, parts) = (h.div_ceil(rows), n_out.div_ceil(channels));
        (0..strips * parts).into_par_iter().map(move |index| {
            let (row, channel) = (index / parts * rows, index % parts * channels);
            Piece {
                rows: row..(row + rows).min(h),
                channels: channel..(channel + channels).min(n_out),
            }
        })
    }

    /// Computes a piece of `output`.
    ///
    /// The thread's tiles are configured at the beginning and released at the end: little beside
    /// the tile products of even the smallest piece.
    ///
    /// # Safety
    /// Nobody else may use the piece's part of the output meanwhile.
    pub unsafe fn run(&self, piece: &Piece, output: &Shared<'_>, epilogue: Epilogue) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature is there; the rest is the caller's promise.
            unsafe { self.run_avx512(piece, output, epilogue) }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.run_with(piece, output, epilogue) }
        }
    }

    /// # Safety
    /// As [`Self::run`], on a processor with this feature.
    #[target_feature(enable = "avx512f")]
    unsafe fn run_avx512(&self, piece: &Piece, output: &Shared<'_>, epilogue: Epilogue) {
        // SAFETY: the caller's promise.
        unsafe { self.run_with(piece, output, epilogue) }
    }

    /// # Safety
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn run_with(&self, piece: &Piece, output: &Shared<'_>, epilogue: Epilogue) {
        let (n_out, pitch) = (self.kernel.n_out(), self.w + 2);
        let Piece { rows, channels } = piece;
        assert!(rows.end <= self.h && channels.end <= n_out);
        assert!(channels.start.is_multiple_of(CHANNELS) && channels.end.is_multiple_of(CHANNELS));
        assert_eq!(output.len, self.h * self.w * n_out);
        if rows.is_empty() {
            return;
        }
        // SAFETY: AMX is available, or there would be no convolution.
        let tiles = unsafe { Tiles::configure(self.tile_rows()) };
        let mut sums = Sums([[[0.0; CHANNELS]; POSITIONS]; 2]);
        for channel in channels.clone().step_by(CHANNELS) {
            let panel = self.kernel.panel(channel);
            let mut strips = self.strips(rows);
            while let Some(first) = strips.next() {
                let second = strips.next();
                // An odd strip out is taken twice. A block of one strip would hardly be faster:
                // its two sums are too few to hide the latency of the tile products.
                let starts = [first.start, second.as_ref().unwrap_or(&first).start];
                // SAFETY: `strips` starts where a tile's rows have all their taps in the input.
                unsafe { self.sum(&tiles, starts, panel, &mut sums) };
                for (strip, sums) in [Some(first), second].into_iter().flatten().zip(&sums.0) {
                    let position = strip.start + strip.wanted.start;
                    let (mut y, mut x) = (position / pitch, position % pitch);
                    for row in strip.wanted {
                        if x < self.w {
                            let at = (y * self.w + x) * n_out + channel;
                            // SAFETY: pixel and channels are of the piece, which is the caller's.
                            let to = unsafe { output.range(at, CHANNELS) };
                            epilogue.store(&sums[row], channel, to);
                        }
                        x += 1;
                        if x == pitch {
                            (y, x) = (y + 1, 0);
                        }
                    }
                }
            }
        }
    }

    /// From the first position to the last that has a pixel.
    fn span(&self, rows: usize) -> usize {
        rows * (self.w + 2) - 2
    }

    /// Rows of the tiles of positions: 16, except for an image that has fewer.
    fn tile_rows(&self) -> usize {
        self.span(self.h).min(POSITIONS)
    }

    /// The strips of positions that cover `rows`.
    ///
    /// Either each row begins a strip, or strips run on across the border; what takes fewer. For
    /// a width of 16 or 32, 64, 80, 128, 256, 640 the former wastes nothing, while the latter
    /// wastes 2 positions of each row, 1 in 9 at a width of 16. For 20 and 40, the former wastes
    /// 12 of 32 and 8 of 48, the latter 1 in 11 and 1 in 21. The choice changes no sum.
    fn strips(&self, rows: &Range<usize>) -> impl Iterator<Item = Strip> + use<> {
        let (pitch, span) = (self.w + 2, self.span(rows.len()));
        let by_row = rows.len() * self.w.div_ceil(POSITIONS) <= span.div_ceil(POSITIONS);
        let (runs, len) = if by_row {
            (rows.len(), self.w)
        } else {
            (1, span)
        };
        let start = rows.start * pitch;
        // A tile that begins later has taps behind the input's end; the last pixels of the image
        // are the last rows of a tile that begins here.
        let last = self.span(self.h) - self.tile_rows();
        (0..runs).flat_map(move |run| {
            (0..len).step_by(POSITIONS).map(move |offset| {
                let position = start + run * pitch + offset;
                let start = position.min(last);
                let from = position - start;
                Strip {
                    start,
                    wanted: from..from + POSITIONS.min(len - offset),
                }
            })
        })
    }

    /// Sums of two strips of positions by 32 output channels: two tiles of features by two of the
    /// kernel, so that each that is loaded is used twice.
    ///
    /// # Safety
    /// The tile rows from each of `starts` on are positions of the image or of the border between
    /// its rows, and `panel` is of the convolution's kernel.
    #[inline(always)]
    unsafe fn sum(&self, _: &Tiles, starts: [usize; 2], panel: &[KernelTile], sums: &mut Sums) {
        debug_assert_eq!(panel.len(), 9 * self.kernel.n_in() * CHANNELS / 512);
        let pixel = self.kernel.n_in() * size_of::<bf16>();
        let [first, second] = starts.map(|start| {
            debug_assert!(start + self.tile_rows() <= self.span(self.h));
            self.input[start * self.kernel.n_in()..].as_ptr()
        });
        // Loads are spread between the products, which take 16 cycles each to a load's 8.
        macro_rules! tap {
            () => {
                "tileloadd tmm6, [{panel} + {line}*1]
                 tileloadd tmm4, [{first} + {pixel}*1]
                 tdpbf16ps tmm0, tmm4, tmm6
                 tileloadd tmm5, [{second} + {pixel}*1]
                 tdpbf16ps tmm2, tmm5, tmm6
                 tileloadd tmm7, [{panel} + {line}*1 + 1024]
                 tdpbf16ps tmm1, tmm4, tmm7
                 tdpbf16ps tmm3, tmm5, tmm7
                 add {panel}, 2048"
            };
        }
        // SAFETY: the tiles are configured, as `Tiles` shows. With the caller's promise the loads
        // stay inside `input`, of which the last tap of the last position is the last pixel, and
        // inside `panel`; the stores fill `sums`, or its first rows where tiles have fewer.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {chunk}, {chunks}",
                "3:",
                tap!(),
                "add {first}, {pixel}",
                "add {second}, {pixel}",
                tap!(),
                "add {first}, {pixel}",
                "add {second}, {pixel}",
                tap!(),
                "add {first}, {next_chunk}",
                "add {second}, {next_chunk}",
                "dec {chunk}",
                "jnz 3b",
                "add {first}, {next_row}",
                "add {second}, {next_row}",
                "dec {row}",
                "jnz 2b",
                // A line of `sums` is two of a tile.
                "add {line}, {line}",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 64], tmm1",
                "tilestored [{sums} + {line}*1 + 2048], tmm2",
                "tilestored [{sums} + {line}*1 + 2112], tmm3",
                panel = inout(reg) panel.as_ptr() => _,
                first = inout(reg) first => _,
                second = inout(reg) second => _,
                sums = in(reg) sums,
                pixel = in(reg) pixel,
                line = inout(reg) 64usize => _,
                // Back by two taps and on by 32 channels; and after the last of the channels, back
                // by a pixel and on by a row.
                next_chunk = in(reg) (CHANNELS * size_of::<bf16>()).wrapping_sub(2 * pixel),
                next_row = in(reg) (self.w + 1) * pixel,
                chunks = in(reg) self.kernel.n_in() / CHANNELS,
                chunk = out(reg) _,
                row = inout(reg) 3usize => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

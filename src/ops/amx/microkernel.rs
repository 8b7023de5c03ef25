// SPDX-License-Identifier: MPL-2.0

//! The micro-kernel on the tile registers: three 16x16 blocks of a product, of rows in memory and a
//! packed panel of 16 columns.
//!
//! The f32 accumulators stay in tile registers over the whole depth, in a fixed order, so that
//! results are bit-identical however the work is split.

use super::super::Scalar;
use super::tiles::TilesGuard;
use half::bf16;
use rayon::prelude::*;
use std::arch::asm;

/// Rows of a tile: positions (rows of the left operand) per strip.
pub const TILE_ROWS: usize = 16;

/// Columns of an accumulator tile, which are a panel's.
pub const TILE_COLUMNS: usize = 16;

/// Depth of a tile product: bf16 values per row of a left tile.
pub const TILE_DEPTH: usize = 32;

/// Strips of 16 positions that are multiplied by a panel together.
///
/// Three accumulators, a left tile and a right tile take five of the eight tile registers. When the
/// core's other hardware thread is busy, so few physical registers remain to rename tiles to that a
/// kernel using all eight stalls on each instruction: measured on a Sapphire Rapids, 2x2
/// accumulators then run at a quarter of their speed, these at half. With the core to itself,
/// either reaches the peak.
pub const STRIPS: usize = 3;

/// 32 values of a position, aligned to a cache line: an unaligned row of a tile takes twice as long
/// to load.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [bf16; TILE_DEPTH]);

impl Line {
    pub const ZEROS: Self = Self([bf16::ZERO; TILE_DEPTH]);
}

/// A right tile in VNNI layout: 32 rows by 16 columns, rows interleaved in pairs, `[16, 16, 2]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct VnniTile(pub [bf16; 512]);

/// A right operand `[32 steps, columns]`, packed in panels of 16 columns.
#[derive(Default)]
pub struct VnniMatrix {
    steps: usize,
    /// `[columns / 16, steps]`
    tiles: Vec<VnniTile>,
}

impl VnniMatrix {
    /// Packs the matrix whose elements are `value(row, column)`, rounded to bf16.
    pub fn new(steps: usize, columns: usize, value: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let mut matrix = Self::default();
        matrix.set(steps, columns, value);
        matrix
    }

    /// The same in place, reusing the allocation.
    pub fn set(
        &mut self,
        steps: usize,
        columns: usize,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) {
        assert!(columns.is_multiple_of(TILE_COLUMNS));
        self.steps = steps;
        self.tiles
            .resize(columns / TILE_COLUMNS * steps, VnniTile([bf16::ZERO; 512]));
        let tiles = self.tiles.par_iter_mut().enumerate();
        tiles.for_each(|(index, tile)| {
            let (panel, step) = (index / steps, index % steps);
            let first = panel * TILE_COLUMNS;
            for (pair, to) in tile
                .0
                .as_chunks_mut::<{ 2 * TILE_COLUMNS }>()
                .0
                .iter_mut()
                .enumerate()
            {
                let row = step * TILE_DEPTH + 2 * pair;
                for (column, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *to = [row, row + 1].map(|row| bf16::nearest(value(row, first + column)));
                }
            }
        });
    }

    /// The columns of the matrix.
    pub fn columns(&self) -> usize {
        match self.steps {
            0 => 0,
            steps => self.tiles.len() / steps * TILE_COLUMNS,
        }
    }

    /// The panel of the 16 columns from `column` on, one tile per step.
    pub fn panel(&self, column: usize) -> &[VnniTile] {
        &self.tiles[column / TILE_COLUMNS * self.steps..][..self.steps]
    }
}

/// The results of the strips, `[strip, position, column]`.
#[repr(C, align(64))]
pub struct Accumulators(pub [[[f32; TILE_COLUMNS]; TILE_ROWS]; STRIPS]);

impl Accumulators {
    pub const ZEROS: Self = Self([[[0.0; TILE_COLUMNS]; TILE_ROWS]; STRIPS]);
}

/// A left operand in memory, whose positions are `stride` lines apart.
#[derive(Clone, Copy)]
pub struct LeftOperand<'a> {
    pub lines: &'a [Line],
    pub stride: usize,
}

/// Multiplies the strips by `panel`, into `sums`.
///
/// `starts` are the strips' first positions, as indices of lines. In step `i` the left tile is the
/// 16 positions' lines at `offsets[i]` lines past them.
///
/// # Panics
/// If a line is out of bounds.
#[inline]
pub fn multiply(
    _: &TilesGuard,
    values: LeftOperand,
    starts: [usize; STRIPS],
    offsets: &[usize],
    panel: &[VnniTile],
    sums: &mut Accumulators,
) {
    assert_eq!(offsets.len(), panel.len());
    let reach = offsets.iter().copied().fold(0, usize::max) + (TILE_ROWS - 1) * values.stride;
    assert!(
        starts
            .iter()
            .all(|start| start + reach < values.lines.len())
    );
    if panel.is_empty() {
        *sums = Accumulators::ZEROS;
        return;
    }
    let [first, second, third] = starts.map(|start| values.lines[start..].as_ptr());
    macro_rules! strip {
        ($strip:literal, $sums:literal) => {
            concat!(
                "lea {at}, [{",
                $strip,
                "} + {offset}]\n",
                "tileloadd tmm3, [{at} + {stride}*1]\n",
                "tdpbf16ps ",
                $sums,
                ", tmm3, tmm4"
            )
        };
    }
    // SAFETY: the tiles are configured, as `TilesGuard` shows. The loads are of `panel` and of
    // lines that the assertion found to be within `values`; the stores fill `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "2:",
            "mov {offset}, [{offsets}]",
            "shl {offset}, 6",
            "tileloadd tmm4, [{panel} + {line}*1]",
            strip!("first", "tmm0"),
            strip!("second", "tmm1"),
            strip!("third", "tmm2"),
            "add {offsets}, 8",
            "add {panel}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            first = in(reg) first,
            second = in(reg) second,
            third = in(reg) third,
            stride = in(reg) values.stride * size_of::<Line>(),
            line = in(reg) size_of::<Line>(),
            offsets = inout(reg) offsets.as_ptr() => _,
            panel = inout(reg) panel.as_ptr() => _,
            steps = inout(reg) panel.len() => _,
            sums = in(reg) sums,
            offset = out(reg) _,
            at = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
}

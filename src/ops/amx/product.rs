// SPDX-License-Identifier: MPL-2.0

//! Products of values in memory and a packed matrix, on the tiles.
//!
//! Sums are f32 and stay in the tile registers over all steps, in one order, so that they are the
//! same bit for bit whatever the work is cut into.

use super::super::Value;
use super::tiles::Tiles;
use half::bf16;
use rayon::prelude::*;
use std::arch::asm;

/// Rows of a tile: positions whose sums are computed together.
pub const POSITIONS: usize = 16;

/// Columns of a matrix that are a panel of it.
pub const COLUMNS: usize = 16;

/// Rows of a matrix that a position is multiplied by in a step.
pub const DEPTH: usize = 32;

/// Strips of positions that are multiplied by a panel together.
///
/// Three sums, one strip and one tile of the panel are five of the eight tiles. A core whose other
/// hardware thread is busy has so few registers behind the tiles' names that, with all eight in
/// use, each instruction waits for the one before it: measured on a Sapphire Rapids, 2x2 sums then
/// run at a quarter of their speed, these at half, and with the core for itself both at the limit.
pub const STRIPS: usize = 3;

/// 32 values of a position, a cache line: a tile's row that begins elsewhere takes twice as long
/// to load.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [bf16; DEPTH]);

impl Line {
    pub const ZEROS: Self = Self([bf16::ZERO; DEPTH]);
}

/// A part of a matrix as the tile product takes it: 16 pairs of its rows by 16 of its columns,
/// `[16, 16, 2]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Tile(pub [bf16; 512]);

/// A matrix `[32 steps, columns]`, packed.
#[derive(Default)]
pub struct Matrix {
    steps: usize,
    /// `[columns / 16, steps]`
    tiles: Vec<Tile>,
}

impl Matrix {
    /// The matrix whose value is `value(row, column)`, rounded to bf16.
    pub fn new(steps: usize, columns: usize, value: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let mut matrix = Self::default();
        matrix.set(steps, columns, value);
        matrix
    }

    /// Becomes that matrix, in the memory that it has.
    pub fn set(
        &mut self,
        steps: usize,
        columns: usize,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) {
        assert!(columns.is_multiple_of(COLUMNS));
        self.steps = steps;
        self.tiles
            .resize(columns / COLUMNS * steps, Tile([bf16::ZERO; 512]));
        let tiles = self.tiles.par_iter_mut().enumerate();
        tiles.for_each(|(index, tile)| {
            let (panel, step) = (index / steps, index % steps);
            let first = panel * COLUMNS;
            for (pair, to) in tile
                .0
                .as_chunks_mut::<{ 2 * COLUMNS }>()
                .0
                .iter_mut()
                .enumerate()
            {
                let row = step * DEPTH + 2 * pair;
                for (column, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *to = [row, row + 1].map(|row| bf16::nearest(value(row, first + column)));
                }
            }
        });
    }

    pub fn columns(&self) -> usize {
        match self.steps {
            0 => 0,
            steps => self.tiles.len() / steps * COLUMNS,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.tiles.as_slice())
    }

    /// The tiles of the 16 columns from `column` on.
    pub fn panel(&self, column: usize) -> &[Tile] {
        &self.tiles[column / COLUMNS * self.steps..][..self.steps]
    }
}

/// The sums of strips, `[3, 16, 16]`.
#[repr(C, align(64))]
pub struct Sums(pub [[[f32; COLUMNS]; POSITIONS]; STRIPS]);

impl Sums {
    pub const ZEROS: Self = Self([[[0.0; COLUMNS]; POSITIONS]; STRIPS]);
}

/// Values whose positions lie `stride` lines apart.
#[derive(Clone, Copy)]
pub struct Positions<'a> {
    pub lines: &'a [Line],
    pub stride: usize,
}

/// `sums`: for each of the strips that begin at `starts`, counted in lines, the products of its 16
/// positions and `panel`, whose step `i` takes the lines that are `offsets[i]` lines behind them.
///
/// # Panics
/// Where there are no such lines.
#[inline]
pub fn multiply(
    _: &Tiles,
    values: Positions,
    starts: [usize; STRIPS],
    offsets: &[usize],
    panel: &[Tile],
    sums: &mut Sums,
) {
    assert_eq!(offsets.len(), panel.len());
    let reach = offsets.iter().copied().fold(0, usize::max) + (POSITIONS - 1) * values.stride;
    assert!(
        starts
            .iter()
            .all(|start| start + reach < values.lines.len())
    );
    if panel.is_empty() {
        *sums = Sums::ZEROS;
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
    // SAFETY: the tiles are configured, as `Tiles` shows. The loads are of `panel` and of lines that
    // the assertion has found inside of `values`; the stores fill `sums`.
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

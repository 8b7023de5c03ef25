// SPDX-License-Identifier: MPL-2.0

//! Gram matrices of bf16 features and their gradient, on the tile registers.
//!
//! Features are read as a matrix F `[positions, n]` of n channels.

use super::microkernel::{
    Accumulators, LeftOperand, Line, STRIPS, TILE_COLUMNS, TILE_DEPTH, TILE_ROWS, VnniMatrix,
    VnniTile, multiply,
};
use super::tiles::TilesGuard;
use super::{Amx, avx512};
use half::bf16;
use std::arch::x86_64::{__m512i, _mm512_add_ps};
use std::cell::Cell;
use std::mem::transmute;

thread_local! {
    /// The packed left and right operand of FᵀF, kept between calls.
    static GRAM_OPERANDS: Cell<[Vec<VnniTile>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
    /// Features copied to cache line alignment, kept between calls.
    static FEATURE_LINES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Writes the lower triangle of FᵀF to `gram` `[n, n]`, and as much above the diagonal as tiles
/// across it cover. `n` is a multiple of [`super::CHANNEL_MULTIPLE`].
pub fn gram(amx: Amx, features: &[bf16], n: usize, gram: &mut [f32]) {
    assert!(n.is_multiple_of(TILE_DEPTH) && features.len().is_multiple_of(n));
    assert_eq!(gram.len(), n * n);
    let mut operands = GRAM_OPERANDS.take();
    // SAFETY: a processor with AMX has the instructions.
    unsafe { gram_with(amx, features, n, gram, &mut operands) };
    GRAM_OPERANDS.set(operands);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn gram_with(
    amx: Amx,
    features: &[bf16],
    n: usize,
    gram: &mut [f32],
    [left, right]: &mut [Vec<VnniTile>; 2],
) {
    // For each 16 channels, `[steps]` tiles of 32 positions; at the end, padding for the strips
    // that reach beyond the last channel.
    let steps = (features.len() / n).div_ceil(TILE_DEPTH);
    let tiles = (n / TILE_COLUMNS + STRIPS - 1) * steps;
    for operand in [&mut *left, &mut *right] {
        operand.resize(tiles.max(operand.len()), VnniTile([bf16::ZERO; 512]));
    }
    let none = [bf16::ZERO; TILE_COLUMNS];
    for (step, positions) in features.chunks(TILE_DEPTH * n).enumerate() {
        for channel in (0..n).step_by(TILE_COLUMNS) {
            let pairs = avx512::interleave_pairs(|position| {
                let values = positions.get(position * n + channel..);
                values
                    .and_then(|values| values.first_chunk())
                    .unwrap_or(&none)
            });
            let at = channel / TILE_COLUMNS * steps + step;
            right[at] = tile(pairs);
            left[at] = tile(avx512::transpose_pairs(pairs));
        }
    }
    // A tile has 16 lines.
    let offsets: Vec<usize> = (0..steps).map(|step| step * 16).collect();
    let values = LeftOperand {
        lines: lines(left),
        stride: 1,
    };
    let tiles = TilesGuard::configure(amx);
    let mut sums = Accumulators::ZEROS;
    for column in (0..n).step_by(TILE_COLUMNS) {
        let panel = &right[column / TILE_COLUMNS * steps..][..steps];
        for row in (column..n).step_by(STRIPS * TILE_COLUMNS) {
            let starts = std::array::from_fn(|i| (row / TILE_COLUMNS + i) * steps * 16);
            multiply(&tiles, values, starts, &offsets, panel, &mut sums);
            for (row, sums) in (row..n).zip(sums.0.as_flattened()) {
                gram[row * n + column..][..TILE_COLUMNS].copy_from_slice(sums);
            }
        }
    }
}

fn tile(rows: [__m512i; 16]) -> VnniTile {
    // SAFETY: both are 1024 bytes without padding, and all bits are bf16.
    VnniTile(unsafe { transmute::<[__m512i; 16], [bf16; 512]>(rows) })
}

fn lines(tiles: &[VnniTile]) -> &[Line] {
    // SAFETY: a tile is its 16 rows, each the 64 bytes of a line.
    unsafe { std::slice::from_raw_parts(tiles.as_ptr().cast(), tiles.len() * 16) }
}

/// Writes F R to `gradient`, of F's shape, or adds it; the `residual` R is `[n, n]`. F is copied,
/// and so should fit in a core's L2 cache.
pub fn gram_backward(
    amx: Amx,
    features: &[bf16],
    residual: &VnniMatrix,
    gradient: &mut [bf16],
    accumulate: bool,
) {
    let n = residual.columns();
    assert!(n.is_multiple_of(TILE_DEPTH) && features.len().is_multiple_of(n));
    assert_eq!(gradient.len(), features.len());
    let mut scratch = FEATURE_LINES.take();
    // SAFETY: a processor with AMX has the instructions.
    unsafe { gram_backward_with(amx, features, residual, gradient, accumulate, &mut scratch) };
    FEATURE_LINES.set(scratch);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn gram_backward_with(
    amx: Amx,
    features: &[bf16],
    residual: &VnniMatrix,
    gradient: &mut [bf16],
    accumulate: bool,
    scratch: &mut Vec<Line>,
) {
    let n = residual.columns();
    let (count, stride) = (features.len() / n, n / TILE_DEPTH);
    let len = count.next_multiple_of(STRIPS * TILE_ROWS) * stride;
    scratch.resize(len.max(scratch.len()), Line::ZEROS);
    for (line, values) in scratch.iter_mut().zip(features.as_chunks().0) {
        line.0 = *values;
    }
    let offsets: Vec<usize> = (0..stride).collect();
    let positions = LeftOperand {
        lines: scratch,
        stride,
    };
    let tiles = TilesGuard::configure(amx);
    let mut sums = Accumulators::ZEROS;
    for first in (0..count).step_by(STRIPS * TILE_ROWS) {
        let starts = std::array::from_fn(|strip| (first + strip * TILE_ROWS) * stride);
        for channel in (0..n).step_by(TILE_COLUMNS) {
            let panel = residual.panel(channel);
            multiply(&tiles, positions, starts, &offsets, panel, &mut sums);
            for (position, sums) in (first..count).zip(sums.0.as_flattened()) {
                let dst = &mut gradient[position * n + channel..][..TILE_COLUMNS];
                let mut sums = avx512::load(sums);
                if accumulate {
                    let before = dst.first_chunk().copied().unwrap_or_default();
                    sums = _mm512_add_ps(sums, avx512::widen(before));
                }
                dst.copy_from_slice(&avx512::round(sums));
            }
        }
    }
}

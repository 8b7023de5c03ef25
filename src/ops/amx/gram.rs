// SPDX-License-Identifier: MPL-2.0

//! Gram matrices of features and the gradient through them, on the tiles.
//!
//! Features are read as a matrix F `[positions, n]`.

use super::product::{
    COLUMNS, DEPTH, Line, Matrix, POSITIONS, Positions, STRIPS, Sums, Tile, multiply,
};
use super::tiles::Tiles;
use super::{Amx, values};
use half::bf16;
use std::arch::x86_64::{__m512i, _mm512_add_ps};
use std::cell::Cell;
use std::mem::transmute;

thread_local! {
    /// The two operands of FᵀF, kept from call to call.
    static OPERANDS: Cell<[Vec<Tile>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
    /// Features whose rows begin with a cache line, kept from call to call.
    static LINES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// FᵀF into the lower triangle of `gram` `[n, n]`, and more of it where a tile lies across the
/// diagonal. `n` is a multiple of [`super::CHANNELS`].
pub fn gram(amx: Amx, features: &[bf16], n: usize, gram: &mut [f32]) {
    assert!(n.is_multiple_of(DEPTH) && features.len().is_multiple_of(n));
    assert_eq!(gram.len(), n * n);
    let mut operands = OPERANDS.take();
    // SAFETY: a processor with AMX has the instructions.
    unsafe { gram_with(amx, features, n, gram, &mut operands) };
    OPERANDS.set(operands);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn gram_with(
    amx: Amx,
    features: &[bf16],
    n: usize,
    gram: &mut [f32],
    [left, right]: &mut [Vec<Tile>; 2],
) {
    // Of each 16 channels, `[steps]` tiles of 32 positions, and those of no channels as many as
    // the last strips reach beyond the last channel.
    let steps = (features.len() / n).div_ceil(DEPTH);
    let tiles = (n / COLUMNS + STRIPS - 1) * steps;
    for operand in [&mut *left, &mut *right] {
        operand.resize(tiles.max(operand.len()), Tile([bf16::ZERO; 512]));
    }
    let none = [bf16::ZERO; COLUMNS];
    for (step, positions) in features.chunks(DEPTH * n).enumerate() {
        for channel in (0..n).step_by(COLUMNS) {
            let pairs = values::pairs(|position| {
                let values = positions.get(position * n + channel..);
                values
                    .and_then(|values| values.first_chunk())
                    .unwrap_or(&none)
            });
            let at = channel / COLUMNS * steps + step;
            right[at] = tile(pairs);
            left[at] = tile(values::transposed(pairs));
        }
    }
    // A tile has 16 lines.
    let offsets: Vec<usize> = (0..steps).map(|step| step * 16).collect();
    let values = Positions {
        lines: lines(left),
        stride: 1,
    };
    let tiles = Tiles::configure(amx);
    let mut sums = Sums::ZEROS;
    for column in (0..n).step_by(COLUMNS) {
        let panel = &right[column / COLUMNS * steps..][..steps];
        for row in (column..n).step_by(STRIPS * COLUMNS) {
            let starts = std::array::from_fn(|i| (row / COLUMNS + i) * steps * 16);
            multiply(&tiles, values, starts, &offsets, panel, &mut sums);
            for (row, sums) in (row..n).zip(sums.0.as_flattened()) {
                gram[row * n + column..][..COLUMNS].copy_from_slice(sums);
            }
        }
    }
}

fn tile(rows: [__m512i; 16]) -> Tile {
    // SAFETY: both are 1024 bytes without padding, and all bits are bf16.
    Tile(unsafe { transmute::<[__m512i; 16], [bf16; 512]>(rows) })
}

fn lines(tiles: &[Tile]) -> &[Line] {
    // SAFETY: a tile is its 16 rows, each the 64 bytes of a line.
    unsafe { std::slice::from_raw_parts(tiles.as_ptr().cast(), tiles.len() * 16) }
}

/// F `residual` into `gradient`, of F's shape, or added to it; `residual` is `[n, n]`. F is copied,
/// so that it should fit a core's L2 cache.
pub fn gram_backward(
    amx: Amx,
    features: &[bf16],
    residual: &Matrix,
    gradient: &mut [bf16],
    accumulate: bool,
) {
    let n = residual.columns();
    assert!(n.is_multiple_of(DEPTH) && features.len().is_multiple_of(n));
    assert_eq!(gradient.len(), features.len());
    let mut scratch = LINES.take();
    // SAFETY: a processor with AMX has the instructions.
    unsafe { gram_backward_with(amx, features, residual, gradient, accumulate, &mut scratch) };
    LINES.set(scratch);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn gram_backward_with(
    amx: Amx,
    features: &[bf16],
    residual: &Matrix,
    gradient: &mut [bf16],
    accumulate: bool,
    scratch: &mut Vec<Line>,
) {
    let n = residual.columns();
    let (count, stride) = (features.len() / n, n / DEPTH);
    let len = count.next_multiple_of(STRIPS * POSITIONS) * stride;
    scratch.resize(len.max(scratch.len()), Line::ZEROS);
    for (line, values) in scratch.iter_mut().zip(features.as_chunks().0) {
        line.0 = *values;
    }
    let offsets: Vec<usize> = (0..stride).collect();
    let positions = Positions {
        lines: scratch,
        stride,
    };
    let tiles = Tiles::configure(amx);
    let mut sums = Sums::ZEROS;
    for first in (0..count).step_by(STRIPS * POSITIONS) {
        let starts = std::array::from_fn(|strip| (first + strip * POSITIONS) * stride);
        for channel in (0..n).step_by(COLUMNS) {
            let panel = residual.panel(channel);
            multiply(&tiles, positions, starts, &offsets, panel, &mut sums);
            for (position, sums) in (first..count).zip(sums.0.as_flattened()) {
                let place = &mut gradient[position * n + channel..][..COLUMNS];
                let mut sums = values::load(sums);
                if accumulate {
                    let before = place.first_chunk().copied().unwrap_or_default();
                    sums = _mm512_add_ps(sums, values::widen(before));
                }
                place.copy_from_slice(&values::round(sums));
            }
        }
    }
}

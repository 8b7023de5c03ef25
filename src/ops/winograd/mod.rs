// SPDX-License-Identifier: MPL-2.0

//! The CPU's 3x3 correlation of features with many channels: Winograd's F(4x4, 3x3), which needs a
//! quarter of the multiplications.
//!
//! The sums are computed in tiles of 4x4. The patch of 6x6 pixels that a tile sees is transformed
//! to its values at 36 points, at each point these are multiplied by the kernel's value there (a
//! matrix product over the channels), and the products are transformed to the tile's sums. A
//! block of tiles goes through the three steps while it is in a core's cache.

pub mod transform;

use super::Shared;
use super::product::{PANEL_VECTORS, groups, grown, lanes, multiply};
use aligned_vec::AVec;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use transform::{PATCH, TILE};

/// What the numbers of channels are multiples of: the most that a panel of a kernel has.
pub const CHANNELS: usize = 32;

const POINTS: usize = PATCH * PATCH;
/// Tiles of a block, about: enough to repay reading the kernel, few enough for the cache.
const BLOCK_TILES: usize = 48;
/// Output channels of a piece of work at most, so that their sums stay in the cache too.
const MAX_CHANNELS: usize = 256;
/// Tiles of a block at least, where there are blocks for all threads.
const MIN_TILES: usize = 24;

thread_local! {
    /// The transformed patches and the products of a block, kept from call to call.
    static SCRATCH: RefCell<(AVec<f32>, AVec<f32>)> =
        RefCell::new((AVec::new(0), AVec::new(0)));
}

/// The pixels that are correlated.
pub trait Source: Sync {
    /// A vector of the channels of `pixel`, from `channel` on.
    fn load<S: Simd>(&self, simd: S, pixel: usize, channel: usize) -> S::f32s;
}

/// What becomes of the sums.
pub trait Sink: Sync {
    /// Stores a vector of sums, those of the channels from `channel` on, in its `place`.
    fn store<S: Simd>(&self, simd: S, place: &mut S::f32s, channel: usize, sums: S::f32s);
}

/// A transformed kernel.
pub struct Kernel {
    n_in: usize,
    n_out: usize,
    /// `[n_out / panel, POINTS, n_in, panel]`
    values: AVec<f32>,
}

impl Kernel {
    /// The kernel whose weight is `weight(output channel, input channel, tap)`, its taps counted
    /// row by row. The numbers of channels are multiples of [`CHANNELS`].
    pub fn new(
        n_in: usize,
        n_out: usize,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        assert!(n_in.is_multiple_of(CHANNELS) && n_out.is_multiple_of(CHANNELS));
        let panel = PANEL_VECTORS * lanes();
        let mut values = AVec::new(0);
        values.resize(POINTS * n_in * n_out, 0.0);
        values
            .par_chunks_exact_mut(POINTS * n_in * panel)
            .enumerate()
            .for_each(|(index, values)| {
                for i in 0..n_in {
                    for o in 0..panel {
                        let tap = |tap| f64::from(weight(index * panel + o, i, tap));
                        let rows =
                            [0, 3, 6].map(|row| transform::kernel([0, 1, 2].map(|x| tap(row + x))));
                        for x in 0..PATCH {
                            let column = transform::kernel(rows.map(|row| row[x]));
                            for (y, value) in column.into_iter().enumerate() {
                                values[((y * PATCH + x) * n_in + i) * panel + o] = value as f32;
                            }
                        }
                    }
                }
            });
        Self {
            n_in,
            n_out,
            values,
        }
    }

    /// Size of the transformed kernel in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// Correlates an image `[h, w, n_in]`, surrounded by zeros, and stores the sums in `output`
    /// `[h, w, n_out]`.
    pub fn correlate(
        &self,
        [h, w]: [usize; 2],
        input: &impl Source,
        output: &mut [f32],
        sink: &impl Sink,
    ) {
        assert_eq!(output.len(), h * w * self.n_out);
        let grid = Grid { h, w };
        let tiles = grid.tiles();
        // A sum does not depend on the pieces, so that they may depend on the number of threads:
        // as many for each, of whole blocks where there are enough, else of parts of the channels.
        let threads = rayon::current_num_threads();
        let mut blocks = tiles.div_ceil(BLOCK_TILES);
        if blocks > 1 && tiles >= threads * MIN_TILES {
            blocks = blocks.next_multiple_of(threads);
        }
        let mut channels = self.n_out;
        while channels.is_multiple_of(2 * CHANNELS)
            && (channels > MAX_CHANNELS || blocks * self.n_out / channels < threads)
        {
            channels /= 2;
        }
        let parts = self.n_out / channels;
        let output = Shared::new(output);
        (0..blocks * parts).into_par_iter().for_each(|piece| {
            let (block, part) = (piece / parts, piece % parts);
            let tiles = block * tiles / blocks..(block + 1) * tiles / blocks;
            let channels = part * channels..(part + 1) * channels;
            SCRATCH.with_borrow_mut(|(patches, sums)| {
                let patches = grown(patches, POINTS * tiles.len() * self.n_in);
                let sums = grown(sums, POINTS * tiles.len() * channels.len());
                Arch::new().dispatch(Patches {
                    grid,
                    tiles: tiles.clone(),
                    n_in: self.n_in,
                    input,
                    patches,
                });
                Arch::new().dispatch(Products {
                    kernel: self,
                    tiles: tiles.len(),
                    channels: channels.clone(),
                    patches,
                    sums,
                });
                Arch::new().dispatch(Sums {
                    grid,
                    tiles,
                    channels,
                    n_out: self.n_out,
                    sums,
                    sink,
                    output: &output,
                });
            });
        });
    }
}

/// An image that is cut into tiles, which are counted row by row.
#[derive(Clone, Copy)]
struct Grid {
    h: usize,
    w: usize,
}

impl Grid {
    fn tiles(self) -> usize {
        self.h.div_ceil(TILE) * self.w.div_ceil(TILE)
    }

    /// Row and column of the first pixel of a tile.
    #[inline(always)]
    fn corner(self, tile: usize) -> (usize, usize) {
        let across = self.w.div_ceil(TILE);
        (tile / across * TILE, tile % across * TILE)
    }

    #[inline(always)]
    fn pixel(self, y: usize, x: usize) -> Option<usize> {
        (y < self.h && x < self.w).then(|| y * self.w + x)
    }
}

/// Step 1: the patches of `tiles`, transformed, as groups of `[POINTS, n_in / lanes, tiles of the
/// group, lanes]`, which is the order that the products read them in.
struct Patches<'a, I> {
    grid: Grid,
    tiles: Range<usize>,
    n_in: usize,
    input: &'a I,
    patches: &'a mut [f32],
}

impl<I: Source> WithSimd for Patches<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.n_in / S::F32_LANES;
        let patches = S::as_mut_simd_f32s(self.patches).0;
        for group in groups::<S>(self.tiles.len()) {
            let len = group.len();
            let patches = &mut patches[POINTS * vectors * group.start..][..POINTS * vectors * len];
            for (at, tile) in group.enumerate() {
                let corner = self.grid.corner(self.tiles.start + tile);
                for vector in 0..vectors {
                    let channel = vector * S::F32_LANES;
                    let patch = patch(simd, self.grid, corner, channel, self.input);
                    for (y, row) in patch.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            patches[((y * PATCH + x) * vectors + vector) * len + at] = value;
                        }
                    }
                }
            }
        }
    }
}

/// The transformed patch of the tile at (`top`, `left`), one vector of channels.
#[inline(always)]
fn patch<S: Simd>(
    simd: S,
    grid: Grid,
    (top, left): (usize, usize),
    channel: usize,
    input: &impl Source,
) -> [[S::f32s; PATCH]; PATCH] {
    let zero = simd.splat_f32s(0.0);
    let mut columns = [[zero; PATCH]; PATCH];
    for x in 0..PATCH {
        let mut column = [zero; PATCH];
        for (y, value) in column.iter_mut().enumerate() {
            // Before the first row or column this wraps around to one that is beyond the last.
            let (y, x) = ((top + y).wrapping_sub(1), (left + x).wrapping_sub(1));
            if let Some(pixel) = grid.pixel(y, x) {
                *value = input.load(simd, pixel, channel);
            }
        }
        for (row, value) in columns.iter_mut().zip(transform::input(simd, column)) {
            row[x] = value;
        }
    }
    for row in &mut columns {
        *row = transform::input(simd, *row);
    }
    columns
}

/// Step 2: `sums` `[tiles, panels, POINTS, PANEL_VECTORS, lanes]`, the products of patches and
/// kernel.
struct Products<'a> {
    kernel: &'a Kernel,
    tiles: usize,
    channels: Range<usize>,
    patches: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let depth = self.kernel.n_in;
        let panel = depth * PANEL_VECTORS;
        let sums = S::as_mut_simd_f32s(self.sums).0;
        let stride = POINTS * self.channels.len() / S::F32_LANES;
        let kernel = &self.kernel.values[POINTS * depth * self.channels.start..]
            [..POINTS * depth * self.channels.len()];
        let kernel = S::as_simd_f32s(kernel).0;
        let panels = kernel.len() / (POINTS * panel);
        // Nothing comes after the last.
        let panel_at = |point: usize, index: usize| {
            let start = (index * POINTS + point) * panel;
            kernel.get(start..start + panel).unwrap_or_default()
        };
        for point in 0..POINTS {
            for index in 0..panels {
                let kernel = panel_at(point, index);
                let next = if index + 1 < panels {
                    panel_at(point, index + 1)
                } else {
                    panel_at(point + 1, 0)
                };
                for group in groups::<S>(self.tiles) {
                    let len = group.len();
                    let start = (POINTS * group.start + point * len) * depth;
                    let patches = &self.patches[start..][..len * depth];
                    let share = |tile: usize| tile * next.len() / self.tiles;
                    let next = &next[share(group.start)..share(group.end)];
                    let place = (index * POINTS + point) * PANEL_VECTORS;
                    let sums = &mut sums[group.start * stride + place..];
                    multiply(simd, len, patches, kernel, next, sums, stride);
                }
            }
        }
    }
}

/// Step 3: the tiles' sums.
struct Sums<'a, O> {
    grid: Grid,
    tiles: Range<usize>,
    channels: Range<usize>,
    n_out: usize,
    sums: &'a [f32],
    sink: &'a O,
    output: &'a Shared<'a, f32>,
}

impl<O: Sink> WithSimd for Sums<'_, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let sums = S::as_simd_f32s(self.sums).0;
        let panels = self.channels.len() / (PANEL_VECTORS * S::F32_LANES);
        let tiles = sums.chunks_exact(panels * POINTS * PANEL_VECTORS);
        for (tile, sums) in self.tiles.zip(tiles) {
            let (top, left) = self.grid.corner(tile);
            for (panel, sums) in sums.chunks_exact(POINTS * PANEL_VECTORS).enumerate() {
                for vector in 0..PANEL_VECTORS {
                    let index = panel * PANEL_VECTORS + vector;
                    let channel = self.channels.start + index * S::F32_LANES;
                    let tile = tile_of(simd, &sums[vector..]);
                    for (y, row) in tile.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            let Some(pixel) = self.grid.pixel(top + y, left + x) else {
                                continue;
                            };
                            let place = pixel * self.n_out + channel;
                            // SAFETY: pieces differ in their tiles or in their channels.
                            let place = unsafe { self.output.range(place, S::F32_LANES) };
                            let place = &mut S::as_mut_simd_f32s(place).0[0];
                            self.sink.store(simd, place, channel, value);
                        }
                    }
                }
            }
        }
    }
}

/// A tile of sums, one vector of channels, from the products at the points, which lie
/// `PANEL_VECTORS` apart.
#[inline(always)]
fn tile_of<S: Simd>(simd: S, products: &[S::f32s]) -> [[S::f32s; TILE]; TILE] {
    let mut columns = [[simd.splat_f32s(0.0); PATCH]; TILE];
    for x in 0..PATCH {
        let mut column = [simd.splat_f32s(0.0); PATCH];
        for (y, value) in column.iter_mut().enumerate() {
            *value = products[(y * PATCH + x) * PANEL_VECTORS];
        }
        for (row, value) in columns.iter_mut().zip(transform::output(simd, column)) {
            row[x] = value;
        }
    }
    let mut tile = [[simd.splat_f32s(0.0); TILE]; TILE];
    for (row, column) in tile.iter_mut().zip(columns) {
        *row = transform::output(simd, column);
    }
    tile
}

// SPDX-License-Identifier: MPL-2.0

//! The CPU's `f32` 3x3 convolution of features with many channels: Winograd's F(4x4, 3x3), which
//! needs a quarter of the multiplications (Lavin and Gray, CVPR 2016).
//!
//! The output is computed in tiles of 4x4 pixels in three steps: the *input transform* Bᵀ d B takes
//! the 6x6 input tile d to 36 points; at each point, a *matrix product* over the channels
//! multiplies it by the transformed kernel G g Gᵀ; and the *output transform* Aᵀ m A takes the
//! products m to the output tile. A block of tiles passes through all three while it is in a core's
//! cache.

pub mod convolution;
pub mod transform;

use super::DisjointSlices;
use super::microkernel::{PANEL_VECTORS, lanes, multiply, row_groups, scratch_slice};
use aligned_vec::AVec;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use transform::{INPUT_TILE, OUTPUT_TILE};

/// The numbers of channels are multiples of this: the widest panel of any CPU.
pub const CHANNEL_MULTIPLE: usize = 32;

/// Points of the transformed domain.
const POINTS: usize = INPUT_TILE * INPUT_TILE;
/// Tiles per block, roughly: enough to amortise reading the kernel, few enough for the cache.
const BLOCK_TILES: usize = 48;
/// Most output channels per task, so that their products stay in the cache too.
const MAX_TASK_CHANNELS: usize = 256;
/// Fewest tiles per block when the image is split into as many blocks as there are threads.
const MIN_BLOCK_TILES: usize = 24;

thread_local! {
    /// The transformed input tiles and the products of a block, kept between calls.
    static BLOCK_SCRATCH: RefCell<(AVec<f32>, AVec<f32>)> =
        RefCell::new((AVec::new(0), AVec::new(0)));
}

/// Where the input comes from.
trait Loader: Sync {
    /// Loads a vector of channels of `pixel`, from `channel` on.
    fn load<S: Simd>(&self, simd: S, pixel: usize, channel: usize) -> S::f32s;
}

/// What is applied to the sums as they are stored.
trait Epilogue: Sync {
    /// Stores a vector of sums, of the channels from `channel` on, in `dst`.
    fn store<S: Simd>(&self, simd: S, dst: &mut S::f32s, channel: usize, sums: S::f32s);
}

/// A 3x3 kernel in the transformed domain, packed for [`multiply`].
pub struct WinogradKernel {
    n_in: usize,
    n_out: usize,
    /// `[n_out / panel, POINTS, n_in, panel]`
    values: AVec<f32>,
}

impl WinogradKernel {
    /// Transforms the kernel whose weights are `weight(output channel, input channel, tap)`, taps
    /// in row-major order. The numbers of channels are multiples of [`CHANNEL_MULTIPLE`].
    pub fn new(
        n_in: usize,
        n_out: usize,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        assert!(n_in.is_multiple_of(CHANNEL_MULTIPLE) && n_out.is_multiple_of(CHANNEL_MULTIPLE));
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
                            [0, 3, 6].map(|row| transform::filter([0, 1, 2].map(|x| tap(row + x))));
                        for x in 0..INPUT_TILE {
                            let column = transform::filter(rows.map(|row| row[x]));
                            for (y, value) in column.into_iter().enumerate() {
                                values[((y * INPUT_TILE + x) * n_in + i) * panel + o] =
                                    value as f32;
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

    /// Convolves `input` `[h, w, n_in]`, padded with zeros, and stores the sums in `output` `[h, w,
    /// n_out]` through `epilogue`.
    fn convolve(
        &self,
        [h, w]: [usize; 2],
        input: &impl Loader,
        output: &mut [f32],
        epilogue: &impl Epilogue,
    ) {
        assert_eq!(output.len(), h * w * self.n_out);
        let grid = Grid { h, w };
        let tiles = grid.tiles();
        // No sum depends on how the work is split, so that may depend on the number of threads: an
        // equal share for each, by blocks of tiles if there are enough, else by channels as well.
        let threads = rayon::current_num_threads();
        let mut blocks = tiles.div_ceil(BLOCK_TILES);
        if blocks > 1 && tiles >= threads * MIN_BLOCK_TILES {
            blocks = blocks.next_multiple_of(threads);
        }
        let mut channels = self.n_out;
        while channels.is_multiple_of(2 * CHANNEL_MULTIPLE)
            && (channels > MAX_TASK_CHANNELS || blocks * self.n_out / channels < threads)
        {
            channels /= 2;
        }
        let parts = self.n_out / channels;
        let output = DisjointSlices::new(output);
        (0..blocks * parts).into_par_iter().for_each(|task| {
            let (block, part) = (task / parts, task % parts);
            let tiles = block * tiles / blocks..(block + 1) * tiles / blocks;
            let channels = part * channels..(part + 1) * channels;
            BLOCK_SCRATCH.with_borrow_mut(|(transformed, products)| {
                let transformed = scratch_slice(transformed, POINTS * tiles.len() * self.n_in);
                let products = scratch_slice(products, POINTS * tiles.len() * channels.len());
                Arch::new().dispatch(InputTransform {
                    grid,
                    tiles: tiles.clone(),
                    n_in: self.n_in,
                    input,
                    transformed,
                });
                Arch::new().dispatch(PointProducts {
                    kernel: self,
                    tiles: tiles.len(),
                    channels: channels.clone(),
                    transformed,
                    products,
                });
                Arch::new().dispatch(OutputTransform {
                    grid,
                    tiles,
                    channels,
                    n_out: self.n_out,
                    products,
                    epilogue,
                    output: &output,
                });
            });
        });
    }
}

/// An image split into output tiles, numbered in row-major order.
#[derive(Clone, Copy)]
struct Grid {
    h: usize,
    w: usize,
}

impl Grid {
    fn tiles(self) -> usize {
        self.h.div_ceil(OUTPUT_TILE) * self.w.div_ceil(OUTPUT_TILE)
    }

    /// Row and column of the first pixel of an output tile.
    #[inline(always)]
    fn corner(self, tile: usize) -> (usize, usize) {
        let across = self.w.div_ceil(OUTPUT_TILE);
        (tile / across * OUTPUT_TILE, tile % across * OUTPUT_TILE)
    }

    #[inline(always)]
    fn pixel(self, y: usize, x: usize) -> Option<usize> {
        (y < self.h && x < self.w).then(|| y * self.w + x)
    }
}

/// Step 1: transforms the input tiles of `tiles` into `transformed`, as groups of `[POINTS, n_in /
/// lanes, tiles of the group, lanes]`, the order in which [`multiply`] reads them.
struct InputTransform<'a, I> {
    grid: Grid,
    tiles: Range<usize>,
    n_in: usize,
    input: &'a I,
    transformed: &'a mut [f32],
}

impl<I: Loader> WithSimd for InputTransform<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.n_in / S::F32_LANES;
        let transformed = S::as_mut_simd_f32s(self.transformed).0;
        for group in row_groups::<S>(self.tiles.len()) {
            let len = group.len();
            let transformed =
                &mut transformed[POINTS * vectors * group.start..][..POINTS * vectors * len];
            for (at, tile) in group.enumerate() {
                let corner = self.grid.corner(self.tiles.start + tile);
                for vector in 0..vectors {
                    let channel = vector * S::F32_LANES;
                    let tile = transformed_input_tile(simd, self.grid, corner, channel, self.input);
                    for (y, row) in tile.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            transformed[((y * INPUT_TILE + x) * vectors + vector) * len + at] =
                                value;
                        }
                    }
                }
            }
        }
    }
}

/// Bᵀ d B of the input tile of the output tile at (`top`, `left`), for one vector of channels.
#[inline(always)]
fn transformed_input_tile<S: Simd>(
    simd: S,
    grid: Grid,
    (top, left): (usize, usize),
    channel: usize,
    input: &impl Loader,
) -> [[S::f32s; INPUT_TILE]; INPUT_TILE] {
    let zero = simd.splat_f32s(0.0);
    let mut columns = [[zero; INPUT_TILE]; INPUT_TILE];
    for x in 0..INPUT_TILE {
        let mut column = [zero; INPUT_TILE];
        for (y, value) in column.iter_mut().enumerate() {
            // One before the first row or column wraps around, which is out of the image, too.
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

/// Step 2: multiplies the transformed tiles by the kernel at each point, into `products` `[tiles,
/// panels, POINTS, PANEL_VECTORS, lanes]`.
struct PointProducts<'a> {
    kernel: &'a WinogradKernel,
    tiles: usize,
    channels: Range<usize>,
    transformed: &'a [f32],
    products: &'a mut [f32],
}

impl WithSimd for PointProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let depth = self.kernel.n_in;
        let panel = depth * PANEL_VECTORS;
        let products = S::as_mut_simd_f32s(self.products).0;
        let stride = POINTS * self.channels.len() / S::F32_LANES;
        let kernel = &self.kernel.values[POINTS * depth * self.channels.start..]
            [..POINTS * depth * self.channels.len()];
        let kernel = S::as_simd_f32s(kernel).0;
        let panels = kernel.len() / (POINTS * panel);
        // Empty past the last point.
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
                for group in row_groups::<S>(self.tiles) {
                    let len = group.len();
                    let start = (POINTS * group.start + point * len) * depth;
                    let transformed = &self.transformed[start..][..len * depth];
                    let share = |tile: usize| tile * next.len() / self.tiles;
                    let next = &next[share(group.start)..share(group.end)];
                    let offset = (index * POINTS + point) * PANEL_VECTORS;
                    let products = &mut products[group.start * stride + offset..];
                    multiply(simd, len, transformed, kernel, next, products, stride);
                }
            }
        }
    }
}

/// Step 3: transforms the products to the output tiles and stores them.
struct OutputTransform<'a, O> {
    grid: Grid,
    tiles: Range<usize>,
    channels: Range<usize>,
    n_out: usize,
    products: &'a [f32],
    epilogue: &'a O,
    output: &'a DisjointSlices<'a, f32>,
}

impl<O: Epilogue> WithSimd for OutputTransform<'_, O> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let products = S::as_simd_f32s(self.products).0;
        let panels = self.channels.len() / (PANEL_VECTORS * S::F32_LANES);
        let tiles = products.chunks_exact(panels * POINTS * PANEL_VECTORS);
        for (tile, products) in self.tiles.zip(tiles) {
            let (top, left) = self.grid.corner(tile);
            for (panel, products) in products.chunks_exact(POINTS * PANEL_VECTORS).enumerate() {
                for vector in 0..PANEL_VECTORS {
                    let index = panel * PANEL_VECTORS + vector;
                    let channel = self.channels.start + index * S::F32_LANES;
                    let tile = output_tile(simd, &products[vector..]);
                    for (y, row) in tile.into_iter().enumerate() {
                        for (x, value) in row.into_iter().enumerate() {
                            let Some(pixel) = self.grid.pixel(top + y, left + x) else {
                                continue;
                            };
                            let start = pixel * self.n_out + channel;
                            // SAFETY: tasks differ in their tiles or in their channels.
                            let dst = unsafe { self.output.slice_mut(start, S::F32_LANES) };
                            let dst = &mut S::as_mut_simd_f32s(dst).0[0];
                            self.epilogue.store(simd, dst, channel, value);
                        }
                    }
                }
            }
        }
    }
}

/// Aᵀ m A for one vector of channels: an output tile from the products m at the points, which are
/// `PANEL_VECTORS` apart.
#[inline(always)]
fn output_tile<S: Simd>(simd: S, products: &[S::f32s]) -> [[S::f32s; OUTPUT_TILE]; OUTPUT_TILE] {
    let mut columns = [[simd.splat_f32s(0.0); INPUT_TILE]; OUTPUT_TILE];
    for x in 0..INPUT_TILE {
        let mut column = [simd.splat_f32s(0.0); INPUT_TILE];
        for (y, value) in column.iter_mut().enumerate() {
            *value = products[(y * INPUT_TILE + x) * PANEL_VECTORS];
        }
        for (row, value) in columns.iter_mut().zip(transform::output(simd, column)) {
            row[x] = value;
        }
    }
    let mut tile = [[simd.splat_f32s(0.0); OUTPUT_TILE]; OUTPUT_TILE];
    for (row, column) in tile.iter_mut().zip(columns) {
        *row = transform::output(simd, column);
    }
    tile
}

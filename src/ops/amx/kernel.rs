// SPDX-License-Identifier: MPL-2.0

//! A convolution's kernel, packed for the tiles.

use half::bf16;
use rayon::prelude::*;

/// Channels of a pixel that an operand holds, and output channels of a block: two tiles of 16. All
/// numbers of channels are multiples of it.
pub const CHANNELS: usize = 32;

/// The second operand of a tile product: 16 pairs of input channels by 16 output channels,
/// `[16, 16, 2]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct KernelTile([bf16; 512]);

/// The kernel of a convolution.
pub struct Kernel {
    n_in: usize,
    n_out: usize,
    /// `[n_out / 32, 3, n_in / 32, 3, 2]` of tiles, in the order in which a block reads them:
    /// for 32 output channels, tap rows, then input channels 32 at a time, then the three taps of
    /// the row, whose pixels overlap and so are in the L1 cache after the first, and last the two
    /// halves of the output channels.
    tiles: Vec<KernelTile>,
}

impl Kernel {
    /// The kernel whose weight is `weight(output channel, input channel, tap)`, rounded to bf16;
    /// its taps are counted row by row.
    pub fn new(
        n_in: usize,
        n_out: usize,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        for channels in [n_out, n_in] {
            assert!(channels > 0 && channels.is_multiple_of(CHANNELS));
        }
        let tile = |index: usize| {
            let (half, dx, rest) = (index % 2, index / 2 % 3, index / 6);
            let (chunk, rest) = (rest % (n_in / CHANNELS), rest / (n_in / CHANNELS));
            let (dy, panel) = (rest % 3, rest / 3);
            KernelTile(std::array::from_fn(|i| {
                let output = panel * CHANNELS + half * 16 + i / 2 % 16;
                let input = chunk * CHANNELS + i / 32 * 2 + i % 2;
                bf16::from_f32(weight(output, input, dy * 3 + dx))
            }))
        };
        let tiles = (0..9 * n_out * n_in / 512).into_par_iter().map(tile);
        Self {
            n_in,
            n_out,
            tiles: tiles.collect(),
        }
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Size of the packed kernel in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.tiles.as_slice())
    }

    /// The tiles of the 32 output channels from `channel` on.
    pub fn panel(&self, channel: usize) -> &[KernelTile] {
        let len = 9 * self.n_in * CHANNELS / 512;
        &self.tiles[channel / CHANNELS * len..][..len]
    }
}

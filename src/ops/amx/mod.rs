// SPDX-License-Identifier: MPL-2.0

//! Convolutions and Gram matrices of bf16 features on the CPU, on the tile registers of Intel AMX
//! (`TDPBF16PS`): operands are bf16, accumulators f32. Results are bit-identical for any number of
//! threads.
//!
//! `microkernel` is the tile GEMM that all of it is built on, `convolution` the convolution
//! between features, `image` that of conv1_1, `gram` the Gram matrices. `tiles` detects and
//! configures AMX; `avx512` has the vector code around the tile products.

mod avx512;
mod convolution;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
mod gram;
mod image;
mod microkernel;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod tiles;

use super::DisjointSlices;
use candle_core::{Result, bail};
use convolution::{BiasReluBf16, ConvInput, Convolution, StoreBf16};
pub use gram::{gram, gram_backward};
use half::bf16;
pub use image::AmxImageConv;
pub use microkernel::VnniMatrix;
use rayon::prelude::*;

/// The numbers of feature channels are multiples of this.
pub const CHANNEL_MULTIPLE: usize = microkernel::TILE_DEPTH;

/// Proof that this process may use AMX.
#[derive(Clone, Copy)]
pub struct Amx(());

impl Amx {
    /// None if the processor lacks AMX or the system denies it to this process.
    pub fn new() -> Option<Self> {
        tiles::available().then_some(Self(()))
    }

    /// The processor's AMX, or else the emulator's; none if that cannot run either.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        #[cfg(target_os = "linux")]
        let emulated = || avx512::available() && emulator::install();
        #[cfg(not(target_os = "linux"))]
        let emulated = || false;
        let ready = tiles::available() || emulated();
        if !ready {
            eprintln!("left out: there is neither AMX nor what its emulation takes");
        }
        ready.then_some(Self(()))
    }

    /// An error without AMX, the only way to compute bf16 operations on the CPU.
    pub(super) fn require() -> Result<Self> {
        #[cfg(test)]
        let amx = Self::for_tests();
        #[cfg(not(test))]
        let amx = Self::new();
        match amx {
            Some(amx) => Ok(amx),
            None => bail!("bf16 on the CPU needs AMX"),
        }
    }
}

/// Rounds the weights `weight(output channel, input channel, tap)` to bf16, `[n_out, n_in, 9]`,
/// carrying the rounding error of each over to the next.
///
/// Features are positive and similar to their neighbours, so that the errors of independently
/// rounded weights add up. With the built-in weights (those of conv1_1 exact), error diffusion
/// improves the cosine of the image gradient to that of the exact weights from 0.9992 to 0.9996.
fn round_with_error_diffusion(
    n_in: usize,
    n_out: usize,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<f32> {
    let mut weights = vec![0.0; n_out * n_in * 9];
    let outputs = weights.par_chunks_exact_mut(n_in * 9).enumerate();
    outputs.for_each(|(out, weights)| {
        let mut error = 0.0;
        for (i, rounded) in weights.iter_mut().enumerate() {
            let wanted = weight(out, i / 9, i % 9) + error;
            *rounded = bf16::from_f32(wanted).to_f32();
            error = wanted - *rounded;
        }
    });
    weights
}

/// `relu(input * kernel + bias)`, padded with zeros, and its gradient with respect to the input.
pub struct AmxConv {
    amx: Amx,
    forward: VnniMatrix,
    adjoint: VnniMatrix,
    bias: Vec<f32>,
}

impl AmxConv {
    /// Packs a kernel of weights `weight(output channel, input channel, tap)`, taps in row-major
    /// order. The numbers of channels are multiples of [`CHANNEL_MULTIPLE`].
    pub fn new(
        amx: Amx,
        n_in: usize,
        bias: Vec<f32>,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let n_out = bias.len();
        let weights = round_with_error_diffusion(n_in, n_out, weight);
        let weight = |out, input, tap| weights[(out * n_in + input) * 9 + tap];
        Self {
            amx,
            forward: convolution::kernel(n_in, n_out, weight),
            adjoint: convolution::kernel(n_out, n_in, |out, input, tap| {
                weight(input, out, 8 - tap)
            }),
            bias,
        }
    }

    fn n_in(&self) -> usize {
        self.adjoint.columns()
    }

    /// Computes `output` `[h, w, n_out]` from `input` `[h, w, n_in]`.
    pub fn forward(&self, size @ [h, w]: [usize; 2], input: &[bf16], output: &mut [bf16]) {
        assert_eq!(output.len(), h * w * self.bias.len());
        let source = ConvInput::Features(input);
        Convolution::new(self.amx, size, self.n_in(), 1, source, &self.forward).compute(
            BiasReluBf16 {
                bias: &self.bias,
                output: DisjointSlices::new(output),
            },
        );
    }

    /// Computes `gradient` `[h, w, n_in]`, with respect to the input, from `upstream`, that with
    /// respect to `output`: where `output` is not above 0, the ReLU passes none.
    pub fn backward(
        &self,
        size @ [h, w]: [usize; 2],
        upstream: &[bf16],
        output: &[bf16],
        gradient: &mut [bf16],
    ) {
        assert_eq!(gradient.len(), h * w * self.n_in());
        let source = ConvInput::MaskedGradient(upstream, output);
        Convolution::new(self.amx, size, self.bias.len(), 1, source, &self.adjoint).compute(
            StoreBf16 {
                channels: self.n_in(),
                output: DisjointSlices::new(gradient),
            },
        );
    }
}

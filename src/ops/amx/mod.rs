// SPDX-License-Identifier: MPL-2.0

//! The CPU's operations on features in bf16 that are sums of products, on the tiles of Intel AMX:
//! what is multiplied is bf16, the sums are f32. Results are the same bit for bit for any number
//! of threads.

mod convolution;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
mod gram;
mod image;
mod product;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod tiles;
mod values;

use super::Shared;
use candle_core::{Result, bail};
use convolution::{Activation, Convolution, Gradient, Source};
pub use gram::{gram, gram_backward};
use half::bf16;
pub use image::ImageConv;
pub use product::Matrix;
use rayon::prelude::*;

/// What all numbers of channels are multiples of.
pub const CHANNELS: usize = product::DEPTH;

/// The right to use AMX.
#[derive(Clone, Copy)]
pub struct Amx(());

impl Amx {
    /// None where the processor has no AMX, or the system keeps it from this process.
    pub fn new() -> Option<Self> {
        tiles::available().then_some(Self(()))
    }

    /// The processor's, or else the emulator's; none where that cannot run either.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        #[cfg(target_os = "linux")]
        let emulated = || values::available() && emulator::install();
        #[cfg(not(target_os = "linux"))]
        let emulated = || false;
        let ready = tiles::available() || emulated();
        if !ready {
            eprintln!("left out: there is neither AMX nor what its emulation takes");
        }
        ready.then_some(Self(()))
    }

    /// For an operation on bf16 on the CPU, which there is no other way to compute.
    pub(super) fn needed() -> Result<Self> {
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

/// Weights `[n_out, n_in, 9]`, from `weight(output channel, input channel, tap)`, as bf16 holds
/// them, where each has taken up what rounding took from the one before it.
///
/// Features are positive and neighbours alike, so that the errors of weights that are rounded each
/// for itself add up in a sum: with the built-in weights (those of conv1_1 exact) the gradient with
/// respect to an image had a cosine of 0.9992 to that of the exact weights, with these 0.9996.
fn rounded(
    n_in: usize,
    n_out: usize,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Vec<f32> {
    let mut weights = vec![0.0; n_out * n_in * 9];
    let outputs = weights.par_chunks_exact_mut(n_in * 9).enumerate();
    outputs.for_each(|(out, weights)| {
        let mut carried = 0.0;
        for (i, rounded) in weights.iter_mut().enumerate() {
            let wanted = weight(out, i / 9, i % 9) + carried;
            *rounded = bf16::from_f32(wanted).to_f32();
            carried = wanted - *rounded;
        }
    });
    weights
}

/// `relu(input * kernel + bias)` and its gradient with respect to the input, between borders of
/// zeros.
pub struct Conv {
    amx: Amx,
    forward: Matrix,
    adjoint: Matrix,
    bias: Vec<f32>,
}

impl Conv {
    /// With a kernel whose weight is `weight(output channel, input channel, tap)`, its taps
    /// counted row by row. The numbers of channels are multiples of [`CHANNELS`].
    pub fn new(
        amx: Amx,
        n_in: usize,
        bias: Vec<f32>,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let n_out = bias.len();
        let weights = rounded(n_in, n_out, weight);
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

    /// Size of the packed kernels and the bias in bytes.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.adjoint.bytes() + size_of_val(self.bias.as_slice())
    }

    fn n_in(&self) -> usize {
        self.adjoint.columns()
    }

    /// From `input` `[h, w, n_in]` to `output` `[h, w, n_out]`.
    pub fn forward(&self, size @ [h, w]: [usize; 2], input: &[bf16], output: &mut [bf16]) {
        assert_eq!(output.len(), h * w * self.bias.len());
        let source = Source::Features(input);
        Convolution::new(self.amx, size, self.n_in(), 1, source, &self.forward).compute(
            &Activation {
                bias: &self.bias,
                output: Shared::new(output),
            },
        );
    }

    /// From `upstream`, the gradient with respect to `output`, to the `gradient` with respect to the
    /// input, `[h, w, n_in]`: where `output` is not above 0 the ReLU lets nothing back.
    pub fn backward(
        &self,
        size @ [h, w]: [usize; 2],
        upstream: &[bf16],
        output: &[bf16],
        gradient: &mut [bf16],
    ) {
        assert_eq!(gradient.len(), h * w * self.n_in());
        let source = Source::Active(upstream, output);
        Convolution::new(self.amx, size, self.bias.len(), 1, source, &self.adjoint).compute(
            &Gradient {
                channels: self.n_in(),
                output: Shared::new(gradient),
            },
        );
    }
}

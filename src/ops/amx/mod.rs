// SPDX-License-Identifier: MPL-2.0

//! The CPU's 3x3 convolution in bf16, on the tiles of Intel AMX.
//!
//! Features and gradients are f32 in memory. What a convolution is given is rounded to bf16 into a
//! padded copy, the sums of the products are f32, and so is what is stored.

mod convolution;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
mod kernel;
mod operand;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod tiles;

use convolution::{Convolution, Epilogue};
pub use kernel::CHANNELS;
use kernel::Kernel;
use operand::Padded;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The right to use AMX, and the operands' memory, which all convolutions made with it share.
#[derive(Clone)]
pub struct Amx(Arc<Mutex<Vec<Padded>>>);

impl Amx {
    /// None where the processor has no AMX, or the system keeps it from this process.
    pub fn new() -> Option<Self> {
        tiles::available().then(Self::granted)
    }

    /// The processor's, or else the emulator's; none where that cannot run either.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        #[cfg(target_os = "linux")]
        let emulated = emulator::install;
        #[cfg(not(target_os = "linux"))]
        let emulated = || false;
        let ready = tiles::available() || emulated();
        if !ready {
            eprintln!("left out: there is neither AMX nor what its emulation takes");
        }
        ready.then(Self::granted)
    }

    fn granted() -> Self {
        Self(Arc::default())
    }

    /// Memory for an operand. The lock is not held while it is used: a thread that waits for its
    /// pieces may meanwhile begin another convolution.
    fn take(&self) -> Padded {
        self.free().pop().unwrap_or_default()
    }

    fn put_back(&self, operand: Padded) {
        self.free().push(operand);
    }

    fn free(&self) -> MutexGuard<'_, Vec<Padded>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `relu(input * kernel + bias)` and its gradient with respect to the input, between borders of
/// zeros. Results are the same bit for bit for any number of threads.
pub struct Conv {
    amx: Amx,
    forward: Kernel,
    adjoint: Kernel,
    bias: Vec<f32>,
}

impl Conv {
    /// With a kernel whose weight is `weight(output channel, input channel, tap)`, its taps
    /// counted row by row. The numbers of channels are multiples of [`CHANNELS`].
    pub fn new(
        amx: &Amx,
        n_in: usize,
        bias: Vec<f32>,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let n_out = bias.len();
        Self {
            amx: amx.clone(),
            forward: Kernel::new(n_in, n_out, &weight),
            adjoint: Kernel::new(n_out, n_in, |out, input, tap| weight(input, out, 8 - tap)),
            bias,
        }
    }

    /// Size of the packed kernels and the bias in bytes.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.adjoint.bytes() + size_of_val(self.bias.as_slice())
    }

    /// From `input` `[h, w, n_in]` to `output` `[h, w, n_out]`.
    pub fn forward(&self, size: [usize; 2], input: &[f32], output: &mut [f32]) {
        let epilogue = Epilogue::BiasRelu(&self.bias);
        self.run(&self.forward, size, input, None, output, epilogue);
    }

    /// From the gradient with respect to the output, where that is above 0, to the gradient with
    /// respect to the input.
    pub fn backward(
        &self,
        size: [usize; 2],
        upstream: &[f32],
        output: &[f32],
        gradient: &mut [f32],
    ) {
        let active = Some(output);
        self.run(
            &self.adjoint,
            size,
            upstream,
            active,
            gradient,
            Epilogue::Sums,
        );
    }

    fn run(
        &self,
        kernel: &Kernel,
        size: [usize; 2],
        input: &[f32],
        active: Option<&[f32]>,
        output: &mut [f32],
        epilogue: Epilogue,
    ) {
        let mut operand = self.amx.take();
        let rounded = operand.round(size, kernel.n_in(), input, active);
        Convolution::new(&self.amx, size, rounded, kernel).compute(output, epilogue);
        self.amx.put_back(operand);
    }
}

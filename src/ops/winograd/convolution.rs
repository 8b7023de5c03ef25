// SPDX-License-Identifier: MPL-2.0

//! The convolution with bias and ReLU, and its gradient, by Winograd's algorithm.

use super::{Epilogue, Loader, WinogradKernel};
use pulp::Simd;

/// `relu(input * kernel + bias)`, padded with zeros. Features are row-major.
pub struct WinogradConv {
    forward: WinogradKernel,
    adjoint: WinogradKernel,
    bias: Vec<f32>,
}

impl WinogradConv {
    /// The convolution whose weights are `weight(output channel, input channel, tap)`, as
    /// [`WinogradKernel::new`] takes them.
    pub fn new(
        n_in: usize,
        bias: Vec<f32>,
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let n_out = bias.len();
        Self {
            forward: WinogradKernel::new(n_in, n_out, &weight),
            adjoint: WinogradKernel::new(n_out, n_in, |out, input, tap| {
                weight(input, out, 8 - tap)
            }),
            bias,
        }
    }

    /// `output = relu(input * kernel + bias)`, from `[h, w, n_in]` to `[h, w, n_out]`.
    pub fn forward(&self, size: [usize; 2], input: &[f32], output: &mut [f32]) {
        let input = FeatureLoader {
            values: input,
            channels: self.forward.n_in,
        };
        let epilogue = BiasRelu { bias: &self.bias };
        self.forward.convolve(size, &input, output, &epilogue);
    }

    /// Writes the gradient with respect to the input `[h, w, n_in]`: `upstream`, where `output` is above
    /// 0, both `[h, w, n_out]`, convolved with the adjoint.
    pub fn backward(
        &self,
        size: [usize; 2],
        upstream: &[f32],
        output: &[f32],
        gradient: &mut [f32],
    ) {
        let features = |values| FeatureLoader {
            values,
            channels: self.adjoint.n_in,
        };
        let input = MaskedGradientLoader {
            upstream: features(upstream),
            output: features(output),
        };
        self.adjoint.convolve(size, &input, gradient, &StoreSums);
    }
}

/// Loads features `[h, w, channels]`.
struct FeatureLoader<'a> {
    values: &'a [f32],
    channels: usize,
}

impl Loader for FeatureLoader<'_> {
    #[inline(always)]
    fn load<S: Simd>(&self, _: S, pixel: usize, channel: usize) -> S::f32s {
        let start = pixel * self.channels + channel;
        S::as_simd_f32s(&self.values[start..start + S::F32_LANES]).0[0]
    }
}

/// Loads the gradient with respect to a convolution's output, masked by the ReLU's derivative.
struct MaskedGradientLoader<'a> {
    upstream: FeatureLoader<'a>,
    output: FeatureLoader<'a>,
}

impl Loader for MaskedGradientLoader<'_> {
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, pixel: usize, channel: usize) -> S::f32s {
        let zero = simd.splat_f32s(0.0);
        let active = simd.less_than_f32s(zero, self.output.load(simd, pixel, channel));
        simd.select_f32s(active, self.upstream.load(simd, pixel, channel), zero)
    }
}

/// `relu(sums + bias)`
struct BiasRelu<'a> {
    bias: &'a [f32],
}

impl Epilogue for BiasRelu<'_> {
    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, dst: &mut S::f32s, channel: usize, sums: S::f32s) {
        let bias = S::as_simd_f32s(&self.bias[channel..channel + S::F32_LANES]).0[0];
        *dst = simd.max_f32s(simd.add_f32s(sums, bias), simd.splat_f32s(0.0));
    }
}

/// Stores the sums unchanged.
struct StoreSums;

impl Epilogue for StoreSums {
    #[inline(always)]
    fn store<S: Simd>(&self, _: S, dst: &mut S::f32s, _: usize, sums: S::f32s) {
        *dst = sums;
    }
}

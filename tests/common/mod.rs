// SPDX-License-Identifier: MPL-2.0

//! What several tests share: networks with seeded random weights.
#![allow(dead_code)]

use candle_core::{Device, Tensor};
use gstgatys::vgg::weights::Weights;

/// Channels of a network that is VGG-19 in all but its width.
pub const NARROW: [usize; 16] = [4, 4, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 16];

/// VGG-19's own channels up to conv5_1.
pub const FULL: [usize; 13] = [
    64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512,
];

/// The weights that `tests/golden/golden.py` makes too: uniform numbers by splitmix64 (Steele,
/// Lea and Flood 2014), scaled for ReLUs (He et al. 2015).
pub fn random_weights(channels: &[usize]) -> Weights {
    let mut state = 1u64;
    let mut signed = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        2.0 * ((z >> 40) as f64 / (1u64 << 24) as f64) - 1.0
    };
    let mut inputs = 3;
    let convs = channels.iter().map(|&outputs| {
        let bound = (6.0 / (9 * inputs) as f64).sqrt();
        let kernel = (0..outputs * inputs * 9)
            .map(|_| (signed() * bound) as f32)
            .collect();
        let kernel = Tensor::from_vec(kernel, (outputs, inputs, 3, 3), &Device::Cpu).unwrap();
        let bias: Vec<f32> = (0..outputs).map(|_| (signed() * 0.1) as f32).collect();
        inputs = outputs;
        (kernel, Tensor::new(bias, &Device::Cpu).unwrap())
    });
    Weights {
        convs: convs.collect(),
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Helpers shared by tests: here networks with seeded random weights and their files, and the rest in
//! modules.
#![allow(dead_code)]

#[cfg(feature = "plugin")]
pub mod clip;
pub mod files;
/// The frames of a clip, as benchmarks take them too.
#[cfg(feature = "plugin")]
#[path = "../../benches/common/clip.rs"]
pub mod film;
pub mod known_motion;
#[cfg(feature = "plugin")]
pub mod painter;
pub mod pictures;
pub mod shared;
#[cfg(feature = "plugin")]
pub mod video;

use candle_core::{Device, Tensor};
use gstgatys::vgg::Layer;
use gstgatys::vgg::weights::Weights;
use gstgatys::vgg::weights::preprocessing::Preprocessing;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The channels of a narrow VGG-19.
pub const NARROW: [usize; 16] = [4, 4, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 16];

/// The channels of VGG-19 up to conv5_1.
pub const FULL: [usize; 13] = [
    64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512,
];

/// The same weights as in `tests/golden/golden.py`: uniform random numbers from splitmix64 (Steele,
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
    Weights::new(convs.collect(), Preprocessing::TORCHVISION)
}

/// Writes a network with random weights as a safetensors file.
fn weights_file(dir: &Path, channels: &[usize]) -> PathBuf {
    let weights = random_weights(channels);
    let tensors = Layer::all().zip(weights.convs);
    let tensors = tensors.flat_map(|(layer, (kernel, bias))| {
        [
            (format!("{layer}.weight"), kernel),
            (format!("{layer}.bias"), bias),
        ]
    });
    let metadata = weights.preprocessing.to_metadata();
    let path = dir.join("weights.safetensors");
    safetensors::serialize_to_file(tensors, Some(metadata), &path).unwrap();
    path
}

/// Writes a style image; each `pattern` gives another.
pub fn style_image_file(dir: &Path, pattern: u32) -> PathBuf {
    let image = image::RgbImage::from_fn(48, 40, |x, y| {
        let wave =
            |period: u32, phase: u32| 255 * ((x * period + y * phase + pattern * 7) % 16 / 8);
        image::Rgb([
            wave(1 + pattern, 2) as u8,
            (x * 5) as u8,
            wave(3, 1 + pattern) as u8 / 2,
        ])
    });
    let path = dir.join(format!("style-{pattern}.png"));
    image.save(&path).unwrap();
    path
}

/// The files that an element needs; they are removed on drop.
pub struct Files {
    pub dir: TempDir,
    /// The narrow network, or one of other channels.
    pub weights: PathBuf,
    pub style: PathBuf,
}

impl Files {
    pub fn new() -> Self {
        Self::with_channels(&NARROW)
    }

    pub fn with_channels(channels: &[usize]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            weights: weights_file(dir.path(), channels),
            style: style_image_file(dir.path(), 0),
            dir,
        }
    }

    /// Another style image.
    pub fn style(&self, pattern: u32) -> PathBuf {
        style_image_file(self.dir.path(), pattern)
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The objective at its defaults, on pictures that are made of nothing but a formula.

use super::timing::text;
use candle_core::{Device, Tensor};
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::objective::{LossWeights, Losses, Objective};
use gstgatys::stylizer::resize::{pad, resize};
use gstgatys::stylizer::style::StyleImage;
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::f32::consts::TAU;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Width and height of the images that an evaluation is measured on.
pub const SIZES: [(usize, usize); 3] = [(256, 144), (320, 180), (640, 360)];

/// The size that is looked at more closely, and one of four times as many pixels.
pub const MIDDLE: (usize, usize) = (640, 360);
pub const LARGE: (usize, usize) = (1280, 720);

/// Octaves of a picture, and waves of each.
const OCTAVES: i32 = 7;
const WAVES: usize = 4;

/// How much of the style is in the image that is evaluated: as in the middle of an optimisation,
/// it is neither.
const BLEND: f64 = 0.3;

/// A name for a size.
pub fn name((w, h): (usize, usize)) -> String {
    format!("{w}x{h}")
}

/// The size with that name.
pub fn size(name: &str) -> Option<(usize, usize)> {
    let (w, h) = name.split_once('x')?;
    Some((w.parse().ok()?, h.parse().ok()?))
}

/// The precision after `--precision` in the program's arguments, or else the fastest.
pub fn precision() -> Precision {
    let all = [Precision::Auto, Precision::F32, Precision::Bf16];
    match text("--precision") {
        Some(name) => all
            .into_iter()
            .find(|precision| precision.to_string() == name)
            .unwrap_or_else(|| panic!("--precision takes auto, f32 or bf16")),
        None => Precision::Auto,
    }
}

/// The built-in network.
pub fn network(precision: Precision) -> Arc<Vgg> {
    Vgg::shared(&WeightsSource::BuiltIn, &Device::Cpu, precision).expect("weights")
}

/// A pool of this many threads, as a stylizer has; 0 is one for each core.
pub fn threads(count: usize) -> ThreadPool {
    let pool = ThreadPoolBuilder::new().num_threads(count);
    pool.build().expect("threads")
}

/// A picture `[h, w, 3]`, RGB 0..1, that looks the same at all sizes: in each channel a sum of
/// waves of which each octave has half the height of the one before, as in photographs, cut by an
/// edge. Each seed has its own waves.
pub fn picture((w, h): (usize, usize), seed: u64) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut waves = |channel: usize| {
        let octave = (0..OCTAVES).flat_map(|octave| [octave; WAVES]);
        let waves = octave.map(|octave| {
            let (angle, phase) = (rng.random_range(0.0..TAU), rng.random_range(0.0..TAU));
            let frequency = TAU * 2f32.powi(octave);
            (
                [frequency * angle.cos(), frequency * angle.sin(), phase],
                0.5f32.powi(octave) * [0.25, 0.2, 0.15][channel],
            )
        });
        waves.collect::<Vec<_>>()
    };
    let channels = [0, 1, 2].map(&mut waves);
    let value = |i: usize| {
        let (x, y) = (i / 3 % w, i / 3 / w);
        let (x, y) = (x as f32 / w as f32, y as f32 / w as f32);
        let sum = channels[i % 3].iter().map(|([fx, fy, phase], height)| {
            let wave = (fx * x + fy * y + phase).sin();
            height * wave
        });
        let sum: f32 = sum.sum();
        // Everything above one level is a flatter, brighter region.
        let value = if sum > 0.1 {
            0.7 + 0.4 * sum
        } else {
            0.4 + sum
        };
        value.clamp(0.0, 1.0)
    };
    let values = (0..h * w * 3).into_par_iter().map(value).collect();
    Tensor::from_vec(values, (h, w, 3), &Device::Cpu).expect("a picture")
}

/// A style image of a size.
pub fn made_style((w, h): (usize, usize)) -> StyleImage {
    let values = picture((w, h), 2)
        .flatten_all()
        .and_then(|values| values.to_vec1::<f32>());
    let bytes = values
        .expect("values")
        .iter()
        .map(|value| (255.0 * value) as u8)
        .collect();
    let image = image::RgbImage::from_raw(w as u32, h as u32, bytes).expect("an image");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("style.png");
    image.save(&path).expect("a file");
    StyleImage::load(&path).expect("a style image")
}

/// Images `[h, w, 3]`, RGB 0..1.
pub struct Pictures {
    pub content: Tensor,
    pub style: Tensor,
    /// The image that is evaluated.
    pub image: Tensor,
}

impl Pictures {
    pub fn made(size: (usize, usize)) -> Self {
        Self::new(picture(size, 1), picture(size, 2))
    }

    /// A content and a style, which may differ in size.
    pub fn new(content: Tensor, style: Tensor) -> Self {
        let blended = || {
            let (h, w, _) = content.dims3()?;
            (&content * (1.0 - BLEND))? + pad(&resize(&style, (h, w))?)? * BLEND
        };
        let image = blended().expect("a blend");
        Self {
            content,
            style,
            image,
        }
    }

    pub fn load(path: &Path) -> candle_core::Result<Self> {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let mut take = |name: &str| {
            let tensor = tensors.remove(name);
            tensor
                .ok_or_else(|| candle_core::Error::Msg(format!("{} has no {name}", path.display())))
        };
        Ok(Self {
            content: take("content")?,
            style: take("style")?,
            image: take("image")?,
        })
    }

    pub fn save(&self, path: &Path) -> candle_core::Result<()> {
        let tensors = [
            ("content", self.content.clone()),
            ("style", self.style.clone()),
            ("image", self.image.clone()),
        ];
        candle_core::safetensors::save(&tensors.into(), path)
    }
}

/// The objective, ready to be evaluated.
pub struct Problem {
    objective: Mutex<Objective>,
    loss_weights: LossWeights,
    pub image: Tensor,
    /// The gradient of the last evaluation.
    pub gradient: Tensor,
}

impl Problem {
    pub fn new(vgg: Arc<Vgg>, pictures: &Pictures) -> Self {
        let config = Config::default();
        let (h, w, _) = pictures.image.dims3().expect("an image");
        let mut objective = Objective::new(
            vgg,
            (h, w),
            &config.content_layers,
            &config.style_layers,
            config.pooling,
        )
        .expect("an objective");
        objective
            .set_content(&pictures.content, &|| false)
            .expect("content");
        objective
            .set_style(&pictures.style, &|| false)
            .expect("style");
        Self {
            objective: Mutex::new(objective),
            loss_weights: LossWeights::from(&config),
            image: pictures.image.copy().expect("a copy"),
            gradient: pictures.image.zeros_like().expect("a gradient"),
        }
    }

    /// The built-in network's at a size.
    pub fn made(size: (usize, usize), precision: Precision) -> Self {
        Self::new(network(precision), &Pictures::made(size))
    }

    /// One value and gradient.
    pub fn evaluate(&self) -> Losses {
        self.evaluate_at(&self.image, &self.gradient)
    }

    pub fn evaluate_at(&self, image: &Tensor, gradient: &Tensor) -> Losses {
        self.objective
            .lock()
            .expect("no evaluation fails")
            .evaluate(image, self.loss_weights, gradient, &|| false)
            .expect("losses")
    }
}

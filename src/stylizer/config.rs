// SPDX-License-Identifier: MPL-2.0

//! The settings of a stylizer, with their defaults and bounds.

use super::motion::scene::DEFAULT_SCENE_CUT;
use crate::vgg::{Layer, Pooling, UnknownLayer, Vgg};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What the terms of the objective are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LossScale {
    /// The content and the style loss of a layer by their values for features that are all zero, so
    /// the content loss by ½ Σ P². Both are then relative squared errors, comparable between sizes,
    /// layers and weights files.
    #[default]
    Relative,
    /// The content loss by the number of features.
    Mean,
    /// Nothing: the formulas of the paper, but for Gram matrices, which are divided by the number of their
    /// positions.
    Paper,
}

/// How the objective is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OptimizerKind {
    /// Limited-memory BFGS with a line search.
    #[default]
    Lbfgs,
    /// Adam, with steps of the learning rate.
    Adam,
}

/// The image that the optimisation of a frame starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Init {
    /// The result of the frame before, moved as [`MotionKind`] says. If there is none, the frame
    /// [with the style image's colours](super::color::matched), unless `beta` is 0: the style loss
    /// demands these before anything else.
    #[default]
    Previous,
    /// The frame itself.
    Content,
    /// Uniform noise, the same for every frame.
    Noise,
}

/// How the last result is moved to make the start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MotionKind {
    /// Its strokes stay where they are, and the change of the frame is added to them.
    None,
    /// Along the optical flow.
    #[default]
    Flow,
}

/// Where the colours of the result come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Color {
    /// From the optimised image, and so from the style image.
    #[default]
    Style,
    /// From the frame: the style is transferred in luminance only.
    Content,
}

/// The largest weight of a loss, or of a layer in it: much larger ones would overflow f32.
pub const MAX_WEIGHT: f64 = 1e12;

/// Layers and their weights, written as `conv4_2` or `conv1_1:0.5,conv2_1:0.5`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights(Vec<(Layer, f64)>);

impl LayerWeights {
    /// Each layer with its weight, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = (Layer, f64)> {
        self.0.iter().copied()
    }

    /// The deepest of the layers.
    pub fn deepest(&self) -> Layer {
        self.iter()
            .map(|(layer, _)| layer)
            .fold(Layer::FIRST, Layer::max)
    }
}

impl fmt::Display for LayerWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equal = 1.0 / self.0.len() as f64;
        for (index, (layer, weight)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{layer}")?;
            if weight != equal {
                write!(f, ":{weight}")?;
            }
        }
        Ok(())
    }
}

/// What is wrong with a list of layers.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    #[error("the list of layers is empty")]
    Empty,
    #[error(transparent)]
    Unknown(#[from] UnknownLayer),
    #[error("{0} is listed twice")]
    Twice(Layer),
    #[error(
        "‘{weight}’ is not a weight for {layer}: a number above 0 is needed, at most {MAX_WEIGHT:e}"
    )]
    Weight { layer: Layer, weight: String },
}

impl FromStr for LayerWeights {
    type Err = LayersError;

    /// A layer without a weight gets 1 over the number of layers.
    fn from_str(list: &str) -> Result<Self, LayersError> {
        if list.trim().is_empty() {
            return Err(LayersError::Empty);
        }
        let items: Vec<&str> = list.split(',').map(str::trim).collect();
        let mut layers: Vec<(Layer, f64)> = Vec::new();
        for item in &items {
            let (name, weight) = match item.split_once(':') {
                Some((name, weight)) => (name.trim(), Some(weight.trim())),
                None => (*item, None),
            };
            let layer: Layer = name.parse()?;
            if layers.iter().any(|&(other, _)| other == layer) {
                return Err(LayersError::Twice(layer));
            }
            let weight = match weight {
                None => 1.0 / items.len() as f64,
                Some(text) => match text.parse::<f64>() {
                    Ok(weight) if weight > 0.0 && weight <= MAX_WEIGHT => weight,
                    _ => {
                        let weight = text.into();
                        return Err(LayersError::Weight { layer, weight });
                    }
                },
            };
            layers.push((layer, weight));
        }
        Ok(Self(layers))
    }
}

/// All settings of a stylizer, each named like the element's property. [`validate`](Self::validate)
/// checks the ranges given here; infinity and NaN are valid nowhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The longest side of the style image over that of the optimised image, above 0: smaller makes
    /// finer strokes. A style image is enlarged to at most twice its own size.
    pub style_scale: f64,
    /// The weight of the content loss, 0 to [`MAX_WEIGHT`]. Not both this and `beta` are 0.
    pub alpha: f64,
    /// The weight of the style loss, 0 to [`MAX_WEIGHT`].
    pub beta: f64,
    /// The layers whose features make the content loss, and their weights in it.
    pub content_layers: LayerWeights,
    /// The layers whose Gram matrices make the style loss, and their weights in it.
    pub style_layers: LayerWeights,
    /// The largest number of evaluations of the objective for a frame, at least 1. The first one is
    /// of the starting point, so 1 paints nothing.
    pub iterations: u32,
    /// The same for the first frame and the first of a new scene, at least 1.
    pub initial_iterations: u32,
    /// The time after which a frame's optimisation stops, though not before its second evaluation.
    /// None is unlimited.
    pub time_budget: Option<Duration>,
    /// How the objective is minimised.
    pub optimizer: OptimizerKind,
    /// Adam's step size, above 0, where pixels range over 0..1. L-BFGS does not use it.
    pub learning_rate: f64,
    /// The number of steps that L-BFGS remembers, at least 1, each of which takes the memory of two
    /// images.
    pub lbfgs_history: u32,
    /// The image that a frame starts from.
    pub init: Init,
    /// The fraction of noise, 0 to 1, in the start of a frame that does not go on from a result.
    pub noise: f64,
    /// The seed of the noise.
    pub seed: u64,
    /// The weight of the [total variation](super::objective::Losses::variation), 0 to [`MAX_WEIGHT`].
    pub tv_weight: f64,
    /// The weight of the [temporal term](super::objective::Losses::temporal), 0 to [`MAX_WEIGHT`].
    /// Without effect unless `motion` is [`MotionKind::Flow`].
    pub temporal_weight: f64,
    /// How the previous result is moved with the picture.
    pub motion: MotionKind,
    /// The [change](super::motion::scene::cut_score) from which a frame begins a new scene, 0 to 1; 1
    /// turns the detection off.
    pub scene_cut: f64,
    /// Whether the painting of a still picture is repeated once it has converged.
    pub skip_still: bool,
    /// How the network halves its features between blocks.
    pub pooling: Pooling,
    /// The longest side of the optimised image in pixels, at least 1: larger frames are scaled down, and
    /// their results up again. None is the frame's own size, up to [`MAX_SIDE`](super::resize::MAX_SIDE).
    pub max_size: Option<u32>,
    /// Where the result's colours come from.
    pub color: Color,
    /// What a layer's loss is divided by.
    pub loss_scale: LossScale,
    /// Of so many frames, at least 1, one is painted, and its result repeated for the others.
    pub frame_interval: u32,
    /// The number of CPU threads that paint, at most 8 for each core. 0 is the value of the environment variable
    /// `RAYON_NUM_THREADS` or, if that is unset, one for each core that the process may use.
    pub n_threads: u32,
}

impl Default for Config {
    fn default() -> Self {
        let equal = |layers: &[Layer]| {
            LayerWeights(
                layers
                    .iter()
                    .map(|&layer| (layer, 1.0 / layers.len() as f64))
                    .collect(),
            )
        };
        Self {
            style_scale: 1.0,
            alpha: 1.0,
            beta: 100.0,
            content_layers: equal(&[Layer::new(4, 2)]),
            style_layers: equal(&[1, 2, 3, 4, 5].map(|block| Layer::new(block, 1))),
            iterations: 20,
            initial_iterations: 100,
            time_budget: None,
            optimizer: OptimizerKind::default(),
            learning_rate: 0.02,
            lbfgs_history: 10,
            init: Init::default(),
            noise: 0.0,
            seed: 0,
            tv_weight: 5.0,
            temporal_weight: 0.0,
            motion: MotionKind::default(),
            scene_cut: DEFAULT_SCENE_CUT,
            skip_still: true,
            pooling: Pooling::default(),
            max_size: Some(512),
            color: Color::default(),
            loss_scale: LossScale::default(),
            frame_interval: 1,
            n_threads: 0,
        }
    }
}

/// A value that a stylizer cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("alpha and beta are both 0: there is nothing to optimise")]
    NoLoss,
    #[error("{name}={value}: a number {expected} is needed")]
    Range {
        name: &'static str,
        value: f64,
        expected: String,
    },
    #[error("{property}: {layer} is not in the weights, which end at {deepest}")]
    TooDeep {
        property: &'static str,
        layer: Layer,
        deepest: Layer,
    },
}

/// The finite values that a setting may have.
#[derive(Clone, Copy)]
enum ValidRange {
    /// 0 to [`MAX_WEIGHT`], both included.
    Weight,
    Positive,
    /// 0 to 1, both included.
    Unit,
}

impl ValidRange {
    fn contains(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Weight => (0.0..=MAX_WEIGHT).contains(&value),
                Self::Positive => value > 0.0,
                Self::Unit => (0.0..=1.0).contains(&value),
            }
    }

    /// What the error message says of the number that is needed.
    fn description(self) -> String {
        match self {
            Self::Weight => format!("from 0 to {MAX_WEIGHT:e}"),
            Self::Positive => "above 0".into(),
            Self::Unit => "from 0 to 1".into(),
        }
    }
}

fn check(name: &'static str, value: impl Into<f64>, range: ValidRange) -> Result<(), ConfigError> {
    let value = value.into();
    match range.contains(value) {
        true => Ok(()),
        false => Err(ConfigError::Range {
            name,
            value,
            expected: range.description(),
        }),
    }
}

impl Config {
    /// These settings, but with `other`'s where the memory that a frame takes depends on them.
    pub fn with_memory_of(&self, other: &Self) -> Self {
        Self {
            style_scale: other.style_scale,
            content_layers: other.content_layers.clone(),
            style_layers: other.style_layers.clone(),
            optimizer: other.optimizer,
            lbfgs_history: other.lbfgs_history,
            max_size: other.max_size,
            ..self.clone()
        }
    }

    /// Checks that the values are in range, and the layers part of this network.
    pub fn validate(&self, vgg: &Vgg) -> Result<(), ConfigError> {
        use ValidRange::{Positive, Unit, Weight};
        check("alpha", self.alpha, Weight)?;
        check("beta", self.beta, Weight)?;
        check("tv-weight", self.tv_weight, Weight)?;
        check("temporal-weight", self.temporal_weight, Weight)?;
        check("style-scale", self.style_scale, Positive)?;
        check("learning-rate", self.learning_rate, Positive)?;
        check("scene-cut", self.scene_cut, Unit)?;
        check("noise", self.noise, Unit)?;
        check("iterations", self.iterations, Positive)?;
        check("initial-iterations", self.initial_iterations, Positive)?;
        check("lbfgs-history", self.lbfgs_history, Positive)?;
        check("frame-interval", self.frame_interval, Positive)?;
        if self.alpha == 0.0 && self.beta == 0.0 {
            return Err(ConfigError::NoLoss);
        }
        let deepest = vgg.deepest();
        for (property, layers) in [
            ("content-layers", &self.content_layers),
            ("style-layers", &self.style_layers),
        ] {
            if let Some((layer, _)) = layers.iter().find(|&(layer, _)| layer > deepest) {
                return Err(ConfigError::TooDeep {
                    property,
                    layer,
                    deepest,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

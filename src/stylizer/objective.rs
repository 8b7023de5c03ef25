// SPDX-License-Identifier: MPL-2.0

//! What is minimised: α · content + β · style + the total variation + the temporal term, with its
//! gradient.
//!
//! The formulas are those of Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional
//! Neural Networks" (CVPR 2016), except that Gram matrices are divided by their number of
//! positions, so that images of different sizes can be compared.

use super::config::{Config, LayerWeights, LossScale};
use crate::ops::elementwise::{content, copy, difference, dot, held, total_variation};
use crate::ops::gram::{gram, gram_backward};
use crate::vgg::{Cancel, Error, Features, Layer, Pooling, Vgg};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// A relative loss is not divided by less than this: a dead layer has no features to compare to.
const MIN_ENERGY: f64 = 1e-12;

/// The losses of an image. The content and the style loss are sums over their layers, after
/// `loss-scale` and before α and β.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    pub content: f64,
    pub style: f64,
    /// The mean squared difference between neighbours.
    pub variation: f64,
    /// The mean squared difference to the last result moved along, where the motion is known.
    pub temporal: f64,
    /// α · content + β · style + tv-weight · variation + temporal-weight · temporal.
    pub total: f64,
}

/// What the terms of the objective are multiplied by. May change from frame to frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    pub alpha: f64,
    pub beta: f64,
    pub tv_weight: f64,
    pub temporal_weight: f64,
    pub loss_scale: LossScale,
}

impl From<&Config> for Balance {
    fn from(config: &Config) -> Self {
        Self {
            alpha: config.alpha,
            beta: config.beta,
            tv_weight: config.tv_weight,
            temporal_weight: config.temporal_weight,
            loss_scale: config.loss_scale,
        }
    }
}

/// A content layer: ½ Σ (F − P)² (eq. 1).
struct ContentTerm {
    layer: Layer,
    weight: f64,
    /// P: the frame's features, `[h, w, N]`.
    target: Tensor,
    /// ½ Σ P²
    energy: f64,
}

impl ContentTerm {
    /// What the loss is divided by.
    fn scale(&self, scale: LossScale) -> f64 {
        match scale {
            LossScale::Paper => 1.0,
            LossScale::Mean => self.target.elem_count() as f64,
            LossScale::Relative => self.energy.max(MIN_ENERGY),
        }
    }
}

/// A style layer: 1 / (4 N²) Σ (G / M − A / Mₐ)² (eq. 4).
struct StyleTerm {
    layer: Layer,
    weight: f64,
    /// A / Mₐ: the style image's Gram matrix over its positions, `[N, N]`.
    target: Tensor,
    /// 1 / (4 N²) Σ (A / Mₐ)²
    energy: f64,
    /// G / M of the image, `[N, N]`.
    gram: Tensor,
    /// G / M − A / Mₐ, `[N, N]`.
    residual: Tensor,
}

impl StyleTerm {
    /// N²
    fn channels_squared(&self) -> f64 {
        self.target.elem_count() as f64
    }

    fn scale(&self, scale: LossScale) -> f64 {
        match scale {
            LossScale::Paper | LossScale::Mean => 1.0,
            LossScale::Relative => self.energy.max(MIN_ENERGY),
        }
    }
}

/// The objective for images of one size.
pub struct Objective {
    vgg: Arc<Vgg>,
    pooling: Pooling,
    content: Vec<ContentTerm>,
    style: Vec<StyleTerm>,
    temporal: Option<Tensor>,
    features: Features,
    gradients: Features,
}

impl Objective {
    /// An objective for images `[h, w, 3]`, neither side below [`crate::vgg::MIN_SIDE`]. Its
    /// targets are zero until [`set_content`](Self::set_content) and
    /// [`set_style`](Self::set_style) are called.
    pub fn new(
        vgg: Arc<Vgg>,
        (h, w): (usize, usize),
        content_layers: &LayerWeights,
        style_layers: &LayerWeights,
        pooling: Pooling,
    ) -> Result<Self, Error> {
        let deepest = content_layers.deepest().max(style_layers.deepest());
        let features = vgg.allocate(h, w, deepest)?;
        let gradients = vgg.allocate_gradients(h, w, deepest)?;
        let content = content_layers.iter().map(|(layer, weight)| {
            Ok(ContentTerm {
                layer,
                weight,
                target: features.layer(layer).zeros_like()?,
                energy: 0.0,
            })
        });
        let style = style_layers.iter().map(|(layer, weight)| {
            let n = features.layer(layer).dim(2)?;
            let matrix = || Tensor::zeros((n, n), DType::F32, vgg.device());
            Ok(StyleTerm {
                layer,
                weight,
                target: matrix()?,
                energy: 0.0,
                gram: matrix()?,
                residual: matrix()?,
            })
        });
        Ok(Self {
            content: content.collect::<Result<_, Error>>()?,
            style: style.collect::<Result<_, Error>>()?,
            temporal: None,
            vgg,
            pooling,
            features,
            gradients,
        })
    }

    /// Takes the content from a frame `[h, w, 3]`.
    pub fn set_content(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(), Error> {
        let Some(deepest) = self.content.iter().map(|term| term.layer).max() else {
            return Ok(());
        };
        self.vgg
            .forward(frame, self.pooling, deepest, &self.features, cancel)?;
        for term in &mut self.content {
            copy(&term.target, self.features.layer(term.layer))?;
            term.energy = 0.5 * dot(&term.target, &term.target)?;
        }
        Ok(())
    }

    /// Takes the style from an image `[h, w, 3]` of any size not below
    /// [`crate::vgg::MIN_SIDE`].
    pub fn set_style(&mut self, image: &Tensor, cancel: Cancel) -> Result<(), Error> {
        let Some(deepest) = self.style.iter().map(|term| term.layer).max() else {
            return Ok(());
        };
        let (h, w, _) = image.dims3()?;
        let features = self.vgg.allocate(h, w, deepest)?;
        self.vgg
            .forward(image, self.pooling, deepest, &features, cancel)?;
        for term in &mut self.style {
            gram(features.layer(term.layer), &term.target)?;
            term.energy = dot(&term.target, &term.target)? / (4.0 * term.channels_squared());
        }
        Ok(())
    }

    /// Takes the image that pixels are held to, and their weights c, `[h, w, 4]`: Σ c (x − x̂)² over
    /// the number of values (Ruder et al. 2016, eq. 7). None where there is no such image.
    pub fn set_temporal(&mut self, target: Option<Tensor>) {
        self.temporal = target;
    }

    /// The losses of `image` `[h, w, 3]`, and the gradient of the total into `gradient` of the
    /// same shape.
    pub fn evaluate(
        &self,
        image: &Tensor,
        balance: Balance,
        gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<Losses, Error> {
        let deepest = self.features.deepest();
        self.vgg
            .forward(image, self.pooling, deepest, &self.features, cancel)?;
        let mut losses = Losses::default();
        let seed = |layer, gradient: &Tensor, accumulate: bool| {
            let mut written = accumulate;
            for term in self.content.iter().filter(|term| term.layer == layer) {
                losses.content += self.content_term(term, balance, gradient, written)?;
                written = true;
            }
            for term in self.style.iter().filter(|term| term.layer == layer) {
                losses.style += self.style_term(term, balance, gradient, written)?;
                written = true;
            }
            Ok(written)
        };
        self.vgg.backward(
            self.pooling,
            &self.features,
            &self.gradients,
            seed,
            gradient,
            cancel,
        )?;

        let values = image.elem_count() as f64;
        let weight = balance.tv_weight / values;
        losses.variation = total_variation(image, weight, gradient)? / values;
        if let Some(target) = &self.temporal
            && balance.temporal_weight > 0.0
        {
            let weight = balance.temporal_weight / values;
            losses.temporal = held(image, target, weight, gradient)? / values;
        }
        losses.total = balance.alpha * losses.content
            + balance.beta * losses.style
            + balance.tv_weight * losses.variation
            + balance.temporal_weight * losses.temporal;
        Ok(losses)
    }

    /// A content layer's part of the content loss; its gradient F − P (eq. 2) is written or added
    /// to `gradient`.
    fn content_term(
        &self,
        term: &ContentTerm,
        balance: Balance,
        gradient: &Tensor,
        accumulate: bool,
    ) -> Result<f64, Error> {
        let weight = term.weight / term.scale(balance.loss_scale);
        let features = self.features.layer(term.layer);
        let squares = content(
            features,
            &term.target,
            balance.alpha * weight,
            gradient,
            accumulate,
        )?;
        Ok(weight * 0.5 * squares)
    }

    /// A style layer's part of the style loss; its gradient 1 / (N² M) F (G / M − A / Mₐ) (eq. 6)
    /// is written or added to `gradient`.
    fn style_term(
        &self,
        term: &StyleTerm,
        balance: Balance,
        gradient: &Tensor,
        accumulate: bool,
    ) -> Result<f64, Error> {
        let weight = term.weight / term.scale(balance.loss_scale);
        let features = self.features.layer(term.layer);
        gram(features, &term.gram)?;
        difference(&term.residual, &term.gram, &term.target)?;
        let (h, w, _) = features.dims3()?;
        let scale = balance.beta * weight / (term.channels_squared() * (h * w) as f64);
        gram_backward(features, &term.residual, scale, gradient, accumulate)?;
        Ok(weight * dot(&term.residual, &term.residual)? / (4.0 * term.channels_squared()))
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MPL-2.0

//! The formulas: each term's loss and gradient.
//!
//! Equation numbers are those of Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional
//! Neural Networks" (CVPR 2016). In a layer of N channels and M positions, F are the features of
//! the image as `[M, N]`, P those of the frame, G = Fᵀ F is the Gram matrix, and A that of the
//! style image, which has Mₐ positions. Unlike the paper's, Gram matrices are divided by their
//! number of positions, so that images of different sizes can be compared.

use super::exchange::{Exchange, TermSlot};
use crate::ops::elementwise::{content_loss, copy, dot, temporal_loss, total_variation};
use crate::ops::gram::{gram, gram_backward, gram_residual};
use crate::stylizer::config::{Config, LayerWeights, LossScale};
use crate::vgg::{Layer, LayerTensors};
use candle_core::{DType, Result, Tensor};

/// Lower bound of what a relative loss is divided by: a dead layer has no features to compare with.
const MIN_ENERGY: f64 = 1e-12;

/// The losses of an image. The content and the style loss are weighted sums over their layers,
/// after `loss-scale` and before α and β.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Σ v_l content_l over the content layers.
    pub content: f64,
    /// Σ w_l style_l over the style layers.
    pub style: f64,
    /// The squared differences between neighbours, across and down, by the number of values: the
    /// quadratic form that style transfer programs call total variation.
    pub variation: f64,
    /// The squared differences to the last result moved along, weighted by how reliable the motion is,
    /// by the number of all values.
    pub temporal: f64,
    /// α · content + β · style + tv-weight · variation + temporal-weight · temporal.
    pub total: f64,
}

/// The weights of the terms, and the normalisation that they apply to. They may change from frame
/// to frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// α, of the content loss.
    pub alpha: f64,
    /// β, of the style loss.
    pub beta: f64,
    /// Of [`Losses::variation`].
    pub tv_weight: f64,
    /// Of [`Losses::temporal`].
    pub temporal_weight: f64,
    /// What the content and the style loss are divided by.
    pub loss_scale: LossScale,
}

impl From<&Config> for LossWeights {
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

/// The content loss of a layer: ½ Σ (F − P)² (eq. 1).
pub struct ContentTerm {
    pub layer: Layer,
    layer_weight: f64,
    /// P, `[h, w, N]`.
    target: Tensor,
    /// ½ Σ P²: the loss where F = 0.
    energy: f64,
    slot: TermSlot,
}

impl ContentTerm {
    /// Takes the frame's features in this layer as the target.
    pub fn set_target(&mut self, features: &Tensor) -> Result<()> {
        copy(&self.target, features)?;
        self.energy = 0.5 * dot(&self.target, &self.target)?;
        Ok(())
    }

    /// The layer's weight over what its loss is divided by.
    fn normalised_weight(&self, loss_scale: LossScale) -> f64 {
        let divisor = match loss_scale {
            LossScale::Paper => 1.0,
            LossScale::Mean => self.target.elem_count() as f64,
            LossScale::Relative => self.energy.max(MIN_ENERGY),
        };
        self.layer_weight / divisor
    }

    /// The weighted loss, from the Σ (F − P)² in `sums`.
    fn loss(&self, sums: &[f64], weights: LossWeights) -> f64 {
        self.normalised_weight(weights.loss_scale) * 0.5 * sums[self.slot.index]
    }

    /// What F − P (eq. 2) is multiplied by in the gradient of the total.
    fn gradient_factor(&self, weights: LossWeights) -> f64 {
        weights.alpha * self.normalised_weight(weights.loss_scale)
    }

    /// Leaves Σ (F − P)² in the slot. The gradient with respect to `features` is written to
    /// `gradient`, or added to it.
    fn differentiate(&self, features: &Tensor, gradient: &Tensor, accumulate: bool) -> Result<()> {
        let TermSlot { factor, sum, .. } = &self.slot;
        content_loss(features, &self.target, factor, gradient, accumulate, sum)
    }
}

/// The style loss of a layer: 1 / (4 N²) Σ (G / M − A / Mₐ)² (eq. 4).
pub struct StyleTerm {
    pub layer: Layer,
    layer_weight: f64,
    /// M
    positions: f64,
    /// A / Mₐ, `[N, N]`.
    target: Tensor,
    /// 1 / (4 N²) Σ (A / Mₐ)²: the loss where F = 0.
    pub energy: f64,
    /// G / M − A / Mₐ, `[N, N]`.
    residual: Tensor,
    slot: TermSlot,
}

impl StyleTerm {
    /// Takes the Gram matrix of the style image's features in this layer as the target.
    pub fn set_target(&mut self, features: &Tensor) -> Result<()> {
        gram(features, &self.target)?;
        self.energy = dot(&self.target, &self.target)? / (4.0 * self.channels_squared());
        Ok(())
    }

    /// N²
    fn channels_squared(&self) -> f64 {
        self.target.elem_count() as f64
    }

    /// The layer's weight over what its loss is divided by.
    fn normalised_weight(&self, loss_scale: LossScale) -> f64 {
        let divisor = match loss_scale {
            LossScale::Paper | LossScale::Mean => 1.0,
            LossScale::Relative => self.energy.max(MIN_ENERGY),
        };
        self.layer_weight / divisor
    }

    /// The weighted loss, from the Σ (G / M − A / Mₐ)² in `sums`.
    fn loss(&self, sums: &[f64], weights: LossWeights) -> f64 {
        let weight = self.normalised_weight(weights.loss_scale);
        weight * sums[self.slot.index] / (4.0 * self.channels_squared())
    }

    /// What F (G / M − A / Mₐ) is multiplied by in the gradient of the total: β w / (N² M) (eq. 6).
    fn gradient_factor(&self, weights: LossWeights) -> f64 {
        let weight = self.normalised_weight(weights.loss_scale);
        weights.beta * weight / (self.channels_squared() * self.positions)
    }

    /// Leaves Σ (G / M − A / Mₐ)² in the slot. The gradient with respect to `features` is written
    /// to `gradient`, or added to it.
    fn differentiate(&self, features: &Tensor, gradient: &Tensor, accumulate: bool) -> Result<()> {
        let TermSlot { factor, sum, .. } = &self.slot;
        gram_residual(features, &self.target, &self.residual, sum)?;
        gram_backward(features, &self.residual, sum, factor, gradient, accumulate)
    }
}

/// Σ c (x − x̂)² over the number of values, with the target x̂ and the weight c of each pixel
/// (Ruder, Dosovitskiy and Brox 2016, eq. 7).
pub struct TemporalTerm {
    /// x̂ and c, `[h, w, 4]`.
    target: Option<Tensor>,
    /// Whether the target is the current frame's.
    has_target: bool,
    slot: TermSlot,
}

impl TemporalTerm {
    /// Takes a frame's target; None if it has none.
    pub fn set_target(&mut self, target: Option<Tensor>) -> Result<()> {
        self.has_target = target.is_some();
        match (&self.target, target) {
            // Recordings refer to the tensor that is there.
            (Some(recorded), Some(target)) if !target.device().is_cpu() => copy(recorded, &target)?,
            (_, Some(target)) => self.target = Some(target),
            (_, None) => (),
        }
        Ok(())
    }

    /// Whether the term is part of the total.
    pub fn is_active(&self, weights: LossWeights) -> bool {
        self.has_target && weights.temporal_weight > 0.0
    }
}

/// All terms of the objective.
pub struct Terms {
    pub content: Vec<ContentTerm>,
    pub style: Vec<StyleTerm>,
    /// Total variation: the squared differences between neighbours over the number of values.
    variation: TermSlot,
    pub temporal: TemporalTerm,
    /// The number of an image's values.
    values: f64,
}

impl Terms {
    /// How many slots the terms of these layers take.
    pub fn slots(content_layers: &LayerWeights, style_layers: &LayerWeights) -> usize {
        content_layers.iter().count() + style_layers.iter().count() + 2
    }

    /// Terms for images of a height and width, with `features` of that size. All targets are zero.
    pub fn new(
        features: &LayerTensors,
        (h, w): (usize, usize),
        content_layers: &LayerWeights,
        style_layers: &LayerWeights,
        exchange: &mut Exchange,
    ) -> Result<Self> {
        let content = content_layers.iter().map(|(layer, layer_weight)| {
            Ok(ContentTerm {
                layer,
                layer_weight,
                target: features.layer(layer).zeros_like()?,
                energy: 0.0,
                slot: exchange.allocate()?,
            })
        });
        let content = content.collect::<Result<_>>()?;
        let style = style_layers.iter().map(|(layer, layer_weight)| {
            let features = features.layer(layer);
            let (h, w, n) = features.dims3()?;
            let matrix = || Tensor::zeros((n, n), DType::F32, features.device());
            Ok(StyleTerm {
                layer,
                layer_weight,
                positions: (h * w) as f64,
                target: matrix()?,
                energy: 0.0,
                residual: matrix()?,
                slot: exchange.allocate()?,
            })
        });
        Ok(Self {
            content,
            style: style.collect::<Result<_>>()?,
            variation: exchange.allocate()?,
            temporal: TemporalTerm {
                target: None,
                has_target: false,
                slot: exchange.allocate()?,
            },
            values: (h * w * 3) as f64,
        })
    }

    /// The losses, from the terms' sums.
    pub fn losses(&self, sums: &[f64], weights: LossWeights) -> Losses {
        let mut losses = Losses::default();
        for term in &self.content {
            losses.content += term.loss(sums, weights);
        }
        for term in &self.style {
            losses.style += term.loss(sums, weights);
        }
        losses.variation = sums[self.variation.index] / self.values;
        if self.temporal.is_active(weights) {
            losses.temporal = sums[self.temporal.slot.index] / self.values;
        }
        losses.total = weights.alpha * losses.content
            + weights.beta * losses.style
            + weights.tv_weight * losses.variation
            + weights.temporal_weight * losses.temporal;
        losses
    }

    /// Sets each term's gradient factor. Those of the layers are multiplied by `scale`, a power of
    /// two.
    pub fn set_gradient_factors(&self, factors: &mut [f32], weights: LossWeights, scale: f64) {
        for term in &self.content {
            factors[term.slot.index] = (scale * term.gradient_factor(weights)) as f32;
        }
        for term in &self.style {
            factors[term.slot.index] = (scale * term.gradient_factor(weights)) as f32;
        }
        factors[self.variation.index] = (weights.tv_weight / self.values) as f32;
        factors[self.temporal.slot.index] = (weights.temporal_weight / self.values) as f32;
    }

    /// Leaves the sums of a layer's terms in their slots. Their gradients with respect to its
    /// `features` are written to `gradient`, or added to it. Returns whether the layer has terms.
    pub fn differentiate_layer(
        &self,
        layer: Layer,
        features: &Tensor,
        gradient: &Tensor,
        accumulate: bool,
    ) -> Result<bool> {
        let mut has_term = false;
        for term in self.content.iter().filter(|term| term.layer == layer) {
            term.differentiate(features, gradient, accumulate || has_term)?;
            has_term = true;
        }
        for term in self.style.iter().filter(|term| term.layer == layer) {
            term.differentiate(features, gradient, accumulate || has_term)?;
            has_term = true;
        }
        Ok(has_term)
    }

    /// Leaves the sums of the terms of the image itself in their slots, and adds their gradients to
    /// `gradient`.
    pub fn differentiate_pixels(
        &self,
        image: &Tensor,
        gradient: &Tensor,
        with_temporal: bool,
    ) -> Result<()> {
        let TermSlot { factor, sum, .. } = &self.variation;
        total_variation(image, factor, gradient, sum)?;
        if let Some(target) = self.temporal.target.as_ref().filter(|_| with_temporal) {
            let TermSlot { factor, sum, .. } = &self.temporal.slot;
            temporal_loss(image, target, factor, gradient, sum)?;
        }
        Ok(())
    }
}

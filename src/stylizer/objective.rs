// SPDX-License-Identifier: MPL-2.0

//! What is minimised: α · content + β · style + the total variation + the temporal term, with its
//! gradient.
//!
//! The formulas are those of Gatys, Ecker and Bethge, "Image Style Transfer Using Convolutional
//! Neural Networks" (CVPR 2016), except that Gram matrices are divided by their number of
//! positions, so that images of different sizes can be compared.

mod exchange;
mod gradient_scale;

use super::config::{Config, LayerWeights, LossScale};
use crate::ops::elementwise::{
    content, copy, difference, dot, held as hold, scale_by, squares, total_variation,
};
use crate::ops::gram::{gram, gram_backward};
use crate::ops::record::Recorded;
use crate::vgg::{Cancel, Error, Features, Layer, Pooling, Vgg};
use candle_core::{DType, Tensor, TensorId};
use exchange::{Exchange, Place};
use gradient_scale::GradientScale;
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
    place: Place,
}

impl ContentTerm {
    /// The layer's weight over what its loss is divided by.
    fn share(&self, balance: Balance) -> f64 {
        self.weight / self.scale(balance.loss_scale)
    }

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
    /// M
    positions: f64,
    /// A / Mₐ: the style image's Gram matrix over its positions, `[N, N]`.
    target: Tensor,
    /// 1 / (4 N²) Σ (A / Mₐ)²
    energy: f64,
    /// G / M of the image, `[N, N]`.
    gram: Tensor,
    /// G / M − A / Mₐ, `[N, N]`.
    residual: Tensor,
    place: Place,
}

impl StyleTerm {
    /// The layer's weight over what its loss is divided by.
    fn share(&self, balance: Balance) -> f64 {
        self.weight / self.scale(balance.loss_scale)
    }

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

/// Checks that activations are numbers of f16: what is not becomes 0 in the next ReLU, unnoticed.
fn check_range(features: &Features, deepest: Layer) -> Result<(), Error> {
    let layers = || Layer::all().take_while(|&layer| layer <= deepest);
    let device = features.layer(deepest).device();
    let sums = Tensor::zeros(layers().count(), DType::F64, device)?;
    for (index, layer) in layers().enumerate() {
        squares(features.layer(layer), &sums.narrow(0, index, 1)?)?;
    }
    let sums = sums.to_vec1::<f64>()?;
    match layers().zip(sums).find(|(_, sum)| !sum.is_finite()) {
        Some((layer, _)) => Err(Error::Overflow(layer)),
        None => Ok(()),
    }
}

/// The objective for images of one size.
pub struct Objective {
    vgg: Arc<Vgg>,
    pooling: Pooling,
    content: Vec<ContentTerm>,
    style: Vec<StyleTerm>,
    temporal: Option<Tensor>,
    has_temporal: bool,
    features: Features,
    gradients: Features,
    exchange: Exchange,
    variation_place: Place,
    temporal_place: Place,
    /// Of the squares of the network's gradient; its factor takes what that is scaled by off it.
    network_place: Place,
    gradient_scale: GradientScale,
    /// What the gradient was last of.
    balance: Option<Balance>,
    /// On a GPU the frame `[h, w, 3]`, where the recording of its pass finds it.
    frame: Option<Tensor>,
    content_pass: Recorded,
    /// By the image, the gradient, and whether the image is held to the temporal target; the last
    /// used first.
    recordings: Vec<((TensorId, TensorId, bool), Recorded)>,
}

/// An optimiser has two images, and one may be held to the temporal target in some frames.
const MAX_RECORDINGS: usize = 4;

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
        let device = vgg.device().clone();
        let terms = content_layers.iter().count() + style_layers.iter().count();
        let mut exchange = Exchange::new(terms + 3, &device)?;
        let content = content_layers.iter().map(|(layer, weight)| {
            Ok(ContentTerm {
                layer,
                weight,
                target: features.layer(layer).zeros_like()?,
                energy: 0.0,
                place: exchange.place()?,
            })
        });
        let content = content.collect::<Result<_, Error>>()?;
        let style = style_layers.iter().map(|(layer, weight)| {
            let (h, w, n) = features.layer(layer).dims3()?;
            let matrix = || Tensor::zeros((n, n), DType::F32, vgg.device());
            Ok(StyleTerm {
                layer,
                weight,
                positions: (h * w) as f64,
                target: matrix()?,
                energy: 0.0,
                gram: matrix()?,
                residual: matrix()?,
                place: exchange.place()?,
            })
        });
        Ok(Self {
            content,
            style: style.collect::<Result<_, Error>>()?,
            temporal: None,
            has_temporal: false,
            gradient_scale: GradientScale::new(vgg.precision()),
            balance: None,
            frame: match device.is_cpu() {
                true => None,
                false => Some(Tensor::zeros((h, w, 3), DType::F32, &device)?),
            },
            content_pass: Recorded::default(),
            recordings: Vec::new(),
            vgg,
            pooling,
            features,
            gradients,
            variation_place: exchange.place()?,
            temporal_place: exchange.place()?,
            network_place: exchange.place()?,
            exchange,
        })
    }

    /// What an objective for images `[h, w, 3]` takes up on the network's device, but for its
    /// matrices: features, gradients, and the content's targets.
    pub fn bytes(
        vgg: &Vgg,
        (h, w): (usize, usize),
        content_layers: &LayerWeights,
        style_layers: &LayerWeights,
    ) -> usize {
        let deepest = content_layers.deepest().max(style_layers.deepest());
        let targets = content_layers.iter();
        let targets = targets.map(|(layer, _)| vgg.layer_bytes(h, w, layer));
        vgg.feature_bytes(h, w, deepest)
            + vgg.gradient_bytes(h, w, deepest)
            + targets.sum::<usize>()
    }

    /// Takes the content from a frame `[h, w, 3]`.
    pub fn set_content(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(), Error> {
        let Some(deepest) = self.content.iter().map(|term| term.layer).max() else {
            return Ok(());
        };
        let frame = match &self.frame {
            Some(place) => {
                copy(place, frame)?;
                place
            }
            None => frame,
        };
        self.content_pass.run(self.vgg.device(), || {
            self.vgg
                .forward(frame, self.pooling, deepest, &self.features, cancel)
        })?;
        if self.gradient_scale.is_needed() {
            check_range(&self.features, deepest)?;
        }
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
        if self.gradient_scale.is_needed() {
            check_range(&features, deepest)?;
        }
        for term in &mut self.style {
            gram(features.layer(term.layer), &term.target)?;
            term.energy = dot(&term.target, &term.target)? / (4.0 * term.channels_squared());
        }
        Ok(())
    }

    /// Takes the image that pixels are held to, and their weights c, `[h, w, 4]`: Σ c (x − x̂)² over
    /// the number of values (Ruder et al. 2016, eq. 7). None where there is no such image.
    pub fn set_temporal(&mut self, target: Option<Tensor>) -> Result<(), Error> {
        self.has_temporal = target.is_some();
        match (&self.temporal, target) {
            // It stays where recordings find it.
            (Some(place), Some(target)) if !target.device().is_cpu() => copy(place, &target)?,
            (_, Some(target)) => self.temporal = Some(target),
            (_, None) => (),
        }
        Ok(())
    }

    /// The losses of `image` `[h, w, 3]`, and the gradient of the total into `gradient` of the
    /// same shape.
    pub fn evaluate(
        &mut self,
        image: &Tensor,
        balance: Balance,
        gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<Losses, Error> {
        if self.balance != Some(balance) {
            self.balance = Some(balance);
            self.gradient_scale.renew();
        }
        loop {
            let factors = self.factors(balance, image.elem_count());
            self.exchange.write(factors)?;
            self.compute(image, balance, gradient, cancel)?;
            let sums = self.exchange.sums.to_vec1::<f64>()?;
            let losses = self.losses(&sums, balance, image.elem_count());
            let mean_square = sums[self.network_place.index] / image.elem_count() as f64;
            if !losses.total.is_finite() || !self.gradient_scale.adapt(mean_square) {
                return Ok(losses);
            }
        }
    }

    /// What the gradients of the terms are multiplied by, in the order of their places: that of a
    /// content layer is F − P (eq. 2), that of a style layer 1 / (N² M) F (G / M − A / Mₐ) (eq. 6).
    fn factors(&self, balance: Balance, values: usize) -> Vec<f32> {
        let scale = self.gradient_scale.value();
        let mut factors = vec![0.0; self.exchange.places];
        for term in &self.content {
            let weight = term.share(balance);
            factors[term.place.index] = (scale * balance.alpha * weight) as f32;
        }
        for term in &self.style {
            let weight = term.share(balance);
            let factor = balance.beta * weight / (term.channels_squared() * term.positions);
            factors[term.place.index] = (scale * factor) as f32;
        }
        factors[self.variation_place.index] = (balance.tv_weight / values as f64) as f32;
        factors[self.temporal_place.index] = (balance.temporal_weight / values as f64) as f32;
        factors[self.network_place.index] = (1.0 / scale) as f32;
        factors
    }

    /// The losses that the sums of the terms are.
    fn losses(&self, sums: &[f64], balance: Balance, values: usize) -> Losses {
        let sum = |place: &Place| sums[place.index];
        let mut losses = Losses::default();
        for term in &self.content {
            let weight = term.share(balance);
            losses.content += weight * 0.5 * sum(&term.place);
        }
        for term in &self.style {
            let weight = term.share(balance);
            losses.style += weight * sum(&term.place) / (4.0 * term.channels_squared());
        }
        losses.variation = sum(&self.variation_place) / values as f64;
        if self.is_held(balance) {
            losses.temporal = sum(&self.temporal_place) / values as f64;
        }
        losses.total = balance.alpha * losses.content
            + balance.beta * losses.style
            + balance.tv_weight * losses.variation
            + balance.temporal_weight * losses.temporal;
        losses
    }

    /// Leaves the terms' sums in their places and the gradient of the total in `gradient`, by a
    /// recording where there is one for these tensors.
    fn compute(
        &mut self,
        image: &Tensor,
        balance: Balance,
        gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<(), Error> {
        // A recording does not ask in between.
        if !self.vgg.device().is_cpu() && cancel() {
            return Err(Error::Cancelled);
        }
        let held = self.is_held(balance);
        let key = (image.id(), gradient.id(), held);
        let known = self.recordings.iter().position(|(of, _)| *of == key);
        let (_, mut recorded) = match known {
            Some(index) => self.recordings.remove(index),
            None => (key, Recorded::default()),
        };
        recorded.run(self.vgg.device(), || {
            self.pass(image, held, gradient, cancel)
        })?;
        // The least recently used one is of tensors that are gone.
        self.recordings.truncate(MAX_RECORDINGS - 1);
        self.recordings.insert(0, (key, recorded));
        Ok(())
    }

    /// The network's way forth and back.
    fn pass(
        &self,
        image: &Tensor,
        held: bool,
        gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<(), Error> {
        let deepest = self.features.deepest();
        self.vgg
            .forward(image, self.pooling, deepest, &self.features, cancel)?;
        let seed = |layer, gradient: &Tensor, accumulate: bool| {
            let mut written = accumulate;
            for term in self.content.iter().filter(|term| term.layer == layer) {
                let (features, place) = (self.features.layer(layer), &term.place);
                content(
                    features,
                    &term.target,
                    &place.factor,
                    gradient,
                    written,
                    &place.sum,
                )?;
                written = true;
            }
            for term in self.style.iter().filter(|term| term.layer == layer) {
                self.style_term(term, gradient, written)?;
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
        if self.gradient_scale.is_needed() {
            scale_by(&self.network_place.factor, gradient)?;
            squares(gradient, &self.network_place.sum)?;
        }
        let place = &self.variation_place;
        total_variation(image, &place.factor, gradient, &place.sum)?;
        if let Some(target) = self.temporal.as_ref().filter(|_| held) {
            let place = &self.temporal_place;
            hold(image, target, &place.factor, gradient, &place.sum)?;
        }
        Ok(())
    }

    fn is_held(&self, balance: Balance) -> bool {
        self.has_temporal && balance.temporal_weight > 0.0
    }

    /// Leaves the sum of a style layer's part; the part's gradient is written or added to
    /// `gradient`.
    fn style_term(
        &self,
        term: &StyleTerm,
        gradient: &Tensor,
        accumulate: bool,
    ) -> Result<(), Error> {
        let (features, place) = (self.features.layer(term.layer), &term.place);
        gram(features, &term.gram)?;
        difference(&term.residual, &term.gram, &term.target)?;
        squares(&term.residual, &place.sum)?;
        gram_backward(
            features,
            &term.residual,
            &place.sum,
            &place.factor,
            gradient,
            accumulate,
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MPL-2.0

//! What is minimised, α · content + β · style + the total variation + the temporal term, and its
//! gradient: the passes through the network, and the scalars and recordings that a GPU needs for
//! them. The formulas are in `objective/terms.rs`.

mod exchange;
mod gradient_scale;
mod recordings;
mod terms;

use super::config::LayerWeights;
use crate::ops::elementwise::{copy, scale_by, squares};
use crate::ops::record::Recorded;
use crate::ops::transfer::to_host;
use crate::vgg::{Cancel, Error, Layer, LayerTensors, Pooling, Vgg};
use candle_core::{DType, Tensor};
use exchange::{Exchange, TermSlot};
use gradient_scale::GradientScale;
use recordings::{RecordingKey, Recordings};
use std::sync::Arc;
use terms::Terms;
pub use terms::{LossWeights, Losses};

/// The objective for images of one size.
pub struct Objective {
    vgg: Arc<Vgg>,
    pooling: Pooling,
    terms: Terms,
    features: LayerTensors,
    gradients: LayerTensors,
    exchange: Exchange,
    gradient_scale: GradientScale,
    /// For the network's gradient: the sum of its squares, and the factor that undoes the scale.
    unscale_slot: TermSlot,
    /// The weights of the last evaluation.
    weights: Option<LossWeights>,
    /// On a GPU a copy of the frame `[h, w, 3]`, at the address that `content_pass` was recorded
    /// with.
    frame: Option<Tensor>,
    /// Whether the features of a frame have been checked: weights that are finite, but damaged, show there.
    checked: bool,
    content_pass: Recorded,
    evaluations: Recordings,
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
        let features = vgg.allocate_features(h, w, deepest)?;
        let gradients = vgg.allocate_gradients(h, w, deepest)?;
        let device = vgg.device().clone();
        let slots = Terms::slots(content_layers, style_layers) + 1;
        let mut exchange = Exchange::new(slots, &device)?;
        Ok(Self {
            terms: Terms::new(
                &features,
                (h, w),
                content_layers,
                style_layers,
                &mut exchange,
            )?,
            gradient_scale: GradientScale::new(vgg.precision()),
            unscale_slot: exchange.allocate()?,
            exchange,
            weights: None,
            frame: match device.is_cpu() {
                true => None,
                false => Some(Tensor::zeros((h, w, 3), DType::F32, &device)?),
            },
            checked: false,
            content_pass: Recorded::default(),
            evaluations: Recordings::default(),
            vgg,
            pooling,
            features,
            gradients,
        })
    }

    /// The bytes that an objective for images `[h, w, 3]` takes on the network's device: features,
    /// gradients and content targets, but not the much smaller matrices.
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
    ///
    /// # Errors
    /// If `cancel` returns true, or features overflow the network's precision.
    pub fn set_content(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(), Error> {
        let Some(deepest) = self.terms.content.iter().map(|term| term.layer).max() else {
            return Ok(());
        };
        let frame = match &self.frame {
            Some(recorded) => {
                copy(recorded, frame)?;
                recorded
            }
            None => frame,
        };
        self.content_pass.run(self.vgg.device(), || {
            self.vgg
                .forward(frame, self.pooling, deepest, &self.features, cancel)
        })?;
        if !self.checked || self.vgg.precision().can_overflow() {
            check_overflow(&self.features, deepest, &self.vgg)?;
            self.checked = true;
        }
        for term in &mut self.terms.content {
            term.set_target(self.features.layer(term.layer))?;
        }
        Ok(())
    }

    /// Takes the style from an image `[h, w, 3]` of any size not below
    /// [`crate::vgg::MIN_SIDE`]. Fails as [`set_content`](Self::set_content) does.
    pub fn set_style(&mut self, image: &Tensor, cancel: Cancel) -> Result<(), Error> {
        let Some(deepest) = self.terms.style.iter().map(|term| term.layer).max() else {
            return Ok(());
        };
        let (h, w, _) = image.dims3()?;
        let features = self.vgg.allocate_features(h, w, deepest)?;
        self.vgg
            .forward(image, self.pooling, deepest, &features, cancel)?;
        check_overflow(&features, deepest, &self.vgg)?;
        for term in &mut self.terms.style {
            term.set_target(features.layer(term.layer))?;
            if !term.energy.is_finite() {
                return Err(Error::Overflow(term.layer, self.vgg.precision()));
            }
        }
        Ok(())
    }

    /// Takes the target of the temporal term, `[h, w, 4]`: the last result moved along, and the
    /// weight of each pixel. None switches the term off.
    pub fn set_temporal(&mut self, target: Option<Tensor>) -> Result<(), Error> {
        Ok(self.terms.temporal.set_target(target)?)
    }

    /// Forgets how large gradients have been, so that the next ones do not depend on earlier images.
    pub fn reset_gradient_scale(&mut self) {
        self.gradient_scale = GradientScale::new(self.vgg.precision());
    }

    /// The losses of `image` `[h, w, 3]`; the gradient of the total is written to `gradient`, of
    /// the same shape.
    pub fn evaluate(
        &mut self,
        image: &Tensor,
        weights: LossWeights,
        gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<Losses, Error> {
        if self.weights != Some(weights) {
            self.weights = Some(weights);
            self.gradient_scale.reset_ceiling();
        }
        let with_temporal = self.terms.temporal.is_active(weights);
        loop {
            self.write_factors(weights)?;
            self.differentiate(image, gradient, with_temporal, cancel)?;
            let sums = self.exchange.read_sums()?;
            let losses = self.terms.losses(&sums, weights);
            let mean_square = sums[self.unscale_slot.index] / image.elem_count() as f64;
            if !losses.total.is_finite() || !self.gradient_scale.adapt(mean_square) {
                return Ok(losses);
            }
        }
    }

    fn write_factors(&mut self, weights: LossWeights) -> Result<(), Error> {
        let scale = self.gradient_scale.value();
        let mut factors = vec![0.0; self.exchange.slots()];
        self.terms
            .set_gradient_factors(&mut factors, weights, scale);
        factors[self.unscale_slot.index] = (1.0 / scale) as f32;
        Ok(self.exchange.write_factors(factors)?)
    }

    /// Leaves the terms' sums in their slots and the gradient of the total in `gradient`, replaying
    /// the recording for these tensors if there is one.
    fn differentiate(
        &mut self,
        image: &Tensor,
        gradient: &Tensor,
        with_temporal: bool,
        cancel: Cancel,
    ) -> Result<(), Error> {
        // A replayed CUDA graph does not ask between layers.
        if !self.vgg.device().is_cpu() && cancel() {
            return Err(Error::Cancelled);
        }
        let key = RecordingKey {
            image: image.id(),
            gradient: gradient.id(),
            with_temporal,
        };
        let mut recorded = self.evaluations.take(key);
        recorded.run(self.vgg.device(), || {
            self.forward_backward(image, gradient, with_temporal, cancel)
        })?;
        self.evaluations.put(key, recorded);
        Ok(())
    }

    fn forward_backward(
        &self,
        image: &Tensor,
        gradient: &Tensor,
        with_temporal: bool,
        cancel: Cancel,
    ) -> Result<(), Error> {
        let deepest = self.features.deepest();
        self.vgg
            .forward(image, self.pooling, deepest, &self.features, cancel)?;
        let seed = |layer, gradient: &Tensor, accumulate| {
            let features = self.features.layer(layer);
            let terms = &self.terms;
            Ok(terms.differentiate_layer(layer, features, gradient, accumulate)?)
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
            scale_by(&self.unscale_slot.factor, gradient)?;
            squares(gradient, &self.unscale_slot.sum)?;
        }
        self.terms
            .differentiate_pixels(image, gradient, with_temporal)?;
        Ok(())
    }
}

/// Checks that activations are finite: the next ReLU turns NaN into 0 unnoticed.
fn check_overflow(features: &LayerTensors, deepest: Layer, vgg: &Vgg) -> Result<(), Error> {
    let layers = || Layer::all().take_while(|&layer| layer <= deepest);
    let device = features.layer(deepest).device();
    let sums = Tensor::zeros(layers().count(), DType::F64, device)?;
    for (index, layer) in layers().enumerate() {
        squares(features.layer(layer), &sums.narrow(0, index, 1)?)?;
    }
    let sums = to_host(&sums)?.to_vec1::<f64>()?;
    match layers().zip(sums).find(|(_, sum)| !sum.is_finite()) {
        Some((layer, _)) => Err(Error::Overflow(layer, vgg.precision())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

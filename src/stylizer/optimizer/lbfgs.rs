// SPDX-License-Identifier: MPL-2.0

use super::{Budget, Config, Evaluate, Optimizer, Outcome, Reason, Run};
use crate::ops::elementwise::{axpy, clear_outward, copy, difference, dot, scale, step};
use crate::vgg::Error;
use candle_core::Tensor;
use std::collections::VecDeque;

/// Root mean square of what the very first step does to the pixels, before anything is known of
/// the curvature.
const FIRST_STEP: f64 = 0.01;

/// A step is taken if the loss falls by this part of what the gradient promises (Armijo; Nocedal
/// and Wright, "Numerical Optimization", eq. 3.4).
const SUFFICIENT: f64 = 1e-4;

/// A pair teaches curvature if the cosine between its displacement and its change of gradient is
/// above this.
const MIN_COSINE: f64 = 1e-4;

/// Root mean square of a step below which the pixels do not feel it.
const MIN_STEP: f64 = 1e-6;

/// A step that is shortened this often leads nowhere.
const MAX_SHORTENINGS: u32 = 6;

/// A displacement s that was made, the change y of the gradient over it, and sᵀy > 0.
struct Pair {
    s: Tensor,
    y: Tensor,
    sy: f64,
}

/// L-BFGS (Nocedal and Wright, algorithms 7.4 and 7.5), each step held within 0..1 and the pairs
/// taken from the displacement that was really made.
///
/// The pairs go on from frame to frame: the next frame's objective curves much like this one's. A
/// step that raises the loss is shortened; if that does not help, what was learned is dropped.
pub struct Lbfgs {
    history: usize,
    pairs: VecDeque<Pair>,
    /// sᵀy / yᵀy of the last pair: the scale of the inverse Hessian, which outlives the pairs.
    curvature: Option<f64>,
    direction: Tensor,
    gradient: Tensor,
    /// The image after a step, and its gradient.
    trial: Tensor,
    trial_gradient: Tensor,
}

impl Lbfgs {
    /// An optimiser for images of the shape and device of `image`.
    pub fn new(image: &Tensor, config: &Config) -> candle_core::Result<Self> {
        Ok(Self {
            history: config.lbfgs_history as usize,
            pairs: VecDeque::new(),
            curvature: None,
            direction: image.zeros_like()?,
            gradient: image.zeros_like()?,
            trial: image.zeros_like()?,
            trial_gradient: image.zeros_like()?,
        })
    }

    /// The direction −H g, with the inverse Hessian H of the pairs (the two-loop recursion), as
    /// far as it does not lead out of 0..1.
    fn set_direction(&self, image: &Tensor) -> candle_core::Result<()> {
        let d = &self.direction;
        copy(d, &self.gradient)?;
        scale(-1.0, d)?;
        clear_outward(d, image)?;
        let mut coefficients = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let a = dot(&pair.s, d)? / pair.sy;
            axpy(-a, &pair.y, d)?;
            coefficients.push(a);
        }
        scale(self.first_scale()?, d)?;
        for (pair, a) in self.pairs.iter().zip(coefficients.iter().rev()) {
            let b = dot(&pair.y, d)? / pair.sy;
            axpy(a - b, &pair.s, d)?;
        }
        clear_outward(d, image)
    }

    fn first_scale(&self) -> candle_core::Result<f64> {
        match self.curvature {
            Some(curvature) => Ok(curvature),
            None => {
                let mean_square =
                    dot(&self.gradient, &self.gradient)? / self.gradient.elem_count() as f64;
                // Where the gradient is zero, so is the step.
                Ok(match mean_square > 0.0 {
                    true => FIRST_STEP / mean_square.sqrt(),
                    false => 0.0,
                })
            }
        }
    }

    /// Root mean square of the step from `image` to the trial.
    fn step_size(&self, image: &Tensor) -> candle_core::Result<f64> {
        // The trial's gradient is not known yet: its tensor is free.
        difference(&self.trial_gradient, &self.trial, image)?;
        let squares = dot(&self.trial_gradient, &self.trial_gradient)?;
        Ok((squares / image.elem_count() as f64).sqrt())
    }

    /// Drops the pairs, or, if there are none, what is left of them; false if there is nothing. A
    /// frame that made progress has seen that the curvature is of its objective.
    fn forget(&mut self, progressed: bool) -> bool {
        let known = !self.pairs.is_empty();
        self.pairs.clear();
        known || (!progressed && self.curvature.take().is_some())
    }

    /// Learns from the step from `image` to the trial.
    fn learn(&mut self, image: &Tensor) -> candle_core::Result<()> {
        // The oldest pair makes room, in its own tensors.
        let mut oldest = None;
        while self.pairs.len() >= self.history {
            oldest = self.pairs.pop_front();
        }
        let (s, y) = match oldest {
            Some(pair) => (pair.s, pair.y),
            None => (image.zeros_like()?, image.zeros_like()?),
        };
        difference(&s, &self.trial, image)?;
        difference(&y, &self.trial_gradient, &self.gradient)?;
        let (sy, ss, yy) = (dot(&s, &y)?, dot(&s, &s)?, dot(&y, &y)?);
        if sy > MIN_COSINE * (ss * yy).sqrt() {
            self.curvature = Some(sy / yy);
            self.pairs.push_back(Pair { s, y, sy });
        }
        Ok(())
    }
}

impl Optimizer for Lbfgs {
    fn configure(&mut self, config: &Config) {
        self.history = config.lbfgs_history as usize;
    }

    fn minimize(
        &mut self,
        image: &Tensor,
        budget: Budget,
        evaluate: Evaluate,
    ) -> Result<Outcome, Error> {
        let mut run = Run::new(budget, evaluate);
        let initial = run.evaluate(image, &self.gradient)?;
        let mut best = initial;
        let mut length = 1.0;
        let mut shortenings = 0;
        self.set_direction(image)?;
        loop {
            if let Some(reason) = run.ended() {
                // What led nowhere in this frame would lead nowhere in the next one too.
                if shortenings > 0 && best.total == initial.total {
                    self.pairs.clear();
                    self.curvature = None;
                }
                return Ok(run.outcome(reason, initial, best));
            }
            step(&self.trial, image, length, &self.direction)?;
            if self.step_size(image)? < MIN_STEP {
                // Either this is the minimum, or what was learned is of another objective.
                let progressed = best.total < initial.total;
                if progressed || !self.forget(progressed) {
                    return Ok(run.outcome(Reason::Converged, initial, best));
                }
                (length, shortenings) = (1.0, 0);
                self.set_direction(image)?;
                continue;
            }
            let losses = run.evaluate(&self.trial, &self.trial_gradient)?;
            // gᵀs for the displacement s that the bounds left of the step.
            let promised = dot(&self.gradient, &self.trial)? - dot(&self.gradient, image)?;
            if promised < 0.0 && losses.total <= best.total + SUFFICIENT * promised {
                self.learn(image)?;
                copy(image, &self.trial)?;
                copy(&self.gradient, &self.trial_gradient)?;
                best = losses;
                (length, shortenings) = (1.0, 0);
                self.set_direction(image)?;
                continue;
            }
            shortenings += 1;
            if promised >= 0.0 || shortenings > MAX_SHORTENINGS {
                if !self.forget(best.total < initial.total) {
                    return Ok(run.outcome(Reason::Converged, initial, best));
                }
                (length, shortenings) = (1.0, 0);
                self.set_direction(image)?;
            } else {
                // The minimum of the parabola through both losses and the slope; a loss that is
                // not a number is far too high.
                let rise = losses.total - best.total - promised;
                let minimum = -promised / (2.0 * rise);
                length *= if minimum > 0.1 { minimum.min(0.5) } else { 0.1 };
            }
        }
    }
}

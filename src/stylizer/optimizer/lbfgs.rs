// SPDX-License-Identifier: MPL-2.0

use super::pairs::{Moved, Pairs};
use super::{Budget, Config, Evaluate, Optimizer, Outcome, Reason, Run};
use crate::ops::elementwise::{copy, step};
use crate::ops::record::Recorded;
use crate::vgg::Error;
use candle_core::{Tensor, TensorId};

/// A step is taken if the loss falls by this part of what the gradient promises (Armijo; Nocedal
/// and Wright, "Numerical Optimization", eq. 3.4).
const SUFFICIENT: f64 = 1e-4;

/// Root mean square of a step below which the pixels do not feel it.
const MIN_STEP: f64 = 1e-6;

/// A step that is shortened this often leads nowhere.
const MAX_SHORTENINGS: u32 = 6;

/// L-BFGS (Nocedal and Wright, algorithms 7.4 and 7.5), each step held within 0..1 and the pairs
/// taken from the displacement that was really made.
///
/// The pairs go on from frame to frame: the next frame's objective curves much like this one's. They
/// stay at their pixels where the picture moves: moving them along made the losses of a panning and
/// a turning clip 0.4 and 1.6 % lower, and their warping errors 7 % lower and 2 % higher.
///
/// A step that raises the loss is shortened; if that does not help, what was learned is dropped.
pub struct Lbfgs {
    history: usize,
    pairs: Pairs,
    direction: Tensor,
    gradient: Tensor,
    /// The image after a step, and its gradient.
    trial: Tensor,
    trial_gradient: Tensor,
    moved: Moved,
    acceptance: Recorded,
    /// The image that this was recorded for.
    image: TensorId,
}

impl Lbfgs {
    /// An optimiser for images of the shape and device of `image`.
    pub fn new(image: &Tensor, config: &Config) -> candle_core::Result<Self> {
        let history = config.lbfgs_history as usize;
        Ok(Self {
            history,
            pairs: Pairs::new(history, image)?,
            direction: image.zeros_like()?,
            gradient: image.zeros_like()?,
            trial: image.zeros_like()?,
            trial_gradient: image.zeros_like()?,
            moved: Moved::new(image)?,
            acceptance: Recorded::default(),
            image: image.id(),
        })
    }

    /// Goes from `image` to the trial, and says where to go from there.
    fn accept(&mut self, image: &Tensor) -> candle_core::Result<()> {
        let Self {
            pairs,
            direction,
            gradient,
            trial,
            trial_gradient,
            ..
        } = self;
        self.acceptance.run(image.device(), || {
            pairs.learn((image, gradient), (trial, trial_gradient))?;
            copy(image, trial)?;
            copy(gradient, trial_gradient)?;
            pairs.direction((image, gradient), direction)
        })
    }

    fn set_direction(&self, image: &Tensor) -> candle_core::Result<()> {
        let point = (image, &self.gradient);
        self.pairs.direction(point, &self.direction)
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
        if self.pairs.history() != self.history || self.image != image.id() {
            self.pairs.set_history(self.history, image)?;
            (self.acceptance, self.image) = (Recorded::default(), image.id());
        }
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
                    self.pairs.clear()?;
                }
                return Ok(run.outcome(reason, initial, best));
            }
            step(&self.trial, image, length, &self.direction)?;
            self.moved.set((image, &self.gradient), &self.trial)?;
            let losses = run.evaluate(&self.trial, &self.trial_gradient)?;
            let (size, promised) = self.moved.read()?;
            if size < MIN_STEP {
                // Either this is the minimum, or what was learned is of another objective.
                if best.total < initial.total || !self.pairs.forget(true)? {
                    return Ok(run.outcome(Reason::Converged, initial, best));
                }
                (length, shortenings) = (1.0, 0);
                self.set_direction(image)?;
                continue;
            }
            if promised < 0.0 && losses.total <= best.total + SUFFICIENT * promised {
                self.accept(image)?;
                best = losses;
                (length, shortenings) = (1.0, 0);
                continue;
            }
            shortenings += 1;
            if promised >= 0.0 || shortenings > MAX_SHORTENINGS {
                // A frame that made progress has seen that the curvature is of its objective.
                let progressed = best.total < initial.total;
                if !self.pairs.forget(!progressed)? {
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

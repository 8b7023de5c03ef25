// SPDX-License-Identifier: MPL-2.0

//! Adam with projection onto the range of an image.

use super::{Budget, Config, Evaluate, FrameRun, Optimizer, Outcome, Reason};
use crate::ops::elementwise::{adam_step, clear, copy, decay};
use crate::vgg::Error;
use candle_core::Tensor;

const BETA_1: f64 = 0.9;
/// Not the paper's 0.999, which averages over 1000 gradients where a painting takes 100: on a
/// photograph the loss was 4 % higher with it after 100 iterations, and 4 to 5 % in the next frames.
const BETA_2: f64 = 0.99;

/// The moments are dropped where a frame begins below this part of the loss that the last one ended with:
/// the objective has another scale, as after a change of alpha. √v would take hundreds of steps to follow,
/// and the steps be too short meanwhile. Otherwise a frame begins about as high or higher.
const MIN_LOSS_RATIO: f64 = 0.5;

/// Adam (Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1), each
/// step projected onto 0..1. Its moments and their bias corrections are carried over from frame to
/// frame, unless the loss falls to less than half between them.
pub struct Adam {
    learning_rate: f64,
    steps: i32,
    /// The first moment of the gradient.
    m: Tensor,
    /// The second moment.
    v: Tensor,
    gradient: Tensor,
    best: Tensor,
    /// The loss of the last frame's best image, unless it was infinite; 0 if there is none.
    last_loss: f64,
}

impl Adam {
    /// An optimiser for images of the shape and device of `image`.
    pub fn new(image: &Tensor, config: &Config) -> candle_core::Result<Self> {
        Ok(Self {
            learning_rate: config.learning_rate,
            steps: 0,
            m: image.zeros_like()?,
            v: image.zeros_like()?,
            gradient: image.zeros_like()?,
            best: image.zeros_like()?,
            last_loss: 0.0,
        })
    }

    fn step(&mut self, image: &Tensor) -> candle_core::Result<()> {
        self.steps = self.steps.saturating_add(1);
        decay(&self.m, BETA_1, &self.gradient, false)?;
        decay(&self.v, BETA_2, &self.gradient, true)?;
        let rate = self.learning_rate / (1.0 - BETA_1.powi(self.steps));
        adam_step(image, rate, &self.m, 1.0 - BETA_2.powi(self.steps), &self.v)
    }
}

impl Optimizer for Adam {
    fn configure(&mut self, config: &Config) {
        self.learning_rate = config.learning_rate;
    }

    fn reset(&mut self) -> candle_core::Result<()> {
        (self.steps, self.last_loss) = (0, 0.0);
        clear(&self.m)?;
        clear(&self.v)
    }

    fn minimize(
        &mut self,
        image: &Tensor,
        budget: Budget,
        evaluate: Evaluate,
    ) -> Result<Outcome, Error> {
        let mut run = FrameRun::new(budget, evaluate);
        let initial = run.evaluate(image, &self.gradient)?;
        if initial.total < MIN_LOSS_RATIO * self.last_loss {
            self.reset()?;
        }
        let mut best = initial;
        let mut losses = initial;
        copy(&self.best, image)?;
        loop {
            // The gradient of a loss that is not finite would ruin the moments for good.
            let diverged = (!losses.total.is_finite()).then_some(Reason::Converged);
            if let Some(reason) = run.stop_reason().or(diverged) {
                copy(image, &self.best)?;
                if best.total.is_finite() {
                    self.last_loss = best.total;
                }
                return Ok(run.outcome(reason, initial, best));
            }
            self.step(image)?;
            losses = run.evaluate(image, &self.gradient)?;
            if losses.total < best.total {
                best = losses;
                copy(&self.best, image)?;
            }
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The optimisers. Both carry over to the next frame what they have learnt: Adam all of it, unless the
//! loss has fallen to another scale, L-BFGS the length of a first step and, while the objective stays the
//! same, all of it.

mod adam;
mod inverse_hessian;
mod lbfgs;
mod trial_step;

use super::config::{Config, OptimizerKind};
use super::objective::Losses;
use crate::vgg::Error;
use candle_core::Tensor;
use std::time::Instant;

/// Returns the losses of the first tensor, an image, and writes the gradient of their total to the
/// second.
pub type Evaluate<'a> = &'a mut dyn FnMut(&Tensor, &Tensor) -> Result<Losses, Error>;

/// A frame has converged when its lowest loss has fallen by at most the fraction
/// `CONVERGENCE_TOLERANCE` over the last `CONVERGENCE_ITERATIONS` iterations.
const CONVERGENCE_TOLERANCE: f64 = 1e-4;
const CONVERGENCE_ITERATIONS: usize = 30;

/// The iterations that a frame gets even after its deadline: the evaluation of its start and one
/// step.
const MIN_ITERATIONS: u32 = 2;

/// What the optimisation of a frame may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The largest number of evaluations of the objective.
    pub iterations: u32,
    /// When to stop even before that, though not before the second evaluation.
    pub deadline: Option<Instant>,
}

/// Why the optimisation of a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It took all [`Budget::iterations`].
    Iterations,
    /// [`Budget::deadline`] passed.
    Deadline,
    /// The loss hardly falls any more, or no step lowers it. A loss that is not finite also ends as
    /// this, at the best image so far: with Adam at once, with L-BFGS if shorter steps do not help.
    /// The stylizer reports it, too, once the painting of a still picture is finished.
    Converged,
}

/// The outcome of a frame's optimisation.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The number of evaluations of the objective.
    pub iterations: u32,
    /// Why it ended.
    pub reason: Reason,
    /// The losses of the image that the frame started from.
    pub initial: Losses,
    /// The losses of the image that it ended with, which is the best one evaluated.
    pub best: Losses,
}

/// Minimises an objective over images whose values lie within 0..1.
pub trait Optimizer: Send {
    /// Applies settings for which the optimiser stays the [`same`]; its state is kept.
    fn configure(&mut self, _config: &Config) {}

    /// Forgets all that was learnt, as is due before an image that does not go on from the last one.
    fn reset(&mut self) -> candle_core::Result<()>;

    /// Announces that the next [`minimize`](Self::minimize) is of another objective, that of another frame.
    fn next_objective(&mut self) -> candle_core::Result<()> {
        Ok(())
    }

    /// Starts from `image` and leaves the best image found in it.
    fn minimize(
        &mut self,
        image: &Tensor,
        budget: Budget,
        evaluate: Evaluate,
    ) -> Result<Outcome, Error>;
}

/// The optimiser that `config` names, for images of the shape and device of `image`.
pub fn optimizer(image: &Tensor, config: &Config) -> candle_core::Result<Box<dyn Optimizer>> {
    Ok(match config.optimizer {
        OptimizerKind::Lbfgs => Box::new(lbfgs::Lbfgs::new(image, config)?),
        OptimizerKind::Adam => Box::new(adam::Adam::new(image, config)?),
    })
}

/// Whether two configurations name the same optimiser, so that one made for the first serves the second.
pub fn same(a: &Config, b: &Config) -> bool {
    a.optimizer == b.optimizer
        && (a.optimizer != OptimizerKind::Lbfgs || a.lbfgs_history == b.lbfgs_history)
}

/// How many tensors of an image's size the optimiser that `config` names allocates.
pub fn image_count(config: &Config) -> usize {
    match config.optimizer {
        OptimizerKind::Lbfgs => 2 * config.lbfgs_history as usize + 7,
        OptimizerKind::Adam => 4,
    }
}

/// The optimisation of one frame: counts its iterations and decides when it stops.
struct FrameRun<'a> {
    evaluate: Evaluate<'a>,
    budget: Budget,
    /// The lowest total loss up to each iteration.
    lowest: Vec<f64>,
}

impl<'a> FrameRun<'a> {
    fn new(budget: Budget, evaluate: Evaluate<'a>) -> Self {
        Self {
            evaluate,
            budget,
            lowest: Vec::with_capacity(budget.iterations.min(10_000) as usize),
        }
    }

    fn evaluate(&mut self, image: &Tensor, gradient: &Tensor) -> Result<Losses, Error> {
        let losses = (self.evaluate)(image, gradient)?;
        let lowest = self
            .lowest
            .last()
            .map_or(losses.total, |lowest| lowest.min(losses.total));
        self.lowest.push(lowest);
        Ok(losses)
    }

    fn iterations(&self) -> u32 {
        self.lowest.len() as u32
    }

    /// Why the optimisation is to stop; None while it is to go on.
    fn stop_reason(&self) -> Option<Reason> {
        let past_deadline = self
            .budget
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        if self.iterations() >= self.budget.iterations {
            Some(Reason::Iterations)
        } else if past_deadline && self.iterations() >= MIN_ITERATIONS {
            Some(Reason::Deadline)
        } else if self.has_converged() {
            Some(Reason::Converged)
        } else {
            None
        }
    }

    fn has_converged(&self) -> bool {
        match self.lowest.as_slice() {
            [.., last] if self.lowest.len() > CONVERGENCE_ITERATIONS => {
                let before = self.lowest[self.lowest.len() - 1 - CONVERGENCE_ITERATIONS];
                before - last <= CONVERGENCE_TOLERANCE * before.abs()
            }
            _ => false,
        }
    }

    fn outcome(&self, reason: Reason, initial: Losses, best: Losses) -> Outcome {
        Outcome {
            iterations: self.iterations(),
            reason,
            initial,
            best,
        }
    }
}

#[cfg(test)]
mod tests;

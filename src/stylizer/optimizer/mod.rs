// SPDX-License-Identifier: MPL-2.0

//! The optimisers. Both keep what they learned from one frame to the next.

mod adam;
mod lbfgs;
mod pairs;

use super::config::{Config, OptimizerKind};
use super::objective::Losses;
use crate::vgg::Error;
use candle_core::Tensor;
use std::time::Instant;

/// The losses of an image, with the gradient of their total written to the second tensor.
pub type Evaluate<'a> = &'a mut dyn FnMut(&Tensor, &Tensor) -> Result<Losses, Error>;

/// Progress has stopped when the loss fell by less than this part of itself over the last
/// [`WINDOW`] iterations.
const CONVERGED: f64 = 1e-4;
const WINDOW: usize = 30;

/// A frame gets so many iterations at least, whatever its deadline: one at its start and one after a
/// step, or it would never leave its start.
const MIN_ITERATIONS: u32 = 2;

/// When a frame is done.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Evaluations of the objective.
    pub iterations: u32,
    pub deadline: Option<Instant>,
}

/// Why the optimisation of a frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Iterations,
    Budget,
    Converged,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub iterations: u32,
    pub reason: Reason,
    /// The losses of the image that the frame started from.
    pub initial: Losses,
    /// The losses of the image that it ended with, the best that was seen.
    pub best: Losses,
}

/// Minimises an objective over images whose values lie within 0..1.
pub trait Optimizer: Send {
    /// Takes the settings that concern it; what it learned stays.
    fn configure(&mut self, config: &Config);

    /// Takes `image` from where it is to the best one found.
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

/// How many images the optimiser that `config` names works in.
pub fn images(config: &Config) -> usize {
    match config.optimizer {
        OptimizerKind::Lbfgs => 2 * config.lbfgs_history as usize + 7,
        OptimizerKind::Adam => 4,
    }
}

/// Counts a frame's iterations and says when they end.
struct Run<'a> {
    evaluate: Evaluate<'a>,
    budget: Budget,
    /// The lowest total loss after each iteration.
    lowest: Vec<f64>,
}

impl<'a> Run<'a> {
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

    /// Whether the frame is done, and why.
    fn ended(&self) -> Option<Reason> {
        let late = self
            .budget
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        if self.iterations() >= self.budget.iterations {
            Some(Reason::Iterations)
        } else if late && self.iterations() >= MIN_ITERATIONS {
            Some(Reason::Budget)
        } else if self.stagnates() {
            Some(Reason::Converged)
        } else {
            None
        }
    }

    fn stagnates(&self) -> bool {
        match self.lowest.as_slice() {
            [.., last] if self.lowest.len() > WINDOW => {
                let before = self.lowest[self.lowest.len() - 1 - WINDOW];
                before - last <= CONVERGED * before.abs()
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

// SPDX-License-Identifier: MPL-2.0

//! L-BFGS: the line search, and what happens when it fails.

use super::inverse_hessian::InverseHessian;
use super::trial_step::TrialStep;
use super::{Budget, Config, Evaluate, FrameRun, Losses, Optimizer, Outcome, Reason};
use crate::ops::record::Recorded;
use crate::vgg::Error;
use candle_core::{Tensor, TensorId};

/// Armijo condition: a step is accepted if the loss falls by at least this part of what the
/// directional derivative predicts (Nocedal and Wright, "Numerical Optimization", eq. 3.4).
const ARMIJO: f64 = 1e-4;

/// A step of a smaller root mean square makes no visible difference.
const MIN_STEP: f64 = 1e-6;

/// After so many backtracks a direction is given up.
const MAX_BACKTRACKS: u32 = 6;

/// L-BFGS (Nocedal and Wright, algorithms 7.4 and 7.5) with a backtracking line search. Each step
/// is projected onto 0..1, and the pairs are made of the projected displacement.
///
/// Once the objective is another, that of the next frame, only the γ of the first pair is kept: a frame
/// starts with errors that are new to it, in directions of high curvature, where the last steps of the
/// frame before would be too long. Its pairs would be those of a picture that has moved since: they make
/// paintings flicker.
///
/// Where backtracking finds no lower loss, first the pairs are dropped, then γ. Where a frame's iterations
/// end before any step was found, backtracking goes on in the next frame.
pub struct Lbfgs {
    inverse_hessian: InverseHessian,
    /// The step length that the next frame tries first; 1 unless all steps of this one were too long.
    opening_length: f64,
    direction: Tensor,
    gradient: Tensor,
    /// The image after a step, and its gradient.
    trial: Tensor,
    trial_gradient: Tensor,
    trial_step: TrialStep,
    acceptance: Recorded,
    /// The image that `acceptance` was recorded for.
    recorded_image: TensorId,
}

impl Lbfgs {
    /// An optimiser for images of the shape and device of `image`.
    pub fn new(image: &Tensor, config: &Config) -> candle_core::Result<Self> {
        let history = config.lbfgs_history as usize;
        Ok(Self {
            inverse_hessian: InverseHessian::new(history, image)?,
            opening_length: 1.0,
            direction: image.zeros_like()?,
            gradient: image.zeros_like()?,
            trial: image.zeros_like()?,
            trial_gradient: image.zeros_like()?,
            trial_step: TrialStep::new(image)?,
            acceptance: Recorded::default(),
            recorded_image: image.id(),
        })
    }

    /// Replaces `image` by the trial, updates the inverse Hessian, and computes the next direction.
    fn accept_trial(&mut self, image: &Tensor) -> candle_core::Result<()> {
        let Self {
            inverse_hessian,
            direction,
            gradient,
            trial,
            trial_gradient,
            ..
        } = self;
        self.acceptance.run(image.device(), || {
            inverse_hessian.advance((image, gradient), (trial, trial_gradient), direction)
        })
    }

    fn set_direction(&self, image: &Tensor) -> candle_core::Result<()> {
        let point = (image, &self.gradient);
        self.inverse_hessian.direction(point, &self.direction)
    }

    /// Evaluates the image after a step of this length along the direction.
    fn try_step(
        &mut self,
        image: &Tensor,
        step_length: f64,
        run: &mut FrameRun,
    ) -> Result<Trial, Error> {
        let point = (image, &self.gradient);
        self.trial_step
            .take(point, (step_length, &self.direction), &self.trial)?;
        let losses = run.evaluate(&self.trial, &self.trial_gradient)?;
        let (rms, derivative) = self.trial_step.read()?;
        Ok(Trial {
            losses,
            rms,
            derivative,
        })
    }

    /// Drops the pairs or, if there are none, γ, and computes the direction without them. False if
    /// there is nothing to drop.
    ///
    /// If the frame has `progressed`, γ suits its objective and is kept.
    fn restart(&mut self, image: &Tensor, progressed: bool) -> candle_core::Result<bool> {
        let known = self.inverse_hessian.contents()?;
        if known.pairs {
            self.inverse_hessian.drop_pairs()?;
        } else if known.gamma && !progressed {
            self.inverse_hessian.drop_gamma()?;
        } else {
            return Ok(false);
        }
        self.set_direction(image)?;
        Ok(true)
    }
}

impl Optimizer for Lbfgs {
    fn reset(&mut self) -> candle_core::Result<()> {
        self.opening_length = 1.0;
        self.inverse_hessian.drop_pairs()?;
        self.inverse_hessian.drop_gamma()
    }

    fn next_objective(&mut self) -> candle_core::Result<()> {
        self.inverse_hessian.next_objective()
    }

    fn minimize(
        &mut self,
        image: &Tensor,
        budget: Budget,
        evaluate: Evaluate,
    ) -> Result<Outcome, Error> {
        if self.recorded_image != image.id() {
            (self.acceptance, self.recorded_image) = (Recorded::default(), image.id());
        }
        let mut run = FrameRun::new(budget, evaluate);
        let initial = run.evaluate(image, &self.gradient)?;
        let mut best = initial;
        self.set_direction(image)?;
        let mut search = LineSearch::from(std::mem::replace(&mut self.opening_length, 1.0));
        let reason = loop {
            let progressed = best.total < initial.total;
            if let Some(reason) = run.stop_reason() {
                // A step that was too long throughout this frame would be in the next one, too.
                if search.backtracks > 0 && !progressed {
                    self.opening_length = search.step_length;
                }
                break reason;
            }
            let trial = self.try_step(image, search.step_length, &mut run)?;
            let goes_on = match search.assess(&trial, best.total) {
                Verdict::Accepted => {
                    self.accept_trial(image)?;
                    best = trial.losses;
                    true
                }
                Verdict::Backtrack => continue,
                // An earlier frame has shortened it.
                Verdict::Negligible if search.is_shortened() => true,
                // Either this is the minimum, or the curvature is that of another objective.
                Verdict::Negligible => !progressed && self.restart(image, progressed)?,
                Verdict::Failed => self.restart(image, progressed)?,
            };
            if !goes_on {
                break Reason::Converged;
            }
            search = LineSearch::from(1.0);
        };
        Ok(run.outcome(reason, initial, best))
    }
}

/// The image after a step, compared with the one before.
struct Trial {
    losses: Losses,
    /// The root mean square of the displacement.
    rms: f64,
    /// The directional derivative.
    derivative: f64,
}

/// What becomes of a trial.
enum Verdict {
    Accepted,
    /// A shorter step is to be tried.
    Backtrack,
    /// The step is too small to make a difference.
    Negligible,
    /// The direction is to be given up.
    Failed,
}

/// The backtracking along one direction.
struct LineSearch {
    step_length: f64,
    backtracks: u32,
}

impl From<f64> for LineSearch {
    /// A search that tries this step length first.
    fn from(step_length: f64) -> Self {
        Self {
            step_length,
            backtracks: 0,
        }
    }
}

impl LineSearch {
    /// Whether the next trial is the first, of a step that is not the full one.
    fn is_shortened(&self) -> bool {
        self.backtracks == 0 && self.step_length < 1.0
    }

    /// Compares a trial with the loss that it is to lower, and shortens the next step if it did not.
    fn assess(&mut self, trial: &Trial, loss: f64) -> Verdict {
        let (total, derivative) = (trial.losses.total, trial.derivative);
        if trial.rms < MIN_STEP {
            return Verdict::Negligible;
        }
        if derivative < 0.0 && total <= loss + ARMIJO * derivative {
            return Verdict::Accepted;
        }
        self.backtracks += 1;
        if derivative >= 0.0 || self.backtracks > MAX_BACKTRACKS {
            return Verdict::Failed;
        }
        self.step_length *= backtrack(total - loss, derivative);
        Verdict::Backtrack
    }
}

/// What to multiply a step by that changed the loss by `change`: the minimiser of the parabola
/// through both losses and the directional derivative, within 0.1 to 0.5 (Nocedal and Wright,
/// section 3.5).
fn backtrack(change: f64, derivative: f64) -> f64 {
    let minimiser = -derivative / (2.0 * (change - derivative));
    // False for a NaN, too.
    match minimiser > 0.1 {
        true => minimiser.min(0.5),
        false => 0.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(total: f64, derivative: f64, rms: f64) -> Trial {
        let losses = Losses {
            total,
            ..Losses::default()
        };
        Trial {
            losses,
            rms,
            derivative,
        }
    }

    fn search() -> LineSearch {
        LineSearch::from(1.0)
    }

    #[test]
    fn a_step_is_accepted_for_a_ten_thousandth_of_the_predicted_decrease() {
        let assess = |total| search().assess(&trial(total, -100.0, 0.01), 5.0);
        assert!(matches!(assess(4.9899), Verdict::Accepted));
        assert!(matches!(assess(4.9901), Verdict::Backtrack));
    }

    #[test]
    fn a_step_is_shortened_to_the_minimum_of_a_parabola() {
        // 5 − 4 t + 8 t² at t = 1, with its minimum at a quarter.
        let mut search = search();
        assert!(matches!(
            search.assess(&trial(9.0, -4.0, 0.01), 5.0),
            Verdict::Backtrack
        ));
        assert_eq!(search.step_length, 0.25);
        // Never by less than a half, or to less than a tenth.
        for (total, factor) in [
            (4.9999, 0.5),
            (1e9, 0.1),
            (f64::INFINITY, 0.1),
            (f64::NAN, 0.1),
        ] {
            let mut search = LineSearch::from(1.0);
            search.assess(&trial(total, -4.0, 0.01), 5.0);
            assert_eq!(search.step_length, factor, "{total}");
        }
    }

    #[test]
    fn a_direction_is_given_up_after_six_backtracks() {
        let mut search = search();
        for _ in 0..6 {
            assert!(matches!(
                search.assess(&trial(9.0, -4.0, 0.01), 5.0),
                Verdict::Backtrack
            ));
        }
        assert!(matches!(
            search.assess(&trial(9.0, -4.0, 0.01), 5.0),
            Verdict::Failed
        ));
    }

    #[test]
    fn a_step_that_cannot_be_seen_is_negligible() {
        for total in [4.0, 9.0] {
            let verdict = search().assess(&trial(total, -4.0, 0.9e-6), 5.0);
            assert!(matches!(verdict, Verdict::Negligible));
            let verdict = search().assess(&trial(total, -4.0, 1.1e-6), 5.0);
            assert!(!matches!(verdict, Verdict::Negligible));
        }
    }
}

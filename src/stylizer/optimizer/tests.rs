// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::ops::for_each_backend;
use candle_core::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod adam;
mod lbfgs;
mod stopping;

const SIDE: usize = 16;
const PIXELS: usize = SIDE * SIDE * 3;

/// ½ Σ kᵢ (xᵢ − tᵢ)² with curvatures kᵢ from 1 to 300 and some of the tᵢ beyond 0..1.
struct Bowl {
    target: Vec<f64>,
}

impl Bowl {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(2);
        let target = (0..PIXELS).map(|_| rng.random_range(-0.3..1.3)).collect();
        Self { target }
    }

    /// The same bowl, moved a little.
    fn moved(&self, distance: f64) -> Self {
        let mut rng = StdRng::seed_from_u64(3);
        let moved = |&t| t + rng.random_range(-distance..distance);
        let target = self.target.iter().map(moved).collect();
        Self { target }
    }

    fn curvature(i: usize) -> f64 {
        300f64.powf(i as f64 / PIXELS as f64)
    }

    fn loss(&self, x: &[f64]) -> f64 {
        let errors = x.iter().zip(&self.target).map(|(x, t)| x - t);
        let terms = errors
            .enumerate()
            .map(|(i, e)| 0.5 * Self::curvature(i) * e * e);
        terms.sum()
    }

    /// The lowest loss within 0..1.
    fn minimum(&self) -> f64 {
        let nearest: Vec<f64> = self.target.iter().map(|t| t.clamp(0.0, 1.0)).collect();
        self.loss(&nearest)
    }

    fn evaluate(&self, image: &Tensor, gradient: &Tensor) -> Losses {
        let x = values(image);
        let slopes = x.iter().zip(&self.target).enumerate();
        let slopes = slopes.map(|(i, (x, t))| (Self::curvature(i) * (x - t)) as f32);
        write(gradient, slopes.collect());
        losses(self.loss(&x))
    }
}

fn losses(total: f64) -> Losses {
    Losses {
        total,
        ..Losses::default()
    }
}

fn tensor(values: Vec<f32>) -> Tensor {
    Tensor::from_vec(values, (SIDE, SIDE, 3), &Device::Cpu).unwrap()
}

fn grey() -> Tensor {
    tensor(vec![0.5; PIXELS])
}

fn write(tensor: &Tensor, values: Vec<f32>) {
    tensor.slice_set(&self::tensor(values), 0, 0).unwrap();
}

fn values(image: &Tensor) -> Vec<f64> {
    let values = image.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

fn new(kind: OptimizerKind) -> Box<dyn Optimizer> {
    let config = Config {
        optimizer: kind,
        ..Config::default()
    };
    optimizer(&grey(), &config).unwrap()
}

fn iterations(iterations: u32) -> Budget {
    Budget {
        iterations,
        deadline: None,
    }
}

/// Minimises, and checks what holds for every objective: all images evaluated are within 0..1, and
/// the outcome and the final image are those of the best one.
fn minimize(
    optimizer: &mut dyn Optimizer,
    image: &Tensor,
    budget: Budget,
    mut evaluate: impl FnMut(&Tensor, &Tensor) -> Losses,
) -> Outcome {
    let mut seen: Vec<(f64, Vec<f64>)> = Vec::new();
    let outcome = optimizer
        .minimize(image, budget, &mut |image, gradient| {
            let x = values(image);
            assert!(
                x.iter().all(|x| (0.0..=1.0).contains(x)),
                "a value leaves 0..1"
            );
            let losses = evaluate(image, gradient);
            seen.push((losses.total, x));
            Ok(losses)
        })
        .unwrap();
    assert_eq!(outcome.iterations as usize, seen.len());
    assert!(outcome.iterations <= budget.iterations);
    let initial = seen[0].0;
    assert_eq!(outcome.initial.total, initial);
    let best = seen.iter().find(|(loss, _)| *loss == outcome.best.total);
    let (loss, best) = best.expect("the outcome is one that was evaluated");
    assert_eq!(&values(image), best, "the image is the one of the outcome");
    assert!(
        *loss <= initial || initial.is_nan(),
        "{initial} rose to {loss}"
    );
    outcome
}

const BOTH: [OptimizerKind; 2] = [OptimizerKind::Lbfgs, OptimizerKind::Adam];

/// The evaluations until all but `part` of the excess of the initial loss over the minimum is gone.
fn evaluations_to(optimizer: &mut dyn Optimizer, image: &Tensor, bowl: &Bowl, part: f64) -> usize {
    let minimum = bowl.minimum();
    let mut history = Vec::new();
    minimize(optimizer, image, iterations(2000), |image, gradient| {
        let losses = bowl.evaluate(image, gradient);
        history.push(losses.total);
        losses
    });
    let goal = minimum + part * (history[0] - minimum);
    let reached = history.iter().position(|&loss| loss <= goal);
    reached.unwrap_or_else(|| panic!("{goal} is not reached: {:?}", history.last())) + 1
}

#[test]
fn the_minimum_within_the_bounds_is_reached() {
    let bowl = Bowl::new();
    for_each_backend(|side| {
        let [lbfgs, adam] = BOTH.map(|kind| evaluations_to(&mut *new(kind), &grey(), &bowl, 1e-3));
        println!("{side}: L-BFGS {lbfgs}, Adam {adam} evaluations");
        assert!(lbfgs < adam, "{side}: L-BFGS {lbfgs}, Adam {adam}");
    });
    for kind in BOTH {
        let image = grey();
        evaluations_to(&mut *new(kind), &image, &bowl, 1e-4);
        for (x, t) in values(&image).iter().zip(&bowl.target) {
            let nearest = t.clamp(0.0, 1.0);
            assert!((x - nearest).abs() < 0.05, "{kind:?}: {x} is not {nearest}");
        }
    }
}

#[test]
fn the_best_image_is_kept_however_few_iterations_there_are() {
    let bowl = Bowl::new();
    for kind in BOTH {
        let mut before = f64::INFINITY;
        for n in 1..=20 {
            let outcome = minimize(
                &mut *new(kind),
                &grey(),
                iterations(n),
                |image, gradient| bowl.evaluate(image, gradient),
            );
            assert_eq!(
                (outcome.iterations, outcome.reason),
                (n, Reason::Iterations)
            );
            assert!(outcome.best.total <= before, "{kind:?} {n}");
            before = outcome.best.total;
        }
    }
}

#[test]
fn one_iteration_changes_nothing() {
    for kind in BOTH {
        let image = grey();
        minimize(&mut *new(kind), &image, iterations(1), |image, gradient| {
            Bowl::new().evaluate(image, gradient)
        });
        assert_eq!(values(&image), values(&grey()));
    }
}

#[test]
fn steps_that_raise_the_loss_are_not_kept() {
    let bowl = Bowl::new();
    for kind in BOTH {
        for good in [1, 2, 5, 9] {
            let mut evaluations = 0;
            let outcome = minimize(
                &mut *new(kind),
                &grey(),
                iterations(25),
                |image, gradient| {
                    evaluations += 1;
                    let losses_now = bowl.evaluate(image, gradient);
                    let worse = if evaluations > good { 1e6 } else { 0.0 };
                    losses(losses_now.total + worse)
                },
            );
            assert!(outcome.best.total < 1e6, "{kind:?} {good}");
        }
    }
}

/// Losses and gradients at random, which have nothing to do with each other.
#[test]
fn an_inconsistent_objective_does_no_harm() {
    for kind in BOTH {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            minimize(&mut *new(kind), &grey(), iterations(40), |_, gradient| {
                let slopes = (0..PIXELS).map(|_| rng.random_range(-1f32..1.0));
                write(gradient, slopes.collect());
                losses(rng.random_range(0.0..1.0))
            });
        }
    }
}

/// L-BFGS is invariant to the scale of the loss; Adam squares gradients in `f32`.
#[test]
fn extreme_slopes_do_no_harm() {
    let bowl = Bowl::new();
    for kind in BOTH {
        let factors = match kind {
            OptimizerKind::Lbfgs => [1e-30, 1e-12, 1e12, 1e30],
            OptimizerKind::Adam => [1e-12, 1e-6, 1e6, 1e12],
        };
        for factor in factors {
            let outcome = minimize(
                &mut *new(kind),
                &grey(),
                iterations(40),
                |image, gradient| {
                    let total = bowl.evaluate(image, gradient).total;
                    let slopes = values(gradient)
                        .iter()
                        .map(|g| (g * factor) as f32)
                        .collect();
                    write(gradient, slopes);
                    losses(total * factor)
                },
            );
            assert!(
                outcome.best.total < outcome.initial.total,
                "{kind:?} {factor:e}"
            );
        }
    }
}

#[test]
fn nan_and_infinity_do_no_harm() {
    let bowl = Bowl::new();
    for kind in BOTH {
        for good in [1, 3, 6] {
            for bad in [f64::NAN, f64::INFINITY] {
                let mut evaluations = 0;
                let outcome = minimize(
                    &mut *new(kind),
                    &grey(),
                    iterations(40),
                    |image, gradient| {
                        evaluations += 1;
                        if evaluations > good {
                            write(gradient, vec![bad as f32; PIXELS]);
                            return losses(bad);
                        }
                        bowl.evaluate(image, gradient)
                    },
                );
                assert!(outcome.best.total.is_finite(), "{kind:?} {good} {bad}");
            }
        }
    }
}

/// An optimiser that is reconfigured takes the same steps as one created with those settings.
#[test]
fn settings_are_applied_between_frames() {
    let bowl = Bowl::new();
    let evaluate = |image: &Tensor, gradient: &Tensor| bowl.evaluate(image, gradient);
    let with = |learning_rate| Config {
        optimizer: OptimizerKind::Adam,
        learning_rate,
        ..Config::default()
    };
    let second_frame = |created: &Config, reconfigured: &Config| {
        let mut optimizer = optimizer(&grey(), created).unwrap();
        let image = grey();
        // One evaluation without a step, so that the settings do not matter yet.
        minimize(&mut *optimizer, &image, iterations(1), evaluate);
        assert!(same(created, reconfigured));
        optimizer.configure(reconfigured);
        minimize(&mut *optimizer, &image, iterations(30), evaluate);
        values(&image)
    };
    let usual = with(0.02);
    let unchanged = second_frame(&usual, &usual);
    for other in [with(0.001), with(0.1), with(1.0)] {
        let changed = second_frame(&usual, &other);
        assert!(changed == second_frame(&other, &other), "{other:?}");
        assert!(changed != unchanged, "{other:?}");
    }
}

#[test]
fn another_kind_and_another_history_of_l_bfgs_are_another_optimiser() {
    let with = |optimizer, lbfgs_history| Config {
        optimizer,
        lbfgs_history,
        ..Config::default()
    };
    for kind in BOTH {
        assert!(same(&with(kind, 10), &with(kind, 10)), "{kind:?}");
        let history_matters = kind == OptimizerKind::Lbfgs;
        assert_eq!(!same(&with(kind, 10), &with(kind, 9)), history_matters);
    }
    let [a, b] = BOTH.map(|kind| with(kind, 10));
    assert!(!same(&a, &b));
}

#[test]
fn a_reset_optimiser_takes_the_steps_of_one_that_has_learnt_nothing() {
    let bowl = Bowl::new();
    let evaluate = |image: &Tensor, gradient: &Tensor| bowl.evaluate(image, gradient);
    for kind in BOTH {
        let painted = |optimizer: &mut dyn Optimizer| {
            let image = grey();
            minimize(optimizer, &image, iterations(15), evaluate);
            values(&image)
        };
        let expected = painted(&mut *new(kind));
        let mut optimizer = new(kind);
        assert!(painted(&mut *optimizer) == expected, "{kind:?}");
        assert!(painted(&mut *optimizer) != expected, "{kind:?}");
        // With backtracking to go on with, too.
        for misleading in [false, true] {
            if misleading {
                minimize(
                    &mut *optimizer,
                    &grey(),
                    iterations(3),
                    |image, gradient| {
                        let total = bowl.evaluate(image, gradient).total;
                        losses(if values(image) == values(&grey()) {
                            total
                        } else {
                            2.0 * total + 1.0
                        })
                    },
                );
            }
            optimizer.reset().unwrap();
            assert!(painted(&mut *optimizer) == expected, "{kind:?}");
        }
    }
}

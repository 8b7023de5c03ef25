// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::ops::with_both_sides;
use candle_core::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const SIDE: usize = 16;
const PIXELS: usize = SIDE * SIDE * 3;

/// ½ Σ kᵢ (xᵢ − tᵢ)² with curvatures kᵢ from 1 to 300 and some of the tᵢ out of reach.
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

/// Minimises, and checks what holds for every objective: the image evaluated is always within 0..1, the outcome is
/// that of the best one, and this is what the image becomes.
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
    let (loss, best) = best.expect("the outcome is one that was seen");
    assert_eq!(&values(image), best, "the image is the one of the outcome");
    assert!(
        *loss <= initial || initial.is_nan(),
        "{initial} rose to {loss}"
    );
    outcome
}

const BOTH: [OptimizerKind; 2] = [OptimizerKind::Lbfgs, OptimizerKind::Adam];

/// Evaluations until the loss is within `part` of the way from the start to the minimum.
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
    with_both_sides(|side| {
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

/// Where pixels depend on each other, scaling each by itself, as Adam does, is not enough.
///
/// ½ Σ (eᵢ₊₁ − eᵢ)² + ½ Σ eᵢ² / 1000, with e the distance to an even colour: the curvatures
/// are 0.001 to 4.
#[test]
fn lbfgs_learns_how_pixels_depend_on_each_other() {
    let chain = |image: &Tensor, gradient: &Tensor| {
        let e: Vec<f64> = values(image).iter().map(|x| x - 0.4).collect();
        let d: Vec<f64> = e.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let at = |i: Option<usize>| i.and_then(|i| d.get(i)).copied().unwrap_or(0.0);
        let slope = |i: usize| at(i.checked_sub(1)) - at(Some(i)) + e[i] / 1000.0;
        write(gradient, (0..PIXELS).map(|i| slope(i) as f32).collect());
        let squares = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
        losses(0.5 * squares(&d) + 0.0005 * squares(&e))
    };
    let start = (0..PIXELS).map(|i| (0.5 + 0.4 * (i as f64 / 60.0).sin()) as f32);
    let start = tensor(start.collect());
    let [lbfgs, adam] = BOTH.map(|kind| {
        let (image, mut history) = (start.copy().unwrap(), Vec::new());
        minimize(
            &mut *new(kind),
            &image,
            iterations(3000),
            |image, gradient| {
                let losses = chain(image, gradient);
                history.push(losses.total);
                losses
            },
        );
        let reached = history.iter().position(|&loss| loss < 0.01 * history[0]);
        reached.unwrap_or_else(|| panic!("{kind:?} ends at {:?}", history.last())) + 1
    });
    println!("L-BFGS {lbfgs}, Adam {adam} evaluations");
    assert!(2 * lbfgs < adam, "L-BFGS {lbfgs}, Adam {adam}");
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
fn steps_that_make_it_worse_are_not_sent() {
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

/// A rough objective with wrong slopes: nothing is to be had from it but what the image was.
#[test]
fn an_objective_that_lies_does_no_harm() {
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

/// L-BFGS does not care for the scale of the loss; Adam squares slopes in `f32`.
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
fn numbers_that_are_none_do_no_harm() {
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

#[test]
fn it_ends_where_nothing_is_to_be_gained() {
    for kind in BOTH {
        // Flat; at the minimum; and held by the bounds.
        for (slope, start) in [(0.0, 0.5), (1.0, 0.0), (-1.0, 1.0)] {
            let image = tensor(vec![start; PIXELS]);
            let outcome = minimize(
                &mut *new(kind),
                &image,
                iterations(2000),
                |image, gradient| {
                    write(gradient, vec![slope; PIXELS]);
                    losses(1.0 + f64::from(slope) * values(image).iter().sum::<f64>())
                },
            );
            assert_eq!(outcome.reason, Reason::Converged, "{kind:?} {slope}");
            assert!(
                outcome.iterations <= WINDOW as u32 + 2,
                "{kind:?} {}",
                outcome.iterations
            );
        }
    }
}

#[test]
fn it_ends_when_progress_has_stopped() {
    let bowl = Bowl::new();
    for kind in BOTH {
        let outcome = minimize(
            &mut *new(kind),
            &grey(),
            iterations(100_000),
            |image, gradient| bowl.evaluate(image, gradient),
        );
        assert_eq!(outcome.reason, Reason::Converged, "{kind:?}");
        assert!(outcome.best.total < 1.01 * bowl.minimum(), "{kind:?}");
    }
}

#[test]
fn a_frame_that_is_late_gets_two_iterations() {
    let bowl = Bowl::new();
    let budget = Budget {
        iterations: 100,
        deadline: Some(Instant::now()),
    };
    for kind in BOTH {
        let outcome = minimize(&mut *new(kind), &grey(), budget, |image, gradient| {
            bowl.evaluate(image, gradient)
        });
        assert_eq!(
            (outcome.iterations, outcome.reason),
            (2, Reason::Budget),
            "{kind:?}"
        );
    }
    let budget = Budget {
        iterations: 10,
        deadline: Some(Instant::now() + Duration::from_secs(86_400)),
    };
    for kind in BOTH {
        let outcome = minimize(&mut *new(kind), &grey(), budget, |image, gradient| {
            bowl.evaluate(image, gradient)
        });
        assert_eq!(
            (outcome.iterations, outcome.reason),
            (10, Reason::Iterations)
        );
    }
}

#[test]
fn cancelling_ends_it_at_once() {
    let bowl = Bowl::new();
    for kind in BOTH {
        for last in [1, 2, 7] {
            let mut evaluations = 0;
            let result = new(kind).minimize(&grey(), iterations(50), &mut |image, gradient| {
                evaluations += 1;
                match evaluations < last {
                    true => Ok(bowl.evaluate(image, gradient)),
                    false => Err(Error::Cancelled),
                }
            });
            assert!(matches!(result, Err(Error::Cancelled)));
            assert_eq!(evaluations, last);
        }
    }
}

/// What was learned from one frame serves the next.
#[test]
fn lbfgs_keeps_what_it_learned() {
    let bowl = Bowl::new();
    let image = grey();
    let mut carried = new(OptimizerKind::Lbfgs);
    minimize(&mut *carried, &image, iterations(60), |image, gradient| {
        bowl.evaluate(image, gradient)
    });
    let next = bowl.moved(0.03);
    let again = image.copy().unwrap();
    let carried = evaluations_to(&mut *carried, &image, &next, 0.01);
    let fresh = evaluations_to(&mut *new(OptimizerKind::Lbfgs), &again, &next, 0.01);
    println!("carried {carried}, fresh {fresh} evaluations");
    assert!(carried < fresh, "carried {carried}, fresh {fresh}");
}

/// An optimiser that is told of them goes where one goes that was made with them.
#[test]
fn settings_are_taken_between_frames() {
    let bowl = Bowl::new();
    let evaluate = |image: &Tensor, gradient: &Tensor| bowl.evaluate(image, gradient);
    for kind in BOTH {
        let with = |lbfgs_history, learning_rate| Config {
            optimizer: kind,
            lbfgs_history,
            learning_rate,
            ..Config::default()
        };
        let second_frame = |made_with: &Config, told: &Config| {
            let mut optimizer = optimizer(&grey(), made_with).unwrap();
            let image = grey();
            // A frame that is only looked at, so that it is the same whatever the settings.
            minimize(&mut *optimizer, &image, iterations(1), evaluate);
            optimizer.configure(told);
            minimize(&mut *optimizer, &image, iterations(30), evaluate);
            values(&image)
        };
        let usual = with(10, 0.02);
        let unchanged = second_frame(&usual, &usual);
        for told in [with(1, 0.001), with(2, 0.1), with(50, 1.0)] {
            let changed = second_frame(&usual, &told);
            assert!(changed == second_frame(&told, &told), "{told:?}");
            assert!(changed != unchanged, "{told:?}");
        }
    }
}

/// What was learned of an objective is of no use for one of another scale, and must not stay in the way.
#[test]
fn lbfgs_recovers_when_the_objective_changes_its_scale() {
    let bowl = Bowl::new();
    let mut lbfgs = new(OptimizerKind::Lbfgs);
    let image = grey();
    for scale in [1.0, 1e9, 1.0, 1e-9, 1.0] {
        write(&image, vec![0.5; PIXELS]);
        let scaled = |image: &Tensor, gradient: &Tensor| {
            let losses = bowl.evaluate(image, gradient);
            write(
                gradient,
                values(gradient)
                    .iter()
                    .map(|g| (g * scale) as f32)
                    .collect(),
            );
            self::losses(losses.total * scale)
        };
        let mut last = f64::INFINITY;
        for _ in 0..12 {
            last = minimize(lbfgs.as_mut(), &image, iterations(6), scaled)
                .best
                .total
                / scale;
        }
        assert!(
            last < 1.01 * bowl.minimum(),
            "scale {scale}: {last}, not {}",
            bowl.minimum()
        );
    }
}

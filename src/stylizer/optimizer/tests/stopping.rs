// SPDX-License-Identifier: MPL-2.0

//! When the optimisation of a frame ends.

use super::*;
use std::time::Duration;

#[test]
fn a_stationary_start_has_converged() {
    for kind in BOTH {
        // A flat objective, and minima at the lower and the upper bound.
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
                outcome.iterations <= CONVERGENCE_ITERATIONS as u32 + 2,
                "{kind:?} {}",
                outcome.iterations
            );
        }
    }
}

#[test]
fn stalled_progress_is_convergence() {
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
fn a_late_frame_gets_two_iterations() {
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
            (2, Reason::Deadline),
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

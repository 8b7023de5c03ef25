// SPDX-License-Identifier: MPL-2.0

use super::*;

/// Where the Hessian is not diagonal, scaling each pixel by itself, as Adam does, is not enough.
///
/// ½ Σ (eᵢ₊₁ − eᵢ)² + ½ Σ eᵢ² / 1000, with e the distance to a uniform colour: the eigenvalues of
/// the Hessian are 0.001 to 4.
#[test]
fn coupled_pixels_take_fewer_evaluations_than_with_adam() {
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

/// The last steps of a frame are in flat directions. The first one of the next frame is in steep ones: it
/// would be too long by far.
#[test]
fn the_first_step_of_a_frame_lowers_the_loss() {
    let (mut lbfgs, image, mut bowl) = (new(OptimizerKind::Lbfgs), grey(), Bowl::new());
    for frame in 0..4 {
        lbfgs.next_objective().unwrap();
        let mut losses = Vec::new();
        minimize(&mut *lbfgs, &image, iterations(20), |image, gradient| {
            let evaluated = bowl.evaluate(image, gradient);
            losses.push(evaluated.total);
            evaluated
        });
        bowl = bowl.moved(0.03);
        let last = losses.last().unwrap();
        let fall = (losses[0] - losses[1]) / (losses[0] - last);
        println!("frame {frame}: {fall}");
        assert!(frame == 0 || fall > 0.3, "{losses:?}");
    }
}

/// As in a still picture.
#[test]
fn the_same_objective_goes_on() {
    let bowl = Bowl::new();
    let after = |frames: &[u32]| {
        let (mut lbfgs, image) = (new(OptimizerKind::Lbfgs), grey());
        for &frame in frames {
            minimize(&mut *lbfgs, &image, iterations(frame), |image, gradient| {
                bowl.evaluate(image, gradient)
            });
        }
        values(&image)
    };
    // The second frame evaluates its start again. The last step of the first is one that lowers the loss.
    assert!(after(&[20, 21]) == after(&[40]));
}

/// With a single step a frame, which is far too long at first.
#[test]
fn backtracking_goes_on_in_the_next_frame() {
    let (mut lbfgs, image, bowl) = (new(OptimizerKind::Lbfgs), grey(), Bowl::new());
    minimize(&mut *lbfgs, &image, iterations(20), |image, gradient| {
        bowl.evaluate(image, gradient)
    });
    const SCALE: f64 = 1e3;
    let mut next = bowl.moved(0.1);
    let lower = |lbfgs: &mut dyn Optimizer, next: &Bowl| {
        lbfgs.next_objective().unwrap();
        let outcome = minimize(lbfgs, &image, iterations(2), |image, gradient| {
            let total = next.evaluate(image, gradient).total;
            let slopes = values(gradient).into_iter();
            write(gradient, slopes.map(|g| (SCALE * g) as f32).collect());
            losses(SCALE * total)
        });
        outcome.best.total < outcome.initial.total
    };
    let lowered: Vec<bool> = (0..12)
        .map(|_| {
            next = next.moved(0.03);
            lower(&mut *lbfgs, &next)
        })
        .collect();
    println!("{lowered:?}");
    assert!(
        !lowered[0] && lowered[6..].iter().all(|&lower| lower),
        "{lowered:?}"
    );
}

/// However short the step was that they led to.
#[test]
fn frames_without_a_loss_are_recovered_from() {
    for iterations in [2, 3, 6, 11].map(iterations) {
        let (mut lbfgs, image, bowl) = (new(OptimizerKind::Lbfgs), grey(), Bowl::new());
        for _ in 0..20 {
            lbfgs.next_objective().unwrap();
            let mut evaluations = 0;
            minimize(&mut *lbfgs, &image, iterations, |image, gradient| {
                evaluations += 1;
                match evaluations {
                    1 => bowl.evaluate(image, gradient),
                    _ => losses(f64::NAN),
                }
            });
        }
        let mut frame = || {
            lbfgs.next_objective().unwrap();
            let outcome = minimize(&mut *lbfgs, &image, iterations, |image, gradient| {
                bowl.evaluate(image, gradient)
            });
            outcome.best.total
        };
        let lowest = (0..6).map(|_| frame()).fold(f64::INFINITY, f64::min);
        assert!(lowest < 0.9 * bowl.loss(&values(&grey())), "{lowest}");
    }
}

/// The curvature of an objective of another scale is useless, and must not be kept.
#[test]
fn a_change_of_the_objectives_scale_is_recovered_from() {
    let bowl = Bowl::new();
    let mut lbfgs = new(OptimizerKind::Lbfgs);
    let image = grey();
    for scale in [1.0, 1e9, 1.0, 1e-9, 1.0] {
        write(&image, vec![0.5; PIXELS]);
        lbfgs.next_objective().unwrap();
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

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

#[test]
fn the_pairs_of_one_frame_speed_up_the_next() {
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

/// ½ k Σ (xᵢ − sᵢ)² holds the second frame to its start s, with a k amid the bowl's curvatures. To the
/// pairs of the first frame it is new: their steps would be too long where the bowl is flat.
#[test]
fn the_known_curvature_of_a_new_term_is_not_learnt() {
    const CURVATURE: f64 = 30.0;
    let bowl = Bowl::new();
    let fall = |known: f64| {
        let (mut lbfgs, image) = (new(OptimizerKind::Lbfgs), grey());
        minimize(&mut *lbfgs, &image, iterations(20), |image, gradient| {
            bowl.evaluate(image, gradient)
        });
        let (start, next) = (values(&image), bowl.moved(0.1));
        lbfgs.set_known_curvature(known).unwrap();
        let outcome = minimize(&mut *lbfgs, &image, iterations(4), |image, gradient| {
            let free = next.evaluate(image, gradient).total;
            let away = values(image).into_iter().zip(&start).map(|(x, s)| x - s);
            let away: Vec<f64> = away.collect();
            let slopes = values(gradient).into_iter().zip(&away);
            let slopes = slopes.map(|(slope, away)| (slope + CURVATURE * away) as f32);
            write(gradient, slopes.collect());
            let squares: f64 = away.iter().map(|away| away * away).sum();
            losses(free + 0.5 * CURVATURE * squares)
        });
        outcome.initial.total - outcome.best.total
    };
    let (known, unknown) = (fall(CURVATURE), fall(0.0));
    println!("known {known:.1}, unknown {unknown:.1}");
    assert!(known > 1.2 * unknown, "known {known}, unknown {unknown}");
}

/// The curvature of an objective of another scale is useless, and must not be kept.
#[test]
fn a_change_of_the_objectives_scale_is_recovered_from() {
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

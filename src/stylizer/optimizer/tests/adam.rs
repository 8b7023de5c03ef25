// SPDX-License-Identifier: MPL-2.0

use super::*;

/// Algorithm 1 of Kingma and Ba in f64, without the projection: the image after so many steps.
fn reference(bowl: &Bowl, steps: i32) -> Vec<f64> {
    let (alpha, beta_1, beta_2) = (0.02, 0.9f64, 0.99f64);
    let mut x = values(&grey());
    let (mut m, mut v) = ([0.0; PIXELS], [0.0; PIXELS]);
    for t in 1..=steps {
        for i in 0..PIXELS {
            let g = Bowl::curvature(i) * (x[i] - bowl.target[i]);
            m[i] = beta_1 * m[i] + (1.0 - beta_1) * g;
            v[i] = beta_2 * v[i] + (1.0 - beta_2) * g * g;
            let (m, v) = (m[i] / (1.0 - beta_1.powi(t)), v[i] / (1.0 - beta_2.powi(t)));
            x[i] -= alpha * m / (v.sqrt() + 1e-8);
        }
    }
    x
}

/// Moments and bias corrections go on in the second frame.
#[test]
fn adam_takes_the_papers_steps() {
    let bowl = Bowl::new();
    for_each_backend(|side| {
        let (mut adam, image) = (new(OptimizerKind::Adam), grey());
        for (frame, steps) in [4, 7].into_iter().enumerate() {
            // The last evaluation of a frame is not followed by a step.
            let budget = iterations([5, 4][frame]);
            minimize(&mut *adam, &image, budget, |image, gradient| {
                bowl.evaluate(image, gradient)
            });
            let expected = reference(&bowl, steps);
            for (x, expected) in values(&image).iter().zip(expected) {
                assert!(
                    (x - expected).abs() < 1e-5,
                    "{side}, {steps}: {x}, {expected}"
                );
            }
        }
    });
}

/// Moments of gradients that were much larger would shorten Adam's steps for hundreds of iterations.
#[test]
fn adam_forgets_an_objective_of_a_larger_scale() {
    let bowl = Bowl::new();
    let next = bowl.moved(0.1);
    let scaled = |bowl: &Bowl, scale: f64, image: &Tensor, gradient: &Tensor| {
        let total = bowl.evaluate(image, gradient).total;
        let slopes = values(gradient).into_iter();
        write(gradient, slopes.map(|g| (scale * g) as f32).collect());
        losses(scale * total)
    };
    for scale in [1.0, 0.01] {
        let (mut adam, image) = (new(OptimizerKind::Adam), grey());
        minimize(&mut *adam, &image, iterations(20), |image, gradient| {
            scaled(&bowl, 1.0, image, gradient)
        });
        let paint = |adam: &mut dyn Optimizer, image: &Tensor| {
            minimize(adam, image, iterations(20), |image, gradient| {
                scaled(&next, scale, image, gradient)
            });
            values(image)
        };
        let fresh = paint(&mut *new(OptimizerKind::Adam), &image.copy().unwrap());
        assert_eq!(paint(&mut *adam, &image) == fresh, scale < 1.0, "{scale}");
    }
}

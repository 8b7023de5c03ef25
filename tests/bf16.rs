// SPDX-License-Identifier: MPL-2.0

//! The precision of the gradient and of the result with features in bf16, on photographs and
//! paintings, and that it does not depend on the threads. Needs AMX, and the former the pictures.

mod common;

use candle_core::{Device, Tensor};
use common::shared::{load, shared};
use gstgatys::ops::elementwise::dot;
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::objective::{LossWeights, Losses, Objective};
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::stylizer::resize::{fit, pad, resize};
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};
use std::cell::RefCell;
use std::path::Path;

/// The longer side of the pictures for comparing first gradients, and for runs of many iterations.
const SIDE: u32 = 384;
const SMALL_SIDE: u32 = 192;

struct Problem(RefCell<Objective>);

impl Problem {
    fn new(precision: Precision, content: &Tensor, style: &Tensor) -> Self {
        let config = Config::default();
        let vgg = Vgg::shared(&WeightsSource::BuiltIn, &Device::Cpu, precision).unwrap();
        assert_eq!(vgg.precision(), precision);
        let (h, w, _) = content.dims3().unwrap();
        let mut objective = Objective::new(
            vgg,
            (h, w),
            &config.content_layers,
            &config.style_layers,
            config.pooling,
        )
        .unwrap();
        objective.set_content(content, &|| false).unwrap();
        objective.set_style(style, &|| false).unwrap();
        Self(RefCell::new(objective))
    }

    fn evaluate(&self, image: &Tensor, gradient: &Tensor) -> Losses {
        let loss_weights = LossWeights::from(&Config::default());
        self.0
            .borrow_mut()
            .evaluate(image, loss_weights, gradient, &|| false)
            .unwrap()
    }

    fn gradient(&self, image: &Tensor) -> Tensor {
        let gradient = image.zeros_like().unwrap();
        self.evaluate(image, &gradient);
        gradient
    }

    /// The image after the given number of iterations from `start`.
    fn minimize(&self, start: &Tensor, iterations: u32) -> Tensor {
        let image = start.copy().unwrap();
        let mut optimizer = optimizer(&image, &Config::default()).unwrap();
        let budget = Budget {
            iterations,
            deadline: None,
        };
        let mut evaluate = |image: &Tensor, gradient: &Tensor| Ok(self.evaluate(image, gradient));
        optimizer.minimize(&image, budget, &mut evaluate).unwrap();
        image
    }
}

fn scaled(path: &Path, side: u32) -> Tensor {
    let picture = load(path);
    let (h, w, _) = picture.dims3().unwrap();
    let size = fit((h, w), Some(side));
    pad(&resize(&picture, size).unwrap()).unwrap()
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    dot(a, b).unwrap() / (dot(a, a).unwrap() * dot(b, b).unwrap()).sqrt()
}

#[test]
fn bf16_keeps_the_gradients_direction_and_the_result() {
    if Precision::Bf16.check(&Device::Cpu).is_err() {
        eprintln!("left out: this CPU has no AMX");
        return;
    }
    let mut quotients = Vec::new();
    for photograph in ["tubingen.jpg", "golden_gate.jpg"] {
        for painting in ["starry_night.jpg", "the_scream.jpg"] {
            let [Some(content), Some(style)] = [photograph, painting].map(shared) else {
                eprintln!("left out: there are no pictures");
                return;
            };
            let problems = |side| {
                let (content, style) = (scaled(&content, side), scaled(&style, side));
                let [f32, bf16] = [Precision::F32, Precision::Bf16]
                    .map(|precision| Problem::new(precision, &content, &style));
                (content, f32, bf16)
            };
            let (large, f32, bf16) = problems(SIDE);
            let start = cosine(&f32.gradient(&large), &bf16.gradient(&large));
            let (content, f32, bf16) = problems(SMALL_SIDE);
            let later = f32.minimize(&content, 20);
            let later = cosine(&f32.gradient(&later), &bf16.gradient(&later));
            let scratch = content.zeros_like().unwrap();
            let [loss, rounded] = [&f32, &bf16].map(|problem| {
                let image = problem.minimize(&content, 50);
                f32.evaluate(&image, &scratch).total
            });
            println!(
                "{photograph} as {painting}: cosine {start:.5} at the start, {later:.5} after 20 \
                 iterations; loss after 50: {loss:.5} in f32, {rounded:.5} in bf16 ({:+.3} %)",
                100.0 * (rounded / loss - 1.0)
            );
            assert!(start > 0.999, "{photograph} as {painting}: {start}");
            assert!(later > 0.98, "{photograph} as {painting}: {later}");
            quotients.push(rounded / loss);
        }
    }
    // Changing the start by 1e-4 changes the final loss in f32 by some per cent either way, so the
    // two precisions are only comparable on average.
    let mean = quotients.iter().sum::<f64>() / quotients.len() as f64;
    println!("mean quotient of the losses: {mean:.4}");
    assert!((mean - 1.0).abs() < 0.05, "{mean}");
}

/// Compares losses and gradients bit for bit, at sizes that fill strips and at others.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    if Precision::Bf16.check(&Device::Cpu).is_err() {
        eprintln!("left out: this CPU has no AMX");
        return;
    }
    for (h, w) in [(16, 16), (17, 35), (47, 95), (120, 160), (19, 700)] {
        let picture = |phase: f32| {
            let values = (0..h * w * 3).map(|i| 0.5 + 0.4 * (phase + i as f32 * 0.37).sin());
            Tensor::from_vec(values.collect::<Vec<_>>(), (h, w, 3), &Device::Cpu).unwrap()
        };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(|| {
                let problem = Problem::new(Precision::Bf16, &picture(1.0), &picture(2.0));
                let (image, gradient) = (picture(3.0), picture(4.0));
                let losses = problem.evaluate(&image, &gradient);
                let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let bits: Vec<u32> = gradient.into_iter().map(f32::to_bits).collect();
                (losses, bits)
            })
        };
        let one = run(1);
        assert!(one.1.iter().any(|&bits| bits != 0));
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{w}x{h}, {threads} threads");
        }
    }
}

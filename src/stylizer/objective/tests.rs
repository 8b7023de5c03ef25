// SPDX-License-Identifier: MPL-2.0

use super::reference::{CONTENT, MEAN, Network, Reference, STD, STYLE, add, layers};
use super::*;
use crate::ops::for_each_backend;
use crate::ops::reference::{Array, relative_error};
use crate::stylizer::config::LossScale;
use crate::vgg::weights::{Weights, WeightsSource};
use candle_core::Device;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: (usize, usize) = (35, 38);

/// Of the built-in network's features and gradient in f32, relative to f64.
const MAX_ERROR: f64 = 1.5e-6;

/// A smooth image whose values are exact in `f32`.
fn smooth((h, w): (usize, usize), phase: f64) -> Array {
    let mut image = Array::zeros(h, w, 3);
    for y in 0..h {
        for x in 0..w {
            for c in 0..3 {
                let (u, v) = (x as f64 / w as f64, y as f64 / h as f64);
                let wave = (5.0 * u + 3.0 * v + phase + c as f64).sin()
                    + (7.0 * v - 4.0 * u + 2.0 * phase * (c + 1) as f64).cos();
                *image.at_mut(y, x, c) = f64::from((0.5 + 0.2 * wave) as f32);
            }
        }
    }
    image
}

fn image() -> Array {
    smooth(SIZE, 0.3)
}

fn content() -> Array {
    smooth(SIZE, 1.1)
}

/// Of another size than the frame.
fn style() -> Array {
    smooth((33, 50), 2.7)
}

fn loss_weights(loss_scale: LossScale) -> LossWeights {
    LossWeights {
        alpha: 1.5,
        beta: 40.0,
        tv_weight: 5.0,
        temporal_weight: 0.0,
        loss_scale,
    }
}

fn cases() -> impl Iterator<Item = (Pooling, LossScale)> {
    let scales = [LossScale::Relative, LossScale::Mean, LossScale::Paper];
    let with = move |pooling| scales.map(|scale| (pooling, scale));
    [Pooling::Avg, Pooling::Max].into_iter().flat_map(with)
}

fn objective(pooling: Pooling) -> Objective {
    let vgg = Network::new().vgg();
    let mut objective =
        Objective::new(vgg, SIZE, &layers(CONTENT), &layers(STYLE), pooling).unwrap();
    objective
        .set_content(&content().tensor(), &|| false)
        .unwrap();
    objective.set_style(&style().tensor(), &|| false).unwrap();
    objective
}

/// The reference's gradient is that of its loss, by central differences. The step is so small that
/// hardly any ReLU or maximum switches within it.
#[test]
fn reference_against_finite_differences() {
    for (pooling, loss_scale) in cases() {
        let reference = Reference::new(pooling, loss_weights(loss_scale), [&content(), &style()]);
        let (_, gradient) = reference.evaluate(&image());
        for seed in 0..3 {
            let direction = Array::random(SIZE.0, SIZE.1, 3, seed);
            let loss = |step: f64| {
                let mut image = image();
                add(&mut image, step, &direction);
                reference.evaluate(&image).0.total
            };
            let step = 1e-8;
            let slope = (loss(step) - loss(-step)) / (2.0 * step);
            let expected = gradient.dot(&direction);
            // A random direction is nearly orthogonal to the gradient: the error is measured
            // against what an aligned one would give.
            let largest = (gradient.dot(&gradient) * direction.dot(&direction)).sqrt();
            let error = (slope - expected).abs() / largest;
            println!("{pooling:?} {loss_scale:?}: {error:.1e}");
            assert!(
                error < 1e-5,
                "{pooling:?} {loss_scale:?}: {slope} {expected}"
            );
        }
    }
}

#[test]
fn losses_and_gradient_against_the_reference() {
    for (pooling, loss_scale) in cases() {
        let (expected, expected_gradient) =
            Reference::new(pooling, loss_weights(loss_scale), [&content(), &style()])
                .evaluate(&image());
        for_each_backend(|side| {
            let image = image().tensor();
            let gradient = image.ones_like().unwrap();
            let losses = objective(pooling)
                .evaluate(&image, loss_weights(loss_scale), &gradient, &|| false)
                .unwrap();
            for (value, expected) in [
                (losses.content, expected.content),
                (losses.style, expected.style),
                (losses.variation, expected.variation),
                (losses.total, expected.total),
            ] {
                let error = (value - expected).abs() / expected;
                assert!(
                    error < 1e-5,
                    "{side} {pooling:?} {loss_scale:?}: {losses:?}"
                );
            }
            let error = relative_error(&gradient, &expected_gradient.values);
            println!("{side} {pooling:?} {loss_scale:?}: gradient {error:.1e}");
            assert!(error < 1e-5, "{side} {pooling:?} {loss_scale:?}: {error}");
        });
    }
}

/// The built-in network at its full width, on a picture with noise: the features of every layer,
/// and the backward pass from the deepest one. A ReLU that is open in one and closed in the other
/// moves a gradient by far more than rounding does, so the reference's backward pass takes the
/// features, and so the open ReLUs, of the network under test.
#[test]
fn the_built_in_network_against_the_reference() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    assert_eq!(
        (weights.preprocessing.mean, weights.preprocessing.std),
        (MEAN, STD)
    );
    let network = Network::of(&weights);
    let vgg = Vgg::new(&weights, &Device::Cpu).unwrap();
    let (h, w) = (36, 50);
    let mut image = smooth((h, w), 0.3);
    add(&mut image, 0.1, &Array::random(h, w, 3, 1));
    for value in &mut image.values {
        *value = f64::from(value.clamp(0.0, 1.0) as f32);
    }

    let features = vgg.allocate_features(h, w, vgg.deepest()).unwrap();
    let no = || false;
    vgg.forward(&image.tensor(), Pooling::Avg, vgg.deepest(), &features, &no)
        .unwrap();
    let mut activations = network.forward(&image, Pooling::Avg);
    let (mut flipped, mut count) = (0, 0);
    for (layer, (_, output)) in Layer::all().zip(&mut activations) {
        let found = features.layer(layer);
        let error = relative_error(found, &output.values);
        println!("{layer}: {error:.1e}");
        assert!(error < MAX_ERROR, "{layer}: {error}");
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = output.values.iter().copied().fold(0.0, f64::max);
        for (value, found) in output.values.iter_mut().zip(found) {
            // Where the input is zero but for rounding, the ReLU may be open or closed.
            let apart = (*value - f64::from(found)).abs() > 1e-6 * largest;
            flipped += usize::from(apart && (*value > 0.0) != (found > 0.0));
            count += 1;
            *value = found.into();
        }
    }
    println!("{flipped} of {count} ReLUs differ");
    assert!(flipped <= 1 + count / 1_000_000, "{flipped} of {count}");

    let mut seeds: Vec<Array> = activations
        .iter()
        .map(|(_, f)| Array::zeros(f.h, f.w, f.n))
        .collect();
    let deepest = seeds.last_mut().unwrap();
    *deepest = Array::random(deepest.h, deepest.w, deepest.n, 2);
    let seed = deepest.tensor();
    let gradients = vgg.allocate_gradients(h, w, vgg.deepest()).unwrap();
    let gradient = image.tensor();
    vgg.backward(
        Pooling::Avg,
        &features,
        &gradients,
        |layer, gradient, _| {
            if layer == vgg.deepest() {
                copy(gradient, &seed)?;
            }
            Ok(layer == vgg.deepest())
        },
        &gradient,
        &no,
    )
    .unwrap();
    let expected = network.backward(&activations, seeds, Pooling::Avg);
    let error = relative_error(&gradient, &expected.values);
    println!("gradient: {error:.1e}");
    assert!(error < MAX_ERROR, "gradient: {error}");
}

#[test]
fn the_frame_itself_has_no_content_loss() {
    let mut objective = objective(Pooling::Avg);
    let image = content().tensor();
    let gradient = image.ones_like().unwrap();
    let loss_weights = LossWeights {
        beta: 0.0,
        tv_weight: 0.0,
        ..loss_weights(LossScale::Relative)
    };
    let losses = objective
        .evaluate(&image, loss_weights, &gradient, &|| false)
        .unwrap();
    assert_eq!((losses.content, losses.total), (0.0, 0.0));
    assert!(losses.style > 0.0);
    assert_eq!(
        relative_error(&gradient, &vec![0.0; SIZE.0 * SIZE.1 * 3]),
        0.0
    );
}

#[test]
fn the_style_image_itself_has_no_style_loss() {
    let mut objective = objective(Pooling::Max);
    objective.set_style(&image().tensor(), &|| false).unwrap();
    let gradient = image().tensor();
    let losses = objective
        .evaluate(
            &image().tensor(),
            loss_weights(LossScale::Relative),
            &gradient,
            &|| false,
        )
        .unwrap();
    assert_eq!(losses.style, 0.0);
    assert!(losses.content > 0.0);
}

/// Its loss is a mean over the values, and its gradient is added to that of the other terms.
#[test]
fn the_temporal_term_draws_pixels_to_the_target() {
    let mut objective = objective(Pooling::Avg);
    let (h, w) = SIZE;
    let target = Array {
        values: (0..4 * h * w)
            .map(|i| f64::from((i % 7) as f32 / 8.0))
            .collect(),
        ..Array::zeros(h, w, 4)
    };
    let held = LossWeights {
        temporal_weight: 30.0,
        ..loss_weights(LossScale::Relative)
    };
    let mut evaluate = |target: Option<&Array>, loss_weights| {
        objective.set_temporal(target.map(Array::tensor)).unwrap();
        let gradient = image().tensor().zeros_like().unwrap();
        let losses = objective
            .evaluate(&image().tensor(), loss_weights, &gradient, &|| false)
            .unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (losses, gradient)
    };
    let (free, free_gradient) = evaluate(None, held);
    let (unweighted, _) = evaluate(Some(&target), loss_weights(LossScale::Relative));
    assert_eq!(unweighted, free);
    assert_eq!(free.temporal, 0.0);

    let (losses, gradient) = evaluate(Some(&target), held);
    let image = image();
    let count = image.values.len() as f64;
    let terms = image.values.iter().enumerate().map(|(i, value)| {
        let pixel = &target.values[4 * (i / 3)..];
        (pixel[3], value - pixel[i % 3])
    });
    let terms: Vec<(f64, f64)> = terms.collect();
    let expected = terms.iter().map(|(c, d)| c * d * d).sum::<f64>() / count;
    assert!((losses.temporal - expected).abs() < 1e-6 * expected);
    assert!((losses.total - free.total - 30.0 * expected).abs() < 1e-5 * losses.total);
    for ((gradient, free), (c, d)) in gradient.iter().zip(&free_gradient).zip(terms) {
        let expected = 30.0 * 2.0 * c * d / count;
        assert!((f64::from(gradient - free) - expected).abs() < 1e-6);
    }
}

/// A network whose features are all zero, which leaves `relative` nothing to divide by.
#[test]
fn dead_layers_give_finite_losses() {
    let mut network = Network::new();
    for kernel in &mut network.0 {
        kernel.weights.fill(0.0);
        kernel.bias.fill(-1.0);
    }
    for loss_scale in [LossScale::Relative, LossScale::Mean, LossScale::Paper] {
        let (content_layers, style_layers) = (layers(CONTENT), layers(STYLE));
        let mut objective = Objective::new(
            network.vgg(),
            SIZE,
            &content_layers,
            &style_layers,
            Pooling::Avg,
        )
        .unwrap();
        objective
            .set_content(&content().tensor(), &|| false)
            .unwrap();
        objective.set_style(&style().tensor(), &|| false).unwrap();
        let gradient = image().tensor();
        let losses = objective
            .evaluate(
                &image().tensor(),
                loss_weights(loss_scale),
                &gradient,
                &|| false,
            )
            .unwrap();
        assert_eq!((losses.content, losses.style), (0.0, 0.0));
        assert!(losses.total.is_finite());
        let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
    }
}

/// Each pass calls `cancel` before each of its layers, so the calls count the layers.
#[test]
fn no_layer_beyond_the_deepest_term_is_computed() {
    let vgg = Network::new().vgg();
    let (shallow, deep) = (layers("conv2_1"), layers("conv4_2"));
    let count = AtomicUsize::new(0);
    let cancel = || {
        count.fetch_add(1, Ordering::SeqCst);
        false
    };
    let calls = || count.swap(0, Ordering::SeqCst);
    for (content_layers, style_layers) in [(&shallow, &deep), (&deep, &shallow)] {
        let mut objective = Objective::new(
            vgg.clone(),
            SIZE,
            content_layers,
            style_layers,
            Pooling::Avg,
        )
        .unwrap();
        objective.set_style(&style().tensor(), &cancel).unwrap();
        assert_eq!(calls(), style_layers.deepest().index() + 1);
        objective.set_content(&content().tensor(), &cancel).unwrap();
        calls();
        let gradient = image().tensor();
        objective
            .evaluate(
                &image().tensor(),
                loss_weights(LossScale::Relative),
                &gradient,
                &cancel,
            )
            .unwrap();
        assert_eq!(calls(), 2 * (deep.deepest().index() + 1));
    }
}

#[test]
fn cancelling_ends_each_pass() {
    for last in 1..=32 {
        let count = AtomicUsize::new(0);
        let result = objective(Pooling::Avg).evaluate(
            &image().tensor(),
            loss_weights(LossScale::Relative),
            &image().tensor(),
            &|| count.fetch_add(1, Ordering::SeqCst) + 1 == last,
        );
        // 14 layers to conv5_2, forward and backward.
        let ended = last.min(28);
        assert_eq!(count.load(Ordering::SeqCst), ended);
        assert_eq!(matches!(result, Err(Error::Cancelled)), last <= 28);
    }
}

// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::ops::amx::Amx;
use crate::ops::reference::Array;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A kernel and a bias of 0.1, so that no activation is zero.
fn conv(inputs: usize) -> (Tensor, Tensor) {
    let full = |shape: &[usize]| Tensor::full(0.1f32, shape, &Device::Cpu).unwrap();
    (full(&[2, inputs, 3, 3]), full(&[2]))
}

/// A network of such convolutions.
fn vgg(layers: usize) -> Vgg {
    let convs = (0..layers).map(|i| conv(if i == 0 { 3 } else { 2 }));
    let weights = Weights::new(convs.collect(), Preprocessing::NONE);
    Vgg::new(&weights, &Device::Cpu).unwrap()
}

#[test]
fn weights_of_no_vgg_are_refused() {
    for layers in [0, LAYERS + 1] {
        let convs = vec![conv(3); layers];
        let weights = Weights::new(convs, Preprocessing::NONE);
        let error = Vgg::new(&weights, &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(&format!("not {layers}")), "{error}");
    }
}

fn image(value: f32) -> Tensor {
    Tensor::full(value, (17, 35, 3), &Device::Cpu).unwrap()
}

fn is_zero(tensor: &Tensor) -> bool {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.iter().all(|&value| value == 0.0)
}

/// Calls `compute` with a cancel callback that returns true at call number `last`; the number of
/// calls, and whether it was cancelled.
fn count_checks(last: usize, compute: impl FnOnce(Cancel) -> Result<(), Error>) -> (usize, bool) {
    let count = AtomicUsize::new(0);
    let result = compute(&|| count.fetch_add(1, Ordering::SeqCst) + 1 == last);
    let cancelled = matches!(result, Err(Error::Cancelled));
    assert!(cancelled || result.is_ok());
    (count.into_inner(), cancelled)
}

#[test]
fn names() {
    let names: Vec<String> = Layer::all().map(|layer| layer.to_string()).collect();
    assert_eq!(names.len(), LAYERS);
    assert_eq!(names[0], "conv1_1");
    assert_eq!(names[3], "conv2_2");
    assert_eq!(names[9], "conv4_2");
    assert_eq!(names[15], "conv5_4");
    for (layer, name) in Layer::all().zip(&names) {
        assert_eq!(name.parse::<Layer>().unwrap(), layer);
    }
    assert_eq!(Layer::new(1, 1), Layer::FIRST);
    assert_eq!(Layer::new(4, 2).to_string(), "conv4_2");
    for name in [
        "", "conv", "conv1_3", "conv5_5", "conv4_2 ", "relu1_1", "1_1",
    ] {
        let error = name.parse::<Layer>().unwrap_err().to_string();
        assert!(
            error.contains(&format!("‘{name}’")) && error.contains("conv5_4"),
            "{error}"
        );
    }
}

#[test]
fn each_block_sees_half_of_the_one_before() {
    let features = vgg(16).allocate_features(17, 35, Layer::new(5, 4)).unwrap();
    for layer in Layer::all() {
        let expected = [17 >> layer.pools_before(), 35 >> layer.pools_before(), 2];
        assert_eq!(features.layer(layer).dims(), expected, "{layer}");
    }
}

#[test]
fn forward_goes_no_further_than_asked() {
    let vgg = vgg(16);
    for deepest in Layer::all() {
        let features = vgg.allocate_features(17, 35, deepest).unwrap();
        assert_eq!(features.deepest(), deepest);
        assert_eq!(features.pooled.len(), deepest.pools_before());
        for asked_for in Layer::all().take_while(|&layer| layer <= deepest) {
            let features = vgg.allocate_features(17, 35, deepest).unwrap();
            let (count, cancelled) = count_checks(usize::MAX, |cancel| {
                vgg.forward(&image(0.5), Pooling::Avg, asked_for, &features, cancel)
            });
            assert_eq!((count, cancelled), (asked_for.index() + 1, false));
            for layer in Layer::all().take_while(|&layer| layer <= deepest) {
                assert_eq!(is_zero(features.layer(layer)), layer > asked_for, "{layer}");
            }
        }
    }
}

#[test]
fn forward_stops_before_the_next_layer() {
    let vgg = vgg(16);
    for last in 1..=LAYERS {
        let features = vgg.allocate_features(17, 35, Layer::new(5, 4)).unwrap();
        let (count, cancelled) = count_checks(last, |cancel| {
            vgg.forward(&image(0.5), Pooling::Max, vgg.deepest(), &features, cancel)
        });
        assert_eq!((count, cancelled), (last, true));
        for layer in Layer::all() {
            let untouched = layer.index() + 1 >= last;
            assert_eq!(
                is_zero(features.layer(layer)),
                untouched,
                "{layer} of {last}"
            );
        }
    }
}

/// A backward pass for a loss whose gradient is 1 with respect to each activation of `seeded`.
fn backward(vgg: &Vgg, seeded: &[Layer], gradient: &Tensor, cancel: Cancel) -> Result<(), Error> {
    let deepest = vgg.deepest();
    let features = vgg.allocate_features(17, 35, deepest)?;
    let gradients = vgg.allocate_gradients(17, 35, deepest)?;
    vgg.forward(&image(0.5), Pooling::Avg, deepest, &features, &|| false)?;
    let seed = |layer: Layer, gradient: &Tensor, accumulate: bool| {
        if seeded.contains(&layer) {
            let ones = gradient.ones_like()?;
            let sum = if accumulate { (gradient + ones)? } else { ones };
            gradient.slice_set(&sum, 0, 0)?;
        }
        Ok(seeded.contains(&layer))
    };
    vgg.backward(Pooling::Avg, &features, &gradients, seed, gradient, cancel)
}

#[test]
fn backward_starts_at_the_deepest_seeded_layer() {
    let vgg = vgg(16);
    for deepest in Layer::all() {
        let gradient = image(7.0);
        let seeded = [Layer::FIRST, deepest];
        let (count, cancelled) = count_checks(usize::MAX, |cancel| {
            backward(&vgg, &seeded, &gradient, cancel)
        });
        assert_eq!((count, cancelled), (deepest.index() + 1, false));
    }
}

#[test]
fn backward_stops_before_the_next_layer() {
    let vgg = vgg(16);
    for last in 1..=10 {
        let gradient = image(7.0);
        let (count, cancelled) = count_checks(last, |cancel| {
            backward(&vgg, &[Layer::new(4, 2)], &gradient, cancel)
        });
        assert_eq!((count, cancelled), (last, true));
        // The image's gradient comes last.
        assert_eq!(
            gradient.to_vec3::<f32>().unwrap(),
            image(7.0).to_vec3::<f32>().unwrap()
        );
    }
}

#[test]
fn without_a_loss_there_is_no_gradient() {
    let gradient = image(7.0);
    let (count, cancelled) = count_checks(1, |cancel| backward(&vgg(3), &[], &gradient, cancel));
    assert_eq!((count, cancelled), (0, false));
    assert!(is_zero(&gradient));
}

/// With He's initialisation (2015), activations keep the scale that they have in a trained network.
#[test]
fn bf16_keeps_the_gradients_direction() {
    if Amx::for_tests().is_none() {
        return;
    }
    let channels = [32, 32, 32, 32, 64, 64, 64, 64, 64];
    let random = |shape: &[usize], deviation: f32| {
        let values = Array::random(shape.iter().product(), 1, 1, shape[0] as u64).tensor();
        let values = values.affine(f64::from(deviation) * 3f64.sqrt(), 0.0);
        values.unwrap().reshape(shape).unwrap()
    };
    let convs = channels.into_iter().enumerate().map(|(index, outputs)| {
        let inputs = if index == 0 { 3 } else { channels[index - 1] };
        let deviation = (2.0 / (9 * inputs) as f32).sqrt();
        let kernel = random(&[outputs, inputs, 3, 3], deviation);
        (kernel, random(&[outputs], 0.1))
    });
    let weights = Weights::new(convs.collect(), Preprocessing::TORCHVISION);
    let picture = Array::random(20, 24, 3, 7).tensor();
    let picture = picture.affine(0.5, 0.5).unwrap();
    let gradient = |format: Format| -> Vec<f32> {
        let vgg = Vgg::build(weights.clone(), &Device::Cpu, format).unwrap();
        let deepest = vgg.deepest();
        let features = vgg.allocate_features(20, 24, deepest).unwrap();
        let gradients = vgg.allocate_gradients(20, 24, deepest).unwrap();
        let pooling = Pooling::Avg;
        vgg.forward(&picture, pooling, deepest, &features, &|| false)
            .unwrap();
        // The gradient of ½ Σ F² at the deepest layer and at one in between.
        let seed = |layer: Layer, gradient: &Tensor, accumulate: bool| {
            let seeded = [deepest, Layer::new(2, 1)].contains(&layer);
            if seeded {
                let own = features.layer(layer);
                let sum = if accumulate {
                    (gradient + own)?
                } else {
                    own.copy()?
                };
                gradient.slice_set(&sum, 0, 0)?;
            }
            Ok(seeded)
        };
        let gradient = picture.zeros_like().unwrap();
        vgg.backward(pooling, &features, &gradients, seed, &gradient, &|| false)
            .unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (exact, rounded) = (gradient(Format::F32), gradient(Format::Bf16));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b);
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = dot(&exact, &rounded) / (dot(&exact, &exact) * dot(&rounded, &rounded)).sqrt();
    println!("cosine {cosine}");
    assert!(exact != rounded && cosine > 0.999, "{cosine}");
}

#[test]
fn memory_is_as_predicted() {
    let vgg = vgg(16);
    for (h, w, deepest) in [(16, 16, 15), (37, 50, 9), (21, 16, 0)] {
        let deepest = Layer(deepest);
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let features = vgg.allocate_features(h, w, deepest).unwrap();
        let tensors = features.layers.iter().chain(&features.pooled);
        let all: usize = tensors.map(bytes).sum();
        assert_eq!(vgg.feature_bytes(h, w, deepest), all);
        assert_eq!(
            vgg.layer_bytes(h, w, deepest),
            bytes(features.layer(deepest))
        );
        // Gradients alternate between two buffers, each as large as the largest in it.
        let gradients = vgg.allocate_gradients(h, w, deepest).unwrap();
        let in_order = Layer::all().take(deepest.0 + 1).flat_map(|layer| {
            let pooled = layer
                .follows_pool()
                .then(|| &gradients.pooled[layer.pools_before() - 1]);
            pooled.into_iter().chain([gradients.layer(layer)])
        });
        let mut largest = [0; 2];
        for (index, tensor) in in_order.enumerate() {
            largest[index % 2] = largest[index % 2].max(bytes(tensor));
        }
        assert_eq!(
            vgg.gradient_bytes(h, w, deepest),
            largest.iter().sum::<usize>()
        );
    }
}

/// The sum of the gradients of two losses is the gradient of their sum.
#[test]
fn gradients_of_deeper_layers_are_added() {
    let vgg = vgg(16);
    let gradient = |seeded: &[Layer]| {
        let gradient = image(7.0);
        backward(&vgg, seeded, &gradient, &|| false).unwrap();
        gradient
    };
    for (shallow, deep) in [
        ((1, 1), (1, 2)),
        ((1, 2), (2, 1)),
        ((2, 2), (5, 4)),
        ((3, 1), (3, 3)),
    ] {
        let (shallow, deep) = (Layer::new(shallow.0, shallow.1), Layer::new(deep.0, deep.1));
        let both = gradient(&[shallow, deep]);
        let sum = (gradient(&[shallow]) + gradient(&[deep])).unwrap();
        let error = (both - &sum).unwrap().abs().unwrap().max_all().unwrap();
        let error = error.to_scalar::<f32>().unwrap();
        let largest = sum.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(
            error <= 1e-5 * largest,
            "{shallow} and {deep}: {error} of {largest}"
        );
    }
}

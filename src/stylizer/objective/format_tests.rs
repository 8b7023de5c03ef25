// SPDX-License-Identifier: MPL-2.0

//! The gradient in a GPU's formats, emulated by composed operations on the CPU.

#[path = "../../../tests/common/shared.rs"]
mod shared;

use super::*;
use crate::ops::elementwise::dot;
use crate::ops::{Format, with_composed_ops};
use crate::stylizer::config::Config;
use crate::stylizer::optimizer::{Budget, optimizer};
use crate::stylizer::resize::{fit, pad, resize};
use crate::vgg::weights::{Weights, WeightsSource};
use candle_core::Device;
use shared::{load, shared};
use std::ops::Range;
use std::path::Path;

/// Longest side of the pictures.
const SIDE: u32 = 128;

/// The columns of the style image and of the frame in the project's own picture, which shows the
/// style image, the frame and the result side by side.
const STYLE: Range<usize> = 0..288;
const FRAME: Range<usize> = 288..672;

/// A picture from the shared data beside the checkout, or, without that, some columns of the
/// project's own.
fn picture(name: &str, columns: Range<usize>) -> Tensor {
    let picture = match shared(name) {
        Some(path) => load(&path),
        None => load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sample.jpg"))
            .narrow(1, columns.start, columns.len())
            .unwrap()
            .contiguous()
            .unwrap(),
    };
    let (h, w, _) = picture.dims3().unwrap();
    pad(&resize(&picture, fit((h, w), Some(SIDE))).unwrap()).unwrap()
}

/// The objective for images of the shape of `content`.
fn without_targets(vgg: Vgg, content: &Tensor) -> Objective {
    let config = Config::default();
    let (h, w, _) = content.dims3().unwrap();
    let (content_layers, style_layers) = (&config.content_layers, &config.style_layers);
    let vgg = Arc::new(vgg);
    Objective::new(vgg, (h, w), content_layers, style_layers, config.pooling).unwrap()
}

fn objective(vgg: Vgg, content: &Tensor, style: &Tensor) -> Objective {
    let mut objective = without_targets(vgg, content);
    objective.set_content(content, &|| false).unwrap();
    objective.set_style(style, &|| false).unwrap();
    objective
}

fn gradient(objective: &mut Objective, image: &Tensor) -> (Losses, Tensor) {
    let loss_weights = LossWeights::from(&Config::default());
    let gradient = image.zeros_like().unwrap();
    let losses = objective
        .evaluate(image, loss_weights, &gradient, &|| false)
        .unwrap();
    (losses, gradient)
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    dot(a, b).unwrap() / (dot(a, a).unwrap() * dot(b, b).unwrap()).sqrt()
}

/// Weights so large that their activations overflow f16.
#[test]
fn activations_that_overflow_are_reported() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    let large = |(kernel, bias): &(Tensor, Tensor)| {
        let large = |tensor: &Tensor| (tensor * 30.0).unwrap();
        (large(kernel), large(bias))
    };
    let convs = weights.convs.iter().map(large).collect();
    let weights = Weights::new(convs, weights.preprocessing.clone());
    let image = picture("tubingen.jpg", FRAME);
    let error = with_composed_ops(|| {
        let vgg = Vgg::build(weights, &Device::Cpu, Format::F16).unwrap();
        let mut objective = without_targets(vgg, &image);
        objective.set_content(&image, &|| false).unwrap_err()
    });
    let error = error.to_string();
    let (start, end) = (
        "the activations of conv",
        "overflow f16; use precision=bf16 or f32",
    );
    assert!(error.starts_with(start) && error.ends_with(end), "{error}");
}

/// Where gradients were smaller before, they are scaled by more, and round otherwise.
#[test]
fn gradients_in_f16_are_reproducible_after_a_reset() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    let image = picture("tubingen.jpg", FRAME);
    with_composed_ops(|| {
        let vgg = Vgg::build(weights, &Device::Cpu, Format::F16).unwrap();
        let mut objective = objective(vgg, &image, &picture("starry_night.jpg", STYLE));
        let mut gradient_at = |reset: bool, part: f64| {
            if reset {
                objective.reset_gradient_scale();
            }
            let config = Config::default();
            let loss_weights = LossWeights::from(&Config {
                alpha: part * config.alpha,
                beta: part * config.beta,
                ..config
            });
            let gradient = image.zeros_like().unwrap();
            objective
                .evaluate(&image, loss_weights, &gradient, &|| false)
                .unwrap();
            gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let first = gradient_at(false, 1.0);
        gradient_at(false, 1.0 / 64.0);
        assert!(gradient_at(false, 1.0) != first);
        assert!(gradient_at(true, 1.0) == first);
    });
}

/// Kernels so large that activations overflow f32, or only their Gram matrices.
#[test]
fn damaged_weights_are_reported() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    let style = picture("starry_night.jpg", STYLE);
    for (damaged, factor, overflows) in [(1, 1e38, "conv1_2"), (2, 1e30, "conv2_1")] {
        let mut convs = weights.convs.clone();
        convs[damaged].0 = (&convs[damaged].0 * factor).unwrap();
        let weights = Weights::new(convs, weights.preprocessing.clone());
        let expected =
            format!("the activations of {overflows} overflow f32; the weights are damaged");
        let vgg = Vgg::new(&weights, style.device()).unwrap();
        let mut objective = without_targets(vgg, &style);
        let error = objective.set_style(&style, &|| false);
        assert_eq!(error.unwrap_err().to_string(), expected);
        let content = objective.set_content(&style, &|| false);
        // The content loss takes no Gram matrices.
        let error = content.map_err(|error| error.to_string());
        let overflows = damaged == 1;
        assert_eq!(error, overflows.then_some(expected).map_or(Ok(()), Err));
    }
}

/// At the frame itself, where the gradient is large, and after 20 iterations, where it is the
/// remainder of terms that nearly cancel.
#[test]
fn formats_keep_the_gradients_direction() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    let content = picture("tubingen.jpg", FRAME);
    let style = picture("starry_night.jpg", STYLE);
    let config = Config::default();
    let exact = Vgg::new(&weights, content.device()).unwrap();
    let mut exact = objective(exact, &content, &style);
    let later = content.copy().unwrap();
    let budget = Budget {
        iterations: 20,
        deadline: None,
    };
    let loss_weights = LossWeights::from(&config);
    optimizer(&later, &config)
        .unwrap()
        .minimize(&later, budget, &mut |image, gradient| {
            exact.evaluate(image, loss_weights, gradient, &|| false)
        })
        .unwrap();
    for (format, at_the_start, after, off) in [
        (Format::F32, 0.999_999, 0.999_9, 0.001),
        (Format::Tf32, 0.9998, 0.9998, 0.02),
        (Format::F16, 0.9998, 0.9998, 0.02),
        (Format::Bf16, 0.999, 0.998, 0.05),
    ] {
        let mut emulated = with_composed_ops(|| {
            let vgg = Vgg::build(weights.clone(), &Device::Cpu, format).unwrap();
            objective(vgg, &content, &style)
        });
        for (image, least) in [(&content, at_the_start), (&later, after)] {
            let (losses, expected) = gradient(&mut exact, image);
            let (rounded, actual) = with_composed_ops(|| gradient(&mut emulated, image));
            let cosine = cosine(&expected, &actual);
            let size = (dot(&actual, &actual).unwrap() / dot(&expected, &expected).unwrap()).sqrt();
            let loss = rounded.total / losses.total - 1.0;
            println!("{format:?}: cosine {cosine:.6}, size {size:.4}, loss {loss:+.1e}");
            assert!(cosine > least, "{format:?}: {cosine}");
            assert!(
                (size - 1.0).abs() < off && loss.abs() < 0.01,
                "{format:?}: {size} {loss}"
            );
        }
    }
}

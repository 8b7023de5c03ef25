// SPDX-License-Identifier: MPL-2.0

//! Compares the objective with values that `tests/golden/golden.py` computed with PyTorch in f64.

mod common;

use candle_core::{DType, Device, Tensor};
use common::{FULL, NARROW, random_weights};
use gstgatys::stylizer::config::{Config, LossScale};
use gstgatys::stylizer::objective::{LossWeights, Objective};
use gstgatys::vgg::{Pooling, Vgg};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

struct Golden {
    vgg: Arc<Vgg>,
    values: HashMap<String, Tensor>,
}

struct Case {
    name: &'static str,
    pooling: Pooling,
    loss_scale: LossScale,
}

impl Golden {
    fn new(file: &str, channels: &[usize]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(file);
        let values = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let weights = random_weights(channels);
        // The two random generators agree if the last bias of each layer does.
        let last = weights
            .convs
            .iter()
            .map(|(_, bias)| *bias.to_vec1::<f32>().unwrap().last().unwrap());
        assert_eq!(
            last.collect::<Vec<_>>(),
            values["weights.last"].to_vec1::<f32>().unwrap()
        );
        let vgg = Arc::new(Vgg::new(&weights, &Device::Cpu).unwrap());
        Self { vgg, values }
    }

    fn check(&self, case: Case) {
        let loss_weights = LossWeights {
            alpha: 1.0,
            beta: 100.0,
            tv_weight: 5.0,
            temporal_weight: 0.0,
            loss_scale: case.loss_scale,
        };
        self.check_with(case, &Config::default(), loss_weights);
    }

    fn check_with(
        &self,
        Case { name, pooling, .. }: Case,
        layers: &Config,
        loss_weights: LossWeights,
    ) {
        let image = &self.values["image"];
        let (h, w, _) = image.dims3().unwrap();
        let (content, style) = (&layers.content_layers, &layers.style_layers);
        let mut objective =
            Objective::new(self.vgg.clone(), (h, w), content, style, pooling).unwrap();
        objective
            .set_style(&self.values["style"], &|| false)
            .unwrap();
        objective
            .set_content(&self.values["content"], &|| false)
            .unwrap();
        let gradient = image.ones_like().unwrap();
        let losses = objective
            .evaluate(image, loss_weights, &gradient, &|| false)
            .unwrap();

        let expected = self.values[&format!("{name}.losses")]
            .to_vec1::<f64>()
            .unwrap();
        for (value, expected) in [losses.content, losses.style, losses.variation, losses.total]
            .iter()
            .zip(expected)
        {
            let error = (value - expected).abs() / expected;
            assert!(error < 1e-5, "{name}: {losses:?}, {error}");
        }
        let expected = &self.values[&format!("{name}.gradient")];
        let error = norm(&(&gradient - expected).unwrap()) / norm(expected);
        println!("{name}: gradient {error:.1e}");
        assert!(error < 1e-4, "{name}: gradient {error}");
    }
}

fn norm(tensor: &Tensor) -> f64 {
    let squares = tensor.to_dtype(DType::F64).unwrap().sqr().unwrap();
    squares
        .sum_all()
        .unwrap()
        .to_scalar::<f64>()
        .unwrap()
        .sqrt()
}

#[test]
fn narrow_network_with_both_poolings_and_all_scales() {
    let golden = Golden::new("narrow.safetensors", &NARROW);
    for (pooling, first) in [(Pooling::Avg, "avg"), (Pooling::Max, "max")] {
        let scales = [
            (LossScale::Relative, "relative"),
            (LossScale::Mean, "mean"),
            (LossScale::Paper, "paper"),
        ];
        for (loss_scale, second) in scales {
            let name = format!("{first}.{second}").leak();
            golden.check(Case {
                name,
                pooling,
                loss_scale,
            });
        }
    }
}

#[test]
fn narrow_network_with_other_layers_and_weights() {
    let golden = Golden::new("narrow.safetensors", &NARROW);
    let layers = Config {
        content_layers: "conv2_2:0.3,conv4_2:0.7,conv5_4:0.1".parse().unwrap(),
        style_layers: "conv1_2:0.5,conv3_3:0.25,conv5_3:0.25".parse().unwrap(),
        ..Config::default()
    };
    let loss_scale = LossScale::Relative;
    let loss_weights = LossWeights {
        alpha: 2.0,
        beta: 30.0,
        tv_weight: 0.0,
        temporal_weight: 0.0,
        loss_scale,
    };
    golden.check_with(
        Case {
            name: "layers",
            pooling: Pooling::Avg,
            loss_scale,
        },
        &layers,
        loss_weights,
    );
}

#[test]
fn full_width_network() {
    let golden = Golden::new("full.safetensors", &FULL);
    for (name, pooling, loss_scale) in [
        ("avg.relative", Pooling::Avg, LossScale::Relative),
        ("max.relative", Pooling::Max, LossScale::Relative),
        ("avg.paper", Pooling::Avg, LossScale::Paper),
    ] {
        golden.check(Case {
            name,
            pooling,
            loss_scale,
        });
    }
}

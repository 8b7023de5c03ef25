// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::vgg::weights::Weights;
use crate::vgg::weights::preprocessing::Preprocessing;
use candle_core::{DType, Device, Tensor};

fn parse(list: &str) -> Result<LayerWeights, LayersError> {
    list.parse()
}

/// A network of one channel that ends at conv5_1.
fn vgg() -> Vgg {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let conv = |inputs| (zeros(&[1, inputs, 3, 3]), zeros(&[1]));
    let convs = (0..13).map(|i| conv(if i == 0 { 3 } else { 1 }));
    let weights = Weights::new(convs.collect(), Preprocessing::NONE);
    Vgg::new(&weights, &Device::Cpu).unwrap()
}

#[test]
fn layers_without_weights_are_weighted_equally() {
    let layers = parse(" conv1_1, conv5_4 ").unwrap();
    let expected = [(Layer::new(1, 1), 0.5), (Layer::new(5, 4), 0.5)];
    assert_eq!(layers.iter().collect::<Vec<_>>(), expected);
    assert_eq!(layers.deepest(), Layer::new(5, 4));
}

#[test]
fn layers_in_any_order_and_with_weights() {
    let layers = parse("conv4_2 : 0.7,conv3_1:3e-1,conv2_2").unwrap();
    let expected = [
        (Layer::new(4, 2), 0.7),
        (Layer::new(3, 1), 0.3),
        (Layer::new(2, 2), 1.0 / 3.0),
    ];
    assert_eq!(layers.iter().collect::<Vec<_>>(), expected);
    assert_eq!(layers.deepest(), Layer::new(4, 2));
}

#[test]
fn formatted_layers_are_parsed_back() {
    for list in [
        "conv4_2",
        "conv4_2:0.25",
        "conv1_1,conv2_1,conv3_1",
        "conv1_1:0.1,conv2_1:0.30000000000000004,conv5_4:1e12",
        "conv1_1:1e-300,conv1_2",
    ] {
        let layers = parse(list).unwrap();
        assert_eq!(parse(&layers.to_string()).unwrap(), layers, "{list}");
    }
    let defaults = Config::default();
    assert_eq!(defaults.content_layers.to_string(), "conv4_2");
    assert_eq!(
        defaults.style_layers.to_string(),
        "conv1_1,conv2_1,conv3_1,conv4_1,conv5_1"
    );
    assert_eq!(
        parse("conv1_1,conv2_1,conv3_1,conv4_1,conv5_1").unwrap(),
        defaults.style_layers
    );
}

#[test]
fn malformed_lists_are_refused() {
    let message = |list: &str| parse(list).unwrap_err().to_string();
    for list in ["", " \t"] {
        assert!(matches!(parse(list), Err(LayersError::Empty)));
        assert!(message(list).contains("empty"));
    }
    for (list, name) in [
        (",", ""),
        ("conv4_2,", ""),
        ("relu4_2", "relu4_2"),
        ("conv4_3_1", "conv4_3_1"),
        ("Conv4_2", "Conv4_2"),
        ("conv6_1", "conv6_1"),
        ("conv1_1,conv0_1", "conv0_1"),
    ] {
        assert!(
            matches!(parse(list), Err(LayersError::Unknown(_))),
            "{list}"
        );
        let message = message(list);
        for part in [&format!("no layer ‘{name}’"), "conv1_1", "conv5_4"] {
            assert!(message.contains(part), "{message}");
        }
    }
    let twice = "conv1_1:0.5,conv2_1,conv1_1";
    assert!(matches!(parse(twice), Err(LayersError::Twice(layer)) if layer == Layer::FIRST));
    assert_eq!(message(twice), "conv1_1 is listed twice");
    for weight in [
        "-1", "0", "-0", "nan", "inf", "-inf", "1.1e12", "1e999", "", "1:1", "½", "much",
    ] {
        let message = message(&format!("conv4_2:{weight}"));
        let start = format!("‘{weight}’ is not a weight for conv4_2: ");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains("above 0"), "{message}");
    }
}

#[test]
fn the_defaults_are_valid() {
    Config::default().validate(&vgg()).unwrap();
}

#[test]
fn the_bounds_themselves_are_valid() {
    let config = Config {
        alpha: 0.0,
        beta: MAX_WEIGHT,
        tv_weight: 0.0,
        temporal_weight: MAX_WEIGHT,
        style_scale: f64::MIN_POSITIVE,
        learning_rate: f64::MIN_POSITIVE,
        noise: 1.0,
        iterations: 1,
        initial_iterations: 1,
        lbfgs_history: 1,
        frame_interval: 1,
        max_size: Some(1),
        ..Config::default()
    };
    config.validate(&vgg()).unwrap();
    let config = Config {
        alpha: 1.0,
        beta: 0.0,
        ..config
    };
    config.validate(&vgg()).unwrap();
}

#[test]
fn each_number_has_bounds() {
    type Set = fn(&mut Config, f64);
    let not_a_weight = &[-1e-9, 1.1e12];
    let not_in_unit = &[-1e-9, 1.0 + 1e-9];
    let doubles: [(&str, Set, &[f64]); 8] = [
        ("alpha", |config, value| config.alpha = value, not_a_weight),
        ("beta", |config, value| config.beta = value, not_a_weight),
        (
            "tv-weight",
            |config, value| config.tv_weight = value,
            not_a_weight,
        ),
        (
            "temporal-weight",
            |config, value| config.temporal_weight = value,
            not_a_weight,
        ),
        (
            "style-scale",
            |config, value| config.style_scale = value,
            &[0.0, -1.0],
        ),
        (
            "learning-rate",
            |config, value| config.learning_rate = value,
            &[0.0, -1.0],
        ),
        ("noise", |config, value| config.noise = value, not_in_unit),
        (
            "scene-cut",
            |config, value| config.scene_cut = value,
            not_in_unit,
        ),
    ];
    let vgg = vgg();
    let refused = |property: &str, set: Set, value: f64| {
        let mut config = Config::default();
        set(&mut config, value);
        let error = config.validate(&vgg).unwrap_err();
        assert!(
            matches!(error, ConfigError::Range { name, .. } if name == property),
            "{property}={value}: {error}"
        );
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("{property}={value}: ")),
            "{message}"
        );
    };
    for (property, set, values) in doubles {
        for &value in values {
            refused(property, set, value);
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(property, set, value);
        }
    }
    let counts: [(&str, Set); 4] = [
        ("iterations", |config, _| config.iterations = 0),
        ("initial-iterations", |config, _| {
            config.initial_iterations = 0
        }),
        ("lbfgs-history", |config, _| config.lbfgs_history = 0),
        ("frame-interval", |config, _| config.frame_interval = 0),
    ];
    for (property, set) in counts {
        refused(property, set, 0.0);
    }
}

#[test]
fn alpha_and_beta_are_not_both_zero() {
    let config = Config {
        alpha: 0.0,
        beta: 0.0,
        ..Config::default()
    };
    assert!(matches!(config.validate(&vgg()), Err(ConfigError::NoLoss)));
}

#[test]
fn layers_beyond_the_weights_are_refused() {
    for deep in ["conv5_2", "conv1_1,conv5_4"] {
        let config = Config {
            content_layers: parse(deep).unwrap(),
            ..Config::default()
        };
        let error = config.validate(&vgg()).unwrap_err().to_string();
        assert!(error.starts_with("content-layers: conv5_"), "{error}");
        assert!(error.ends_with("end at conv5_1"), "{error}");
        let config = Config {
            style_layers: parse(deep).unwrap(),
            ..Config::default()
        };
        let error = config.validate(&vgg()).unwrap_err().to_string();
        assert!(error.starts_with("style-layers: conv5_"), "{error}");
    }
}

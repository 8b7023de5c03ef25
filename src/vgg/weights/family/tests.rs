// SPDX-License-Identifier: MPL-2.0

use super::super::archive::Entry;
use super::*;
use candle_core::Device;
use std::collections::HashMap;

fn archive(shapes: impl IntoIterator<Item = (String, Vec<usize>)>) -> Archive<'static> {
    let entries = shapes.into_iter().map(|(name, shape)| {
        let zeros = shape.clone();
        let read = move || {
            Tensor::zeros(&zeros[..], candle_core::DType::F32, &Device::Cpu)
                .map_err(|error| error.to_string())
        };
        (name, Entry::new(shape, read))
    });
    Archive {
        entries: entries.collect(),
        metadata: HashMap::new(),
    }
}

/// Kernels `{module}.weight` and biases `{module}.bias`.
fn convs(modules: impl IntoIterator<Item = String>) -> Vec<(String, Vec<usize>)> {
    let tensors = modules.into_iter().flat_map(|module| {
        [
            (format!("{module}.weight"), vec![4, 4, 3, 3]),
            (format!("{module}.bias"), vec![4]),
        ]
    });
    tensors.collect()
}

fn located(shapes: Vec<(String, Vec<usize>)>) -> Result<Located, Error> {
    Located::new(&archive(shapes))
}

#[test]
fn numbers_of_the_families() {
    let torchvision = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34];
    assert_eq!(numbering(&BLOCKS, 0, 2), torchvision);
    let with_norms = [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49];
    assert_eq!(numbering(&BLOCKS, 0, 3), with_norms);
    let adain = [2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51];
    assert_eq!(numbering(&BLOCKS, 2, 3), adain);
}

#[test]
fn layers_in_names() {
    for (name, expected) in [
        ("conv1_1.weight", Some((1, 1))),
        ("conv4_2_W", Some((4, 2))),
        ("vgg_19/conv3/conv3_4/weights", Some((3, 4))),
        ("model.conv5_4.bias", Some((5, 4))),
        ("conv1_10.weight", None),
        ("conv11_1.weight", None),
        ("deconv1_1.weight", None),
        ("conv1.weight", None),
        ("conv", None),
    ] {
        assert_eq!(place(name, "conv", "_"), expected, "{name}");
    }
    let keras = "block4_conv2/block4_conv2_W_1:0";
    assert_eq!(place(keras, "block", "_conv"), Some((4, 2)));
    assert_eq!(place(keras, "conv", "_"), None);
}

#[test]
fn wherever_the_sequence_is() {
    for sequence in ["features.", "", "module.features.", "state_dict.model.vgg."] {
        let numbers = numbering(&BLOCKS, 0, 2);
        let modules = numbers.iter().map(|n| format!("{sequence}{n}"));
        let mut shapes = convs(modules);
        shapes.extend(convs(["decoder.0".into(), "decoder.2".into()]));
        let located = located(shapes).unwrap();
        assert_eq!(located.family, Family::Torchvision);
        assert_eq!(located.layers.len(), 16);
        assert_eq!(located.layers[1].bias, format!("{sequence}2.bias"));
    }
}

#[test]
fn other_networks() {
    for (name, blocks) in OTHERS {
        for (first, modules) in [(0, 2), (0, 3)] {
            let numbers = numbering(&blocks, first, modules);
            let mut shapes = convs(numbers.iter().map(|n| format!("features.{n}")));
            if modules == 3 {
                shapes.push(("features.1.running_mean".into(), vec![4]));
            }
            let error = located(shapes).err().unwrap();
            assert!(matches!(error, Error::OtherNetwork(other) if other == name));
        }
        let blocks = blocks.iter().enumerate();
        let places = blocks.flat_map(|(b, &convs)| (1..=convs).map(move |c| (b + 1, c)));
        let error = located(convs(places.map(|(b, c)| format!("conv{b}_{c}"))));
        let error = error.err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn layers_that_are_missing() {
    let without = |missing: usize| {
        let numbers = numbering(&BLOCKS, 0, 2).into_iter();
        let numbers = numbers.filter(move |&n| n != missing);
        convs(numbers.map(|n| format!("features.{n}")))
    };
    let error = located(without(21)).err().unwrap();
    assert!(matches!(error, Error::Gap(_, layer) if layer == Layer::new(4, 2)));
    let error = located(without(0)).err().unwrap();
    assert!(matches!(error, Error::Gap(_, Layer::FIRST)));
    // As far as it goes.
    assert_eq!(located(without(34)).unwrap().layers.len(), 15);

    for shapes in [
        vec![],
        vec![("features.0.weight".into(), vec![4, 4])],
        convs(["layer1.0.conv1".into(), "layer1.0.conv2".into()]),
        convs((0..40).map(|n| format!("features.{n}"))),
    ] {
        assert!(matches!(located(shapes), Err(Error::NoNetwork)));
    }
    let mut shapes = convs(["conv1_1".into(), "conv1_2".into()]);
    shapes.pop();
    let error = located(shapes).err().unwrap();
    assert!(matches!(error, Error::NoBias(layer) if layer == Layer::new(1, 2)));
    let twice = convs(["a.conv1_1".into(), "b.conv1_1".into()]);
    assert!(matches!(located(twice), Err(Error::Twice(..))));
}

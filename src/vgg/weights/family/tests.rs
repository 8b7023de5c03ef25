// SPDX-License-Identifier: MPL-2.0

use super::super::archive::Entry;
use super::*;
use candle_core::Device;
use std::collections::HashMap;

const NOT_VGG_19: &str = "not the weights of a VGG-19";

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

/// The shapes of kernels `{module}.weight` and biases `{module}.bias`.
fn convs(modules: impl IntoIterator<Item = String>) -> Vec<(String, Vec<usize>)> {
    let tensors = modules.into_iter().flat_map(|module| {
        [
            (format!("{module}.weight"), vec![4, 4, 3, 3]),
            (format!("{module}.bias"), vec![4]),
        ]
    });
    tensors.collect()
}

fn find(shapes: Vec<(String, Vec<usize>)>) -> Result<NetworkLayout, Error> {
    NetworkLayout::find(&archive(shapes))
}

#[test]
fn numbers_of_the_families() {
    let torchvision = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34];
    assert_eq!(module_numbers(&BLOCKS, 0, 2), torchvision);
    let with_norms = [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49];
    assert_eq!(module_numbers(&BLOCKS, 0, 3), with_norms);
    let adain = [2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51];
    assert_eq!(module_numbers(&BLOCKS, 2, 3), adain);
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
        let found = find_layer(name, "conv", "_").map(|(_, position)| position);
        assert_eq!(found, expected, "{name}");
    }
    let keras = "block4_conv2/block4_conv2_W_1:0";
    assert_eq!(find_layer(keras, "block", "_conv"), Some((0, (4, 2))));
    assert_eq!(find_layer(keras, "conv", "_"), None);
}

#[test]
fn wherever_the_sequence_is() {
    for sequence in ["features.", "", "module.features.", "state_dict.model.vgg."] {
        let numbers = module_numbers(&BLOCKS, 0, 2);
        let modules = numbers.iter().map(|n| format!("{sequence}{n}"));
        let mut shapes = convs(modules);
        shapes.extend(convs(["decoder.0".into(), "decoder.2".into()]));
        let layout = find(shapes).unwrap();
        assert_eq!(layout.family, Family::Torchvision);
        assert_eq!(layout.layers.len(), 16);
        assert_eq!(layout.layers[1].bias, format!("{sequence}2.bias"));
    }
}

#[test]
fn other_networks() {
    for (name, blocks) in OTHER_VGGS {
        for (first, modules) in [(0, 2), (0, 3)] {
            let numbers = module_numbers(&blocks, first, modules);
            let mut shapes = convs(numbers.iter().map(|n| format!("features.{n}")));
            if modules == 3 {
                shapes.push(("features.1.running_mean".into(), vec![4]));
            }
            let error = find(shapes).err().unwrap();
            assert!(matches!(error, Error::OtherNetwork(other) if other == name));
        }
        let blocks = blocks.iter().enumerate();
        let positions = blocks.flat_map(|(b, &convs)| (1..=convs).map(move |c| (b + 1, c)));
        let error = find(convs(positions.map(|(b, c)| format!("conv{b}_{c}"))));
        let error = error.err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn layers_that_are_missing() {
    let without = |missing: usize| {
        let numbers = module_numbers(&BLOCKS, 0, 2).into_iter();
        let numbers = numbers.filter(move |&n| n != missing);
        convs(numbers.map(|n| format!("features.{n}")))
    };
    let error = find(without(21)).err().unwrap();
    assert!(matches!(error, Error::Gap(_, layer) if layer == Layer::new(4, 2)));
    let message = error.to_string();
    for part in ["conv4_3", "conv4_2", NOT_VGG_19] {
        assert!(message.contains(part), "{message}");
    }
    let error = find(without(0)).err().unwrap();
    assert!(matches!(error, Error::Gap(_, Layer::FIRST)));
    assert!(error.to_string().contains(NOT_VGG_19), "{error}");
    let names = Layer::all().map(|layer| layer.to_string());
    let headless = convs(names.filter(|name| name != "conv1_1"));
    let error = find(headless).err().unwrap();
    assert!(matches!(error, Error::Gap(_, Layer::FIRST)));
    // Missing at the end, it is only a shorter network.
    assert_eq!(find(without(34)).unwrap().layers.len(), 15);

    for shapes in [
        vec![],
        vec![("features.0.weight".into(), vec![4, 4])],
        convs(["layer1.0.conv1".into(), "layer1.0.conv2".into()]),
        convs((0..40).map(|n| format!("features.{n}"))),
    ] {
        let error = find(shapes).err().unwrap();
        assert!(matches!(error, Error::NoNetwork), "{error}");
        assert!(
            error.to_string().contains("with a VGG-19's names"),
            "{error}"
        );
    }
    let mut shapes = convs(["conv1_1".into(), "conv1_2".into()]);
    shapes.pop();
    let error = find(shapes).err().unwrap();
    assert!(matches!(error, Error::NoBias(layer) if layer == Layer::new(1, 2)));
    let message = error.to_string();
    assert!(message.contains("conv1_2 has no bias"), "{message}");
    assert!(message.contains(NOT_VGG_19), "{message}");
    let twice = convs(["conv1_1".into(), "conv1_1.copy".into()]);
    assert!(matches!(find(twice), Err(Error::Twice(..))));
    // AdaIN's leading 1x1 convolution alone.
    let mut shapes = convs(["0".into()]);
    shapes[0].1 = vec![3, 3, 1, 1];
    assert!(matches!(find(shapes), Err(Error::NoNetwork)));
}

/// Of several networks in a file, the one with the most layers is found.
#[test]
fn a_network_among_others() {
    let numbers = module_numbers(&BLOCKS, 0, 2).into_iter();
    let mut shapes = convs(numbers.map(|n| format!("vgg.features.{n}")));
    shapes.extend(convs(["decoder.conv1_1".into(), "decoder.conv1_2".into()]));
    let found = find(shapes).unwrap();
    assert_eq!(
        (found.family, found.layers.len()),
        (Family::Torchvision, 16)
    );

    let layers = |prefix: &str, count| {
        let names = Layer::all().take(count);
        convs(names.map(|layer| format!("{prefix}{layer}")))
    };
    let shapes = [layers("ema.", 5), layers("", 16), layers("optimizer.", 5)].concat();
    let found = find(shapes).unwrap();
    assert_eq!(found.layers[0].kernel, "conv1_1.weight");

    let slim = Layer::all().flat_map(|layer| {
        let module = format!("vgg_19/conv{}/{layer}", layer.pools_before() + 1);
        [
            (format!("{module}/weights"), vec![3, 3, 4, 4]),
            (format!("{module}/biases"), vec![4]),
        ]
    });
    assert_eq!(find(slim.collect()).unwrap().layers.len(), 16);
}

/// Networks with torchvision's module numbers.
#[test]
fn caffe_or_torchvision() {
    let network = |row: [f32; 3], positive: usize, classifier: &str| {
        let kernel: Vec<f32> = row.into_iter().chain([0.1; 64 * 27 - 3]).collect();
        let biases = (0..64).map(|i| if i < positive { 0.2 } else { -0.2 });
        let tensors = [
            (
                "features.0.weight",
                Tensor::from_vec(kernel, (64, 3, 3, 3), &Device::Cpu),
            ),
            (
                "features.0.bias",
                Tensor::from_iter(biases.map(|b: f64| b as f32), &Device::Cpu),
            ),
            (classifier, Tensor::from_vec(vec![0f32], 1, &Device::Cpu)),
        ];
        let entries = tensors.into_iter().map(|(name, tensor)| {
            let tensor = tensor.unwrap();
            let shape = tensor.dims().to_vec();
            (
                name.to_owned(),
                Entry::new(shape, move || Ok(tensor.clone())),
            )
        });
        let metadata = HashMap::new();
        let entries = entries.collect();
        NetworkLayout::find(&Archive { entries, metadata })
            .unwrap()
            .family
    };
    let other = [0.3, 0.2, 0.1];
    assert_eq!(network(other, 63, "classifier.0.weight"), Family::Caffe);
    assert_eq!(network(other, 32, "classifier.1.weight"), Family::Caffe);
    assert_eq!(
        network(other, 32, "classifier.0.weight"),
        Family::Torchvision
    );
    let own = TORCHVISION_KERNEL;
    assert_eq!(network(own, 63, "classifier.1.weight"), Family::Torchvision);
}

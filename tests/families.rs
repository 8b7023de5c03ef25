// SPDX-License-Identifier: MPL-2.0

//! Weights files of every supported family, made by `families/make.py` with each family's own writer, are recognised, and
//! give the same features as in PyTorch.

mod common;

use candle_core::{DType, Device, Tensor};
use common::files::{run, stored, values};
use common::{NARROW, random_weights};
use gstgatys::vgg::weights::{Error, Weights, WeightsSource};
use gstgatys::vgg::{Layer, Pooling, Vgg};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const TORCHVISION: &str = "RGB 0..1, mean 0.485 0.456 0.406, deviation 0.229 0.224 0.225";
const CAFFE: &str = "BGR 0..255, mean 103.939 116.779 123.68, deviation 1 1 1";

fn family_file(name: &str) -> PathBuf {
    stored("families").join(name)
}

fn load(path: &Path) -> Result<Weights, Error> {
    Weights::load(&WeightsSource::File(path.into()))
}

fn read_tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(family_file(name), &Device::Cpu).unwrap()
}

fn relative_error(values: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(values.len(), expected.len());
    let square = |value: f64| value * value;
    let pairs = values.iter().zip(expected);
    let error: f64 = pairs
        .map(|(&v, &e)| square(f64::from(v) - f64::from(e)))
        .sum();
    let size: f64 = expected.iter().map(|&e| square(f64::from(e))).sum();
    (error / size).sqrt()
}

/// Asserts that every layer's features are those that PyTorch computed for a family.
fn assert_features(weights: &Weights, family: &str, tolerance: f64) {
    let expected = read_tensors(&format!("{family}.features.safetensors"));
    let image = &read_tensors("image.safetensors")["image"];
    let vgg = Vgg::new(weights, &Device::Cpu).unwrap();
    assert_eq!(vgg.deepest(), Layer::new(5, 4));
    let (h, w, _) = image.dims3().unwrap();
    let features = vgg.allocate_features(h, w, vgg.deepest()).unwrap();
    vgg.forward(image, Pooling::Avg, vgg.deepest(), &features, &|| false)
        .unwrap();
    for layer in Layer::all() {
        let (found, expected) = (features.layer(layer), &expected[&layer.to_string()]);
        assert_eq!(found.dims(), expected.dims());
        let error = relative_error(&values(found), &values(expected));
        assert!(error < tolerance, "{family}, {layer}: {error}");
    }
}

#[test]
fn every_family_gives_pytorch_features() {
    for (name, family, preprocessing, features) in [
        ("torchvision.pth", "torchvision", TORCHVISION, "torchvision"),
        (
            "torchvision-legacy.pth",
            "torchvision",
            TORCHVISION,
            "torchvision",
        ),
        (
            "torchvision-2017.pth",
            "torchvision",
            TORCHVISION,
            "torchvision",
        ),
        (
            "torchvision-last.pth",
            "torchvision",
            TORCHVISION,
            "torchvision",
        ),
        (
            "torchvision.safetensors",
            "torchvision",
            TORCHVISION,
            "torchvision",
        ),
        (
            "torchvision-bn.pth",
            "torchvision-bn",
            TORCHVISION,
            "torchvision-bn",
        ),
        ("gatys.pth", "caffe", CAFFE, "caffe"),
        ("caffe.pth", "caffe", CAFFE, "caffe"),
        (
            "adain.pth",
            "adain",
            "RGB 0..1, mean 0 0 0, deviation 1 1 1",
            "adain",
        ),
        ("keras.h5", "keras", CAFFE, "caffe"),
        ("keras-theano.h5", "keras", CAFFE, "caffe"),
        ("layers.npz", "caffe", CAFFE, "caffe"),
    ] {
        let weights = load(&family_file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(weights.family.to_string(), family, "{name}");
        assert_eq!(weights.preprocessing.to_string(), preprocessing, "{name}");
        assert_features(&weights, features, 1e-5);
    }
}

#[test]
fn a_checkpoint_in_f16_with_fewer_layers() {
    let half = load(&family_file("torchvision-f16.pth")).unwrap();
    let whole = load(&family_file("torchvision.pth")).unwrap();
    assert_eq!((half.convs.len(), whole.convs.len()), (4, 16));
    assert_eq!(half.deepest(), Layer::new(2, 2));
    for ((half_kernel, half_bias), (kernel, bias)) in half.convs.iter().zip(&whole.convs) {
        for (half, whole) in [(half_kernel, kernel), (half_bias, bias)] {
            assert_eq!(half.dtype(), DType::F32);
            assert_eq!(half.dims(), whole.dims());
            // f16 has 11 significant bits.
            assert!(relative_error(&values(half), &values(whole)) < 1.0 / 2048.0);
        }
    }
}

/// `weights-info` says what the element has loaded.
#[cfg(feature = "plugin")]
#[test]
fn what_was_recognised_can_be_read() {
    use gst::prelude::*;
    let files = common::Files::new();
    let element = common::painter::element(&files);
    let info = || element.property::<Option<gst::Structure>>("weights-info");
    assert!(info().is_none());
    for (name, family, layers, preprocessing) in [
        ("gatys.pth", "caffe", "conv1_1 to conv5_4", CAFFE),
        (
            "torchvision.safetensors",
            "torchvision",
            "conv1_1 to conv5_4",
            TORCHVISION,
        ),
    ] {
        element.set_property("weights", family_file(name).to_str().unwrap());
        element.set_state(gst::State::Paused).unwrap();
        let info = info().unwrap();
        for (field, expected) in [
            ("family", family),
            ("layers", layers),
            ("preprocessing", preprocessing),
        ] {
            assert_eq!(info.get::<&str>(field).unwrap(), expected);
        }
        element.set_state(gst::State::Null).unwrap();
    }
}

/// Kernels are rotated in Keras' own files alone, not in those that have PyTorch's names for tensors, too.
#[test]
fn layers_may_have_keras_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("renamed.safetensors");
    let named = |name: fn(&Layer) -> String| {
        let mut tensors = HashMap::new();
        for (layer, (kernel, bias)) in Layer::all().zip(random_weights(&NARROW).convs) {
            tensors.insert(format!("{}.weight", name(&layer)), kernel);
            tensors.insert(format!("{}.bias", name(&layer)), bias);
        }
        candle_core::safetensors::save(&tensors, &path).unwrap();
        load(&path).unwrap().convs
    };
    let expected = named(Layer::to_string);
    let renamed = named(|layer| {
        layer
            .to_string()
            .replace("conv", "block")
            .replace('_', "_conv")
    });
    for ((kernel, _), (expected, _)) in renamed.iter().zip(&expected) {
        assert_eq!(values(kernel), values(expected));
    }
}

/// The name of a file does not matter.
#[test]
fn a_file_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["keras.h5", "torchvision.pth", "layers.npz"] {
        let path = folder.path().join("weights.safetensors");
        std::fs::copy(family_file(name), &path).unwrap();
        load(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_compact_form_is_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("compact.safetensors");
    for (name, family) in [
        ("torchvision-bn.pth", "torchvision-bn"),
        ("gatys.pth", "caffe"),
        ("adain.pth", "adain"),
    ] {
        let weights = load(&family_file(name)).unwrap();
        weights.save(&path).unwrap();
        let compact = load(&path).unwrap();
        assert_eq!(compact.family.to_string(), family);
        assert_eq!(compact.preprocessing, weights.preprocessing);
        // 11 significant bits in each of 16 layers.
        assert_features(&compact, family, 1e-2);
    }
}

/// The Python interpreter with the packages that `tests/run.sh` installs.
fn python() -> Command {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python3");
    assert!(
        python.exists(),
        "{}: tests/run.sh makes it",
        python.display()
    );
    Command::new(python)
}

/// For formats that are not read, the error names the converter, whose result is read.
#[test]
fn what_has_to_be_converted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("converted.safetensors");
    let converter = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/convert.py");
    for (name, preprocessing, features) in [
        ("layers.npy", CAFFE, "caffe"),
        (
            "matconvnet.mat",
            "RGB 0..255, mean 123.68 116.779 103.939, deviation 1 1 1",
            "matconvnet",
        ),
    ] {
        let error = load(&family_file(name)).unwrap_err().to_string();
        assert!(error.contains("weights/convert.py"), "{name}: {error}");
        run(python().arg(&converter).args([&family_file(name), &path])).assert_succeeded(name);
        let weights = load(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(weights.preprocessing.to_string(), preprocessing, "{name}");
        assert_features(&weights, features, 1e-5);
    }
}

#[test]
fn what_cannot_be_converted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("converted.safetensors");
    let converter = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/convert.py");
    let bad = folder.path().join("bad");
    // A pickle that calls os.system, as a NumPy array of one object.
    let evil = folder.path().join("evil.npy");
    let ran = folder.path().join("ran");
    let header = "{'descr': '|O', 'fortran_order': False, 'shape': (), }\n";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(format!("cos\nsystem\n(S'touch {}'\ntR.", ran.display()).as_bytes());
    std::fs::write(&evil, bytes).unwrap();
    let mat = std::fs::read(family_file("matconvnet.mat")).unwrap();
    std::fs::write(&bad, &mat[..mat.len() / 2]).unwrap();
    for path in [
        evil,
        bad,
        folder.path().join("missing"),
        family_file("make.py"),
    ] {
        let ended = run(python().arg(&converter).args([&path, &out]));
        ended.assert_refused(&path.display().to_string());
        assert!(ended.stderr.contains(path.to_str().unwrap()), "{ended}");
        assert!(!ended.stderr.contains("Traceback"), "{ended}");
        assert!(!out.exists());
    }
    assert!(!ran.exists());
}

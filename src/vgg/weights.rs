// SPDX-License-Identifier: MPL-2.0

//! Where the network's weights come from: the file formats, and what can be wrong with a file.

use super::{LAYERS, Layer, pth};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The weights that the library carries: conv1_1 to conv5_1 in f16, trained on procedurally
/// generated images.
const BUILT_IN: &[u8] = include_bytes!("../../weights/vgg19-procedural.safetensors");

/// Mean and standard deviation of ImageNet's channels, which torchvision's networks expect.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// How torchvision numbers the convolutions of a VGG-19: `features.0` is conv1_1.
const TORCHVISION: [usize; LAYERS] = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34];

/// A weights file is no larger than this: VGG-19 with its classifier is 575 MB in f32.
const MAX_FILE: u64 = 2 << 30;

/// A place that weights are read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// Those in the library.
    #[default]
    BuiltIn,
    /// A safetensors file, or a PyTorch file as `torch.save` writes it.
    File(PathBuf),
}

/// The convolutions' kernels `[out, in, 3, 3]` and biases `[out]` from conv1_1 on, in f32 on the
/// CPU, and how an image is prepared for them.
#[derive(Debug)]
pub struct Weights {
    pub convs: Vec<(Tensor, Tensor)>,
    /// Mean of each channel, RGB 0..1.
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
}

/// What is wrong with a weights file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it is larger than any VGG-19 file ({0} bytes)")]
    TooLarge(u64),
    #[error(
        "it is neither a safetensors file nor a PyTorch file that can be read, or it is cut short ({0})"
    )]
    Format(String),
    #[error("it has no {0} ({1}), so these are not the weights of a VGG-19")]
    Missing(Layer, String),
    #[error("it has {0} but not {1} before it, so these are not the weights of a VGG-19")]
    Gap(Layer, Layer),
    #[error("the {what} of {layer} has the shape {found:?} where a VGG-19 has {expected}")]
    Shape {
        layer: Layer,
        what: &'static str,
        found: Vec<usize>,
        expected: String,
    },
    #[error("{0} has values that are not finite numbers")]
    NotFinite(Layer),
    #[error("its metadata give {key} as ‘{value}’, where {expected}")]
    Metadata {
        key: &'static str,
        value: String,
        expected: &'static str,
    },
}

type Tensors = HashMap<String, Tensor>;
type Metadata = HashMap<String, String>;

impl Weights {
    /// Reads and checks weights.
    pub fn load(source: &Source) -> Result<Self, Error> {
        match source {
            Source::BuiltIn => Self::from_safetensors(BUILT_IN),
            Source::File(path) => Self::from_file(path),
        }
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let (mut file, len) = open(path)?;
        if len > MAX_FILE {
            return Err(Error::TooLarge(len));
        }
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        if data.is_empty() {
            Err(Error::Empty)
        } else if pth::is_pytorch(&data) {
            let tensors = pth::tensors(&data, is_wanted).map_err(Error::Format)?;
            Self::new(&tensors, &Metadata::new())
        } else {
            Self::from_safetensors(&data)
        }
    }

    fn from_safetensors(data: &[u8]) -> Result<Self, Error> {
        let format = |error: safetensors::SafeTensorError| Error::Format(error.to_string());
        let (_, header) = SafeTensors::read_metadata(data).map_err(format)?;
        let tensors =
            candle_core::safetensors::load_buffer(data, &Device::Cpu).map_err(unreadable)?;
        Self::new(
            &tensors,
            header.metadata().as_ref().unwrap_or(&Metadata::new()),
        )
    }

    /// Finds the convolutions among `tensors` and checks that they are a VGG-19's.
    fn new(tensors: &Tensors, metadata: &Metadata) -> Result<Self, Error> {
        let mut convs = Vec::new();
        let mut missing: Option<Layer> = None;
        let mut channels = 3;
        for layer in Layer::all() {
            let Some(kernel) = find(tensors, layer, "weight") else {
                missing.get_or_insert(layer);
                continue;
            };
            if let Some(missing) = missing {
                return Err(Error::Gap(layer, missing));
            }
            let bias = find(tensors, layer, "bias")
                .ok_or_else(|| Error::Missing(layer, format!("the bias {layer}.bias")))?;
            let conv = checked(layer, kernel, bias, channels)?;
            channels = conv.1.elem_count();
            convs.push(conv);
        }
        if convs.is_empty() {
            let first = Layer(0);
            return Err(Error::Missing(
                first,
                format!("{first}.weight or features.0.weight"),
            ));
        }
        expect_metadata(metadata, "channels", "RGB", "RGB is what can be read")?;
        expect_metadata(metadata, "range", "0..1", "0..1 is what can be read")?;
        Ok(Self {
            convs,
            mean: per_channel(metadata, "mean", IMAGENET_MEAN, |_| true)?,
            std: per_channel(metadata, "std", IMAGENET_STD, |value| value > 0.0)?,
        })
    }
}

/// Opens a regular file and gives its length; anything else may never end, or never begin.
pub fn open(path: &Path) -> io::Result<(File, u64)> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a directory",
        ))
    } else if !metadata.is_file() {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ))
    } else {
        Ok((File::open(path)?, metadata.len()))
    }
}

fn unreadable(error: candle_core::Error) -> Error {
    Error::Format(error.to_string())
}

/// The names that a layer's tensor has, here and in torchvision's files.
fn names(layer: Layer, what: &str) -> [String; 2] {
    [
        format!("{layer}.{what}"),
        format!("features.{}.{what}", TORCHVISION[layer.index()]),
    ]
}

/// Whether a tensor of this name is one that a VGG-19 may use.
fn is_wanted(name: &str) -> bool {
    Layer::all().any(|layer| {
        ["weight", "bias"]
            .iter()
            .any(|what| names(layer, what).iter().any(|wanted| wanted == name))
    })
}

fn find<'a>(tensors: &'a Tensors, layer: Layer, what: &str) -> Option<&'a Tensor> {
    names(layer, what).iter().find_map(|name| tensors.get(name))
}

/// A layer's kernel and bias in f32, if they are a 3x3 convolution of so many channels.
fn checked(
    layer: Layer,
    kernel: &Tensor,
    bias: &Tensor,
    channels: usize,
) -> Result<(Tensor, Tensor), Error> {
    let shape = |what, tensor: &Tensor, expected: String| Error::Shape {
        layer,
        what,
        found: tensor.dims().to_vec(),
        expected,
    };
    let &[out, inputs, 3, 3] = kernel.dims() else {
        return Err(shape(
            "kernel",
            kernel,
            format!("[channels, {channels}, 3, 3]"),
        ));
    };
    if inputs != channels || out == 0 {
        return Err(shape(
            "kernel",
            kernel,
            format!("[channels, {channels}, 3, 3]"),
        ));
    }
    if bias.dims() != [out] {
        return Err(shape("bias", bias, format!("[{out}]")));
    }
    let finite = |tensor: &Tensor| -> Result<Tensor, Error> {
        let tensor = tensor
            .to_dtype(DType::F32)
            .and_then(|t| t.contiguous())
            .map_err(unreadable)?;
        let values = tensor
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(unreadable)?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(tensor),
            false => Err(Error::NotFinite(layer)),
        }
    };
    Ok((finite(kernel)?, finite(bias)?))
}

fn expect_metadata(
    metadata: &Metadata,
    key: &'static str,
    wanted: &str,
    expected: &'static str,
) -> Result<(), Error> {
    match metadata.get(key) {
        Some(value) if value != wanted => Err(Error::Metadata {
            key,
            value: value.clone(),
            expected,
        }),
        _ => Ok(()),
    }
}

/// Three numbers of the metadata, or `default` where there are none.
fn per_channel(
    metadata: &Metadata,
    key: &'static str,
    default: [f64; 3],
    valid: impl Fn(f64) -> bool,
) -> Result<[f64; 3], Error> {
    let Some(value) = metadata.get(key) else {
        return Ok(default);
    };
    let numbers = value
        .split(',')
        .map(|number| number.trim().parse::<f64>().ok());
    let numbers: Option<Vec<f64>> = numbers.collect();
    numbers
        .and_then(|numbers| <[f64; 3]>::try_from(numbers).ok())
        .filter(|numbers| {
            numbers
                .iter()
                .all(|&number| number.is_finite() && valid(number))
        })
        .ok_or_else(|| Error::Metadata {
            key,
            value: value.clone(),
            expected: "a number for each of three channels is needed",
        })
}

#[cfg(test)]
mod tests {
    use super::super::BLOCKS;
    use super::*;

    fn metadata(key: &str, value: &str) -> Metadata {
        Metadata::from([(key.into(), value.into())])
    }

    /// torchvision counts every convolution and ReLU, and every pool after a block.
    #[test]
    fn torchvision_numbering() {
        let mut number = 0;
        let mut layers = Layer::all();
        for block in BLOCKS {
            for layer in layers.by_ref().take(block) {
                assert_eq!(TORCHVISION[layer.index()], number, "{layer}");
                number += 2;
            }
            number += 1;
        }
        let first = ["conv1_1.weight", "features.0.weight"];
        assert_eq!(names(Layer::FIRST, "weight"), first);
        assert_eq!(
            names(Layer::new(5, 4), "bias"),
            ["conv5_4.bias", "features.34.bias"]
        );
    }

    #[test]
    fn numbers_for_each_channel() {
        let read = |value: &str| {
            per_channel(&metadata("std", value), "std", IMAGENET_STD, |value| {
                value > 0.0
            })
        };
        assert_eq!(read("0.1, 0.2 ,3").unwrap(), [0.1, 0.2, 3.0]);
        for bad in [
            "", "1", "1,2", "1,2,3,4", "1,2,x", "1,2,0", "1,2,-3", "1,2,nan", "1,2,inf",
        ] {
            let error = read(bad).unwrap_err();
            assert!(
                matches!(&error, Error::Metadata { key: "std", value, .. } if value == bad),
                "{error}"
            );
        }
        let default = per_channel(&Metadata::new(), "mean", IMAGENET_MEAN, |_| true);
        assert_eq!(default.unwrap(), IMAGENET_MEAN);
    }

    #[test]
    fn what_images_look_like() {
        let expect =
            |value| expect_metadata(&metadata("range", value), "range", "0..1", "it is read");
        expect("0..1").unwrap();
        expect_metadata(&Metadata::new(), "range", "0..1", "it is read").unwrap();
        let error = expect("0..255").unwrap_err().to_string();
        assert!(
            error.contains("range") && error.contains("‘0..255’"),
            "{error}"
        );
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(open(&path).unwrap().1, 4);
        let kind = |path: &Path| open(path).unwrap_err().kind();
        assert_eq!(kind(folder.path()), io::ErrorKind::IsADirectory);
        assert_eq!(kind(&path.join("below")), io::ErrorKind::NotADirectory);
        assert_eq!(
            kind(&folder.path().join("missing")),
            io::ErrorKind::NotFound
        );
        assert_eq!(kind(Path::new("/dev/null")), io::ErrorKind::InvalidInput);
    }
}

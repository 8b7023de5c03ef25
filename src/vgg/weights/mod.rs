// SPDX-License-Identifier: MPL-2.0

//! Loading of the network's weights from files, and what can be wrong with one.
//!
//! A file is an archive of tensors in one of several formats. Its family tells which tensors are the network's, and how
//! images were prepared in training.

mod archive;
pub mod family;
mod hdf5;
mod npz;
pub mod preprocessing;
mod pth;

use super::Layer;
use archive::{Archive, Entries, FileFormat};
use candle_core::{DType, Device, Tensor};
use family::{Family, NetworkLayout, TensorNames};
use preprocessing::Preprocessing;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The built-in weights: conv1_1 to conv5_1 in f16, trained on procedurally generated images.
const BUILT_IN: &[u8] = include_bytes!("../../../weights/vgg19-procedural.safetensors");

/// The largest weights file in bytes. VGG-19 with its classifier has 575 MB in f32, and a training checkpoint has twice as
/// much again for its optimiser.
const MAX_FILE: u64 = 4 << 30;

/// No layer of a VGG-19 has more channels.
pub const MAX_CHANNELS: usize = 512;

/// The size of the largest kernel in bytes, in f64.
const MAX_KERNEL: usize = MAX_CHANNELS * MAX_CHANNELS * 9 * 8;

/// The length that a family's name is cut to, in characters.
const MAX_FAMILY: usize = 40;

/// The epsilon that PyTorch's batch norms add to the variance.
const NORM_EPSILON: f64 = 1e-5;

/// Where weights are read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightsSource {
    /// The weights that are compiled into the library.
    #[default]
    BuiltIn,
    /// A safetensors, PyTorch, HDF5 or `.npz` file.
    File(PathBuf),
}

/// The convolutions' kernels `[out, in, 3, 3]` and biases `[out]` from conv1_1 on, in f32 on the
/// CPU, and how an image is prepared for them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Each convolution's kernel and bias.
    pub convs: Vec<(Tensor, Tensor)>,
    /// How an image is prepared.
    pub preprocessing: Preprocessing,
    /// The name that the file's metadata give, or the family that the file was recognised as.
    pub family: String,
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
        "it is of no known format, or cut short: VGG-19 weights are read from safetensors, PyTorch, Keras (HDF5) and .npz files"
    )]
    UnknownFormat,
    #[error("it is a web page: what was downloaded was not the file")]
    WebPage,
    #[error(
        "it is {0}, which has to be converted first: weights/convert.py FILE OUT.safetensors does it"
    )]
    Convert(&'static str),
    #[error("it cannot be read as {format}: it is damaged or cut short ({cause})")]
    Damaged { format: &'static str, cause: String },
    #[error(
        "it has no tensors with a VGG-19's names, such as features.0.weight, conv1_1.weight or block1_conv1 (of a PyTorch model, save its state_dict())"
    )]
    NoNetwork,
    #[error("it is a {0}, where a VGG-19 is needed")]
    OtherNetwork(&'static str),
    #[error("it has {0} but not {1} before it, so these are not the weights of a VGG-19")]
    Gap(Layer, Layer),
    #[error("{0} has no bias, so these are not the weights of a VGG-19")]
    NoBias(Layer),
    #[error("‘{0}’ and ‘{1}’ are for the same layer")]
    Twice(String, String),
    #[error("{0}: {1}")]
    Tensor(Layer, String),
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

impl Weights {
    /// Weights from a program's own tensors.
    pub fn new(convs: Vec<(Tensor, Tensor)>, preprocessing: Preprocessing) -> Self {
        Self {
            convs,
            preprocessing,
            family: "given".into(),
        }
    }

    /// The numbers of output channels of the convolutions.
    pub fn channels(&self) -> impl Iterator<Item = usize> {
        self.convs.iter().map(|(kernel, _)| kernel.dims()[0])
    }

    /// Reads and checks weights.
    ///
    /// # Errors
    /// If there is no such file, or one of no format or network that is read, or a damaged one.
    pub fn load(source: &WeightsSource) -> Result<Self, Error> {
        match source {
            WeightsSource::BuiltIn => Self::from_bytes(BUILT_IN),
            WeightsSource::File(path) => {
                let (mut file, len) = open(path)?;
                if len > MAX_FILE {
                    return Err(Error::TooLarge(len));
                }
                let mut bytes = Vec::new();
                let mut beginning = file.by_ref().take(FileFormat::BEGINNING);
                beginning.read_to_end(&mut bytes)?;
                // Refuses other files, a video say, without reading all of them.
                FileFormat::of(&bytes)?;
                file.read_to_end(&mut bytes)?;
                Self::from_bytes(&bytes)
            }
        }
    }

    /// Reads and checks the weights in a file's bytes.
    ///
    /// # Errors
    /// The same as of [`load`](Self::load).
    pub fn from_bytes(file: &[u8]) -> Result<Self, Error> {
        let archive = Archive::open(file)?;
        let layout = NetworkLayout::find(&archive)?;
        let stated = Preprocessing::from_metadata(&archive.metadata)?;
        let name = archive.metadata.get("family").map(|name| {
            let printable = name.chars().filter(|c| !c.is_control());
            printable.take(MAX_FAMILY).collect()
        });
        let unnamed = stated.is_some().then(|| "described".into());
        let weights = Self {
            convs: convolutions(&archive.entries, &layout)?,
            preprocessing: stated.unwrap_or_else(|| layout.family.preprocessing()),
            family: name
                .or(unnamed)
                .unwrap_or_else(|| layout.family.to_string()),
        };
        let (kernel, bias) = weights.first_folded()?;
        finite(Layer::FIRST, &kernel, DType::F32)?;
        finite(Layer::FIRST, &bias, DType::F32)?;
        Ok(weights)
    }

    /// conv1_1 with the preprocessing folded in, for RGB 0..1.
    fn first_folded(&self) -> Result<(Tensor, Tensor), Error> {
        let (kernel, bias) = self.convs.first().ok_or(Error::NoNetwork)?;
        let folded = self.preprocessing.folded(kernel, bias);
        folded.map_err(|error| Error::Tensor(Layer::FIRST, error.to_string()))
    }

    /// The deepest layer that there are weights for.
    pub fn deepest(&self) -> Layer {
        Layer::all()
            .take(self.convs.len())
            .last()
            .unwrap_or(Layer::FIRST)
    }

    /// Writes the project's compact format: safetensors in f16, with the preprocessing as metadata.
    ///
    /// # Errors
    /// If a value is too large for f16, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let mut tensors = Vec::new();
        for (layer, (kernel, bias)) in Layer::all().zip(&self.convs) {
            for (what, tensor) in [("weight", kernel), ("bias", bias)] {
                let half = finite(layer, tensor, DType::F16)?;
                tensors.push((format!("{layer}.{what}"), half));
            }
        }
        let mut metadata = self.preprocessing.to_metadata();
        metadata.insert("family".into(), self.family.clone());
        safetensors::serialize_to_file(tensors, Some(metadata), path)
            .map_err(|error| io::Error::other(error).into())
    }
}

/// The kernels and biases, with batch norms and AdaIN's leading 1x1 convolution folded into them.
fn convolutions(entries: &Entries, layout: &NetworkLayout) -> Result<Vec<(Tensor, Tensor)>, Error> {
    let mut convs = Vec::new();
    let mut channels = 3;
    for (layer, names) in Layer::all().zip(&layout.layers) {
        let unreadable = |error: candle_core::Error| Error::Tensor(layer, error.to_string());
        let reader = LayerReader { entries, layer };
        let (mut kernel, mut bias) =
            reader.convolution(names, channels, layout.family == Family::Keras)?;
        channels = bias.elem_count();
        if let Some(norm) = &names.norm {
            let [scale, shift, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
                .map(|what| reader.tensor(&format!("{norm}.{what}"), "batch norm", &[channels]));
            (kernel, bias) = fold_batch_norm(&kernel, &bias, [scale?, shift?, mean?, variance?])
                .map_err(unreadable)?;
        }
        if let (Layer::FIRST, Some(leading)) = (layer, &layout.leading_conv) {
            let weight = reader.tensor(
                &format!("{leading}.weight"),
                "1x1 convolution",
                &[3, 3, 1, 1],
            )?;
            let offset = reader.tensor(&format!("{leading}.bias"), "1x1 convolution", &[3])?;
            (kernel, bias) =
                fold_leading_conv(&kernel, &bias, &weight, &offset).map_err(unreadable)?;
        }
        let f32 = |tensor| finite(layer, tensor, DType::F32);
        convs.push((f32(&kernel)?, f32(&bias)?));
    }
    Ok(convs)
}

/// Reads the tensors of one layer and checks their shapes.
struct LayerReader<'a> {
    entries: &'a Entries<'a>,
    layer: Layer,
}

impl LayerReader<'_> {
    /// A kernel `[out, channels, 3, 3]` and its bias `[out]`, in f64. TensorFlow and Caffe's converters store the kernel as
    /// `[3, 3, channels, out]`, Keras on Theano rotated by 180 degrees, but not ports of it that have PyTorch's names. The bias
    /// may be missing before a batch norm.
    fn convolution(
        &self,
        names: &TensorNames,
        channels: usize,
        is_keras: bool,
    ) -> Result<(Tensor, Tensor), Error> {
        let found = self.shape(&names.kernel)?;
        let (out, channels_last) = match found[..] {
            [out, inputs, 3, 3] if inputs == channels => (out, false),
            [3, 3, inputs, out] if inputs == channels => (out, true),
            _ => (0, false),
        };
        if out == 0 || out > MAX_CHANNELS {
            let expected = format!("[channels, {channels}, 3, 3]");
            return Err(self.wrong_shape("kernel", found, expected));
        }
        let mut kernel = self.tensor(&names.kernel, "kernel", found)?;
        let unreadable = |error: candle_core::Error| Error::Tensor(self.layer, error.to_string());
        if channels_last {
            kernel = kernel.permute((3, 2, 0, 1)).map_err(unreadable)?;
        } else if is_keras && !names.kernel.ends_with(".weight") {
            kernel = kernel.flip(&[2, 3]).map_err(unreadable)?;
        }
        let bias = match names.norm.is_some() && !self.entries.contains_key(&names.bias) {
            true => Tensor::zeros(out, DType::F64, &Device::Cpu).map_err(unreadable)?,
            false => self.tensor(&names.bias, "bias", &[out])?,
        };
        Ok((kernel, bias))
    }

    fn shape(&self, name: &str) -> Result<&[usize], Error> {
        match self.entries.get(name) {
            Some(entry) => Ok(&entry.shape),
            None if name.ends_with(".bias") => Err(Error::NoBias(self.layer)),
            None => Err(Error::Tensor(self.layer, format!("it has no {name}"))),
        }
    }

    /// A tensor in f64, which must have the shape `shape`.
    fn tensor(&self, name: &str, what: &'static str, shape: &[usize]) -> Result<Tensor, Error> {
        let found = self.shape(name)?;
        if found != shape {
            return Err(self.wrong_shape(what, found, format!("{shape:?}")));
        }
        let tensor = self.entries[name].read();
        tensor
            .and_then(|tensor| {
                let tensor = tensor.to_dtype(DType::F64);
                tensor.map_err(|error| error.to_string())
            })
            .map_err(|cause| Error::Tensor(self.layer, format!("{name}: {cause}")))
    }

    fn wrong_shape(&self, what: &'static str, found: &[usize], expected: String) -> Error {
        Error::Shape {
            layer: self.layer,
            what,
            found: found.to_vec(),
            expected,
        }
    }
}

/// Converts a tensor to `dtype`; an error if a value is then not finite.
fn finite(layer: Layer, tensor: &Tensor, dtype: DType) -> Result<Tensor, Error> {
    let convert = || -> candle_core::Result<_> {
        let tensor = tensor.to_dtype(dtype)?.contiguous()?;
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?;
        let values = values.to_vec1::<f32>()?;
        Ok((tensor, values.iter().all(|value| value.is_finite())))
    };
    match convert() {
        Ok((tensor, true)) => Ok(tensor),
        Ok((_, false)) => Err(Error::NotFinite(layer)),
        Err(error) => Err(Error::Tensor(layer, error.to_string())),
    }
}

/// Folds the batch norm after a convolution into it: with mean μ, variance v, scale γ and shift β,
/// γ (w x + b − μ) / √(v + ε) + β.
fn fold_batch_norm(
    kernel: &Tensor,
    bias: &Tensor,
    [scale, shift, mean, variance]: [Tensor; 4],
) -> candle_core::Result<(Tensor, Tensor)> {
    let factor = (scale / (variance + NORM_EPSILON)?.sqrt()?)?;
    let kernel = kernel.broadcast_mul(&factor.reshape(((), 1, 1, 1))?)?;
    let bias = (((bias - mean)? * factor)? + shift)?;
    Ok((kernel, bias))
}

/// Folds a 1x1 convolution `[3, 3, 1, 1]` and `[3]` into the one after it: w (A x + a) + b = (w A) x + (w a + b). This is
/// exact at the border too, which conv1_1 replicates.
fn fold_leading_conv(
    kernel: &Tensor,
    bias: &Tensor,
    weight: &Tensor,
    offset: &Tensor,
) -> candle_core::Result<(Tensor, Tensor)> {
    let shift = kernel.broadcast_mul(&offset.reshape((1, 3, 1, 1))?)?;
    let bias = (bias + shift.flatten_from(1)?.sum(1)?)?;
    // [out, 3, 3, 3] as [out · 3 · 3, 3]
    let (out, ..) = kernel.dims4()?;
    let kernel = kernel.permute((0, 2, 3, 1))?.contiguous()?;
    let folded = kernel
        .reshape((out * 9, 3))?
        .matmul(&weight.reshape((3, 3))?)?;
    let kernel = folded.reshape((out, 3, 3, 3))?.permute((0, 3, 1, 2))?;
    Ok((kernel, bias))
}

/// Opens a regular file; the result has its length too. Reading a pipe or a device might block or never end.
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

#[cfg(test)]
mod tests {
    use super::*;

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

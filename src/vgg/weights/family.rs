// SPDX-License-Identifier: MPL-2.0

//! Recognises the family of a VGG-19 file by the names and shapes of its tensors, and so which tensors are the
//! convolutions', and how an image is prepared for them.

use super::Error;
use super::archive::{Archive, Entries};
use super::preprocessing::Preprocessing;
use crate::vgg::{BLOCKS, Layer};
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The origin of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// PyTorch's `torchvision.models.vgg19`.
    Torchvision,
    /// `vgg19_bn`, whose batch norms are folded into its convolutions.
    TorchvisionBn,
    /// Simonyan and Zisserman's original weights, trained with Caffe: with layer names as in Gatys' `vgg_conv.pth`, or with
    /// torchvision's module numbers as in Johnson's `vgg19-d01eb7cb.pth`.
    Caffe,
    /// AdaIN's `vgg_normalised.pth`, whose leading 1x1 convolution is folded into conv1_1.
    Adain,
    /// `keras.applications.VGG19`, converted from Caffe's.
    Keras,
}

impl Family {
    /// How this family's images are prepared.
    pub fn preprocessing(self) -> Preprocessing {
        match self {
            Self::Torchvision | Self::TorchvisionBn => Preprocessing::TORCHVISION,
            Self::Adain => Preprocessing::NONE,
            Self::Caffe | Self::Keras => Preprocessing::CAFFE,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchvision => "torchvision",
            Self::TorchvisionBn => "torchvision-bn",
            Self::Caffe => "caffe",
            Self::Adain => "adain",
            Self::Keras => "keras",
        })
    }
}

/// The names of a layer's tensors.
pub struct TensorNames {
    /// Of the kernel.
    pub kernel: String,
    /// Of the bias.
    pub bias: String,
    /// The module name of its batch norm.
    pub norm: Option<String>,
}

/// The family of a file, and the tensors of its convolutions.
pub struct NetworkLayout {
    /// Who made the file.
    pub family: Family,
    /// From conv1_1 on.
    pub layers: Vec<TensorNames>,
    /// The module name of AdaIN's 1x1 convolution before conv1_1.
    pub leading_conv: Option<String>,
}

impl NetworkLayout {
    /// Finds the network with the most layers in a file.
    pub fn find(archive: &Archive) -> Result<Self, Error> {
        let numbered = by_module_numbers(&archive.entries);
        match (by_layer_names(&archive.entries), numbered) {
            (Ok(None), numbered) => numbered,
            (Ok(Some(named)), Ok(numbered)) if numbered.layers.len() > named.layers.len() => {
                Ok(numbered)
            }
            (Err(_), Ok(numbered)) => Ok(numbered),
            (Ok(Some(named)), _) => Ok(named),
            (Err(error), Err(_)) => Err(error),
        }
    }
}

/// Simonyan and Zisserman's other networks, with the number of convolutions in each block.
const OTHER_VGGS: [(&str, [usize; 5]); 3] = [
    ("VGG-11", [1, 1, 2, 2, 2]),
    ("VGG-13", [2, 2, 2, 2, 2]),
    ("VGG-16", [2, 2, 3, 3, 3]),
];

/// Checks that the convolutions `present`, in order, are a VGG-19's from conv1_1 on without a gap. `keys(blocks)` are those
/// of a network with these numbers of convolutions in its blocks.
fn check_sequence<K: PartialEq>(
    present: &[K],
    keys: impl Fn(&[usize; 5]) -> Vec<K>,
) -> Result<(), Error> {
    let expected = keys(&BLOCKS);
    if present.is_empty() {
        return Err(Error::NoNetwork);
    }
    if expected.starts_with(present) {
        return Ok(());
    }
    for (name, blocks) in &OTHER_VGGS {
        if keys(blocks).starts_with(present) {
            return Err(Error::OtherNetwork(name));
        }
    }
    let layers: Vec<(Layer, &K)> = Layer::all().zip(&expected).collect();
    let mut rest = layers.iter().skip_while(|(_, key)| present.contains(key));
    let missing = rest.next();
    let next = rest.find(|(_, key)| present.contains(key));
    match (missing, next) {
        (Some(&(missing, _)), Some(&(next, _))) => Err(Error::Gap(next, missing)),
        _ => Err(Error::NoNetwork),
    }
}

/// The tensors of one network whose names contain those of layers: by block and by number within it, both from 1.
#[derive(Default)]
struct NamedLayers<'a> {
    kernels: BTreeMap<(usize, usize), &'a str>,
    biases: BTreeMap<(usize, usize), &'a str>,
    is_keras: bool,
    /// Two names of the same layer's kernel or bias.
    twice: Option<(&'a str, &'a str)>,
}

impl<'a> NamedLayers<'a> {
    /// A file's networks, which may be several, by the prefix of their names.
    fn groups(entries: &'a Entries) -> BTreeMap<&'a str, Self> {
        let mut groups: BTreeMap<&str, Self> = BTreeMap::new();
        for (name, entry) in entries {
            let (start, position, is_keras) = match find_layer(name, "block", "_conv") {
                Some((start, position)) => (start, position, true),
                None => match find_layer(name, "conv", "_") {
                    Some((start, position)) => (start, position, false),
                    None => continue,
                },
            };
            // TensorFlow-Slim has a scope for each block: vgg_19/conv3/conv3_1/weights.
            let group = name[..start].trim_end_matches(&format!("conv{}/", position.0));
            let group = groups.entry(group).or_default();
            group.is_keras |= is_keras;
            let twice = match (name.rsplit('.').next(), entry.shape.len()) {
                (Some("weight"), _) | (_, 4) => group.kernels.insert(position, name),
                (Some("bias"), _) | (_, 1) => group.biases.insert(position, name),
                _ => None,
            };
            group.twice = twice.map(|other| (other, &name[..])).or(group.twice);
        }
        groups
    }
}

/// Finds convolutions by the names of layers: `conv1_1.weight`, `block1_conv1/kernel:0`.
fn by_layer_names(entries: &Entries) -> Result<Option<NetworkLayout>, Error> {
    let groups = NamedLayers::groups(entries).into_values().rev();
    let largest = groups.max_by_key(|group| group.kernels.len());
    let Some(group) = largest.filter(|group| !group.kernels.is_empty()) else {
        return Ok(None);
    };
    if let Some((one, other)) = group.twice {
        return Err(Error::Twice(one.into(), other.into()));
    }
    let present: Vec<(usize, usize)> = group.kernels.keys().copied().collect();
    check_sequence(&present, |blocks| {
        let blocks = blocks.iter().enumerate();
        let positions = blocks.flat_map(|(b, &convs)| (1..=convs).map(move |c| (b + 1, c)));
        positions.collect()
    })?;
    let layers = group.kernels.iter().zip(Layer::all());
    let layers = layers.map(|((position, kernel), layer)| {
        let bias = group.biases.get(position).ok_or(Error::NoBias(layer))?;
        Ok(TensorNames {
            kernel: (*kernel).into(),
            bias: (*bias).into(),
            norm: None,
        })
    });
    Ok(Some(NetworkLayout {
        family: match group.is_keras {
            true => Family::Keras,
            false => Family::Caffe,
        },
        layers: layers.collect::<Result<_, Error>>()?,
        leading_conv: None,
    }))
}

/// Finds a word like `{before}3{between}1` in a name: where it begins, and its two numbers.
fn find_layer(name: &str, before: &str, between: &str) -> Option<(usize, (usize, usize))> {
    name.match_indices(before).find_map(|(start, _)| {
        let is_word = !name[..start].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let (block, rest) = digit(&name[start + before.len()..])?;
        let (within, rest) = digit(rest.strip_prefix(between)?)?;
        let ends = !rest.starts_with(|c: char| c.is_ascii_digit());
        (is_word && ends).then_some((start, (block, within)))
    })
}

fn digit(text: &str) -> Option<(usize, &str)> {
    let digit = text.chars().next()?.to_digit(10)?;
    Some((digit as usize, &text[1..]))
}

/// Finds convolutions by their numbers in a PyTorch `Sequential`: `features.0.weight`.
fn by_module_numbers(entries: &Entries) -> Result<NetworkLayout, Error> {
    let mut sequences: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (name, _) in entries.iter().filter(|(_, entry)| entry.shape.len() == 4) {
        let Some(module) = name.strip_suffix(".weight") else {
            continue;
        };
        let sequence = module.trim_end_matches(|c: char| c.is_ascii_digit());
        if (sequence.is_empty() || sequence.ends_with('.'))
            && let Ok(number) = module[sequence.len()..].parse::<u16>()
        {
            let numbers = sequences.entry(sequence).or_default();
            numbers.insert(number.into());
        }
    }
    let longest = sequences.iter().rev().max_by_key(|(_, set)| set.len());
    let (sequence, numbers) = longest.ok_or(Error::NoNetwork)?;
    let mut numbers: Vec<usize> = numbers.iter().copied().collect();
    let module = |number: usize| format!("{sequence}{number}");
    let has = |name: String| entries.contains_key(&name);

    let leading_conv = entries
        .get(&format!("{}.weight", module(0)))
        .filter(|first| first.shape == [3, 3, 1, 1])
        .map(|_| module(0));
    let has_norms = has(format!("{}.running_mean", module(numbers[0] + 1)));
    // The number of the first convolution, and modules per convolution: with its ReLU, with a batch norm, or with padding
    // before it (in AdaIN's after the 1x1 convolution).
    let (family, first, modules) = match (&leading_conv, has_norms) {
        (Some(_), _) => (Family::Adain, 2, 3),
        (None, true) => (Family::TorchvisionBn, 0, 3),
        (None, false) if is_caffe(entries, &module(0)) => (Family::Caffe, 0, 2),
        (None, false) => (Family::Torchvision, 0, 2),
    };
    if leading_conv.is_some() {
        numbers.remove(0);
    }
    check_sequence(&numbers, |blocks| module_numbers(blocks, first, modules))?;
    let layers = numbers.iter().map(|&number| TensorNames {
        kernel: format!("{}.weight", module(number)),
        bias: format!("{}.bias", module(number)),
        norm: has_norms.then(|| module(number + 1)),
    });
    Ok(NetworkLayout {
        layers: layers.collect(),
        family,
        leading_conv,
    })
}

/// The numbers of the convolutions in a sequence that has `modules` modules per convolution and a pooling layer per block.
fn module_numbers(blocks: &[usize; 5], first: usize, modules: usize) -> Vec<usize> {
    let mut next = first;
    let mut numbers = Vec::new();
    for &convs in blocks {
        for _ in 0..convs {
            numbers.push(next);
            next += modules;
        }
        next += 1;
    }
    numbers
}

/// The first row of torchvision's first kernel.
const TORCHVISION_KERNEL: [f32; 3] = [-0.053474, -0.049257, -0.067942];

/// The least number of positive biases among conv1_1's 64 in Caffe's networks. Caffe's VGG-16 has 63, torchvision's
/// networks have about half.
const CAFFE_POSITIVE_BIASES: usize = 56;

/// Whether a network with torchvision's module numbers is Caffe's. conv1_1's kernel identifies torchvision's. Otherwise the
/// classifier's numbers identify Johnson's file; without a classifier, the signs of conv1_1's biases tell.
fn is_caffe(entries: &Entries, first: &str) -> bool {
    let values = |what: &str, shape: &[usize]| {
        let entry = entries.get(&format!("{first}.{what}"))?;
        let tensor: Tensor = (entry.shape == shape).then(|| entry.read().ok())??;
        let tensor = tensor.to_dtype(DType::F32).ok()?;
        tensor.flatten_all().ok()?.to_vec1::<f32>().ok()
    };
    let kernel = values("weight", &[64, 3, 3, 3]).unwrap_or_default();
    let biases = values("bias", &[64]).unwrap_or_default();
    let mut first_row = kernel.iter().zip(TORCHVISION_KERNEL);
    if !kernel.is_empty() && first_row.all(|(value, expected)| (value - expected).abs() < 1e-4) {
        return false;
    }
    entries.contains_key("classifier.1.weight")
        || biases.iter().filter(|&&bias| bias > 0.0).count() >= CAFFE_POSITIVE_BIASES
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MPL-2.0

//! How an image is prepared for a network, which differs between weights files.

use super::Error;
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::fmt;

/// Mean and standard deviation of ImageNet's channels in RGB 0..1, as torchvision's networks expect.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// ImageNet's mean in BGR 0..255, as Caffe's networks expect (Simonyan and Zisserman's release of VGG-19).
const CAFFE_MEAN: [f64; 3] = [103.939, 116.779, 123.68];

/// The input of a network: (pixel − `mean`) / `std`, with the channels of all three in the order `channels` and the range
/// `range`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessing {
    /// The order of the channels.
    pub channels: Channels,
    /// The range of the values.
    pub range: ValueRange,
    /// The mean of each channel.
    pub mean: [f64; 3],
    /// What each channel is divided by, less its mean.
    pub std: [f64; 3],
}

/// The order of an image's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// The range of pixel values, from black to white.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueRange {
    /// 0..1
    One,
    /// 0..255
    Byte,
}

impl Preprocessing {
    /// RGB 0..1, unchanged.
    pub const NONE: Self = Self {
        channels: Channels::Rgb,
        range: ValueRange::One,
        mean: [0.0; 3],
        std: [1.0; 3],
    };

    /// RGB 0..1, by ImageNet's mean and deviation.
    pub const TORCHVISION: Self = Self {
        channels: Channels::Rgb,
        range: ValueRange::One,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
    };

    /// BGR 0..255, less ImageNet's mean.
    pub const CAFFE: Self = Self {
        channels: Channels::Bgr,
        range: ValueRange::Byte,
        mean: CAFFE_MEAN,
        std: [1.0; 3],
    };

    /// Reads the metadata `channels` (RGB or BGR), `range` (0..1 or 0..255), `mean` and `std` (three numbers each). Missing
    /// ones default to RGB, 0..1 and ImageNet's values; `None` if all are missing.
    pub fn from_metadata(metadata: &HashMap<String, String>) -> Result<Option<Self>, Error> {
        if !["channels", "range", "mean", "std"]
            .iter()
            .any(|&key| metadata.contains_key(key))
        {
            return Ok(None);
        }
        let channels = match metadata.get("channels").map(String::as_str) {
            None | Some("RGB") => Channels::Rgb,
            Some("BGR") => Channels::Bgr,
            Some(other) => return Err(refused("channels", other, "RGB or BGR is needed")),
        };
        let range = match metadata.get("range").map(String::as_str) {
            None | Some("0..1") => ValueRange::One,
            Some("0..255") => ValueRange::Byte,
            Some(other) => return Err(refused("range", other, "0..1 or 0..255 is needed")),
        };
        let imagenet = |values: [f64; 3]| {
            let values = values.map(|value| value * range.white());
            channels.reordered(values)
        };
        Ok(Some(Self {
            channels,
            range,
            mean: per_channel(metadata, "mean", f64::MIN, "three numbers are needed")?
                .unwrap_or(imagenet(IMAGENET_MEAN)),
            std: per_channel(
                metadata,
                "std",
                f64::MIN_POSITIVE,
                "three numbers above 0 are needed",
            )?
            .unwrap_or(imagenet(IMAGENET_STD)),
        }))
    }

    /// The metadata that [`from_metadata`](Self::from_metadata) reads.
    pub fn to_metadata(&self) -> HashMap<String, String> {
        let numbers = |values: [f64; 3]| values.map(|value| value.to_string()).join(",");
        HashMap::from([
            ("channels".into(), self.channels.to_string()),
            ("range".into(), self.range.to_string()),
            ("mean".into(), numbers(self.mean)),
            ("std".into(), numbers(self.std)),
        ])
    }

    /// Folds the preprocessing into conv1_1's kernel `[out, 3, 3, 3]` and bias `[out]`, which then take RGB 0..1: with a
    /// channel's mean μ and deviation σ, and the value s of white, w (s x − μ) / σ + b = (w s / σ) x + (b − w μ / σ).
    pub fn folded(&self, kernel: &Tensor, bias: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let per_channel =
            |values: [f64; 3]| Tensor::new(&values, &Device::Cpu)?.reshape((1, 3, 1, 1));
        let kernel = kernel
            .to_dtype(DType::F64)?
            .broadcast_div(&per_channel(self.std)?)?;
        let shift = kernel.broadcast_mul(&per_channel(self.mean)?)?;
        let bias = (bias.to_dtype(DType::F64)? - shift.flatten_from(1)?.sum(1)?)?;
        let order = Tensor::new(&self.channels.reordered([0u32, 1, 2]), &Device::Cpu)?;
        let kernel = (kernel.index_select(&order, 1)? * self.range.white())?;
        Ok((kernel.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?))
    }
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |values: [f64; 3]| values.map(|value| value.to_string()).join(" ");
        let (channels, range) = (self.channels, self.range);
        write!(
            f,
            "{channels} {range}, mean {}, deviation {}",
            numbers(self.mean),
            numbers(self.std)
        )
    }
}

impl Channels {
    /// Reorders values from R, G, B to this order, or from this order to R, G, B.
    fn reordered<T: Copy>(self, [r, g, b]: [T; 3]) -> [T; 3] {
        match self {
            Self::Rgb => [r, g, b],
            Self::Bgr => [b, g, r],
        }
    }
}

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
        })
    }
}

impl ValueRange {
    fn white(self) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Byte => 255.0,
        }
    }
}

impl fmt::Display for ValueRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0..{}", self.white())
    }
}

fn refused(key: &'static str, value: &str, expected: &'static str) -> Error {
    Error::Metadata {
        key,
        value: value.into(),
        expected,
    }
}

/// The three numbers of the metadata's `key`, if there is one. An error, with what is `expected`, unless they
/// are finite and not below `least`.
fn per_channel(
    metadata: &HashMap<String, String>,
    key: &'static str,
    least: f64,
    expected: &'static str,
) -> Result<Option<[f64; 3]>, Error> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    let numbers = value
        .split(',')
        .map(|number| number.trim().parse::<f64>().ok());
    let numbers: Option<Vec<f64>> = numbers.collect();
    numbers
        .and_then(|numbers| <[f64; 3]>::try_from(numbers).ok())
        .filter(|numbers| {
            let valid = |number: &f64| number.is_finite() && *number >= least;
            numbers.iter().all(valid)
        })
        .map(Some)
        .ok_or_else(|| refused(key, value, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stated: &[(&str, &str)]) -> Result<Option<Preprocessing>, Error> {
        let stated = stated
            .iter()
            .map(|&(key, value)| (key.into(), value.into()));
        Preprocessing::from_metadata(&stated.collect())
    }

    #[test]
    fn numbers_for_each_channel() {
        let stated = read(&[("std", "0.1, 0.2 ,3")]).unwrap().unwrap();
        assert_eq!((stated.mean, stated.std), (IMAGENET_MEAN, [0.1, 0.2, 3.0]));
        let no_numbers = ["", "1", "1,2", "1,2,3,4", "1,2,x", "1,2,nan", "1,2,inf"];
        let too_small = ["1,2,0", "1,2,-3"];
        for (key, bad, expected) in [
            ("mean", &no_numbers[..], "three numbers are needed"),
            ("std", &no_numbers, "three numbers above 0 are needed"),
            ("std", &too_small, "three numbers above 0 are needed"),
        ] {
            for value in bad {
                let message = read(&[(key, value)]).unwrap_err().to_string();
                let expected = format!("{key} as ‘{value}’, where {expected}");
                assert!(message.ends_with(&expected), "{message}");
            }
        }
        assert_eq!(read(&[("other", "1")]).unwrap(), None);
    }

    #[test]
    fn channels_and_range() {
        let stated = read(&[("channels", "BGR"), ("range", "0..255")]);
        let stated = stated.unwrap().unwrap();
        assert_eq!(
            (stated.channels, stated.range),
            (Channels::Bgr, ValueRange::Byte)
        );
        assert_eq!(stated.mean, [0.406 * 255.0, 0.456 * 255.0, 0.485 * 255.0]);
        for (key, value, expected) in [
            ("channels", "rgb", "RGB or BGR"),
            ("channels", "GRAY", "RGB or BGR"),
            ("range", "-1..1", "0..1 or 0..255"),
        ] {
            let message = read(&[(key, value)]).unwrap_err().to_string();
            let expected = format!("{key} as ‘{value}’, where {expected} is needed");
            assert!(message.ends_with(&expected), "{message}");
        }
    }

    #[test]
    fn metadata_round_trip() {
        for preprocessing in [
            Preprocessing::NONE,
            Preprocessing::TORCHVISION,
            Preprocessing::CAFFE,
        ] {
            let stated = Preprocessing::from_metadata(&preprocessing.to_metadata());
            assert_eq!(stated.unwrap(), Some(preprocessing));
        }
        assert_eq!(
            Preprocessing::CAFFE.to_string(),
            "BGR 0..255, mean 103.939 116.779 123.68, deviation 1 1 1"
        );
    }

    /// With an identity kernel, conv1_1 outputs the prepared pixel.
    #[test]
    fn a_pixel_is_prepared() {
        let mut kernel = vec![0f32; 3 * 3 * 9];
        for channel in 0..3 {
            kernel[(channel * 3 + channel) * 9 + 4] = 1.0;
        }
        let kernel = Tensor::from_vec(kernel, (3, 3, 3, 3), &Device::Cpu).unwrap();
        let bias = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let (kernel, bias) = Preprocessing::CAFFE.folded(&kernel, &bias).unwrap();
        let kernel: Vec<f32> = kernel.flatten_all().unwrap().to_vec1().unwrap();
        let bias: Vec<f32> = bias.to_vec1().unwrap();
        // RGB 0.2, 0.4, 0.6
        let given = [0, 1, 2].map(|out| {
            let weight = |input: usize| kernel[(out * 3 + input) * 9 + 4];
            weight(0) * 0.2 + weight(1) * 0.4 + weight(2) * 0.6 + bias[out]
        });
        let expected = [153.0 - 103.939, 102.0 - 116.779, 51.0 - 123.68];
        for (given, expected) in given.iter().zip(expected) {
            assert!((given - expected).abs() < 1e-4, "{given} {expected}");
        }
    }
}

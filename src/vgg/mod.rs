// SPDX-License-Identifier: MPL-2.0

//! VGG-19's convolutional part (Simonyan and Zisserman 2015), with frozen weights: the features of
//! an image, and the gradient with respect to the image of a loss on them.
//!
//! The network is a chain, so the backward pass is written out rather than recorded.

mod precision;
pub mod shared;
pub mod weights;

use crate::ops::conv::{Border, Conv3x3};
use crate::ops::elementwise::clear;
pub use crate::ops::pool::Pooling;
use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;
use precision::Chosen;
pub use precision::{Error as PrecisionError, Precision};
use rayon::ThreadPoolBuilder;
use std::fmt;
use std::str::FromStr;
use weights::Weights;
use weights::preprocessing::Preprocessing;

/// Convolutions of each block; a pooling layer stands between two blocks.
pub const BLOCKS: [usize; 5] = [2, 2, 4, 4, 4];

/// The number of convolutions of a whole VGG-19.
pub const LAYERS: usize = 16;

/// Shortest side of an image that the deepest block still sees a pixel of.
pub const MIN_SIDE: usize = 1 << (BLOCKS.len() - 1);

/// Why features or a gradient were not computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// Other formats go further than f16, and weights are checked to be numbers.
    #[error("the activations of {0} do not fit f16; precision=bf16 or f32 takes them")]
    Overflow(Layer),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Asked before every layer; `true` ends the computation with [`Error::Cancelled`].
pub type Cancel<'a> = &'a (dyn Fn() -> bool + Sync);

/// A convolution of VGG-19 by its place in the network. Its name, `conv1_1` to `conv5_4`, means
/// the activation after its ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layer(usize);

impl Layer {
    /// conv1_1
    pub const FIRST: Self = Self(0);

    /// The layer `conv{block}_{within}`, both counted from 1.
    ///
    /// # Panics
    /// Where VGG-19 has no such layer.
    pub const fn new(block: usize, within: usize) -> Self {
        assert!(1 <= within && within <= BLOCKS[block - 1]);
        let mut index = within - 1;
        let mut before = 0;
        while before < block - 1 {
            index += BLOCKS[before];
            before += 1;
        }
        Self(index)
    }

    /// All layers, from the image to the deepest.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..LAYERS).map(Self)
    }

    /// Its place, from 0.
    pub fn index(self) -> usize {
        self.0
    }

    /// Its block, from 0: the layer sees the image at 1 / 2^block of its size.
    pub fn block(self) -> usize {
        self.place().0
    }

    fn place(self) -> (usize, usize) {
        let mut within = self.0;
        for (block, &convs) in BLOCKS.iter().enumerate() {
            if within < convs {
                return (block, within);
            }
            within -= convs;
        }
        unreachable!("a layer's place is below LAYERS")
    }

    /// Whether a pooling layer comes before it.
    fn follows_pool(self) -> bool {
        self.0 > 0 && self.place().1 == 0
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (block, within) = self.place();
        write!(f, "conv{}_{}", block + 1, within + 1)
    }
}

/// A name that is no layer's.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no layer ‘{0}’; the layers are conv1_1, conv1_2, conv2_1, conv2_2, conv3_1 to conv3_4, conv4_1 to conv4_4 and conv5_1 to conv5_4"
)]
pub struct UnknownLayer(String);

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(name: &str) -> Result<Self, UnknownLayer> {
        Self::all()
            .find(|layer| layer.to_string() == name)
            .ok_or_else(|| UnknownLayer(name.into()))
    }
}

/// The activations of an image, or the gradients with respect to them: tensors allocated once for
/// an image size, written at each iteration. Gradients share memory: each is gone once that with
/// respect to the layer two before it is there.
pub struct Features {
    /// `[h, w, channels]` of each layer, from conv1_1 to the deepest that is used.
    layers: Vec<Tensor>,
    /// What each block but the first is given.
    pooled: Vec<Tensor>,
}

impl Features {
    /// The layer's activation, or the gradient with respect to it, `[h, w, channels]`.
    pub fn layer(&self, layer: Layer) -> &Tensor {
        &self.layers[layer.0]
    }

    /// The input of `layer`'s convolution, for an image at the network's end.
    fn input<'a>(&'a self, layer: Layer, image: &'a Tensor) -> &'a Tensor {
        match layer.0 {
            0 => image,
            _ if layer.follows_pool() => &self.pooled[layer.block() - 1],
            index => &self.layers[index - 1],
        }
    }

    /// The deepest layer that there is a tensor for.
    pub fn deepest(&self) -> Layer {
        Layer(self.layers.len() - 1)
    }
}

/// Where a tensor of features lies in its piece of memory.
struct FeaturePlace {
    pooled: bool,
    shape: (usize, usize, usize),
    start: usize,
    len: usize,
}

/// The network on one device.
pub struct Vgg {
    convs: Vec<Conv3x3>,
    device: Device,
    precision: Precision,
    dtype: DType,
    family: String,
    preprocessing: Preprocessing,
}

impl Vgg {
    /// Puts `weights` on `device`, in f32.
    pub fn new(weights: &Weights, device: &Device) -> candle_core::Result<Self> {
        Self::build(weights.clone(), device, Chosen::F32)
    }

    /// A network that computes as a GPU does in `format`, with composed operations on the CPU.
    #[cfg(test)]
    pub(crate) fn emulated(
        weights: &Weights,
        format: crate::ops::Format,
    ) -> candle_core::Result<Self> {
        Self::build(weights.clone(), &Device::Cpu, Chosen::Gpu(format))
    }

    /// The image's preparation becomes part of conv1_1. Its border is replicated, because zeros
    /// there would leave a frame around the picture; further in, zeros stand around the features,
    /// as the weights were trained with.
    fn build(weights: Weights, device: &Device, chosen: Chosen) -> candle_core::Result<Self> {
        let Weights {
            convs,
            preprocessing,
            family,
        } = weights;
        // Each kernel is gone once it is packed.
        let conv = |(index, (kernel, bias)): (usize, (Tensor, Tensor))| {
            let (kernel, bias, border) = if index == 0 {
                let (kernel, bias) = preprocessing.folded(&kernel, &bias)?;
                (kernel, bias, Border::Replicate)
            } else {
                (kernel, bias, Border::Zeros)
            };
            let (kernel, bias) = (kernel.to_device(device)?, bias.to_device(device)?);
            match chosen {
                Chosen::F32 => Conv3x3::new(&kernel, &bias, border),
                Chosen::Bf16(amx) => Conv3x3::bf16(&kernel, &bias, border, amx),
                Chosen::Gpu(format) => Conv3x3::with_format(&kernel, &bias, border, format),
            }
        };
        let load = || convs.into_iter().enumerate().map(conv).collect();
        let convs: candle_core::Result<_> = match chosen {
            Chosen::Gpu(_) => load(),
            // Threads of its own, which end with the packing of the kernels: rayon's global ones
            // would stay, and panic where they cannot be had.
            _ => ThreadPoolBuilder::new()
                .build()
                .map_err(candle_core::Error::wrap)?
                .install(load),
        };
        let convs = convs?;
        Ok(Self {
            convs,
            device: device.clone(),
            precision: chosen.precision(),
            dtype: chosen.dtype(),
            family,
            preprocessing,
        })
    }

    /// What the weights were recognised as.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// How an image is prepared for the weights, which is part of conv1_1 here.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the features are computed in: never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The deepest layer that the weights go to.
    pub fn deepest(&self) -> Layer {
        Layer(self.convs.len() - 1)
    }

    /// What the kernels of all layers take up in memory.
    pub fn packed_bytes(&self) -> usize {
        self.convs.iter().map(Conv3x3::packed_bytes).sum()
    }

    /// Tensors for the features of an image `[h, w, 3]`, as deep as `deepest`, in the network's
    /// precision.
    pub fn allocate(&self, h: usize, w: usize, deepest: Layer) -> candle_core::Result<Features> {
        self.tensors(h, w, deepest, |start, len| start + len)
    }

    /// Tensors for the gradients with respect to the features of an image `[h, w, 3]`.
    pub fn allocate_gradients(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
    ) -> candle_core::Result<Features> {
        self.tensors(h, w, deepest, |_, _| 0)
    }

    /// What [`allocate`](Self::allocate) takes of the device's memory.
    pub fn feature_bytes(&self, h: usize, w: usize, deepest: Layer) -> usize {
        let (_, ends) = self.places(h, w, deepest, |start, len| start + len);
        (ends[0] + ends[1]) * self.dtype.size_in_bytes()
    }

    /// What [`allocate_gradients`](Self::allocate_gradients) takes.
    pub fn gradient_bytes(&self, h: usize, w: usize, deepest: Layer) -> usize {
        let (_, ends) = self.places(h, w, deepest, |_, _| 0);
        (ends[0] + ends[1]) * self.dtype.size_in_bytes()
    }

    /// What a layer's features of an image `[h, w, 3]` take.
    pub fn layer_bytes(&self, h: usize, w: usize, layer: Layer) -> usize {
        let channels = self.convs[layer.0].out_channels();
        (h >> layer.block()) * (w >> layer.block()) * channels * self.dtype.size_in_bytes()
    }

    /// Where the tensors of features lie, as [`tensors`](Self::tensors) says, and the sizes of both
    /// pieces of memory.
    fn places(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
        next: impl Fn(usize, usize) -> usize,
    ) -> (Vec<FeaturePlace>, [usize; 2]) {
        let (mut starts, mut ends) = ([0; 2], [0; 2]);
        let mut places = Vec::new();
        let mut place = |pooled: bool, shape: (usize, usize, usize)| {
            let (turn, len) = (places.len() % 2, shape.0 * shape.1 * shape.2);
            places.push(FeaturePlace {
                pooled,
                shape,
                start: starts[turn],
                len,
            });
            ends[turn] = ends[turn].max(starts[turn] + len);
            starts[turn] = next(starts[turn], len);
        };
        for layer in Layer::all().take_while(|&layer| layer <= deepest) {
            let conv = &self.convs[layer.0];
            let (h, w) = (h >> layer.block(), w >> layer.block());
            if layer.follows_pool() {
                place(true, (h, w, conv.in_channels()));
            }
            place(false, (h, w, conv.out_channels()));
        }
        (places, ends)
    }

    /// Tensors in two pieces of memory, by turns, so that neighbours are in different ones, as
    /// operations on tensors demand. `next(start, len)` is where the one after a tensor starts in
    /// the piece.
    fn tensors(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
        next: impl Fn(usize, usize) -> usize,
    ) -> candle_core::Result<Features> {
        let (places, ends) = self.places(h, w, deepest, next);
        // There is no memory of no length on a GPU.
        let memory = |len: usize| match self.dtype {
            // As integers zeros take no memory before they are overwritten.
            DType::BF16 if self.device.is_cpu() => {
                let zeros: Vec<bf16> = vec![0u16; len.max(1)].reinterpret_into();
                Tensor::from_vec(zeros, len.max(1), &self.device)
            }
            dtype => Tensor::zeros(len.max(1), dtype, &self.device),
        };
        let memory = [memory(ends[0])?, memory(ends[1])?];
        let mut features = Features {
            layers: Vec::new(),
            pooled: Vec::new(),
        };
        for (turn, place) in places.into_iter().enumerate() {
            let memory = memory[turn % 2].narrow(0, place.start, place.len)?;
            let tensor = memory.reshape(place.shape)?;
            match place.pooled {
                true => features.pooled.push(tensor),
                false => features.layers.push(tensor),
            }
        }
        Ok(features)
    }

    /// The activations of `image` `[h, w, 3]`, RGB 0..1, up to `deepest`, into `features`.
    pub fn forward(
        &self,
        image: &Tensor,
        pooling: Pooling,
        deepest: Layer,
        features: &Features,
        cancel: Cancel,
    ) -> Result<(), Error> {
        for layer in Layer::all().take_while(|&layer| layer <= deepest) {
            if cancel() {
                return Err(Error::Cancelled);
            }
            let input = features.input(layer, image);
            if layer.follows_pool() {
                pooling.forward(&features.layers[layer.0 - 1], input)?;
            }
            self.convs[layer.0].forward(input, features.layer(layer))?;
        }
        Ok(())
    }

    /// The gradient with respect to the image, into `image_gradient` `[h, w, 3]`.
    ///
    /// From the deepest layer on, `seed(layer, gradient, accumulate)` writes the loss's own
    /// gradient with respect to the layer's activation to `gradient`, or adds it to what came from
    /// deeper layers; it says whether `gradient` holds one now. The pass starts at the first layer
    /// that has one. `features` are those of the last `forward`, `gradients` of the same depth.
    pub fn backward(
        &self,
        pooling: Pooling,
        features: &Features,
        gradients: &Features,
        mut seed: impl FnMut(Layer, &Tensor, bool) -> Result<bool, Error>,
        image_gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<(), Error> {
        let mut started = false;
        for index in (0..=features.deepest().0).rev() {
            let layer = Layer(index);
            started |= seed(layer, gradients.layer(layer), started)?;
            if !started {
                continue;
            }
            if cancel() {
                return Err(Error::Cancelled);
            }
            let input_gradient = gradients.input(layer, image_gradient);
            let activation = features.layer(layer);
            self.convs[index].backward(gradients.layer(layer), activation, input_gradient)?;
            if layer.follows_pool() {
                let before = Layer(index - 1);
                let activation = features.layer(before);
                pooling.backward(input_gradient, activation, gradients.layer(before))?;
            }
        }
        if !started {
            clear(image_gradient)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

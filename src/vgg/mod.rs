// SPDX-License-Identifier: MPL-2.0

//! The convolutional part of VGG-19 (Simonyan and Zisserman 2015) with frozen weights: computes the
//! features of an image, and the gradient of a loss on them with respect to the image.
//!
//! The network is a fixed chain, so the backward pass is written out: there is no autograd.

mod precision;
pub mod shared;
pub mod weights;

use crate::ops::conv::{Border, Conv3x3};
use crate::ops::elementwise::clear;
pub use crate::ops::pool::Pooling;
use crate::ops::{Format, use_cpu_kernels};
use crate::threads;
use candle_core::{DType, Device, Tensor, bail};
use half::bf16;
use half::vec::HalfBitsVecExt;
pub use precision::{Error as PrecisionError, Precision};
use std::fmt;
use std::str::FromStr;
use weights::Weights;
use weights::preprocessing::Preprocessing;

/// The number of convolutions in each block; blocks are separated by pooling layers.
pub const BLOCKS: [usize; 5] = [2, 2, 4, 4, 4];

/// The number of convolutions in all of VGG-19.
pub const LAYERS: usize = 16;

/// The shortest side of an image that leaves the deepest block at least one pixel.
pub const MIN_SIDE: usize = 1 << (BLOCKS.len() - 1);

/// Why features or a gradient were not computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    #[error("the activations of {0} overflow {1}; {cause}", cause = overflow_cause(.1))]
    Overflow(Layer, Precision),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Some networks are too large for f16, but only damaged ones for f32's range.
fn overflow_cause(precision: &Precision) -> &'static str {
    match precision.can_overflow() {
        true => "use precision=bf16 or f32",
        false => "the weights are damaged",
    }
}

/// Asked before every layer; `true` ends the computation with [`Error::Cancelled`]. A CUDA graph
/// that a GPU replays does not ask between layers: its caller asks only before the evaluation.
pub type Cancel<'a> = &'a (dyn Fn() -> bool + Sync);

/// A convolution of VGG-19, by its index in the network. Its name, `conv1_1` to `conv5_4`, refers to
/// the activation after its ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layer(usize);

impl Layer {
    /// conv1_1
    pub const FIRST: Self = Self(0);

    /// The layer `conv{block}_{within}`, both counted from 1.
    ///
    /// # Panics
    /// If VGG-19 has no such layer.
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

    /// Its index in the network, from 0.
    pub fn index(self) -> usize {
        self.0
    }

    /// The number of pooling layers before it, each of which halves the height and width.
    pub fn pools_before(self) -> usize {
        self.block_and_offset().0
    }

    /// Its block, and its place among the convolutions of the block, both from 0.
    fn block_and_offset(self) -> (usize, usize) {
        let mut within = self.0;
        for (block, &convs) in BLOCKS.iter().enumerate() {
            if within < convs {
                return (block, within);
            }
            within -= convs;
        }
        unreachable!("a layer's index is below LAYERS")
    }

    /// Whether it is the last of its block, which a pooling layer comes after.
    fn precedes_pool(self) -> bool {
        let (block, offset) = self.block_and_offset();
        offset + 1 == BLOCKS[block]
    }

    /// Whether a pooling layer comes before it.
    fn follows_pool(self) -> bool {
        self.0 > 0 && self.block_and_offset().1 == 0
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (block, within) = self.block_and_offset();
        write!(f, "conv{}_{}", block + 1, within + 1)
    }
}

/// A name that is not a layer's.
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

/// The activations of an image, or the gradients with respect to them: tensors that are allocated
/// once for an image size and overwritten at each iteration. Gradients share memory: computing one
/// overwrites the gradient two steps deeper.
pub struct LayerTensors {
    /// `[h, w, channels]` of each layer, from conv1_1 to the deepest that is used.
    layers: Vec<Tensor>,
    /// The input of each block but the first, after pooling.
    pooled: Vec<Tensor>,
}

impl LayerTensors {
    /// The layer's activation, or the gradient with respect to it, `[h, w, channels]`.
    pub fn layer(&self, layer: Layer) -> &Tensor {
        &self.layers[layer.0]
    }

    /// The input of `layer`'s convolution, which is `image` for conv1_1.
    fn input<'a>(&'a self, layer: Layer, image: &'a Tensor) -> &'a Tensor {
        match layer.0 {
            0 => image,
            _ if layer.follows_pool() => &self.pooled[layer.pools_before() - 1],
            index => &self.layers[index - 1],
        }
    }

    /// The deepest layer that has a tensor.
    pub fn deepest(&self) -> Layer {
        Layer(self.layers.len() - 1)
    }
}

/// How tensors are laid out in the two buffers that they alternate between: operations need their
/// input and output in different ones.
#[derive(Clone, Copy)]
enum MemoryLayout {
    /// The tensors of a buffer lie one behind the other: all are kept.
    KeepAll,
    /// All tensors lie at the start of their buffer: each overwrites the one two before it.
    PingPong,
}

/// The position of a tensor in the buffer that it shares with others, in elements.
struct TensorSlice {
    pooled: bool,
    shape: (usize, usize, usize),
    start: usize,
    len: usize,
}

/// The network on one device.
pub struct Vgg {
    convs: Vec<Conv3x3>,
    device: Device,
    format: Format,
    family: String,
    preprocessing: Preprocessing,
}

impl Vgg {
    /// Puts `weights` on `device`, in f32. They may end at any layer, but not before conv1_1.
    ///
    /// # Errors
    /// Where the device has no memory for them.
    pub fn new(weights: &Weights, device: &Device) -> candle_core::Result<Self> {
        Self::build(weights.clone(), device, Format::F32)
    }

    /// The preprocessing of the image is folded into conv1_1, which replicates the image's border:
    /// zero padding would leave a visible frame around the picture. All other layers are padded with
    /// zeros, as in training.
    pub(crate) fn build(
        weights: Weights,
        device: &Device,
        format: Format,
    ) -> candle_core::Result<Self> {
        let Weights {
            convs,
            preprocessing,
            family,
        } = weights;
        if !(1..=LAYERS).contains(&convs.len()) {
            bail!(
                "a VGG-19 has 1 to {LAYERS} convolutions, not {}",
                convs.len()
            );
        }
        // Frees each kernel as soon as it is packed.
        let conv = |(index, (kernel, bias)): (usize, (Tensor, Tensor))| {
            let (kernel, bias, border) = if index == 0 {
                let (kernel, bias) = preprocessing.folded(&kernel, &bias)?;
                (kernel, bias, Border::Replicate)
            } else {
                (kernel, bias, Border::Zeros)
            };
            let (kernel, bias) = (kernel.to_device(device)?, bias.to_device(device)?);
            Conv3x3::new(&kernel, &bias, border, format)
        };
        let load = || convs.into_iter().enumerate().map(conv).collect();
        let convs: candle_core::Result<_> = match device.is_cpu() && use_cpu_kernels() {
            // A temporary pool: rayon's global one would stay, and panics where threads cannot be
            // started.
            true => threads::pool(0)
                .build()
                .map_err(candle_core::Error::wrap)?
                .install(load),
            false => load(),
        };
        Ok(Self {
            convs: convs?,
            device: device.clone(),
            format,
            family,
            preprocessing,
        })
    }

    /// The family of weights files that the weights were recognised as.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// How the weights expect an image to be prepared, which conv1_1 does here.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The precision of the features: never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.format.into()
    }

    /// The deepest layer that there are weights for.
    pub fn deepest(&self) -> Layer {
        Layer(self.convs.len() - 1)
    }

    /// Tensors for the features of an image `[h, w, 3]` up to `deepest`, in the network's precision.
    pub fn allocate_features(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
    ) -> candle_core::Result<LayerTensors> {
        self.tensors(h, w, deepest, MemoryLayout::KeepAll)
    }

    /// Tensors for the gradients with respect to the features of an image `[h, w, 3]`.
    pub fn allocate_gradients(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
    ) -> candle_core::Result<LayerTensors> {
        self.tensors(h, w, deepest, MemoryLayout::PingPong)
    }

    /// The device memory that [`allocate_features`](Self::allocate_features) takes.
    pub fn feature_bytes(&self, h: usize, w: usize, deepest: Layer) -> usize {
        let (_, ends) = self.slices(h, w, deepest, MemoryLayout::KeepAll);
        (ends[0] + ends[1]) * self.format.dtype().size_in_bytes()
    }

    /// The device memory that [`allocate_gradients`](Self::allocate_gradients) takes.
    pub fn gradient_bytes(&self, h: usize, w: usize, deepest: Layer) -> usize {
        let (_, ends) = self.slices(h, w, deepest, MemoryLayout::PingPong);
        (ends[0] + ends[1]) * self.format.dtype().size_in_bytes()
    }

    /// The device memory of one layer's features of an image `[h, w, 3]`.
    pub fn layer_bytes(&self, h: usize, w: usize, layer: Layer) -> usize {
        let channels = self.convs[layer.0].out_channels();
        let pools = layer.pools_before();
        (h >> pools) * (w >> pools) * channels * self.format.dtype().size_in_bytes()
    }

    /// The tensors' positions in the two buffers, alternating from the first one on, and the
    /// buffers' lengths.
    fn slices(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
        layout: MemoryLayout,
    ) -> (Vec<TensorSlice>, [usize; 2]) {
        let (mut starts, mut ends) = ([0; 2], [0; 2]);
        let mut slices = Vec::new();
        let mut add = |pooled: bool, shape: (usize, usize, usize)| {
            let (buffer, len) = (slices.len() % 2, shape.0 * shape.1 * shape.2);
            slices.push(TensorSlice {
                pooled,
                shape,
                start: starts[buffer],
                len,
            });
            ends[buffer] = ends[buffer].max(starts[buffer] + len);
            match layout {
                MemoryLayout::KeepAll => starts[buffer] += len,
                MemoryLayout::PingPong => (),
            }
        };
        for layer in Layer::all().take_while(|&layer| layer <= deepest) {
            let conv = &self.convs[layer.0];
            let (h, w) = (h >> layer.pools_before(), w >> layer.pools_before());
            if layer.follows_pool() {
                add(true, (h, w, conv.in_channels()));
            }
            add(false, (h, w, conv.out_channels()));
        }
        (slices, ends)
    }

    /// Tensors for the features of an image `[h, w, 3]`, or for the gradients, in this layout.
    fn tensors(
        &self,
        h: usize,
        w: usize,
        deepest: Layer,
        layout: MemoryLayout,
    ) -> candle_core::Result<LayerTensors> {
        let (slices, ends) = self.slices(h, w, deepest, layout);
        // At least one element, because a GPU cannot allocate zero bytes.
        let buffer = |len: usize| match self.format.dtype() {
            // Zeroed integers come from calloc, and take no memory until they are written.
            DType::BF16 if self.device.is_cpu() => {
                let zeros: Vec<bf16> = vec![0u16; len.max(1)].reinterpret_into();
                Tensor::from_vec(zeros, len.max(1), &self.device)
            }
            dtype => Tensor::zeros(len.max(1), dtype, &self.device),
        };
        let buffers = [buffer(ends[0])?, buffer(ends[1])?];
        let mut tensors = LayerTensors {
            layers: Vec::new(),
            pooled: Vec::new(),
        };
        for (index, slice) in slices.into_iter().enumerate() {
            let values = buffers[index % 2].narrow(0, slice.start, slice.len)?;
            let tensor = values.reshape(slice.shape)?;
            match slice.pooled {
                true => tensors.pooled.push(tensor),
                false => tensors.layers.push(tensor),
            }
        }
        Ok(tensors)
    }

    /// Computes the activations of `image` `[h, w, 3]`, RGB 0..1, up to `deepest`, into `features`.
    pub fn forward(
        &self,
        image: &Tensor,
        pooling: Pooling,
        deepest: Layer,
        features: &LayerTensors,
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

    /// Computes the gradient with respect to the image into `image_gradient` `[h, w, 3]`.
    ///
    /// For each layer from the deepest on, `seed(layer, gradient, accumulate)` writes the gradient of
    /// the layer's own loss term to `gradient`, or adds it to that from deeper layers if `accumulate`;
    /// it returns false if the layer has no such term. The pass starts at the deepest layer that has
    /// one. `features` are those of the last `forward`; `gradients` has the same depth.
    pub fn backward(
        &self,
        pooling: Pooling,
        features: &LayerTensors,
        gradients: &LayerTensors,
        mut seed: impl FnMut(Layer, &Tensor, bool) -> Result<bool, Error>,
        image_gradient: &Tensor,
        cancel: Cancel,
    ) -> Result<(), Error> {
        let mut started = false;
        for index in (0..=features.deepest().0).rev() {
            let layer = Layer(index);
            let has_term = seed(layer, gradients.layer(layer), started)?;
            // A pool masks the gradient like the ReLU before it, but a term adds to it anywhere.
            let masked = layer.precedes_pool() && !has_term;
            started |= has_term;
            if !started {
                continue;
            }
            if cancel() {
                return Err(Error::Cancelled);
            }
            let input_gradient = gradients.input(layer, image_gradient);
            let (upstream, activation) = (gradients.layer(layer), features.layer(layer));
            self.convs[index].backward(upstream, activation, input_gradient, masked)?;
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

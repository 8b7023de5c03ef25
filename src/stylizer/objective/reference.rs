// SPDX-License-Identifier: MPL-2.0

//! The objective as nested loops in `f64`, which the tests compare with.

use super::*;
use crate::ops::conv::Border;
use crate::ops::reference::{Array, ReferenceKernel, gram, pool, pool_backward};
use crate::stylizer::config::LossScale;
use crate::vgg::weights::Weights;
use crate::vgg::weights::preprocessing::Preprocessing;
use candle_core::Device;

const CHANNELS: [usize; 16] = [4, 4, 6, 6, 8, 8, 8, 8, 10, 10, 10, 10, 10, 10, 10, 10];
pub const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
pub const STD: [f64; 3] = [0.229, 0.224, 0.225];
/// Some layers have both losses, some one, some none.
pub const CONTENT: &str = "conv1_2:0.2,conv2_1:0.3,conv4_2:0.5";
pub const STYLE: &str = "conv1_1:0.2,conv2_1:0.3,conv3_1:0.1,conv3_4:0.2,conv5_2:0.2";

/// A network as nested loops in `f64`.
pub struct Network(pub Vec<ReferenceKernel>);

/// The input and the output of each layer; the first input is the normalised image, and those after
/// a pooling are pooled.
pub type Activations = Vec<(Array, Array)>;

impl Network {
    /// A narrow network of random weights.
    pub fn new() -> Self {
        let mut inputs = 3;
        let kernels = CHANNELS.iter().enumerate().map(|(i, &outputs)| {
            let mut kernel = ReferenceKernel::random(outputs, inputs, 100 + 2 * i as u64);
            let bound = (6.0 / (9 * inputs) as f64).sqrt();
            for weight in &mut kernel.weights {
                *weight = f64::from((*weight * bound) as f32);
            }
            for bias in &mut kernel.bias {
                *bias = f64::from((*bias * 0.1) as f32);
            }
            inputs = outputs;
            kernel
        });
        Self(kernels.collect())
    }

    pub fn of(weights: &Weights) -> Self {
        let values = |tensor: &Tensor| -> Vec<f64> {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f64::from).collect()
        };
        let kernels = weights.convs.iter().map(|(kernel, bias)| ReferenceKernel {
            n_out: kernel.dims()[0],
            n_in: kernel.dims()[1],
            weights: values(kernel),
            bias: values(bias),
        });
        Self(kernels.collect())
    }

    pub fn vgg(&self) -> Arc<Vgg> {
        let preprocessing = Preprocessing {
            mean: MEAN,
            std: STD,
            ..Preprocessing::NONE
        };
        let convs = self.0.iter().map(ReferenceKernel::tensors);
        let weights = Weights::new(convs.collect(), preprocessing);
        Arc::new(Vgg::new(&weights, &Device::Cpu).unwrap())
    }

    fn border(layer: Layer) -> Border {
        match layer {
            Layer::FIRST => Border::Replicate,
            _ => Border::Zeros,
        }
    }

    pub fn forward(&self, image: &Array, pooling: Pooling) -> Activations {
        let mut image = image.clone();
        for (i, value) in image.values.iter_mut().enumerate() {
            *value = (*value - MEAN[i % 3]) / STD[i % 3];
        }
        let mut activations: Activations = Vec::new();
        let mut block = 0;
        for (layer, kernel) in Layer::all().zip(&self.0) {
            let input = match activations.last() {
                None => image.clone(),
                Some((_, before)) if layer.pools_before() > block => pool(pooling, before),
                Some((_, before)) => before.clone(),
            };
            block = layer.pools_before();
            let output = kernel.forward(&input, Self::border(layer));
            activations.push((input, output));
        }
        activations
    }

    /// The gradient with respect to the image; `gradients` has that of each layer's own loss.
    pub fn backward(
        &self,
        activations: &Activations,
        mut gradients: Vec<Array>,
        pooling: Pooling,
    ) -> Array {
        let layers: Vec<Layer> = Layer::all().take(self.0.len()).collect();
        for layer in layers.into_iter().rev() {
            let i = layer.index();
            let (input, output) = &activations[i];
            let mut gradient = self.0[i].backward(&gradients[i], output, Self::border(layer));
            if i == 0 {
                for (j, value) in gradient.values.iter_mut().enumerate() {
                    *value /= STD[j % 3];
                }
                return gradient;
            }
            let before = &activations[i - 1].1;
            if input.h != before.h {
                gradient = pool_backward(pooling, &gradient, before);
            }
            add(&mut gradients[i - 1], 1.0, &gradient);
        }
        unreachable!("the first layer returns")
    }
}

pub fn add(sum: &mut Array, factor: f64, term: &Array) {
    for (sum, term) in sum.values.iter_mut().zip(&term.values) {
        *sum += factor * term;
    }
}

fn half_square(values: &[f64]) -> f64 {
    0.5 * values.iter().map(|value| value * value).sum::<f64>()
}

/// The objective, straight from the formulas of the paper.
pub struct Reference {
    network: Network,
    pooling: Pooling,
    loss_weights: LossWeights,
    content: Activations,
    style: Activations,
}

impl Reference {
    pub fn new(pooling: Pooling, loss_weights: LossWeights, [content, style]: [&Array; 2]) -> Self {
        let network = Network::new();
        Self {
            content: network.forward(content, pooling),
            style: network.forward(style, pooling),
            network,
            pooling,
            loss_weights,
        }
    }

    pub fn evaluate(&self, image: &Array) -> (Losses, Array) {
        let activations = self.network.forward(image, self.pooling);
        let mut gradients: Vec<Array> = activations
            .iter()
            .map(|(_, f)| Array::zeros(f.h, f.w, f.n))
            .collect();
        let loss_weights = self.loss_weights;
        let mut losses = Losses::default();
        for (layer, weight) in layers(CONTENT).iter() {
            let (f, p) = (
                &activations[layer.index()].1,
                &self.content[layer.index()].1,
            );
            let scale = match loss_weights.loss_scale {
                LossScale::Paper => 1.0,
                LossScale::Mean => f.values.len() as f64,
                LossScale::Relative => half_square(&p.values),
            };
            let mut error = f.clone();
            add(&mut error, -1.0, p);
            losses.content += weight / scale * half_square(&error.values);
            add(
                &mut gradients[layer.index()],
                loss_weights.alpha * weight / scale,
                &error,
            );
        }
        for (layer, weight) in layers(STYLE).iter() {
            let f = &activations[layer.index()].1;
            let target = gram(&self.style[layer.index()].1);
            let n_squared = (f.n * f.n) as f64;
            let scale = match loss_weights.loss_scale {
                LossScale::Relative => half_square(&target) / (2.0 * n_squared),
                _ => 1.0,
            };
            let error: Vec<f64> = gram(f).iter().zip(&target).map(|(g, a)| g - a).collect();
            losses.style += weight / scale * half_square(&error) / (2.0 * n_squared);
            let factor = loss_weights.beta * weight / (scale * n_squared * (f.h * f.w) as f64);
            let gradient = &mut gradients[layer.index()].values;
            for (gradient, f) in gradient.chunks_mut(f.n).zip(f.values.chunks(f.n)) {
                for (i, gradient) in gradient.iter_mut().enumerate() {
                    let row = &error[i * f.len()..][..f.len()];
                    *gradient += factor * row.iter().zip(f).map(|(e, f)| e * f).sum::<f64>();
                }
            }
        }
        let mut gradient = self.network.backward(&activations, gradients, self.pooling);
        losses.variation = self.variation(image, &mut gradient);
        losses.total = loss_weights.alpha * losses.content
            + loss_weights.beta * losses.style
            + loss_weights.tv_weight * losses.variation;
        (losses, gradient)
    }

    fn variation(&self, image: &Array, gradient: &mut Array) -> f64 {
        let count = image.values.len() as f64;
        let mut sum = 0.0;
        for y in 0..image.h {
            for x in 0..image.w {
                for c in 0..3 {
                    for (to_y, to_x) in [(y + 1, x), (y, x + 1)] {
                        if to_y < image.h && to_x < image.w {
                            let d = image.at(to_y, to_x, c) - image.at(y, x, c);
                            sum += d * d / count;
                            let slope = 2.0 * self.loss_weights.tv_weight * d / count;
                            *gradient.at_mut(to_y, to_x, c) += slope;
                            *gradient.at_mut(y, x, c) -= slope;
                        }
                    }
                }
            }
        }
        sum
    }
}

pub fn layers(list: &str) -> LayerWeights {
    list.parse().unwrap()
}

// SPDX-License-Identifier: MPL-2.0

//! Where the time of an iteration goes: each operation of an evaluation, run in order at its real
//! shapes, and L-BFGS, as shares of a whole iteration; and the share that is not convolution.
//!
//! `cargo bench --bench breakdown [-- --rounds N] [--threads N] [--precision NAME]`

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::problem::{MIDDLE, Pictures, Problem, name, network, precision, threads};
use common::timing::{argument, median, ms, timed};
use gstgatys::ops::Format;
use gstgatys::ops::conv::{Border, Conv3x3};
use gstgatys::ops::elementwise::{content_loss, total_variation};
use gstgatys::ops::gram::{gram_backward, gram_residual};
use gstgatys::ops::pool::Pooling;
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::weights::{Weights, WeightsSource};
use gstgatys::vgg::{Layer, Precision};
use std::time::Instant;

/// Iterations after which the history of L-BFGS (10 pairs by default) is full, and iterations that
/// are timed after those.
const WARM_UP: u32 = 12;

fn main() {
    let rounds = argument("--rounds", 7);
    let threads = threads(argument("--threads", 0));
    println!(
        "{}, {}, {} threads, medians of {rounds} rounds",
        name(MIDDLE),
        network(precision()).precision(),
        threads.current_num_threads()
    );
    threads.install(|| run(rounds)).expect("an iteration");
}

fn run(rounds: usize) -> Result<()> {
    let pictures = Pictures::made(MIDDLE);
    let network = network(precision());
    let evaluation = Evaluation::new(&pictures.image, network.precision())?;
    let problem = Problem::new(network, &pictures);
    let mut totals = Vec::new();
    let mut measured: Vec<Vec<Timing>> = Vec::new();
    for round in 0..=rounds {
        let whole = ms(timed(|| problem.evaluate()).0);
        let timings = evaluation.evaluate()?;
        // The first round warms up.
        if round > 0 {
            totals.push(whole);
            measured.push(timings);
        }
    }
    let optimiser = optimiser(&problem, &pictures.image)?;

    let part = |index: usize| median(measured.iter().map(|timings| timings[index].ms).collect());
    let sum = |kind: Kind| {
        let indices = (0..measured[0].len()).filter(|&index| measured[0][index].kind == kind);
        indices.map(part).sum::<f64>()
    };
    println!("{:24} {:>9} {:>17}", "", "ms", "G multiply-adds/s");
    for (index, entry) in measured[0].iter().enumerate() {
        if entry.multiply_adds > 0 {
            let speed = entry.multiply_adds as f64 / part(index) / 1e6;
            println!("{:24} {:9.2} {speed:17.1}", entry.name, part(index));
        }
    }
    let iteration = median(totals.clone()) + optimiser;
    let row = |what: &str, time: f64| {
        println!("{what:24} {time:9.2} {:15.2} %", 100.0 * time / iteration);
    };
    let convolution = sum(Kind::Convolution);
    println!("{:24} {:>9} {:>17}", "", "ms", "of an iteration");
    row("convolution", convolution);
    row("pooling", sum(Kind::Pooling));
    row("Gram matrices", sum(Kind::Gram));
    row("content", sum(Kind::Content));
    row("total variation", sum(Kind::Variation));
    row("L-BFGS", optimiser);
    row("the whole", iteration);
    row("what is not convolution", iteration - convolution);
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Convolution,
    Pooling,
    Gram,
    Content,
    Variation,
}

/// The measured time of one operation.
struct Timing {
    kind: Kind,
    name: String,
    /// Of a convolution, else 0.
    multiply_adds: usize,
    ms: f64,
}

/// The operations of an evaluation, one by one, so that each can be timed.
struct Evaluation {
    image: Tensor,
    image_gradient: Tensor,
    layers: Vec<LayerOps>,
    pooling: Pooling,
    /// A gradient factor, and the output for sums.
    one: Tensor,
    sum: Tensor,
}

/// A layer of the network and the loss terms on it.
struct LayerOps {
    layer: Layer,
    conv: Conv3x3,
    features: Tensor,
    gradient: Tensor,
    /// The output of the pooling layer before it, if there is one, and its gradient.
    pooled: Option<(Tensor, Tensor)>,
    /// The target of the Gram matrix, and the residual.
    style: Option<[Tensor; 2]>,
    content: Option<Tensor>,
}

impl Evaluation {
    fn new(image: &Tensor, precision: Precision) -> Result<Self> {
        let config = Config::default();
        let weights = Weights::load(&WeightsSource::BuiltIn).expect("weights");
        let deepest = config
            .content_layers
            .deepest()
            .max(config.style_layers.deepest());
        let (h, w, _) = image.dims3()?;
        let format = match precision {
            Precision::Bf16 => Format::Bf16,
            _ => Format::F32,
        };
        let zeros = |shape: &[usize]| Tensor::zeros(shape, format.dtype(), &Device::Cpu);
        let used = Layer::all().take_while(|&layer| layer <= deepest);
        let mut layers: Vec<LayerOps> = Vec::new();
        for (layer, (kernel, bias)) in used.zip(&weights.convs) {
            let (kernel, bias, border) = match layer {
                Layer::FIRST => {
                    let (kernel, bias) = weights.preprocessing.folded(kernel, bias)?;
                    (kernel, bias, Border::Replicate)
                }
                _ => (kernel.clone(), bias.clone(), Border::Zeros),
            };
            let conv = Conv3x3::new(&kernel, &bias, border, format)?;
            let size = |channels| {
                [
                    h >> layer.pools_before(),
                    w >> layer.pools_before(),
                    channels,
                ]
            };
            let (input, output) = (size(conv.in_channels()), size(conv.out_channels()));
            let before = layers.last().map(|ops| ops.layer.pools_before());
            let pooled = match before.is_some_and(|block| block < layer.pools_before()) {
                true => Some((zeros(&input)?, zeros(&input)?)),
                false => None,
            };
            let has = |mut layers: Box<dyn Iterator<Item = (Layer, f64)> + '_>| {
                layers.any(|(other, _)| other == layer)
            };
            let n = output[2];
            let matrix = || Tensor::zeros((n, n), DType::F32, &Device::Cpu);
            let style = match has(Box::new(config.style_layers.iter())) {
                true => Some([matrix()?, matrix()?]),
                false => None,
            };
            let content = match has(Box::new(config.content_layers.iter())) {
                true => Some(zeros(&output)?),
                false => None,
            };
            layers.push(LayerOps {
                layer,
                conv,
                features: zeros(&output)?,
                gradient: zeros(&output)?,
                pooled,
                style,
                content,
            });
        }
        Ok(Self {
            image: image.copy()?,
            image_gradient: image.zeros_like()?,
            layers,
            pooling: config.pooling,
            one: Tensor::new(&[1f32], &Device::Cpu)?,
            sum: Tensor::new(&[0f64], &Device::Cpu)?,
        })
    }

    fn evaluate(&self) -> Result<Vec<Timing>> {
        let mut timings = Vec::new();
        let mut run = |kind, name: String, multiply_adds, op: &dyn Fn() -> Result<()>| {
            let (time, done) = timed(op);
            timings.push(Timing {
                kind,
                name,
                multiply_adds,
                ms: ms(time),
            });
            done
        };
        let mut input = &self.image;
        for ops in &self.layers {
            if let Some((pooled, _)) = &ops.pooled {
                run(Kind::Pooling, String::new(), 0, &|| {
                    self.pooling.forward(input, pooled)
                })?;
                input = pooled;
            }
            let name = format!("{} forward", ops.layer);
            run(Kind::Convolution, name, ops.multiply_adds(), &|| {
                ops.conv.forward(input, &ops.features)
            })?;
            input = &ops.features;
        }
        for (index, ops) in self.layers.iter().enumerate().rev() {
            let deepest = index + 1 == self.layers.len();
            if let Some(target) = &ops.content {
                run(Kind::Content, String::new(), 0, &|| {
                    let LayerOps {
                        features, gradient, ..
                    } = ops;
                    content_loss(features, target, &self.one, gradient, !deepest, &self.sum)
                })?;
            }
            if let Some([target, residual]) = &ops.style {
                run(Kind::Gram, String::new(), 0, &|| {
                    gram_residual(&ops.features, target, residual, &self.sum)?;
                    let seeded = !deepest || ops.content.is_some();
                    let LayerOps {
                        features, gradient, ..
                    } = ops;
                    gram_backward(features, residual, &self.sum, &self.one, gradient, seeded)
                })?;
            }
            let before = index.checked_sub(1).map(|index| &self.layers[index]);
            let gradient = match (&ops.pooled, before) {
                (Some((_, gradient)), _) => gradient,
                (None, Some(before)) => &before.gradient,
                (None, None) => &self.image_gradient,
            };
            let name = format!("{} backward", ops.layer);
            run(Kind::Convolution, name, ops.multiply_adds(), &|| {
                ops.conv
                    .backward(&ops.gradient, &ops.features, gradient, false)
            })?;
            if let (Some((_, upstream)), Some(before)) = (&ops.pooled, before) {
                run(Kind::Pooling, String::new(), 0, &|| {
                    self.pooling
                        .backward(upstream, &before.features, &before.gradient)
                })?;
            }
        }
        run(Kind::Variation, String::new(), 0, &|| {
            total_variation(&self.image, &self.one, &self.image_gradient, &self.sum)
        })?;
        Ok(timings)
    }
}

impl LayerOps {
    /// Multiply-adds of the convolution, the same in both directions.
    fn multiply_adds(&self) -> usize {
        self.features.elem_count() * 9 * self.conv.in_channels()
    }
}

/// Milliseconds from one evaluation of L-BFGS to the next, once its history is full.
fn optimiser(problem: &Problem, image: &Tensor) -> Result<f64> {
    let image = image.copy()?;
    let mut optimizer = optimizer(&image, &Config::default())?;
    let budget = Budget {
        iterations: 2 * WARM_UP,
        deadline: None,
    };
    let mut ended: Option<Instant> = None;
    let mut times = Vec::new();
    let outcome = optimizer.minimize(&image, budget, &mut |image, gradient| {
        times.extend(ended.map(|ended| ms(ended.elapsed())));
        let losses = problem.evaluate_at(image, gradient);
        ended = Some(Instant::now());
        Ok(losses)
    });
    outcome.expect("an optimised image");
    Ok(median(times.split_off(times.len().min(WARM_UP as usize))))
}

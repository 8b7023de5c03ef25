// SPDX-License-Identifier: MPL-2.0

//! Each operation at the shapes it has for an image of 640x360, with all threads.
//!
//! The throughput of convolutions and Gram matrices counts multiply-adds as elements; that of the
//! others, which are memory-bound, counts the bytes of one operand. Operations on features are
//! measured in f32 and, with AMX, in bf16.
//!
//! `cargo bench --bench ops [-- FILTER]`

mod common;

use candle_core::{DType, Device, Result, Shape, Tensor};
use common::problem::{MIDDLE, threads};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use gstgatys::ops::Format;
use gstgatys::ops::amx::Amx;
use gstgatys::ops::conv::{Border, Conv3x3};
use gstgatys::ops::elementwise as vector;
use gstgatys::ops::gram::{gram, gram_backward};
use gstgatys::ops::pool::Pooling;
use std::time::Duration;

/// The distinct convolutions of VGG-19: the first layer of each shape, its block, and its input and
/// output channels.
const CONVS: [(&str, usize, usize, usize); 9] = [
    ("conv1_1", 0, 3, 64),
    ("conv1_2", 0, 64, 64),
    ("conv2_1", 1, 64, 128),
    ("conv2_2", 1, 128, 128),
    ("conv3_1", 2, 128, 256),
    ("conv3_2", 2, 256, 256),
    ("conv4_1", 3, 256, 512),
    ("conv4_2", 3, 512, 512),
    ("conv5_1", 4, 512, 512),
];

/// Output channels of each block.
const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];

fn main() {
    threads(0).install(|| {
        let mut criterion = Criterion::default().configure_from_args();
        convolutions(&mut criterion, Format::F32);
        poolings(&mut criterion, DType::F32);
        losses(&mut criterion, DType::F32);
        match Amx::new() {
            Some(_) => {
                convolutions(&mut criterion, Format::Bf16);
                poolings(&mut criterion, DType::BF16);
                losses(&mut criterion, DType::BF16);
            }
            None => println!("nothing in bf16: this CPU has no AMX"),
        }
        optimisers(&mut criterion);
        criterion.final_summary();
    });
}

/// A group of operations, measured for about two seconds each.
struct Group<'a>(BenchmarkGroup<'a, WallTime>);

impl<'a> Group<'a> {
    fn new(criterion: &'a mut Criterion, name: &str) -> Self {
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(15)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_millis(1500));
        Self(group)
    }

    /// Measures the operation that `prepare` returns; not called if the filter excludes it.
    fn run<T, Op>(&mut self, name: &str, work: Throughput, mut prepare: impl FnMut() -> Op)
    where
        Op: FnMut() -> Result<T>,
    {
        self.0.throughput(work);
        self.0.bench_function(name, |bencher| {
            let mut op = prepare();
            bencher.iter(|| op().expect("an operation"));
        });
    }
}

fn convolutions(criterion: &mut Criterion, format: Format) {
    let dtype = format.dtype();
    let mut group = Group::new(criterion, &format!("convolution {}", dtype.as_str()));
    for (layer, block, inputs, outputs) in CONVS {
        let (w, h) = MIDDLE;
        let work = (h >> block) * (w >> block) * 9 * inputs * outputs;
        let work = Throughput::Elements(work as u64);
        let conv = || {
            let kernel = noise((outputs, inputs, 3, 3));
            let border = match inputs {
                3 => Border::Replicate,
                _ => Border::Zeros,
            };
            Conv3x3::new(&kernel, &noise(outputs), border, format).expect("a convolution")
        };
        group.run(&format!("{layer} forward"), work.clone(), || {
            let (conv, input) = (conv(), conv_input(block, inputs, dtype));
            let output = features(block, outputs, dtype);
            move || conv.forward(&input, &output)
        });
        group.run(&format!("{layer} backward"), work, || {
            let (conv, output) = (conv(), features(block, outputs, dtype));
            let upstream = features(block, outputs, dtype);
            let gradient = conv_input(block, inputs, dtype);
            move || conv.backward(&upstream, &output, &gradient, false)
        });
    }
}

fn poolings(criterion: &mut Criterion, dtype: DType) {
    let mut group = Group::new(criterion, &format!("pooling {}", dtype.as_str()));
    for (pooling, kind) in [(Pooling::Avg, "avg"), (Pooling::Max, "max")] {
        for (block, channels) in CHANNELS.into_iter().enumerate().take(4) {
            let pool = || {
                (
                    features(block, channels, dtype),
                    features(block + 1, channels, dtype),
                )
            };
            let work = bytes(block, channels, dtype);
            group.run(
                &format!("{kind} {} forward", block + 1),
                work.clone(),
                || {
                    let (input, output) = pool();
                    move || pooling.forward(&input, &output)
                },
            );
            group.run(&format!("{kind} {} backward", block + 1), work, || {
                let (input, upstream) = pool();
                let gradient = features(block, channels, dtype);
                move || pooling.backward(&upstream, &input, &gradient)
            });
        }
    }
}

fn losses(criterion: &mut Criterion, dtype: DType) {
    let mut group = Group::new(criterion, &format!("loss {}", dtype.as_str()));
    for (block, channels) in CHANNELS.into_iter().enumerate() {
        let (w, h) = MIDDLE;
        let work = (h >> block) * (w >> block) * channels * channels;
        let work = Throughput::Elements(work as u64);
        let layer = format!("conv{}_1", block + 1);
        group.run(&format!("Gram {layer} forward"), work.clone(), || {
            let features = features(block, channels, dtype);
            let output = noise((channels, channels));
            move || gram(&features, &output)
        });
        group.run(&format!("Gram {layer} backward"), work, || {
            let [of, gradient] = [0; 2].map(|_| features(block, channels, dtype));
            let residual = noise((channels, channels));
            let (one, sum) = (one(), sum());
            move || gram_backward(&of, &residual, &sum, &one, &gradient, false)
        });
    }
    group.run("content conv4_2", bytes(3, 512, dtype), || {
        let [f, p, gradient] = [0; 3].map(|_| features(3, 512, dtype));
        let (one, sum) = (one(), sum());
        move || vector::content_loss(&f, &p, &one, &gradient, false, &sum)
    });
}

/// A factor of 1.
fn one() -> Tensor {
    Tensor::new(&[1f32], &Device::Cpu).expect("a tensor")
}

/// The output of an operation that sums.
fn sum() -> Tensor {
    Tensor::new(&[0f64], &Device::Cpu).expect("a tensor")
}

/// Operations on images: total variation, and the vector arithmetic of the optimisers.
fn optimisers(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "vector");
    group.run("total variation", bytes(0, 3, DType::F32), || {
        let [image, gradient] = [0; 2].map(|_| features(0, 3, DType::F32));
        let (one, sum) = (one(), sum());
        move || vector::total_variation(&image, &one, &gradient, &sum)
    });
    type Op = fn(&Tensor, &Tensor, &Tensor) -> Result<()>;
    let ops: [(&str, Op); 9] = [
        ("copy", |x, y, _| vector::copy(x, y)),
        ("dot", |x, y, _| vector::dot(x, y).map(drop)),
        // A factor so small that many repetitions stay finite.
        ("axpy", |x, y, _| vector::axpy(1e-9, x, y)),
        ("scale", |x, _, _| vector::scale(1.0, x)),
        ("difference", vector::difference),
        ("step", |x, y, z| vector::step(x, y, 0.1, z)),
        ("project direction", vector::project_direction),
        ("decay", |x, y, _| vector::decay(x, 0.9, y, true)),
        ("Adam's step", |x, y, z| {
            vector::adam_step(x, 1e-9, y, 0.5, z)
        }),
    ];
    for (name, op) in ops {
        group.run(name, bytes(0, 3, DType::F32), || {
            let [x, y, z] = [0; 3].map(|_| features(0, 3, DType::F32));
            move || op(&x, &y, &z)
        });
    }
}

fn noise(shape: impl Into<Shape>) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("noise")
}

/// Features of a block, about half of them 0, as after a ReLU.
fn features(block: usize, channels: usize, dtype: DType) -> Tensor {
    let (w, h) = MIDDLE;
    let features = noise((h >> block, w >> block, channels)).relu();
    features
        .and_then(|features| features.to_dtype(dtype))
        .expect("features")
}

/// A convolution's input: features, or an image, which is f32.
fn conv_input(block: usize, channels: usize, dtype: DType) -> Tensor {
    match channels {
        3 => features(block, channels, DType::F32),
        _ => features(block, channels, dtype),
    }
}

/// The size of a block's features, as a throughput.
fn bytes(block: usize, channels: usize, dtype: DType) -> Throughput {
    let (w, h) = MIDDLE;
    let values = (h >> block) * (w >> block) * channels;
    Throughput::Bytes((values * dtype.size_in_bytes()) as u64)
}

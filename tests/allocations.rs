// SPDX-License-Identifier: MPL-2.0

//! Once warm, an iteration allocates nothing of the size of an image, a layer's features or a Gram
//! matrix: it works in the tensors that were allocated for the frame size.

use candle_core::{Device, Tensor};
use gstgatys::stylizer::config::{Config, OptimizerKind};
use gstgatys::stylizer::objective::{LossWeights, Objective};
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::weights::{Weights, WeightsSource};
use gstgatys::vgg::{Layer, Precision, Vgg};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An odd width, so that no other buffer has one of these sizes by chance.
const SIZE: (usize, usize) = (80, 111);

/// The sizes in bytes that must not be allocated.
static SIZES: OnceLock<Vec<usize>> = OnceLock::new();
/// The number of allocations of one of these sizes.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if SIZES
            .get()
            .is_some_and(|sizes| sizes.contains(&layout.size()))
        {
            ALLOCATED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn picture(phase: f32) -> Tensor {
    let (h, w) = SIZE;
    let values = (0..h * w * 3).map(|i| 0.5 + 0.4 * (phase + i as f32 * 0.013).sin());
    Tensor::from_vec(values.collect::<Vec<f32>>(), (h, w, 3), &Device::Cpu).unwrap()
}

/// The number of such allocations in each iteration of an optimisation.
fn allocations(precision: Precision, kind: OptimizerKind) -> Vec<usize> {
    let vgg = Vgg::shared(&WeightsSource::BuiltIn, &Device::Cpu, precision).unwrap();
    let config = Config {
        optimizer: kind,
        ..Config::default()
    };
    let (content, style) = (&config.content_layers, &config.style_layers);
    let mut objective = Objective::new(vgg, SIZE, content, style, config.pooling).unwrap();
    objective.set_style(&picture(1.0), &|| false).unwrap();
    objective.set_content(&picture(2.0), &|| false).unwrap();
    let loss_weights = LossWeights::from(&config);
    let image = picture(3.0);
    let budget = Budget {
        iterations: 30,
        deadline: None,
    };
    let mut seen = Vec::new();
    optimizer(&image, &config)
        .unwrap()
        .minimize(&image, budget, &mut |image, gradient| {
            seen.push(ALLOCATED.load(Ordering::Relaxed));
            objective.evaluate(image, loss_weights, gradient, &|| false)
        })
        .unwrap();
    seen.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Images, features and their gradients in f32 or bf16, and Gram matrices.
fn sizes(weights: &Weights) -> Vec<usize> {
    let single = size_of::<f32>();
    let mut sizes = vec![SIZE.0 * SIZE.1 * 3 * single];
    for (layer, n) in Layer::all().zip(weights.channels()) {
        let (h, w) = (
            SIZE.0 >> layer.pools_before(),
            SIZE.1 >> layer.pools_before(),
        );
        sizes.extend([h * w * n * single, h * w * n * single / 2, n * n * single]);
    }
    sizes
}

#[test]
fn an_iteration_allocates_no_tensors() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    SIZES.set(sizes(&weights)).unwrap();
    let has = |precision: &Precision| precision.check(&Device::Cpu).is_ok();
    for precision in [Precision::F32, Precision::Bf16].into_iter().filter(has) {
        for kind in [OptimizerKind::Lbfgs, OptimizerKind::Adam] {
            let before = ALLOCATED.load(Ordering::Relaxed);
            let seen = allocations(precision, kind);
            // The tensors allocated before the first iteration are counted.
            assert!(ALLOCATED.load(Ordering::Relaxed) > before);
            assert!(seen.len() > 20, "{precision}, {kind:?}: {seen:?}");
            // By then the L-BFGS history is full, and every thread has its scratch memory.
            let warm = &seen[seen.len() - 10..];
            let none = warm.iter().all(|&count| count == 0);
            assert!(none, "{precision}, {kind:?}: {seen:?}");
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! An iteration works in the memory that its frame size was given: once warm, all that it
//! allocates are the buffers that `gemm` packs the operands of Gram products in.

use candle_core::{Device, Tensor};
use gstgatys::stylizer::config::{Config, OptimizerKind};
use gstgatys::stylizer::objective::{Balance, Objective};
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::vgg::Vgg;
use gstgatys::vgg::weights::{Source, Weights};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const SIZE: (usize, usize) = (128, 192);

/// Bytes that were allocated since the start.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn picture(phase: f32) -> Tensor {
    let (h, w) = SIZE;
    let values = (0..h * w * 3).map(|i| 0.5 + 0.4 * (phase + i as f32 * 0.013).sin());
    Tensor::from_vec(values.collect::<Vec<f32>>(), (h, w, 3), &Device::Cpu).unwrap()
}

/// Bytes that each iteration of an optimisation allocates.
fn allocations(weights: &Weights, kind: OptimizerKind) -> Vec<usize> {
    let vgg = Arc::new(Vgg::new(weights, &Device::Cpu).unwrap());
    let config = Config {
        optimizer: kind,
        ..Config::default()
    };
    let (content, style) = (&config.content_layers, &config.style_layers);
    let mut objective = Objective::new(vgg, SIZE, content, style, config.pooling).unwrap();
    objective.set_style(&picture(1.0), &|| false).unwrap();
    objective.set_content(&picture(2.0), &|| false).unwrap();
    let balance = Balance {
        alpha: config.alpha,
        beta: config.beta,
        tv_weight: config.tv_weight,
        loss_scale: config.loss_scale,
    };
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
            objective.evaluate(image, balance, gradient, &|| false)
        })
        .unwrap();
    seen.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn an_iteration_allocates_no_tensors() {
    let weights = Weights::load(&Source::BuiltIn).unwrap();
    let (h, w) = SIZE;
    let first = weights.convs[0].1.elem_count() * h * w * size_of::<f32>();
    for kind in [OptimizerKind::Lbfgs, OptimizerKind::Adam] {
        let seen = allocations(&weights, kind);
        assert!(seen.len() > 20, "{kind:?}: {seen:?}");
        // By then the history of L-BFGS is full, and every thread has its scratch memory.
        let warm = seen[seen.len() - 10..].iter().max().unwrap();
        println!("{kind:?}: {warm} bytes; features of conv1_1: {first}");
        assert!(*warm < first / 4, "{kind:?}: {seen:?}");
    }
}

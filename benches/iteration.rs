// SPDX-License-Identifier: MPL-2.0

//! One value and gradient of the objective at its defaults, with all threads, in f32 and, where
//! there is AMX, in bf16.
//!
//! `cargo bench --bench iteration [-- FILTER]`

mod common;

use candle_core::Device;
use common::problem::{LARGE, Problem, SIZES, name, threads};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use gstgatys::vgg::Precision;

fn main() {
    threads(0).install(|| {
        let mut criterion = Criterion::default().configure_from_args();
        iteration(&mut criterion);
        criterion.final_summary();
    });
}

fn iteration(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("iteration");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for precision in [Precision::F32, Precision::Bf16] {
        if precision.check(&Device::Cpu).is_err() {
            continue;
        }
        for size in SIZES.into_iter().chain([LARGE]) {
            group.throughput(Throughput::Elements((size.0 * size.1) as u64));
            // Made by the first call: sizes that are filtered out are not.
            let mut problem = None;
            let id = BenchmarkId::new(precision.to_string(), name(size));
            group.bench_function(id, |bencher| {
                let problem = problem.get_or_insert_with(|| Problem::made(size, precision));
                bencher.iter(|| problem.evaluate());
            });
        }
    }
    group.finish();
}

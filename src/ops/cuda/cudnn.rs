// SPDX-License-Identifier: MPL-2.0

//! 3x3 convolutions of features `[h, w, channels]` with `f32` accumulation, by the fastest
//! of cuDNN's engines that are deterministic.

use super::super::Format;
use super::super::conv_algorithm::{ConvAlgorithm, Operation};
use super::backend::Handle;
use super::plan::{ConvOperands, OperationGraph, Plan, WORKSPACE_BYTES};
use super::{Arg, StreamGuard, suffix};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::result::memset_d8_async;
use candle_core::{Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

/// Positions and channels of a block of the fallback kernel: `TILE` in `kernels/convolution.cuh`.
const FALLBACK_TILE: usize = 64;

/// How often an algorithm is timed; the minimum counts.
const TIMING_ROUNDS: usize = 5;

/// The engine configurations that are timed for an operation, at most.
const MAX_CONFIGS: usize = 10;

/// Runs that are timed together: as many as take about so long in milliseconds, and at most so many.
const ROUND_MS: f32 = 1.0;
const MAX_ROUND_RUNS: usize = 10;

/// Runs that seem to take less, in milliseconds, may wait for the host to launch them, as they do not in a
/// CUDA graph. The GPU is kept busy for a moment before they are timed, in which the host gets ahead.
const SHORT_MS: f32 = 0.1;

/// A plan's format, h, w, n_in and n_out, and algorithm.
type PlanKey = (Format, [usize; 4], ConvAlgorithm);

/// cuDNN on one stream, for one thread at a time: a handle, and the plans of the convolutions that were
/// enqueued.
pub struct CudnnStream {
    handle: Rc<Handle>,
    plans: RefCell<HashMap<PlanKey, Plan>>,
}

// SAFETY: any thread may use a handle and its plans, one at a time. All that share the handle are plans in
// here, or graphs that a function makes and drops while it borrows this.
unsafe impl Send for CudnnStream {}

impl CudnnStream {
    pub fn new(stream: &CudaStream) -> Result<Self> {
        Ok(Self {
            handle: Rc::new(Handle::new(stream)?),
            plans: RefCell::default(),
        })
    }
}

/// A 3x3 convolution of features of one size, stride 1, zero padding.
pub struct CudnnConvolution {
    format: Format,
    /// h, w, n_in, n_out
    dims: [usize; 4],
}

impl CudnnConvolution {
    pub fn new(format: Format, [h, w]: [usize; 2], [n_in, n_out]: [usize; 2]) -> Self {
        Self {
            format,
            dims: [h, w, n_in, n_out],
        }
    }

    /// Times the candidate algorithms, each with `epilogue` after it unless that is fused. Returns the
    /// fastest that works, if any, and a report of each result. The output is overwritten.
    pub fn find_fastest(
        &self,
        stream: &StreamGuard,
        operands: ConvOperands,
        mut epilogue: impl FnMut(&StreamGuard) -> Result<()>,
    ) -> (Option<ConvAlgorithm>, String) {
        let (mut algorithms, mut results) = self.candidates(&stream.handles.cudnn.handle, operands);
        // It is slow: only for what no other algorithm computes.
        algorithms.push(ConvAlgorithm::Fallback);
        let mut fastest: Option<(f32, ConvAlgorithm)> = None;
        for algorithm in algorithms {
            if algorithm == ConvAlgorithm::Fallback && fastest.is_some() {
                break;
            }
            let shortest = fastest.as_ref().map_or(f32::INFINITY, |(time, _)| *time);
            let result = self.time(stream, (&algorithm, shortest), operands, &mut epilogue);
            self.forget_plan(stream, &algorithm);
            results += &match &result {
                Ok(time) => format!("; {algorithm}: {time:.4} ms"),
                Err(error) => format!("; {algorithm}: {error}"),
            };
            if let Ok(time) = result
                && time < shortest
            {
                fastest = Some((time, algorithm));
            }
        }
        (fastest.map(|(_, algorithm)| algorithm), results)
    }

    /// What cuDNN proposes for the operations that these operands allow, and a report of
    /// the operations that it proposes none for.
    fn candidates(
        &self,
        handle: &Rc<Handle>,
        operands: ConvOperands,
    ) -> (Vec<ConvAlgorithm>, String) {
        let (mut algorithms, mut failures) = (Vec::new(), String::new());
        for operation in Operation::ALL {
            if operands.of(operation).is_none() {
                continue;
            }
            let configs = OperationGraph::new(handle, operation, self.format, self.dims)
                .and_then(|graph| graph.configs(MAX_CONFIGS));
            match configs {
                Ok(configs) => algorithms.extend(
                    configs
                        .into_iter()
                        .map(|config| ConvAlgorithm::Cudnn(operation, config)),
                ),
                Err(error) => failures += &format!("; {}: {error}", operation.name()),
            }
        }
        (algorithms, failures)
    }

    /// The time of a run of an algorithm in milliseconds, the minimum over some rounds; over fewer if it
    /// is more than twice `limit`, and over none if a single run takes a round's time more than that.
    fn time(
        &self,
        stream: &StreamGuard,
        (algorithm, limit): (&ConvAlgorithm, f32),
        operands: ConvOperands,
        epilogue: &mut impl FnMut(&StreamGuard) -> Result<()>,
    ) -> Result<f32> {
        use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        let cuda_stream = stream.handles.stream.clone();
        let mut run = || {
            self.run(stream, algorithm, operands)?;
            match algorithm.is_fused() {
                true => Ok(()),
                false => epilogue(stream),
            }
        };
        let mut time = |runs: usize, head_start: bool| {
            if head_start {
                occupy(stream)?;
            }
            let begun = cuda_stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
            (0..runs).try_for_each(|_| run())?;
            let ended = cuda_stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
            cuda_stream.synchronize().w()?;
            Ok::<_, Error>(begun.elapsed_ms(&ended).w()? / runs as f32)
        };
        // A warm-up, which shows whether the algorithm is supported.
        time(1, false)?;
        let single = time(1, false)?;
        if single > 2.0 * limit + ROUND_MS {
            return Ok(single);
        }
        let runs = ((ROUND_MS / single) as usize).clamp(1, MAX_ROUND_RUNS);
        let mut shortest = f32::INFINITY;
        for _ in 0..TIMING_ROUNDS {
            shortest = shortest.min(time(runs, single < SHORT_MS)?);
            if shortest > 2.0 * limit {
                break;
            }
        }
        Ok(shortest)
    }

    /// Enqueues the convolution by an algorithm.
    pub fn run(
        &self,
        stream: &StreamGuard,
        algorithm: &ConvAlgorithm,
        operands: ConvOperands,
    ) -> Result<()> {
        let ConvAlgorithm::Cudnn(operation, config) = algorithm else {
            return self.run_fallback(stream, operands);
        };
        let CudnnStream { handle, plans } = &stream.handles.cudnn;
        let mut plans = plans.borrow_mut();
        let plan = match plans.entry(self.plan_key(algorithm)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let graph = OperationGraph::new(handle, *operation, self.format, self.dims)?;
                entry.insert(graph.plan(config)?)
            }
        };
        let workspace = stream.workspace()?;
        // SAFETY: the operands lie on the handle's device and have the sizes in the graph, which `Conv`
        // sees to; the workspace is large enough.
        unsafe { plan.execute(operands, workspace) }
    }

    fn plan_key(&self, algorithm: &ConvAlgorithm) -> PlanKey {
        (self.format, self.dims, algorithm.clone())
    }

    fn forget_plan(&self, stream: &StreamGuard, algorithm: &ConvAlgorithm) {
        let mut plans = stream.handles.cudnn.plans.borrow_mut();
        plans.remove(&self.plan_key(algorithm));
    }

    fn run_fallback(&self, stream: &StreamGuard, operands: ConvOperands) -> Result<()> {
        let [h, w, _, n_out] = self.dims;
        let tiles = (h * w).div_ceil(FALLBACK_TILE) * n_out.div_ceil(FALLBACK_TILE);
        let dims = self.dims.map(|dim| Arg::Int(dim as i32));
        let operands = [operands.input, operands.kernel, operands.output].map(Arg::Address);
        let kernel = format!("convolution_{}", suffix(self.format.dtype())?);
        let blocks = tiles.min(i32::MAX as usize) as u32;
        stream.launch(&kernel, blocks, &[&operands[..], &dims].concat())
    }
}

/// Keeps the GPU busy for some 0.2 ms, which an H200 takes to write so much.
fn occupy(stream: &StreamGuard) -> Result<()> {
    let workspace = stream.workspace()?;
    let cuda_stream = stream.handles.stream.cu_stream();
    for _ in 0..4 {
        // SAFETY: the workspace has so many bytes, and what is in it means nothing between operations.
        unsafe { memset_d8_async(workspace, 0, WORKSPACE_BYTES, cuda_stream) }.w()?;
    }
    Ok(())
}

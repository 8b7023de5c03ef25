// SPDX-License-Identifier: MPL-2.0

//! Work that is recorded once, as a CUDA graph, and replayed.

use super::{Gpu, RECORDING, lock};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, result};
use candle_core::{Device, Error, Result};
use std::sync::Arc;

/// A graph of operations on tensors that stay where they are.
pub struct Recording {
    graph: CudaGraph,
    gpu: Arc<Gpu>,
}

// SAFETY: a graph may be used by any thread, by one at a time; `launch` takes it by `&mut`.
unsafe impl Send for Recording {}

impl Recording {
    /// Records what `work` does, without doing it. What it takes besides tensors' memory is to be
    /// there: it has been done before.
    ///
    /// The outer error is that of recording, the inner one that of `work`.
    pub fn new<E>(
        device: &Device,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<Self, E>> {
        let gpu = Gpu::of(device)?;
        let recorder = lock(&gpu.recorder);
        let stream = lock(&gpu.recording).stream.clone();
        // Other threads' calls of the driver are none of this recording's business.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).w()?;
        RECORDING.set(true);
        let worked = work();
        RECORDING.set(false);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
        if let Err(error) = worked {
            return Ok(Err(error));
        }
        let graph = graph?.ok_or_else(|| Error::msg("nothing was recorded"))?;
        graph.upload().w()?;
        stream.synchronize().w()?;
        drop(recorder);
        Ok(Ok(Self { graph, gpu }))
    }

    /// Does it, in the device's stream.
    pub fn replay(&mut self) -> Result<()> {
        let lane = lock(&self.gpu.lane);
        lane.stream.context().bind_to_thread().w()?;
        // SAFETY: the graph is whole, and nobody else has it.
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), lane.stream.cu_stream()) }.w()
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Work that is recorded once, as a CUDA graph, and replayed.

use super::notes::{Note, note};
use super::{Gpu, RECORDING, lock};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, result};
use candle_core::{Device, Error, Result};
use std::fmt::Display;
use std::sync::Arc;

/// Other threads' calls of the driver are none of a recording's business. The second mode also bears
/// with calls that are no part of it, as where a library gets memory.
const MODES: [CUstreamCaptureMode; 2] = [
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
];

/// A graph of operations on tensors that stay where they are.
pub struct Recording {
    graph: CudaGraph,
    gpu: Arc<Gpu>,
}

// SAFETY: a graph may be used by any thread, by one at a time; `launch` takes it by `&mut`.
unsafe impl Send for Recording {}

impl Recording {
    /// Does `work`, and records what it does. None where the driver would not record it, which is
    /// noted.
    pub fn new<E: From<Error> + Display>(
        device: &Device,
        mut work: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Self>, E> {
        let gpu = Gpu::of(device)?;
        let _recorder = lock(&gpu.recorder);
        let stream = lock(&gpu.recording).stream.clone();
        // Done on the stream that is recorded, so that all it takes is there when it is. Nobody else
        // works meanwhile, as both streams use the same scratch memory.
        {
            let main = lock(&gpu.lane);
            stream.join(&main.stream).w()?;
            let done = diverted(&mut work);
            main.stream.join(&stream).w()?;
            done?;
        }
        stream.synchronize().w()?;
        let mut refused = Vec::new();
        for mode in MODES {
            match record(&stream, mode, || diverted(&mut work)) {
                Ok(graph) => {
                    if !refused.is_empty() {
                        note(Note::Found(format!(
                            "not recorded as {}",
                            refused.join("; ")
                        )));
                    }
                    let gpu = gpu.clone();
                    return Ok(Some(Self { graph, gpu }));
                }
                Err(error) => refused.push(format!("{mode:?}: {error}")),
            }
        }
        note(Note::Unrecorded(refused.join("; ")));
        Ok(None)
    }

    /// Does it, in the device's stream.
    pub fn replay(&mut self) -> Result<()> {
        let lane = lock(&self.gpu.lane);
        lane.stream.context().bind_to_thread().w()?;
        // SAFETY: the graph is whole, and nobody else has it.
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), lane.stream.cu_stream()) }.w()
    }
}

fn record<E: Display>(
    stream: &Arc<CudaStream>,
    mode: CUstreamCaptureMode,
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<CudaGraph, String> {
    let begun = stream.begin_capture(mode);
    begun.map_err(|error| format!("it does not begin: {error}"))?;
    let worked = work();
    // It ends, whatever became of it.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    worked.map_err(|error| format!("an operation refuses: {error}"))?;
    let graph = graph.map_err(|error| format!("it does not end: {error}"))?;
    graph.ok_or("it has nothing".into())
}

/// Does `work` on the stream that is recorded.
fn diverted<R>(work: &mut impl FnMut() -> R) -> R {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            RECORDING.set(false);
        }
    }
    RECORDING.set(true);
    let _back = Back;
    work()
}

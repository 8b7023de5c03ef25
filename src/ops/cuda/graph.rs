// SPDX-License-Identifier: MPL-2.0

//! CUDA graphs: operations that are captured once and launched as often as needed.

use super::diagnostics::{Note, note};
use super::{CAPTURING, Gpu, is_capturing};
use crate::threads::lock;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, result};
use candle_core::{Device, Error, Result};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// The capture modes in the order they are tried. Both allow other threads' calls of the driver; the
/// relaxed one also allows this thread calls that cannot be captured, such as a library's allocations.
const CAPTURE_MODES: [CUstreamCaptureMode; 2] = [
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
];

/// A CUDA graph of operations. It has their tensors' addresses, and does not keep them.
pub struct CapturedGraph {
    graph: CudaGraph,
    gpu: Arc<Gpu>,
}

// SAFETY: any thread may use a graph, one at a time; `launch` takes it by `&mut`.
unsafe impl Send for CapturedGraph {}

impl CapturedGraph {
    /// Runs `work` once, and then captures it. None, and a note, if the driver refuses to capture it.
    pub fn capture<E: From<Error> + Display>(
        device: &Device,
        mut work: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Self>, E> {
        let gpu = Gpu::of(device)?;
        let _turn = lock(&gpu.capture_turn);
        let stream = lock(&gpu.capture).stream.clone();
        // It runs on the capture stream first, so that all allocations and measurements are done before
        // the capture. The main stream is locked meanwhile, as both streams use the same scratch memory.
        {
            let main = lock(&gpu.main);
            stream.join(&main.stream).w()?;
            let done = catch_unwind(AssertUnwindSafe(|| on_capture_stream(&mut work)));
            main.stream.join(&stream).w()?;
            done.unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        stream.synchronize().w()?;
        let mut refused = Vec::new();
        for mode in CAPTURE_MODES {
            match capture(&stream, mode, || on_capture_stream(&mut work)) {
                Ok(graph) => {
                    if !refused.is_empty() {
                        note(Note::Info(format!(
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
        note(Note::CaptureFailed(refused.join("; ")));
        Ok(None)
    }

    /// Launches the graph on the main stream.
    ///
    /// # Safety
    /// The tensors that the captured work uses must live until the graph is done.
    pub unsafe fn launch(&mut self) -> Result<()> {
        let main = lock(&self.gpu.main);
        main.stream.context().bind_to_thread().w()?;
        // SAFETY: the graph was instantiated, `&mut self` keeps other threads off it, and its tensors are there.
        unsafe { result::graph::launch(self.graph.cu_graph_exec(), main.stream.cu_stream()) }.w()
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // cudarc destroys the graph in the context of the thread, whichever that is.
        let _ = self.gpu.device.cuda_stream().context().bind_to_thread();
    }
}

fn capture<E: Display>(
    stream: &Arc<CudaStream>,
    mode: CUstreamCaptureMode,
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<CudaGraph, String> {
    let begun = stream.begin_capture(mode);
    begun.map_err(|error| format!("it does not begin: {error}"))?;
    let worked = catch_unwind(AssertUnwindSafe(work));
    // The capture must be ended even if the work failed or panicked. cudarc first returns errors that other
    // threads have left, and does not end it then.
    let mut graph = stream.end_capture(CUgraphInstantiate_flags(0));
    if graph.is_err() && is_capturing(stream).unwrap_or(false) {
        graph = stream.end_capture(CUgraphInstantiate_flags(0));
    }
    let worked = worked.unwrap_or_else(|panic| resume_unwind(panic));
    worked.map_err(|error| format!("an operation refuses: {error}"))?;
    let graph = graph.map_err(|error| format!("it does not end: {error}"))?;
    graph.ok_or("it has nothing".into())
}

/// Runs `work` with this thread's operations on the capture stream.
fn on_capture_stream<R>(work: &mut impl FnMut() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            CAPTURING.set(false);
        }
    }
    CAPTURING.set(true);
    let _restore = Restore;
    work()
}

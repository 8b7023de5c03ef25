// SPDX-License-Identifier: MPL-2.0

//! Capture and replay of repeated work as a CUDA graph.

use candle_core::{Device, Error};
use std::fmt::Display;
use std::result::Result;

/// A sequence of operations that is the same, on the same tensors, in each run. Its owner must keep these
/// tensors: a recording has only their addresses.
///
/// On CUDA the first run executes it, which allocates memory and chooses algorithms, the second
/// executes it once more and captures it as a CUDA graph, and later ones replay that. On other devices
/// each run executes it.
#[derive(Default)]
pub struct Recorded {
    #[cfg(feature = "cudnn")]
    state: State,
}

#[cfg(feature = "cudnn")]
#[derive(Default)]
enum State {
    #[default]
    Fresh,
    /// Executed at least once; with the number of captures that failed or were cancelled.
    WarmedUp(u32),
    Recorded(super::cuda::graph::CapturedGraph),
}

/// Failed captures after which the work is only executed.
#[cfg(feature = "cudnn")]
const MAX_CAPTURE_FAILURES: u32 = 3;

impl Recorded {
    /// Does `work`.
    #[cfg(not(feature = "cudnn"))]
    pub fn run<E: From<Error> + Display>(
        &mut self,
        _: &Device,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        work()
    }

    /// Does `work` on `device`. A replay returns as soon as it is enqueued.
    #[cfg(feature = "cudnn")]
    pub fn run<E: From<Error> + Display>(
        &mut self,
        device: &Device,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        use super::cuda::graph::CapturedGraph;
        if !device.is_cuda() {
            return work();
        }
        match &mut self.state {
            // SAFETY: who runs the work again has kept its tensors.
            State::Recorded(recording) => unsafe { recording.launch()? },
            State::WarmedUp(MAX_CAPTURE_FAILURES) => work()?,
            State::WarmedUp(failures) => {
                let failures = *failures + 1;
                self.state = match CapturedGraph::capture(device, work)? {
                    Some(recording) => State::Recorded(recording),
                    None => State::WarmedUp(failures),
                };
            }
            State::Fresh => {
                work()?;
                self.state = State::WarmedUp(0);
            }
        }
        Ok(())
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Work that is the same each time.

use candle_core::{Device, Error};
use std::fmt::Display;
use std::result::Result;

/// Operations on the same tensors each time, which a GPU records when they are done for the second
/// time, and replays from then on: the first time finds memory and algorithms for them.
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
    /// With the number of times that recording it failed, or was cancelled.
    Done(u32),
    Recorded(super::cuda::record::Recording),
}

/// How often recording is tried.
#[cfg(feature = "cudnn")]
const TRIES: u32 = 3;

impl Recorded {
    #[cfg(not(feature = "cudnn"))]
    pub fn run<E: From<Error> + Display>(
        &mut self,
        _: &Device,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        work()
    }

    /// Does `work` on `device`. Where it is replayed, it ends when it is given to the device.
    #[cfg(feature = "cudnn")]
    pub fn run<E: From<Error> + Display>(
        &mut self,
        device: &Device,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        use super::cuda::record::Recording;
        if !device.is_cuda() {
            return work();
        }
        match &mut self.state {
            State::Recorded(recording) => recording.replay()?,
            State::Done(TRIES) => work()?,
            State::Done(tries) => {
                let tries = *tries + 1;
                self.state = match Recording::new(device, work)? {
                    Some(recording) => State::Recorded(recording),
                    None => State::Done(tries),
                };
            }
            State::Fresh => {
                work()?;
                self.state = State::Done(0);
            }
        }
        Ok(())
    }
}

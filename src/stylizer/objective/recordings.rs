// SPDX-License-Identifier: MPL-2.0

//! Recordings of evaluations, by the tensors that they read and write.

use crate::ops::record::Recorded;
use candle_core::TensorId;

/// An optimiser evaluates two images, each with the temporal term or without.
const CAPACITY: usize = 4;

/// What one recording serves for.
#[derive(Clone, Copy, PartialEq)]
pub struct RecordingKey {
    pub image: TensorId,
    pub gradient: TensorId,
    pub with_temporal: bool,
}

/// The recordings used last, the latest first.
#[derive(Default)]
pub struct Recordings(Vec<(RecordingKey, Recorded)>);

impl Recordings {
    /// Takes out the recording for `key`, or an empty one.
    pub fn take(&mut self, key: RecordingKey) -> Recorded {
        match self.0.iter().position(|(other, _)| *other == key) {
            Some(index) => self.0.remove(index).1,
            None => Recorded::default(),
        }
    }

    /// Puts a recording in as the latest. The one that was unused for longest makes room: its
    /// tensors are gone.
    pub fn put(&mut self, key: RecordingKey, recorded: Recorded) {
        self.0.truncate(CAPACITY - 1);
        self.0.insert(0, (key, recorded));
    }
}

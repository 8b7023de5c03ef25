// SPDX-License-Identifier: MPL-2.0

//! Messages about the use of a GPU, collected for reports. Nothing depends on them.

use crate::threads::lock;
use std::fmt;
use std::sync::Mutex;

/// A limit, as the notes may never be taken.
const MAX_NOTES: usize = 1000;

static NOTES: Mutex<Vec<Note>> = Mutex::new(Vec::new());

/// What was noted.
pub enum Note {
    /// The times of a convolution's algorithms and why others failed, or a capture that took a
    /// second attempt.
    Info(String),
    /// Why a CUDA graph could not be captured.
    CaptureFailed(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info(what) => f.write_str(what),
            Self::CaptureFailed(why) => write!(f, "not recorded: {why}"),
        }
    }
}

/// Keeps a note.
pub(super) fn note(note: Note) {
    let mut notes = lock(&NOTES);
    if notes.len() < MAX_NOTES {
        notes.push(note);
    }
}

/// The notes since the last call.
pub fn take() -> Vec<Note> {
    std::mem::take(&mut *lock(&NOTES))
}

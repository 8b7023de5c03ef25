// SPDX-License-Identifier: MPL-2.0

//! What was found out about a GPU on the way, for reports: nothing depends on it.

use super::lock;
use std::fmt;
use std::sync::Mutex;

/// Notes that are kept at most: nobody may ever take them.
const MOST: usize = 1000;

static NOTES: Mutex<Vec<Note>> = Mutex::new(Vec::new());

/// What was found out.
pub enum Note {
    /// How long convolutions take by which algorithm, why others do not compute them, and what was
    /// recorded at the second attempt only.
    Found(String),
    /// Why work is not recorded.
    Unrecorded(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(what) => f.write_str(what),
            Self::Unrecorded(why) => write!(f, "not recorded: {why}"),
        }
    }
}

/// Keeps a note.
pub(super) fn note(note: Note) {
    let mut notes = lock(&NOTES);
    if notes.len() < MOST {
        notes.push(note);
    }
}

/// The notes since they were taken last.
pub fn take() -> Vec<Note> {
    std::mem::take(&mut *lock(&NOTES))
}

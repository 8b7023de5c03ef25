// SPDX-License-Identifier: MPL-2.0

//! Which of cuDNN's algorithms was the fastest for a convolution, as it was measured once: kept in
//! a file, so that the next run computes the same, bit for bit, and need not measure.

use once_cell::sync::Lazy;
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::{env, fs, io};

static REMEMBERED: Lazy<Mutex<HashMap<String, String>>> = Lazy::new(|| Mutex::new(read()));

/// `$XDG_CACHE_HOME/gst-plugin-gatys/convolutions`, a line for each: what it is of, a tab, and which
/// it was.
fn file() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("gst-plugin-gatys").join("convolutions"))
}

fn read() -> HashMap<String, String> {
    let text = file().and_then(|path| fs::read_to_string(path).ok());
    let text = text.unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines.map(|(of, which)| (of.into(), which.into())).collect()
}

/// What was remembered of `of`, or what `measure` finds now.
pub fn remembered<E>(of: &str, measure: impl FnOnce() -> Result<String, E>) -> Result<String, E> {
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(which) = remembered.get(of) {
        return Ok(which.clone());
    }
    let which = measure()?;
    remembered.insert(of.into(), which.clone());
    // Where it cannot be kept, it is measured again.
    let _ = append(of, &which);
    Ok(which)
}

/// Forgets what cannot be used any more.
pub fn forget(of: &str) {
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    remembered.remove(of);
}

/// A line at the end, in one piece, as other processes may write too: the last one counts.
fn append(of: &str, which: &str) -> io::Result<()> {
    let Some(path) = file() else { return Ok(()) };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    file.write_all(format!("{of}\t{which}\n").as_bytes())
}

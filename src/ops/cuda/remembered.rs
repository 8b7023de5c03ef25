// SPDX-License-Identifier: MPL-2.0

//! Which algorithm was the fastest for a convolution, as it was measured once: kept in a file, so
//! that the next run computes the same, bit for bit, and need not measure.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::{fs, io};

/// `$XDG_CACHE_HOME/gst-plugin-gatys/convolutions`, or where that is by default.
#[cfg(feature = "cudnn")]
pub fn file() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("gst-plugin-gatys").join("convolutions"))
}

/// What a file has a line of: what it is of, a tab, and which it was. Of several the last counts.
pub struct Remembered {
    file: Option<PathBuf>,
    known: HashMap<String, String>,
}

impl Remembered {
    pub fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|path| fs::read_to_string(path).ok());
        let text = text.unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        Self {
            known: lines.map(|(of, which)| (of.into(), which.into())).collect(),
            file,
        }
    }

    /// What is known of `of`, or what `measure` finds now.
    pub fn of<E>(
        &mut self,
        of: &str,
        measure: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        if let Some(which) = self.known.get(of) {
            return Ok(which.clone());
        }
        let which = measure()?;
        self.known.insert(of.into(), which.clone());
        // Where it cannot be kept, the next run measures again.
        let _ = self.append(of, &which);
        Ok(which)
    }

    /// Forgets what turned out to be of no use.
    pub fn forget(&mut self, of: &str) {
        self.known.remove(of);
    }

    /// Adds a line in one piece, as other processes may do at the same time.
    fn append(&self, of: &str, which: &str) -> io::Result<()> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
        file.write_all(format!("{of}\t{which}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn measured(which: &str) -> impl FnOnce() -> Result<String, Infallible> {
        let which = which.to_string();
        || Ok(which)
    }

    fn known() -> Result<String, Infallible> {
        panic!("it is known")
    }

    #[test]
    fn the_next_run_knows() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("a folder").join("convolutions"));
        let mut first = Remembered::open(file.clone());
        assert_eq!(first.of("one 3x4", measured("fused")).unwrap(), "fused");
        assert_eq!(first.of("two", measured("plain")).unwrap(), "plain");
        assert_eq!(first.of("one 3x4", known).unwrap(), "fused");
        let mut second = Remembered::open(file.clone());
        assert_eq!(second.of("one 3x4", known).unwrap(), "fused");
        // What is of no use any more is measured again, for the runs after it too.
        second.forget("one 3x4");
        assert_eq!(second.of("one 3x4", measured("own")).unwrap(), "own");
        assert_eq!(Remembered::open(file).of("one 3x4", known).unwrap(), "own");
    }

    #[test]
    fn what_cannot_be_kept_is_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "no line of ours\n").unwrap();
        for file in [None, Some(blocked.join("below"))] {
            let mut remembered = Remembered::open(file);
            assert_eq!(remembered.of("one", measured("fused")).unwrap(), "fused");
            assert_eq!(remembered.of("one", known).unwrap(), "fused");
        }
        let mut remembered = Remembered::open(Some(blocked));
        assert_eq!(remembered.of("one", measured("fused")).unwrap(), "fused");
    }

    #[test]
    fn nothing_is_kept_of_what_failed() {
        let mut remembered = Remembered::open(None);
        assert_eq!(remembered.of("one", || Err(7)), Err(7));
        assert_eq!(remembered.of("one", measured("own")).unwrap(), "own");
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The fastest algorithm of each convolution, measured once and kept in a file, so that later runs
//! need not measure and compute the same, bit for bit.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::{fs, io};

/// `$XDG_CACHE_HOME/gst-plugin-gatys/convolutions`, with `~/.cache` as the default of the variable.
#[cfg(feature = "cudnn")]
pub fn default_file() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("gst-plugin-gatys").join("convolutions"))
}

/// A map that is kept in a file with lines of a key, a tab and an algorithm's name. The last line of a
/// key counts.
pub struct AlgorithmCache {
    file: Option<PathBuf>,
    algorithms: HashMap<String, String>,
}

impl AlgorithmCache {
    pub fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|path| fs::read_to_string(path).ok());
        let text = text.unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        Self {
            algorithms: lines.map(|(key, name)| (key.into(), name.into())).collect(),
            file,
        }
    }

    /// The algorithm of `key`: the cached one, or else what `measure` finds.
    pub fn get_or_measure<E>(
        &mut self,
        key: &str,
        measure: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        if let Some(name) = self.algorithms.get(key) {
            return Ok(name.clone());
        }
        let name = measure()?;
        self.algorithms.insert(key.into(), name.clone());
        // If it cannot be written, the next run measures again.
        let _ = self.append(key, &name);
        Ok(name)
    }

    /// Drops an algorithm that does not work.
    pub fn remove(&mut self, key: &str) {
        self.algorithms.remove(key);
    }

    /// Appends a line with a single write, as other processes may append at the same time.
    fn append(&self, key: &str, name: &str) -> io::Result<()> {
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
        file.write_all(format!("{key}\t{name}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn measured(name: &str) -> impl FnOnce() -> Result<String, Infallible> {
        let name = name.to_string();
        || Ok(name)
    }

    fn not_measured() -> Result<String, Infallible> {
        panic!("it is cached")
    }

    #[test]
    fn the_next_run_does_not_measure() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("a folder").join("convolutions"));
        let mut first = AlgorithmCache::open(file.clone());
        let one = first.get_or_measure("one 3x4", measured("fused"));
        assert_eq!(one.unwrap(), "fused");
        let two = first.get_or_measure("two", measured("plain"));
        assert_eq!(two.unwrap(), "plain");
        let one = first.get_or_measure("one 3x4", not_measured);
        assert_eq!(one.unwrap(), "fused");
        let mut second = AlgorithmCache::open(file.clone());
        let one = second.get_or_measure("one 3x4", not_measured);
        assert_eq!(one.unwrap(), "fused");
        // What was removed is measured again, for later runs too.
        second.remove("one 3x4");
        let one = second.get_or_measure("one 3x4", measured("own"));
        assert_eq!(one.unwrap(), "own");
        let mut third = AlgorithmCache::open(file);
        let one = third.get_or_measure("one 3x4", not_measured);
        assert_eq!(one.unwrap(), "own");
    }

    #[test]
    fn without_a_usable_file_it_caches_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "no line of ours\n").unwrap();
        for file in [None, Some(blocked.join("below"))] {
            let mut cache = AlgorithmCache::open(file);
            let one = cache.get_or_measure("one", measured("fused"));
            assert_eq!(one.unwrap(), "fused");
            let one = cache.get_or_measure("one", not_measured);
            assert_eq!(one.unwrap(), "fused");
        }
        let mut cache = AlgorithmCache::open(Some(blocked));
        let one = cache.get_or_measure("one", measured("fused"));
        assert_eq!(one.unwrap(), "fused");
    }

    #[test]
    fn failed_measurements_are_not_cached() {
        let mut cache = AlgorithmCache::open(None);
        assert_eq!(cache.get_or_measure("one", || Err(7)), Err(7));
        let one = cache.get_or_measure("one", measured("own"));
        assert_eq!(one.unwrap(), "own");
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The fastest algorithm of each convolution, measured once and kept in a file, so that later runs
//! need not measure and compute the same, bit for bit. The fallback is not kept there: what keeps cuDNN from
//! computing, such as a want of memory, may be over in the next run.

use super::conv_algorithm::ConvAlgorithm;
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
/// key counts; lines that name no algorithm do not.
pub struct AlgorithmCache {
    file: Option<PathBuf>,
    algorithms: HashMap<String, ConvAlgorithm>,
}

impl AlgorithmCache {
    pub fn open(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|path| fs::read_to_string(path).ok());
        let text = text.unwrap_or_default();
        let entry = |line: &str| {
            let (key, name) = line.split_once('\t')?;
            Some((key.to_string(), name.parse().ok()?))
        };
        Self {
            algorithms: text.lines().filter_map(entry).collect(),
            file,
        }
    }

    /// The algorithm of `key`: the cached one, or else what `measure` finds.
    pub fn get_or_measure<E>(
        &mut self,
        key: &str,
        measure: impl FnOnce() -> Result<ConvAlgorithm, E>,
    ) -> Result<ConvAlgorithm, E> {
        if let Some(algorithm) = self.algorithms.get(key) {
            return Ok(algorithm.clone());
        }
        let algorithm = measure()?;
        self.algorithms.insert(key.into(), algorithm.clone());
        if algorithm != ConvAlgorithm::Fallback {
            // If it cannot be written, the next run measures again.
            let _ = self.append(key, &algorithm);
        }
        Ok(algorithm)
    }

    /// All keys and algorithms, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &ConvAlgorithm)> {
        self.algorithms.iter()
    }

    /// Drops an algorithm that does not work.
    pub fn remove(&mut self, key: &str) {
        self.algorithms.remove(key);
    }

    /// Appends a line with a single write, as other processes may append at the same time.
    fn append(&self, key: &str, algorithm: &ConvAlgorithm) -> io::Result<()> {
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
        file.write_all(format!("{key}\t{algorithm}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    type Measured = Result<ConvAlgorithm, Infallible>;

    fn engine(number: u32) -> ConvAlgorithm {
        format!("plain {number} 2=3").parse().unwrap()
    }

    fn measured(algorithm: ConvAlgorithm) -> impl FnOnce() -> Measured {
        || Ok(algorithm)
    }

    fn not_measured() -> Measured {
        panic!("it is cached")
    }

    #[test]
    fn the_next_run_does_not_measure() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("a folder").join("convolutions"));
        let mut first = AlgorithmCache::open(file.clone());
        let one = first.get_or_measure("one 3x4", measured(engine(1)));
        assert_eq!(one.unwrap(), engine(1));
        let two = first.get_or_measure("two", measured(engine(2)));
        assert_eq!(two.unwrap(), engine(2));
        let one = first.get_or_measure("one 3x4", not_measured);
        assert_eq!(one.unwrap(), engine(1));
        let mut second = AlgorithmCache::open(file.clone());
        let one = second.get_or_measure("one 3x4", not_measured);
        assert_eq!(one.unwrap(), engine(1));
        // What was removed is measured again, for later runs too.
        second.remove("one 3x4");
        let one = second.get_or_measure("one 3x4", measured(engine(3)));
        assert_eq!(one.unwrap(), engine(3));
        let mut third = AlgorithmCache::open(file);
        let one = third.get_or_measure("one 3x4", not_measured);
        assert_eq!(one.unwrap(), engine(3));
    }

    #[test]
    fn the_next_run_looks_again_for_better_than_the_fallback() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("convolutions"));
        let mut first = AlgorithmCache::open(file.clone());
        let one = first.get_or_measure("one", measured(ConvAlgorithm::Fallback));
        assert_eq!(one.unwrap(), ConvAlgorithm::Fallback);
        let one = first.get_or_measure("one", not_measured);
        assert_eq!(one.unwrap(), ConvAlgorithm::Fallback);
        let mut second = AlgorithmCache::open(file);
        let one = second.get_or_measure("one", measured(engine(1)));
        assert_eq!(one.unwrap(), engine(1));
    }

    #[test]
    fn lines_that_name_no_algorithm_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("convolutions");
        fs::write(&file, "one\tplain 1 2=3\none\tsoon\ntwo\town\nthree\n\n").unwrap();
        let mut cache = AlgorithmCache::open(Some(file));
        let one = ("one".to_string(), engine(1));
        assert_eq!(cache.iter().collect::<Vec<_>>(), [(&one.0, &one.1)]);
        for key in ["two", "three"] {
            let measured = cache.get_or_measure(key, measured(engine(2)));
            assert_eq!(measured.unwrap(), engine(2));
        }
    }

    #[test]
    fn without_a_usable_file_it_caches_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        for file in [None, Some(blocked.join("below"))] {
            let mut cache = AlgorithmCache::open(file);
            let one = cache.get_or_measure("one", measured(engine(1)));
            assert_eq!(one.unwrap(), engine(1));
            let one = cache.get_or_measure("one", not_measured);
            assert_eq!(one.unwrap(), engine(1));
        }
    }

    #[test]
    fn failed_measurements_are_not_cached() {
        let mut cache = AlgorithmCache::open(None);
        assert_eq!(cache.get_or_measure("one", || Err(7)), Err(7));
        let one = cache.get_or_measure("one", measured(engine(1)));
        assert_eq!(one.unwrap(), engine(1));
    }
}

// SPDX-License-Identifier: MPL-2.0

//! PyTorch's files: a pickled `state_dict` and the values of its tensors, in a zip archive, or one after the other as
//! before PyTorch 1.6.
//!
//! A pickle is a program. What `torch.save` writes for tensors is followed, by their names alone; nothing else of it is
//! run. Whatever is in a file, memory and time are in proportion to its length, and nothing recurses.

mod pickle;

use candle_core::Tensor;
use pickle::{Info, MAX_PICKLE, Machine};
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use zip::result::ZipResult;
use zip::{CompressionMethod, ZipArchive};

/// What is wrong with a file, for a person.
type Result<T> = std::result::Result<T, String>;

/// How a file begins: a zip archive, or the pickle of PyTorch's magic number 0x1950a86a20f9469cfc6c.
const ZIP: &[u8] = b"PK\x03\x04";
const OLD: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Whether a file is one of PyTorch's, by its first bytes.
pub fn is_pytorch(file: &[u8]) -> bool {
    file.starts_with(ZIP) || file.starts_with(OLD)
}

/// The tensors of a file whose names are wanted.
pub fn tensors(file: &[u8], is_wanted: impl Fn(&str) -> bool) -> Result<HashMap<String, Tensor>> {
    if file.starts_with(OLD) {
        return one_after_the_other(file, is_wanted);
    }
    let entries = entries(file).map_err(|error| error.to_string())?;
    let entry = |name: &str| {
        let range = entries.get(name).cloned();
        range.ok_or_else(|| format!("the archive has no {name}"))
    };
    let folder = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .min();
    let folder = folder.ok_or("the archive has no data.pkl")?;
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && &file[order.clone()] != b"little"
    {
        return Err("its numbers are not little-endian".into());
    }
    let pickle = &file[entry(&format!("{folder}data.pkl"))?];
    if pickle.len() > MAX_PICKLE {
        return Err("its data.pkl is far too long".into());
    }
    let machine = Machine::run(&mut Reader(pickle))?;
    read(&machine, is_wanted, |key| {
        Ok(&file[entry(&format!("{folder}data/{key}"))?])
    })
}

/// Where the entries of a zip archive lie, as far as they are whole and not compressed, which PyTorch's never are.
fn entries(file: &[u8]) -> ZipResult<HashMap<String, Range<usize>>> {
    let mut archive = ZipArchive::new(Cursor::new(file))?;
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        if let Some(range) = range.filter(|range| file.get(range.clone()).is_some())
            && entry.compression() == CompressionMethod::Stored
        {
            entries.insert(entry.name()?.into_owned(), range);
        }
    }
    Ok(entries)
}

/// Of the old format: five pickles, the magic number, a version, the machine, the `state_dict` and the storages' keys; then
/// for each of these its number of values, eight bytes, and the values (PyTorch, `torch/serialization.py`,
/// `_legacy_save`).
fn one_after_the_other(
    file: &[u8],
    is_wanted: impl Fn(&str) -> bool,
) -> Result<HashMap<String, Tensor>> {
    let mut rest = Reader(&file[OLD.len()..]);
    for _version_and_machine in 0..2 {
        Machine::run(&mut rest)?;
    }
    let machine = Machine::run(&mut rest)?;
    let keys = Machine::run(&mut rest)?;
    let sizes: HashMap<&str, usize> = machine
        .storages()
        .filter_map(|storage| Some((storage.key.as_str(), storage.value_size()?)))
        .collect();
    let mut storages = HashMap::new();
    for key in keys.texts() {
        let size = sizes
            .get(key)
            .ok_or_else(|| format!("storage {key} is of no known type"))?;
        let values = rest
            .number(8)
            .and_then(|count| rest.take(count.checked_mul(*size)?));
        storages.insert(
            key,
            values.ok_or_else(|| format!("the file ends before storage {key}"))?,
        );
    }
    read(&machine, is_wanted, |key| {
        let values = storages.get(key).copied();
        values.ok_or_else(|| format!("the file has no storage {key}"))
    })
}

/// The wanted ones of the tensors that a `state_dict` lists, from the storages of their keys.
fn read<'a>(
    state_dict: &Machine,
    is_wanted: impl Fn(&str) -> bool,
    storage: impl Fn(&str) -> Result<&'a [u8]>,
) -> Result<HashMap<String, Tensor>> {
    let wanted = state_dict.tensors().filter(|(name, _)| is_wanted(name));
    let wanted: HashMap<&str, &Info> = wanted.collect();
    let tensors = wanted.into_iter().map(|(name, info)| {
        let tensor = storage(&info.storage.key).and_then(|values| info.read(values));
        let tensor = tensor.map_err(|what| format!("{name}: {what}"))?;
        Ok((name.to_owned(), tensor))
    });
    tensors.collect()
}

/// Reads little-endian numbers from the front of a slice.
#[derive(Clone)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|&byte| byte == b'\n')?;
        let line = self.take(length + 1)?;
        Some(&line[..length])
    }

    /// A number of `length` bytes, without a sign.
    fn number(&mut self, length: usize) -> Option<usize> {
        let bytes = self.take(length)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |n, &byte| n << 8 | usize::from(byte)),
        )
    }
}

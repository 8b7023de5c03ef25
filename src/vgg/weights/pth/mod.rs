// SPDX-License-Identifier: MPL-2.0

//! PyTorch's files: a pickled `state_dict` and the values of its tensors, in a zip archive or, before PyTorch 1.6, one after
//! the other.
//!
//! A pickle is a program. Only what `torch.save` writes for tensors is interpreted, recognising functions by name; nothing
//! is ever called. For any file, memory and time are proportional to its length, and nothing recurses.

mod pickle;

use super::archive::{Entries, Entry, Result};
use pickle::{MAX_PICKLE, PickleMachine};
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use zip::result::ZipResult;
use zip::{CompressionMethod, ZipArchive};

/// The beginning of a file in the legacy format: the pickle of PyTorch's magic number 0x1950a86a20f9469cfc6c.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The pickle's name, in a folder of the zip archive.
const PICKLE: &str = "data.pkl";

/// Whether a file is in PyTorch's legacy format, by its first bytes.
pub fn is_legacy(file: &[u8]) -> bool {
    file.starts_with(LEGACY)
}

/// Whether a zip archive is one of PyTorch's.
pub fn is_pytorch(zip: &ZipArchive<Cursor<&[u8]>>) -> bool {
    zip.file_names()
        .any(|name| name.is_ok_and(|name| name.ends_with(PICKLE)))
}

/// The tensors of a file that is a zip archive.
pub fn zip_entries<'a>(file: &'a [u8], zip: ZipArchive<Cursor<&[u8]>>) -> Result<Entries<'a>> {
    let parts = parts(file, zip).map_err(|error| error.to_string())?;
    let part = |name: &str| {
        let part = parts.get(name).copied();
        part.ok_or_else(|| format!("the archive has no {name}"))
    };
    let folder = parts
        .keys()
        .filter_map(|name| name.strip_suffix(PICKLE))
        .min();
    let folder = folder.ok_or("its data.pkl is cut short, or compressed")?;
    if let Some(&order) = parts.get(&format!("{folder}byteorder"))
        && order != b"little"
    {
        return Err("its numbers are not little-endian".into());
    }
    let pickle = part(&format!("{folder}{PICKLE}"))?;
    if pickle.len() > MAX_PICKLE {
        return Err("its data.pkl is far too long".into());
    }
    let machine = PickleMachine::run(&mut ByteReader(pickle))?;
    Ok(entries(&machine, |key| {
        part(&format!("{folder}data/{key}"))
    }))
}

/// The bytes of the files in a zip archive, by name. Leaves out incomplete and compressed ones; PyTorch never compresses.
fn parts<'a>(
    file: &'a [u8],
    mut archive: ZipArchive<Cursor<&[u8]>>,
) -> ZipResult<HashMap<String, &'a [u8]>> {
    let mut parts = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let bytes = range.and_then(|range: Range<usize>| file.get(range));
        if let Some(bytes) = bytes
            && entry.compression() == CompressionMethod::Stored
        {
            parts.insert(entry.name()?.into_owned(), bytes);
        }
    }
    Ok(parts)
}

/// The tensors of a file in the legacy format: the pickles of the magic number, a version, the machine's properties, the
/// `state_dict` and the storages' keys; then for each key the number of values in 8 bytes, and the values (PyTorch,
/// `torch/serialization.py`, `_legacy_save`).
pub fn legacy_entries(file: &[u8]) -> Result<Entries<'_>> {
    let mut rest = ByteReader(&file[LEGACY.len()..]);
    for _version_and_machine in 0..2 {
        PickleMachine::run(&mut rest)?;
    }
    let machine = PickleMachine::run(&mut rest)?;
    let keys = PickleMachine::run(&mut rest)?;
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
    Ok(entries(&machine, |key| {
        let values = storages.get(key).copied();
        values.ok_or_else(|| format!("the file has no storage {key}"))
    }))
}

/// The tensors that a `state_dict` lists; `storage` gives the bytes of a storage by its key.
fn entries<'a>(
    state_dict: &PickleMachine,
    storage: impl Fn(&str) -> Result<&'a [u8]>,
) -> Entries<'a> {
    let tensors = state_dict.tensors().into_iter();
    tensors
        .map(|(name, info)| {
            let values = storage(&info.storage.key);
            let (shape, info) = (info.shape.clone(), info.clone());
            (name, Entry::new(shape, move || info.read(values.clone()?)))
        })
        .collect()
}

/// Reads little-endian numbers from the front of a slice.
#[derive(Clone)]
struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
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

    /// An unsigned number of `length` bytes.
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

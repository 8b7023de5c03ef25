// SPDX-License-Identifier: MPL-2.0

//! HDF5 files, as written by Keras.

use super::MAX_KERNEL;
use super::archive::{Entries, Entry, Result};
use candle_core::{DType, Device, Tensor};
use hdf5_reader::group::Group;
use hdf5_reader::{Datatype, Hdf5File, OpenOptions};
use std::collections::HashSet;

/// The longest path of a group that is looked into: a file of nested groups would take memory as the
/// square of its size.
const MAX_PATH: usize = 1000;

/// The most groups and datasets: links may name one object again and again, at a few bytes each. Keras' files have a hundred.
const MAX_MEMBERS: usize = 4096;

/// A file's datasets, by path.
pub fn entries(file: &[u8]) -> Result<Entries<'static>> {
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(0)
        .with_max_chunk_bytes(MAX_KERNEL)
        .with_max_read_bytes(MAX_KERNEL)
        .with_max_object_header_bytes(file.len());
    let file = Hdf5File::from_bytes_with_options(file, options).map_err(cause)?;
    let mut entries = Entries::new();
    let mut groups = vec![(String::new(), file.root_group().map_err(cause)?)];
    // A group may be linked several times, even below itself.
    let mut seen = HashSet::new();
    let mut members = 0;
    while let Some((path, group)) = groups.pop() {
        if path.len() > MAX_PATH || !seen.insert(group.address()) {
            continue;
        }
        let (inner, datasets) = group.member_names().map_err(cause)?;
        members += inner.len() + datasets.len();
        if members > MAX_MEMBERS {
            return Err(format!(
                "it has more than {MAX_MEMBERS} groups and datasets"
            ));
        }
        for name in datasets {
            let shape = group.dataset(&name).map_err(cause)?.shape().to_vec();
            let path = format!("{path}{name}");
            entries.insert(path, entry(&group, name, &shape));
        }
        for name in inner {
            let inner = group.group(&name).map_err(cause)?;
            groups.push((format!("{path}{name}/"), inner));
        }
    }
    Ok(entries)
}

/// A dataset of a group. It is opened when it is read: a dataset that is kept holds a copy of its header, which may be long.
fn entry(group: &Group, name: String, shape: &[u64]) -> Entry<'static> {
    let shape: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
    let group = group.clone();
    Entry::new(shape.clone(), move || {
        let dataset = group.dataset(&name).map_err(cause)?;
        let Datatype::FloatingPoint { size, .. } = dataset.dtype() else {
            return Err("it is not of floats".into());
        };
        let dtype = match size {
            2 => DType::F16,
            4 => DType::F32,
            8 => DType::F64,
            _ => return Err(format!("floats of {size} bytes cannot be read")),
        };
        let values = dataset.read_native_bytes().map_err(cause)?;
        Tensor::from_raw_buffer(&values, dtype, &shape, &Device::Cpu)
            .map_err(|error| error.to_string())
    })
}

fn cause(error: hdf5_reader::error::Error) -> String {
    error.to_string()
}

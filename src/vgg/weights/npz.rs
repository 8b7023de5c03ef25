// SPDX-License-Identifier: MPL-2.0

//! NumPy's `.npz` files: zip archives of arrays `NAME.npy`.
//!
//! An array is a header, the text of a Python dictionary, followed by the values (NumPy, `numpy/lib/format.py`).

use super::archive::{Entries, Entry, Result};
use candle_core::{DType, Device, Tensor};
use std::io::{Cursor, Read};
use zip::ZipArchive;
use zip::result::ZipResult;

type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// The longest header in bytes; those that NumPy writes have about a hundred.
const MAX_HEADER: usize = 4096;

const SUFFIX: &str = ".npy";

pub fn is_npz(zip: &Zip) -> bool {
    zip.file_names()
        .any(|name| name.is_ok_and(|name| name.ends_with(SUFFIX)))
}

pub fn entries(mut zip: Zip<'_>) -> Result<Entries<'_>> {
    let names: ZipResult<Vec<String>> = zip
        .file_names()
        .map(|name| name.map(|name| name.into_owned()))
        .collect();
    let names = names.map_err(|error| error.to_string())?;
    let mut entries = Entries::new();
    for file in names {
        let Some(name) = file.strip_suffix(SUFFIX) else {
            continue;
        };
        let named = |cause| format!("{name}: {cause}");
        let header = read(&mut zip, &file, |array| NpyHeader::read(array)).map_err(named)?;
        let (name, zip) = (name.to_owned(), zip.clone());
        let entry = Entry::new(header.shape, move || {
            read(&mut zip.clone(), &file, |array| {
                NpyHeader::read(array)?.values(array)
            })
        });
        entries.insert(name, entry);
    }
    Ok(entries)
}

/// Applies `read` to a file in the archive.
fn read<T>(zip: &mut Zip, file: &str, read: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
    let mut file = zip.by_name(file).map_err(|error| error.to_string())?;
    read(&mut file)
}

struct NpyHeader {
    /// Byte order and type, as in `<f4`.
    descr: String,
    /// Whether the first index varies fastest.
    fortran_order: bool,
    shape: Vec<usize>,
}

impl NpyHeader {
    fn read(array: &mut dyn Read) -> Result<Self> {
        let version = bytes(array, 8)?;
        let length = match version.strip_prefix(b"\x93NUMPY") {
            Some([1, _]) => bytes(array, 2)?,
            Some([2 | 3, _]) => bytes(array, 4)?,
            _ => return Err("it is not one of NumPy's arrays".into()),
        };
        let length = length.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
        if length > MAX_HEADER {
            return Err("its header is far too long".into());
        }
        let header = bytes(array, length)?;
        std::str::from_utf8(&header)
            .ok()
            .and_then(Self::parse)
            .ok_or_else(|| "its header cannot be read".into())
    }

    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, 3, 64), }`
    fn parse(header: &str) -> Option<Self> {
        let value = |key: &str| {
            let (_, after) = header.split_once(&format!("'{key}':"))?;
            Some(after.trim_start())
        };
        let (descr, _) = value("descr")?.strip_prefix('\'')?.split_once('\'')?;
        let (shape, _) = value("shape")?.strip_prefix('(')?.split_once(')')?;
        let sides = shape.split(',').map(str::trim);
        let sides = sides.filter(|side| !side.is_empty());
        Some(Self {
            descr: descr.into(),
            fortran_order: value("fortran_order")?.starts_with("True"),
            shape: sides.map(|side| side.parse().ok()).collect::<Option<_>>()?,
        })
    }

    fn values(mut self, array: &mut dyn Read) -> Result<Tensor> {
        let dtype = match self.descr.get(1..) {
            Some("f2") => DType::F16,
            Some("f4") => DType::F32,
            Some("f8") => DType::F64,
            _ => {
                return Err(format!(
                    "it is of {}, which is not a type of floats",
                    self.descr
                ));
            }
        };
        let size = dtype.size_in_bytes();
        let length = self
            .shape
            .iter()
            .try_fold(size, |n, &side| n.checked_mul(side))
            .ok_or("its shape cannot be")?;
        let mut values = bytes(array, length)?;
        if self.descr.starts_with('>') {
            values.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        let dimensions = self.shape.len();
        if self.fortran_order {
            self.shape.reverse();
        }
        let tensor = Tensor::from_raw_buffer(&values, dtype, &self.shape, &Device::Cpu);
        let tensor = match self.fortran_order {
            true => {
                tensor.and_then(|tensor| tensor.permute((0..dimensions).rev().collect::<Vec<_>>()))
            }
            false => tensor,
        };
        tensor.map_err(|error| error.to_string())
    }
}

/// The next `length` bytes. Allocates no more than there are, whatever `length` claims.
fn bytes(array: &mut dyn Read, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = array.take(length as u64).read_to_end(&mut bytes);
    match read {
        Ok(read) if read == length => Ok(bytes),
        Ok(_) => Err("it is cut short".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let parse = NpyHeader::parse;
        let header = parse("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  \n");
        let header = header.unwrap();
        assert_eq!((&header.descr[..], header.fortran_order), ("<f4", false));
        assert_eq!(header.shape, [3, 4]);
        let header = parse("{'shape':(5,),'descr':'<f8','fortran_order':True}").unwrap();
        assert_eq!((&header.descr[..], header.fortran_order), ("<f8", true));
        assert_eq!(header.shape, [5]);
        let scalar = parse("{'descr': '<f2', 'fortran_order': False, 'shape': ()}").unwrap();
        assert_eq!(scalar.shape, [0; 0]);
        for bad in [
            "",
            "{}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4",
            "{'descr': '<f4', 'shape': (3, 4)}",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn values_in_fortran_order() {
        let header = NpyHeader {
            descr: "<f4".into(),
            fortran_order: true,
            shape: vec![2, 3],
        };
        let values: Vec<u8> = [0f32, 10.0, 1.0, 11.0, 2.0, 12.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let tensor = header.values(&mut &values[..]).unwrap();
        assert_eq!(
            tensor.to_vec2::<f32>().unwrap(),
            [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
        );
    }

    #[test]
    fn types() {
        let read = |descr: &str, values: &[u8]| {
            let header = NpyHeader {
                descr: descr.into(),
                fortran_order: false,
                shape: vec![1],
            };
            let tensor = header.values(&mut &values[..])?;
            let tensor = tensor.to_dtype(DType::F64).unwrap();
            Ok(tensor.to_vec1::<f64>().unwrap()[0])
        };
        assert_eq!(read("<f4", &1.5f32.to_le_bytes()), Ok(1.5));
        assert_eq!(read(">f4", &1.5f32.to_be_bytes()), Ok(1.5));
        assert_eq!(read(">f8", &1.5f64.to_be_bytes()), Ok(1.5));
        for other in ["|O", "<i4", "<U3", "", "é"] {
            let error: Result<f64> = read(other, &[0; 8]);
            assert!(error.unwrap_err().contains(other));
        }
    }

    #[test]
    fn allocates_no_more_than_there_is_to_read() {
        let header = NpyHeader {
            descr: "<f4".into(),
            fortran_order: false,
            shape: vec![usize::MAX >> 3],
        };
        assert!(header.values(&mut &[0; 16][..]).is_err());
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The tensors of a file, whatever its format, which its first bytes tell.

use super::{Error, hdf5, npz, pth};
use candle_core::safetensors::SliceSafetensors;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use zip::ZipArchive;

/// What is wrong with a file, or a tensor of it, for a person.
pub type Result<T> = std::result::Result<T, String>;

/// A tensor that has not been read yet.
pub struct Entry<'a> {
    pub shape: Vec<usize>,
    read: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

impl<'a> Entry<'a> {
    pub fn new(shape: Vec<usize>, read: impl Fn() -> Result<Tensor> + 'a) -> Self {
        let read = Box::new(read);
        Self { shape, read }
    }

    /// Its values on the CPU, in f16, bf16, f32 or f64. Conversions of the smaller floats may never end.
    pub fn read(&self) -> Result<Tensor> {
        let tensor = (self.read)()?;
        match tensor.dtype() {
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Ok(tensor),
            other => Err(format!("{} is not a type of weights", other.as_str())),
        }
    }
}

/// By name.
pub type Entries<'a> = BTreeMap<String, Entry<'a>>;

/// A file's tensors, and what else it says.
pub struct Archive<'a> {
    pub entries: Entries<'a>,
    pub metadata: HashMap<String, String>,
}

/// How a file begins: a zip archive, HDF5, NumPy's arrays and MATLAB's files (whose version 7.3 is HDF5 further on).
const ZIP: &[u8] = b"PK\x03\x04";
const HDF5: &[u8] = b"\x89HDF\r\n\x1a\n";
const NPY: &[u8] = b"\x93NUMPY";
const MATLAB: &[u8] = b"MATLAB ";

/// A format that tensors are read from.
#[derive(Clone, Copy)]
pub enum Format {
    LegacyPytorch,
    Zip,
    Hdf5,
    Safetensors,
}

impl Format {
    /// Bytes of a file's beginning that tell its format.
    pub const BEGINNING: u64 = 4096;

    /// That of a file which begins so.
    pub fn of(beginning: &[u8]) -> std::result::Result<Self, Error> {
        if beginning.is_empty() {
            Err(Error::Empty)
        } else if pth::is_legacy(beginning) {
            Ok(Self::LegacyPytorch)
        } else if beginning.starts_with(ZIP) {
            Ok(Self::Zip)
        } else if beginning.starts_with(HDF5) {
            Ok(Self::Hdf5)
        } else if beginning.starts_with(NPY) {
            Err(Error::Convert("a NumPy file of pickled objects"))
        } else if beginning.starts_with(MATLAB) {
            Err(Error::Convert("a MATLAB file"))
        } else if beginning.trim_ascii_start().starts_with(b"<") {
            Err(Error::WebPage)
        } else if is_safetensors(beginning) {
            Ok(Self::Safetensors)
        } else {
            Err(Error::UnknownFormat)
        }
    }
}

impl<'a> Archive<'a> {
    pub fn open(file: &'a [u8]) -> std::result::Result<Self, Error> {
        let damaged = |format| move |cause| Error::Damaged { format, cause };
        let (entries, metadata) = match Format::of(file)? {
            Format::LegacyPytorch => {
                let entries = pth::legacy_entries(file).map_err(damaged("a PyTorch file"))?;
                (entries, HashMap::new())
            }
            Format::Zip => {
                let zip = ZipArchive::new(std::io::Cursor::new(file))
                    .map_err(|error| damaged("a zip archive")(error.to_string()))?;
                let entries = if npz::is_npz(&zip) {
                    npz::entries(zip).map_err(damaged("NumPy's arrays"))?
                } else if pth::is_pytorch(&zip) {
                    pth::zip_entries(file, zip).map_err(damaged("a PyTorch file"))?
                } else {
                    return Err(Error::UnknownFormat);
                };
                (entries, HashMap::new())
            }
            Format::Hdf5 => {
                let entries = hdf5::entries(file).map_err(damaged("an HDF5 file"))?;
                (entries, HashMap::new())
            }
            Format::Safetensors => {
                safetensors_entries(file).map_err(damaged("a safetensors file"))?
            }
        };
        Ok(Self { entries, metadata })
    }
}

/// The length of the header, which is JSON, comes first.
fn is_safetensors(file: &[u8]) -> bool {
    file.get(8) == Some(&b'{')
}

fn safetensors_entries(file: &[u8]) -> Result<(Entries<'_>, HashMap<String, String>)> {
    let (_, header) = SafeTensors::read_metadata(file).map_err(|error| error.to_string())?;
    let tensors = SliceSafetensors::new(file).map_err(|error| error.to_string())?;
    let tensors = Rc::new(tensors);
    let shapes = header.tensors().into_iter();
    let entries = shapes.map(|(name, info)| {
        let (tensors, key) = (tensors.clone(), name.clone());
        let read = move || {
            let tensor = tensors.load(&key, &Device::Cpu);
            tensor.map_err(|error| error.to_string())
        };
        (name, Entry::new(info.shape.clone(), read))
    });
    Ok((
        entries.collect(),
        header.metadata().clone().unwrap_or_default(),
    ))
}

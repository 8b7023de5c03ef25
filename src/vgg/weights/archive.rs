// SPDX-License-Identifier: MPL-2.0

//! The tensors of a file of any supported format, which its first bytes tell.

use super::{Error, hdf5, npz, pth};
use candle_core::safetensors::SliceSafetensors;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::rc::Rc;
use zip::ZipArchive;
use zip::result::ZipError;

/// The error says for a person what is wrong with a file, or one of its tensors.
pub type Result<T> = std::result::Result<T, String>;

/// A tensor whose values are read on demand.
pub struct Entry<'a> {
    pub shape: Vec<usize>,
    read: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

impl<'a> Entry<'a> {
    pub fn new(shape: Vec<usize>, read: impl Fn() -> Result<Tensor> + 'a) -> Self {
        let read = Box::new(read);
        Self { shape, read }
    }

    /// Its values on the CPU, in f16, bf16, f32 or f64. Other types are refused: candle's conversions from the smaller
    /// floats may never return.
    pub fn read(&self) -> Result<Tensor> {
        let tensor = (self.read)()?;
        match tensor.dtype() {
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Ok(tensor),
            other => Err(format!("{} is not a type of weights", other.as_str())),
        }
    }
}

/// Tensors by name.
pub type Entries<'a> = BTreeMap<String, Entry<'a>>;

/// A file's tensors and metadata.
pub struct Archive<'a> {
    pub entries: Entries<'a>,
    pub metadata: HashMap<String, String>,
}

/// Magic bytes of zip archives, HDF5, NumPy's arrays and MATLAB's files (version 7.3 of which contains HDF5 further on).
const ZIP: &[u8] = b"PK\x03\x04";
const HDF5: &[u8] = b"\x89HDF\r\n\x1a\n";
const NPY: &[u8] = b"\x93NUMPY";
const MATLAB: &[u8] = b"MATLAB ";

/// A format that tensors are read from.
#[derive(Clone, Copy)]
pub enum FileFormat {
    LegacyPytorch,
    Zip,
    Hdf5,
    Safetensors,
}

impl FileFormat {
    /// The number of leading bytes that suffice to tell a file's format.
    pub const BEGINNING: u64 = 4096;

    /// The format of a file that begins with these bytes.
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
            Err(Error::Convert("a NumPy .npy file"))
        } else if beginning.starts_with(MATLAB) {
            Err(Error::Convert("a MATLAB file"))
        } else if is_safetensors(beginning) {
            Ok(Self::Safetensors)
        } else if beginning.trim_ascii_start().starts_with(b"<") {
            Err(Error::WebPage)
        } else {
            Err(Error::UnknownFormat)
        }
    }
}

impl<'a> Archive<'a> {
    pub fn open(file: &'a [u8]) -> std::result::Result<Self, Error> {
        let damaged = |format| move |cause| Error::Damaged { format, cause };
        let mut metadata = HashMap::new();
        let entries = match FileFormat::of(file)? {
            FileFormat::LegacyPytorch => {
                pth::legacy_entries(file).map_err(damaged("a PyTorch file"))?
            }
            FileFormat::Zip => {
                let unreadable = |error: ZipError| damaged("a zip archive")(error.to_string());
                let mut zip = ZipArchive::new(Cursor::new(file)).map_err(unreadable)?;
                // A few bytes that all files share would be decompressed for each.
                if zip.has_overlapping_files().map_err(unreadable)? {
                    return Err(damaged("a zip archive")("its files overlap".into()));
                }
                if npz::is_npz(&zip) {
                    npz::entries(zip).map_err(damaged("NumPy's arrays"))?
                } else if pth::is_pytorch(&zip) {
                    pth::zip_entries(file, zip).map_err(damaged("a PyTorch file"))?
                } else {
                    return Err(Error::UnknownFormat);
                }
            }
            FileFormat::Hdf5 => hdf5::entries(file).map_err(damaged("an HDF5 file"))?,
            FileFormat::Safetensors => {
                let (entries, stated) =
                    safetensors_entries(file).map_err(damaged("a safetensors file"))?;
                metadata = stated;
                entries
            }
        };
        Ok(Self { entries, metadata })
    }
}

/// The header, which is JSON and shorter than 4 GB, follows its length in 8 bytes.
fn is_safetensors(file: &[u8]) -> bool {
    file.get(4..9) == Some(b"\0\0\0\0{")
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

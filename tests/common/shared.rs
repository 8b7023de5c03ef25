// SPDX-License-Identifier: MPL-2.0

//! Pictures and a clip that are not part of the project, for tests and benchmarks.

use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};

/// A file of the data beside the checkout, if it is there.
pub fn shared(name: &str) -> Option<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    Some(data.join(name)).filter(|path| path.exists())
}

/// The picture in a file, `[h, w, 3]`, RGB 0..1.
pub fn load(path: &Path) -> Tensor {
    let image = image::open(path).unwrap().into_rgb32f();
    let shape = (image.height() as usize, image.width() as usize, 3);
    Tensor::from_vec(image.into_raw(), shape, &Device::Cpu).unwrap()
}

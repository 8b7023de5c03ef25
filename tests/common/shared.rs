// SPDX-License-Identifier: MPL-2.0

//! Pictures and a clip that are not part of the project, for tests and benchmarks.

use std::path::{Path, PathBuf};

/// A file of the data beside the checkout, if it is there.
pub fn shared(name: &str) -> Option<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    Some(data.join(name)).filter(|path| path.exists())
}

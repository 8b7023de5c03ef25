// SPDX-License-Identifier: MPL-2.0

//! A process-wide cache: one copy of a network for each device and precision, shared by its users.

use super::weights::{self, Weights, WeightsSource};
use super::{Precision, PrecisionError, Vgg};
use crate::threads::lock;
use candle_core::{Device, DeviceLocation};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::SystemTime;

/// Why a network could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Weights(#[from] weights::Error),
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// With the file's modification time and length, because it may be replaced while the process runs.
type Key = (
    WeightsSource,
    Option<(SystemTime, u64)>,
    DeviceLocation,
    Precision,
);

static NETWORKS: LazyLock<Mutex<HashMap<Key, Weak<Vgg>>>> = LazyLock::new(Mutex::default);

impl Vgg {
    /// The network of `source` on `device` in `precision`: the one already in use, or newly loaded.
    ///
    /// # Errors
    /// If the weights cannot be read, or the device lacks the precision or memory for them.
    pub fn shared(
        source: &WeightsSource,
        device: &Device,
        precision: Precision,
    ) -> Result<Arc<Self>, Error> {
        // Taken before the file is read, so that replacing it meanwhile makes another network.
        let stamp = stamp(source);
        let key = |precision| (source.clone(), stamp, device.location(), precision);
        if let Some(network) = lookup(&key(precision.on(device)?.into())) {
            return Ok(network);
        }
        // Loaded without the lock: of two concurrent calls both load, and one result is kept.
        let weights = Weights::load(source)?;
        let format = precision.resolve(device, &weights)?;
        let key = key(format.into());
        // `auto` may be resolved only once the weights are known.
        if let Some(network) = lookup(&key) {
            return Ok(network);
        }
        let network = Arc::new(Self::build(weights, device, format)?);
        trim_heap();
        let mut networks = lock(&NETWORKS);
        networks.retain(|_, network| network.strong_count() > 0);
        if let Some(earlier) = networks.get(&key).and_then(Weak::upgrade) {
            return Ok(earlier);
        }
        networks.insert(key, Arc::downgrade(&network));
        Ok(network)
    }
}

/// Makes the allocator return the tens of MB that loading has freed to the system.
fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only releases memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn lookup(key: &Key) -> Option<Arc<Vgg>> {
    let networks = lock(&NETWORKS);
    networks.get(key).and_then(Weak::upgrade)
}

fn stamp(source: &WeightsSource) -> Option<(SystemTime, u64)> {
    let WeightsSource::File(path) = source else {
        return None;
    };
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

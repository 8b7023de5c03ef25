// SPDX-License-Identifier: MPL-2.0

//! One copy of a network for each device and precision, shared by all that use it in the process.

use super::weights::{self, Source, Weights};
use super::{Precision, PrecisionError, Vgg};
use candle_core::{Device, DeviceLocation};
use once_cell::sync::Lazy;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// Why a network could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Weights(#[from] weights::Error),
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A file may be replaced while the process runs: its time and length tell.
type Key = (Source, Option<(SystemTime, u64)>, DeviceLocation, Precision);

static NETWORKS: Lazy<Mutex<HashMap<Key, Weak<Vgg>>>> = Lazy::new(Mutex::default);

impl Vgg {
    /// The network of `source` on `device` in `precision`: that in use already, or loaded now.
    pub fn shared(
        source: &Source,
        device: &Device,
        precision: Precision,
    ) -> Result<Arc<Self>, Error> {
        // Before it is read: what replaces the file meanwhile is another network.
        let stamp = stamp(source);
        let key = |precision| (source.clone(), stamp, device.location(), precision);
        if let Some(network) = lookup(&key(precision.on(device)?.precision())) {
            return Ok(network);
        }
        // Loaded without the lock; two that come at the same time both load, and one is kept.
        let weights = Weights::load(source)?;
        let chosen = precision.choose(device, &weights)?;
        let key = key(chosen.precision());
        // What auto chooses may be known only now.
        if let Some(network) = lookup(&key) {
            return Ok(network);
        }
        let network = Arc::new(Self::build(weights, device, chosen)?);
        give_back_memory();
        let mut networks = NETWORKS.lock().unwrap_or_else(PoisonError::into_inner);
        networks.retain(|_, network| network.strong_count() > 0);
        if let Some(earlier) = networks.get(&key).and_then(Weak::upgrade) {
            return Ok(earlier);
        }
        networks.insert(key, Arc::downgrade(&network));
        Ok(network)
    }
}

/// Has the allocator return what loading took and freed, tens of MB, which it would keep.
fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it touches nothing but memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn lookup(key: &Key) -> Option<Arc<Vgg>> {
    let networks = NETWORKS.lock().unwrap_or_else(PoisonError::into_inner);
    networks.get(key).and_then(Weak::upgrade)
}

fn stamp(source: &Source) -> Option<(SystemTime, u64)> {
    let Source::File(path) = source else {
        return None;
    };
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

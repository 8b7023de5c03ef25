// SPDX-License-Identifier: MPL-2.0

//! What several benchmarks share.
#![allow(dead_code)]

#[cfg(feature = "plugin")]
pub mod clip;
pub mod problem;
pub mod process;
pub mod timing;

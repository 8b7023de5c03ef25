// SPDX-License-Identifier: MPL-2.0

//! What several benchmarks share.
#![allow(dead_code)]

#[cfg(feature = "plugin")]
pub mod clip;
pub mod problem;
pub mod process;
#[cfg(feature = "plugin")]
#[path = "../../tests/common/shared.rs"]
pub mod shared;
pub mod timing;

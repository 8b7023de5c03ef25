// SPDX-License-Identifier: MPL-2.0

//! What moved from one frame to the next.

pub mod flow;
mod planes;
pub mod pyramid;
mod refine;
pub mod scene;
mod search;
pub mod still;

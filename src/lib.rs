// SPDX-License-Identifier: MPL-2.0

//! `gatys`: a GStreamer element that paints video in the style of an image.

pub mod ops;
pub mod stylizer;
pub mod vgg;

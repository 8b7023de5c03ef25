// SPDX-License-Identifier: MPL-2.0

//! `gatys`: a GStreamer element that paints video in the style of an image, by solving the
//! optimisation of Gatys, Ecker and Bethge for every frame.
//!
//! A frame passes once through the modules, from left to right and back: [`element`] knows
//! GStreamer, [`stylizer`] one frame's journey, [`vgg`] the network, [`ops`] its operations. All
//! but the first are a library of their own, which the Cargo feature `plugin` is not needed for.

#[cfg(feature = "plugin")]
pub mod element;
pub mod ops;
pub mod stylizer;
pub mod vgg;

#[cfg(feature = "plugin")]
fn plugin_init(plugin: &gst::Plugin) -> Result<(), gst::glib::BoolError> {
    element::register(plugin)
}

#[cfg(feature = "plugin")]
gst::plugin_define!(
    gatys,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    "MPL",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_REPOSITORY"),
    env!("BUILD_REL_DATE")
);

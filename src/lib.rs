// SPDX-License-Identifier: MPL-2.0

//! `gatys`: a GStreamer element that paints video in the style of an image, by solving the
//! optimisation of Gatys, Ecker and Bethge for every frame.
//!
//! A frame passes through the modules in this order, and back: [`element`] is the GStreamer element,
//! [`stylizer`] stylises one frame after the other, [`vgg`] is the network, [`ops`] are its operations.
//! All but the first form a library that does without GStreamer and the Cargo feature `plugin`:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use gstgatys::stylizer::{Stylizer, config::Config, style::StyleImage};
//! use gstgatys::vgg::{Precision, Vgg, weights::WeightsSource};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vgg = Vgg::shared(&WeightsSource::BuiltIn, &Device::Cpu, Precision::Auto)?;
//! # let path = std::env::temp_dir().join(format!("gatys-style-{}.png", std::process::id()));
//! # image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([8 * x as u8, 8 * y as u8, 90])).save(&path)?;
//! let style = StyleImage::load(&path)?;
//! # std::fs::remove_file(&path)?;
//! let config = Config { initial_iterations: 3, ..Config::default() };
//! let mut stylizer = Stylizer::new(vgg, style, config)?;
//!
//! let frame = Tensor::full(0.5f32, (24, 32, 3), &Device::Cpu)?;
//! let (painting, report) = stylizer.stylize(&frame, &|| false)?;
//! assert_eq!(painting.dims(), frame.dims());
//! assert!(report.losses.total < report.initial.total);
//! # Ok(())
//! # }
//! ```

#[cfg(target_endian = "big")]
compile_error!("candle takes the little-endian numbers of weights as the machine's own");

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the memory that frames take is estimated in usize, which needs 64 bits");

#[cfg(feature = "plugin")]
pub mod element;
pub mod ops;
pub mod stylizer;
mod threads;
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

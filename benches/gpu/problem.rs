// SPDX-License-Identifier: MPL-2.0

//! The objective on any device.

use crate::common::problem::{Pictures, Problem};
use crate::report::Outcome;
use candle_core::Device;
use gstgatys::vgg::weights::Source;
use gstgatys::vgg::{Precision, Vgg};

/// Pictures on a device.
pub fn on(device: &Device, pictures: &Pictures) -> Outcome<Pictures> {
    Ok(Pictures {
        content: pictures.content.to_device(device)?,
        style: pictures.style.to_device(device)?,
        image: pictures.image.to_device(device)?,
    })
}

/// The built-in network's objective, for pictures that are on the device.
pub fn problem(device: &Device, precision: Precision, pictures: &Pictures) -> Outcome<Problem> {
    let vgg = Vgg::shared(&Source::BuiltIn, device, precision)?;
    Ok(Problem::new(vgg, pictures))
}

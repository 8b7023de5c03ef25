// SPDX-License-Identifier: MPL-2.0

//! The objective on any device, and what was noted about it.

use crate::common::problem::{Pictures, Problem, picture};
use crate::report::Outcome;
use candle_core::{Device, Tensor};
use gstgatys::ops::cuda::diagnostics::{self, Note};
use gstgatys::vgg::weights::WeightsSource;
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
    let vgg = Vgg::shared(&WeightsSource::BuiltIn, device, precision)?;
    Ok(Problem::new(vgg, pictures))
}

/// What a camera of a width and height sees in so many frames while it moves over a picture.
pub fn pan((w, h): (usize, usize), frames: usize, seed: u64) -> Outcome<Vec<Tensor>> {
    let scene = picture((w + 2 * frames, h + frames), seed);
    let frame = |index| {
        let rows = scene.narrow(0, index, h)?;
        Ok(rows.narrow(1, 2 * index, w)?.contiguous()?)
    };
    (0..frames).map(frame).collect()
}

/// Why work was not recorded since this was asked last; prints that and what else was noted.
pub fn unrecorded() -> Option<String> {
    let mut unrecorded = Vec::new();
    for note in diagnostics::take() {
        eprintln!("{note}");
        if let Note::CaptureFailed(_) = note {
            unrecorded.push(note.to_string());
        }
    }
    (!unrecorded.is_empty()).then(|| unrecorded.join("; "))
}

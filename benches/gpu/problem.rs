// SPDX-License-Identifier: MPL-2.0

//! The objective on any device, and notes about CUDA graphs.

use crate::common::problem::{Pictures, Problem, picture};
use crate::report::Outcome;
use candle_core::{Device, Tensor};
use gstgatys::ops::cuda::diagnostics::{self, Note};
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};

/// Copies pictures to a device.
pub fn on(device: &Device, pictures: &Pictures) -> Outcome<Pictures> {
    Ok(Pictures {
        content: pictures.content.to_device(device)?,
        style: pictures.style.to_device(device)?,
        image: pictures.image.to_device(device)?,
    })
}

/// The built-in network's objective for pictures on the device.
pub fn problem(device: &Device, precision: Precision, pictures: &Pictures) -> Outcome<Problem> {
    let vgg = Vgg::shared(&WeightsSource::BuiltIn, device, precision)?;
    Ok(Problem::new(vgg, pictures))
}

/// `frames` frames of a width and height, from a camera that pans over a picture.
pub fn pan((w, h): (usize, usize), frames: usize, seed: u64) -> Outcome<Vec<Tensor>> {
    let scene = picture((w + 2 * frames, h + frames), seed);
    let frame = |index| {
        let rows = scene.narrow(0, index, h)?;
        Ok(rows.narrow(1, 2 * index, w)?.contiguous()?)
    };
    (0..frames).map(frame).collect()
}

/// Why graphs could not be captured since the last call. Prints all notes.
pub fn take_capture_failures() -> Option<String> {
    let mut failures = Vec::new();
    for note in diagnostics::take() {
        eprintln!("{note}");
        if let Note::CaptureFailed(_) = note {
            failures.push(note.to_string());
        }
    }
    (!failures.is_empty()).then(|| failures.join("; "))
}

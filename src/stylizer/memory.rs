// SPDX-License-Identifier: MPL-2.0

//! Whether frames of a size fit into a GPU's memory.

use super::objective::Objective;
use super::resize::fit;
use super::{Error, Stylizer, device, optimizer};
use std::fmt;

/// Upper bound of the tensors of an image's size besides the optimiser's: the optimised image, the
/// frame, the starting point and the temporal target, with their copies.
const OTHER_IMAGES: usize = 6;

/// A frame that needs more memory than is free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortage {
    /// Height and width of the frame.
    frame: (usize, usize),
    /// In bytes.
    needed: usize,
    /// In bytes.
    free: usize,
    /// The largest `max-size` that would fit, if any does.
    fitting: Option<u32>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let (h, w) = self.frame;
        write!(
            f,
            "frames of {w}x{h} take about {} MiB of the GPU's memory, of which {} MiB are free; ",
            mib(self.needed),
            mib(self.free)
        )?;
        match self.fitting {
            Some(side) => write!(f, "with max-size={side} they would fit"),
            None => f.write_str("no max-size would do"),
        }
    }
}

impl Stylizer {
    /// Estimates whether frames of a height and width fit into a GPU's free memory.
    pub fn check_memory(&self, frame: (usize, usize)) -> Result<(), Error> {
        let size = fit(frame, self.config.max_size);
        match &self.canvas {
            Some(canvas) if canvas.size == size => Ok(()),
            _ => self.check_free_memory(frame),
        }
    }

    fn check_free_memory(&self, frame: (usize, usize)) -> Result<(), Error> {
        let Some(free) = device::free_bytes(self.device())? else {
            return Ok(());
        };
        // The present canvas will be freed.
        let canvas = self.canvas.as_ref();
        let canvas = canvas.filter(|canvas| canvas.objective.is_some());
        let free = free + canvas.map_or(0, |canvas| self.bytes(canvas.size));
        check(frame, self.config.max_size, free, |size| self.bytes(size)).map_err(Error::Memory)
    }

    /// Replaces a GPU's out-of-memory error by one that says what would fit.
    pub(super) fn explain_out_of_memory(&self, error: Error, frame: (usize, usize)) -> Error {
        let out_of_memory = match &error {
            Error::Tensor(cause) => cause.to_string().contains("OUT_OF_MEMORY"),
            _ => false,
        };
        if !out_of_memory {
            return error;
        }
        // Otherwise the pool would withhold what the frame had allocated so far from other users.
        device::give_back_memory(self.device());
        self.check_free_memory(frame).err().unwrap_or(error)
    }

    /// Estimates the bytes of device memory that the optimisation of an image of a height and width
    /// takes.
    fn bytes(&self, (h, w): (usize, usize)) -> usize {
        let config = &self.config;
        let (content_layers, style_layers) = (&config.content_layers, &config.style_layers);
        let objective = Objective::bytes(&self.vgg, (h, w), content_layers, style_layers);
        let (style_h, style_w) = self.style.size(h.max(w), config.style_scale);
        let deepest = style_layers.deepest();
        let style = self.vgg.feature_bytes(style_h, style_w, deepest);
        let images = optimizer::image_count(config) + OTHER_IMAGES;
        objective + style + images * h * w * 3 * size_of::<f32>() + device::scratch_bytes((h, w))
    }
}

/// Checks that a frame, optimised with its longest side at most `max_size`, fits into `free` bytes.
/// `bytes` estimates what the optimisation of an image of a height and width takes.
fn check(
    frame: (usize, usize),
    max_size: Option<u32>,
    free: usize,
    bytes: impl Fn((usize, usize)) -> usize,
) -> Result<(), Shortage> {
    let needed = bytes(fit(frame, max_size));
    if needed <= free {
        return Ok(());
    }
    let bytes_at = |side: u32| bytes(fit(frame, Some(side)));
    let (h, w) = fit(frame, max_size);
    // Bisection for the largest side that fits: it is in fits..fails.
    let (mut fits, mut fails) = (0, h.max(w) as u32);
    while fails - fits > 1 {
        let side = fits + (fails - fits) / 2;
        match bytes_at(side) <= free {
            true => fits = side,
            false => fails = side,
        }
    }
    Err(Shortage {
        frame,
        needed,
        free,
        fitting: (fits > 0).then_some(fits),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes((h, w): (usize, usize)) -> usize {
        1000 + 10 * h * w
    }

    #[test]
    fn frames_that_fit_are_accepted() {
        let free = bytes((1080, 1920));
        assert_eq!(check((1080, 1920), None, free, bytes), Ok(()));
        assert_eq!(check((2160, 3840), Some(1920), free, bytes), Ok(()));
        assert!(check((1080, 1920), None, free - 1, bytes).is_err());
    }

    #[test]
    fn the_largest_size_that_fits_is_named() {
        for (frame, max_size) in [
            ((1080, 1920), None),
            ((2160, 3840), Some(2000)),
            ((1, 9000), None),
        ] {
            let free = 40_000;
            let shortage = check(frame, max_size, free, bytes).unwrap_err();
            let side = shortage.fitting.unwrap();
            assert!(bytes(fit(frame, Some(side))) <= free);
            assert!(bytes(fit(frame, Some(side + 1))) > free);
            assert!(check(frame, Some(side), free, bytes).is_ok());
        }
    }

    #[test]
    fn the_message_says_what_would_fit() {
        let shortage = check((480, 640), Some(512), 500, bytes).unwrap_err();
        assert_eq!(
            shortage.to_string(),
            "frames of 640x480 take about 2 MiB of the GPU's memory, of which 1 MiB are free; \
             no max-size would do"
        );
        let shortage = check((480, 640), Some(512), 1 << 20, bytes).unwrap_err();
        assert!(
            shortage
                .to_string()
                .ends_with("with max-size=373 they would fit"),
            "{shortage}"
        );
    }
}

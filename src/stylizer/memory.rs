// SPDX-License-Identifier: MPL-2.0

//! Whether frames of a size fit into a GPU's memory.

use super::resize::fit;
use std::fmt;

/// More than there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortage {
    /// Height and width of a frame.
    frame: (usize, usize),
    needed: usize,
    free: usize,
    /// The largest `max-size` that would do.
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

/// Whether a frame, of which no side is optimised at more than `max_size`, fits into `free` bytes.
/// `bytes` says what an image of a height and width takes when it is optimised.
pub fn check(
    frame: (usize, usize),
    max_size: Option<u32>,
    free: usize,
    bytes: impl Fn((usize, usize)) -> usize,
) -> Result<(), Shortage> {
    let needed = bytes(fit(frame, max_size));
    if needed <= free {
        return Ok(());
    }
    let takes = |side: u32| bytes(fit(frame, Some(side)));
    let (h, w) = fit(frame, max_size);
    // The largest that fits lies from the first to below the second.
    let (mut fits, mut fails) = (0, h.max(w) as u32);
    while fails - fits > 1 {
        let side = fits + (fails - fits) / 2;
        match takes(side) <= free {
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
    fn what_fits_is_let_through() {
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
    fn nothing_may_fit() {
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

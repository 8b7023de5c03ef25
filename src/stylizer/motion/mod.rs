// SPDX-License-Identifier: MPL-2.0

//! Motion between frames, and the image that a frame's optimisation starts from: the paintings of
//! earlier frames, warped along the optical flow.
//!
//! # Conventions
//! - Points are (y, x) and sizes (h, w); arrays are row by row. A flow is (u, v): u to the right and v
//!   down, in pixels of its own level. The scene cut's translations and the exemplars' offsets are (down,
//!   across).
//! - Pixel centres lie at integer coordinates. A pixel of a level at 1 / s of the size is the mean of s
//!   by s, so that p at the full size is (p + 0.5) / s - 0.5 there (`bilinear::to_level`).
//! - The backward flow leads from each pixel of a frame to where an earlier frame shows the same, and the
//!   forward flow from the earlier frame to the later one. Paintings are warped by the backward flow.
//! - A painting is the result for a frame. Its detail is the painting less the low-pass filtered colours
//!   of the frame (the illumination), and its strokes are the painting less the frame's local means.

mod bilinear;
mod boundary;
mod exemplars;
pub mod flow;
mod global;
mod history;
pub mod illumination;
mod lanes;
mod moved;
pub mod occlusion;
mod planes;
pub mod pyramid;
mod refine;
pub mod scene;
mod search;
mod spline;
mod start;
pub mod still;
mod thumbnail;

pub use bilinear::{Bilinear, to_level};
use flow::{Field, bidirectional};
pub use history::FrameHistory;
use occlusion::{Mask, clear_mismatches, masks};
use pyramid::Pyramid;
pub use start::{Frames, Start};

/// Most pixels of the level at which the motion since a frame older than the last is estimated: such
/// a frame fills in little of this one, and is not worth more time.
const MAX_OLDER_PIXELS: usize = 1 << 13;

/// The motion between a frame and an earlier one. Flows and masks have 1 / `scale` of the frame's
/// size, rounded down, and the flows are in pixels of that. The masks are the conditions by which Ruder,
/// Dosovitskiy and Brox (2016) set the per-pixel weights c of the temporal loss to 0 ([`occlusion`]).
pub struct Motion {
    /// The displacement from each of the frame's pixels to where the earlier frame shows it.
    pub backward: Field,
    /// The displacement from each of the earlier frame's pixels to where this frame shows it.
    pub forward: Field,
    /// 1 or 2 since the latest frame, by the pyramid's finest level. Since older ones it may be any power
    /// of two, as a coarser level will do.
    pub scale: usize,
    /// A mask of the pixels that the earlier frame shows too: neither disoccluded (eq. 5) nor from beyond
    /// its edge.
    pub visible: Mask,
    /// A mask of the visible pixels that are not at a motion boundary (eq. 6): where c is 1. Interpolated
    /// to the frame's pixels, it makes up [`Start::confidence`].
    pub reliable: Mask,
}

impl Motion {
    /// Estimates the motion at the pyramids' finest level.
    pub fn between(now: &Pyramid, before: &Pyramid) -> Self {
        Self::at_level(0, now, before)
    }

    /// Estimates the motion from the coarsest level up to `level`.
    fn at_level(level: usize, now: &Pyramid, before: &Pyramid) -> Self {
        let [backward, forward] = bidirectional(&now.levels[level..], &before.levels[level..]);
        let scale = 1 << (now.finest as usize + level);
        let [visible, reliable] = masks(&backward, &forward, scale);
        Self {
            visible,
            reliable,
            backward,
            forward,
            scale,
        }
    }

    /// The motion since a frame older than the last, coarser and with a stricter `reliable`.
    fn since_older(now: &Pyramid, before: &Pyramid) -> Self {
        let level = now.first_level(MAX_OLDER_PIXELS);
        let mut motion = Self::at_level(level, now, before);
        let levels = [now, before].map(|pyramid| &pyramid.levels[level]);
        clear_mismatches(&mut motion.reliable, &motion.backward, levels);
        motion
    }

    /// The backward flow's u and v and the reliability, each with the factor that converts it to
    /// pixels of the frame.
    #[inline(always)]
    fn grids(&self) -> [(&[f32], f32); 3] {
        let (flow, scale) = (&self.backward, self.scale as f32);
        [
            (&flow.u, scale),
            (&flow.v, scale),
            (&self.reliable.values, 1.0),
        ]
    }
}

#[cfg(test)]
mod tests;

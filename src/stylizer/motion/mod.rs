// SPDX-License-Identifier: MPL-2.0

//! Motion between frames, and the image that a frame's optimisation starts from: the paintings of
//! earlier frames, warped along the optical flow.

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

use flow::{Field, bidirectional};
pub use history::FrameHistory;
use occlusion::{Mask, clear_mismatches, masks};
use pyramid::Pyramid;
pub use start::{Frames, Start};

/// Most pixels of the level at which the motion since a frame older than the last is estimated: such
/// a frame fills in little of this one, and is not worth more time.
const MAX_OLDER_PIXELS: usize = 1 << 13;

/// The motion between a frame and an earlier one. Flows and masks have 1 / `scale` of the frame's
/// size, and the flows are in pixels of that.
pub struct Motion {
    /// The displacement of each of the frame's pixels to where the earlier frame shows it.
    pub backward: Field,
    /// The displacement of each of the earlier frame's pixels to where this frame shows it.
    pub forward: Field,
    pub scale: usize,
    /// The pixels that the earlier frame shows too: not disoccluded, nor from beyond its edge.
    pub visible: Mask,
    /// The visible pixels that are not at a motion boundary.
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

// SPDX-License-Identifier: MPL-2.0

//! What moved between frames, and where a frame starts: the results of the frames before it, moved
//! to where their strokes belong now.

mod alike;
mod boundary;
pub mod flow;
mod grid;
pub mod light;
mod moved;
pub mod occlusion;
mod past;
mod planes;
pub mod pyramid;
mod refine;
pub mod scene;
mod search;
mod spline;
mod start;
pub mod still;

use flow::{Field, both};
use occlusion::{Mask, clear_unlike, masks};
pub use past::Past;
use pyramid::{Level, Pyramid};
pub use start::{Frames, Start};

/// Of the motion since an older frame the finest level has at most so many pixels: that frame shows
/// little of this one, and is not to cost much.
const OLDER_PIXELS: usize = 1 << 13;

/// How a frame moved since one before it.
pub struct Motion {
    /// From each pixel to where it was, and from there to where it is, of 1 / `scale` of the
    /// frame's size and in pixels of that.
    pub flows: [Field; 2],
    pub scale: usize,
    /// Whether a pixel is seen in the frame before.
    pub visible: Mask,
    /// Whether it is, and not where two motions meet.
    pub reliable: Mask,
}

impl Motion {
    pub fn between(now: &Pyramid, before: &Pyramid) -> Self {
        Self::from_level(0, now, before)
    }

    /// By a level of the pyramids and those below it.
    fn from_level(level: usize, now: &Pyramid, before: &Pyramid) -> Self {
        let [backward, forward] = both(&now.levels[level..], &before.levels[level..]);
        let scale = 1 << (now.finest as usize + level);
        let [visible, reliable] = masks(&backward, &forward, scale);
        Self {
            visible,
            reliable,
            flows: [backward, forward],
            scale,
        }
    }

    /// Since a frame before the last one.
    fn since_older(now: &Pyramid, before: &Pyramid) -> Self {
        let fits = |level: &Level| level.h * level.w <= OLDER_PIXELS;
        let level = now.levels.iter().position(fits);
        let level = level.unwrap_or(now.levels.len() - 1);
        let mut motion = Self::from_level(level, now, before);
        let levels = [now, before].map(|pyramid| &pyramid.levels[level]);
        clear_unlike(&mut motion.reliable, &motion.flows[0], levels);
        motion
    }

    /// The flow to the frame before across and down, and where it is reliable, with the unit of each
    /// in pixels of the frame.
    #[inline(always)]
    fn grids(&self) -> [(&[f32], f32); 3] {
        let ([flow, _], unit) = (&self.flows, self.scale as f32);
        [
            (&flow.u, unit),
            (&flow.v, unit),
            (&self.reliable.values, 1.0),
        ]
    }
}

#[cfg(test)]
mod tests;

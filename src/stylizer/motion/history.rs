// SPDX-License-Identifier: MPL-2.0

//! The frames painted last, with their paintings.

use super::illumination::Illumination;
use super::pyramid::Pyramid;
use super::spline::Spline;
use crate::ops::with_values;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

/// How many painted frames back to look for what the last one hid (Ruder et al. 2016, on long-term
/// consistency). Frames that repeat a painting or continue a still one are not counted.
const LOOKBACK: [usize; 3] = [1, 2, 4];

/// Painted frames that are kept.
const CAPACITY: usize = LOOKBACK[LOOKBACK.len() - 1];

struct PaintedFrame {
    pyramid: Pyramid,
    illumination: Illumination,
    /// The painting less the illumination; set when it is first warped.
    detail: Option<Spline>,
}

/// The frames painted last.
#[derive(Default)]
pub struct FrameHistory {
    /// The latest first.
    frames: VecDeque<PaintedFrame>,
    /// Splines of dropped frames, for their memory.
    spare: Vec<Spline>,
}

impl FrameHistory {
    /// The pyramid of the latest frame.
    pub fn latest(&self) -> Option<&Pyramid> {
        self.frames.front().map(|latest| &latest.pyramid)
    }

    /// Adds a frame, with the illumination of its content.
    pub fn push(&mut self, pyramid: Pyramid, illumination: Illumination) {
        self.truncate(CAPACITY - 1);
        self.frames.push_front(PaintedFrame {
            pyramid,
            illumination,
            detail: None,
        });
    }

    /// Drops the spline of the latest frame, whose painting has changed.
    pub fn invalidate_latest(&mut self) {
        let latest = self.frames.front_mut();
        self.spare
            .extend(latest.and_then(|latest| latest.detail.take()));
    }

    /// Drops all frames.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Drops all but the `len` latest frames.
    fn truncate(&mut self, len: usize) {
        let oldest = self.frames.drain(len.min(self.frames.len())..);
        self.spare.extend(oldest.filter_map(|frame| frame.detail));
    }

    /// Fits the spline of the detail of the latest frame's painting `[h, w, 3]`, unless that was done.
    pub fn prepare(&mut self, painting: &Tensor) -> Result<()> {
        let (h, w, _) = painting.dims3()?;
        if let Some(latest) = self.frames.front_mut()
            && latest.detail.is_none()
        {
            let illumination = latest.illumination.upsampled((h, w));
            let spare = self.spare.pop();
            latest.detail = Some(with_values([painting], |[painting]: [&[f32]; 1]| {
                Spline::new(painting, &illumination, (h, w), spare)
            })?);
        }
        Ok(())
    }

    /// The last frame and the older ones to fall back on, of those prepared, with the details of their
    /// paintings, the latest first.
    pub fn details(&self) -> impl Iterator<Item = (&Pyramid, &Spline)> {
        let frames = LOOKBACK.iter().filter_map(|back| self.frames.get(back - 1));
        frames.filter_map(|frame| Some((&frame.pyramid, frame.detail.as_ref()?)))
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The image that a frame's optimisation starts from: earlier paintings, warped to this frame.

use super::Motion;
use super::exemplars::Exemplars;
use super::history::FrameHistory;
use super::illumination::Illumination;
use super::moved::{MovedPainting, StartRow, StartScratch};
use super::pyramid::Pyramid;
use crate::ops::with_values;
use candle_core::{Device, Result, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;

/// The part of a frame that the last one has to hide for older ones to be used.
const MIN_HIDDEN: f32 = 0.002;

/// A frame's start.
pub struct Start {
    /// `[h, w, 3]`
    pub image: Tensor,
    /// The part of each pixel, 0..1, that reliably comes from earlier paintings, `[h, w, 1]`: its weight
    /// c in the temporal loss (Ruder et al. 2016, eq. 7).
    pub confidence: Tensor,
}

/// A frame to be painted with its illumination, and the frame before with its painting: images
/// `[h, w, 3]` on the CPU.
pub struct Frames<'a> {
    pub now: &'a Tensor,
    pub illumination: &'a Illumination,
    pub before: &'a Tensor,
    pub painting: &'a Tensor,
}

impl Start {
    /// Warps the paintings of the `history` to a frame, whose `motion` since the latest is known.
    /// What none of them shows becomes the frame itself with strokes of the last painting: those
    /// that were there or, where the picture has changed, those of an exemplar.
    ///
    /// # Errors
    /// With an empty history, or tensors that are not contiguous ones on the CPU.
    pub fn new(
        frames: Frames,
        pyramid: &Pyramid,
        motion: &Motion,
        history: &mut FrameHistory,
    ) -> Result<Self> {
        let (h, w, _) = frames.now.dims3()?;
        history.prepare(frames.painting)?;
        let mut details = history.details();
        let Some((before, detail)) = details.next() else {
            bail!("no painted frame to start from");
        };
        let exemplars = Exemplars::new(&pyramid.thumbnail, &before.thumbnail, motion);
        let latest = MovedPainting::new(detail, motion, h);
        let older: Vec<_> = match motion.visible.mean() > 1.0 - MIN_HIDDEN {
            true => Vec::new(),
            false => details.collect(),
        };
        let older: Vec<_> = older
            .into_par_iter()
            .map(|(before, detail)| (detail, Motion::since_older(pyramid, before)))
            .collect();
        let older: Vec<_> = older
            .iter()
            .map(|(detail, motion)| MovedPainting::new(detail, motion, h))
            .collect();
        let illumination = frames.illumination.upsampled((h, w));
        let mut image = vec![0.0; h * w * 3];
        let mut confidence = vec![0.0; h * w];
        let tensors = [frames.now, frames.before, frames.painting];
        with_values(tensors, |[now, before, painting]: [&[f32]; 3]| {
            let rows = image.par_chunks_exact_mut(3 * w);
            let rows = rows.zip(confidence.par_chunks_exact_mut(w)).enumerate();
            let scratch = || StartScratch::new(w);
            rows.for_each_init(scratch, |scratch, (y, (image, confidence))| {
                Arch::new().dispatch(StartRow {
                    y,
                    illumination: &illumination,
                    latest: &latest,
                    older: &older,
                    exemplars: &exemplars,
                    now,
                    before,
                    painting,
                    image,
                    confidence,
                    scratch,
                });
            });
        })?;
        Ok(Self {
            image: Tensor::from_vec(image, (h, w, 3), &Device::Cpu)?,
            confidence: Tensor::from_vec(confidence, (h, w, 1), &Device::Cpu)?,
        })
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Where a frame starts: the paintings of the frames before it, moved to where their strokes belong
//! now.

use super::Motion;
use super::alike::Alike;
use super::light::Light;
use super::moved::{Row, Scratch, Source};
use super::past::Past;
use super::pyramid::Pyramid;
use crate::ops::with_values;
use candle_core::{Device, Result, Tensor};
use pulp::Arch;
use rayon::prelude::*;

/// Older frames are looked at where more than this part of a frame was hidden in the last one.
const MIN_HIDDEN: f32 = 0.002;

/// A frame's start.
pub struct Start {
    /// `[h, w, 3]`
    pub image: Tensor,
    /// How reliably each pixel was moved there, `[h, w, 1]`.
    pub held: Tensor,
}

/// A frame to be painted with its light, and the one before it with its painting: `[h, w, 3]` each,
/// on the CPU.
pub struct Frames<'a> {
    pub now: &'a Tensor,
    pub light: &'a Light,
    pub before: &'a Tensor,
    pub result: &'a Tensor,
}

impl Start {
    /// The paintings of the `past`, moved to where they are in a frame whose `motion` since the
    /// latest is known. What none of them shows is the frame with strokes of the last painting: those
    /// that were there, or, where something else is there now, those of what looks like it.
    pub fn new(
        frames: Frames,
        pyramid: &Pyramid,
        motion: &Motion,
        past: &mut Past,
    ) -> Result<Self> {
        let (h, w, _) = frames.now.dims3()?;
        past.prepare(frames.result)?;
        let alike = past
            .latest()
            .map(|before| Alike::new(&pyramid.thumbnail, &before.thumbnail, motion));
        let mut paintings = past.paintings();
        let latest = paintings.next();
        let latest = latest.map(|(_, paint)| Source::new(paint, motion, h));
        let older: Vec<_> = match motion.visible.share() > 1.0 - MIN_HIDDEN {
            true => Vec::new(),
            false => paintings.collect(),
        };
        let older = older.into_par_iter();
        let older: Vec<_> = older
            .map(|(before, paint)| (paint, Motion::since_older(pyramid, before)))
            .collect();
        let older = older.iter();
        let older: Vec<_> = older
            .map(|(paint, motion)| Source::new(paint, motion, h))
            .collect();
        let light = frames.light.on((h, w));
        let mut image = vec![0.0; h * w * 3];
        let mut held = vec![0.0; h * w];
        with_values(frames.now, |now: &[f32]| {
            with_values(frames.before, |before: &[f32]| {
                with_values(frames.result, |result: &[f32]| {
                    let rows = image.par_chunks_exact_mut(3 * w);
                    let rows = rows.zip(held.par_chunks_exact_mut(w)).enumerate();
                    let scratch = || Scratch::new(w);
                    rows.for_each_init(scratch, |scratch, (y, (image, held))| {
                        Arch::new().dispatch(Row {
                            y,
                            light: &light,
                            latest: latest.as_ref(),
                            older: &older,
                            alike: alike.as_ref(),
                            frames: [now, before, result],
                            image,
                            held,
                            scratch,
                        });
                    });
                })
            })
        })???;
        Ok(Self {
            image: Tensor::from_vec(image, (h, w, 3), &Device::Cpu)?,
            held: Tensor::from_vec(held, (h, w, 1), &Device::Cpu)?,
        })
    }
}

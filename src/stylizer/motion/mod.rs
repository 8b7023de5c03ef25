// SPDX-License-Identifier: MPL-2.0

//! What moved between frames, and where a frame starts: the results of the frames before it, moved
//! to where their strokes belong now.

pub mod flow;
pub mod light;
pub mod occlusion;
mod planes;
pub mod pyramid;
mod refine;
pub mod scene;
mod search;
pub mod spline;
pub mod still;

use crate::ops::with_values;
use candle_core::{Device, Result, Tensor};
use flow::{Field, both};
use light::Light;
use occlusion::{Mask, reliable, visible};
use pulp::{Arch, NullaryFnOnce};
use pyramid::Pyramid;
use rayon::prelude::*;
use spline::{Pixel, Spline};
use std::collections::VecDeque;

/// How far back a frame is looked for where it was hidden in the last one (Ruder et al. 2016,
/// section 4.2, have 1, 2 and 4).
const BACK: [usize; 3] = [1, 2, 4];

/// Frames that are remembered.
pub const MEMORY: usize = BACK[BACK.len() - 1];

/// An older frame is looked at where more than this part of a frame was hidden in the later ones.
const MIN_HIDDEN: f32 = 0.002;

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
        let [backward, forward] = both(now, before);
        let scale = 1 << now.finest;
        let visible = visible(&backward, &forward, scale);
        Self {
            reliable: reliable(&visible, &backward, scale),
            visible,
            flows: [backward, forward],
            scale,
        }
    }
}

/// What is known at a pixel: the flow to the frame before across and down, in pixels of the frame,
/// whether it is visible there and whether reliably.
type Known = [f32; 4];

impl Motion {
    /// What is known along a row of the frame that is at `place` in the flow, for each column of
    /// that.
    #[inline(always)]
    fn row(&self, (above, below, t): Place) -> Vec<Known> {
        let [flow, _] = &self.flows;
        let scale = self.scale as f32;
        let known = |at: usize| {
            let [visible, reliable] = [&self.visible, &self.reliable].map(|mask| mask.values[at]);
            [scale * flow.u[at], scale * flow.v[at], visible, reliable]
        };
        let mut row = Vec::with_capacity(flow.w);
        for x in 0..flow.w {
            row.push(mixed(
                known(above * flow.w + x),
                known(below * flow.w + x),
                t,
            ));
        }
        row
    }
}

/// Where a pixel is along an axis of a smaller grid: the values before and after it, and how far it
/// is from the one to the other.
type Place = (usize, usize, f32);

/// The places of `pixels` in a grid of `side` values that stand for `scale` pixels each.
fn places(pixels: usize, scale: usize, side: usize) -> Vec<Place> {
    let place = |pixel: usize| {
        let at = (pixel as f32 + 0.5) / scale as f32 - 0.5;
        let at = at.clamp(0.0, (side - 1) as f32);
        let before = at as usize;
        (before, (before + 1).min(side - 1), at - before as f32)
    };
    (0..pixels).map(place).collect()
}

/// A value between those of a row.
#[inline(always)]
fn between(row: &[[f32; 4]], (before, after, t): Place) -> [f32; 4] {
    mixed(row[before], row[after], t)
}

#[inline(always)]
fn mixed(a: [f32; 4], b: [f32; 4], t: f32) -> [f32; 4] {
    let mut mixed = a;
    for i in 0..4 {
        mixed[i] += t * (b[i] - a[i]);
    }
    mixed
}

/// What is remembered of a frame that was painted.
pub struct Painted {
    pub pyramid: Pyramid,
    /// Its painting, less the light of the frame.
    paint: Spline,
}

impl Painted {
    /// Of a frame and its painting, both `[h, w, 3]` on the CPU.
    pub fn new(content: &Tensor, pyramid: Pyramid, result: &Tensor) -> Result<Self> {
        let (h, w, _) = content.dims3()?;
        let light = with_values(content, |content: &[f32]| Light::new(content, (h, w)))?;
        let (rows, columns) = (light.rows(h), light.columns(w));
        let paint = with_values(result, |result: &[f32]| {
            let result = result.as_chunks::<3>().0;
            Spline::new((h, w), |y, start, part| {
                for (x, paint) in (start..).zip(part) {
                    let light = between(&rows[y], columns[x]);
                    let result = result[y * w + x];
                    (0..3).for_each(|i| paint[i] = result[i] - light[i]);
                }
            })
        })?;
        Ok(Self { pyramid, paint })
    }
}

/// A frame's start.
pub struct Start {
    /// `[h, w, 3]`
    pub image: Tensor,
    /// The image, and for each pixel whether it was moved there reliably: `[h, w, 4]`.
    pub target: Tensor,
}

/// A frame to be painted, and the one before it with its painting: `[h, w, 3]` each, on the CPU.
pub struct Frames<'a> {
    pub now: &'a Tensor,
    pub before: &'a Tensor,
    pub result: &'a Tensor,
}

impl Start {
    /// The paintings in `past`, the latest first, moved to where they are in a frame whose
    /// `motion` since the latest is known. What none of them shows is filled with the last
    /// painting, changed as the frame has changed there.
    pub fn new(
        frames: Frames,
        pyramid: &Pyramid,
        motion: &Motion,
        past: &VecDeque<Painted>,
    ) -> Result<Self> {
        let (h, w, _) = frames.now.dims3()?;
        let mut hidden: Vec<f32> = motion
            .visible
            .values
            .iter()
            .map(|seen| 1.0 - seen)
            .collect();
        let mut older = Vec::new();
        for painted in BACK[1..].iter().filter_map(|back| past.get(back - 1)) {
            if hidden.iter().sum::<f32>() < MIN_HIDDEN * hidden.len() as f32 {
                break;
            }
            let motion = Motion::between(pyramid, &painted.pyramid);
            for (hidden, seen) in hidden.iter_mut().zip(&motion.reliable.values) {
                *hidden *= 1.0 - seen;
            }
            older.push((painted, motion));
        }
        let older = older.iter().map(|(painted, motion)| (*painted, motion));
        let sources: Vec<_> = past
            .front()
            .map(|last| (last, motion))
            .into_iter()
            .chain(older)
            .collect();
        let mut image = vec![0.0; h * w * 3];
        let mut target = vec![0.0; h * w * 4];
        with_values(frames.now, |now: &[f32]| {
            with_values(frames.before, |before: &[f32]| {
                with_values(frames.result, |result: &[f32]| {
                    let light = Light::new(now, (h, w));
                    let grid = Grid {
                        light: light.rows(h),
                        light_columns: light.columns(w),
                        rows: places(h, motion.scale, motion.visible.h),
                        columns: places(w, motion.scale, motion.visible.w),
                    };
                    let rows = image.par_chunks_exact_mut(3 * w);
                    let rows = rows.zip(target.par_chunks_exact_mut(4 * w)).enumerate();
                    rows.for_each(|(y, (image, target))| {
                        Arch::new().dispatch(Row {
                            y,
                            grid: &grid,
                            sources: &sources,
                            frames: [now, before, result]
                                .map(|values| &values[3 * w * y..][..3 * w]),
                            image,
                            target,
                        });
                    });
                })
            })
        })???;
        Ok(Self {
            image: Tensor::from_vec(image, (h, w, 3), &Device::Cpu)?,
            target: Tensor::from_vec(target, (h, w, 4), &Device::Cpu)?,
        })
    }
}

/// The light of a frame, and where its pixels are in the light's and in the flow's grid.
struct Grid {
    light: Vec<Vec<Pixel>>,
    light_columns: Vec<Place>,
    rows: Vec<Place>,
    columns: Vec<Place>,
}

/// One row of a start.
struct Row<'a> {
    y: usize,
    grid: &'a Grid,
    sources: &'a [(&'a Painted, &'a Motion)],
    /// The frame, the one before and its painting.
    frames: [&'a [f32]; 3],
    image: &'a mut [f32],
    target: &'a mut [f32],
}

impl NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let [now, before, result] = self.frames.map(|values| values.as_chunks::<3>().0);
        let mut sources = Vec::with_capacity(self.sources.len());
        for (painted, motion) in self.sources {
            sources.push((&painted.paint, motion.row(self.grid.rows[self.y])));
        }
        let y = self.y as f32;
        for x in 0..now.len() {
            let light = between(&self.grid.light[self.y], self.grid.light_columns[x]);
            let mut value = [0.0; 4];
            // The part of the pixel that no painting has shown yet.
            let mut left = 1.0;
            let mut held = 0.0;
            for (index, (paint, known)) in sources.iter().enumerate() {
                let [u, v, visible, reliable] = between(known, self.grid.columns[x]);
                // An older painting only shows what is sure.
                let shown = left * if index == 0 { visible } else { reliable };
                let (from_y, from_x) = (y + v, x as f32 + u);
                if shown == 0.0 || !paint.contains(from_y, from_x) {
                    continue;
                }
                let paint = paint.at(from_y, from_x);
                for i in 0..4 {
                    value[i] += shown * (light[i] + paint[i]);
                }
                held += left * reliable;
                left -= shown;
            }
            for i in 0..3 {
                let fill = result[x][i] + now[x][i] - before[x][i];
                value[i] = (value[i] + left * fill).clamp(0.0, 1.0);
            }
            self.image[3 * x..][..3].copy_from_slice(&value[..3]);
            value[3] = held;
            self.target[4 * x..][..4].copy_from_slice(&value);
        }
    }
}

#[cfg(test)]
mod tests;

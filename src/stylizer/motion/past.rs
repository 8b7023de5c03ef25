// SPDX-License-Identifier: MPL-2.0

//! What is remembered of the frames that were painted.

use super::light::Light;
use super::pyramid::Pyramid;
use super::spline::Spline;
use crate::ops::with_values;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

/// How far back a frame is looked for where it was hidden in the last one (Ruder et al. 2016,
/// section 4.2, have 1, 2 and 4).
const BACK: [usize; 3] = [1, 2, 4];

/// Frames that are remembered.
const MEMORY: usize = BACK[BACK.len() - 1];

/// A painted frame.
struct Painted {
    pyramid: Pyramid,
    light: Light,
    /// Its painting less the light, once that was moved.
    paint: Option<Spline>,
}

/// The frames painted last.
#[derive(Default)]
pub struct Past {
    /// The latest first.
    painted: VecDeque<Painted>,
    /// What is remembered no more.
    spare: Vec<Spline>,
}

impl Past {
    /// The latest frame.
    pub fn latest(&self) -> Option<&Pyramid> {
        self.painted.front().map(|latest| &latest.pyramid)
    }

    /// Adds a frame, whose content has the light given.
    pub fn push(&mut self, pyramid: Pyramid, light: Light) {
        self.forget(MEMORY - 1);
        self.painted.push_front(Painted {
            pyramid,
            light,
            paint: None,
        });
    }

    /// The latest frame was painted anew.
    pub fn repaint(&mut self) {
        let latest = self.painted.front_mut();
        self.spare
            .extend(latest.and_then(|latest| latest.paint.take()));
    }

    pub fn clear(&mut self) {
        self.forget(0);
    }

    /// Forgets all but the latest frames.
    fn forget(&mut self, remembered: usize) {
        let oldest = self.painted.drain(remembered.min(self.painted.len())..);
        self.spare
            .extend(oldest.filter_map(|painted| painted.paint));
    }

    /// Makes the latest frame's painting `[h, w, 3]` ready to be moved.
    pub fn prepare(&mut self, result: &Tensor) -> Result<()> {
        let (h, w, _) = result.dims3()?;
        if let Some(latest) = self.painted.front_mut()
            && latest.paint.is_none()
        {
            let light = latest.light.on((h, w));
            let spare = self.spare.pop();
            latest.paint = Some(with_values(result, |result: &[f32]| {
                Spline::new(result, &light, (h, w), spare)
            })?);
        }
        Ok(())
    }

    /// The latest frame, and the older ones that are looked at, with their paintings.
    pub fn paintings(&self) -> impl Iterator<Item = (&Pyramid, &Spline)> {
        let painted = BACK.iter().filter_map(|back| self.painted.get(back - 1));
        painted.filter_map(|painted| Some((&painted.pyramid, painted.paint.as_ref()?)))
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Pictures of how frames moved, for people to look at.

use crate::stylizer::motion::Motion;
use crate::stylizer::{Stylizer, resize};
use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png::PngEncoder};
use std::f32::consts::TAU;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The colours of directions, from right over down to left and up, and the steps from each to the
/// next: more where they look less alike (Baker et al., "A Database and Evaluation Methodology for
/// Optical Flow", IJCV 2011).
const WHEEL: [([f32; 3], f32); 6] = [
    ([1.0, 0.0, 0.0], 15.0),
    ([1.0, 1.0, 0.0], 6.0),
    ([0.0, 1.0, 0.0], 4.0),
    ([0.0, 1.0, 1.0], 11.0),
    ([0.0, 0.0, 1.0], 13.0),
    ([1.0, 0.0, 1.0], 6.0),
];
const STEPS: f32 = 55.0;

/// What is longer than the longest motion is darker by this, as there.
const LONGER: f32 = 0.75;

/// In pixels of what is optimised: where all motions are shorter, this has the full colour, so that
/// noise stays pale.
const SHORTEST: f32 = 1.0;

/// Puts pictures of frames' motion into a folder.
#[derive(Default)]
pub struct Dump {
    /// The folder that could not be written to.
    refused: Option<PathBuf>,
}

impl Dump {
    /// Writes the pictures of the last frame that `stylizer` made, which is number `frame` and of
    /// height and width `size`, if its motion is known. A folder that fails is left alone until
    /// another one is given.
    pub fn add(
        &mut self,
        folder: &Path,
        stylizer: &Stylizer,
        frame: u64,
        size: (usize, usize),
    ) -> Result<(), String> {
        let Some(motion) = stylizer.motion() else {
            return Ok(());
        };
        if self.refused.as_deref() == Some(folder) {
            return Ok(());
        }
        let size = resize::fit(size, stylizer.config().max_size);
        let result = fs::create_dir_all(folder)
            .and_then(|()| {
                save(
                    &folder.join(format!("flow-{frame:06}.png")),
                    &flow(motion, size),
                )
            })
            .and_then(|()| {
                save(
                    &folder.join(format!("mask-{frame:06}.png")),
                    &mask(motion, size),
                )
            });
        self.refused = result.is_err().then(|| folder.into());
        result.map_err(|error| format!("motion-dump=‘{}’: {error}", folder.display()))
    }
}

fn picture((h, w): (usize, usize), colour: impl Fn(usize, usize) -> [u8; 3]) -> RgbImage {
    RgbImage::from_fn(w as u32, h as u32, |x, y| {
        image::Rgb(colour(y as usize, x as usize))
    })
}

/// Where each pixel came from, turned round: the hue says where it went. The longest motion that is
/// not hidden has the full colour, rest is white.
fn flow(motion: &Motion, size: (usize, usize)) -> RgbImage {
    let backward = &motion.backward;
    let scale = motion.scale as f32;
    let moved = backward.u.iter().zip(&backward.v);
    let seen = moved
        .zip(&motion.visible.values)
        .filter(|(_, seen)| **seen > 0.0);
    let lengths = seen.map(|((u, v), _)| scale * u.hypot(*v));
    let longest = lengths.fold(SHORTEST, f32::max);
    picture(size, |y, x| {
        let at = |pixel: usize| (pixel as f32 + 0.5) / scale - 0.5;
        let (u, v) = backward.sample(at(y), at(x));
        let length = scale * u.hypot(v) / longest;
        // Sums of rounded values may be a little longer than the longest of them.
        let shade = |hue: f32| match length <= 1.0 + 1e-3 {
            true => 1.0 - length.min(1.0) * (1.0 - hue),
            false => LONGER * hue,
        };
        let turn = (-v).atan2(-u) / TAU;
        hue(turn.rem_euclid(1.0)).map(|hue| (255.0 * shade(hue)).round() as u8)
    })
}

/// The wheel's colour at a part of a turn, clockwise from the right.
fn hue(turn: f32) -> [f32; 3] {
    let mut step = turn * STEPS;
    for (index, (from, steps)) in WHEEL.iter().enumerate() {
        if step < *steps {
            let to = WHEEL[(index + 1) % WHEEL.len()].0;
            return [0, 1, 2].map(|i| from[i] + step / steps * (to[i] - from[i]));
        }
        step -= steps;
    }
    WHEEL[0].0
}

/// White where the motion is reliable, grey where two motions meet, black where the frame before
/// did not show the pixel.
fn mask(motion: &Motion, size: (usize, usize)) -> RgbImage {
    let (h, w) = (motion.visible.h, motion.visible.w);
    picture(size, |y, x| {
        let place = (y / motion.scale).min(h - 1) * w + (x / motion.scale).min(w - 1);
        let weight = 0.5 * (motion.visible.values[place] + motion.reliable.values[place]);
        [(255.0 * weight).round() as u8; 3]
    })
}

/// Writes a PNG file; what could not be written whole is removed.
fn save(path: &Path, picture: &RgbImage) -> io::Result<()> {
    let mut png = Vec::new();
    let (width, height) = picture.dimensions();
    PngEncoder::new(&mut png)
        .write_image(picture, width, height, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)?;
    let mut file = File::create(path)?;
    file.write_all(&png).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

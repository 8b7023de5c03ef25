// SPDX-License-Identifier: MPL-2.0

//! Pictures of the motion, for `motion-dump`.

use crate::stylizer::motion::{Motion, to_level};
use crate::stylizer::{Stylizer, resize};
use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png::PngEncoder};
use std::f32::consts::TAU;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The flow colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow"
/// (IJCV 2011), clockwise from the right: colours, and the number of steps from each to the next.
const WHEEL: [([f32; 3], f32); 6] = [
    ([1.0, 0.0, 0.0], 15.0),
    ([1.0, 1.0, 0.0], 6.0),
    ([0.0, 1.0, 0.0], 4.0),
    ([0.0, 1.0, 1.0], 11.0),
    ([0.0, 0.0, 1.0], 13.0),
    ([1.0, 0.0, 1.0], 6.0),
];
const STEPS: f32 = 55.0;

/// Vectors longer than the longest are darkened by this factor, as there.
const OUT_OF_RANGE: f32 = 0.75;

/// The least length that is drawn fully saturated, in pixels of the optimised image: noise stays pale.
const MIN_FULL_LENGTH: f32 = 1.0;

/// Writes pictures of frames' motion into a folder.
#[derive(Default)]
pub struct MotionDump {
    /// The folder that could not be written to.
    failed: Option<PathBuf>,
}

impl MotionDump {
    /// Writes the pictures of `stylizer`'s last frame, which has the number `frame` and the height and
    /// width `size`, if its motion is known. After an error, nothing is written until the folder
    /// changes.
    pub fn write(
        &mut self,
        folder: &Path,
        stylizer: &Stylizer,
        frame: u64,
        size: (usize, usize),
    ) -> Result<(), String> {
        let Some(motion) = stylizer.motion() else {
            return Ok(());
        };
        if self.failed.as_deref() == Some(folder) {
            return Ok(());
        }
        let size = resize::fit(size, stylizer.config().max_size);
        let result = create_folder(folder)
            .and_then(|()| {
                save(
                    &folder.join(format!("flow-{frame:06}.png")),
                    &flow_picture(motion, size),
                )
            })
            .and_then(|()| {
                save(
                    &folder.join(format!("mask-{frame:06}.png")),
                    &mask_picture(motion, size),
                )
            });
        self.failed = result.is_err().then(|| folder.into());
        result.map_err(|error| format!("motion-dump=‘{}’: {error}", folder.display()))
    }
}

fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::other("it is a file, not a folder"),
        _ => error,
    })
}

fn picture((h, w): (usize, usize), colour: impl Fn(usize, usize) -> [u8; 3]) -> RgbImage {
    RgbImage::from_fn(w as u32, h as u32, |x, y| {
        image::Rgb(colour(y as usize, x as usize))
    })
}

/// The motion of each pixel since the frame before: its direction as hue, its length as saturation.
/// The longest motion of a visible pixel is fully saturated; what does not move is white.
fn flow_picture(motion: &Motion, size: (usize, usize)) -> RgbImage {
    let backward = &motion.backward;
    let scale = motion.scale as f32;
    let vectors = backward.u.iter().zip(&backward.v);
    let visible = vectors
        .zip(&motion.visible.values)
        .filter(|(_, visible)| **visible > 0.0);
    let lengths = visible.map(|((u, v), _)| scale * u.hypot(*v));
    let longest = lengths.fold(MIN_FULL_LENGTH, f32::max);
    picture(size, |y, x| {
        let at = |pixel: usize| to_level(pixel as f32, scale);
        let (u, v) = backward.sample(at(y), at(x));
        let length = scale * u.hypot(v) / longest;
        // Interpolation may round to slightly more than the longest.
        let shade = |hue: f32| match length <= 1.0 + 1e-3 {
            true => 1.0 - length.min(1.0) * (1.0 - hue),
            false => OUT_OF_RANGE * hue,
        };
        // The flow points backward, to where the pixel was.
        let turn = (-v).atan2(-u) / TAU;
        hue(turn.rem_euclid(1.0)).map(|hue| (255.0 * shade(hue)).round() as u8)
    })
}

/// The wheel's colour at `turn` in 0..1, clockwise from the right.
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

/// White where the motion is reliable, grey where two motions meet, black where the pixel was hidden
/// in the frame before.
fn mask_picture(motion: &Motion, size: (usize, usize)) -> RgbImage {
    let (h, w) = (motion.visible.h, motion.visible.w);
    picture(size, |y, x| {
        let index = (y / motion.scale).min(h - 1) * w + (x / motion.scale).min(w - 1);
        let weight = 0.5 * (motion.visible.values[index] + motion.reliable.values[index]);
        [(255.0 * weight).round() as u8; 3]
    })
}

/// Writes a PNG file, which takes its place once it is whole. What is there is not opened: it may be a
/// pipe that nobody reads.
fn save(path: &Path, picture: &RgbImage) -> io::Result<()> {
    let mut png = Vec::new();
    let (width, height) = picture.dimensions();
    PngEncoder::new(&mut png)
        .write_image(picture, width, height, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)?;
    let unfinished = path.with_extension("png.part");
    let _ = fs::remove_file(&unfinished);
    File::create_new(&unfinished)
        .and_then(|mut file| file.write_all(&png))
        .and_then(|()| fs::rename(&unfinished, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
}

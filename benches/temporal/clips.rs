// SPDX-License-Identifier: MPL-2.0

//! The clips, how they move, and what is measured with that.

use crate::common::clip::frames;
use crate::common::problem::{made_style, picture};
use crate::common::timing::text;
use crate::known_motion::{Clip, Picture, Truth, clips};
use candle_core::{Device, Tensor};
use gstgatys::stylizer::motion::Motion;
use gstgatys::stylizer::motion::pyramid::Pyramid;
use gstgatys::stylizer::style::StyleImage;
use std::path::{Path, PathBuf};

/// Width and height of the pictures by formula, where there are no photographs.
const PICTURE: (usize, usize) = (1024, 768);

pub struct Material {
    pub name: String,
    /// `[h, w, 3]` each, RGB 0..1.
    pub frames: Vec<Tensor>,
    /// How each frame but the first moved since the one before: the truth or, where nobody knows
    /// it, the stylizer's own flow and what that finds visible.
    pub motions: Vec<Truth>,
    pub known: bool,
}

/// The first frames of all clips, or of the one after `--clip`.
pub fn materials(count: usize, width: usize) -> Vec<Material> {
    let known = known(width).into_iter().map(|clip| Material {
        name: clip.name.into(),
        frames: (0..count).map(|index| clip.frame(index)).collect(),
        motions: (1..count)
            .map(|index| clip.truth(index, index - 1))
            .collect(),
        known: true,
    });
    let filmed = data("car-detection.mp4").map(|path| {
        let frames = frames(&path, count, width as u32);
        Material {
            name: "car-detection".into(),
            motions: frames
                .windows(2)
                .map(|pair| own_motion(&pair[1], &pair[0]))
                .collect(),
            frames,
            known: false,
        }
    });
    let wanted = text("--clip");
    let all = known.chain(filmed);
    all.filter(|clip| wanted.as_ref().is_none_or(|name| *name == clip.name))
        .collect()
}

/// The clips with known motion at a width.
pub fn known(width: usize) -> Vec<Clip> {
    clips((width * 9 / 16, width), || {
        match [data("tubingen.jpg"), data("golden_gate.jpg")] {
            [Some(behind), Some(front)] => [behind, front].map(|path| Picture::new(&load(&path))),
            _ => [3, 4].map(|seed| Picture::new(&picture(PICTURE, seed))),
        }
    })
}

pub fn style() -> StyleImage {
    match data("starry_night.jpg") {
        Some(path) => StyleImage::load(&path).expect("style image"),
        None => made_style(PICTURE),
    }
}

fn data(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    Some(path.join(name)).filter(|path| path.exists())
}

fn load(path: &Path) -> Tensor {
    let image = image::open(path).expect("a picture").to_rgb8();
    let (w, h) = image.dimensions();
    let values = image.as_raw().iter().map(|&byte| f32::from(byte) / 255.0);
    let shape = (h as usize, w as usize, 3);
    Tensor::from_vec(values.collect(), shape, &Device::Cpu).expect("a tensor")
}

/// How a frame moved since another as the stylizer sees it.
fn own_motion(now: &Tensor, before: &Tensor) -> Truth {
    let [now, before] = [now, before].map(|frame| Pyramid::new(frame).expect("a pyramid"));
    pixels(&Motion::between(&now, &before), now.size)
}

/// A motion at each pixel of a frame.
pub fn pixels(motion: &Motion, (h, w): (usize, usize)) -> Truth {
    let scale = motion.scale as f32;
    let at = |pixel: usize| (pixel as f32 + 0.5) / scale - 0.5;
    let places = || (0..h * w).map(|pixel| (at(pixel / w), at(pixel % w)));
    let moved = places().map(|(y, x)| motion.backward.sample(y, x));
    let (u, v) = moved.map(|(u, v)| (scale * u, scale * v)).unzip();
    let visible = places()
        .map(|(y, x)| motion.visible.sample(y, x) > 0.5)
        .collect();
    Truth { u, v, visible }
}

/// The mean distance between the ends of the stylizer's own flow and the true ones, in pixels, over
/// what is visible in truth.
pub fn end_point_error(own: &Truth, truth: &Truth) -> f64 {
    let seen = || (0..truth.visible.len()).filter(|&pixel| truth.visible[pixel]);
    let distance = |pixel: usize| {
        let (du, dv) = (own.u[pixel] - truth.u[pixel], own.v[pixel] - truth.v[pixel]);
        f64::from(du.hypot(dv))
    };
    seen().map(distance).sum::<f64>() / seen().count() as f64
}

impl Material {
    /// The mean [`end_point_error`] of the frames, where the truth is known.
    pub fn end_point_error(&self) -> Option<f64> {
        let pairs = self.frames.windows(2).zip(&self.motions);
        let errors =
            pairs.map(|(pair, truth)| end_point_error(&own_motion(&pair[1], &pair[0]), truth));
        self.known.then(|| mean(errors))
    }

    /// The part of the pixels that the frames before show too.
    pub fn visible(&self) -> f64 {
        mean(self.motions.iter().map(|motion| {
            let visible = motion.visible.iter().filter(|&&visible| visible);
            visible.count() as f64 / motion.visible.len() as f64
        }))
    }

    /// The warping error of `images`, one for each frame, at each but the first: over the pixels x
    /// that the frame before shows too, the mean of (image(x) − image before(x + motion))².
    pub fn warping_errors(&self, images: &[Tensor]) -> Vec<f64> {
        let pairs = images.windows(2).zip(&self.motions);
        pairs
            .map(|(pair, motion)| warping_error(&pair[1], &pair[0], motion))
            .collect()
    }
}

fn warping_error(now: &Tensor, before: &Tensor, motion: &Truth) -> f64 {
    let (_, w, _) = now.dims3().expect("an image");
    let values = now.flatten_all().and_then(|now| now.to_vec1::<f32>());
    let values = values.expect("values");
    let before = Picture::new(before);
    let pixels = values.as_chunks::<3>().0.iter().enumerate();
    let errors = pixels
        .filter(|&(pixel, _)| motion.visible[pixel])
        .map(|(pixel, now)| {
            let y = (pixel / w) as f64 + f64::from(motion.v[pixel]);
            let x = (pixel % w) as f64 + f64::from(motion.u[pixel]);
            let before = before.sample([y, x]);
            mean(
                now.iter()
                    .zip(before)
                    .map(|(&now, before)| (f64::from(now) - before).powi(2)),
            )
        });
    mean(errors)
}

pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

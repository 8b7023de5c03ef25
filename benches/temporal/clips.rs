// SPDX-License-Identifier: MPL-2.0

//! The clips, their true or estimated motion, and what is measured by that.

use crate::common::clip::frames;
use crate::common::problem::{made_style, picture};
use crate::common::shared::shared;
use crate::common::timing::text;
use crate::known_motion::{Clip, Picture, Truth, clips};
use candle_core::Tensor;
use gstgatys::stylizer::motion::pyramid::Pyramid;
use gstgatys::stylizer::motion::{Bilinear, Motion, to_level};
use gstgatys::stylizer::style::StyleImage;

/// Width and height of the generated pictures, where there are no photographs.
const PICTURE: (usize, usize) = (1024, 768);

/// Frames of a clip, with their motion.
pub struct Sequence {
    pub name: String,
    /// `[h, w, 3]` each, RGB 0..1.
    pub frames: Vec<Tensor>,
    /// The motion of each frame but the first since the one before: the truth or, where that is not
    /// known, the stylizer's own estimate.
    pub motions: Vec<Truth>,
    /// Whether `motions` are true.
    pub known: bool,
}

/// The first frames of all clips, or of the one named by `--clip`.
pub fn sequences(count: usize, width: usize) -> Vec<Sequence> {
    let known = known_clips(width).into_iter().map(|clip| Sequence {
        name: clip.name.into(),
        frames: (0..count).map(|index| clip.frame(index)).collect(),
        motions: (1..count)
            .map(|index| clip.truth(index, index - 1))
            .collect(),
        known: true,
    });
    let filmed = shared("car-detection.mp4").map(|path| {
        let frames = frames(&path, count, width as u32);
        Sequence {
            name: "car-detection".into(),
            motions: frames
                .windows(2)
                .map(|pair| estimated_motion(&pair[1], &pair[0]))
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

/// The clips of known motion, at a width and a ratio of 16:9.
pub fn known_clips(width: usize) -> Vec<Clip> {
    clips((width * 9 / 16, width), || {
        match [shared("tubingen.jpg"), shared("golden_gate.jpg")] {
            [Some(behind), Some(front)] => [behind, front].map(|path| Picture::load(&path)),
            _ => [3, 4].map(|seed| Picture::new(&picture(PICTURE, seed))),
        }
    })
}

pub fn style() -> StyleImage {
    match shared("starry_night.jpg") {
        Some(path) => StyleImage::load(&path).expect("style image"),
        None => made_style(PICTURE),
    }
}

/// The stylizer's estimate of the motion between two frames.
fn estimated_motion(now: &Tensor, before: &Tensor) -> Truth {
    let (h, w, _) = now.dims3().expect("a frame");
    let [now, before] = [now, before].map(|frame| Pyramid::new(frame).expect("a pyramid"));
    per_pixel(&Motion::between(&now, &before), (h, w))
}

/// A motion interpolated to each pixel of a frame of `h` by `w`.
pub fn per_pixel(motion: &Motion, (h, w): (usize, usize)) -> Truth {
    let scale = motion.scale as f32;
    let at = |pixel: usize| to_level(pixel as f32, scale);
    let points = || (0..h * w).map(|pixel| (at(pixel / w), at(pixel % w)));
    let flow = points().map(|(y, x)| motion.backward.sample(y, x));
    let (u, v) = flow.map(|(u, v)| (scale * u, scale * v)).unzip();
    let mask = &motion.visible;
    let visible = points().map(|(y, x)| {
        let [visible] = Bilinear::new((mask.h, mask.w), [y], [x]).sample(&mask.values);
        visible > 0.5
    });
    let visible = visible.collect();
    Truth { u, v, visible }
}

/// The mean end-point error of an estimated motion, in pixels, over the pixels that the frame before
/// truly shows.
pub fn end_point_error(estimate: &Truth, truth: &Truth) -> f64 {
    let visible = || (0..truth.visible.len()).filter(|&pixel| truth.visible[pixel]);
    let distance = |pixel: usize| {
        let du = estimate.u[pixel] - truth.u[pixel];
        let dv = estimate.v[pixel] - truth.v[pixel];
        f64::from(du.hypot(dv))
    };
    visible().map(distance).sum::<f64>() / visible().count() as f64
}

impl Sequence {
    /// The mean [`end_point_error`] of the frames, where the truth is known.
    pub fn end_point_error(&self) -> Option<f64> {
        let pairs = self.frames.windows(2).zip(&self.motions);
        let errors = pairs
            .map(|(pair, truth)| end_point_error(&estimated_motion(&pair[1], &pair[0]), truth));
        self.known.then(|| mean(errors))
    }

    /// The mean part of a frame's pixels that the frame before shows too.
    pub fn visible(&self) -> f64 {
        mean(self.motions.iter().map(|motion| {
            let visible = motion.visible.iter().filter(|&&visible| visible);
            visible.count() as f64 / motion.visible.len() as f64
        }))
    }

    /// The warping errors of `images`, one for each frame, at each but the first: the mean of
    /// (image(x) − image before(x + motion))² over the pixels x that the frame before shows too.
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

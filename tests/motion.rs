// SPDX-License-Identifier: MPL-2.0

//! The error of the flow against known motions, on synthetic pictures and, if they are there, on
//! photographs.

mod common;

use common::known_motion::{Clip, Picture, Truth, clips};
use common::shared::shared;
use gstgatys::stylizer::motion::flow::{Field, bidirectional};
use gstgatys::stylizer::motion::pyramid::Pyramid;
use gstgatys::stylizer::motion::to_level;
use std::path::PathBuf;

/// The largest mean endpoint error in pixels, over the points that are visible in both frames.
const MAX_ERROR: f64 = 0.6;

/// The brightness of frames under constant light.
const STEADY: [f64; 4] = [1.0; 4];

fn error(field: &Field, finest: u32, truth: &Truth, (h, w): (usize, usize)) -> f64 {
    let scale = (1 << finest) as f32;
    let (mut sum, mut count) = (0.0, 0);
    for i in (0..h * w).filter(|i| truth.visible[*i]) {
        let within = |at: usize| to_level(at as f32, scale);
        let (u, v) = field.sample(within(i / w), within(i % w));
        sum += f64::from((scale * u - truth.u[i]).hypot(scale * v - truth.v[i]));
        count += 1;
    }
    sum / f64::from(count)
}

/// The mean error over neighbouring frames in both directions; `lights` has the brightness of each frame.
fn mean_error(clip: &Clip, lights: &[f64]) -> f64 {
    let frame = |(index, light): (usize, &f64)| {
        let frame = (clip.frame(index) * *light).unwrap();
        Pyramid::new(&frame.clamp(0.0, 1.0).unwrap()).unwrap()
    };
    let pyramids: Vec<_> = lights.iter().enumerate().map(frame).collect();
    let mut sum = 0.0;
    for (before, pair) in pyramids.windows(2).enumerate() {
        let fields = bidirectional(&pair[0].levels, &pair[1].levels);
        let truths = [
            clip.truth(before, before + 1),
            clip.truth(before + 1, before),
        ];
        for (field, truth) in fields.iter().zip(&truths) {
            sum += error(field, pair[0].finest, truth, (clip.h, clip.w));
        }
    }
    sum / (2 * (pyramids.len() - 1)) as f64
}

fn check(clips: &[Clip], lights: &[f64]) {
    for clip in clips {
        let error = mean_error(clip, lights);
        println!("{} {}x{}: {error:.3} pixels", clip.name, clip.w, clip.h);
        assert!(error < MAX_ERROR, "{}: {error} pixels", clip.name);
    }
}

fn made() -> [Picture; 2] {
    [Picture::made(1), Picture::made(2)]
}

#[test]
fn flow_follows_known_motion() {
    check(&clips((180, 320), made), &STEADY);
}

#[test]
fn a_flash_does_not_lead_astray() {
    check(&clips((180, 320), made), &[1.0, 1.2]);
}

/// Two photographs, if they are there.
fn photographs() -> Option<[PathBuf; 2]> {
    Some([shared("tubingen.jpg")?, shared("golden_gate.jpg")?])
}

#[test]
fn flow_follows_known_motion_of_photographs() {
    let Some(paths) = photographs() else {
        eprintln!("skipped: the photographs are not there");
        return;
    };
    check(
        &clips((360, 640), || {
            paths.each_ref().map(|path| Picture::load(path))
        }),
        &STEADY,
    );
}

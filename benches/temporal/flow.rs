// SPDX-License-Identifier: MPL-2.0

//! What the stylizer does about motion, on request, for `flow.py` to take turns with. A command a
//! line on the standard input, an answer a line on the standard output:
//!
//! - `load CLIP DIR`: takes a clip, rounded to bytes. Writes `frames.npy`, `[n, h, w, 3]`, and,
//!   where the motion is known, `motions.npy`, `[n - 1, h, w, 3]`: across, down, and whether the
//!   frame before shows the pixel. Answers `known` or `unknown`.
//! - `begin`: takes the first frame. Answers `begun`.
//! - `next`: takes the frame after. Answers the milliseconds that it took to scale its luma down,
//!   to find the flow in both directions and where it is reliable, to make the last painting ready,
//!   and to move it; then the end-point error.
//!
//! `temporal --flow [--threads N --width W --frames N]`. First it says `ready` and the clips.

use crate::clips::{Material, end_point_error, materials, pixels};
use crate::common::problem::threads;
use crate::common::timing::{argument, ms, timed};
use crate::known_motion::Truth;
use candle_core::{DType, Device, Result, Tensor};
use gstgatys::stylizer::motion::pyramid::Pyramid;
use gstgatys::stylizer::motion::{FrameHistory, Frames, Motion, Start};
use std::io::BufRead;
use std::path::Path;

pub fn serve() {
    threads(argument("--threads", 0)).install(|| answer().expect("tensors"));
}

fn answer() -> Result<()> {
    let mut materials = materials(argument("--frames", 8), argument("--width", 640));
    for frame in materials
        .iter_mut()
        .flat_map(|material| &mut material.frames)
    {
        *frame = ((&*frame * 255.0)?.round()? / 255.0)?;
    }
    let names: Vec<&str> = materials
        .iter()
        .map(|material| material.name.as_str())
        .collect();
    println!("ready {}", names.join(" "));
    let mut pass = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match (words.as_slice(), &mut pass) {
            (&["load", name, dir], _) => {
                let material = materials.iter().find(|material| material.name == name);
                let material = material.expect("a clip");
                write(material, Path::new(dir))?;
                pass = Some(Pass::new(material));
                println!("{}", if material.known { "known" } else { "unknown" });
            }
            (["begin"], Some(pass)) => {
                pass.begin()?;
                println!("begun");
            }
            (["next"], Some(pass)) => println!("{}", pass.next()?),
            _ => panic!("no such command, or no clip: {line}"),
        }
    }
    Ok(())
}

fn write(material: &Material, dir: &Path) -> Result<()> {
    let frames = (Tensor::stack(&material.frames, 0)? * 255.0)?.round()?;
    frames
        .to_dtype(DType::U8)?
        .write_npy(dir.join("frames.npy"))?;
    if material.known {
        let (h, w, _) = material.frames[0].dims3()?;
        let tensor = |motion: &Truth| {
            let visible = motion.visible.iter().map(|&visible| f32::from(visible));
            let places = motion.u.iter().zip(&motion.v).zip(visible);
            let values = places.flat_map(|((&u, &v), visible)| [u, v, visible]);
            Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu)
        };
        let motions: Result<Vec<Tensor>> = material.motions.iter().map(tensor).collect();
        Tensor::stack(&motions?, 0)?.write_npy(dir.join("motions.npy"))?;
    }
    Ok(())
}

/// A walk through a clip, each frame of which is its own painting.
struct Pass<'a> {
    material: &'a Material,
    index: usize,
    history: FrameHistory,
}

impl<'a> Pass<'a> {
    fn new(material: &'a Material) -> Self {
        Self {
            material,
            index: 0,
            history: FrameHistory::default(),
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.index = 0;
        self.history.clear();
        self.remember(Pyramid::new(&self.material.frames[0])?);
        Ok(())
    }

    fn remember(&mut self, pyramid: Pyramid) {
        let illumination = pyramid.illumination.clone();
        self.history.push(pyramid, illumination);
    }

    fn next(&mut self) -> Result<String> {
        let (now, before) = (
            &self.material.frames[self.index + 1],
            &self.material.frames[self.index],
        );
        let (pyramid_time, pyramid) = timed(|| Pyramid::new(now));
        let pyramid = pyramid?;
        let latest = self.history.latest().expect("a frame before");
        let (flow_time, motion) = timed(|| Motion::between(&pyramid, latest));
        let (ready_time, ready) = timed(|| self.history.prepare(before));
        ready?;
        let frames = Frames {
            now,
            illumination: &pyramid.illumination,
            before,
            painting: before,
        };
        let (start_time, start) =
            timed(|| Start::new(frames, &pyramid, &motion, &mut self.history));
        start?;
        let own = pixels(&motion, pyramid.size);
        self.remember(pyramid);
        let truth = &self.material.motions[self.index];
        self.index += 1;
        let times =
            [pyramid_time, flow_time, ready_time, start_time].map(|time| ms(time).to_string());
        Ok(format!(
            "{} {}",
            times.join(" "),
            end_point_error(&own, truth)
        ))
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Serves `flow.py`, which measures the stylizer's handling of motion and OpenCV's flow in turns. It
//! reads one command per line from standard input and answers each with a line on standard output:
//!
//! - `load CLIP DIR`: loads a clip, rounded to bytes. Writes `frames.npy`, `[n, h, w, 3]`, and,
//!   where the motion is known, `motions.npy`, `[n - 1, h, w, 3]`: u, v, and whether the frame
//!   before shows the pixel. Answers `known` or `unknown`.
//! - `begin`: starts over at the first frame. Answers `begun`.
//! - `next`: proceeds to the next frame. Answers with the milliseconds spent on its pyramid, on the
//!   flow in both directions with its masks, on the spline of the last painting and on warping
//!   that; then the end-point error.
//!
//! `temporal --flow [--threads N --width W --frames N]`. It begins with `ready` and the clips' names.

use crate::clips::{Sequence, end_point_error, per_pixel, sequences};
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
    let mut sequences = sequences(argument("--frames", 8), argument("--width", 640));
    for frame in sequences
        .iter_mut()
        .flat_map(|sequence| &mut sequence.frames)
    {
        *frame = ((&*frame * 255.0)?.round()? / 255.0)?;
    }
    let names: Vec<&str> = sequences
        .iter()
        .map(|sequence| sequence.name.as_str())
        .collect();
    println!("ready {}", names.join(" "));
    let mut walk = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match (words.as_slice(), &mut walk) {
            (&["load", name, dir], _) => {
                let sequence = sequences.iter().find(|sequence| sequence.name == name);
                let sequence = sequence.expect("a clip");
                write(sequence, Path::new(dir))?;
                walk = Some(Walk::new(sequence));
                println!("{}", if sequence.known { "known" } else { "unknown" });
            }
            (["begin"], Some(walk)) => {
                walk.begin()?;
                println!("begun");
            }
            (["next"], Some(walk)) => println!("{}", walk.next()?),
            _ => panic!("no such command, or no clip: {line}"),
        }
    }
    Ok(())
}

fn write(sequence: &Sequence, dir: &Path) -> Result<()> {
    let frames = (Tensor::stack(&sequence.frames, 0)? * 255.0)?.round()?;
    frames
        .to_dtype(DType::U8)?
        .write_npy(dir.join("frames.npy"))?;
    if sequence.known {
        let (h, w, _) = sequence.frames[0].dims3()?;
        let tensor = |motion: &Truth| {
            let visible = motion.visible.iter().map(|&visible| f32::from(visible));
            let flow = motion.u.iter().zip(&motion.v).zip(visible);
            let values = flow.flat_map(|((&u, &v), visible)| [u, v, visible]);
            Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu)
        };
        let motions: Result<Vec<Tensor>> = sequence.motions.iter().map(tensor).collect();
        Tensor::stack(&motions?, 0)?.write_npy(dir.join("motions.npy"))?;
    }
    Ok(())
}

/// A walk through a clip, whose frames stand in for their paintings.
struct Walk<'a> {
    sequence: &'a Sequence,
    index: usize,
    history: FrameHistory,
}

impl<'a> Walk<'a> {
    fn new(sequence: &'a Sequence) -> Self {
        Self {
            sequence,
            index: 0,
            history: FrameHistory::default(),
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.index = 0;
        self.history.clear();
        self.remember(Pyramid::new(&self.sequence.frames[0])?);
        Ok(())
    }

    fn remember(&mut self, pyramid: Pyramid) {
        let illumination = pyramid.illumination.clone();
        self.history.push(pyramid, illumination);
    }

    fn next(&mut self) -> Result<String> {
        let (now, before) = (
            &self.sequence.frames[self.index + 1],
            &self.sequence.frames[self.index],
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
        let (h, w, _) = now.dims3()?;
        let estimate = per_pixel(&motion, (h, w));
        self.remember(pyramid);
        let truth = &self.sequence.motions[self.index];
        self.index += 1;
        let times =
            [pyramid_time, flow_time, ready_time, start_time].map(|time| ms(time).to_string());
        Ok(format!(
            "{} {}",
            times.join(" "),
            end_point_error(&estimate, truth)
        ))
    }
}

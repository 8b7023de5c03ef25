// SPDX-License-Identifier: MPL-2.0

//! Several stylizers on one GPU, a stylizer on another GPU, and one that runs out of memory.

use crate::Options;
use crate::common::problem::{made_style, name};
use crate::data::{Bench, count_differing, relative_error};
use crate::problem::pan;
use crate::report::{Outcome, Report};
use candle_core::{DType, Device, DeviceLocation, Tensor};
use gstgatys::stylizer::config::Config;
use gstgatys::stylizer::device::DeviceChoice;
use gstgatys::stylizer::memory::free::give_back_memory;
use gstgatys::stylizer::{Error, Stylizer};
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};
use std::thread;

/// Frames of a clip, and iterations per frame.
const FRAMES: usize = 3;
const ITERATIONS: u32 = 4;

/// Height and width of a frame that no GPU has room for.
const HUGE_FRAME: (usize, usize) = (1 << 15, 1 << 15);

/// Sizes in bytes of the allocations that fill a GPU's memory.
const ALLOCATIONS: [usize; 2] = [1 << 30, 1 << 20];

pub fn instances(bench: &Bench, options: &Options, report: &mut Report) {
    // Of different sizes, as two streams may be.
    let [first, second] = match options.quick {
        true => [(67, 45), (48, 51)],
        false => [(250, 170), (160, 211)],
    };
    report.section("Several stylizers");
    report.head(&["check", "values that differ", "limit", ""]);
    let clips = report.attempt("clips", || {
        Ok([Clip::new(first, 1)?, Clip::new(second, 2)?])
    });
    let Some(clips) = clips else { return };
    let alone = report.attempt("one after another", || {
        Ok([
            clips[0].painted(&bench.device)?,
            clips[1].painted(&bench.device)?,
        ])
    });
    let Some(alone) = alone else { return };
    report.check("two at once, beside each alone", 0.0, || {
        let together = thread::scope(|scope| {
            let threads = clips.each_ref().map(|clip| {
                scope.spawn(|| {
                    clip.painted(&bench.device)
                        .map_err(|error| error.to_string())
                })
            });
            threads.map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into())))
        });
        let mut differences = 0.0;
        for (together, alone) in together.into_iter().zip(&alone) {
            for (frame, expected) in together?.iter().zip(alone) {
                differences += count_differing(frame, expected)?;
            }
        }
        Ok(differences)
    });
    if let DeviceLocation::Cuda { gpu_id } = bench.device.location() {
        another_gpu(gpu_id, &clips[0], &alone[0], report);
        out_of_memory(bench, &clips[0], &alone[0], report);
    }
}

/// Frames of a camera that pans over a picture.
struct Clip {
    size: (usize, usize),
    frames: Vec<Tensor>,
}

impl Clip {
    fn new(size: (usize, usize), seed: u64) -> Outcome<Self> {
        let frames = pan(size, FRAMES, seed)?;
        Ok(Self { size, frames })
    }

    fn stylizer(&self, device: &Device) -> Outcome<Stylizer> {
        let vgg = Vgg::shared(&WeightsSource::BuiltIn, device, Precision::Auto)?;
        let config = Config {
            iterations: ITERATIONS,
            initial_iterations: ITERATIONS,
            max_size: None,
            ..Config::default()
        };
        Ok(Stylizer::new(vgg, made_style(self.size), config)?)
    }

    fn painted(&self, device: &Device) -> Outcome<Vec<Tensor>> {
        self.painted_by(&mut self.stylizer(device)?)
    }

    fn painted_by(&self, stylizer: &mut Stylizer) -> Outcome<Vec<Tensor>> {
        let mut painted = |frame| Ok(stylizer.stylize(frame, &|| false)?.0);
        self.frames.iter().map(&mut painted).collect()
    }
}

/// A frame on the next GPU, if there is one.
fn another_gpu(gpu: usize, clip: &Clip, expected: &[Tensor], report: &mut Report) {
    report.checks("Another GPU");
    match DeviceChoice::Cuda(gpu + 1).open() {
        // It may be another model, with other algorithms.
        Ok((device, _)) => report.check(&format!("a frame on cuda:{}", gpu + 1), 2e-2, || {
            relative_error(&clip.painted(&device)?[0], &expected[0])
        }),
        Err(error) => report.row(&["there is none", &error.to_string(), "", ""]),
    }
}

/// What a stylizer does when memory runs out.
fn out_of_memory(bench: &Bench, clip: &Clip, expected: &[Tensor], report: &mut Report) {
    report.section("Too little memory");
    report.head(&["check", "values that differ", "limit", ""]);
    let stylizer = report.attempt("a stylizer", || clip.stylizer(&bench.device));
    let Some(mut stylizer) = stylizer else { return };
    report.check(
        "a frame that cannot fit is refused, with a max-size",
        0.0,
        || match stylizer.check_memory(HUGE_FRAME) {
            Err(error @ Error::Memory(_)) if error.to_string().contains("max-size=") => Ok(0.0),
            Err(error) => Err(format!("the error is: {error}").into()),
            Ok(()) => Err("it is not refused".into()),
        },
    );
    let size = name(clip.size);
    report.check(
        &format!("{size} where nothing is left is an error"),
        0.0,
        || {
            let filling = fill_memory(&bench.device);
            let painted = stylizer.stylize(&clip.frames[0], &|| false);
            drop(filling);
            give_back_memory(&bench.device);
            match painted {
                Err(Error::Memory(_)) => Ok(0.0),
                Err(error) => Err(format!("the error is: {error}").into()),
                Ok(_) => Err("it fitted".into()),
            }
        },
    );
    report.check("with room again it paints as before", 0.0, || {
        let painted = clip.painted_by(&mut stylizer)?;
        let pairs = painted.iter().zip(expected);
        pairs
            .map(|(frame, expected)| count_differing(frame, expected))
            .sum()
    });
}

/// Allocates what is left of a GPU's memory.
fn fill_memory(device: &Device) -> Vec<Tensor> {
    let pieces = ALLOCATIONS.into_iter().flat_map(|bytes| {
        let piece = move || Tensor::zeros(bytes, DType::U8, device).ok();
        std::iter::from_fn(piece)
    });
    pieces.collect()
}

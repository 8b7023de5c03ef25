// SPDX-License-Identifier: MPL-2.0

//! Clips for tests that paint whole files, and a record of the buffers that reach a sink.

use super::files::run;
use super::shared::shared;
use gst::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

/// One of this package's examples, which `cargo test` builds beside the tests.
pub fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{}: `cargo build --release --examples` makes it",
        path.display()
    );
    path
}

/// The folder of the sample clip and style image, made once.
static SAMPLE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample");
    let _ = fs::remove_dir_all(&folder);
    run(Command::new(example("sample")).arg(&folder)).assert_succeeded("sample");
    folder
});

pub struct Clip {
    pub video: PathBuf,
    pub style: PathBuf,
}

impl Clip {
    pub fn sample() -> Self {
        Self {
            video: SAMPLE.join("sample.mp4"),
            style: SAMPLE.join("style.png"),
        }
    }

    /// A real video if it is there, else the sample.
    pub fn real() -> Self {
        match (shared("car-detection.mp4"), shared("starry_night.jpg")) {
            (Some(video), Some(style)) => Self { video, style },
            _ => {
                println!("left out: ../shared/data is not there; the sample clip serves instead");
                Self::sample()
            }
        }
    }
}

/// A buffer's time stamp, length in bytes, and a checksum of its contents.
pub type Buffer = (Option<gst::ClockTime>, usize, u64);

/// The buffers that have reached a sink.
pub type Arrived = Arc<Mutex<Vec<Buffer>>>;

pub fn watch(pipeline: &gst::Pipeline, sink: &str) -> Arrived {
    let arrived = Arrived::default();
    let pad = pipeline.by_name(sink).unwrap().static_pad("sink").unwrap();
    let list = arrived.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let buffer = info.buffer().unwrap();
        let map = buffer.map_readable().unwrap();
        let sum = map.iter().fold(0u64, |sum, &byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        list.lock()
            .unwrap()
            .push((buffer.pts(), buffer.size(), sum));
        gst::PadProbeReturn::Ok
    });
    arrived
}

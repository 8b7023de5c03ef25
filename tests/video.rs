// SPDX-License-Identifier: MPL-2.0

//! A real video file, end to end: every frame comes out at its time, the sound is kept, and the losses fall; and the program
//! `stylize` makes a whole file of it.

#![cfg(feature = "plugin")]

mod common;
#[path = "common/files.rs"]
mod files;

use files::{Ended, run};
use gst::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use tempfile::TempDir;

/// Frames of the clip that are painted.
const FRAMES: usize = 25;

fn init() {
    gst::init().unwrap();
    gstgatys::plugin_register_static().unwrap();
}

/// One of this package's examples, which `cargo test` builds beside the tests.
fn example(name: &str) -> PathBuf {
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

struct Clip {
    video: PathBuf,
    style: PathBuf,
}

impl Clip {
    fn sample() -> Self {
        Self {
            video: SAMPLE.join("sample.mp4"),
            style: SAMPLE.join("style.png"),
        }
    }

    /// A camera's video where there is one, else the sample.
    fn real() -> Self {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
        let clip = Self {
            video: data.join("car-detection.mp4"),
            style: data.join("starry_night.jpg"),
        };
        if clip.video.exists() && clip.style.exists() {
            return clip;
        }
        println!(
            "left out: {} is not there; the sample clip serves instead",
            data.display()
        );
        Self::sample()
    }
}

/// A buffer's time and length, and a checksum of what is in it.
type Buffer = (Option<gst::ClockTime>, usize, u64);

/// What comes to a sink.
type Arrived = Arc<Mutex<Vec<Buffer>>>;

fn watch(pipeline: &gst::Pipeline, sink: &str) -> Arrived {
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

struct Played {
    video: Vec<Buffer>,
    sound: Vec<Buffer>,
    /// The messages of the element.
    messages: Vec<gst::Structure>,
}

/// Plays the clip's first frames through `filter`, and all of its sound past it.
fn play(clip: &Clip, filter: &str) -> Played {
    init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc name=file ! qtdemux name=demuxer
         demuxer.video_0 ! queue ! decodebin ! videoconvert ! identity name=first ! {filter} ! fakesink name=video
         demuxer.audio_0 ! queue max-size-buffers=0 max-size-bytes=0 max-size-time=0 ! fakesink name=sound"
    ));
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline
        .by_name("file")
        .unwrap()
        .set_property("location", &clip.video);
    let first = pipeline.by_name("first").unwrap();
    let frames = AtomicUsize::new(0);
    first
        .static_pad("src")
        .unwrap()
        .add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            match frames.fetch_add(1, Ordering::Relaxed) < FRAMES {
                true => gst::PadProbeReturn::Ok,
                false => gst::PadProbeReturn::Drop,
            }
        });
    if let Some(gatys) = pipeline.by_name("gatys") {
        gatys.set_property("style-image", &clip.style);
    }
    let (video, sound) = (watch(&pipeline, "video"), watch(&pipeline, "sound"));
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut messages = Vec::new();
    for message in pipeline.bus().unwrap().iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => panic!("{} ({:?})", error.error(), error.debug()),
            gst::MessageView::Element(element) => {
                let structure = element.structure().filter(|s| s.name() == "gatys");
                messages.extend(structure.map(ToOwned::to_owned));
            }
            _ => (),
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    let taken = |arrived: Arrived| std::mem::take(&mut *arrived.lock().unwrap());
    Played {
        video: taken(video),
        sound: taken(sound),
        messages,
    }
}

fn times(buffers: &[Buffer]) -> Vec<Option<gst::ClockTime>> {
    buffers.iter().map(|(pts, ..)| *pts).collect()
}

/// Paints the clip and asserts what holds in every case; the initial and the total loss of each frame.
fn paint(properties: &str) -> Vec<(f64, f64)> {
    let clip = Clip::real();
    let plain = play(&clip, "identity");
    assert_eq!(plain.video.len(), FRAMES);
    assert!(!plain.sound.is_empty());

    let painted = play(
        &clip,
        &format!("gatys name=gatys max-size=256 {properties} ! videoconvert"),
    );
    assert_eq!(times(&painted.video), times(&plain.video));
    assert_eq!(painted.sound, plain.sound);
    for ((_, size, painted), (_, _, plain)) in painted.video.iter().zip(&plain.video) {
        assert!(*size > 0);
        assert_ne!(painted, plain, "a frame was not painted");
    }

    assert_eq!(painted.messages.len(), FRAMES);
    let frames = painted.messages.iter().zip(&plain.video).enumerate();
    let losses = frames.map(|(number, (message, (pts, ..)))| {
        assert_eq!(message.get::<u64>("frame"), Ok(number as u64));
        assert_eq!(
            message.get::<u64>("pts").ok(),
            pts.map(gst::ClockTime::nseconds)
        );
        assert!(message.get::<u32>("iterations").unwrap() <= 8);
        let loss = |name| message.get::<f64>(name).unwrap();
        let (initial, total) = (loss("initial-loss"), loss("total-loss"));
        println!("{number}: {initial:.4} {total:.4}");
        assert!(
            total.is_finite() && total <= initial,
            "frame {number}: {initial} to {total}"
        );
        (initial, total)
    });
    losses.collect()
}

#[test]
fn each_frame_starts_from_the_last_result() {
    let losses = paint("init=previous iterations=4 initial-iterations=8");
    // Which is worth something: the second frame starts better than the first.
    assert!(losses[1].0 < losses[0].0);
}

#[test]
fn each_frame_starts_from_itself() {
    for (number, (initial, total)) in paint("init=content iterations=8 initial-iterations=8")
        .into_iter()
        .enumerate()
    {
        assert!(
            total <= 0.5 * initial,
            "frame {number}: {initial} to {total}"
        );
    }
}

/// The program's run with these arguments.
fn stylize(arguments: &[&Path], properties: &[&str]) -> Ended {
    let mut command = Command::new(example("stylize"));
    command.args(arguments).args(properties);
    run(command
        .env("G_DEBUG", "fatal_warnings")
        .env("LC_ALL", "C.UTF-8"))
}

/// What a file has.
#[derive(Debug, PartialEq)]
struct Contents {
    frames: usize,
    size: (i32, i32),
    framerate: gst::Fraction,
    sound: Vec<(usize, u64)>,
}

impl Contents {
    fn of(file: &Path, demuxer: &str) -> Self {
        init();
        let pipeline = gst::parse::launch(&format!(
            "filesrc name=file ! {demuxer} name=demuxer
             demuxer.video_0 ! queue ! decodebin ! fakesink name=video
             demuxer.audio_0 ! queue max-size-buffers=0 max-size-bytes=0 max-size-time=0 ! fakesink name=sound"
        ));
        let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
        pipeline
            .by_name("file")
            .unwrap()
            .set_property("location", file);
        let (video, sound) = (watch(&pipeline, "video"), watch(&pipeline, "sound"));
        pipeline.set_state(gst::State::Playing).unwrap();
        let end = pipeline.bus().unwrap().timed_pop_filtered(
            gst::ClockTime::NONE,
            &[gst::MessageType::Eos, gst::MessageType::Error],
        );
        assert_eq!(
            end.unwrap().type_(),
            gst::MessageType::Eos,
            "{}",
            file.display()
        );
        let pad = pipeline
            .by_name("video")
            .unwrap()
            .static_pad("sink")
            .unwrap();
        let caps = pad.current_caps().unwrap();
        let caps = caps.structure(0).unwrap();
        let contents = Self {
            frames: video.lock().unwrap().len(),
            size: (caps.get("width").unwrap(), caps.get("height").unwrap()),
            framerate: caps.get("framerate").unwrap(),
            sound: sound
                .lock()
                .unwrap()
                .iter()
                .map(|&(_, size, sum)| (size, sum))
                .collect(),
        };
        pipeline.set_state(gst::State::Null).unwrap();
        contents
    }
}

/// The names of what is in a folder.
fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

const FAST: [&str; 3] = ["max-size=48", "iterations=2", "initial-iterations=2"];

#[test]
fn stylize_makes_a_whole_file() {
    let clip = Clip::sample();
    let folder = TempDir::with_prefix("gatys test ").unwrap();
    let expected = Contents::of(&clip.video, "qtdemux");
    assert_eq!((expected.frames, expected.size), (30, (384, 216)));
    assert!(!expected.sound.is_empty());
    for (name, demuxer) in [
        ("out.mp4", "qtdemux"),
        ("out.mov", "qtdemux"),
        ("out.mkv", "matroskademux"),
    ] {
        let output = folder.path().join(name);
        let ended = stylize(&[&clip.video, &clip.style, &output], &FAST);
        ended.assert_succeeded(name);
        assert!(ended.stderr.contains("30 frames"), "{ended}");
        assert_eq!(Contents::of(&output, demuxer), expected, "{name}");
    }
    assert_eq!(listing(folder.path()).len(), 3);
}

#[test]
fn stylize_says_what_it_cannot_do() {
    let clip = Clip::sample();
    let folder = TempDir::with_prefix("gatys test ").unwrap();
    let output = folder.path().join("out.mp4");
    let text = folder.path().join("text.mp4");
    fs::write(&text, "This is no video.").unwrap();
    let empty = folder.path().join("empty.mp4");
    fs::write(&empty, "").unwrap();
    let cut = folder.path().join("cut.mp4");
    let whole = fs::read(&clip.video).unwrap();
    fs::write(&cut, &whole[..whole.len() / 3]).unwrap();
    let before = listing(folder.path());

    let refuses = |arguments: [&Path; 3], properties: &[&str], parts: &[&str]| {
        let case = format!("{arguments:?} {properties:?}");
        let ended = stylize(&arguments, &[&FAST, properties].concat());
        ended.assert_refused(&case);
        println!("{}", ended.stderr);
        for part in [&["error:"], parts].concat() {
            assert!(
                ended.stderr.contains(part),
                "{case}: no ‘{part}’ in {ended}"
            );
        }
        assert_eq!(listing(folder.path()), before, "{case}");
    };
    let (video, style) = (clip.video.as_path(), clip.style.as_path());
    let missing = folder.path().join("missing");

    refuses(
        [video, style, &output],
        &["colour=content"],
        &["colour", "color"],
    );
    refuses([video, style, &output], &["stats=1"], &["stats"]);
    refuses(
        [video, style, &output],
        &["iterations=many"],
        &["iterations=many"],
    );
    refuses(
        [video, style, &output],
        &["iterations=0"],
        &["iterations=0", "1 to 100000"],
    );
    refuses([video, style, &output], &["pooling=min"], &["pooling=min"]);
    refuses(
        [video, style, &output],
        &["iterations"],
        &["PROPERTY=VALUE"],
    );
    refuses(
        [video, style, &output],
        &["content-layers=conv9_1"],
        &["content-layers", "conv9_1"],
    );
    refuses(
        [video, style, &output],
        &["weights=missing"],
        &["weights", "missing"],
    );
    refuses(
        [&missing, style, &output],
        &[],
        &["missing", "No such file"],
    );
    refuses(
        [video, &missing, &output],
        &[],
        &["style-image", "missing", "No such file"],
    );
    refuses(
        [video, &text, &output],
        &[],
        &["style-image", "text.mp4", "not a PNG"],
    );
    refuses([folder.path(), style, &output], &[], &["folder"]);
    refuses([&text, style, &output], &[], &[]);
    refuses([&empty, style, &output], &[], &[]);
    refuses([&cut, style, &output], &[], &[]);
    refuses(
        [video, style, &folder.path().join("out.avi")],
        &[],
        &["out.avi", ".mp4", ".mkv"],
    );
    refuses(
        [video, style, &folder.path().join("out")],
        &[],
        &["out", ".mp4"],
    );
    refuses([video, style, folder.path()], &[], &["folder"]);
    refuses(
        [video, style, &missing.join("out.mp4")],
        &[],
        &["missing", "no such folder"],
    );
    refuses([&cut, style, &cut], &[], &["is the input"]);

    let ended = stylize(&[video, style], &[]);
    ended.assert_refused("no output");
    assert!(
        ended.stderr.contains("usage: stylize INPUT STYLE OUTPUT"),
        "{ended}"
    );
    let help = stylize(&[], &["--help"]);
    help.assert_succeeded("--help");
    assert!(
        help.stdout.contains("usage: stylize INPUT STYLE OUTPUT"),
        "{help}"
    );
}

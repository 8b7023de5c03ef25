// SPDX-License-Identifier: MPL-2.0

//! The program `stylize` paints a whole video file, on request with the frames beside their paintings, or says why it cannot.

#![cfg(feature = "plugin")]

mod common;

use common::clip::{Clip, example, watch};
use common::files::{Ended, run};
use common::painter::init;
use gst::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// Runs the program with these arguments.
fn stylize(arguments: &[&Path], properties: &[&str]) -> Ended {
    let mut command = Command::new(example("stylize"));
    command.args(arguments).args(properties);
    run(command
        .env("G_DEBUG", "fatal_warnings")
        .env("LC_ALL", "C.UTF-8"))
}

/// The contents of a video file.
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

/// The names of the files in a folder.
fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

const USAGE: &str = "usage: stylize [--beside] INPUT STYLE OUTPUT";

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

/// Has a pipeline write a file.
fn make(file: &Path, pipeline: &str) {
    init();
    let made = gst::parse::launch(&format!("filesink name=file {pipeline} ! file."));
    let pipeline = made.unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("file").unwrap();
    sink.set_property("location", file);
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Eos]);
    pipeline.set_state(gst::State::Null).unwrap();
}

/// The sound of a whole file may be longer than its pictures.
#[test]
fn stylize_warns_of_an_input_that_is_cut_short() {
    let clip = Clip::sample();
    let folder = TempDir::with_prefix("gatys test ").unwrap();
    let [whole, cut, output] =
        ["whole.mp4", "cut.mp4", "out.mp4"].map(|name| folder.path().join(name));
    make(
        &whole,
        "audiotestsrc num-buffers=400 ! avenc_aac ! mux.
         videotestsrc num-buffers=5 ! video/x-raw,width=64,height=48,framerate=1/1 ! x264enc ! mux.
         mp4mux name=mux faststart=true",
    );
    let file = fs::read(&whole).unwrap();
    fs::write(&cut, &file[..2 * file.len() / 3]).unwrap();
    for (input, warns) in [(&whole, false), (&cut, true)] {
        let ended = stylize(&[input, &clip.style, &output], &FAST);
        ended.assert_succeeded("video and sound");
        let warned = ended.stderr.contains("it may be incomplete");
        assert_eq!(warned, warns, "{ended}");
    }
}

/// A sequence of concatenated pictures has no time stamps.
#[test]
fn stylize_paints_frames_without_a_time() {
    let clip = Clip::sample();
    let folder = TempDir::with_prefix("gatys test ").unwrap();
    let [input, output] = ["in.mjpeg", "out.mkv"].map(|name| folder.path().join(name));
    make(&input, "videotestsrc num-buffers=3 ! jpegenc");
    let ended = stylize(&[&input, &clip.style, &output], &FAST);
    ended.assert_succeeded("frames without a time");
    assert!(ended.stderr.contains("3 frames"), "{ended}");
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
        &["iterations=many", "1 to 100000"],
    );
    refuses(
        [video, style, &output],
        &["iterations=0"],
        &["iterations=0", "1 to 100000"],
    );
    refuses(
        [video, style, &output],
        &["pooling=min"],
        &["pooling=min", "avg, max"],
    );
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
    refuses([&text, style, &output], &[], &["text.mp4"]);
    refuses([&empty, style, &output], &[], &["empty.mp4"]);
    refuses([&cut, style, &output], &[], &["cut.mp4"]);
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
    assert!(ended.stderr.contains(USAGE), "{ended}");
    let help = stylize(&[], &["--help"]);
    help.assert_succeeded("--help");
    assert!(help.stdout.contains(USAGE), "{help}");
}

/// The pictures of a file, each with its time.
fn pictures(file: &Path) -> Vec<(Option<gst::ClockTime>, image::RgbImage)> {
    init();
    let pipeline = gst::parse::launch(
        "filesrc name=file ! decodebin ! videoconvert ! video/x-raw,format=RGB ! appsink name=sink sync=false",
    );
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    let file_source = pipeline.by_name("file").unwrap();
    file_source.set_property("location", file);
    let sink = pipeline.by_name("sink").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let picture = |sample: gst::Sample| {
        let info = gst_video::VideoInfo::from_caps(sample.caps().unwrap()).unwrap();
        let pixels = common::video::pixels(&info, &sample.buffer_owned().unwrap()).concat();
        let picture = image::RgbImage::from_raw(info.width(), info.height(), pixels).unwrap();
        (sample.buffer().unwrap().pts(), picture)
    };
    let samples = std::iter::from_fn(|| sink.pull_sample().ok());
    let pictures = samples.map(picture).collect();
    pipeline.set_state(gst::State::Null).unwrap();
    pictures
}

/// The mean difference of a picture to the part of another that begins `left` pixels from its left edge.
fn difference(picture: &image::RgbImage, other: &image::RgbImage, left: u32) -> f64 {
    let differences = picture.enumerate_pixels().flat_map(|(x, y, pixel)| {
        let other = other.get_pixel(left + x, y).0;
        pixel
            .0
            .into_iter()
            .zip(other)
            .map(|(a, b)| f64::from(a.abs_diff(b)))
    });
    differences.sum::<f64>() / (3 * picture.width() * picture.height()) as f64
}

/// A clip with a variable frame rate: half of its frames are missing.
fn with_frames_lost(folder: &Path) -> PathBuf {
    init();
    let path = folder.join("lost frames.mkv");
    let pipeline = gst::parse::launch(
        "videotestsrc pattern=ball num-buffers=24 ! video/x-raw,width=95,height=64,framerate=25/1
         ! identity name=loss ! x264enc quantizer=10 ! matroskamux ! filesink name=file",
    );
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline
        .by_name("file")
        .unwrap()
        .set_property("location", &path);
    let frames = AtomicUsize::new(0);
    let loss = pipeline.by_name("loss").unwrap().static_pad("src").unwrap();
    loss.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let frame = frames.fetch_add(1, Ordering::Relaxed);
        match frame * frame % 5 < 2 {
            true => gst::PadProbeReturn::Ok,
            false => gst::PadProbeReturn::Drop,
        }
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let bus = pipeline.bus().unwrap();
    let end = bus.timed_pop_filtered(gst::ClockTime::NONE, &ends).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos);
    pipeline.set_state(gst::State::Null).unwrap();
    path
}

#[test]
fn stylize_shows_frames_beside_their_paintings() {
    let clip = Clip::sample();
    let folder = TempDir::with_prefix("gatys test ").unwrap();
    let lost = with_frames_lost(folder.path());
    for (video, name) in [(&clip.video, "beside.mp4"), (&lost, "beside lost.mkv")] {
        let output = folder.path().join(name);
        let arguments = [Path::new("--beside"), video, &clip.style, &output];
        stylize(&arguments, &FAST).assert_succeeded(name);
        let (frames, wide) = (pictures(video), pictures(&output));
        assert_eq!(frames.len(), wide.len());
        assert!(frames.len() > 9, "{name}: {}", frames.len());
        for (index, ((time, frame), (wide_time, wide))) in frames.iter().zip(&wide).enumerate() {
            // Containers round time stamps.
            let apart = time.unwrap().absdiff(wide_time.unwrap());
            assert!(
                apart < gst::ClockTime::from_mseconds(2),
                "{name}, {index}: {apart}"
            );
            assert_eq!(wide.dimensions(), (2 * frame.width(), frame.height()));
            let (left, right) = (
                difference(frame, wide, 0),
                difference(frame, wide, frame.width()),
            );
            assert!(left < 6.0, "{name}, {index}: {left}");
            assert!(right > 2.0 * left, "{name}, {index}: {right}, {left}");
            // It is this frame and not a neighbouring one.
            for other in [index.wrapping_sub(1), index + 1] {
                if let Some((_, other)) = frames.get(other) {
                    let other = difference(other, wide, 0);
                    assert!(other > left, "{name}, {index}: {other}, {left}");
                }
            }
        }
    }
    let output = folder.path().join("beside.mp4");
    let of = |file| Contents::of(file, "qtdemux");
    let (made, given) = (of(&output), of(&clip.video));
    assert_eq!((made.sound, made.framerate), (given.sound, given.framerate));
    assert_eq!(listing(folder.path()).len(), 3);

    let ended = stylize(&[Path::new("--aside"), &clip.video, &clip.style], &FAST);
    ended.assert_refused("an unknown option");
}

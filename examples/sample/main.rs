// SPDX-License-Identifier: MPL-2.0

//! Generates the project's sample material: `sample.mp4`, a lakeside in the evening with a quiet sound track, and
//! `style.png`, an oil painting.
//!
//!     cargo run --release --example sample -- DIR

mod cards;
mod math;
mod painting;
mod scene;
mod sky;
mod solids;
mod terrain;

use gst::prelude::*;
use gst_app::AppSrc;
use gst_video::{VideoColorimetry, VideoFormat, VideoInfo};
use scene::Scene;
use std::{error::Error, f32::consts::TAU, fs, ops::Range, path::Path, process::ExitCode};

const FRAMES: u64 = 30;
const RATE: u64 = 15;
const SAMPLE_RATE: u64 = 48_000;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(dir), None) = (args.next(), args.next()) else {
        eprintln!("usage: sample DIR\nwrites DIR/sample.mp4 and DIR/style.png");
        return ExitCode::from(2);
    };
    match make(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(dir: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)
        .map_err(|e| format!("cannot make the directory {}: {e}", dir.display()))?;
    let style = dir.join("style.png");
    painting::paint()
        .save(&style)
        .map_err(|e| format!("cannot write {}: {e}", style.display()))?;
    println!("{}", style.display());
    let clip = dir.join("sample.mp4");
    render_clip(&clip).map_err(|e| format!("cannot make {}: {e}", clip.display()))?;
    println!("{}", clip.display());
    Ok(())
}

/// Renders and encodes the clip. The colorimetry is fixed, because BT.601 would be the default at such a small size.
fn render_clip(path: &Path) -> Result<(), Box<dyn Error>> {
    gst::init()?;
    let pipeline = gst::parse::launch(
        "appsrc name=pictures format=time max-bytes=0 ! videoconvert
           ! video/x-raw,format=I420,colorimetry=bt709,chroma-site=mpeg2
           ! x264enc pass=qual quantizer=19 bframes=0 speed-preset=slow key-int-max=15 threads=1
           ! video/x-h264,profile=high ! h264parse ! mux.video_0
         appsrc name=sound format=time max-bytes=0 ! audioconvert ! avenc_aac bitrate=96000 ! aacparse ! mux.audio_0
         mp4mux name=mux ! filesink name=file",
    )?
    .downcast::<gst::Pipeline>()
    .map_err(|_| "this is no pipeline")?;
    let element = |name: &str| pipeline.by_name(name).ok_or(format!("no element {name}"));
    let source = |name: &str| {
        element(name)?
            .downcast::<AppSrc>()
            .map_err(|_| format!("{name} is no appsrc"))
    };
    element("file")?.set_property("location", path);
    let (pictures, sound) = (source("pictures")?, source("sound")?);
    let (width, height) = (scene::WIDTH as u32, scene::HEIGHT as u32);
    let picture_caps = VideoInfo::builder(VideoFormat::Rgb, width, height)
        .fps(gst::Fraction::new(RATE as i32, 1))
        .colorimetry(&"1:1:5:1".parse::<VideoColorimetry>()?)
        .build()?
        .to_caps()?;
    pictures.set_caps(Some(&picture_caps));
    let sound_caps = gst::Caps::builder("audio/x-raw")
        .field("format", "F32LE")
        .field("layout", "interleaved")
        .field("rate", SAMPLE_RATE as i32)
        .field("channels", 2)
        .field("channel-mask", gst::Bitmask::new(3))
        .build();
    sound.set_caps(Some(&sound_caps));

    let playing = Playing::start(&pipeline)?;
    match push_clip(&pictures, &sound) {
        Ok(()) => playing.wait(),
        // What went wrong behind the sources.
        Err(error) => Err(playing.failure().unwrap_or(error)),
    }
}

/// Pushes all of the clip.
fn push_clip(pictures: &AppSrc, sound: &AppSrc) -> Result<(), Box<dyn Error>> {
    push(sound, melody(), 0..FRAMES * SAMPLE_RATE / RATE, SAMPLE_RATE)?;
    sound.end_of_stream()?;
    let scene = Scene::new();
    for frame in 0..FRAMES {
        push(
            pictures,
            scene.render(frame as f32 / RATE as f32),
            frame..frame + 1,
            RATE,
        )?;
    }
    pictures.end_of_stream()?;
    Ok(())
}

/// A running pipeline, which is stopped on drop.
struct Playing<'a>(&'a gst::Pipeline);

impl<'a> Playing<'a> {
    fn start(pipeline: &'a gst::Pipeline) -> Result<Self, Box<dyn Error>> {
        let playing = Playing(pipeline);
        match pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(playing),
            Err(error) => Err(playing.failure().unwrap_or(error.into())),
        }
    }

    /// Waits until all is written.
    fn wait(&self) -> Result<(), Box<dyn Error>> {
        let bus = self.0.bus().ok_or("the pipeline has no bus")?;
        let ends = [gst::MessageType::Eos, gst::MessageType::Error];
        match bus.timed_pop_filtered(gst::ClockTime::NONE, &ends) {
            Some(message) => error_of(&message).map_or(Ok(()), Err),
            None => Err("the pipeline's bus was closed".into()),
        }
    }

    fn failure(&self) -> Option<Box<dyn Error>> {
        error_of(&self.0.bus()?.pop_filtered(&[gst::MessageType::Error])?)
    }
}

impl Drop for Playing<'_> {
    fn drop(&mut self) {
        // Nothing can be done if the pipeline does not stop.
        let _ = self.0.set_state(gst::State::Null);
    }
}

fn error_of(message: &gst::Message) -> Option<Box<dyn Error>> {
    match message.view() {
        gst::MessageView::Error(error) => Some(error.error().to_string().into()),
        _ => None,
    }
}

/// Pushes a buffer that lasts from the start to the end of `units`, of which a second has `rate`.
fn push(
    source: &AppSrc,
    bytes: Vec<u8>,
    units: Range<u64>,
    rate: u64,
) -> Result<(), Box<dyn Error>> {
    let time =
        |unit: u64| gst::ClockTime::from_nseconds(unit * gst::ClockTime::SECOND.nseconds() / rate);
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    let header = buffer.get_mut().ok_or("a new buffer is shared")?;
    header.set_pts(time(units.start));
    header.set_duration(time(units.end) - time(units.start));
    source.push_buffer(buffer)?;
    Ok(())
}

/// A quiet chord under five plucked notes, as interleaved stereo samples.
fn melody() -> Vec<u8> {
    // Start in seconds, pitch in Hz, loudness, and panning from left (0) to right (1).
    let plucked = [
        (0.05, 440.00, 0.10, 0.4),
        (0.35, 554.37, 0.09, 0.6),
        (0.65, 659.26, 0.10, 0.3),
        (0.95, 880.00, 0.08, 0.7),
        (1.25, 739.99, 0.09, 0.5),
    ];
    let chord = [110.0, 164.81, 220.0, 277.18f32];
    (0..FRAMES * SAMPLE_RATE / RATE)
        .flat_map(|i| {
            let time = i as f32 / SAMPLE_RATE as f32;
            let swell = (time / 0.5).min(1.0) * ((2.0 - time) / 0.6).clamp(0.0, 1.0);
            let pad: f32 = chord
                .iter()
                .map(|pitch| 0.022 * (TAU * pitch * time).sin())
                .sum();
            let notes = plucked.iter().filter(|note| time > note.0).map(
                |&(start, pitch, loudness, right)| {
                    let t = time - start;
                    let tone = |k: f32| {
                        (TAU * pitch * k * t).sin() * (-t * (2.5 + 1.5 * k)).exp() / (k * k)
                    };
                    let note =
                        loudness * (t / 0.006).min(1.0) * (tone(1.0) + tone(2.0) + tone(3.0));
                    (note * (1.0 - right), note * right)
                },
            );
            let (left, right) =
                notes.fold((pad, pad), |sum, note| (sum.0 + note.0, sum.1 + note.1));
            [left * swell, right * swell]
        })
        .flat_map(f32::to_le_bytes)
        .collect()
}

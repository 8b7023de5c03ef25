// SPDX-License-Identifier: MPL-2.0

//! A real video file, end to end: every frame keeps its time stamp, the sound is kept, and the losses fall.

#![cfg(feature = "plugin")]

mod common;

use common::clip::{Arrived, Buffer, Clip, watch};
use common::painter::init;
use gst::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of frames of the clip that are painted.
const FRAMES: usize = 25;

struct Played {
    video: Vec<Buffer>,
    sound: Vec<Buffer>,
    /// The element's messages.
    messages: Vec<gst::Structure>,
}

/// Plays the clip's first frames through `filter`, and its sound unchanged.
fn play(clip: &Clip, filter: &str) -> Played {
    init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc name=file ! qtdemux name=demuxer
         demuxer.video_0 ! queue ! decodebin ! videoconvert ! video/x-raw,format=RGB ! identity name=first !
         {filter} ! fakesink name=video
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

/// Paints the clip and asserts what always holds; returns the initial and the total loss of each frame.
fn paint(properties: &str) -> Vec<(f64, f64)> {
    let clip = Clip::real();
    let plain = play(&clip, "identity");
    assert_eq!(plain.video.len(), FRAMES);
    assert!(!plain.sound.is_empty());

    let painted = play(
        &clip,
        &format!("gatys name=gatys max-size=256 {properties}"),
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
    // It helps: the second frame starts better than the first.
    assert!(losses[1].0 < losses[0].0);
}

#[test]
fn each_frame_starts_from_itself() {
    for (number, (initial, total)) in
        paint("init=content skip-still=false iterations=8 initial-iterations=8")
            .into_iter()
            .enumerate()
    {
        assert!(
            total <= 0.5 * initial,
            "frame {number}: {initial} to {total}"
        );
    }
}

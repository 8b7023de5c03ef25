// SPDX-License-Identifier: MPL-2.0

//! The element in a harness: frames are pushed and pulled in the test's own thread.

use super::Files;
use super::video::{DURATION, Pixels, frame, info, picture, pixels};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::{VideoFormat, VideoInfo};
use std::sync::Once;
use std::time::Duration;

/// GStreamer with the element registered.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gstgatys::plugin_register_static().unwrap();
    });
}

/// An element with the narrow network, 5 iterations for a first frame and 3 for others.
pub fn element(files: &Files) -> gst::Element {
    init();
    gst::ElementFactory::make("gatys")
        .property("weights", files.weights.to_str().unwrap())
        .property("style-image", files.style.to_str().unwrap())
        .property("device", "cpu")
        .property("initial-iterations", FIRST)
        .property("iterations", LATER)
        .build()
        .unwrap()
}

pub const FIRST: u32 = 5;
pub const LATER: u32 = 3;

/// Longer than anything takes but a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Paints one picture as the first frame of a video.
pub fn paint(files: &Files, info: &VideoInfo, picture: &Pixels) -> Pixels {
    Painter::with_info(&element(files), info.clone()).paint_picture(picture)
}

/// The error that was posted since the last call, which must be the only one.
pub fn only_error(bus: &gst::Bus) -> gst::glib::Error {
    let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
    assert!(bus.pop_filtered(&[gst::MessageType::Error]).is_none());
    let gst::MessageView::Error(error) = message.view() else {
        unreachable!();
    };
    error.error()
}

/// The only error of an element that fails to start.
pub fn start_error(element: &gst::Element) -> gst::glib::Error {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Paused).is_err());
    let error = only_error(&bus);
    element.set_state(gst::State::Null).unwrap();
    element.set_bus(None);
    error
}

/// An element at work.
pub struct Painter {
    pub element: gst::Element,
    pub harness: Harness,
    pub bus: gst::Bus,
    pub info: VideoInfo,
    /// Number of the next frame.
    pub index: u64,
}

impl Painter {
    /// Plays RGB frames of 32x24 pixels.
    pub fn new(element: &gst::Element) -> Self {
        Self::with_info(element, info(VideoFormat::Rgb, 32, 24))
    }

    pub fn with_info(element: &gst::Element, info: VideoInfo) -> Self {
        Self::with_caps(element, info.to_caps().unwrap(), info)
    }

    /// Plays frames of `caps`, which `info` describes.
    pub fn with_caps(element: &gst::Element, caps: gst::Caps, info: VideoInfo) -> Self {
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
        harness.set_src_caps(caps);
        harness.play();
        Self {
            element: element.clone(),
            harness,
            bus,
            info,
            index: 0,
        }
    }

    /// The next frame, with a picture that moves.
    pub fn next_frame(&mut self) -> gst::Buffer {
        let picture = picture(self.info.width(), self.info.height(), self.index as u32);
        self.frame(&picture)
    }

    /// The next frame, with a picture of the test's own.
    pub fn frame(&mut self, picture: &Pixels) -> gst::Buffer {
        self.index += 1;
        frame(&self.info, picture, self.index - 1, |_| 0)
    }

    /// Paints a frame.
    pub fn paint(&mut self, frame: gst::Buffer) -> Pixels {
        let painted = self.harness.push_and_pull(frame).unwrap();
        pixels(&self.info, &painted)
    }

    /// Paints the next frame.
    pub fn paint_next(&mut self) -> Pixels {
        let frame = self.next_frame();
        self.paint(frame)
    }

    /// Paints a picture of the test's own as the next frame.
    pub fn paint_picture(&mut self, picture: &Pixels) -> Pixels {
        let frame = self.frame(picture);
        self.paint(frame)
    }

    /// Paints the next frame and returns its statistics.
    pub fn report(&mut self) -> gst::Structure {
        self.paint_next();
        self.stats()
    }

    /// Paints the next frame and returns its number of iterations.
    pub fn iterations(&mut self) -> u32 {
        self.report().get("iterations").unwrap()
    }

    pub fn stats(&self) -> gst::Structure {
        self.element.property("stats")
    }

    /// Advances the next frame's time stamp by `seconds`.
    pub fn jump(&mut self, seconds: u64) {
        self.index += seconds * gst::ClockTime::SECOND.nseconds() / DURATION.nseconds();
    }

    /// Takes the messages of a type that were posted so far.
    pub fn messages(&self, kind: gst::MessageType) -> Vec<gst::Message> {
        std::iter::from_fn(|| self.bus.pop_filtered(&[kind])).collect()
    }

    /// Takes the statistics that were posted so far.
    pub fn reports(&self) -> Vec<gst::Structure> {
        let messages = self.messages(gst::MessageType::Element);
        let structures = messages.iter().filter_map(|message| message.structure());
        structures.map(|structure| structure.to_owned()).collect()
    }

    /// Takes the texts of the warnings that were posted so far.
    pub fn warnings(&self) -> Vec<String> {
        let messages = self.messages(gst::MessageType::Warning);
        messages.iter().map(warning).collect()
    }

    /// Waits for a warning and returns its text.
    pub fn await_warning(&self) -> String {
        let message = await_message(&self.bus, &[gst::MessageType::Warning]);
        warning(&message.expect("no warning came"))
    }
}

impl Drop for Painter {
    fn drop(&mut self) {
        // Breaks the cycle: messages refer to the element, and that to the bus.
        self.bus.set_flushing(true);
        self.element.set_bus(None);
    }
}

/// Waits for the end of a pipeline's stream, and asserts that no error comes instead.
pub fn assert_ends(bus: &gst::Bus) {
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = await_message(bus, &ends).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
}

fn await_message(bus: &gst::Bus, kinds: &[gst::MessageType]) -> Option<gst::Message> {
    let patience = gst::ClockTime::try_from(PATIENCE).unwrap();
    bus.timed_pop_filtered(patience, kinds)
}

/// The text of a warning.
fn warning(message: &gst::Message) -> String {
    match message.view() {
        gst::MessageView::Warning(warning) => warning.error().message().to_owned(),
        other => panic!("not a warning: {other:?}"),
    }
}

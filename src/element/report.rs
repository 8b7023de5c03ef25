// SPDX-License-Identifier: MPL-2.0

//! What the element reports: messages on the bus, and the read-only properties `stats`, which is also the message
//! of each frame, and `weights-info`.

use super::imp::Gatys;
use crate::stylizer::optimizer::Reason;
use crate::stylizer::{self, Report, Stylizer, device};
use crate::vgg::{Layer, Vgg};
use gst::ClockTime;
use gst::glib::{self, ParamSpec};
use gst::prelude::*;
use gst::subclass::prelude::*;

/// The specifications of both properties.
pub fn specs() -> [ParamSpec; 2] {
    [
        (
            "weights-info",
            "Weights' info",
            "What the weights were recognised as, from PAUSED on: family, layers, and the preprocessing of an image",
        ),
        (
            "stats",
            "Statistics",
            "Losses, iterations and time of the last frame",
        ),
    ]
    .map(|(name, nick, blurb)| {
        let spec = glib::ParamSpecBoxed::builder::<gst::Structure>(name);
        spec.nick(nick).blurb(blurb).read_only().build()
    })
}

/// The structure `gatys` of frame number `frame`, which came in `buffer` and for which `stylizer` took `time`.
pub fn stats(
    report: &Report,
    buffer: &gst::Buffer,
    segment: Option<&gst::FormattedSegment<ClockTime>>,
    frame: u64,
    time: ClockTime,
    stylizer: &Stylizer,
) -> gst::Structure {
    let reason = match report.reason {
        Some(Reason::Iterations) => "iterations",
        Some(Reason::Deadline) => "budget",
        Some(Reason::Converged) => "converged",
        None => "repeated",
    };
    let nseconds = |time: Option<ClockTime>| time.map_or(u64::MAX, ClockTime::nseconds);
    let in_segment = buffer.pts().zip(segment);
    let stream_time = in_segment.and_then(|(pts, segment)| segment.to_stream_time(pts));
    let running_time = in_segment.and_then(|(pts, segment)| segment.to_running_time(pts));
    gst::Structure::builder("gatys")
        .field("pts", nseconds(buffer.pts()))
        .field("stream-time", nseconds(stream_time))
        .field("running-time", nseconds(running_time))
        .field("duration", nseconds(buffer.duration()))
        .field("frame", frame)
        .field("iterations", report.iterations)
        .field("reason", reason)
        .field("content-loss", report.losses.content)
        .field("style-loss", report.losses.style)
        .field("total-loss", report.losses.total)
        .field("initial-loss", report.initial.total)
        .field("scene-cut", report.scene_cut)
        .field("motion-time", report.motion_time.as_nanos() as u64)
        .field("time", time.nseconds())
        .field("device", device::name(stylizer.device()))
        .field("precision", stylizer.vgg().precision().to_string())
        .build()
}

/// The structure `gatys-weights`: what a network's weights were recognised as.
pub fn weights_info(vgg: &Vgg) -> gst::Structure {
    gst::Structure::builder("gatys-weights")
        .field("family", vgg.family())
        .field("layers", format!("{} to {}", Layer::FIRST, vgg.deepest()))
        .field("preprocessing", vgg.preprocessing().to_string())
        .build()
}

impl Gatys {
    /// Warns that a value cannot be used.
    pub fn warn(&self, cause: &str) {
        gst::element_imp_warning!(
            self,
            gst::ResourceError::Settings,
            ("{cause}; the previous value stays in use")
        );
    }

    /// An error that says which frames would fit.
    pub fn out_of_memory(&self, error: &stylizer::Error) {
        gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("{error}"));
    }

    /// An error of the stream: what failed, and why.
    pub fn fail(&self, what: &str, cause: &str) -> gst::FlowError {
        // With RUST_BACKTRACE set, more lines follow in candle's errors.
        let line = cause.lines().next().unwrap_or_default();
        gst::element_imp_error!(
            self,
            gst::StreamError::Failed,
            ("{what}: {line}"),
            ["{cause}"]
        );
        gst::FlowError::Error
    }

    /// Posts a message on the bus.
    pub fn post(&self, message: gst::Message) {
        // Fails if there is no bus: then nobody listens.
        let _ = self.obj().post_message(message);
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The read-only properties `stats` and `weights-info`; `stats` is also the message of each frame.

use crate::stylizer::optimizer::Reason;
use crate::stylizer::{Report, Stylizer, device};
use crate::vgg::{Layer, Vgg};
use gst::ClockTime;
use gst::glib::{self, ParamSpec};
use gst::prelude::*;

/// The specifications of both.
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

/// The structure `gatys` of frame number `frame`, for which `stylizer` took `time`.
pub fn stats(
    report: &Report,
    pts: Option<ClockTime>,
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
    gst::Structure::builder("gatys")
        .field("pts", pts.map_or(u64::MAX, ClockTime::nseconds))
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

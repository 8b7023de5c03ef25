// SPDX-License-Identifier: MPL-2.0

//! What is said of a frame, in the message and in `stats`.

use crate::stylizer::Report;
use crate::stylizer::optimizer::Reason;
use gst::ClockTime;

/// The structure `gatys` of frame number `frame`.
pub fn structure(
    report: &Report,
    pts: Option<ClockTime>,
    frame: u64,
    time: ClockTime,
    device: &str,
) -> gst::Structure {
    let reason = match report.reason {
        Some(Reason::Iterations) => "iterations",
        Some(Reason::Budget) => "budget",
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
        .field("time", time.nseconds())
        .field("device", device)
        .field("precision", "f32")
        .build()
}

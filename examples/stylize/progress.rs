// SPDX-License-Identifier: MPL-2.0
//! Progress output: a single updated line on a terminal, else a line for each frame.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gst::prelude::*;

use crate::say;

pub struct Progress {
    /// The element's sink pad: its caps have the frame rate, and its peer knows the duration.
    video: gst::Pad,
    /// Where the latest buffer of any stream ends, in nanoseconds.
    end: Arc<AtomicU64>,
    terminal: bool,
    frames: u64,
    pts: Option<gst::ClockTime>,
    last: Instant,
    /// Seconds per frame, smoothed; without the first frame, which takes far longer than the others.
    pace: Option<f64>,
}

impl Progress {
    /// `demuxer` is to get its pads later.
    pub fn new(gatys: &gst::Element, demuxer: &gst::Element) -> Self {
        let end = Arc::new(AtomicU64::new(0));
        let latest = end.clone();
        demuxer.connect_pad_added(move |_, pad| watch_end(pad, latest.clone()));
        Self {
            video: gatys.static_pad("sink").expect("filters have a sink pad"),
            end,
            terminal: io::stderr().is_terminal(),
            frames: 0,
            pts: None,
            last: Instant::now(),
            pace: None,
        }
    }

    /// Shows the element's message for a frame.
    pub fn frame(&mut self, message: &gst::StructureRef) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.frames += 1;
        let pts = message.get::<gst::ClockTime>("pts");
        self.pts = pts.ok();
        if self.frames > 1 {
            let pace = self.pace.unwrap_or(seconds);
            self.pace = Some(0.8 * pace + 0.2 * seconds);
        }
        let loss = |name: &str| message.get(name).map_or("?".into(), short);
        let (content, style) = (loss("content-loss"), loss("style-loss"));
        let total = loss("total-loss");
        let (position, left) = (self.position(), self.time_left());
        let pace = self.pace.unwrap_or(seconds);
        let line = format!(
            "frame {position}  {pace:.2} s/frame{left}  content {content}  style {style}  total {total}"
        );
        if self.terminal {
            // With line wrap turned off, a narrow terminal shows the beginning of the line.
            let _ = write!(io::stderr(), "\r\x1b[?7l{line}\x1b[K\x1b[?7h");
        } else {
            say(line);
        }
    }

    pub fn warn(&self, what: &str) {
        self.end_line();
        say(format_args!("warning: {what}"));
    }

    pub fn end_line(&self) {
        if self.terminal && self.frames > 0 {
            say("");
        }
    }

    /// Warns if all streams are shorter than announced: a truncated file ends without an error.
    pub fn check_length(&self) {
        let end = gst::ClockTime::from_nseconds(self.end.load(Ordering::Relaxed));
        if let Some(duration) = self.duration()
            && !end.is_zero()
            && end + 2 * gst::ClockTime::SECOND < duration
        {
            self.warn(&format!(
                "the input ended at {end:.1}, but says {duration:.1}: it may be incomplete"
            ));
        }
    }

    fn position(&self) -> String {
        let frames = self.frames;
        if let Some(total) = self.total() {
            return format!("{frames}/{total}  {}%", 100 * frames / total);
        }
        match (self.pts, self.duration()) {
            (Some(pts), Some(duration)) if pts < duration => {
                let percent = 100 * pts.nseconds() / duration.nseconds();
                format!("{frames}  {percent}%")
            }
            _ => frames.to_string(),
        }
    }

    fn time_left(&self) -> String {
        let (Some(total), Some(pace)) = (self.total(), self.pace) else {
            return String::new();
        };
        let left = Duration::from_secs_f64(pace * (total - self.frames) as f64).as_secs();
        let (hours, minutes, seconds) = (left / 3600, left / 60 % 60, left % 60);
        format!("  {hours}:{minutes:02}:{seconds:02} left")
    }

    fn duration(&self) -> Option<gst::ClockTime> {
        self.video.peer_query_duration()
    }

    /// The expected number of frames, if the input has a duration; at least the number so far.
    fn total(&self) -> Option<u64> {
        let caps = self.video.current_caps()?;
        let rate = gst_video::VideoInfo::from_caps(&caps).ok()?.fps();
        if rate.numer() <= 0 {
            return None;
        }
        // The duration may have been rounded down.
        let duration = self.duration()? + gst::ClockTime::MSECOND;
        let rate = (rate.numer() as u64, rate.denom() as u64);
        let per_second = gst::ClockTime::SECOND.nseconds() * rate.1;
        let total = duration.nseconds().mul_div_floor(rate.0, per_second)?;
        Some(total.max(self.frames))
    }
}

/// Raises `latest` to where the buffers that pass a pad end.
fn watch_end(pad: &gst::Pad, latest: Arc<AtomicU64>) {
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer()
            && let Some(pts) = buffer.pts()
        {
            let end = pts.saturating_add(buffer.duration().unwrap_or_default());
            latest.fetch_max(end.nseconds(), Ordering::Relaxed);
        }
        gst::PadProbeReturn::Ok
    });
}

fn short(loss: f64) -> String {
    if loss == 0.0 || (1e-3..1e4).contains(&loss) {
        format!("{loss:.4}")
    } else {
        format!("{loss:.2e}")
    }
}

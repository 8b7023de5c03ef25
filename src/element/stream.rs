// SPDX-License-Identifier: MPL-2.0

//! The state of the stream.

use super::clock::Timeline;
use super::dump::MotionDump;
use super::pace::Pace;
use super::qos::Report;
use crate::stylizer::Stylizer;
use gst::ClockTime;
use gst_video::VideoInfo;

/// What belongs to the stream, from start to stop.
#[derive(Default)]
pub struct StreamState {
    pub info: Option<VideoInfo>,
    /// Absent while the streaming thread has taken it to paint a frame.
    pub stylizer: Option<Stylizer>,
    /// Whether no frame has been painted since the stylizer was reset.
    pub first: bool,
    /// Frames that came out since the start, repeated ones included.
    pub frames: u64,
    pub timeline: Timeline,
    pub pace: Pace,
    /// Downstream's last QoS event. It counts until the next frame has been painted: a sink sends one for
    /// each, unless it no longer shows frames at their times.
    pub qos: Option<Report>,
    /// The clock's running time when the frame that is being painted was begun.
    pub begun: Option<ClockTime>,
    pub dump: MotionDump,
    /// What is wrong with the settings in use: each of these has been warned of.
    pub warned: Vec<String>,
}

impl StreamState {
    pub fn new(stylizer: Stylizer) -> Self {
        Self {
            stylizer: Some(stylizer),
            first: true,
            ..Self::default()
        }
    }

    /// Drops all that lasts from frame to frame: the next frame is a first one, whatever its time.
    pub fn reset(&mut self) {
        self.timeline = Timeline::default();
        self.qos = None;
        self.reset_stylizer();
    }

    pub fn reset_stylizer(&mut self) {
        self.first = true;
        if let Some(stylizer) = &mut self.stylizer {
            stylizer.reset();
        }
    }

    pub fn set_qos(&mut self, report: Report) {
        if let Some(earliest) = report.earliest() {
            self.timeline.set_earliest(earliest);
        }
        self.qos = Some(report);
    }

    /// What the base class is told so that it drops the frames that would be late: the proportion of the
    /// last QoS event, and the running time of the first frame that can be in time.
    pub fn first_in_time(&self, now: ClockTime) -> Option<(f64, ClockTime)> {
        let report = self.qos.as_ref()?;
        let expected = self.pace.expected();
        let begin = self
            .begun
            .map_or(now, |begun| now.max(begun.saturating_add(expected)));
        let first = report.first_in_time(begin, expected, self.timeline.interval())?;
        Some((report.proportion(), first))
    }
}

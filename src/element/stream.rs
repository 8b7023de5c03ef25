// SPDX-License-Identifier: MPL-2.0

//! The state of the stream.

use super::load::Refusal;
use super::pace::Pace;
use super::qos::QosEvent;
use super::timeline::{FrameTime, Timeline};
use crate::stylizer::{Report, Stylizer};
use gst::ClockTime;
use gst::prelude::*;
use gst_video::VideoInfo;

/// A frame that is being painted.
pub struct Frame {
    pub info: VideoInfo,
    /// Counts frames since the start.
    pub number: u64,
    /// Whether none has been painted since the stylizer was reset.
    pub first: bool,
    /// Whether it is due to be painted, by `frame-interval`.
    due: bool,
}

/// What belongs to the stream, from start to stop.
#[derive(Default)]
pub struct StreamState {
    info: Option<VideoInfo>,
    /// Absent while the streaming thread has taken it.
    stylizer: Option<Stylizer>,
    /// Whether no frame has been painted since the stylizer was reset.
    first: bool,
    /// Frames that came out since the start, repeated ones included.
    frames: u64,
    timeline: Timeline,
    pub pace: Pace,
    /// The identifier of the stream.
    id: Option<String>,
    /// Whether the source is live: its frames come no sooner than at their times.
    pub live: bool,
    /// Downstream's last QoS event. It counts until the next frame has been painted, as a sink sends one
    /// for each.
    pub qos: Option<QosEvent>,
    /// The clock's running time when the frame that is being painted was begun. None if it stood still, or
    /// the frame is not due to be painted.
    begun: Option<ClockTime>,
    /// Whether the next frame is due to be painted, after the one that is being painted.
    next_is_due: bool,
    /// Whether the stylizer is to be reset when it is put back.
    reset_pending: bool,
    /// Whether the objective was made for the last painted frame.
    set_up: bool,
    /// What is wrong with the settings in use: each of these has been warned of.
    pub warned: Vec<Refusal>,
    /// The size of frames whose caps were refused since the last frame, as they do not fit into memory: an
    /// error has said so.
    pub too_large: Option<(usize, usize)>,
    /// Counts flushes and changes of the stream.
    pub resets: u64,
}

impl StreamState {
    pub fn new(stylizer: Stylizer) -> Self {
        Self {
            stylizer: Some(stylizer),
            first: true,
            ..Self::default()
        }
    }

    /// Takes the format of the frames that follow. Starts anew if they are laid out or read otherwise than
    /// those before, not just at another rate.
    pub fn set_info(&mut self, info: &VideoInfo) {
        self.too_large = None;
        let pixels = |info: &VideoInfo| {
            (
                info.width(),
                info.height(),
                info.format(),
                info.colorimetry(),
            )
        };
        let before = self.info.replace(info.clone());
        if before.is_none_or(|before| pixels(&before) != pixels(info)) {
            self.pace.forget();
            self.timeline.interrupt();
            self.reset_stylizer();
        }
    }

    /// How long a frame lasts whose buffer says `duration`: where that is nothing, as long as the caps
    /// say. None at a variable rate.
    pub fn frame_duration(&self, duration: Option<ClockTime>) -> Option<ClockTime> {
        duration.filter(|duration| !duration.is_zero()).or_else(|| {
            let fps = self.info.as_ref()?.fps();
            let [frames, seconds] = [fps.numer(), fps.denom()].map(|n| u64::try_from(n).ok());
            ClockTime::SECOND.mul_div_floor(seconds?, frames.filter(|&frames| frames > 0)?)
        })
    }

    /// Takes the times of a frame that arrives at the clock's running time `now`. Starts anew, and returns
    /// true, if it does not follow the last one.
    pub fn advance(&mut self, frame: FrameTime, now: Option<ClockTime>) -> bool {
        let jumps = self.timeline.advance(frame, now, self.live);
        if jumps {
            self.reset_stylizer();
        }
        jumps
    }

    /// Whether no frame has been painted since the stylizer was reset.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// Takes the stylizer out, which is to be put back.
    pub fn take_stylizer(&mut self) -> Option<Stylizer> {
        self.stylizer.take()
    }

    /// Puts the stylizer back, whether or not the frame that it was taken for has been painted.
    pub fn put_back(&mut self, stylizer: Stylizer) {
        self.next_is_due = stylizer.is_due(0);
        self.stylizer = Some(stylizer);
        self.begun = None;
        if self.reset_pending {
            self.reset_stylizer();
        }
    }

    /// The frame that `stylizer` begins at the clock's running time `now`. None if its format is unknown.
    pub fn begin_frame(&mut self, stylizer: &Stylizer, now: Option<ClockTime>) -> Option<Frame> {
        let info = self.info.clone()?;
        let due = stylizer.is_due(0);
        self.begun = now.filter(|_| due);
        self.next_is_due = stylizer.is_due(1);
        Some(Frame {
            info,
            number: self.frames,
            first: self.first,
            due,
        })
    }

    /// Counts a frame that has been painted in `time`. Returns the latency if the pipeline has to query it.
    pub fn finish_frame(
        &mut self,
        frame: &Frame,
        painted: &Report,
        time: ClockTime,
    ) -> Option<ClockTime> {
        self.first = false;
        self.too_large = None;
        self.frames += 1;
        if !frame.due {
            return None;
        }
        self.pace.rests = painted.reason.is_none();
        // The next one takes less, unless each sets up: a controller may drive the style's scale.
        let set_up = std::mem::replace(&mut self.set_up, painted.sets_up);
        if self.pace.rests || frame.first || painted.scene_cut || (painted.sets_up && !set_up) {
            return None;
        }
        (self.pace.add(time) && self.live).then(|| self.pace.latency())
    }

    /// Drops all that lasts from frame to frame: the next frame is a first one, whatever its time.
    pub fn reset(&mut self) {
        self.resets += 1;
        self.timeline = Timeline::default();
        self.qos = None;
        self.reset_stylizer();
    }

    fn reset_stylizer(&mut self) {
        self.first = true;
        self.next_is_due = true;
        if let Some(stylizer) = &mut self.stylizer {
            stylizer.reset();
        }
        // An application that seeks on a frame's message does so while that frame is being painted.
        self.reset_pending = self.stylizer.is_none();
    }

    pub fn set_qos(&mut self, event: QosEvent) {
        if let Some(earliest) = event.earliest() {
            self.timeline.set_earliest(earliest);
        }
        self.qos = Some(event);
    }

    /// Takes the identifier of the stream that begins. Another one starts anew.
    pub fn set_id(&mut self, id: &str) {
        let before = self.id.replace(id.to_owned());
        if before.is_some_and(|before| before != id) {
            self.reset();
        }
    }

    /// The running time of the first frame that can be in time, and the proportion of the last QoS event.
    /// None if the next frame may be painted whatever its time, or is not due and takes none.
    pub fn first_in_time(&self, now: ClockTime) -> Option<(ClockTime, f64)> {
        let event = self.qos.as_ref().filter(|_| self.next_is_due)?;
        let (expected, interval) = (self.pace.expected()?, self.timeline.interval()?);
        let begin = self
            .begun
            .map_or(now, |begun| now.max(begun.saturating_add(expected)));
        let latest = match self.live {
            true => self.timeline.latest_at(begin),
            false => ClockTime::MAX,
        };
        let first = event.first_in_time(begin, expected, interval, latest)?;
        Some((first, event.proportion()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stylizer::objective::Losses;
    use crate::stylizer::optimizer::Reason;
    use gst_video::VideoFormat;
    use std::time::Duration;

    fn ms(time: u64) -> ClockTime {
        ClockTime::from_mseconds(time)
    }

    #[test]
    fn the_latency_is_that_of_frames_that_go_on() {
        gst::init().unwrap();
        let frame = |first| Frame {
            info: VideoInfo::builder(VideoFormat::Rgb, 4, 4).build().unwrap(),
            number: 0,
            first,
            due: true,
        };
        let painted = |scene_cut, sets_up| Report {
            iterations: 3,
            reason: Some(Reason::Iterations),
            initial: Losses::default(),
            losses: Losses::default(),
            scene_cut,
            sets_up,
            motion_time: Duration::ZERO,
        };
        let mut stream = StreamState {
            live: true,
            ..StreamState::default()
        };
        for (first, scene_cut, sets_up) in [
            (true, false, false),
            (false, true, false),
            (false, false, true),
        ] {
            let painted = painted(scene_cut, sets_up);
            assert_eq!(stream.finish_frame(&frame(first), &painted, ms(900)), None);
        }
        let mut finish =
            |sets_up, time| stream.finish_frame(&frame(false), &painted(false, sets_up), ms(time));
        assert_eq!(finish(false, 100), Some(ms(125)));
        // Where each frame sets up, what that takes counts.
        assert_eq!(finish(true, 900), None);
        assert_eq!(finish(true, 400), Some(ms(500)));
    }

    #[test]
    fn the_next_frame_is_begun_after_the_one_that_is_being_painted() {
        gst::init().unwrap();
        let mut stream = StreamState {
            next_is_due: true,
            ..StreamState::default()
        };
        stream.pace.add(ms(60));
        let segment = gst::FormattedSegment::new();
        for (pts, now) in [(120, 160), (160, 205), (200, 250)] {
            let frame = FrameTime::new(ms(pts), None, Some(&segment));
            assert!(!stream.advance(frame, Some(ms(now))));
        }
        assert_eq!(stream.first_in_time(ms(300)), None);
        let event = gst::event::Qos::builder(gst::QOSType::Overflow, 0.5, -1);
        let event = event.timestamp(ms(200)).build();
        let gst::EventView::Qos(event) = event.view() else {
            unreachable!();
        };
        stream.set_qos(QosEvent::new(event, ms(250)).unwrap());
        assert_eq!(stream.first_in_time(ms(300)), Some((ms(270), 0.5)));
        stream.begun = Some(ms(280));
        assert_eq!(stream.first_in_time(ms(300)), Some((ms(310), 0.5)));
        // It takes longer than expected.
        assert_eq!(stream.first_in_time(ms(345)), Some((ms(315), 0.5)));
        stream.begun = None;
        // Frames come 40 ms after their times, but wait while others are painted.
        stream.live = true;
        assert_eq!(stream.first_in_time(ms(300)), Some((ms(260), 0.5)));
        stream.next_is_due = false;
        assert_eq!(stream.first_in_time(ms(300)), None);
    }
}

// SPDX-License-Identifier: MPL-2.0

//! A frame's way through the element, on the streaming thread.

use super::{CAT, Gatys};
use crate::element::dump::MotionDump;
use crate::element::frame::{to_image, write_image};
use crate::element::stream::Frame;
use crate::element::{load, report};
use crate::stylizer::{self, Stylizer};
use crate::threads::lock;
use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Gatys {
    /// Paints the frame in `input` into `output`, and makes known what was done for it.
    pub(super) fn paint_frame(
        &self,
        stylizer: &mut Stylizer,
        input: &gst::Buffer,
        output: &mut gst::BufferRef,
    ) -> Result<(), gst::FlowError> {
        self.apply_changes(stylizer);
        let frame = self.begin_frame(stylizer)?;
        let begun = Instant::now();
        let painted = self.paint(&frame.info, stylizer, input, output)?;
        let time = elapsed(begun);
        self.dump_motion(stylizer, &frame);
        let segment = self.time_segment();
        let stats = report::stats(
            &painted,
            input,
            segment.as_ref(),
            frame.number,
            time,
            stylizer,
        );
        self.publish(stats);
        let latency = lock(&self.stream).finish_frame(&frame, &painted, time);
        if let Some(latency) = latency {
            gst::debug!(CAT, imp = self, "latency is {latency}");
            self.post(gst::message::Latency::builder().src(&*self.obj()).build());
        }
        Ok(())
    }

    fn begin_frame(&self, stylizer: &Stylizer) -> Result<Frame, gst::FlowError> {
        let now = self.now();
        let frame = lock(&self.stream).begin_frame(stylizer, now);
        let frame = frame.ok_or(gst::FlowError::NotNegotiated)?;
        if frame.first {
            let live = is_live(self.obj().sink_pad());
            lock(&self.stream).live = live;
        }
        Ok(frame)
    }

    /// Gives the stylizer the settings and the style image that have changed since the last frame.
    fn apply_changes(&self, stylizer: &mut Stylizer) {
        // No other frame may follow for long, as after a seek while PAUSED.
        if lock(&self.stream).is_first() {
            self.controls.await_style(|| self.is_cancelled());
        }
        // The settings first: with them the style image may fit.
        self.apply_settings(stylizer);
        if let Some((path, style)) = self.controls.take_style()
            && let Err(error) = load::apply_style(&path, style, stylizer)
        {
            self.warn(&error);
        }
    }

    /// Gives the stylizer the settings, if they have changed; warns once of each that it cannot use.
    pub(super) fn apply_settings(&self, stylizer: &mut Stylizer) {
        let Some(settings) = self.controls.take_settings() else {
            return;
        };
        let before = stylizer.config().clone();
        let refused = load::apply(&settings, stylizer);
        let mut stream = lock(&self.stream);
        // A controller sets its properties before each frame, whether or not they change.
        if *stylizer.config() != before {
            stream.too_large = None;
            stream.pace.forget();
        }
        let warned = std::mem::replace(&mut stream.warned, refused.clone());
        drop(stream);
        for refusal in refused.iter().filter(|refusal| !warned.contains(refusal)) {
            self.warn(&refusal.cause);
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.flushing.load(Ordering::SeqCst)
    }

    fn paint(
        &self,
        info: &VideoInfo,
        stylizer: &mut Stylizer,
        input: &gst::Buffer,
        output: &mut gst::BufferRef,
    ) -> Result<stylizer::Report, gst::FlowError> {
        let unmapped = |error: glib::BoolError| {
            self.fail("a frame's memory cannot be mapped", &error.to_string())
        };
        let input = VideoFrameRef::from_buffer_ref_readable(input, info).map_err(unmapped)?;
        let mut output = VideoFrameRef::from_buffer_ref_writable(output, info).map_err(unmapped)?;
        let failed = |error: candle_core::Error| {
            self.fail("a frame cannot be converted", &error.to_string())
        };
        let image = to_image(info, &input, stylizer.thread_pool()).map_err(failed)?;
        let (image, painted) =
            stylizer
                .stylize(&image, &|| self.is_cancelled())
                .map_err(|error| match error {
                    stylizer::Error::Cancelled => gst::FlowError::Flushing,
                    error @ stylizer::Error::Memory(_) => {
                        self.out_of_memory(&error);
                        gst::FlowError::Error
                    }
                    error => self.fail("a frame cannot be stylised", &error.to_string()),
                })?;
        let pool = stylizer.thread_pool();
        write_image(&image, info, &input, &mut output, pool).map_err(failed)?;
        Ok(painted)
    }

    /// Writes the pictures of the frame's motion if `motion-dump` is set.
    fn dump_motion(&self, stylizer: &Stylizer, frame: &Frame) {
        let mut dump = lock(&self.dump);
        let Some(folder) = self.controls.dump_folder() else {
            *dump = MotionDump::default();
            return;
        };
        let size = (frame.info.height() as usize, frame.info.width() as usize);
        let written = dump.write(&folder, stylizer, frame.number, size);
        drop(dump);
        if let Err(error) = written {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::Write,
                ("{error}; no more pictures are written there")
            );
        }
    }

    /// Makes a frame's statistics known: in the log, in `stats`, and on the bus.
    fn publish(&self, stats: gst::Structure) {
        gst::debug!(CAT, imp = self, "{stats}");
        if self.controls.set_stats(stats.clone()) {
            self.post(
                gst::message::Element::builder(stats)
                    .src(&*self.obj())
                    .build(),
            );
        }
    }
}

/// Whether `sink` is fed by a live source, which loses frames while one is painted: that is no jump.
fn is_live(sink: &gst::Pad) -> bool {
    let mut query = gst::query::Latency::new();
    sink.peer_query(&mut query) && query.result().0
}

fn elapsed(since: Instant) -> gst::ClockTime {
    gst::ClockTime::try_from(since.elapsed()).unwrap_or(gst::ClockTime::MAX)
}

// SPDX-License-Identifier: MPL-2.0
//! Shows frames beside their paintings.
//!
//! No tee and compositor are needed: `gatys` pushes a painting in the call that brings the frame, so that a painting always
//! belongs to the last frame that entered, whatever is dropped or late, and at any frame rate.

use std::sync::{Arc, Mutex, PoisonError};

use gst::glib;
use gst::prelude::*;
use gst_video::VideoFrameRef;
use gst_video::prelude::*;

use crate::pipeline::pad;

/// Makes `videobox` double the width of the paintings of `gatys`, and puts their frames into the left half.
pub fn show(gatys: &gst::Element, videobox: &gst::Element) {
    let frame = Arc::new(Mutex::new(None));
    let last_frame = frame.clone();
    let weak = videobox.downgrade();
    let kind = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad(gatys, "sink").add_probe(kind, move |_, info| {
        match &info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                *last_frame.lock().unwrap_or_else(PoisonError::into_inner) = Some(buffer.clone());
            }
            Some(gst::PadProbeData::Event(event)) => {
                if let (gst::EventView::Caps(event), Some(videobox)) =
                    (event.view(), weak.upgrade())
                    && let Ok(video) = gst_video::VideoInfo::from_caps(event.caps())
                {
                    videobox.set_property("left", -(video.width() as i32));
                }
            }
            _ => (),
        }
        gst::PadProbeReturn::Ok
    });
    let weak = videobox.downgrade();
    pad(videobox, "src").add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let frame = frame.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(wide) = info.buffer_mut()
            && let Err(err) = copy(frame, wide.make_mut(), pad)
            && let Some(videobox) = weak.upgrade()
        {
            let what = "A frame cannot be put beside its painting";
            gst::element_error!(videobox, gst::StreamError::Failed, ("{what}"), ["{err}"]);
            return gst::PadProbeReturn::Drop;
        }
        gst::PadProbeReturn::Ok
    });
}

/// Copies a frame into the left half of a picture with the caps of `pad`.
fn copy(
    frame: Option<gst::Buffer>,
    wide: &mut gst::BufferRef,
    pad: &gst::Pad,
) -> Result<(), glib::BoolError> {
    let frame = frame.filter(|frame| frame.pts() == wide.pts());
    let frame = frame.ok_or_else(|| glib::bool_error!("The frame is not known"))?;
    let caps = pad.current_caps();
    let caps = caps.ok_or_else(|| glib::bool_error!("The format is not known"))?;
    let info = gst_video::VideoInfo::from_caps(&caps)?;
    let half = gst_video::VideoInfo::builder(info.format(), info.width() / 2, info.height());
    let half = half.build()?;
    let from = VideoFrameRef::from_buffer_ref_readable(&frame, &half)?;
    let mut to = VideoFrameRef::from_buffer_ref_writable(wide, &info)?;
    let (from_stride, to_stride) = (
        from.plane_stride()[0] as usize,
        to.plane_stride()[0] as usize,
    );
    let length = half.width() as usize * half.comp_pstride(0) as usize;
    let rows = from.plane_data(0)?.chunks(from_stride);
    let wide_rows = to.plane_data_mut(0)?.chunks_mut(to_stride);
    for (row, wide_row) in rows.zip(wide_rows) {
        wide_row[..length].copy_from_slice(&row[..length]);
    }
    Ok(())
}

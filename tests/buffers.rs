// SPDX-License-Identifier: MPL-2.0

//! Frames are painted however they lie in their buffers, as long as they are there.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{Painter, element, only_error, paint};
use common::video::{DURATION, Pixels, grey, info, picture, pixels, write};
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoAlignment, VideoFormat, VideoFrameRef, VideoInfo};

/// A frame whose rows lie `stride` bytes apart, from byte `offset` of the buffer.
fn frame_with_meta(
    info: &VideoInfo,
    picture: &Pixels,
    offset: usize,
    stride: usize,
) -> gst::Buffer {
    let size = offset + stride * info.height() as usize;
    let mut buffer = gst::Buffer::from_mut_slice(vec![0xA5; size]);
    let writable = buffer.get_mut().unwrap();
    writable.set_pts(gst::ClockTime::ZERO);
    add_meta(writable, info, offset, stride);
    let mut frame = VideoFrameRef::from_buffer_ref_writable(writable, info).unwrap();
    write(&mut frame, picture, |_| 0);
    drop(frame);
    buffer
}

fn add_meta(buffer: &mut gst::BufferRef, info: &VideoInfo, offset: usize, stride: usize) {
    gst_video::VideoMeta::add_full(
        buffer,
        gst_video::VideoFrameFlags::empty(),
        info.format(),
        info.width(),
        info.height(),
        &[offset],
        &[stride as i32],
    )
    .unwrap();
}

#[test]
fn rows_may_lie_anywhere() {
    let files = Files::new();
    for format in [VideoFormat::Rgb, VideoFormat::Argb, VideoFormat::Gray8] {
        let info = info(format, 33, 24);
        let content = grey(&picture(33, 24, 0));
        let expected = paint(&files, &info, &content);
        let row = 33 * info.comp_pstride(0) as usize;
        for (offset, stride) in [(0, row), (0, row + 13), (64, 256), (7, 200)] {
            let mut painter = Painter::with_info(&element(&files), info.clone());
            let frame = frame_with_meta(&info, &content, offset, stride);
            let painted = painter.paint(frame);
            assert_eq!(painted, expected, "{format}, {offset}, {stride}");
        }
    }
}

/// As a decoder's may be, whose size is a multiple of its blocks'.
#[test]
fn buffers_may_be_larger_than_the_picture() {
    let files = Files::new();
    for format in [VideoFormat::Rgb, VideoFormat::Argb, VideoFormat::Gray8] {
        let (small, large) = (info(format, 33, 24), info(format, 40, 32));
        let content = grey(&picture(33, 24, 0));
        let pixel = |y: usize, x: usize| match y < 24 && x < 33 {
            true => content[33 * y + x],
            false => [7; 3],
        };
        let padded = (0..40 * 32).map(|i| pixel(i / 40, i % 40)).collect();
        let row = 40 * large.comp_pstride(0) as usize;
        let mut painter = Painter::with_info(&element(&files), small.clone());
        let painted = painter.paint(frame_with_meta(&large, &padded, 0, row));
        assert_eq!(painted, paint(&files, &small, &content), "{format}");
    }
}

/// Downstream may supply buffers with another stride and offset.
#[test]
fn rows_may_go_anywhere() {
    let files = Files::new();
    for format in [VideoFormat::Rgb, VideoFormat::Argb, VideoFormat::Gray8] {
        let info = info(format, 33, 24);
        let content = grey(&picture(33, 24, 0));
        let expected = paint(&files, &info, &content);
        for [top, bottom, left, right] in [[0, 0, 0, 7], [2, 3, 16, 32]] {
            let mut painter = Painter::with_info(&element(&files), info.clone());
            let padding = VideoAlignment::new(top, bottom, left, right, &[0; 4]);
            let answered = info.clone();
            let sink = painter.harness.sinkpad().unwrap();
            sink.add_probe(
                gst::PadProbeType::QUERY_DOWNSTREAM,
                move |_, info| match info.query_mut().map(gst::QueryRef::view_mut) {
                    Some(gst::QueryViewMut::Allocation(query)) => {
                        let pool = padded_pool(&answered, &padding);
                        query.add_allocation_pool(Some(&pool), answered.size() as u32, 0, 0);
                        query.add_allocation_meta::<gst_video::VideoMeta>(None);
                        gst::PadProbeReturn::Handled
                    }
                    _ => gst::PadProbeReturn::Ok,
                },
            );
            painter
                .harness
                .push_upstream_event(gst::event::Reconfigure::new());
            let frame = painter.frame(&content);
            let painted = painter.harness.push_and_pull(frame).unwrap();
            let meta = painted.meta::<gst_video::VideoMeta>().unwrap();
            assert!(
                meta.stride()[0] > info.stride()[0],
                "{format}, {left}, {right}"
            );
            assert_eq!(
                pixels(&info, &painted),
                expected,
                "{format}, {left}, {right}"
            );
        }
    }
}

/// A pool whose buffers have padding around the frame.
fn padded_pool(info: &VideoInfo, padding: &VideoAlignment) -> gst::BufferPool {
    let pool = gst_video::VideoBufferPool::new();
    let mut config = pool.config();
    let caps = info.to_caps().unwrap();
    config.set_params(Some(&caps), info.size() as u32, 0, 0);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    config.set_video_alignment(padding);
    pool.set_config(config).unwrap();
    pool.upcast()
}

#[test]
fn a_buffer_that_is_too_small_is_an_error() {
    let files = Files::new();
    for missing in [1, 32 * 24 * 3 - 1] {
        let mut painter = Painter::new(&element(&files));
        painter.report();
        let mut frame = painter.next_frame();
        let size = frame.size() - missing;
        frame.get_mut().unwrap().set_size(size);
        assert_eq!(painter.harness.push(frame), Err(gst::FlowError::Error));
        let error = only_error(&painter.bus);
        assert!(
            error.message().contains("memory cannot be mapped"),
            "{error}"
        );
        // The next one is painted.
        painter.report();
    }
}

/// As a source sends where it has no picture.
#[test]
fn an_empty_gap_buffer_goes_on_as_an_event() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    painter.report();
    let mut gap = gst::Buffer::new();
    let fields = gap.get_mut().unwrap();
    fields.set_flags(gst::BufferFlags::GAP);
    fields.set_pts(DURATION);
    fields.set_duration(DURATION);
    painter.harness.push(gap).unwrap();
    assert_eq!(painter.harness.buffers_in_queue(), 0);
    let harness = &mut painter.harness;
    let mut events = std::iter::from_fn(|| harness.try_pull_event());
    let event = events.find(|event| event.type_() == gst::EventType::Gap);
    let event = event.expect("there is no gap event");
    let gst::EventView::Gap(gap) = event.view() else {
        unreachable!();
    };
    assert_eq!(gap.get(), (DURATION, Some(DURATION)));
    painter.report();
}

#[test]
fn rows_that_are_said_to_lie_beyond_the_memory_are_an_error() {
    let files = Files::new();
    let info = info(VideoFormat::Rgb, 33, 24);
    let row = 33 * 3;
    for (offset, stride) in [(0, row), (7, 200)] {
        let mut painter = Painter::with_info(&element(&files), info.clone());
        for (missing, fits) in [(stride - row, true), (stride - row + 1, false)] {
            let mut frame = frame_with_meta(&info, &picture(33, 24, 0), offset, stride);
            let size = frame.size() - missing;
            frame.get_mut().unwrap().set_size(size);
            let pushed = painter.harness.push(frame);
            assert_eq!(pushed.is_ok(), fits, "{offset}, {stride}");
        }
        let error = only_error(&painter.bus);
        assert!(error.message().contains("its memory has"), "{error}");
    }
}

/// Of several, GStreamer maps the one with the number 0, not the first.
#[test]
fn rows_are_where_the_meta_that_is_mapped_says() {
    let files = Files::new();
    let info = info(VideoFormat::Rgb, 33, 24);
    let row = 33 * 3;
    let mut painter = Painter::with_info(&element(&files), info.clone());
    let mut frame = frame_with_meta(&info, &picture(33, 24, 0), 0, row);
    let writable = frame.get_mut().unwrap();
    let mut first = writable.meta_mut::<gst_video::VideoMeta>().unwrap();
    // SAFETY: it is the meta of a buffer that nobody else has.
    unsafe { (*first.as_mut_ptr()).id = 1 };
    let last_row = writable.size() - row;
    add_meta(writable, &info, last_row, row);
    assert_eq!(painter.harness.push(frame), Err(gst::FlowError::Error));
    let error = only_error(&painter.bus);
    assert!(error.message().contains("its memory has"), "{error}");
}

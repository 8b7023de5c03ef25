// SPDX-License-Identifier: MPL-2.0

//! Frames of every format and size are painted, and otherwise unchanged.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::painter::{Painter, element, init, paint};
use common::video::{Pixels, bytes, frame, grey, info, picture, pixels};
use gst::prelude::*;
use gst_video::{
    VideoColorMatrix, VideoColorPrimaries, VideoColorRange, VideoColorimetry, VideoFormat,
    VideoInfo, VideoTransferFunction,
};

const COLOURED: [VideoFormat; 10] = [
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Xrgb,
    VideoFormat::Bgrx,
    VideoFormat::Xbgr,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Argb,
    VideoFormat::Abgr,
];

fn colorimetry(range: VideoColorRange, matrix: VideoColorMatrix) -> VideoColorimetry {
    VideoColorimetry::new(
        range,
        matrix,
        VideoTransferFunction::Bt709,
        VideoColorPrimaries::Bt709,
    )
}

fn with_colorimetry(format: VideoFormat, colorimetry: VideoColorimetry) -> VideoInfo {
    VideoInfo::builder(format, 32, 24)
        .fps(gst::Fraction::new(10, 1))
        .colorimetry(&colorimetry)
        .build()
        .unwrap()
}

fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn every_format_gives_the_same_picture() {
    let files = Files::new();
    let content = picture(32, 24, 0);
    let expected = paint(&files, &info(VideoFormat::Rgb, 32, 24), &content);
    assert_ne!(expected, content);
    for format in COLOURED {
        let painted = paint(&files, &info(format, 32, 24), &content);
        assert_eq!(painted, expected, "{format}");
    }
}

#[test]
fn grey_is_the_luma_of_the_caps_own_matrix() {
    let files = Files::new();
    let content = grey(&picture(32, 24, 0));
    let rgb = paint(&files, &info(VideoFormat::Rgb, 32, 24), &content);
    let mut results = Vec::new();
    for (matrix, [kr, kb]) in [
        (VideoColorMatrix::Bt601, [0.299, 0.114]),
        (VideoColorMatrix::Bt709, [0.2126, 0.0722]),
    ] {
        let colorimetry = colorimetry(VideoColorRange::Range0_255, matrix);
        let info = with_colorimetry(VideoFormat::Gray8, colorimetry);
        let painted: Vec<u8> = paint(&files, &info, &content)
            .iter()
            .map(|p| p[0])
            .collect();
        let luma: Vec<u8> = rgb
            .iter()
            .map(|&[r, g, b]| {
                let [r, g, b] = [r, g, b].map(f64::from);
                (kr * r + (1.0 - kr - kb) * g + kb * b).round() as u8
            })
            .collect();
        // Rounding r, g and b may move their luma by one.
        assert!(largest_difference(&painted, &luma) <= 1, "{matrix:?}");
        results.push(painted);
    }
    assert!(largest_difference(&results[0], &results[1]) > 2);
}

/// The bytes 0, 85, 170 and 255 are thirds of the range, which are whole numbers in 16..235 as well.
fn thirds(picture: &Pixels) -> Pixels {
    picture
        .iter()
        .map(|rgb| rgb.map(|value| value / 56 * 85))
        .collect()
}

fn limited(picture: &Pixels) -> Pixels {
    let limit = |value: u8| (16.0 + f64::from(value) * 219.0 / 255.0).round() as u8;
    picture.iter().map(|rgb| rgb.map(limit)).collect()
}

#[test]
fn limited_range_is_expanded_and_put_back() {
    let files = Files::new();
    for (format, matrix) in [
        (VideoFormat::Rgb, VideoColorMatrix::Rgb),
        (VideoFormat::Bgra, VideoColorMatrix::Rgb),
        (VideoFormat::Gray8, VideoColorMatrix::Bt601),
        (VideoFormat::Gray8, VideoColorMatrix::Bt709),
    ] {
        let content = match format {
            VideoFormat::Gray8 => grey(&thirds(&picture(32, 24, 0))),
            _ => thirds(&picture(32, 24, 0)),
        };
        let with_range = |range| with_colorimetry(format, colorimetry(range, matrix));
        let full = paint(&files, &with_range(VideoColorRange::Range0_255), &content);
        let limited_info = with_range(VideoColorRange::Range16_235);
        assert_eq!(
            limited_info.colorimetry().range(),
            VideoColorRange::Range16_235
        );
        let painted = paint(&files, &limited_info, &limited(&content));
        let (painted, expected) = (painted.concat(), limited(&full).concat());
        assert!(
            largest_difference(&painted, &expected) <= 1,
            "{format} {matrix:?}"
        );
    }
}

#[test]
fn alpha_comes_through_as_it_was() {
    init();
    let files = Files::new();
    let content = picture(32, 24, 0);
    let alpha = |index: usize| (index * 37 % 256) as u8;
    for format in COLOURED
        .into_iter()
        .filter(|&format| gst_video::VideoFormatInfo::from_format(format).has_alpha())
    {
        let info = info(format, 32, 24);
        let mut painter = Painter::with_info(&element(&files), info.clone());
        for number in 0..2 {
            let frame = frame(&info, &content, number, alpha);
            let painted = painter.harness.push_and_pull(frame).unwrap();
            let offset = info.comp_poffset(3) as usize;
            for (index, pixel) in bytes(&info, &painted).iter().enumerate() {
                assert_eq!(pixel[offset], alpha(index), "{format} at {index}");
            }
        }
    }
}

#[test]
fn every_size_is_painted() {
    let files = Files::new();
    for (width, height) in [
        (1, 1),
        (1, 17),
        (17, 1),
        (3, 5),
        (16, 16),
        (33, 47),
        (640, 2),
    ] {
        for format in [VideoFormat::Rgb, VideoFormat::Bgra, VideoFormat::Gray8] {
            let mut painter = Painter::with_info(&element(&files), info(format, width, height));
            for number in 0..2 {
                let frame = painter.next_frame();
                let content = pixels(&painter.info, &frame);
                let painted = painter.paint(frame);
                let case = format!("{width}x{height} {format} {number}");
                assert!(painted != content, "{case}: not painted");
                // Only a picture of one pixel has a single colour.
                let even = painted.iter().all(|pixel| *pixel == painted[0]);
                assert_eq!(even, painted.len() == 1, "{case}: one colour");
                let stats = painter.stats();
                assert!(stats.get::<f64>("total-loss").unwrap().is_finite());
                assert_eq!(stats.get::<u64>("frame").unwrap(), number);
            }
        }
    }
}

#[test]
fn what_is_optimised_may_be_smaller_than_the_frame() {
    let files = Files::new();
    let content = picture(80, 50, 0);
    let info = info(VideoFormat::Rgb, 80, 50);
    let element = element(&files);
    element.set_property("max-size", 32u32);
    let mut painter = Painter::with_info(&element, info.clone());
    let painted = painter.paint_picture(&content);
    assert_eq!(painted.len(), 80 * 50);
    // It shows all of the picture: the means of the quarters are close.
    for (x, y) in [(0, 0), (40, 0), (0, 25), (40, 25)] {
        let mean = |pixels: &Pixels| {
            let rows = pixels.chunks(80).skip(y).take(25);
            let values: Vec<u32> = rows
                .flat_map(|row| &row[x..x + 40])
                .map(|p| p[1].into())
                .collect();
            values.iter().sum::<u32>() / values.len() as u32
        };
        assert!(mean(&painted).abs_diff(mean(&content)) < 50, "{x}, {y}");
    }
    let caps = painter.harness.sinkpad().unwrap().current_caps().unwrap();
    assert_eq!(caps, info.to_caps().unwrap());
}

#[test]
fn times_flags_and_metas_pass_through() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    let flags = [
        gst::BufferFlags::empty(),
        gst::BufferFlags::MARKER,
        gst::BufferFlags::GAP,
        gst::BufferFlags::DISCONT,
        gst::BufferFlags::DROPPABLE | gst::BufferFlags::DELTA_UNIT,
        gst::BufferFlags::CORRUPTED | gst::BufferFlags::MARKER,
    ];
    for (number, flags) in flags.into_iter().enumerate() {
        let mut frame = painter.next_frame();
        {
            let frame = frame.get_mut().unwrap();
            frame.set_dts(gst::ClockTime::from_mseconds(90 * number as u64));
            frame.set_duration(gst::ClockTime::from_nseconds(99_999_999));
            frame.set_offset(100 + number as u64);
            frame.set_offset_end(101 + number as u64);
            frame.set_flags(flags);
            gst_video::VideoCropMeta::add(frame, (3, 4, 20, 16));
            gst_video::VideoRegionOfInterestMeta::add(frame, "face", (1, 2, 3, 4));
            let reference = gst::Caps::new_empty_simple("timestamp/x-test");
            gst::ReferenceTimestampMeta::add(frame, &reference, 7 * gst::ClockTime::SECOND, None);
        }
        let painted = painter.harness.push_and_pull(frame.clone()).unwrap();
        assert_eq!(painted.pts(), frame.pts());
        assert_eq!(painted.dts(), frame.dts());
        assert_eq!(painted.duration(), frame.duration());
        assert_eq!(painted.offset(), frame.offset());
        assert_eq!(painted.offset_end(), frame.offset_end());
        // TAG_MEMORY concerns the pool, not the stream.
        let memory = gst::BufferFlags::TAG_MEMORY;
        let first = match number {
            0 => gst::BufferFlags::DISCONT,
            _ => gst::BufferFlags::empty(),
        };
        assert_eq!(painted.flags() - memory - first, flags, "{number}");

        let crop = painted.meta::<gst_video::VideoCropMeta>().unwrap();
        assert_eq!(crop.rect(), (3, 4, 20, 16));
        let region = painted
            .meta::<gst_video::VideoRegionOfInterestMeta>()
            .unwrap();
        assert_eq!(region.rect(), (1, 2, 3, 4));
        let time = painted.meta::<gst::ReferenceTimestampMeta>().unwrap();
        assert_eq!(time.timestamp(), 7 * gst::ClockTime::SECOND);
    }
}

#[test]
fn frames_without_time_stamps_are_painted() {
    let files = Files::new();
    let mut painter = Painter::new(&element(&files));
    for _ in 0..3 {
        let mut frame = painter.next_frame();
        frame.get_mut().unwrap().set_pts(None);
        frame.get_mut().unwrap().set_duration(None);
        let painted = painter.harness.push_and_pull(frame).unwrap();
        assert_eq!((painted.pts(), painted.duration()), (None, None));
        assert_eq!(painter.stats().get::<u64>("pts").unwrap(), u64::MAX);
    }
}

#[test]
fn caps_pass_through() {
    init();
    let files = Files::new();
    let info = VideoInfo::builder(VideoFormat::Rgbx, 32, 24)
        .fps(gst::Fraction::new(30_000, 1001))
        .par(gst::Fraction::new(16, 11))
        .build()
        .unwrap();
    let mut painter = Painter::with_info(&element(&files), info.clone());
    painter.report();
    let caps = painter.harness.sinkpad().unwrap().current_caps().unwrap();
    assert_eq!(caps, info.to_caps().unwrap());
}

#[test]
fn caps_without_an_interlace_mode_are_progressive() {
    init();
    let files = Files::new();
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", 32)
        .field("height", 24)
        .field("framerate", gst::Fraction::new(10, 1))
        .build();
    let info = VideoInfo::from_caps(&caps).unwrap();
    let mut painter = Painter::with_caps(&element(&files), caps, info);
    painter.report();
}

#[test]
fn interlaced_video_is_refused() {
    init();
    let element = gst::ElementFactory::make("gatys").build().unwrap();
    for mode in ["interleaved", "mixed", "fields", "alternate"] {
        let mut caps = info(VideoFormat::Rgb, 32, 24).to_caps().unwrap();
        caps.make_mut().set("interlace-mode", mode);
        let sink = element.static_pad("sink").unwrap();
        assert!(!sink.query_accept_caps(&caps), "{mode}");
        assert!(sink.query_caps(Some(&caps)).is_empty(), "{mode}");
    }
}

/// BT.601's Cb and Cr of a pixel, in units of bytes.
fn chrominance([r, g, b]: [u8; 3]) -> [f64; 2] {
    let [r, g, b] = [r, g, b].map(f64::from);
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    [(b - y) / 1.772, (r - y) / 1.402]
}

/// The largest difference in chrominance to the frame, over the pixels that are not clipped.
fn chrominance_error(files: &Files, color: &str) -> f64 {
    let element = element(files);
    element.set_property_from_str("color", color);
    element.set_property("initial-iterations", 20u32);
    let mut painter = Painter::new(&element);
    let content = picture(32, 24, 0);
    let painted = painter.paint_picture(&content);
    assert_ne!(painted, content);
    let unclipped = |pixel: &[u8; 3]| pixel.iter().all(|value| (1..255).contains(value));
    let pairs = painted
        .iter()
        .zip(&content)
        .filter(|(painted, _)| unclipped(painted));
    let errors = pairs.map(|(&painted, &content)| {
        let [cb, cr] = chrominance(painted);
        let [cb_0, cr_0] = chrominance(content);
        (cb - cb_0).abs().max((cr - cr_0).abs())
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn colours_are_the_frames_or_the_styles() {
    let files = Files::new();
    // Rounding moves r, g and b by half a step, and b − y and r − y by one at most.
    let content = chrominance_error(&files, "content");
    assert!(content <= 1.0 / 1.402, "{content}");
    let style = chrominance_error(&files, "style");
    assert!(style > 8.0, "{style}");
}

// SPDX-License-Identifier: MPL-2.0

//! Pictures, and the video frames that hold them.

use gst_video::prelude::*;
use gst_video::{VideoFormat, VideoFrameRef, VideoInfo};

/// The duration of a frame.
pub const DURATION: gst::ClockTime = gst::ClockTime::from_mseconds(100);

/// A picture's pixels, row by row.
pub type Pixels = Vec<[u8; 3]>;

pub fn info(format: VideoFormat, width: u32, height: u32) -> VideoInfo {
    super::painter::init();
    VideoInfo::builder(format, width, height)
        .fps(gst::Fraction::new(10, 1))
        .build()
        .unwrap()
}

/// A picture of soft colours and edges, moved by `shift` pixels.
pub fn picture(width: u32, height: u32, shift: u32) -> Pixels {
    let pixel = |x: u32, y: u32| {
        let x = x + shift;
        let edge = 40 * ((x / 9 + y / 7) % 2) as u8;
        let wave = |period: f64| 100.0 + 50.0 * (f64::from(x) / period + f64::from(y) / 11.0).sin();
        [
            wave(5.0) as u8 + edge,
            wave(8.0) as u8,
            wave(13.0) as u8 + edge / 2,
        ]
    };
    (0..height)
        .flat_map(|y| (0..width).map(move |x| pixel(x, y)))
        .collect()
}

/// A picture in grey.
pub fn grey(pixels: &Pixels) -> Pixels {
    pixels.iter().map(|&[_, g, _]| [g; 3]).collect()
}

/// The offsets of the red, green and blue bytes in a pixel.
fn offsets(info: &VideoInfo) -> [usize; 3] {
    [0, 1, 2].map(|component| match info.format() {
        VideoFormat::Gray8 => 0,
        _ => info.comp_poffset(component) as usize,
    })
}

/// Frame number `index` of a video. `rest` gives the alpha or padding byte of each pixel.
pub fn frame(
    info: &VideoInfo,
    pixels: &Pixels,
    index: u64,
    rest: impl Fn(usize) -> u8,
) -> gst::Buffer {
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    {
        let buffer = buffer.get_mut().unwrap();
        buffer.set_pts(index * DURATION);
        buffer.set_duration(DURATION);
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info).unwrap();
        write(&mut frame, pixels, rest);
    }
    buffer
}

/// Writes a picture into a frame.
pub fn write(
    frame: &mut VideoFrameRef<&mut gst::BufferRef>,
    pixels: &Pixels,
    rest: impl Fn(usize) -> u8,
) {
    let (offsets, size) = (offsets(frame.info()), frame.info().comp_pstride(0) as usize);
    let (width, stride) = (frame.width() as usize, frame.plane_stride()[0] as usize);
    let data = frame.plane_data_mut(0).unwrap();
    for (index, rgb) in pixels.iter().enumerate() {
        let start = index / width * stride + index % width * size;
        let pixel = &mut data[start..start + size];
        pixel.fill(rest(index));
        for (&offset, &value) in offsets.iter().zip(rgb) {
            pixel[offset] = value;
        }
    }
}

/// The picture in a frame; grey becomes three equal values.
pub fn pixels(info: &VideoInfo, buffer: &gst::Buffer) -> Pixels {
    let offsets = offsets(info);
    let pixels = bytes(info, buffer);
    pixels
        .iter()
        .map(|pixel| offsets.map(|offset| pixel[offset]))
        .collect()
}

/// The bytes of each pixel of a frame.
pub fn bytes(info: &VideoInfo, buffer: &gst::Buffer) -> Vec<Vec<u8>> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).unwrap();
    let (size, stride) = (
        info.comp_pstride(0) as usize,
        frame.plane_stride()[0] as usize,
    );
    let data = frame.plane_data(0).unwrap();
    let width = frame.width() as usize;
    let row = |y: usize| {
        data[y * stride..][..width * size]
            .chunks(size)
            .map(<[u8]>::to_vec)
    };
    (0..frame.height() as usize).flat_map(row).collect()
}

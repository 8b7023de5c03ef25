// SPDX-License-Identifier: MPL-2.0

//! Video frames to image tensors and back.

use candle_core::{Device, Tensor};
use gst_video::prelude::*;
use gst_video::{VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo};

/// What the element takes: eight bits a component, in one plane.
const FORMATS: [VideoFormat; 11] = [
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
    VideoFormat::Gray8,
];

/// The caps of both sides. The fields of an interlaced frame are of two moments: it would be painted
/// as a comb.
pub fn caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new()
        .format_list(FORMATS)
        .field("interlace-mode", "progressive")
        .build()
}

/// Rec. 601's Kr and Kb, for grey video that does not say which luma it is.
const REC_601: (f64, f64) = (0.299, 0.114);

/// The values of a frame's bytes.
struct Range {
    black: f32,
    white: f32,
}

impl Range {
    fn new(info: &VideoInfo) -> Self {
        match info.colorimetry().range() {
            VideoColorRange::Range16_235 => Self {
                black: 16.0,
                white: 235.0,
            },
            _ => Self {
                black: 0.0,
                white: 255.0,
            },
        }
    }

    fn value(&self, byte: u8) -> f32 {
        ((f32::from(byte) - self.black) / (self.white - self.black)).clamp(0.0, 1.0)
    }

    fn byte(&self, value: f32) -> u8 {
        (self.black + value * (self.white - self.black)).round() as u8
    }
}

/// Where the first three components of a pixel lie: all on one byte for grey.
fn components(info: &VideoInfo) -> [usize; 3] {
    match info.format() {
        VideoFormat::Gray8 => [0; 3],
        _ => [0, 1, 2].map(|component| info.comp_poffset(component) as usize),
    }
}

/// The image in a frame, `[height, width, 3]`, RGB 0..1.
pub fn to_image(frame: &VideoFrameRef<&gst::BufferRef>) -> candle_core::Result<Tensor> {
    let info = frame.info();
    let (height, width) = (frame.height() as usize, frame.width() as usize);
    let pixel_stride = info.comp_pstride(0) as usize;
    let components = components(info);
    let range = Range::new(info);
    let values: [f32; 256] = std::array::from_fn(|byte| range.value(byte as u8));

    let data = frame.plane_data(0).map_err(candle_core::Error::wrap)?;
    let mut image = Vec::with_capacity(height * width * 3);
    for row in data.chunks(frame.plane_stride()[0] as usize).take(height) {
        for pixel in row.chunks_exact(pixel_stride).take(width) {
            image.extend(components.map(|component| values[usize::from(pixel[component])]));
        }
    }
    Tensor::from_vec(image, (height, width, 3), &Device::Cpu)
}

/// Writes `image` `[height, width, 3]` into a frame; alpha and padding bytes are those of
/// `source`, a frame of the same format and size.
pub fn write_image(
    image: &Tensor,
    source: &VideoFrameRef<&gst::BufferRef>,
    frame: &mut VideoFrameRef<&mut gst::BufferRef>,
) -> candle_core::Result<()> {
    let info = frame.info().clone();
    let (height, width) = (frame.height() as usize, frame.width() as usize);
    let pixel_stride = info.comp_pstride(0) as usize;
    let components = components(&info);
    let range = Range::new(&info);
    let (kr, kb) = info.colorimetry().matrix().kr_kb().unwrap_or(REC_601);
    let luma = [kr, 1.0 - kr - kb, kb].map(|weight| weight as f32);

    let image = image.flatten_all()?.to_vec1::<f32>()?;
    let source_stride = source.plane_stride()[0] as usize;
    let source = source.plane_data(0).map_err(candle_core::Error::wrap)?;
    let stride = frame.plane_stride()[0] as usize;
    let data = frame.plane_data_mut(0).map_err(candle_core::Error::wrap)?;
    let rows = data.chunks_mut(stride).zip(source.chunks(source_stride));
    for ((row, source), image) in rows.take(height).zip(image.chunks_exact(3 * width)) {
        row[..width * pixel_stride].copy_from_slice(&source[..width * pixel_stride]);
        for (pixel, rgb) in row
            .chunks_exact_mut(pixel_stride)
            .zip(image.chunks_exact(3))
        {
            if info.format() == VideoFormat::Gray8 {
                pixel[0] = range.byte(
                    rgb.iter()
                        .zip(luma)
                        .map(|(value, weight)| value * weight)
                        .sum(),
                );
            } else {
                for (component, &value) in components.iter().zip(rgb) {
                    pixel[*component] = range.byte(value);
                }
            }
        }
    }
    Ok(())
}

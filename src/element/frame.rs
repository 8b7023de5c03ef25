// SPDX-License-Identifier: MPL-2.0

//! Conversion between video frames and image tensors.

use candle_core::{Device, Tensor};
use gst_video::prelude::*;
use gst_video::{VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo, VideoMeta};

/// The formats that the element supports: eight bits a component, in one plane.
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

/// The caps of both pads. Interlaced video is refused: the combing between its two fields would be
/// painted.
fn caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new()
        .format_list(FORMATS)
        .field("interlace-mode", "progressive")
        .build()
}

/// The templates of both pads.
pub fn pad_templates() -> Vec<gst::PadTemplate> {
    let always = gst::PadPresence::Always;
    [
        ("sink", gst::PadDirection::Sink),
        ("src", gst::PadDirection::Src),
    ]
    .into_iter()
    .filter_map(|(name, direction)| gst::PadTemplate::new(name, direction, always, &caps()).ok())
    .collect()
}

/// Kr and Kb of BT.601, for grey video whose caps have no matrix.
const BT_601: (f64, f64) = (0.299, 0.114);

/// The bytes of black and white: how a frame's components are quantised.
struct Quantisation {
    black: f32,
    white: f32,
}

impl Quantisation {
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

/// The byte offsets of red, green and blue within a pixel; all 0 for grey.
fn component_offsets(info: &VideoInfo) -> [usize; 3] {
    match info.format() {
        VideoFormat::Gray8 => [0; 3],
        _ => [0, 1, 2].map(|component| info.comp_poffset(component) as usize),
    }
}

/// The distance between the rows of a frame, each of `len` bytes. An error if they do not lie within the
/// frame's memory, as a buffer's metadata may wrongly say.
fn row_stride(frame: &impl VideoFrameExt, len: usize) -> candle_core::Result<usize> {
    let stride = frame.plane_stride()[0];
    let Some(stride) = usize::try_from(stride).ok().filter(|&stride| stride >= len) else {
        candle_core::bail!("its rows have {len} bytes each, but a stride of {stride}");
    };
    // Without a meta GStreamer compares the size itself, and with one it maps a single memory.
    let buffer = frame.buffer();
    let offset = buffer.meta::<VideoMeta>().map(|meta| meta.offset()[0]);
    if let Some(offset) = offset
        && let Some((memories, skipped)) = buffer.find_memory(offset..offset + 1)
    {
        let there = buffer.peek_memory(memories.start).size() - skipped;
        let needed = (stride as u64) * u64::from(frame.height() - 1) + len as u64;
        if (there as u64) < needed {
            candle_core::bail!("its rows take {needed} bytes, but its memory has {there}");
        }
    }
    Ok(stride)
}

/// A frame of the format and size of `info` as an image `[height, width, 3]`, RGB 0..1. Its buffer may be
/// larger, as its metadata say then.
pub fn to_image(
    info: &VideoInfo,
    frame: &VideoFrameRef<&gst::BufferRef>,
) -> candle_core::Result<Tensor> {
    let (height, width) = (info.height() as usize, info.width() as usize);
    let pixel_stride = info.comp_pstride(0) as usize;
    let stride = row_stride(frame, width * pixel_stride)?;
    let offsets = component_offsets(info);
    let quantisation = Quantisation::new(info);
    let values: [f32; 256] = std::array::from_fn(|byte| quantisation.value(byte as u8));

    let data = frame.plane_data(0).map_err(candle_core::Error::wrap)?;
    let mut image = Vec::with_capacity(height * width * 3);
    for row in data.chunks(stride).take(height) {
        for pixel in row.chunks_exact(pixel_stride).take(width) {
            image.extend(offsets.map(|offset| values[usize::from(pixel[offset])]));
        }
    }
    Tensor::from_vec(image, (height, width, 3), &Device::Cpu)
}

/// Writes `image` `[height, width, 3]` into a frame of the format and size of `info`. Alpha and padding
/// bytes are copied from `source`, which has the same.
pub fn write_image(
    image: &Tensor,
    info: &VideoInfo,
    source: &VideoFrameRef<&gst::BufferRef>,
    frame: &mut VideoFrameRef<&mut gst::BufferRef>,
) -> candle_core::Result<()> {
    let (height, width) = (info.height() as usize, info.width() as usize);
    let pixel_stride = info.comp_pstride(0) as usize;
    let offsets = component_offsets(info);
    let quantisation = Quantisation::new(info);
    let (kr, kb) = info.colorimetry().matrix().kr_kb().unwrap_or(BT_601);
    let luma = [kr, 1.0 - kr - kb, kb].map(|weight| weight as f32);

    let image = image.flatten_all()?.to_vec1::<f32>()?;
    let source_stride = row_stride(source, width * pixel_stride)?;
    let source = source.plane_data(0).map_err(candle_core::Error::wrap)?;
    let stride = row_stride(frame, width * pixel_stride)?;
    let data = frame.plane_data_mut(0).map_err(candle_core::Error::wrap)?;
    let rows = data.chunks_mut(stride).zip(source.chunks(source_stride));
    for ((row, source), image) in rows.take(height).zip(image.chunks_exact(3 * width)) {
        row[..width * pixel_stride].copy_from_slice(&source[..width * pixel_stride]);
        for (pixel, rgb) in row
            .chunks_exact_mut(pixel_stride)
            .zip(image.chunks_exact(3))
        {
            if info.format() == VideoFormat::Gray8 {
                pixel[0] = quantisation.byte(
                    rgb.iter()
                        .zip(luma)
                        .map(|(value, weight)| value * weight)
                        .sum(),
                );
            } else {
                for (offset, &value) in offsets.iter().zip(rgb) {
                    pixel[*offset] = quantisation.byte(value);
                }
            }
        }
    }
    Ok(())
}

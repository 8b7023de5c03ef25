// SPDX-License-Identifier: MPL-2.0

//! Conversion between video frames and image tensors.

use crate::ops::with_values;
use candle_core::{Device, Tensor};
use gst_video::prelude::*;
use gst_video::{VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo, VideoMeta};
use pulp::Arch;
use rayon::ThreadPool;
use rayon::prelude::*;

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

/// Fewest rows that are worth a thread.
const MIN_ROWS: usize = 16;

/// The largest number below 0.5. To add it and to drop the fraction rounds to the nearest integer, halves up;
/// with 0.5 itself, this number would become 1.
const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;

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

    #[allow(clippy::manual_clamp)]
    #[inline(always)]
    fn byte(&self, value: f32) -> u8 {
        let rounded_up = self.black + value * (self.white - self.black) + BELOW_HALF;
        // Loops over a checked conversion do not vectorise.
        // SAFETY: it is within 0..=255, as `max` makes 0 of NaN, which `clamp` would keep.
        unsafe { rounded_up.max(0.0).min(255.0).to_int_unchecked::<i32>() as u8 }
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
    // Of several it takes the one with the number 0, or the lowest.
    let metas = buffer.iter_meta::<VideoMeta>();
    let meta = metas.min_by_key(|meta| (meta.id() != 0, meta.id()));
    let offset = meta.map(|meta| meta.offset()[0]);
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

/// Reads one row of pixels of `N` bytes.
fn read_row<const N: usize>(
    row: &[u8],
    image: &mut [f32],
    offsets: [usize; 3],
    values: &[f32; 256],
) {
    let pixels = row.as_chunks::<N>().0;
    for (rgb, pixel) in image.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *rgb = offsets.map(|offset| values[usize::from(pixel[offset])]);
    }
}

/// Writes the bytes of red, green and blue into one row of pixels of `N` bytes.
fn write_row<const N: usize>(row: &mut [u8], bytes: &[u8], offsets: [usize; 3]) {
    let pixels = row.as_chunks_mut::<N>().0;
    for (pixel, rgb) in pixels.iter_mut().zip(bytes.as_chunks::<3>().0) {
        for (offset, &byte) in offsets.iter().zip(rgb) {
            pixel[*offset] = byte;
        }
    }
}

/// A frame of the format and size of `info` as an image `[height, width, 3]`, RGB 0..1. Its buffer may be
/// larger, as its metadata say then.
pub fn to_image(
    info: &VideoInfo,
    frame: &VideoFrameRef<&gst::BufferRef>,
    pool: &ThreadPool,
) -> candle_core::Result<Tensor> {
    let (height, width) = (info.height() as usize, info.width() as usize);
    let pixel_stride = info.comp_pstride(0) as usize;
    let stride = row_stride(frame, width * pixel_stride)?;
    let offsets = component_offsets(info);
    let quantisation = Quantisation::new(info);
    let values: [f32; 256] = std::array::from_fn(|byte| quantisation.value(byte as u8));
    let read_row = match pixel_stride {
        1 => read_row::<1>,
        3 => read_row::<3>,
        _ => read_row::<4>,
    };

    let data = frame.plane_data(0).map_err(candle_core::Error::wrap)?;
    let mut image = vec![0.0; height * width * 3];
    let rows = image.par_chunks_exact_mut(3 * width);
    let rows = rows.zip(data.par_chunks(stride)).with_min_len(MIN_ROWS);
    pool.install(|| rows.for_each(|(image, row)| read_row(row, image, offsets, &values)));
    Tensor::from_vec(image, (height, width, 3), &Device::Cpu)
}

/// Writes `image` `[height, width, 3]` into a frame of the format and size of `info`. Alpha and padding
/// bytes are copied from `source`, which has the same.
pub fn write_image(
    image: &Tensor,
    info: &VideoInfo,
    source: &VideoFrameRef<&gst::BufferRef>,
    frame: &mut VideoFrameRef<&mut gst::BufferRef>,
    pool: &ThreadPool,
) -> candle_core::Result<()> {
    let width = info.width() as usize;
    let pixel_stride = info.comp_pstride(0) as usize;
    let row_len = width * pixel_stride;
    let offsets = component_offsets(info);
    let quantisation = Quantisation::new(info);
    let (kr, kb) = info.colorimetry().matrix().kr_kb().unwrap_or(BT_601);
    let luma = [kr, 1.0 - kr - kb, kb].map(|weight| weight as f32);
    let write_row = match pixel_stride {
        3 => write_row::<3>,
        _ => write_row::<4>,
    };

    let source_stride = row_stride(source, row_len)?;
    let source = source.plane_data(0).map_err(candle_core::Error::wrap)?;
    let stride = row_stride(frame, row_len)?;
    let data = frame.plane_data_mut(0).map_err(candle_core::Error::wrap)?;
    with_values([&image.contiguous()?], |[image]: [&[f32]; 1]| {
        let frames = data
            .par_chunks_mut(stride)
            .zip(source.par_chunks(source_stride));
        let rows = frames.zip(image.par_chunks_exact(3 * width));
        let write = |bytes: &mut Vec<u8>, ((row, source), image): ((&mut [u8], &[u8]), &[f32])| {
            let row = &mut row[..row_len];
            if info.format() == VideoFormat::Gray8 {
                for (byte, rgb) in row.iter_mut().zip(image.as_chunks::<3>().0) {
                    let weighted = rgb.iter().zip(luma).map(|(value, weight)| value * weight);
                    *byte = quantisation.byte(weighted.sum());
                }
                return;
            }
            Arch::new().dispatch(|| {
                for (byte, value) in bytes.iter_mut().zip(image) {
                    *byte = quantisation.byte(*value);
                }
            });
            row.copy_from_slice(&source[..row_len]);
            write_row(row, bytes, offsets);
        };
        let rows = rows.with_min_len(MIN_ROWS);
        pool.install(|| rows.for_each_init(|| vec![0; 3 * width], write));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_to_the_nearest() {
        for (black, white) in [(0.0, 255.0), (16.0, 235.0)] {
            let quantisation = Quantisation { black, white };
            for edge in (0..=512).map(|half| half as f32 / 2.0) {
                // A value between two bytes, and those next to it.
                let value = (edge - black) / (white - black);
                for value in [value.next_down(), value, value.next_up(), -value] {
                    let expected = (black + value * (white - black)).round() as u8;
                    assert_eq!(quantisation.byte(value), expected, "{value}");
                }
            }
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
                let expected = (black + value * (white - black)).round() as u8;
                assert_eq!(quantisation.byte(value), expected, "{value}");
            }
        }
        let plain = Quantisation {
            black: 0.0,
            white: 1.0,
        };
        assert_eq!(plain.byte(0.5f32.next_down()), 0);
        assert_eq!(plain.byte(0.5), 1);
    }

    /// Every byte comes back, by as many threads as there are rows for.
    #[test]
    fn a_frame_that_is_not_painted_stays_the_same() {
        gst::init().unwrap();
        let pool = crate::threads::pool(3).build().unwrap();
        for format in FORMATS {
            let info = VideoInfo::builder(format, 37, 83).build().unwrap();
            let bytes: Vec<u8> = (0..info.size()).map(|i| (i * 37 % 256) as u8).collect();
            let input = gst::Buffer::from_slice(bytes);
            let mut output = gst::Buffer::with_size(info.size()).unwrap();
            let input = VideoFrameRef::from_buffer_ref_readable(&input, &info).unwrap();
            let writable = output.get_mut().unwrap();
            let mut frame = VideoFrameRef::from_buffer_ref_writable(writable, &info).unwrap();
            let image = to_image(&info, &input, &pool).unwrap();
            write_image(&image, &info, &input, &mut frame, &pool).unwrap();
            let row = 37 * info.comp_pstride(0) as usize;
            let stride = info.stride()[0] as usize;
            let rows = frame.plane_data(0).unwrap().chunks(stride);
            for (written, read) in rows.zip(input.plane_data(0).unwrap().chunks(stride)) {
                assert_eq!(written[..row], read[..row], "{format}");
            }
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! The style image, from its file to the size that the network sees.

use super::color::grey;
use super::config::Color;
use super::resize::{pad, resize_bytes, scaled};
use crate::vgg::MIN_SIDE;
use crate::vgg::weights::open;
use candle_core::Tensor;
use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, imageops,
};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;

/// The longest side and the decoded size that are accepted: more than any camera's picture.
const MAX_FILE_SIDE: u32 = 16_384;
const MAX_BYTES: u64 = 1 << 30;

/// The largest enlargement: beyond it a style image would show nothing but the blur of resampling.
const MAX_ENLARGEMENT: f64 = 2.0;

/// What is wrong with a style image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it is not a PNG, JPEG or WebP image")]
    UnknownFormat,
    #[error("it cannot be decoded, or it is cut short ({0})")]
    Decode(ImageError),
    #[error("it is a JPEG image that is cut short")]
    CutShort,
    #[error("it is larger than {MAX_FILE_SIDE}x{MAX_FILE_SIDE} pixels or than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    #[error("it is {width}x{height} pixels, and at least {MIN_SIDE}x{MIN_SIDE} are needed")]
    TooSmall { width: u32, height: u32 },
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Unsupported(_) => Self::UnknownFormat,
            ImageError::Limits(_) => Self::TooLarge,
            ImageError::IoError(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                Self::Io(error)
            }
            error => Self::Decode(error),
        }
    }
}

/// A decoded style image, with its orientation applied and its transparency over white.
#[derive(Clone, Debug)]
pub struct StyleImage(RgbImage);

impl StyleImage {
    /// Decodes a PNG, JPEG or WebP file; the format is recognised by the content.
    ///
    /// # Errors
    /// If it cannot be read, is of another format or damaged, or is too small or too large.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (file, len) = open(path)?;
        if len == 0 {
            return Err(Error::Empty);
        }
        let reader = ImageReader::new(BufReader::new(file)).with_guessed_format()?;
        let format = reader.format().ok_or(Error::UnknownFormat)?;
        if len > MAX_BYTES {
            return Err(Error::TooLarge);
        }
        let mut file = reader.into_inner();
        if format == ImageFormat::Jpeg && !has_jpeg_end(&mut file)? {
            return Err(Error::CutShort);
        }
        let webp = format == ImageFormat::WebP;
        let orientation = webp.then(|| webp_orientation(&mut file)).transpose()?;
        file.rewind()?;
        let mut reader = ImageReader::with_format(file, format);
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_FILE_SIDE);
        limits.max_image_height = Some(MAX_FILE_SIDE);
        limits.max_alloc = Some(MAX_BYTES);
        reader.limits(limits);
        let mut decoder = reader.into_decoder()?;
        // A broken EXIF block does not make the picture unusable.
        let orientation = match orientation {
            Some(orientation) => orientation,
            None => decoder.orientation().unwrap_or(Orientation::NoTransforms),
        };
        if decoder.total_bytes() > MAX_BYTES {
            return Err(Error::TooLarge);
        }
        let (width, height) = decoder.dimensions();
        if width.min(height) < MIN_SIDE as u32 {
            return Err(Error::TooSmall { width, height });
        }
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(Self(over_white(image)))
    }

    /// The image for the network, `[h, w, 3]` on the CPU: its longest side is `scale` times
    /// `longest`, unless that enlarges it too much, and sides below [`MIN_SIDE`] are padded. It is
    /// grey if the colours are the frame's.
    pub fn tensor(&self, longest: usize, scale: f64, color: Color) -> candle_core::Result<Tensor> {
        let (w, h) = (self.0.width() as usize, self.0.height() as usize);
        let image = pad(&resize_bytes(
            self.0.as_raw(),
            (h, w),
            self.size(longest, scale),
        )?)?;
        match color {
            Color::Style => Ok(image),
            Color::Content => grey(&image),
        }
    }

    /// Height and width of [`tensor`](Self::tensor) before padding.
    pub fn size(&self, longest: usize, scale: f64) -> (usize, usize) {
        let (w, h) = (self.0.width() as usize, self.0.height() as usize);
        let ratio = (longest as f64 * scale / h.max(w) as f64).min(MAX_ENLARGEMENT);
        scaled((h, w), ratio)
    }
}

/// Whether a JPEG file reaches its end marker. The decoder does not tell: it fills in what is
/// missing.
///
/// The structure is that of ITU-T T.81, annex B: markers, most of them with a segment of a given
/// length, and coded data between them, in which 0xFF is followed by 0 or a restart marker.
fn has_jpeg_end(file: &mut impl BufRead) -> io::Result<bool> {
    const END: u8 = 0xD9;
    loop {
        file.skip_until(0xFF)?;
        let mut marker = [0xFF];
        while marker[0] == 0xFF {
            if file.read(&mut marker)? == 0 {
                return Ok(false);
            }
        }
        match marker[0] {
            END => return Ok(true),
            // Coded data, or a marker without a segment.
            0x00 | 0x01 | 0xD0..=0xD8 => (),
            _ => {
                let mut length = Vec::with_capacity(2);
                file.by_ref().take(2).read_to_end(&mut length)?;
                let Ok(length) = <[u8; 2]>::try_from(length) else {
                    return Ok(false);
                };
                let rest = u64::from(u16::from_be_bytes(length)).saturating_sub(2);
                if io::copy(&mut file.by_ref().take(rest), &mut io::sink())? < rest {
                    return Ok(false);
                }
            }
        }
    }
}

/// The orientation that a WebP file's EXIF chunk gives. The decoder would allocate what the chunk claims to have.
///
/// The structure is that of RIFF (RFC 9649, sections 2.3 to 2.7): after 12 bytes, chunks of a name, a length and as
/// many bytes, padded to an even number. Only after VP8X is there EXIF.
fn webp_orientation(file: &mut (impl Read + Seek)) -> io::Result<Orientation> {
    file.seek_relative(12)?;
    let mut is_first = true;
    loop {
        let mut header = Vec::with_capacity(8);
        file.by_ref().take(8).read_to_end(&mut header)?;
        let Ok([name @ .., a, b, c, d]) = <[u8; 8]>::try_from(header) else {
            return Ok(Orientation::NoTransforms);
        };
        let size = u32::from_le_bytes([a, b, c, d]);
        match &name {
            b"EXIF" => {
                let mut exif = Vec::new();
                file.by_ref().take(size.into()).read_to_end(&mut exif)?;
                let orientation = Orientation::from_exif_chunk(&exif);
                return Ok(orientation.unwrap_or(Orientation::NoTransforms));
            }
            b"VP8X" => is_first = false,
            _ if is_first => return Ok(Orientation::NoTransforms),
            _ => (),
        }
        file.seek_relative(i64::from(size) + i64::from(size % 2))?;
    }
}

fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let mut white =
        image::RgbaImage::from_pixel(image.width(), image.height(), image::Rgba([255; 4]));
    imageops::overlay(&mut white, &image, 0, 0);
    DynamicImage::ImageRgba8(white).into_rgb8()
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MPL-2.0

use super::*;
use image::{ImageFormat, Rgb, Rgba, RgbaImage};
use std::io::Cursor;

const RED: Rgb<u8> = Rgb([250, 10, 10]);
const BLUE: Rgb<u8> = Rgb([10, 10, 250]);

/// Red on the left and blue on the right.
fn halves(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, _| if x < width / 2 { RED } else { BLUE })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn load(bytes: &[u8], name: &str) -> Result<RgbImage, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    StyleImage::load(&path).map(|style| style.0)
}

/// `jpeg` with an EXIF segment before all others.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    with_segment(jpeg, &[b"Exif\0\0", &exif(orientation)[..]].concat())
}

/// JEITA CP-3451, section 4.6.4: the tag 0x0112 is the orientation, a SHORT.
fn exif(orientation: u8) -> Vec<u8> {
    let tag = [0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0];
    [&b"II*\0\x08\0\0\0\x01\0"[..], &tag, &[0; 4]].concat()
}

fn with_segment(jpeg: &[u8], segment: &[u8]) -> Vec<u8> {
    let (start, rest) = jpeg.split_at(2);
    let length = (segment.len() as u16 + 2).to_be_bytes();
    [start, &[0xFF, 0xE1], &length, segment, rest].concat()
}

#[track_caller]
fn assert_near(pixel: &Rgb<u8>, colour: Rgb<u8>) {
    let near = |(a, b): (&u8, u8)| a.abs_diff(b) < 12;
    assert!(
        pixel.0.iter().zip(colour.0).all(near),
        "{pixel:?} is not {colour:?}"
    );
}

#[test]
fn the_format_is_recognised_by_content() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        for name in ["style", "style.png", "style.jpg", "style.webp", "style.txt"] {
            let image = load(&encoded(halves(64, 32), format), name).unwrap();
            assert_eq!(image.dimensions(), (64, 32));
            assert_near(image.get_pixel(8, 16), RED);
            assert_near(image.get_pixel(56, 16), BLUE);
        }
    }
}

#[test]
fn pictures_of_other_kinds_become_rgb() {
    let grey = image::GrayImage::from_pixel(20, 20, image::Luma([99]));
    assert_eq!(
        load(&encoded(grey, ImageFormat::Png), "grey").unwrap()[(3, 3)],
        Rgb([99; 3])
    );
    let deep = image::ImageBuffer::from_pixel(20, 20, Rgb([0x8080u16, 0, 0xFFFF]));
    let deep = DynamicImage::ImageRgb16(deep);
    assert_eq!(
        load(&encoded(deep, ImageFormat::Png), "deep").unwrap()[(3, 3)],
        Rgb([128, 0, 255])
    );
}

#[test]
fn orientation_is_obeyed() {
    let jpeg = encoded(halves(64, 32), ImageFormat::Jpeg);
    // Where the stored left half ends up, in quarters of the picture's sides.
    for (orientation, size, red) in [
        (1, (64, 32), (1, 2)),
        (2, (64, 32), (3, 2)),
        (3, (64, 32), (3, 2)),
        (4, (64, 32), (1, 2)),
        (5, (32, 64), (2, 1)),
        (6, (32, 64), (2, 1)),
        (7, (32, 64), (2, 3)),
        (8, (32, 64), (2, 3)),
    ] {
        let image = load(&with_orientation(&jpeg, orientation), "style").unwrap();
        assert_eq!(image.dimensions(), size, "{orientation}");
        let at = |(x, y): (u32, u32)| image.get_pixel(size.0 * x / 4, size.1 * y / 4);
        assert_near(at(red), RED);
        assert_near(at((4 - red.0, 4 - red.1)), BLUE);
    }
}

#[test]
fn broken_exif_is_ignored() {
    let jpeg = encoded(halves(64, 32), ImageFormat::Jpeg);
    for orientation in [0, 9, 255] {
        let image = load(&with_orientation(&jpeg, orientation), "style").unwrap();
        assert_eq!(image.dimensions(), (64, 32));
    }
    for exif in [
        &b"Exif\0\0"[..],
        b"Exif\0\0II*\0\xFF\xFF\xFF\xFF",
        b"Exif\0\0??",
    ] {
        let image = load(&with_segment(&jpeg, exif), "style").unwrap();
        assert_eq!(image.dimensions(), (64, 32));
    }
}

#[test]
fn transparency_is_blended_with_white() {
    let pixels = [
        [0, 0, 0, 0],
        [0, 0, 0, 255],
        [200, 100, 0, 128],
        [9, 9, 9, 1],
    ];
    let image = RgbaImage::from_fn(16, 16, |x, _| Rgba(pixels[x as usize % 4]));
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let image = load(&encoded(image.clone(), format), "style").unwrap();
        for (x, pixel) in pixels.iter().enumerate() {
            let alpha = f64::from(pixel[3]) / 255.0;
            for c in 0..3 {
                let expected = f64::from(pixel[c]) * alpha + 255.0 * (1.0 - alpha);
                let found = f64::from(image[(x as u32, 5)].0[c]);
                assert!(
                    (found - expected).abs() <= 1.5,
                    "{pixel:?}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn jpegs_with_thumbnails_or_trailing_bytes_are_accepted() {
    let jpeg = encoded(halves(64, 32), ImageFormat::Jpeg);
    let thumbnail = [b"Exif\0\0", jpeg.as_slice()].concat();
    load(&with_segment(&jpeg, &thumbnail), "style").unwrap();
    load(
        &[jpeg.as_slice(), b"something after the end"].concat(),
        "style",
    )
    .unwrap();
    // The end marker of the thumbnail does not stand in for the picture's own.
    let cut = with_segment(&jpeg[..jpeg.len() - 2], &thumbnail);
    assert!(load(&cut, "style").is_err());
}

#[test]
fn every_truncated_file_is_refused() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let bytes = encoded(halves(16, 16), format);
        for len in 0..bytes.len() {
            let loaded = load(&bytes[..len], "style");
            // The picture is complete without a PNG's empty last chunk, and without the byte that
            // pads a WebP to an even length.
            let dispensable = match format {
                ImageFormat::Png => 12,
                ImageFormat::WebP => 1,
                _ => 0,
            };
            let is_complete = len + dispensable >= bytes.len();
            let case = format!("{format:?}: {len} of {}", bytes.len());
            match loaded {
                Ok(_) => assert!(is_complete, "{case}"),
                // So much tells which format it is.
                Err(error) if len >= 24 => {
                    assert!(error.to_string().contains("cut short"), "{case}: {error}");
                }
                Err(_) => (),
            }
        }
        // As within a PNG's last chunk.
        assert!(load(&bytes[..bytes.len() - 8], "style").is_err());
    }
}

/// A chunk of a WebP file (RFC 9649, section 2.3).
fn chunk(name: &[u8], claimed: u32, data: &[u8]) -> Vec<u8> {
    [name, &claimed.to_le_bytes(), data].concat()
}

/// `webp` in the extended format (RFC 9649, section 2.7), with an EXIF chunk.
fn with_exif_chunk(webp: &[u8], exif: &[u8]) -> Vec<u8> {
    let extended = chunk(b"VP8X", 10, &[8, 0, 0, 0, 63, 0, 0, 31, 0, 0]);
    let body = [b"WEBP", &extended[..], &webp[12..], exif].concat();
    chunk(b"RIFF", body.len() as u32, &body)
}

#[test]
fn orientation_of_webp_is_obeyed() {
    let webp = encoded(halves(64, 32), ImageFormat::WebP);
    let exif = exif(6);
    let length = exif.len() as u32;
    let webp = with_exif_chunk(&webp, &chunk(b"EXIF", length, &exif));
    let image = load(&webp, "webp").unwrap();
    assert_eq!(image.dimensions(), (32, 64));
    assert_near(image.get_pixel(16, 8), RED);
}

/// The decoder allocates what a chunk claims to have.
#[test]
fn webp_metadata_may_claim_any_length() {
    let webp = encoded(halves(64, 32), ImageFormat::WebP);
    for claimed in [0, 3, 4, 5, 1 << 30, 0xFFFF_FF00, u32::MAX] {
        let exif = chunk(b"EXIF", claimed, b"abc\0");
        let image = load(&with_exif_chunk(&webp, &exif), "webp").unwrap();
        assert_eq!(image.dimensions(), (64, 32));
    }
}

#[test]
fn files_larger_than_any_picture_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.jpg");
    std::fs::write(&path, encoded(halves(64, 32), ImageFormat::Jpeg)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(MAX_BYTES + 1).unwrap();
    let error = StyleImage::load(&path).unwrap_err();
    assert!(matches!(error, Error::TooLarge), "{error}");
}

#[test]
fn sizes_below_the_networks_minimum_are_refused() {
    for (width, height) in [(1, 1), (15, 16), (16, 15), (1, 4000), (400, 15)] {
        let error = load(&encoded(halves(width, height), ImageFormat::Png), "style").unwrap_err();
        assert!(matches!(error, Error::TooSmall { .. }), "{error}");
        let sizes = format!("it is {width}x{height} pixels, and at least 16x16 are needed");
        assert_eq!(error.to_string(), sizes);
    }
    load(&encoded(halves(16, 16), ImageFormat::Png), "style").unwrap();
}

#[track_caller]
fn assert_size(image: (u32, u32), longest: usize, scale: f64, (h, w): (usize, usize)) {
    let tensor = StyleImage(halves(image.0, image.1))
        .tensor(longest, scale, Color::Style)
        .unwrap();
    assert_eq!(tensor.dims(), [h, w, 3]);
}

#[test]
fn the_longest_side_follows_the_frames() {
    assert_size((200, 100), 200, 1.0, (100, 200));
    assert_size((200, 100), 100, 1.0, (50, 100));
    assert_size((100, 200), 100, 0.5, (50, 25));
    assert_size((200, 100), 100, 3.0, (150, 300));
}

#[test]
fn enlarged_to_twice_its_size_at_most() {
    assert_size((200, 100), 400, 1.0, (200, 400));
    assert_size((200, 100), 401, 1.0, (200, 400));
    assert_size((200, 100), 512, 100.0, (200, 400));
}

#[test]
fn short_sides_are_padded() {
    assert_size((400, 20), 100, 1.0, (16, 100));
    assert_size((20, 400), 100, 1.0, (100, 16));
    assert_size((64, 64), 1, 0.01, (16, 16));
}

#[test]
fn values_are_rgb_from_0_to_1() {
    let tensor = StyleImage(halves(64, 32))
        .tensor(64, 1.0, Color::Style)
        .unwrap();
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(&values[..3], RED.0.map(|value| f32::from(value) / 255.0));
    assert_eq!(
        &values[63 * 3..64 * 3],
        BLUE.0.map(|value| f32::from(value) / 255.0)
    );
}

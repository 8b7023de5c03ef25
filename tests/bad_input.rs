// SPDX-License-Identifier: MPL-2.0

//! No user input crashes `gst-launch-1.0`: a bad value of a property is reported with the property, the value and the cause.

#![cfg(feature = "plugin")]

mod common;

use candle_core::Device;
use common::files::{
    Ended, Tensors, by_layer, filled, gstreamer, picture, png_header, run, safetensors, stored,
    tensors, with_header,
};
use common::{Files, NARROW, painter};
use gst::prelude::*;
use gstgatys::vgg::Precision;
use image::ImageFormat;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A folder for one test's files, with a valid style image.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = TempDir::with_prefix("gatys test ").unwrap();
        picture(32, 24)
            .save(folder.path().join("style.png"))
            .unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        run(Command::new("mkfifo").arg(&path)).assert_succeeded("mkfifo");
        path
    }

    /// A file without read permission; none if the tests run as root, who may read everything.
    fn unreadable(&self, name: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, "nobody reads this");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&path).is_ok() {
            println!("left out: a file without permissions, because root may read it");
            return None;
        }
        Some(path)
    }

    /// Runs the element with these properties, and with the valid style image if they have none.
    fn launch(&self, properties: &[(&str, &OsStr)]) -> Ended {
        let mut command = gstreamer("gst-launch-1.0");
        let source = ["videotestsrc", "num-buffers=2", "!"];
        let caps = ["video/x-raw,width=32,height=32", "!", "gatys"];
        command.args(source).args(caps);
        let style = self.path("style.png");
        let is_given = properties.iter().any(|(name, _)| *name == "style-image");
        let style = (!is_given).then_some(("style-image", style.as_os_str()));
        for (name, value) in style.iter().chain(properties) {
            let mut property = OsStr::new(name).to_owned();
            property.push("=");
            property.push(if value.is_empty() {
                OsStr::new("\"\"")
            } else {
                value
            });
            command.arg(property);
        }
        run(command.args(["iterations=2", "initial-iterations=2", "!", "fakesink"]))
    }

    /// Asserts that the element refuses a value with an error that has the property, the value and `causes`.
    fn refuses(&self, property: &str, value: impl AsRef<OsStr>, causes: &[&str]) {
        let value = value.as_ref();
        let case = format!("{property}={}", value.display());
        let ended = self.launch(&[(property, value)]);
        ended.assert_refused(&case);
        let error = error(&ended);
        let value = value.to_str().unwrap();
        for part in [property, value].iter().chain(causes) {
            assert!(error.contains(part), "{case}: no ‘{part}’ in: {error}");
        }
        println!("{error}");
    }
}

/// The element's error message, as a user sees it.
fn error(ended: &Ended) -> &str {
    let marker = "/GstGatys:gatys0: ";
    let mut lines = ended.stderr.lines();
    let line = lines.find(|line| line.starts_with("ERROR: from element"));
    let line = line.and_then(|line| line.split_once(marker));
    line.unwrap_or_else(|| panic!("the element gave no error: {ended}"))
        .1
}

/// A picture encoded in a file format.
fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture(64, 48).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn good_input_is_taken() {
    let folder = Folder::new();
    folder.launch(&[]).assert_succeeded("built-in weights");
    let weights = safetensors(&tensors(&NARROW, by_layer), &[]);
    let weights = folder.write("narrow.safetensors", weights);
    for weights in [weights, stored("families/torchvision.pth")] {
        let ended = folder.launch(&[("weights", weights.as_os_str())]);
        ended.assert_succeeded(&weights.display().to_string());
    }
}

#[test]
fn style_image_that_is_no_file() {
    let folder = Folder::new();
    let unset = run(gstreamer("gst-launch-1.0").args("videotestsrc ! gatys ! fakesink".split(' ')));
    let empty = folder.launch(&[("style-image", OsStr::new(""))]);
    for ended in [unset, empty] {
        ended.assert_refused("no style image");
        let error = error(&ended);
        assert!(error.contains("style-image is not set"), "{error}");
        assert!(error.contains("path"), "{error}");
    }
    let refuses = |path: &Path, cause| folder.refuses("style-image", path, &[cause]);
    refuses(&folder.path("missing.png"), "No such file");
    refuses(&folder.path("style.png/below.png"), "Not a directory");
    refuses(&folder.path(""), "directory");
    refuses(&folder.fifo("fifo.png"), "not a regular file");
    refuses(Path::new("/dev/zero"), "not a regular file");
    if let Some(path) = folder.unreadable("unreadable.png") {
        refuses(&path, "Permission denied");
    }
}

#[test]
fn style_image_that_is_no_image() {
    let folder = Folder::new();
    let refuses = |name, bytes: &[u8], cause| {
        folder.refuses("style-image", folder.write(name, bytes), &[cause]);
    };
    refuses("empty.png", b"", "empty");
    refuses(
        "text.png",
        b"Not a picture, though its name says so.\n",
        "not a PNG, JPEG or WebP",
    );
    refuses("one-byte.jpg", b"\xff", "not a PNG, JPEG or WebP");
    refuses("zeros.webp", &[0; 4096], "not a PNG, JPEG or WebP");
    for (name, format) in [
        ("cut.png", ImageFormat::Png),
        ("cut.jpg", ImageFormat::Jpeg),
        ("cut.webp", ImageFormat::WebP),
    ] {
        let bytes = encoded(format);
        refuses(name, &bytes[..bytes.len() / 2], "cut short");
    }
    let mut damaged = encoded(ImageFormat::Png);
    let middle = damaged.len() / 2;
    damaged[middle..middle + 16].fill(0x55);
    refuses("damaged.png", &damaged, "cannot be decoded");
}

#[test]
fn style_image_of_a_size_that_cannot_be() {
    let folder = Folder::new();
    let path = folder.path("small.png");
    picture(15, 400).save(&path).unwrap();
    folder.refuses("style-image", &path, &["15x400", "16x16"]);
    for (width, height) in [
        (20_000, 20_000),
        (20_000, 16),
        (u32::MAX >> 1, u32::MAX >> 1),
    ] {
        let path = folder.write("huge.png", png_header(width, height));
        folder.refuses("style-image", &path, &["larger than 16384x16384"]);
    }
    // 16384 x 16384 pixels in RGB are 768 MiB, which is allowed; but the file does not have them.
    let path = folder.write("promised.png", png_header(16_384, 16_384));
    folder.refuses("style-image", &path, &["cut short"]);
}

/// The decoder would take as much memory as the metadata claim to need. RFC 9649 has the chunks.
#[test]
fn a_style_image_that_claims_to_have_gigabytes_of_metadata() {
    let folder = Folder::new();
    let chunk = |name: &[u8; 4], claimed: u32, data: &[u8]| {
        [name, &claimed.to_le_bytes()[..], data].concat()
    };
    let exif = chunk(b"EXIF", 0xFFFF_FF00, b"none");
    let canvas = [63, 0, 0, 47, 0, 0];
    let still = [
        b"WEBP".to_vec(),
        chunk(b"VP8X", 10, &[&[8, 0, 0, 0][..], &canvas].concat()),
        encoded(ImageFormat::WebP)[12..].to_vec(),
        exif.clone(),
    ];
    let animated = [
        b"WEBP".to_vec(),
        chunk(b"VP8X", 10, &[&[2, 0, 0, 0][..], &canvas].concat()),
        chunk(b"ANIM", 6, &[0; 6]),
        chunk(b"ANMF", 28, &[&[0; 16], &exif[..]].concat()),
    ];
    for (name, chunks) in [("still", still), ("animated", animated)] {
        let body = chunks.concat();
        let path = folder.write("style.webp", chunk(b"RIFF", body.len() as u32, &body));
        let launch = format!(
            "ulimit -v 4000000; exec gst-launch-1.0 videotestsrc num-buffers=1 ! video/x-raw,width=32,height=32 ! \
             gatys n-threads=1 initial-iterations=1 style-image='{}' ! fakesink",
            path.display()
        );
        let ended = run(gstreamer("sh").arg("-c").arg(launch));
        match name {
            "still" => ended.assert_succeeded(name),
            _ => ended.assert_refused(name),
        }
    }
}

#[test]
fn weights_that_are_no_file() {
    let folder = Folder::new();
    let refuses = |path: &Path, cause| folder.refuses("weights", path, &[cause]);
    refuses(&folder.path("missing.safetensors"), "No such file");
    refuses(Path::new("nobody-has-weights-of-this-name"), "No such file");
    let nobody = "gst-plugin-gatys/nobody-has-weights-of-this-name.safetensors either";
    refuses(Path::new("nobody-has-weights-of-this-name"), nobody);
    refuses(&folder.path(""), "directory");
    refuses(&folder.fifo("fifo"), "not a regular file");
    refuses(&folder.write("empty.pth", b""), "empty");
    if let Some(path) = folder.unreadable("unreadable.pth") {
        refuses(&path, "Permission denied");
    }
}

#[test]
fn weights_that_are_cut_short_or_of_no_known_format() {
    let folder = Folder::new();
    let refuses = |name, bytes: &[u8]| {
        let path = folder.write(name, bytes);
        folder.refuses("weights", &path, &["cut short"]);
    };
    let whole = safetensors(&tensors(&NARROW, by_layer), &[]);
    let header = 8 + usize::from(u16::from_le_bytes([whole[0], whole[1]]));
    for part in [1, 8, header / 2, header, header + 100, whole.len() - 1] {
        refuses("cut.safetensors", &whole[..part]);
    }
    let whole = fs::read(stored("families/torchvision.pth")).unwrap();
    for part in [4, 30, whole.len() / 2, whole.len() - 30, whole.len() - 1] {
        refuses("cut.pth", &whole[..part]);
    }
    refuses(
        "text.safetensors",
        b"These are no weights, only words about them.",
    );
    let page = folder.write("page.pth", b"\n<!DOCTYPE html><title>Not Found</title>");
    folder.refuses("weights", &page, &["web page"]);
    let whole = fs::read(stored("families/torchvision-legacy.pth")).unwrap();
    for part in [30, whole.len() / 2, whole.len() - 1] {
        refuses("old.pth", &whole[..part]);
    }
    refuses("style.pth", &fs::read(folder.path("style.png")).unwrap());
    refuses("far.safetensors", &with_header_length(u64::MAX));
    refuses("far.safetensors", &with_header_length(1 << 40));
    refuses("far.safetensors", &with_header_length(1000));
    let kernel = |shape: &str, end: u64| {
        format!(
            r#"{{"conv1_1.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        )
    };
    for header in [
        kernel("[4611686018427387904,3,3,3]", 1 << 62),
        kernel("[1000000000,3,3,3]", 108_000_000_000),
        kernel("[4,3,3,3]", 432),
        kernel("[4,3,3,3]", 16),
        kernel("[-1,3,3,3]", 16),
        "{}{}".into(),
        "[1, 2".into(),
        "[".repeat(100_000),
    ] {
        refuses("claims.safetensors", &with_header(&header, &[0; 16]));
    }
}

/// A safetensors file that ends within its header of this length.
fn with_header_length(length: u64) -> Vec<u8> {
    let mut file = length.to_le_bytes().to_vec();
    file.extend(b"{\"a\":1}");
    file
}

#[test]
fn weights_of_another_network() {
    let folder = Folder::new();
    let refuses = |tensors: &Tensors, causes: &[&str]| {
        let path = folder.write("other.safetensors", safetensors(tensors, &[]));
        folder.refuses("weights", &path, causes);
    };
    let vgg_16 = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
    let named = |index: usize| format!("features.{}", vgg_16[index]);
    refuses(&tensors(&NARROW[..13], named), &["VGG-16"]);
    let unrelated = Tensors::from([("lm_head.weight".into(), filled(0.5, &[8, 8]))]);
    refuses(&unrelated, &["with a VGG-19's names"]);
    let mut gap = tensors(&NARROW, by_layer);
    gap.remove("conv3_2.weight");
    refuses(&gap, &["conv3_3", "conv3_2", "not the weights of a VGG-19"]);
}

#[test]
fn weights_of_wrong_shapes_and_values() {
    let folder = Folder::new();
    let with = |name: &str, tensor| {
        let mut tensors = tensors(&NARROW, by_layer);
        tensors.insert(name.into(), tensor);
        tensors
    };
    let refuses = |tensors: &Tensors, causes: &[&str]| {
        let path = folder.write("odd.safetensors", safetensors(tensors, &[]));
        folder.refuses("weights", &path, causes);
    };
    for (name, shape, expected) in [
        ("conv1_1.weight", vec![4, 3, 5, 5], "[channels, 3, 3, 3]"),
        ("conv1_1.weight", vec![4, 1, 3, 3], "[channels, 3, 3, 3]"),
        ("conv1_1.weight", vec![0, 3, 3, 3], "[channels, 3, 3, 3]"),
        ("conv2_1.weight", vec![8, 5, 3, 3], "[channels, 4, 3, 3]"),
        ("conv2_2.weight", vec![8, 72], "[channels, 8, 3, 3]"),
        ("conv2_2.weight", vec![], "[channels, 8, 3, 3]"),
        ("conv3_1.bias", vec![13], "[12]"),
        ("conv3_1.bias", vec![12, 1], "[12]"),
        ("conv3_1.bias", vec![1], "[12]"),
    ] {
        let layer = &name[..7];
        let found = format!("{shape:?}");
        refuses(&with(name, filled(0.1, &shape)), &[layer, &found, expected]);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let kernel = with("conv4_2.weight", filled(value, &[16, 16, 3, 3]));
        refuses(&kernel, &["conv4_2", "not finite"]);
        let bias = with("conv1_2.bias", filled(value, &[4]));
        refuses(&bias, &["conv1_2", "not finite"]);
    }
}

#[test]
fn weights_of_images_in_another_form() {
    let folder = Folder::new();
    let tensors = tensors(&NARROW, by_layer);
    for (key, value, cause) in [
        ("channels", "GRAY", "RGB or BGR"),
        ("std", "1,1,0", "three numbers above 0"),
    ] {
        let path = folder.write(
            "weights.safetensors",
            safetensors(&tensors, &[(key, value)]),
        );
        folder.refuses("weights", &path, &[key, value, cause]);
    }
}

#[test]
fn layers() {
    let folder = Folder::new();
    for property in ["content-layers", "style-layers"] {
        for (value, causes) in [
            ("", &["empty"][..]),
            ("conv9_9", &["no layer ‘conv9_9’", "conv1_1", "conv5_4"]),
            ("conv1_1,conv4_2,conv1_1", &["conv1_1 is listed twice"]),
            ("conv1_1:-1", &["‘-1’ is not a weight", "above 0"]),
            ("conv5_4", &["not in the weights", "end at conv5_1"]),
        ] {
            folder.refuses(property, value, causes);
        }
    }
}

#[test]
fn nothing_to_optimise() {
    let folder = Folder::new();
    let none = OsStr::new("0");
    let ended = folder.launch(&[("alpha", none), ("beta", none)]);
    ended.assert_refused("alpha=0 beta=0");
    let error = error(&ended);
    for part in ["alpha", "beta", "0", "nothing to optimise"] {
        assert!(error.contains(part), "{error}");
    }
    for one in ["alpha", "beta"] {
        folder.launch(&[(one, none)]).assert_succeeded(one);
    }
}

#[test]
fn devices() {
    let folder = Folder::new();
    for value in ["banana", "cuda:-1"] {
        folder.refuses("device", value, &["not a device", "auto, cpu, cuda"]);
    }
    let causes = match cfg!(feature = "cuda") {
        true => &["GPU 77"][..],
        false => &["no CUDA support", "Cargo feature ‘cuda’"],
    };
    folder.refuses("device", "cuda:77", causes);
    let ended = folder.launch(&[("device", OsStr::new("cpu"))]);
    ended.assert_succeeded("device=cpu");
}

#[test]
fn precisions() {
    let folder = Folder::new();
    let ended = folder.launch(&[("precision", OsStr::new("f32"))]);
    ended.assert_succeeded("precision=f32");
    folder.refuses("precision", "f16", &["computes in f32"]);
    match Precision::Bf16.check(&Device::Cpu) {
        // Where a GPU may be used, whose message differs.
        _ if cfg!(feature = "cuda") => (),
        Ok(()) => {
            let ended = folder.launch(&[("precision", OsStr::new("bf16"))]);
            ended.assert_succeeded("bf16");
            let weights = safetensors(&tensors(&NARROW, by_layer), &[]);
            let weights = folder.write("narrow.safetensors", weights);
            let precision = ("precision", OsStr::new("bf16"));
            let ended = folder.launch(&[precision, ("weights", weights.as_os_str())]);
            ended.assert_refused("bf16 of a narrow network");
            let error = error(&ended);
            for part in ["precision=bf16", "multiples of 32"] {
                assert!(error.contains(part), "{error}");
            }
        }
        Err(_) => folder.refuses("precision", "bf16", &["this CPU has no AMX", "f32"]),
    }
}

/// Values that GStreamer itself refuses before the element sees them.
#[test]
fn values_of_another_type() {
    let folder = Folder::new();
    for (property, value) in [
        ("iterations", "many"),
        ("alpha", "x"),
        ("pooling", "min"),
        ("precision", "f64"),
        ("nonsense", "1"),
    ] {
        let case = format!("{property}={value}");
        let ended = folder.launch(&[(property, OsStr::new(value))]);
        ended.assert_refused(&case);
        assert!(ended.stderr.contains(property), "{case}: {ended}");
    }
}

/// Applications tell errors apart by these.
#[test]
fn errors_have_codes() {
    use gst::ResourceError::{NotFound, OpenRead, Settings};
    let files = Files::new();
    let missing = files.style.with_file_name("missing");
    let [missing, weights] = [&missing, &files.weights].map(|path| path.to_str());
    for (property, value, code) in [
        ("style-image", None, NotFound),
        ("style-image", missing, NotFound),
        ("style-image", weights, OpenRead),
        ("weights", missing, NotFound),
        ("weights", files.style.to_str(), OpenRead),
        ("device", Some("gpu"), Settings),
    ] {
        let element = painter::element(&files);
        element.set_property(property, value);
        let error = painter::start_error(&element);
        assert_eq!(error.kind(), Some(code), "{property}: {error}");
    }
}

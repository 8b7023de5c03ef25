// SPDX-License-Identifier: MPL-2.0

//! `motion-dump` shows how frames moved; if it cannot be written, the stream goes on.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::known_motion::Picture;
use common::painter::{Painter, element};
use common::video::{Pixels, info};
use gst::prelude::*;
use gst_video::VideoFormat;
use image::RgbImage;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

const WIDTH: u32 = 96;
const HEIGHT: u32 = 64;

/// How far the picture moves from frame to frame, in pixels.
const STEP: i32 = 3;

static PICTURE: LazyLock<Picture> = LazyLock::new(|| Picture::made(0));

/// A picture with texture everywhere, moved by `shift` pixels to the right and by `fall` down.
fn scene(shift: i32, fall: i32) -> Pixels {
    let pixel = |at: u32| {
        let [y, x] = [(at / WIDTH) as i32 - fall, (at % WIDTH) as i32 - shift];
        let value = |value: f64| (255.0 * value).round().clamp(0.0, 255.0) as u8;
        PICTURE.sample([y, x].map(f64::from)).map(value)
    };
    (0..WIDTH * HEIGHT).map(pixel).collect()
}

fn painter(files: &Files, dump: &Path) -> Painter {
    let element = element(files);
    element.set_property("motion-dump", dump.to_str().unwrap());
    Painter::with_info(&element, info(VideoFormat::Rgb, WIDTH, HEIGHT))
}

/// Paints one picture after the other.
fn paint(painter: &mut Painter, scenes: impl IntoIterator<Item = Pixels>) -> Vec<Pixels> {
    let painted = |scene| painter.paint_picture(&scene);
    scenes.into_iter().map(painted).collect()
}

/// The names of the files in a folder; none if it is missing.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn picture(folder: &Path, name: &str) -> RgbImage {
    let picture = image::open(folder.join(name)).unwrap();
    assert_eq!(picture.color(), image::ColorType::Rgb8);
    picture.to_rgb8()
}

/// The fraction of a picture's pixels for which `is` holds.
fn part(picture: &RgbImage, is: impl Fn([u8; 3]) -> bool) -> f64 {
    let count = picture.pixels().filter(|pixel| is(pixel.0)).count();
    count as f64 / f64::from(picture.width() * picture.height())
}

#[test]
fn what_moves_has_the_colour_of_its_direction() {
    let files = Files::new();
    for (direction, name, is) in [
        (
            (1, 0),
            "right",
            (|[r, g, b]| r > 200 && g < 130 && b < 130) as fn([u8; 3]) -> bool,
        ),
        ((-1, 0), "left", |[r, g, b]| r < 130 && g > 150 && b > 200),
        ((0, 1), "down", |[r, g, b]| r > 200 && g > 180 && b < 130),
        ((0, -1), "up", |[r, g, b]| {
            r > 50 && r < 180 && g < 130 && b > 200
        }),
    ] {
        let folder = files.dir.path().join("made").join(name);
        let mut painter = painter(&files, &folder);
        let scenes = (0..4).map(|i| scene(i * STEP * direction.0, i * STEP * direction.1));
        paint(&mut painter, scenes);
        let flows = ["flow-000001.png", "flow-000002.png", "flow-000003.png"];
        let masks = ["mask-000001.png", "mask-000002.png", "mask-000003.png"];
        assert_eq!(names(&folder), [flows, masks].concat());
        for (flow, mask) in flows.iter().zip(masks) {
            let (flow, mask) = (picture(&folder, flow), picture(&folder, mask));
            assert_eq!(flow.dimensions(), (WIDTH, HEIGHT));
            assert_eq!(mask.dimensions(), (WIDTH, HEIGHT));
            let (of_direction, reliable) = (part(&flow, is), part(&mask, |m| m == [255; 3]));
            println!("{name}: {of_direction} of its colour, {reliable} reliable");
            assert!(of_direction > 0.75, "{name}: {of_direction}");
            assert!(reliable > 0.75, "{name}: {reliable}");
            assert_eq!(part(&mask, |[r, g, b]| r == g && g == b), 1.0);
        }
        assert_eq!(painter.warnings(), [""; 0]);
    }
}

#[test]
fn pictures_have_the_size_that_is_optimised() {
    let files = Files::new();
    let folder = files.dir.path().join("dump");
    let mut painter = painter(&files, &folder);
    painter.element.set_property("max-size", 45u32);
    paint(&mut painter, [scene(0, 0), scene(4, 0)]);
    for name in ["flow-000001.png", "mask-000001.png"] {
        assert_eq!(picture(&folder, name).dimensions(), (45, 30));
    }
}

#[test]
fn painting_is_the_same() {
    let files = Files::new();
    let scenes = || (0..3).map(|i| scene(i * STEP, 0));
    let folder = files.dir.path().join("dump");
    let dumped = paint(&mut painter(&files, &folder), scenes());
    let plain = paint(&mut painter(&files, Path::new("")), scenes());
    assert_eq!(names(&folder).len(), 4);
    assert!(dumped == plain);
}

#[test]
fn nothing_is_shown_of_frames_without_motion() {
    let files = Files::new();
    let folder = files.dir.path().join("still");
    paint(&mut painter(&files, &folder), (0..3).map(|_| scene(0, 0)));
    assert_eq!(names(&folder), [""; 0], "a still scene");

    let folder = files.dir.path().join("repeated");
    let mut painter = painter(&files, &folder);
    painter.element.set_property("frame-interval", 2u32);
    paint(&mut painter, (0..4).map(|i| scene(i * STEP, 0)));
    assert_eq!(names(&folder), ["flow-000002.png", "mask-000002.png"]);
    // Nor of the first frame after a jump.
    painter.jump(10);
    paint(&mut painter, [scene(4 * STEP, 0)]);
    assert_eq!(names(&folder).len(), 2);
}

#[test]
fn the_folder_may_change_meanwhile() {
    let files = Files::new();
    let (one, other) = (files.dir.path().join("one"), files.dir.path().join("other"));
    let mut painter = painter(&files, &one);
    paint(&mut painter, [scene(0, 0), scene(STEP, 0)]);
    painter
        .element
        .set_property("motion-dump", other.to_str().unwrap());
    paint(&mut painter, [scene(2 * STEP, 0)]);
    painter.element.set_property("motion-dump", None::<String>);
    paint(&mut painter, [scene(3 * STEP, 0)]);
    assert_eq!(names(&one), ["flow-000001.png", "mask-000001.png"]);
    assert_eq!(names(&other), ["flow-000002.png", "mask-000002.png"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_warned_of_once() {
    let files = Files::new();
    let file = files.dir.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let taken = files.dir.path().join("taken");
    fs::create_dir_all(taken.join("flow-000001.png")).unwrap();
    let refused: [(PathBuf, &str); 3] = [
        (file.clone(), "it is a file, not a folder"),
        (file.join("below"), "Not a directory"),
        (taken, "Is a directory"),
    ];
    for (path, cause) in refused {
        let mut painter = painter(&files, &path);
        let painted = paint(&mut painter, (0..5).map(|i| scene(i * STEP, 0)));
        assert_eq!(painted.len(), 5);
        let warnings = painter.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        println!("{}", warnings[0]);
        let path = path.to_str().unwrap();
        for part in ["motion-dump=", path, cause] {
            assert!(warnings[0].contains(part), "{}", warnings[0]);
        }

        // Another folder is tried, and then the first again.
        let good = files.dir.path().join("good");
        painter
            .element
            .set_property("motion-dump", good.to_str().unwrap());
        paint(&mut painter, [scene(5 * STEP, 0)]);
        assert_eq!(names(&good), ["flow-000005.png", "mask-000005.png"]);
        assert_eq!(painter.warnings(), [""; 0]);
        fs::remove_dir_all(good).unwrap();
        painter
            .element
            .set_property("motion-dump", file.to_str().unwrap());
        paint(&mut painter, [scene(6 * STEP, 0), scene(7 * STEP, 0)]);
        assert_eq!(painter.warnings().len(), 1);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "in the way");
}

#[test]
fn a_pipe_that_nobody_reads_is_replaced() {
    let files = Files::new();
    let folder = files.dir.path().join("dump");
    fs::create_dir(&folder).unwrap();
    for name in ["flow-000001.png", "mask-000001.png.part"] {
        let made = Command::new("mkfifo").arg(folder.join(name)).status();
        assert!(made.unwrap().success());
    }
    let mut painter = painter(&files, &folder);
    paint(&mut painter, [scene(0, 0), scene(STEP, 0)]);
    assert_eq!(names(&folder), ["flow-000001.png", "mask-000001.png"]);
    let size = picture(&folder, "flow-000001.png").dimensions();
    assert_eq!(size, (WIDTH, HEIGHT));
    assert_eq!(painter.warnings(), [""; 0]);
}

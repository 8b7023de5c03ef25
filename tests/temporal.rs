// SPDX-License-Identifier: MPL-2.0

//! What is carried over from frame to frame: what moves, what stays, and what starts anew.
#![cfg(feature = "plugin")]

mod common;

use common::Files;
use common::known_motion::Picture as Scene;
use common::painter::{FIRST, LATER, Painter, element};
use common::video::{Pixels, info};
use gst::prelude::*;
use gst_video::VideoFormat;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const WIDTH: usize = 160;
const HEIGHT: usize = 96;

/// A picture with texture everywhere, moved by `shift` pixels; each `kind` is another scene.
fn picture(kind: u32, shift: usize) -> Pixels {
    let scene = Scene::made(kind);
    let pixel = |at: usize| {
        let place = [(at / WIDTH) as f64, (at % WIDTH + shift) as f64];
        let value = |value: f64| (255.0 * value).round().clamp(0.0, 255.0) as u8;
        scene.sample(place).map(value)
    };
    (0..WIDTH * HEIGHT).map(pixel).collect()
}

/// A picture with sensor noise, which differs for each `frame`.
fn noisy(picture: &Pixels, frame: u64) -> Pixels {
    let mut rng = StdRng::seed_from_u64(frame);
    // The sum of four is nearly normal.
    let mut noise = || (0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 6.0;
    let mut value = |value: u8| (f64::from(value) + noise()).round().clamp(0.0, 255.0) as u8;
    picture.iter().map(|pixel| pixel.map(&mut value)).collect()
}

fn painter(element: &gst::Element) -> Painter {
    Painter::with_info(element, info(VideoFormat::Rgb, WIDTH as u32, HEIGHT as u32))
}

/// Paints a picture and returns its statistics.
fn report(painter: &mut Painter, picture: &Pixels) -> gst::Structure {
    painter.paint_picture(picture);
    painter.stats()
}

fn iterations(report: &gst::Structure) -> u32 {
    report.get("iterations").unwrap()
}

fn reason(report: &gst::Structure) -> &str {
    report.get("reason").unwrap()
}

fn is_cut(report: &gst::Structure) -> bool {
    report.get("scene-cut").unwrap()
}

#[test]
fn a_first_frame_starts_in_the_colours_of_the_style() {
    let files = Files::new();
    let initial_loss = |init: &str, beta: f64| {
        let element = element(&files);
        element.set_property_from_str("init", init);
        element.set_property("beta", beta);
        let mut painter = painter(&element);
        let report = report(&mut painter, &picture(0, 0));
        report.get::<f64>("initial-loss").unwrap()
    };
    let (matched, itself) = (initial_loss("previous", 1.0), initial_loss("content", 1.0));
    assert!(matched < 0.5 * itself, "{matched} beside {itself}");
    // Without a style loss nothing asks for its colours.
    assert_eq!(initial_loss("previous", 0.0), initial_loss("content", 0.0));
}

#[test]
fn a_cut_begins_anew() {
    let files = Files::new();
    let element = element(&files);
    let mut painter = painter(&element);
    let scenes = [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (2, 0), (2, 2)];
    for (number, (scene, shift)) in scenes.into_iter().enumerate() {
        let report = report(&mut painter, &picture(scene, shift));
        let cut = matches!(number, 3 | 5);
        assert_eq!(is_cut(&report), cut, "{number}: {report}");
        let expected = if cut || number == 0 { FIRST } else { LATER };
        assert_eq!(iterations(&report), expected, "{number}");
    }
}

#[test]
fn a_cut_to_a_plain_picture_begins_anew() {
    let files = Files::new();
    let plain = |color: [u8; 3]| vec![color; WIDTH * HEIGHT];
    let [black, white, red] = [[0; 3], [255; 3], [255, 0, 0]].map(plain);
    let frames = [
        picture(0, 0),
        black.clone(),
        black,
        white.clone(),
        red,
        picture(0, 0),
        white,
    ];
    for motion in ["flow", "none"] {
        let element = element(&files);
        element.set_property_from_str("motion", motion);
        let mut painter = painter(&element);
        for (number, frame) in frames.iter().enumerate() {
            let report = report(&mut painter, frame);
            let cut = !matches!(number, 0 | 2);
            assert_eq!(is_cut(&report), cut, "{motion}, {number}: {report}");
        }
    }
}

/// The painting before a cut leaves no trace.
#[test]
fn a_new_scene_is_painted_as_if_it_were_the_first() {
    let files = Files::new();
    let after = |scene: Option<u32>| {
        let element = element(&files);
        let mut painter = painter(&element);
        if let Some(scene) = scene {
            report(&mut painter, &picture(scene, 0));
        }
        let mut paint = |shift| painter.paint_picture(&picture(1, shift));
        [paint(0), paint(3)]
    };
    assert!(after(Some(0)) == after(None));
}

#[test]
fn cuts_can_be_left_unnoticed() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("scene-cut", 1.0);
    for motion in ["flow", "none"] {
        element.set_property_from_str("motion", motion);
        let mut painter = painter(&element);
        report(&mut painter, &picture(0, 0));
        let report = report(&mut painter, &picture(1, 0));
        assert!(!is_cut(&report) && iterations(&report) == LATER, "{motion}");
    }
}

#[test]
fn cuts_are_noticed_without_motion_and_between_painted_frames() {
    let files = Files::new();
    let element = element(&files);
    element.set_property_from_str("motion", "none");
    element.set_property("frame-interval", 4u32);
    let mut painter = painter(&element);
    let scenes = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)];
    let reports = scenes.map(|(scene, shift)| report(&mut painter, &picture(scene, shift)));
    assert!(is_cut(&reports[2]) && iterations(&reports[2]) == FIRST);
    let painted: Vec<bool> = reports
        .iter()
        .map(|report| reason(report) != "repeated")
        .collect();
    assert_eq!(painted, [true, false, true, false, false, false, true]);
}

#[test]
fn a_still_picture_is_repeated_once_it_has_converged() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("iterations", 20u32);
    let mut painter = painter(&element);
    let still = picture(0, 0);
    let paint = |painter: &mut Painter, picture: &Pixels| {
        let painted = painter.paint_picture(picture);
        (painter.stats(), painted)
    };
    let (mut converged, mut losses) = (None, Vec::new());
    for number in 0..400 {
        let (report, painted) = paint(&mut painter, &noisy(&still, number));
        losses.push(report.get::<f64>("total-loss").unwrap());
        if reason(&report) == "converged" {
            converged = Some((number, painted));
            break;
        }
        assert_eq!(reason(&report), "iterations", "{number}");
    }
    let (number, painted) = converged.expect("an end");
    assert!(number > 2, "{number}");
    // The noise is not painted: one optimisation continues.
    assert!(
        losses.is_sorted_by(|earlier, later| later <= earlier),
        "{losses:?}"
    );
    for number in number + 1..number + 4 {
        let (report, repeated) = paint(&mut painter, &noisy(&still, number));
        assert_eq!((reason(&report), iterations(&report)), ("repeated", 0));
        assert!(repeated == painted);
    }

    // Motion ends the repetition, and so does a property.
    let (report, _) = paint(&mut painter, &picture(0, 2));
    assert_eq!((reason(&report), iterations(&report)), ("iterations", 20));
    element.set_property("skip-still", false);
    for _ in 0..3 {
        let (report, _) = paint(&mut painter, &picture(0, 2));
        assert_ne!(reason(&report), "repeated");
    }
}

#[test]
fn a_change_of_the_settings_wakes_a_still_picture() {
    let files = Files::new();
    let element = element(&files);
    element.set_property_from_str("init", "content");
    let mut painter = painter(&element);
    let still = picture(0, 0);
    let next = |painter: &mut Painter| reason(&report(painter, &still)).to_owned();
    assert_eq!(next(&mut painter), "iterations");
    // Starting from the frame itself would give the same again.
    assert_eq!(next(&mut painter), "repeated");
    element.set_property("beta", 50.0);
    assert_eq!(next(&mut painter), "iterations");
    assert_eq!(next(&mut painter), "repeated");
}

/// Both have the same luma.
#[test]
fn another_colour_wakes_a_still_picture() {
    let files = Files::new();
    for color in ["style", "content"] {
        let element = element(&files);
        element.set_property_from_str("init", "content");
        element.set_property_from_str("color", color);
        let mut painter = painter(&element);
        let grey: Pixels = picture(0, 0)
            .iter()
            .map(|&[_, g, _]| [g / 2 + 60; 3])
            .collect();
        let redder = |[r, g, b]: [u8; 3]| [r + 20, g, b - 52];
        let red: Pixels = grey.iter().map(|&pixel| redder(pixel)).collect();
        let reasons = [&grey, &grey, &red, &red].map(|picture| {
            let report = report(&mut painter, picture);
            reason(&report).to_owned()
        });
        assert_eq!(
            reasons,
            ["iterations", "repeated", "iterations", "repeated"],
            "{color}"
        );
    }
}

/// What L-BFGS has learnt of it is kept.
#[test]
fn a_still_picture_is_painted_over_two_frames_as_over_one() {
    let files = Files::new();
    let loss = |frames: &[u32]| {
        let element = element(&files);
        element.set_property("initial-iterations", frames[0]);
        element.set_property("iterations", frames[frames.len() - 1]);
        let mut painter = painter(&element);
        let reports = frames.iter().map(|_| report(&mut painter, &picture(0, 0)));
        reports.last().unwrap().get::<f64>("total-loss").unwrap()
    };
    // The second frame begins with an evaluation of what the first one ended with.
    let (one, two) = (loss(&[40]), loss(&[20, 21]));
    println!("one {one}, two {two}");
    assert!((two / one - 1.0).abs() < 0.01, "one {one}, two {two}");
}

#[test]
fn a_still_picture_is_painted_as_the_settings_say_now() {
    let files = Files::new();
    let paint = |before: &str| {
        let element = element(&files);
        element.set_property_from_str("init", "content");
        element.set_property("iterations", FIRST);
        element.set_property_from_str("color", before);
        let mut painter = painter(&element);
        report(&mut painter, &picture(0, 0));
        element.set_property_from_str("color", "style");
        painter.paint_picture(&picture(0, 0))
    };
    assert!(paint("content") == paint("style"));
}

/// The distance of two pictures of a scene where they overlap; `later` is `shift` pixels further along.
fn distance(earlier: &Pixels, later: &Pixels, shift: usize) -> f64 {
    let margin = 16;
    let (mut sum, mut count) = (0.0, 0.0);
    for y in margin..HEIGHT - margin {
        for x in margin..WIDTH - margin - shift {
            let pair = earlier[y * WIDTH + x + shift]
                .iter()
                .zip(&later[y * WIDTH + x]);
            for (earlier, later) in pair {
                sum += (f64::from(*earlier) - f64::from(*later)).powi(2);
                count += 1.0;
            }
        }
    }
    sum / count
}

/// The mean distance of each painting to the one before, moved along a pan of 3 pixels a frame.
fn flicker(files: &Files, set: impl Fn(&gst::Element)) -> f64 {
    let element = element(files);
    element.set_property("weights", "");
    element.set_property("initial-iterations", 20u32);
    // With fewer, what a frame starts from is hardly changed.
    element.set_property("iterations", 10u32);
    set(&element);
    let mut painter = painter(&element);
    let painted: Vec<Pixels> = (0..5)
        .map(|frame| painter.paint_picture(&picture(0, 3 * frame)))
        .collect();
    let pairs = painted.windows(2).skip(1);
    pairs
        .map(|pair| distance(&pair[0], &pair[1], 3))
        .sum::<f64>()
        / 3.0
}

/// With the built-in weights.
#[test]
fn strokes_go_with_what_moves() {
    let files = Files::new();
    let with = |motion: &str, temporal_weight: f64| {
        flicker(&files, |element| {
            element.set_property_from_str("motion", motion);
            element.set_property("temporal-weight", temporal_weight);
        })
    };
    let content = flicker(&files, |element| {
        element.set_property_from_str("init", "content")
    });
    let (none, flow, held) = (with("none", 0.0), with("flow", 0.0), with("flow", 1000.0));
    println!("content {content:.1}, none {none:.1}, flow {flow:.1}, held {held:.1}");
    assert!(flow < 0.5 * content, "{flow} {content}");
    assert!(flow < 0.5 * none, "{flow} {none}");
    assert!(held < 0.9 * flow, "{held} {flow}");
}

/// Though they have to learn the temporal term's curvature.
#[test]
fn few_iterations_are_held_to_the_last_painting() {
    let files = Files::new();
    let with = |temporal_weight: f64| {
        flicker(&files, |element| {
            element.set_property("iterations", LATER);
            element.set_property("temporal-weight", temporal_weight);
        })
    };
    let (free, held) = (with(0.0), with(1000.0));
    println!("free {free:.1}, held {held:.1}");
    assert!(held < free, "{held} {free}");
}

/// The one step of such a frame must not be too long, nor stay too long once it was.
#[test]
fn two_iterations_improve_a_frame_that_moved() {
    let files = Files::new();
    for temporal_weight in [0.0, 1000.0] {
        let element = element(&files);
        element.set_property("iterations", 2u32);
        element.set_property("initial-iterations", 60u32);
        element.set_property("temporal-weight", temporal_weight);
        element.set_property("scene-cut", 1.0);
        let mut painter = painter(&element);
        let mut improves = |picture: &Pixels| {
            let report = report(&mut painter, picture);
            let [total, initial] =
                ["total-loss", "initial-loss"].map(|loss| report.get::<f64>(loss));
            total.unwrap() < initial.unwrap()
        };
        let mut improved = Vec::new();
        for number in 0..12 {
            // A flash in between.
            let white = vec![[255; 3]; WIDTH * HEIGHT];
            let picture = if number == 5 {
                white
            } else {
                picture(0, 2 * number)
            };
            improved.push(improves(&picture));
        }
        println!("{improved:?}");
        assert!(
            improved[8..].iter().all(|&improved| improved),
            "{improved:?}"
        );
    }
}

/// A frame that becomes darker is painted darker, though its shapes stay.
#[test]
fn light_is_followed() {
    let files = Files::new();
    let element = element(&files);
    element.set_property("weights", "");
    element.set_property("initial-iterations", 20u32);
    let mut painter = painter(&element);
    let mean = |picture: &Pixels| {
        let values = picture.as_flattened().iter().map(|&value| f64::from(value));
        values.sum::<f64>() / (3 * picture.len()) as f64
    };
    let mut means = Vec::new();
    for frame in 0..5 {
        let light = 1.0 - 0.1 * frame as f64;
        let dimmed: Pixels = picture(0, 2 * frame)
            .iter()
            .map(|pixel| pixel.map(|value| (f64::from(value) * light) as u8))
            .collect();
        let painted = painter.paint_picture(&dimmed);
        assert!(!is_cut(&painter.stats()));
        means.push((mean(&dimmed), mean(&painted)));
    }
    let (first, last) = (means[0], means[4]);
    let followed = (first.1 - last.1) / (first.0 - last.0);
    // The style's own brightness holds the painting back.
    assert!((0.5..1.3).contains(&followed), "{means:?}");
}

#[test]
fn motion_is_known_and_what_was_returned_stays_as_it_is() {
    use candle_core::{Device, Tensor};
    use gstgatys::stylizer::Stylizer;
    use gstgatys::stylizer::config::Config;
    use gstgatys::stylizer::style::StyleImage;
    use gstgatys::vgg::Vgg;
    use std::sync::Arc;

    let files = Files::new();
    let vgg = Vgg::new(&common::random_weights(&common::NARROW), &Device::Cpu).unwrap();
    let style = StyleImage::load(&files.style).unwrap();
    let config = Config {
        initial_iterations: FIRST,
        iterations: LATER,
        ..Config::default()
    };
    let mut stylizer = Stylizer::new(Arc::new(vgg), style, config).unwrap();
    let tensor = |picture: &Pixels| {
        let values = picture
            .as_flattened()
            .iter()
            .map(|&value| f32::from(value) / 255.0);
        Tensor::from_vec(values.collect(), (HEIGHT, WIDTH, 3), &Device::Cpu).unwrap()
    };
    let values = |image: &Tensor| image.flatten_all().unwrap().to_vec1::<f32>().unwrap();

    let (first, report) = stylizer
        .stylize(&tensor(&picture(0, 0)), &|| false)
        .unwrap();
    assert!(report.sets_up);
    let kept = values(&first);
    assert!(stylizer.motion().is_none());
    let (second, report) = stylizer
        .stylize(&tensor(&picture(0, 4)), &|| false)
        .unwrap();
    assert!(!report.scene_cut && !report.sets_up && !report.motion_time.is_zero());
    assert_eq!(values(&first), kept);
    assert_ne!(values(&second), kept);

    // The picture moves to the left, so that the backward flow points to the right.
    let motion = stylizer.motion().unwrap();
    let mut across: Vec<f32> = motion
        .backward
        .u
        .iter()
        .map(|u| u * motion.scale as f32)
        .collect();
    across.sort_by(f32::total_cmp);
    let median = across[across.len() / 2];
    assert!((median - 4.0).abs() < 0.2, "{median}");
    let reliable = &motion.reliable.values;
    assert!(reliable.iter().sum::<f32>() > 0.8 * reliable.len() as f32);

    stylizer
        .stylize(&tensor(&picture(1, 0)), &|| false)
        .unwrap();
    assert!(stylizer.motion().is_none());
}

// SPDX-License-Identifier: MPL-2.0

//! Scene cuts, and transitions that must not be taken for one; still pictures, and ones that change slightly.

mod common;

use common::known_motion::Picture;
use common::pictures::{AHEAD, Camera, Frame, H, W};
use common::shared::shared;
use gstgatys::stylizer::motion::flow::bidirectional;
use gstgatys::stylizer::motion::pyramid::Pyramid;
use gstgatys::stylizer::motion::scene::{DEFAULT_SCENE_CUT, cut_score};
use gstgatys::stylizer::motion::still::is_still;

/// The scores of pairs of frames.
#[derive(Default)]
struct Table(Vec<(f64, bool, String)>);

impl Table {
    fn add(&mut self, name: String, cut: bool, [now, before]: [&Pyramid; 2]) {
        let [backward, forward] = bidirectional(&now.levels, &before.levels);
        let score = cut_score(now, before, &backward, &forward);
        self.0.push((score, cut, name));
    }

    fn cut(&mut self, name: String, before: &Frame, now: &Frame) {
        self.add(name, true, [&now.pyramid(), &before.pyramid()]);
    }

    fn none(&mut self, name: String, before: &Frame, now: &Frame) {
        self.add(name, false, [&now.pyramid(), &before.pyramid()]);
    }

    /// Adds a pair in both directions, as no cut.
    fn neither(&mut self, name: String, one: &Frame, other: &Frame) {
        self.none(format!("{name}, there"), one, other);
        self.none(format!("{name}, back"), other, one);
    }

    fn check(mut self) {
        self.0.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (score, cut, name) in &self.0 {
            println!("{score:.3} {} {name}", if *cut { "cut" } else { "   " });
        }
        for (score, cut, name) in &self.0 {
            assert_eq!(*score >= DEFAULT_SCENE_CUT, *cut, "{name}: {score}");
        }
    }
}

/// Every kind of transition, from each picture to the next and within it.
fn transitions(pictures: &[(String, Picture)]) -> Table {
    let mut table = Table::default();
    let frames: Vec<Frame> = pictures
        .iter()
        .map(|(_, picture)| picture.seen(AHEAD))
        .collect();
    for (i, (name, picture)) in pictures.iter().enumerate() {
        let frame = &frames[i];
        let other = &frames[(i + 1) % frames.len()];
        let name = |what: &str| format!("{name}: {what}");
        let wide = picture.seen(Camera {
            reach: 1.1,
            ..AHEAD
        });
        let close = picture.seen(Camera {
            y: 40.0,
            x: 60.0,
            reach: 0.44,
            ..AHEAD
        });
        table.cut(name("to the next"), frame, other);
        table.cut(
            name("to the next, grain"),
            &frame.noisy(10.0, 1),
            &other.noisy(10.0, 2),
        );
        table.cut(
            name("to the next, low contrast"),
            &frame.lit(0.4, 0.3),
            &other.lit(0.4, 0.3),
        );
        table.cut(name("mirrored"), frame, &frame.mirrored());
        table.cut(name("to a close-up"), &wide, &close);
        table.cut(name("to a wide shot"), &close, &wide);
        for tone in [0.0, 0.5, 1.0] {
            let plain = Frame::grey(tone);
            table.cut(name(&format!("from {tone}")), &plain, frame);
            table.cut(name(&format!("to {tone}")), frame, &plain);
            let [before, now] = [frame.noisy(10.0, 1), plain.noisy(10.0, 2)];
            table.cut(name(&format!("to {tone}, grain")), &before, &now);
        }

        let hazy = frame.lit(0.4, 0.3);
        table.cut(name("low contrast to black"), &hazy, &Frame::grey(0.0));
        table.cut(name("low contrast to white"), &hazy, &Frame::grey(1.0));

        table.none(name("grain"), &frame.noisy(10.0, 1), &frame.noisy(10.0, 2));
        for x in [30.0, 100.0, 200.0] {
            let panned = picture.seen(Camera { x, ..AHEAD });
            table.none(name(&format!("pan by {x}")), frame, &panned);
            let [first, second] = [0.0, x].map(|at| {
                picture.seen(Camera {
                    x: at,
                    blur: x,
                    ..AHEAD
                })
            });
            table.none(name(&format!("pan by {x}, blurred")), &first, &second);
        }
        let begun = picture.seen(Camera {
            x: 60.0,
            blur: 40.0,
            ..AHEAD
        });
        table.none(name("pan begins"), frame, &begun);
        let shaken = picture.seen(Camera {
            y: 30.0,
            x: -40.0,
            angle: 0.05,
            ..AHEAD
        });
        table.none(name("shaken"), frame, &shaken);
        table.none(
            name("zoom by 1.1"),
            frame,
            &picture.seen(Camera {
                reach: 1.0 / 1.1,
                ..AHEAD
            }),
        );
        let half = other.beside(frame, |_, x| x < W as f32 / 2.0);
        table.neither(name("half covered"), frame, &half);
        let oval = |y: f32, x: f32| ((y - 180.0) / 160.0).powi(2) + ((x - 320.0) / 220.0).powi(2);
        let oval = other.beside(frame, |y, x| oval(y, x) < 1.0);
        table.neither(name("covered by an oval"), frame, &oval);
        for step in 0..12 {
            let [first, second] = [step, step + 1].map(|step| step as f32 / 12.0);
            let [one, two] = [first, second].map(|share| frame.mixed(other, share));
            table.none(name(&format!("dissolve, {step}")), &one, &two);
        }
        for (frames, from) in [(8, 0), (30, 27)] {
            for (tone, step) in [0.0, 1.0]
                .into_iter()
                .flat_map(|tone| (from..frames).map(move |step| (tone, step)))
            {
                let share = |step: usize| step as f32 / frames as f32;
                let [one, two] =
                    [step, step + 1].map(|step| frame.mixed(&Frame::grey(tone), share(step)));
                table.neither(
                    name(&format!("fade to {tone} in {frames}, {step}")),
                    &one,
                    &two,
                );
            }
        }
        let white = frame.mixed(&Frame::grey(1.0), 0.85);
        table.neither(name("flash"), frame, &white);
        table.neither(name("flash, overexposed"), frame, &frame.lit(1.0, 0.4));
        table.neither(name("light goes out"), frame, &frame.lit(0.1, 0.0));
        table.none(
            name("light goes out, grain"),
            &frame.noisy(3.0, 1),
            &frame.lit(0.1, 0.0).noisy(3.0, 2),
        );
    }
    table
}

fn textures() -> Vec<(String, Picture)> {
    [1, 2, 3]
        .map(|seed| (format!("texture {seed}"), Picture::texture(seed)))
        .into()
}

fn photographs() -> Option<Vec<(String, Picture)>> {
    let names = [
        "tubingen.jpg",
        "golden_gate.jpg",
        "starry_night.jpg",
        "the_scream.jpg",
    ];
    let Some(paths) = names.map(shared).into_iter().collect::<Option<Vec<_>>>() else {
        eprintln!("left out: there are no pictures");
        return None;
    };
    let pictures = names.iter().zip(paths);
    Some(
        pictures
            .map(|(name, path)| (name.to_string(), Picture::load(&path)))
            .collect(),
    )
}

#[test]
fn cuts_between_textures_are_found_and_no_others() {
    transitions(&textures()).check();
}

#[test]
fn cuts_between_photographs_and_paintings_are_found_and_no_others() {
    if let Some(pictures) = photographs() {
        transitions(&pictures).check();
    }
}

#[test]
fn plain_frames_are_cut_by_their_colour_alone() {
    let plain = |color: [f32; 3]| Frame(vec![color; H * W]);
    let [black, white, red, blue] =
        [[0.0; 3], [1.0; 3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]].map(plain);
    let mut table = Table::default();
    for (name, one, other) in [
        ("black, white", &black, &white),
        ("red, blue", &red, &blue),
        ("black, blue", &black, &blue),
    ] {
        for noise in [0.0, 3.0, 10.0] {
            let [one, other] = [one.noisy(noise, 1), other.noisy(noise, 2)];
            table.cut(format!("{name}, noise {noise}, there"), &one, &other);
            table.cut(format!("{name}, noise {noise}, back"), &other, &one);
        }
        for step in 0..8 {
            let [one, two] = [step, step + 1].map(|step| one.mixed(other, step as f32 / 8.0));
            table.neither(format!("{name}, step {step}"), &one, &two);
        }
    }
    for noise in [3.0, 10.0] {
        table.none(
            format!("noise {noise}"),
            &black.noisy(noise, 1),
            &black.noisy(noise, 2),
        );
        table.neither(
            format!("noise {noise} that ends"),
            &black.noisy(noise, 1),
            &black,
        );
    }
    let cursor = |y: f32, x: f32| (100.0..124.0).contains(&y) && (50.0..62.0).contains(&x);
    table.neither(
        "a blinking cursor".into(),
        &black,
        &white.beside(&black, cursor),
    );
    for centre in [320.0, 630.0, 650.0] {
        let ball = |y: f32, x: f32| (y - 180.0).hypot(x - centre) < 20.0;
        table.none(
            format!("a ball leaves from {centre}"),
            &white.beside(&black, ball),
            &black,
        );
    }
    let picture = Picture::texture(1).seen(AHEAD);
    for step in 0..16 {
        let [one, two] = [step, step + 1]
            .map(|step| black.beside(&picture, |_, x| x < step as f32 * W as f32 / 16.0));
        table.none(format!("the lens is covered, {step}"), &one, &two);
    }
    table.check();
}

#[cfg(feature = "plugin")]
#[test]
fn a_clip_has_no_cuts_but_to_another() {
    let (Some(clip), Some(pictures)) = (shared("car-detection.mp4"), photographs()) else {
        eprintln!("left out: there is no clip");
        return;
    };
    let frames = common::film::frames(&clip, 120, W as u32);
    let frames: Vec<_> = frames
        .iter()
        .map(|frame| Pyramid::new(frame).unwrap())
        .collect();
    let mut table = Table::default();
    for (i, pair) in frames.windows(2).enumerate() {
        table.add(
            format!("frame {i} to the next"),
            false,
            [&pair[1], &pair[0]],
        );
    }
    for (name, picture) in &pictures {
        let picture = picture.seen(AHEAD).pyramid();
        table.add(format!("{name} to the clip"), true, [&frames[0], &picture]);
        table.add(format!("the clip to {name}"), true, [&picture, &frames[0]]);
    }
    table.check();
}

#[test]
fn a_still_picture_is_told_from_small_changes() {
    let mut pictures = textures();
    pictures.extend(photographs().into_iter().flatten());
    for (name, picture) in &pictures {
        let frame = picture.seen(AHEAD);
        let square = |left: f32| {
            let inside = move |y: f32, x: f32| {
                (100.0..116.0).contains(&y) && (left..left + 16.0).contains(&x)
            };
            Frame::grey(0.5 + 40.0 / 255.0).beside(
                &frame.lit(0.0, 0.5).beside(&frame, |y, x| {
                    (80.0..140.0).contains(&y) && (180.0..260.0).contains(&x)
                }),
                inside,
            )
        };
        // Of the luma of what is behind it, within a grey level.
        let coloured = |left: f32, colour: [f32; 3]| {
            let colour = Frame(vec![colour.map(|value| value / 255.0); H * W]);
            let inside =
                |y: f32, x: f32| (107.0..115.0).contains(&y) && (left..left + 8.0).contains(&x);
            let behind = Frame::grey(100.0 / 255.0).beside(&frame, |y, x| {
                (80.0..140.0).contains(&y) && (180.0..260.0).contains(&x)
            });
            colour.beside(&behind, inside)
        };
        for noise in [0.0, 3.0, 12.0] {
            let still = |now: &Frame, before: &Frame| {
                is_still(
                    &now.noisy(noise, 1).pyramid(),
                    &before.noisy(noise, 2).pyramid(),
                )
            };
            let name = format!("{name}, noise {noise}");
            assert!(still(&frame, &frame), "{name}");
            assert!(still(&square(200.0), &square(200.0)), "{name}");
            assert!(!still(&square(203.0), &square(200.0)), "{name}: an object");
            for colour in [[205.0, 54.0, 54.0], [150.0, 72.0, 110.0]] {
                let name = format!("{name}, colour {colour:?}");
                let before = coloured(203.0, colour);
                assert!(still(&coloured(203.0, colour), &before), "{name}");
                assert!(!still(&coloured(213.0, colour), &before), "{name}");
            }
            assert!(
                !still(&frame.lit(1.0, 2.0 / 255.0), &frame),
                "{name}: light"
            );
            assert!(
                !still(&picture.seen(Camera { x: 0.3, ..AHEAD }), &frame),
                "{name}: a pan"
            );
            assert!(
                !still(
                    &picture.seen(Camera {
                        angle: 0.004,
                        ..AHEAD
                    }),
                    &frame
                ),
                "{name}: a turn"
            );
        }
    }
}

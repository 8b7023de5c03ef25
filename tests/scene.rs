// SPDX-License-Identifier: MPL-2.0

//! Scene cuts, and transitions that must not be taken for one; still pictures, and ones that change slightly.

#[cfg(feature = "plugin")]
#[path = "../benches/common/clip.rs"]
#[allow(dead_code)]
mod clip;

use candle_core::{Device, Tensor};
use gstgatys::stylizer::motion::flow::bidirectional;
use gstgatys::stylizer::motion::pyramid::Pyramid;
use gstgatys::stylizer::motion::scene::{DEFAULT_SCENE_CUT, cut_score};
use gstgatys::stylizer::motion::still::is_still;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};

const H: usize = 360;
const W: usize = 640;

/// A picture that is mirrored beyond its edges.
struct Picture {
    h: usize,
    w: usize,
    values: Vec<[f32; 3]>,
}

/// A camera's position in pixels from the picture's centre, its scale `reach` in pixels of the picture
/// per pixel of the frame, and the distance `blur` that it moves during the exposure of a frame.
#[derive(Clone, Copy)]
struct Pose {
    y: f32,
    x: f32,
    angle: f32,
    reach: f32,
    blur: f32,
}

const AHEAD: Pose = Pose {
    y: 0.0,
    x: 0.0,
    angle: 0.0,
    reach: 1.0,
    blur: 0.0,
};

#[derive(Clone)]
struct Frame(Vec<[f32; 3]>);

impl Picture {
    /// Noise of seven octaves, with wavelengths from 256 pixels down to 4.
    fn texture(seed: u64) -> Self {
        let (h, w) = (768, 1024);
        let mut values = vec![[0.5; 3]; h * w];
        let mut random = StdRng::seed_from_u64(seed);
        for octave in 0..7 {
            let cell = 256 >> octave;
            let strength = 0.25 * 0.7f32.powi(octave);
            let columns = w / cell + 2;
            let corners: Vec<f32> = (0..(h / cell + 2) * columns)
                .map(|_| random.random_range(-strength..strength))
                .collect();
            for (i, pixel) in values.iter_mut().enumerate() {
                let (y, x) = (i / w, i % w);
                let corner = &corners[y / cell * columns + x / cell..];
                let smooth = |at: usize| {
                    let t = (at % cell) as f32 / cell as f32;
                    t * t * (3.0 - 2.0 * t)
                };
                let (fy, fx) = (smooth(y), smooth(x));
                let above = corner[0] + fx * (corner[1] - corner[0]);
                let below = corner[columns] + fx * (corner[columns + 1] - corner[columns]);
                *pixel = pixel.map(|value| value + above + fy * (below - above));
            }
        }
        Self { h, w, values }
    }

    fn load(path: &Path) -> Self {
        let picture = image::open(path).unwrap().into_rgb8();
        Self {
            h: picture.height() as usize,
            w: picture.width() as usize,
            values: picture
                .pixels()
                .map(|pixel| pixel.0.map(|byte| f32::from(byte) / 255.0))
                .collect(),
        }
    }

    fn at(&self, y: f32, x: f32) -> [f32; 3] {
        let mirrored = |at: i64, side: usize| {
            let at = at.rem_euclid(2 * side as i64) as usize;
            at.min(2 * side - 1 - at)
        };
        let (fy, fx) = (y - y.floor(), x - x.floor());
        let pixel = |dy: i64, dx: i64| {
            let (y, x) = (y.floor() as i64 + dy, x.floor() as i64 + dx);
            self.values[mirrored(y, self.h) * self.w + mirrored(x, self.w)]
        };
        let (above, below) = ([pixel(0, 0), pixel(0, 1)], [pixel(1, 0), pixel(1, 1)]);
        std::array::from_fn(|i| {
            let row = |pixels: [[f32; 3]; 2]| pixels[0][i] + fx * (pixels[1][i] - pixels[0][i]);
            row(above) + fy * (row(below) - row(above))
        })
    }

    fn seen(&self, pose: Pose) -> Frame {
        let samples = (pose.blur / 4.0).ceil().max(2.0) as usize;
        let (sin, cos) = pose.angle.sin_cos();
        let (middle_y, middle_x) = (self.h as f32 / 2.0 + pose.y, self.w as f32 / 2.0 + pose.x);
        let pixel = |i: usize| {
            let mut sum = [0.0; 3];
            for sample in 0..samples {
                let within = (sample as f32 + 0.5) / samples as f32 - 0.5;
                let y = ((i / W) as f32 + within - H as f32 / 2.0) * pose.reach;
                let x = ((i % W) as f32 + within * (1.0 + pose.blur) - W as f32 / 2.0) * pose.reach;
                let value = self.at(middle_y + cos * y - sin * x, middle_x + sin * y + cos * x);
                sum.iter_mut()
                    .zip(value)
                    .for_each(|(sum, value)| *sum += value / samples as f32);
            }
            sum
        };
        Frame((0..H * W).map(pixel).collect())
    }
}

impl Frame {
    fn grey(value: f32) -> Self {
        Self(vec![[value; 3]; H * W])
    }

    fn lit(&self, gain: f32, offset: f32) -> Self {
        let light = |value: f32| (gain * value + offset).clamp(0.0, 1.0);
        Self(self.0.iter().map(|pixel| pixel.map(light)).collect())
    }

    /// This frame where `first(row, column)` is true, the other elsewhere.
    fn beside(&self, other: &Self, first: impl Fn(f32, f32) -> bool) -> Self {
        let pixel = |i: usize| match first((i / W) as f32, (i % W) as f32) {
            true => self.0[i],
            false => other.0[i],
        };
        Self((0..H * W).map(pixel).collect())
    }

    fn mixed(&self, other: &Self, share: f32) -> Self {
        let pixels = self.0.iter().zip(&other.0);
        Self(
            pixels
                .map(|(a, b)| std::array::from_fn(|i| a[i] + share * (b[i] - a[i])))
                .collect(),
        )
    }

    fn mirrored(&self) -> Self {
        Self(
            self.0
                .chunks(W)
                .flat_map(|row| row.iter().rev().copied())
                .collect(),
        )
    }

    /// Adds noise whose standard deviation is in units of 1/255.
    fn noisy(&self, deviation: f32, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut noise = move || {
            let uniform: f32 = (0..12).map(|_| random.random_range(-0.5f32..0.5)).sum();
            deviation / 255.0 * uniform
        };
        Self(
            self.0
                .iter()
                .map(|pixel| pixel.map(|value| value + noise()))
                .collect(),
        )
    }

    /// The pyramid of the frame quantised to 8 bits.
    fn pyramid(&self) -> Pyramid {
        let byte = |value: &f32| (255.0 * value.clamp(0.0, 1.0)).round() / 255.0;
        let values = self.0.iter().flatten().map(byte).collect::<Vec<_>>();
        Pyramid::new(&Tensor::from_vec(values, (H, W, 3), &Device::Cpu).unwrap()).unwrap()
    }
}

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

/// Files from the folder beside the checkout, if all are there.
fn shared(names: &[&str]) -> Option<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let paths: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
    paths.iter().all(|path| path.exists()).then_some(paths)
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
        let wide = picture.seen(Pose {
            reach: 1.1,
            ..AHEAD
        });
        let close = picture.seen(Pose {
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
        table.cut(name("from black"), &Frame::grey(0.0), frame);

        table.none(name("grain"), &frame.noisy(10.0, 1), &frame.noisy(10.0, 2));
        for x in [30.0, 100.0, 200.0] {
            let panned = picture.seen(Pose { x, ..AHEAD });
            table.none(name(&format!("pan by {x}")), frame, &panned);
            let [first, second] = [0.0, x].map(|at| {
                picture.seen(Pose {
                    x: at,
                    blur: x,
                    ..AHEAD
                })
            });
            table.none(name(&format!("pan by {x}, blurred")), &first, &second);
        }
        let begun = picture.seen(Pose {
            x: 60.0,
            blur: 40.0,
            ..AHEAD
        });
        table.none(name("pan begins"), frame, &begun);
        let shaken = picture.seen(Pose {
            y: 30.0,
            x: -40.0,
            angle: 0.05,
            ..AHEAD
        });
        table.none(name("shaken"), frame, &shaken);
        table.none(
            name("zoom by 1.1"),
            frame,
            &picture.seen(Pose {
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
            let [one, two] = [first, second].map(|gain| frame.lit(gain, 0.0));
            table.neither(name(&format!("fade, {step}")), &one, &two);
        }
        let white = frame.mixed(&Frame::grey(1.0), 0.85);
        table.neither(name("flash"), frame, &white);
        table.neither(name("flash, overexposed"), frame, &frame.lit(1.0, 0.4));
        table.neither(name("light goes out"), frame, &frame.lit(0.2, 0.0));
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
    let Some(paths) = shared(&names) else {
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

#[cfg(feature = "plugin")]
#[test]
fn a_clip_has_no_cuts_but_to_another() {
    let (Some(clip), Some(pictures)) = (shared(&["car-detection.mp4"]), photographs()) else {
        eprintln!("left out: there is no clip");
        return;
    };
    let frames = clip::frames(&clip[0], 120, W as u32);
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
            assert!(
                !still(&frame.lit(1.0, 2.0 / 255.0), &frame),
                "{name}: light"
            );
            assert!(
                !still(&picture.seen(Pose { x: 0.3, ..AHEAD }), &frame),
                "{name}: a pan"
            );
            assert!(
                !still(
                    &picture.seen(Pose {
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

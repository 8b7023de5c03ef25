// SPDX-License-Identifier: MPL-2.0

//! Clips with exactly known motion: a camera moves over a picture, and an oval cut out of another one
//! moves in front of it.

use super::shared::load;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::path::Path;

/// Poses are given in pixels of a clip of this width, and are scaled for others.
const WIDTH: f64 = 640.0;

/// Supersampling in each direction, which smooths edges.
const SAMPLES: usize = 2;

/// A picture that is mirrored beyond its edges.
pub struct Picture {
    pub h: usize,
    pub w: usize,
    pub values: Vec<[f32; 3]>,
}

impl Picture {
    /// The picture in an image `[h, w, 3]`.
    pub fn new(image: &Tensor) -> Self {
        let (h, w, _) = image.dims3().unwrap();
        let values = image.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = values.as_chunks::<3>().0.to_vec();
        Self { h, w, values }
    }

    pub fn load(path: &Path) -> Self {
        Self::new(&load(path))
    }

    /// A synthetic picture for a seed: fractal noise, cut into bands of two brightnesses with sharp
    /// edges.
    pub fn made(seed: u32) -> Self {
        let (h, w) = (768, 1024);
        let value = |i: usize| {
            let (y, x) = ((i / w) as f64, (i % w) as f64);
            let octaves = (0..6).map(|octave| {
                let period = 160.0 * 0.5f64.powi(octave);
                0.5f64.powi(octave) * hills(seed + octave as u32, y / period, x / period)
            });
            let height: f64 = octaves.sum();
            let band = if height.rem_euclid(0.4) < 0.2 {
                0.15
            } else {
                0.0
            };
            let brightness = 0.45 + 0.35 * height + band;
            [brightness, 0.9 * brightness, 1.0 - brightness].map(|value| value as f32)
        };
        let values = (0..h * w).into_par_iter().map(value).collect();
        Self { h, w, values }
    }

    pub fn at(&self, y: i64, x: i64) -> [f32; 3] {
        let mirrored = |at: i64, side: usize| {
            let at = at.rem_euclid(2 * side as i64) as usize;
            at.min(2 * side - 1 - at)
        };
        self.values[mirrored(y, self.h) * self.w + mirrored(x, self.w)]
    }

    /// The value between pixels, by Catmull-Rom interpolation.
    pub fn sample(&self, [y, x]: [f64; 2]) -> [f64; 3] {
        let (wy, wx) = (catmull_rom(y - y.floor()), catmull_rom(x - x.floor()));
        let (y, x) = (y.floor() as i64 - 1, x.floor() as i64 - 1);
        let mut sum = [0.0; 3];
        for (i, wy) in (0..).zip(wy) {
            for (j, wx) in (0..).zip(wx) {
                for (sum, value) in sum.iter_mut().zip(self.at(y + i, x + j)) {
                    *sum += wy * wx * f64::from(value);
                }
            }
        }
        sum
    }
}

/// Value noise: pseudo-random values −1..1 at integers, interpolated smoothly.
fn hills(seed: u32, y: f64, x: f64) -> f64 {
    let corner = |dy: u32, dx: u32| {
        let (y, x) = (y as u32 + dy, x as u32 + dx);
        let mut hash = seed.wrapping_mul(0x9e37_79b9) ^ (y << 16) ^ x;
        for factor in [0x85eb_ca6b, 0xc2b2_ae35] {
            hash = (hash ^ (hash >> 15)).wrapping_mul(factor);
        }
        f64::from(hash ^ (hash >> 16)) / f64::from(u32::MAX) * 2.0 - 1.0
    };
    let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
    let (ty, tx) = (smooth(y.fract()), smooth(x.fract()));
    let row = |dy: u32| corner(dy, 0) + tx * (corner(dy, 1) - corner(dy, 0));
    row(0) + ty * (row(1) - row(0))
}

/// Catmull-Rom weights of four neighbours, of which the second and third are `t` and 1 − `t` away.
fn catmull_rom(t: f64) -> [f64; 4] {
    [
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ]
}

/// The pose of a picture in a frame: `[y, x]` of the frame, less `centre`, rotated by `angle`, divided
/// by `zoom` and plus `origin`, is the position in the picture.
#[derive(Clone, Copy)]
pub struct Pose {
    pub centre: [f64; 2],
    pub origin: [f64; 2],
    pub angle: f64,
    pub zoom: f64,
}

impl Pose {
    fn scaled(self, factor: f64) -> Self {
        Self {
            centre: self.centre.map(|at| factor * at),
            zoom: factor * self.zoom,
            ..self
        }
    }

    fn to_picture(self, [y, x]: [f64; 2]) -> [f64; 2] {
        let (y, x) = (
            (y - self.centre[0]) / self.zoom,
            (x - self.centre[1]) / self.zoom,
        );
        let (sin, cos) = self.angle.sin_cos();
        [
            self.origin[0] + cos * y - sin * x,
            self.origin[1] + sin * y + cos * x,
        ]
    }

    fn to_frame(self, [y, x]: [f64; 2]) -> [f64; 2] {
        let (y, x) = (y - self.origin[0], x - self.origin[1]);
        let (sin, cos) = self.angle.sin_cos();
        [
            self.centre[0] + self.zoom * (cos * y + sin * x),
            self.centre[1] + self.zoom * (-sin * y + cos * x),
        ]
    }
}

/// A clip of `h` by `w` pixels.
pub struct Clip {
    pub name: &'static str,
    pub h: usize,
    pub w: usize,
    background: Picture,
    foreground: Picture,
    /// The poses of background and foreground at a frame, for a width of [`WIDTH`].
    poses: fn(f64) -> [Pose; 2],
}

/// The true motion from one frame to another.
pub struct Truth {
    /// Horizontal and vertical, `[h, w]`.
    pub u: Vec<f32>,
    pub v: Vec<f32>,
    /// Whether the point of the scene is visible in the other frame.
    pub visible: Vec<bool>,
}

impl Clip {
    fn poses(&self, index: usize) -> [Pose; 2] {
        (self.poses)(index as f64).map(|pose| pose.scaled(self.w as f64 / WIDTH))
    }

    /// Whether a point of a frame shows the foreground, an oval around its pose's origin.
    fn in_front(pose: Pose, place: [f64; 2]) -> bool {
        let at = pose.to_picture(place);
        let [dy, dx] = [0, 1].map(|i| (at[i] - pose.origin[i]) / OVAL[i]);
        dy * dy + dx * dx < 1.0
    }

    /// Frame number `index`, `[h, w, 3]`, RGB 0..1.
    pub fn frame(&self, index: usize) -> Tensor {
        let [behind, front] = self.poses(index);
        let pixel = |i: usize| {
            let (y, x) = ((i / self.w) as f64, (i % self.w) as f64);
            let mut sum = [0.0; 3];
            for sample in 0..SAMPLES * SAMPLES {
                let within = |i: usize| (i as f64 + 0.5) / SAMPLES as f64 - 0.5;
                let place = [y + within(sample / SAMPLES), x + within(sample % SAMPLES)];
                let value = match Self::in_front(front, place) {
                    true => self.foreground.sample(front.to_picture(place)),
                    false => self.background.sample(behind.to_picture(place)),
                };
                for (sum, value) in sum.iter_mut().zip(value) {
                    *sum += value / (SAMPLES * SAMPLES) as f64;
                }
            }
            sum.map(|value| value.clamp(0.0, 1.0) as f32)
        };
        let pixels: Vec<[f32; 3]> = (0..self.h * self.w).into_par_iter().map(pixel).collect();
        Tensor::from_vec(pixels.concat(), (self.h, self.w, 3), &Device::Cpu).unwrap()
    }

    /// The motion of each pixel of frame `index` to frame `other`.
    pub fn truth(&self, index: usize, other: usize) -> Truth {
        let [behind, front] = self.poses(index);
        let [other_behind, other_front] = self.poses(other);
        let mut truth = Truth {
            u: Vec::new(),
            v: Vec::new(),
            visible: Vec::new(),
        };
        for y in 0..self.h {
            for x in 0..self.w {
                let place = [y as f64, x as f64];
                let in_front = Self::in_front(front, place);
                let there = match in_front {
                    true => other_front.to_frame(front.to_picture(place)),
                    false => other_behind.to_frame(behind.to_picture(place)),
                };
                let inside = (0.0..=(self.h - 1) as f64).contains(&there[0])
                    && (0.0..=(self.w - 1) as f64).contains(&there[1]);
                let visible = inside && Self::in_front(other_front, there) == in_front;
                truth.u.push((there[1] - x as f64) as f32);
                truth.v.push((there[0] - y as f64) as f32);
                truth.visible.push(visible);
            }
        }
        truth
    }
}

/// The vertical and horizontal semi-axes of the oval, in pixels of its picture.
const OVAL: [f64; 2] = [79.0, 102.0];

/// The clips that motion is measured on, of `h` by `w` pixels: a pan, a zoom and a rotation of the
/// camera, with movements of up to 20 pixels a frame at 640x360. `pictures` makes a background and
/// a foreground.
pub fn clips((h, w): (usize, usize), pictures: impl Fn() -> [Picture; 2]) -> Vec<Clip> {
    let clip = |name, poses| {
        let [background, foreground] = pictures();
        Clip {
            name,
            h,
            w,
            background,
            foreground,
            poses,
        }
    };
    vec![
        clip("pan", |t| {
            let camera = Pose {
                centre: [180.0, 320.0],
                origin: [380.0 - 4.0 * t, 330.0 + 12.0 * t],
                angle: 0.0,
                zoom: 1.0,
            };
            let oval = Pose {
                centre: [200.0 + 10.0 * (0.7 * t).sin(), 120.0 + 20.0 * t],
                origin: [200.0, 350.0],
                angle: 0.02 * t,
                zoom: 1.0,
            };
            [camera, oval]
        }),
        clip("zoom", |t| {
            let camera = Pose {
                centre: [180.0, 320.0],
                origin: [384.0, 512.0],
                angle: 0.0,
                zoom: 0.9 * 1.03f64.powf(t),
            };
            let oval = Pose {
                centre: [170.0, 500.0 - 18.0 * t],
                origin: [200.0, 350.0],
                angle: 0.0,
                zoom: 1.0,
            };
            [camera, oval]
        }),
        clip("rotation", |t| {
            let camera = Pose {
                centre: [180.0, 320.0],
                origin: [384.0, 512.0],
                angle: 0.054 * t,
                zoom: 1.0,
            };
            let oval = Pose {
                centre: [90.0 + 12.0 * t, 320.0 + 5.0 * t],
                origin: [200.0, 350.0],
                angle: -0.03 * t,
                zoom: 1.0 + 0.01 * t,
            };
            [camera, oval]
        }),
    ]
}

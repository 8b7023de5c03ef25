// SPDX-License-Identifier: MPL-2.0

//! Textures, and frames as a camera sees them.

use super::known_motion::Picture;
use candle_core::{Device, Tensor};
use gstgatys::stylizer::motion::pyramid::Pyramid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub const H: usize = 360;
pub const W: usize = 640;

/// A camera's position in pixels from the picture's centre, its scale `reach` in pixels of the picture
/// per pixel of the frame, and the distance `blur` that it moves during the exposure of a frame.
#[derive(Clone, Copy)]
pub struct Camera {
    pub y: f32,
    pub x: f32,
    pub angle: f32,
    pub reach: f32,
    pub blur: f32,
}

pub const AHEAD: Camera = Camera {
    y: 0.0,
    x: 0.0,
    angle: 0.0,
    reach: 1.0,
    blur: 0.0,
};

/// A frame of [`H`] by [`W`] pixels, RGB 0..1.
#[derive(Clone)]
pub struct Frame(pub Vec<[f32; 3]>);

impl Picture {
    /// Noise of seven octaves, with wavelengths from 256 pixels down to 4.
    pub fn texture(seed: u64) -> Self {
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

    /// The value between pixels, by linear interpolation.
    fn linear(&self, y: f32, x: f32) -> [f32; 3] {
        let (fy, fx) = (y - y.floor(), x - x.floor());
        let pixel = |dy: i64, dx: i64| self.at(y.floor() as i64 + dy, x.floor() as i64 + dx);
        let (above, below) = ([pixel(0, 0), pixel(0, 1)], [pixel(1, 0), pixel(1, 1)]);
        std::array::from_fn(|i| {
            let row = |pixels: [[f32; 3]; 2]| pixels[0][i] + fx * (pixels[1][i] - pixels[0][i]);
            row(above) + fy * (row(below) - row(above))
        })
    }

    pub fn seen(&self, camera: Camera) -> Frame {
        let samples = (camera.blur / 4.0).ceil().max(2.0) as usize;
        let (sin, cos) = camera.angle.sin_cos();
        let (middle_y, middle_x) = (
            self.h as f32 / 2.0 + camera.y,
            self.w as f32 / 2.0 + camera.x,
        );
        let pixel = |i: usize| {
            let mut sum = [0.0; 3];
            for sample in 0..samples {
                let within = (sample as f32 + 0.5) / samples as f32 - 0.5;
                let y = ((i / W) as f32 + within - H as f32 / 2.0) * camera.reach;
                let x =
                    ((i % W) as f32 + within * (1.0 + camera.blur) - W as f32 / 2.0) * camera.reach;
                let (y, x) = (middle_y + cos * y - sin * x, middle_x + sin * y + cos * x);
                let value = self.linear(y, x);
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
    pub fn grey(value: f32) -> Self {
        Self(vec![[value; 3]; H * W])
    }

    pub fn lit(&self, gain: f32, offset: f32) -> Self {
        let light = |value: f32| (gain * value + offset).clamp(0.0, 1.0);
        Self(self.0.iter().map(|pixel| pixel.map(light)).collect())
    }

    /// This frame where `first(row, column)` is true, the other elsewhere.
    pub fn beside(&self, other: &Self, first: impl Fn(f32, f32) -> bool) -> Self {
        let pixel = |i: usize| match first((i / W) as f32, (i % W) as f32) {
            true => self.0[i],
            false => other.0[i],
        };
        Self((0..H * W).map(pixel).collect())
    }

    pub fn mixed(&self, other: &Self, share: f32) -> Self {
        let pixels = self.0.iter().zip(&other.0);
        Self(
            pixels
                .map(|(a, b)| std::array::from_fn(|i| a[i] + share * (b[i] - a[i])))
                .collect(),
        )
    }

    pub fn mirrored(&self) -> Self {
        Self(
            self.0
                .chunks(W)
                .flat_map(|row| row.iter().rev().copied())
                .collect(),
        )
    }

    /// Adds noise whose standard deviation is in units of 1/255.
    pub fn noisy(&self, deviation: f32, seed: u64) -> Self {
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
    pub fn pyramid(&self) -> Pyramid {
        let byte = |value: &f32| (255.0 * value.clamp(0.0, 1.0)).round() / 255.0;
        let values = self.0.iter().flatten().map(byte).collect::<Vec<_>>();
        Pyramid::new(&Tensor::from_vec(values, (H, W, 3), &Device::Cpu).unwrap()).unwrap()
    }
}

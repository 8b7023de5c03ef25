// SPDX-License-Identifier: MPL-2.0

//! Vectors (also used as linear RGB colours), interpolation and noise.

use std::ops::{Add, Mul, Sub};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct V3(pub f32, pub f32, pub f32);

impl Add for V3 {
    type Output = V3;
    fn add(self, v: V3) -> V3 {
        V3(self.0 + v.0, self.1 + v.1, self.2 + v.2)
    }
}

impl Sub for V3 {
    type Output = V3;
    fn sub(self, v: V3) -> V3 {
        V3(self.0 - v.0, self.1 - v.1, self.2 - v.2)
    }
}

impl Mul for V3 {
    type Output = V3;
    fn mul(self, v: V3) -> V3 {
        V3(self.0 * v.0, self.1 * v.1, self.2 * v.2)
    }
}

impl Mul<f32> for V3 {
    type Output = V3;
    fn mul(self, k: f32) -> V3 {
        V3(self.0 * k, self.1 * k, self.2 * k)
    }
}

impl V3 {
    pub fn dot(self, v: V3) -> f32 {
        self.0 * v.0 + self.1 * v.1 + self.2 * v.2
    }

    pub fn unit(self) -> V3 {
        self * self.dot(self).sqrt().recip()
    }

    /// Linear interpolation from `self` at `k` = 0 to `v` at 1.
    pub fn mix(self, v: V3, k: f32) -> V3 {
        self + (v - self) * k
    }

    pub fn map(self, f: impl Fn(f32) -> f32) -> V3 {
        V3(f(self.0), f(self.1), f(self.2))
    }

    /// 0..1 to 8 bits.
    pub fn to_rgb8(self) -> [u8; 3] {
        [self.0, self.1, self.2].map(|c| (c * 255.0 + 0.5) as u8)
    }
}

pub fn mix(a: f32, b: f32, k: f32) -> f32 {
    a + (b - a) * k
}

/// 0 up to `from`, 1 beyond `to`, smooth in between; `from` may be larger than `to`.
pub fn smoothstep(from: f32, to: f32, x: f32) -> f32 {
    let k = ((x - from) / (to - from)).clamp(0.0, 1.0);
    k * k * (3.0 - 2.0 * k)
}

fn hash(x: i32, y: i32, seed: u32) -> u32 {
    let mut h = (x as u32).wrapping_mul(0x9e37_79b1)
        ^ (y as u32).wrapping_mul(0x85eb_ca77)
        ^ seed.wrapping_mul(0xc2b2_ae3d);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    h ^ (h >> 15)
}

/// A pseudo-random number in 0..1 for each point of the integer grid.
pub fn random(x: i32, y: i32, seed: u32) -> f32 {
    (hash(x, y, seed) >> 8) as f32 / (1 << 24) as f32
}

/// Gradient noise of about -1..1 with features of size 1.
pub fn noise(x: f32, y: f32) -> f32 {
    // Much faster than f32::floor, which calls the C library on plain x86-64.
    let floor = |v: f32| v as i32 - (v < 0.0) as i32;
    let (left, top) = (floor(x), floor(y));
    let (fx, fy) = (x - left as f32, y - top as f32);
    let corner = |i: i32, j: i32| {
        let h = hash(left + i, top + j, 0);
        let gradient = |bits: u32| bits as f32 / 32768.0 - 1.0;
        gradient(h & 0xffff) * (fx - i as f32) + gradient(h >> 16) * (fy - j as f32)
    };
    let fade = |k: f32| k * k * k * (k * (k * 6.0 - 15.0) + 10.0);
    let (kx, ky) = (fade(fx), fade(fy));
    let upper = mix(corner(0, 0), corner(1, 0), kx);
    let lower = mix(corner(0, 1), corner(1, 1), kx);
    1.5 * mix(upper, lower, ky)
}

/// Calls `f` with each octave's coordinates and weight. Octaves are rotated so that their grids do not line up.
fn octaves(mut x: f32, mut y: f32, count: u32, mut f: impl FnMut(f32, f32, f32)) {
    let mut weight = 0.5;
    for _ in 0..count {
        f(x, y, weight);
        (x, y) = (1.6 * x + 1.2 * y + 17.3, 1.6 * y - 1.2 * x + 9.1);
        weight *= 0.5;
    }
}

/// Fractal noise, about -0.7..0.7.
pub fn fbm(x: f32, y: f32, count: u32) -> f32 {
    let mut sum = 0.0;
    octaves(x, y, count, |x, y, weight| sum += weight * noise(x, y));
    sum
}

/// Fractal noise with sharp crests, 0..1, as in mountain ranges.
pub fn ridges(x: f32, y: f32, count: u32) -> f32 {
    let (mut sum, mut crest) = (0.0, 1.0);
    octaves(x, y, count, |x, y, weight| {
        crest *= (1.0 - noise(x, y).abs()).powi(2);
        sum += weight * crest;
        crest = (crest * 1.6).min(1.0);
    });
    sum
}

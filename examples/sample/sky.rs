// SPDX-License-Identifier: MPL-2.0

//! The evening sky, its light, and haze.

use crate::math::{V3, fbm, noise, smoothstep};

/// A unit vector towards the sun: low on the right, slightly behind the camera.
pub const SUN: V3 = V3(0.901, 0.335, -0.275);
const SUNLIGHT: V3 = V3(3.0, 1.95, 0.98);
const SKYLIGHT: V3 = V3(0.18, 0.25, 0.41);

/// A ray with `d.2 == 1`, so that its parameter is the depth.
#[derive(Clone, Copy)]
pub struct Ray {
    pub o: V3,
    pub d: V3,
}

impl Ray {
    pub fn at(&self, depth: f32) -> V3 {
        self.o + self.d * depth
    }
}

/// A surface lit by sun and sky; `sunshine` is 0 in the shade and 1 in the sun.
pub fn lit(albedo: V3, normal: V3, sunshine: f32) -> V3 {
    let sun = normal.dot(SUN).max(0.0) * sunshine;
    albedo * (SUNLIGHT * sun + SKYLIGHT * (0.62 + 0.38 * normal.1))
}

/// Aerial perspective: bluish to the left, golden towards the sun.
pub fn haze(colour: V3, d: V3, depth: f32) -> V3 {
    let air = V3(0.42, 0.50, 0.68).mix(V3(1.00, 0.66, 0.40), smoothstep(-0.3, 0.6, d.0));
    let k = 1.0 - (-depth / 6000.0).exp();
    colour.mix(air, k)
}

pub fn sky(d: V3, time: f32) -> V3 {
    let up = d.1.max(0.0);
    let towards_sun = smoothstep(-0.5, 0.6, d.0);
    let horizon = V3(0.95, 0.62, 0.46).mix(V3(1.75, 1.08, 0.50), towards_sun);
    let middle = V3(0.40, 0.53, 0.72).mix(V3(0.72, 0.66, 0.62), towards_sun);
    let clear = middle
        .mix(V3(0.10, 0.24, 0.52), smoothstep(0.05, 0.34, up))
        .mix(horizon, (-up * 13.0).exp());
    let (cover, light) = clouds(d, time);
    let shade = V3(0.34, 0.33, 0.44).mix(V3(0.62, 0.42, 0.38), towards_sun);
    let bright = V3(1.75, 1.22, 0.82).mix(V3(2.5, 1.75, 0.95), towards_sun);
    let cloud = shade
        .mix(bright, light)
        .mix(horizon, 0.75 * (-up * 16.0).exp());
    clear.mix(cloud, cover)
}

/// The opacity of the clouds along `d` and their brightness in the sun: a layer seen from below in perspective.
fn clouds(d: V3, time: f32) -> (f32, f32) {
    let distance = 1.0 / (d.1.max(0.0) + 0.07);
    let (x, z) = (d.0 * distance + 0.035 * time, distance);
    let density = |x: f32, z: f32| {
        let (wx, wz) = (noise(x * 0.9, z * 0.9), noise(x * 0.9 + 31.0, z * 0.9));
        let heaps = fbm(
            0.75 * x + 0.25 * wx + 3.7,
            0.80 * z + 0.25 * wz + 0.02 * time,
            7,
        );
        heaps + 0.07
    };
    let here = density(x, z);
    let sunward = density(x + 0.17, z - 0.12);
    let light = (0.42 + 3.4 * (here - sunward) - 0.6 * (here - 0.2)).clamp(0.0, 1.0);
    let veil = 0.35 * smoothstep(0.0, 0.5, fbm(0.25 * x - 7.0, 1.1 * z + 0.4 * x, 5));
    let heap = smoothstep(0.0, 0.17, here);
    (heap.max(veil), if heap > veil { light } else { 0.75 })
}

// SPDX-License-Identifier: MPL-2.0

//! The scene, a lakeside in the evening, and the camera that renders it.

use crate::{
    cards::{Card, foam, plants_and_boats},
    math::{V3, noise, smoothstep},
    sky::{Ray, SUN, haze, sky},
    solids::{Building, shadowed, village},
    terrain::Terrain,
};
use rayon::prelude::*;

pub const WIDTH: usize = 384;
pub const HEIGHT: usize = 216;
/// In pixels: about 50 degrees from left to right.
pub const FOCAL: f32 = 412.0;
const HORIZON: f32 = 120.0;
const EYE: f32 = 5.0;
/// Sample positions within a pixel: a rotated grid.
const SAMPLES: [(f32, f32); 4] = [
    (0.125, 0.625),
    (0.375, 0.125),
    (0.625, 0.875),
    (0.875, 0.375),
];

pub struct Scene {
    terrain: Terrain,
    village: Vec<Building>,
    cards: Vec<Card>,
}

impl Scene {
    pub fn new() -> Self {
        let village = village();
        let terrain =
            Terrain::new(|place| place.2 < 250.0 && place.2 > 30.0 && shadowed(&village, place));
        Scene {
            terrain,
            village,
            cards: plants_and_boats(),
        }
    }

    /// The picture at `time` seconds, as packed 8-bit RGB. The camera glides to the right and turns a little.
    pub fn render(&self, time: f32) -> Vec<u8> {
        let eye = V3(0.75 * (time - 1.0), EYE + 0.04 * (1.3 * time).sin(), 0.0);
        let turn = 0.012 * (time - 1.0);
        (0..WIDTH * HEIGHT)
            .into_par_iter()
            .with_min_len(WIDTH)
            .flat_map_iter(|i| {
                let (column, row) = ((i % WIDTH) as f32, (i / WIDTH) as f32);
                let sum = SAMPLES.iter().fold(V3::default(), |sum, (dx, dy)| {
                    let x = (column + dx - WIDTH as f32 / 2.0) / FOCAL + turn;
                    let y = (HORIZON - row - dy) / FOCAL;
                    sum + tone_map(self.radiance(
                        Ray {
                            o: eye,
                            d: V3(x, y, 1.0),
                        },
                        time,
                    ))
                });
                sum.map(|c| c / SAMPLES.len() as f32).to_rgb8()
            })
            .collect()
    }

    fn radiance(&self, ray: Ray, time: f32) -> V3 {
        let water = if ray.d.1 < 0.0 {
            -ray.o.1 / ray.d.1
        } else {
            f32::MAX
        };
        match self.nearest(&ray, water, time) {
            Some((depth, colour)) => haze(colour, ray.d, depth),
            None if water < f32::MAX => haze(self.water(&ray, water, time), ray.d, 0.6 * water),
            None => sky(ray.d, time),
        }
    }

    /// The depth and colour of the nearest object before `limit`.
    fn nearest(&self, ray: &Ray, limit: f32, time: f32) -> Option<(f32, V3)> {
        let mut nearest = self.terrain.hit(ray, limit);
        let limit = nearest.map_or(limit, |(depth, _)| depth);
        let card = self.cards.iter().find_map(|card| card.hit(ray, time));
        if card.is_some_and(|(depth, _)| depth < limit) {
            nearest = card;
        }
        let limit = nearest.map_or(limit, |(depth, _)| depth);
        let solid = self
            .village
            .iter()
            .flat_map(|building| building.hits(ray))
            .min_by(|(a, _), (b, _)| a.depth.total_cmp(&b.depth))
            .filter(|(hit, _)| hit.depth < limit);
        match solid {
            Some((hit, solid)) => Some((
                hit.depth,
                solid.colour(&hit, |place| shadowed(&self.village, place)),
            )),
            None => nearest,
        }
    }

    /// The colour of the lake at `depth` along `ray`: the reflection in its ripples, and its own green at steep angles.
    fn water(&self, ray: &Ray, depth: f32, time: f32) -> V3 {
        let place = V3(1.0, 0.0, 1.0) * ray.at(depth);
        let (sx, sz) = ripples(place.0, place.2, time);
        let normal = V3(-sx, 1.0, -sz).unit();
        let view = ray.d.unit();
        let facing = -view.dot(normal);
        let mirrored = view - normal * (2.0 * view.dot(normal));
        let mirrored = V3(mirrored.0, mirrored.1.max(0.004), mirrored.2.max(0.05));
        let d = mirrored * mirrored.2.recip();
        let seen = Ray { o: place, d };
        let colour = match self.nearest(&seen, f32::MAX, time) {
            Some((depth, colour)) => haze(colour, d, depth),
            None => sky(d, time),
        };
        let fresnel = 0.03 + 0.97 * (1.0 - facing.clamp(0.0, 1.0)).powi(5);
        let deep = V3(0.018, 0.060, 0.066).mix(V3(0.05, 0.085, 0.06), smoothstep(0.0, 0.3, sz));
        let glint = V3(2.6, 1.5, 0.6) * mirrored.dot(SUN).max(0.0).powi(14);
        let surface = deep.mix(colour, (0.12 + 0.88 * fresnel).min(0.93)) + glint;
        surface.mix(V3(1.35, 1.15, 0.95), foam(place.0, place.2, time).min(0.9))
    }
}

/// The water's slope along x and z: crossing trains of ripples, calmer in the distance and in lanes.
fn ripples(x: f32, z: f32, time: f32) -> (f32, f32) {
    let calm = 1.0 / (1.0 + z / 42.0)
        * (0.35 + 0.65 * smoothstep(-0.35, 0.3, noise(x / 26.0 + 0.1 * time, z / 9.0)));
    let surface = |x: f32, z: f32| {
        let swell = noise(0.30 * x + 0.35 * time, 0.75 * z - 0.55 * time);
        let chop = noise(0.85 * x - 0.9 * time, 1.9 * z - 0.8 * time + 0.3 * x);
        let fine = noise(2.3 * x + 1.4 * time, 4.6 * z + 1.1 * time - 0.7 * x);
        0.105 * swell + 0.036 * chop + 0.009 * fine
    };
    let (step, here) = (0.04, surface(x, z));
    let slope = |there: f32| calm * (there - here) / step;
    (slope(surface(x + step, z)), slope(surface(x, z + step)))
}

/// Exposure, filmic tone mapping (Narkowicz' fit of the ACES curve), and the display's gamma.
fn tone_map(light: V3) -> V3 {
    light.map(|c| {
        let c = 0.86 * c;
        let c = c * (2.51 * c + 0.03) / (c * (2.43 * c + 0.59) + 0.14);
        c.clamp(0.0, 1.0).powf(1.0 / 2.2)
    })
}

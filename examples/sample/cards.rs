// SPDX-License-Identifier: MPL-2.0

//! Trees, reeds and boats: billboards that are cut out along their outlines and move with the wind.

use crate::{
    math::{V3, fbm, mix, noise, random, smoothstep},
    scene::FOCAL,
    sky::{Ray, SUN, lit},
    terrain::height,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

enum Kind {
    /// A broad crown, made of discs (x, y, radius).
    Leafy(Vec<V3>),
    Conifer,
    Reeds,
    Boat,
}

/// The large boat: height of the mast in metres, speed in m/s, and its position at the start.
const BOAT_SIZE: f32 = 12.0;
const BOAT_SPEED: f32 = 4.2;
const BOAT_START: f32 = -0.6;
const BOAT_DEPTH: f32 = 58.0;

pub struct Card {
    foot: V3,
    size: f32,
    /// Half its width as a fraction of `size`.
    half_width: f32,
    kind: Kind,
    hue: f32,
    /// To the right, in m/s.
    speed: f32,
}

impl Card {
    fn tree(rng: &mut StdRng, foot: V3, size: f32, discs: usize) -> Self {
        let conifer = discs == 0;
        let crown = (0..discs)
            .map(|i| {
                let around = i as f32 * 2.4;
                let out = (i as f32 / discs as f32).sqrt();
                let x = 0.32 * out * around.cos() + rng.random_range(-0.04..0.04);
                let y = 0.64 + 0.27 * out * around.sin() + rng.random_range(-0.04..0.04);
                V3(x, y, rng.random_range(0.09..0.15))
            })
            .collect();
        let kind = if conifer {
            Kind::Conifer
        } else {
            Kind::Leafy(crown)
        };
        let half_width = if conifer { 0.25 } else { 0.5 };
        Card {
            foot,
            size,
            half_width,
            kind,
            hue: rng.random(),
            speed: 0.0,
        }
    }

    pub fn hit(&self, ray: &Ray, time: f32) -> Option<(f32, V3)> {
        let depth = self.foot.2 - ray.o.2;
        if depth < 0.01 {
            return None;
        }
        let x = (ray.o.0 + ray.d.0 * depth - self.foot.0 - self.speed * time) / self.size;
        if x.abs() > self.half_width {
            return None;
        }
        let y = (ray.o.1 + ray.d.1 * depth - self.foot.1) / self.size;
        if !(-0.1..1.05).contains(&y) {
            return None;
        }
        let gust = (1.9 * time + 5.0 * self.hue).sin() + 0.5 * (4.7 * time + 9.0 * self.hue).sin();
        let colour = match &self.kind {
            Kind::Leafy(crown) => self.leafy(crown, x - 0.006 * gust * y * y, y, time),
            Kind::Conifer => self.conifer(x - 0.004 * gust * y * y, y),
            Kind::Reeds => self.reeds(x, y, time),
            Kind::Boat => boat(x, y, time),
        };
        colour.map(|colour| (depth, colour))
    }

    fn leafy(&self, crown: &[V3], x: f32, y: f32, time: f32) -> Option<V3> {
        // Leaves smaller than a few pixels would flicker.
        let pixels = self.size * FOCAL / self.foot.2;
        let leaf = (pixels / 3.2).min(95.0);
        let shift = 40.0 * self.hue;
        let flutter = 0.0025 * noise(x * 9.0 + 1.3 * time, y * 9.0 - 2.1 * time);
        let (lx, ly) = (x + flutter, y + 0.6 * flutter);
        let clump = noise(lx * 15.0 + shift, ly * 15.0) + 0.6 * noise(lx * 34.0, ly * 34.0 + shift);
        let single = noise(lx * leaf, ly * leaf + shift)
            + 0.6 * noise(lx * leaf * 1.9 + shift, ly * leaf * 1.9);
        let (mut cover, mut light) = (f32::MIN, 0.0);
        for disc in crown {
            let (qx, qy) = ((lx - disc.0) / disc.2, (ly - disc.1) / disc.2);
            let inside = 1.0 - qx * qx - qy * qy;
            if inside > cover {
                cover = inside;
                let normal = V3(qx, qy, -inside.max(0.0).sqrt()).unit();
                light = normal.dot(SUN);
            }
        }
        if cover + 0.75 * clump + 0.55 * single > 0.30 {
            let depth = 0.5 + 1.1 * (lx * SUN.0 + (ly - 0.62) * 0.7);
            let light = (0.38 + 0.34 * light + 0.25 * clump + 0.38 * single + 0.45 * (depth - 0.5))
                .clamp(0.02, 1.0);
            let autumn = smoothstep(0.45, 1.0, self.hue + 0.22 * clump);
            let green = V3(0.070, 0.120, 0.022).mix(V3(0.24, 0.105, 0.014), autumn);
            let bright = V3(2.3, 1.75, 0.75);
            return Some(
                green * 0.24 + green * bright * (light * light * 2.0) + V3(0.006, 0.010, 0.016),
            );
        }
        let bend = 0.02 * (y * 7.0 + shift).sin();
        let stem = 0.030 - 0.026 * y;
        let fork = 0.30 * (y - 0.36).max(0.0);
        let branches = [bend, bend + fork, bend - fork * 0.8];
        branches.iter().enumerate().find_map(|(i, at)| {
            let thick = if i == 0 { stem } else { 0.6 * stem };
            let q = (x - at) / thick;
            (q.abs() < 1.0 && y < 0.75 && (i == 0 || y > 0.36)).then(|| {
                let bark =
                    0.7 + 0.6 * noise(x * 160.0, y * 28.0) + 0.3 * noise(x * 330.0, y * 90.0);
                let normal = V3(q, 0.0, -(1.0 - q * q).sqrt());
                lit(
                    V3(0.13, 0.095, 0.065) * bark.max(0.15),
                    normal,
                    smoothstep(0.55, 0.2, y),
                )
            })
        })
    }

    fn conifer(&self, x: f32, y: f32) -> Option<V3> {
        let shift = 50.0 * self.hue;
        let droop = y + 0.35 * x.abs();
        let bough = (droop * 13.0 + shift + 0.8 * noise(x * 12.0 + shift, y * 9.0)).fract();
        let reach =
            0.21 * (1.02 - y).max(0.0).powf(0.85) * (1.0 - 0.45 * bough) * smoothstep(0.03, 0.1, y);
        let needles = noise(x * 60.0 + shift, y * 45.0);
        let q = x / reach.max(0.004);
        if q.abs() + 0.35 * needles > 1.0 {
            return (x.abs() < 0.015 && (0.0..0.12).contains(&y)).then_some(V3(0.05, 0.035, 0.025));
        }
        let light = (0.35 + 0.5 * q + 0.35 * needles - 0.35 * (1.0 - bough)).clamp(0.0, 1.0);
        Some(V3(0.010, 0.022, 0.018).mix(V3(0.22, 0.21, 0.060), light * light))
    }

    fn reeds(&self, x: f32, y: f32, time: f32) -> Option<V3> {
        let (x, y) = (x * self.size, y * self.size);
        (0..4).find_map(|layer| {
            let sway = 0.05 * y * y * noise(0.5 * x + 0.9 * time, layer as f32 * 7.3);
            let pitch = 0.075 + 0.012 * layer as f32;
            let cell = ((x - sway) / pitch).floor() as i32;
            (cell - 2..=cell + 2).find_map(|i| {
                let r = |k: u32| random(i, layer, k);
                let tall = self.size
                    * (0.45 + 0.5 * r(1))
                    * smoothstep(
                        1.0,
                        0.55,
                        (i as f32 * pitch / (self.half_width * self.size)).abs(),
                    );
                let at = (i as f32 + r(2)) * pitch + (r(3) - 0.5) * 0.28 * y * y / self.size + sway;
                let plume = layer == 0 && r(5) < 0.3 && (0.0..0.22).contains(&(tall - y));
                let thick = if plume {
                    0.035
                } else {
                    0.024 * (1.0 - y / tall).max(0.0).sqrt()
                };
                (y < tall && (x - at).abs() < thick).then(|| {
                    let hue = V3(0.12, 0.16, 0.03).mix(V3(0.42, 0.30, 0.10), r(4));
                    let hue = if plume { V3(0.16, 0.075, 0.035) } else { hue };
                    let side = smoothstep(-1.0, 1.0, (x - at) / thick);
                    hue * mix(0.35, 2.1, side * smoothstep(0.0, 1.3, y))
                        * (1.0 - 0.2 * layer as f32)
                })
            })
        })
    }
}

/// A sloop under sail, its mast of height 1, heading right.
fn boat(x: f32, y: f32, time: f32) -> Option<V3> {
    let heel = 0.045 + 0.018 * (2.2 * time).sin();
    let (x, y) = (x + heel * y, y - heel * x - 0.006 * (2.9 * time).sin());
    let deck = 0.082 + 0.10 * x * x + 0.03 * x;
    let (stern, bow) = (-0.33 - 0.25 * y, 0.34 + 0.45 * y);
    if (-0.1..deck).contains(&y) && x > stern && x < bow {
        let plank = 1.0 + 0.15 * noise(x * 14.0, y * 160.0);
        let paint = match y / deck {
            ..0.22 => V3(0.20, 0.030, 0.018),
            0.70..0.78 => V3(0.70, 0.62, 0.45),
            0.92.. => V3(0.28, 0.15, 0.06),
            _ => V3(0.035, 0.075, 0.14),
        };
        let normal = V3(0.25 + 0.8 * x, 0.25 + 0.5 * (y / deck - 0.6), -0.85).unit();
        return Some(
            lit(paint * plank, normal, 1.0) + V3(0.10, 0.08, 0.05) * smoothstep(0.5, 0.9, y / deck),
        );
    }
    sail(x, y, (0.045, 0.975), (-0.315, 0.175), (0.035, 0.155), 0.05)
        .or_else(|| sail(x, y, (0.075, 0.86), (0.10, 0.17), (0.385, 0.145), 0.035))
        .or_else(|| {
            let mast = (x - 0.05).abs() < 0.0075 && (deck..1.0).contains(&y);
            let boom = (y - 0.16 - 0.02 * x).abs() < 0.007 && (-0.33..0.05).contains(&x);
            let stay = (x - 0.05 - (0.98 - y) * 0.412).abs() < 0.002 && (0.13..0.98).contains(&y);
            let cabin = (-0.16..0.12).contains(&x) && (deck..deck + 0.045 - 0.1 * x).contains(&y);
            let light = smoothstep(0.042, 0.058, x);
            let porthole = (x * 14.0).fract().abs() < 0.5 && y > deck + 0.012;
            if mast || boom {
                Some(V3(0.10, 0.06, 0.035).mix(V3(0.9, 0.6, 0.32), light))
            } else if stay {
                Some(V3(0.15, 0.14, 0.14))
            } else if cabin {
                Some(if porthole {
                    V3(0.06, 0.08, 0.1)
                } else {
                    V3(0.85, 0.66, 0.45)
                })
            } else {
                sailor(x, y - deck)
            }
        })
}

fn sailor(x: f32, y: f32) -> Option<V3> {
    let disc =
        |cx: f32, cy: f32, w: f32, h: f32| ((x - cx) / w).powi(2) + ((y - cy) / h).powi(2) < 1.0;
    if disc(-0.235, 0.078, 0.011, 0.013) {
        return Some(V3(0.75, 0.42, 0.25));
    }
    let light = mix(0.5, 1.5, smoothstep(-0.26, -0.21, x));
    disc(-0.235, 0.03, 0.022, 0.042).then(|| V3(0.62, 0.10, 0.04) * light)
}

/// A triangle of cloth whose side from `head` to `clew` is curved outwards by `belly`.
fn sail(
    x: f32,
    y: f32,
    head: (f32, f32),
    clew: (f32, f32),
    tack: (f32, f32),
    belly: f32,
) -> Option<V3> {
    let edge = |a: (f32, f32), b: (f32, f32)| (b.0 - a.0) * (y - a.1) - (b.1 - a.1) * (x - a.0);
    let area = (clew.0 - head.0) * (tack.1 - head.1) - (clew.1 - head.1) * (tack.0 - head.0);
    let to_head = edge(clew, tack) / area;
    let to_tack = edge(head, clew) / area + belly * 2.0 * (to_head * (1.0 - to_head)).max(0.0);
    let to_clew = edge(tack, head) / area;
    if to_head < 0.0 || to_tack < 0.0 || to_clew < 0.0 {
        return None;
    }
    let along = to_tack / (to_tack + to_clew).max(1e-4);
    let seam = smoothstep(
        0.0,
        0.09,
        ((to_head * 9.0 + 0.6 * along).fract() - 0.5).abs(),
    );
    let fold = 1.0 + 0.3 * fbm(x * 16.0 + y * 5.0, y * 5.0, 3);
    let round = 0.36 + 0.80 * smoothstep(0.0, 0.75, along) - 0.25 * smoothstep(0.75, 1.0, along);
    Some(
        V3(1.95, 1.50, 1.02).mix(V3(1.2, 0.62, 0.3), 0.25 * to_tack)
            * (round * fold * (0.76 + 0.24 * seam)),
    )
}

/// How much foam is on the water at (`x`, `z`): the boat's bow wave and wake.
pub fn foam(x: f32, z: f32, time: f32) -> f32 {
    let behind = BOAT_START + BOAT_SPEED * time + 0.36 * BOAT_SIZE - x;
    if !(0.0..26.0).contains(&behind) {
        return 0.0;
    }
    let aside = (z - BOAT_DEPTH).abs();
    let arm = (-((aside - 0.16 * behind) / 0.5).powi(2)).exp() * (-behind / 9.0).exp();
    let churned =
        (-(aside / 1.2).powi(2)).exp() * smoothstep(6.0, 9.0, behind) * (-behind / 16.0).exp();
    (arm + churned) * smoothstep(-0.25, 0.5, fbm(x * 1.4, z * 1.1, 4) + 0.2)
}

/// Everything on cards, near to far.
pub fn plants_and_boats() -> Vec<Card> {
    let mut rng = StdRng::seed_from_u64(11);
    let mut cards = vec![
        Card::tree(&mut rng, V3(5.7, 2.3, 15.0), 9.4, 46),
        Card {
            foot: V3(-9.3, -0.3, 20.5),
            size: 3.0,
            half_width: 1.3,
            kind: Kind::Reeds,
            hue: 0.2,
            speed: 0.0,
        },
        Card {
            foot: V3(8.4, -0.2, 18.5),
            size: 3.5,
            half_width: 1.25,
            kind: Kind::Reeds,
            hue: 0.4,
            speed: 0.0,
        },
        Card {
            foot: V3(5.2, 0.0, 20.0),
            size: 2.3,
            half_width: 1.0,
            kind: Kind::Reeds,
            hue: 0.7,
            speed: 0.0,
        },
    ];
    for (x, z, size, speed) in [
        (BOAT_START, BOAT_DEPTH, BOAT_SIZE, BOAT_SPEED),
        (95.0, 420.0, 13.0, -3.0),
        (62.0, 520.0, 12.0, 2.5),
    ] {
        cards.push(Card {
            foot: V3(x, 0.0, z),
            size,
            half_width: 0.62,
            kind: Kind::Boat,
            hue: 0.0,
            speed,
        });
    }
    for _ in 0..95 {
        let (x, z) = (
            rng.random_range(-85.0..16.0),
            rng.random_range(92.0..215.0f32),
        );
        let y = height(x, z);
        let size = rng.random_range(6.0..11.5);
        let discs = if rng.random_bool(0.35) { 0 } else { 14 };
        let near_houses = (98.0..118.0).contains(&z) && (-50.0..4.0).contains(&x);
        if y > 0.8 && !near_houses {
            cards.push(Card::tree(&mut rng, V3(x, y - 0.4, z), size, discs));
        }
    }
    cards.sort_by(|a, b| a.foot.2.total_cmp(&b.foot.2));
    cards
}

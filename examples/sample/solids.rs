// SPDX-License-Identifier: MPL-2.0

//! Buildings on the shore: convex solids with plaster, tiles and boards.

use crate::{
    math::{V3, fbm, noise, random, smoothstep},
    sky::{Ray, SUN, lit},
    terrain::height,
};

enum Material {
    /// Plaster of this colour, with windows.
    Wall(V3),
    Tiles(V3),
    Boards,
}

/// Solids within a bounding sphere of `radius` around `foot`.
pub struct Building {
    foot: V3,
    radius: f32,
    parts: Vec<Solid>,
}

/// The part of space where n·p <= d for each of `planes`, turned by `turn` (cosine, sine) and standing at `foot`.
pub struct Solid {
    foot: V3,
    turn: (f32, f32),
    planes: Vec<(V3, f32)>,
    material: Material,
    seed: u32,
}

pub struct Hit {
    pub depth: f32,
    local: V3,
    normal: V3,
}

impl Building {
    /// The parts that `ray` hits; its direction may have any length.
    pub fn hits(&self, ray: &Ray) -> impl Iterator<Item = (Hit, &Solid)> {
        let to_foot = self.foot - ray.o;
        let nearest = ray.d * (to_foot.dot(ray.d) / ray.d.dot(ray.d)) - to_foot;
        let near = nearest.dot(nearest) < self.radius * self.radius;
        let parts = if near { &self.parts[..] } else { &[] };
        parts.iter().filter_map(|part| Some((part.hit(ray)?, part)))
    }
}

impl Solid {
    fn new(foot: V3, yaw: f32, planes: Vec<(V3, f32)>, material: Material) -> Self {
        let seed = (foot.0 * 71.0 + foot.2 * 13.0) as i32 as u32;
        Solid {
            foot,
            turn: (yaw.cos(), yaw.sin()),
            planes,
            material,
            seed,
        }
    }

    fn to_local(&self, v: V3) -> V3 {
        let (c, s) = self.turn;
        V3(c * v.0 + s * v.2, v.1, c * v.2 - s * v.0)
    }

    fn to_world(&self, v: V3) -> V3 {
        let (c, s) = self.turn;
        V3(c * v.0 - s * v.2, v.1, c * v.2 + s * v.0)
    }

    fn hit(&self, ray: &Ray) -> Option<Hit> {
        let (o, d) = (self.to_local(ray.o - self.foot), self.to_local(ray.d));
        let (mut enter, mut leave, mut normal) = (0.0, f32::MAX, None);
        for &(n, offset) in &self.planes {
            let (speed, ahead) = (n.dot(d), offset - n.dot(o));
            if speed < 0.0 && ahead / speed > enter {
                (enter, normal) = (ahead / speed, Some(n));
            } else if speed > 0.0 {
                leave = leave.min(ahead / speed);
            } else if speed == 0.0 && ahead < 0.0 {
                return None;
            }
        }
        let normal = normal.filter(|_| enter < leave)?;
        Some(Hit {
            depth: enter,
            local: o + d * enter,
            normal,
        })
    }

    pub fn colour(&self, hit: &Hit, shadowed: impl Fn(V3) -> bool) -> V3 {
        let (p, n) = (hit.local, hit.normal);
        let across = if n.0.abs() > n.2.abs() { p.2 } else { p.0 };
        let place = self.foot + self.to_world(p + n * 0.02);
        let sunshine = if shadowed(place) { 0.0 } else { 1.0 };
        let normal = self.to_world(n);
        match self.material {
            Material::Wall(colour) if n.1 == 0.0 => {
                let stain = 1.0 + 0.5 * fbm(across * 0.9, p.1 * 0.5 + self.foot.0, 4)
                    - 0.35 * smoothstep(1.2, 0.0, p.1);
                match window(across, p.1, self.seed + (n.0 > n.2) as u32) {
                    Some(Pane::Lit(k)) => V3(3.2, 1.75, 0.55) * (0.55 + 0.45 * k),
                    Some(Pane::Dark) => V3(0.05, 0.07, 0.10),
                    Some(Pane::Shutter) => lit(V3(0.09, 0.16, 0.14), normal, sunshine),
                    None => lit(colour * stain, normal, sunshine),
                }
            }
            Material::Wall(colour) => lit(colour, normal, sunshine),
            Material::Tiles(colour) => {
                let up = p.1 * 2.6;
                let course = up.floor();
                let tile = (across * 2.2 + 0.5 * course).floor();
                let shade = 0.65 + 0.7 * random(tile as i32, course as i32, self.seed);
                let gap = 0.55 + 0.45 * smoothstep(0.0, 0.35, up - course);
                let moss = smoothstep(0.1, 0.5, fbm(across * 0.5 + self.foot.0, p.1 * 0.6, 3));
                lit(
                    (colour * (shade * gap)).mix(V3(0.10, 0.10, 0.05), 0.6 * moss),
                    normal,
                    sunshine,
                )
            }
            Material::Boards => {
                let (along, board) = if n.1 > 0.5 {
                    (p.2, p.0 * 4.0)
                } else {
                    (p.1, across * 4.0)
                };
                let grain = 0.75
                    + 0.4 * random(board.floor() as i32, 3, self.seed)
                    + 0.4 * noise(board * 3.0, along * 0.7);
                let gap = smoothstep(0.0, 0.12, (board - board.floor()).min(board.ceil() - board));
                lit(
                    V3(0.20, 0.13, 0.085) * (grain * (0.3 + 0.7 * gap)),
                    normal,
                    sunshine,
                )
            }
        }
    }
}

enum Pane {
    Lit(f32),
    Dark,
    Shutter,
}

/// The part of a window, if any, at a point of a wall.
fn window(across: f32, up: f32, seed: u32) -> Option<Pane> {
    let (column, storey) = ((across / 2.3).floor(), ((up - 0.7) / 2.7).floor());
    let (x, y) = (across / 2.3 - column - 0.5, (up - 0.7) / 2.7 - storey);
    if storey < 0.0 || !(0.12..0.66).contains(&y) || x.abs() > 0.36 {
        return None;
    }
    let light = random(column as i32, storey as i32, seed);
    match x.abs() {
        ..0.2 if x.abs() < 0.018 || (y - 0.42).abs() < 0.015 => None,
        ..0.2 if light < 0.42 => Some(Pane::Lit(y + light)),
        ..0.2 => Some(Pane::Dark),
        ..0.22 => None,
        _ => Some(Pane::Shutter),
    }
}

fn block(half: V3, bottom: f32, top: f32) -> Vec<(V3, f32)> {
    vec![
        (V3(1.0, 0.0, 0.0), half.0),
        (V3(-1.0, 0.0, 0.0), half.0),
        (V3(0.0, 0.0, 1.0), half.2),
        (V3(0.0, 0.0, -1.0), half.2),
        (V3(0.0, 1.0, 0.0), top),
        (V3(0.0, -1.0, 0.0), -bottom),
    ]
}

/// The plane through (0, `top`, 0) that falls towards `side` and reaches height `eaves` at distance `reach`.
fn slope(side: V3, reach: f32, eaves: f32, top: f32) -> (V3, f32) {
    let n = (side * (top - eaves) + V3(0.0, reach, 0.0)).unit();
    (n, n.1 * top)
}

/// Walls of `half` width and depth and `eaves` height, a gabled roof on top, and a chimney.
fn house(foot: V3, yaw: f32, half: (f32, f32), eaves: f32, wall: V3, tiles: V3) -> Building {
    let (w, l) = half;
    let ridge = eaves + 0.85 * l;
    let solid = |planes, material| Solid::new(foot, yaw, planes, material);
    let roof = |side: f32| {
        let (n, d) = slope(V3(0.0, 0.0, side), l, eaves, ridge);
        let mut sheet = block(V3(w + 0.45, 0.0, l + 0.5), 0.0, ridge);
        sheet.extend([(n, d), (n * -1.0, 0.22 - d), (V3(0.0, 0.0, -side), 0.0)]);
        solid(sheet, Material::Tiles(tiles))
    };
    let mut gable = block(V3(w, 0.0, l), eaves - 0.2, ridge);
    gable.extend([1.0, -1.0].map(|side| slope(V3(0.0, 0.0, side), l, eaves - 0.1, ridge - 0.25)));
    let chimney = foot + V3(yaw.cos(), 0.0, yaw.sin()) * (0.5 * w);
    let stack = block(V3(0.4, 0.0, 0.4), eaves, ridge + 0.8);
    let parts = vec![
        solid(block(V3(w, 0.0, l), -4.0, eaves), Material::Wall(wall)),
        solid(gable, Material::Boards),
        roof(1.0),
        roof(-1.0),
        Solid::new(chimney, yaw, stack, Material::Tiles(V3(0.22, 0.11, 0.08))),
    ];
    Building {
        foot,
        radius: w.hypot(l).max(3.0) + ridge,
        parts,
    }
}

fn church(foot: V3, yaw: f32) -> Building {
    let white = V3(0.62, 0.58, 0.50);
    let mut church = house(
        foot + V3(6.5, 0.0, 2.0),
        yaw,
        (7.0, 3.6),
        6.5,
        white,
        V3(0.32, 0.12, 0.07),
    );
    let mut spire = block(V3(2.5, 0.0, 2.5), 14.3, 23.5);
    let sides = [
        V3(1.0, 0.0, 0.0),
        V3(-1.0, 0.0, 0.0),
        V3(0.0, 0.0, 1.0),
        V3(0.0, 0.0, -1.0),
    ];
    spire.extend(sides.map(|side| slope(side, 2.5, 14.3, 23.5)));
    let tower = block(V3(2.1, 0.0, 2.1), -4.0, 14.5);
    church
        .parts
        .push(Solid::new(foot, yaw, tower, Material::Wall(white)));
    church.parts.push(Solid::new(
        foot,
        yaw,
        spire,
        Material::Tiles(V3(0.13, 0.15, 0.19)),
    ));
    church.radius = 26.0;
    church
}

fn jetty() -> Building {
    let foot = V3(-15.5, 0.0, 37.0);
    let deck = block(V3(8.5, 0.0, 1.0), 0.75, 0.95);
    let mut parts = vec![Solid::new(foot, 0.0, deck, Material::Boards)];
    for i in 0..8 {
        for side in [-0.9, 0.9] {
            let post = block(V3(0.13, 0.0, 0.13), -1.0, 1.5 + 0.5 * random(i, 0, 9));
            let place = foot + V3(8.2 - 2.3 * i as f32, 0.0, side);
            parts.push(Solid::new(place, 0.3, post, Material::Boards));
        }
    }
    Building {
        foot,
        radius: 9.5,
        parts,
    }
}

pub fn village() -> Vec<Building> {
    let ochre = V3(0.58, 0.40, 0.19);
    let white = V3(0.66, 0.61, 0.52);
    let rose = V3(0.55, 0.29, 0.21);
    let blue = V3(0.30, 0.38, 0.42);
    let red = V3(0.40, 0.13, 0.06);
    let brown = V3(0.26, 0.13, 0.08);
    // x, z, yaw, half width, half depth, eaves, walls, tiles
    let houses = [
        (-46.0, 101.0, 0.35, 5.0, 3.6, 5.8, white, red),
        (-36.5, 97.0, 1.25, 4.6, 3.4, 5.6, ochre, brown),
        (-27.0, 96.0, 0.30, 4.4, 3.4, 6.0, rose, red),
        (-8.0, 98.0, 1.10, 4.4, 3.2, 5.6, white, red),
        (1.5, 107.0, 0.40, 4.0, 3.2, 3.4, blue, brown),
        (-55.0, 122.0, 1.20, 5.2, 3.8, 5.8, ochre, red),
        (-42.0, 124.0, 0.45, 5.0, 3.6, 5.8, blue, red),
        (-12.5, 122.0, 0.35, 4.8, 3.6, 5.8, ochre, red),
        (-1.0, 131.0, 1.20, 4.8, 3.6, 5.6, rose, brown),
        (-63.0, 150.0, 0.40, 5.5, 4.0, 5.8, rose, brown),
        (-35.0, 152.0, 1.15, 5.0, 3.8, 5.8, white, red),
        (-16.0, 155.0, 0.50, 5.0, 3.8, 5.8, white, brown),
        (9.0, 150.0, 0.45, 4.6, 3.6, 3.4, ochre, red),
    ];
    let on_land = |x: f32, z: f32| V3(x, height(x, z) + 0.3, z);
    houses
        .into_iter()
        .map(|(x, z, yaw, w, l, eaves, wall, tiles)| {
            house(on_land(x, z), yaw, (w, l), eaves, wall, tiles)
        })
        .chain([church(on_land(-26.0, 121.0), 0.3), jetty()])
        .collect()
}

/// Whether one of `buildings` stands between `place` and the sun.
pub fn shadowed(buildings: &[Building], place: V3) -> bool {
    let ray = Ray { o: place, d: SUN };
    buildings
        .iter()
        .any(|building| building.hits(&ray).next().is_some())
}

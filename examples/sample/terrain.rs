// SPDX-License-Identifier: MPL-2.0

//! Banks, hills and mountains, computed and lit once on a grid that matches the resolution of the picture at every
//! distance.

use crate::{
    math::{V3, fbm, noise, ridges, smoothstep},
    sky::{Ray, SUN, lit},
};
use rayon::prelude::*;

const COLUMNS: usize = 1280;
const ROWS: usize = 1100;
/// Columns are equidistant in x / z, rows in ln z.
const SLANT: f32 = 0.75;
const NEAR: f32 = 10.0;
const FAR: f32 = 7000.0;
/// The number of rows that a ray above the ground advances at once.
const STRIDE: usize = 4;

pub struct Terrain {
    heights: Vec<f32>,
    colours: Vec<V3>,
    depths: Vec<f32>,
    /// The greatest height / depth from each row on: a ray that is above it and rises faster hits nothing.
    steepest: Vec<f32>,
    /// The greatest height of each row.
    tops: Vec<f32>,
}

/// The height above the lake.
pub fn height(x: f32, z: f32) -> f32 {
    let slant = x / z;
    let shore = 84.0 + 9.0 * noise(x / 30.0, 0.3) + 1.2 * (x + 2.0 + (x + 2.0).hypot(7.0));
    let inland = z - shore;
    let village = if inland > 0.0 {
        17.0 - 17.0 * (-inland / 75.0).exp()
    } else {
        0.3 * inland
    };
    let bank =
        4.2 * smoothstep(1.0, 7.5, x + 0.7 * noise(z * 0.5, 2.0)) * smoothstep(26.0, 18.5, z);
    let hills = 105.0
        * smoothstep(150.0, 620.0, inland)
        * smoothstep(0.16, -0.38, slant + 0.1 * noise(x / 160.0, z / 260.0))
        * (1.0 + 0.8 * fbm(x / 150.0, z / 150.0, 4));
    let headland = 170.0
        * smoothstep(0.0, 0.5, slant + 0.07 * noise(x / 300.0, 4.0))
        * smoothstep(900.0, 1500.0, z)
        * (1.0 + 0.9 * fbm(x / 330.0, z / 330.0 + 5.0, 5));
    let range = 1150.0
        * smoothstep(1700.0, 4500.0, z)
        * (ridges(x / 2900.0 + 0.35, z / 2900.0 + 0.9, 8) - 0.16)
        * smoothstep(0.75, -0.2, slant).max(0.45);
    let land = village.max(-3.0) + bank * 1.25 + hills + headland + range;
    land + canopy(x, z, land) + 0.14 * fbm(x * 0.6, z * 0.6, 3) * smoothstep(0.0, 2.0, land)
}

/// The height of the trees, 0 where there are none.
fn canopy(x: f32, z: f32, land: f32) -> f32 {
    let wood = woods(x, z, land);
    if wood <= 0.0 {
        return 0.0;
    }
    let size = 7.0 + z / 250.0;
    wood * size
        * (0.8 + 0.9 * noise(x / size, z / size) + 0.4 * noise(x / size * 2.3, z / size * 2.3))
}

fn woods(x: f32, z: f32, land: f32) -> f32 {
    let patches = fbm(x / 170.0 + 8.0, z / 170.0, 3);
    smoothstep(-0.12, 0.02, patches)
        * smoothstep(170.0, 260.0, z)
        * smoothstep(360.0, 200.0, land)
        * smoothstep(1.0, 6.0, land)
}

fn albedo(x: f32, z: f32, y: f32, normal: V3) -> V3 {
    // About the same size in the picture at every distance.
    let grain = fbm(70.0 * x / z, 70.0 * z.ln(), 4);
    let broad = fbm(x / 60.0, z / 60.0 + 40.0, 3);
    let grass = V3(0.10, 0.15, 0.030).mix(
        V3(0.30, 0.25, 0.075),
        (0.5 + 1.3 * broad + 1.3 * grain).clamp(0.0, 1.0),
    );
    let leaves = V3(0.020, 0.050, 0.018).mix(
        V3(0.13, 0.11, 0.025),
        (0.35 + 0.7 * broad + 1.0 * grain).clamp(0.0, 1.0),
    );
    let rock = V3(0.20, 0.175, 0.155) * (1.0 + 1.1 * grain + 0.5 * noise(y / 14.0, x / 90.0));
    let stones = V3(0.30, 0.27, 0.22) * (1.0 + 1.5 * grain);
    let snow = V3(0.82, 0.85, 0.92);
    let steep = smoothstep(0.86, 0.70, normal.1 + 0.12 * grain);
    let bare = smoothstep(260.0, 420.0, y + 160.0 * broad + 90.0 * grain);
    let snowy = smoothstep(430.0, 560.0, y + 200.0 * grain + 120.0 * broad)
        * smoothstep(0.62, 0.80, normal.1 + 0.2 * grain);
    grass
        .mix(leaves, woods(x, z, y))
        .mix(rock, bare.max(steep * smoothstep(60.0, 160.0, y)))
        .mix(snow, snowy)
        .mix(stones, smoothstep(1.0, 0.4, y + 0.4 * grain))
}

impl Terrain {
    /// `shadowed` tells whether a building hides the sun from a point.
    pub fn new(shadowed: impl Fn(V3) -> bool + Sync) -> Self {
        let depths: Vec<f32> = (0..ROWS)
            .map(|row| NEAR * (FAR / NEAR).powf(row as f32 / (ROWS - 1) as f32))
            .collect();
        let places = |row: usize| {
            let z = depths[row];
            (0..COLUMNS).map(move |column| (slant(column) * z, z))
        };
        let heights: Vec<f32> = (0..ROWS)
            .into_par_iter()
            .flat_map_iter(|row| places(row).map(|(x, z)| height(x, z)))
            .collect();
        let tops: Vec<f32> = heights
            .chunks(COLUMNS)
            .map(|row| row.iter().copied().fold(f32::MIN, f32::max))
            .collect();
        let mut steepest: Vec<f32> = tops.iter().zip(&depths).map(|(top, z)| top / z).collect();
        for row in (1..ROWS).rev() {
            steepest[row - 1] = steepest[row - 1].max(steepest[row]);
        }
        let mut terrain = Terrain {
            heights,
            colours: Vec::new(),
            depths: depths.clone(),
            steepest,
            tops,
        };
        terrain.colours = (0..ROWS)
            .into_par_iter()
            .flat_map_iter(|row| places(row).map(|(x, z)| terrain.colour(x, z, &shadowed)))
            .collect();
        terrain
    }

    fn colour(&self, x: f32, z: f32, shadowed: impl Fn(V3) -> bool) -> V3 {
        let y = height(x, z);
        if y < -1.0 {
            return V3::default();
        }
        let step = 0.0025 * z;
        let normal = V3(y - height(x + step, z), step, y - height(x, z + step)).unit();
        let foot = V3(x, y, z);
        let mut sunshine = if shadowed(foot) { 0.0 } else { 1.0f32 };
        let mut way = 0.01 * z;
        while sunshine > 0.0 && way < 0.6 * z {
            let p = foot + SUN * way;
            sunshine = sunshine.min(1.0 + (p.1 - self.height_at(p.0, p.2)) / (0.06 * way) - 0.5);
            way *= 1.13;
        }
        lit(albedo(x, z, y, normal), normal, sunshine.clamp(0.0, 1.0))
    }

    fn height_at(&self, x: f32, z: f32) -> f32 {
        let row = (z / NEAR).ln() / (FAR / NEAR).ln() * (ROWS - 1) as f32;
        if row < 0.0 {
            return f32::MIN;
        }
        let (column, k) = split(x / z);
        let row = &self.heights[(row as usize).min(ROWS - 1) * COLUMNS..];
        row[column] + (row[column + 1] - row[column]) * k
    }

    /// The depth along `ray` at which it meets land before `limit`, and the land's colour.
    pub fn hit(&self, ray: &Ray, limit: f32) -> Option<(f32, V3)> {
        let above = |row: usize| {
            let z = self.depths[row];
            let p = ray.at(z - ray.o.2);
            if p.1 > self.tops[row] {
                return p.1 - self.tops[row];
            }
            let (column, k) = split(p.0 / z);
            let h = &self.heights[row * COLUMNS + column..][..2];
            p.1 - (h[0] + (h[1] - h[0]) * k)
        };
        let first = self.depths.partition_point(|&z| z <= ray.o.2);
        let last = self.depths.partition_point(|&z| z < ray.o.2 + limit);
        let mut row = first;
        while row < last {
            if ray.d.1 > self.steepest[row]
                && ray.at(self.depths[row] - ray.o.2).1 > self.steepest[row] * self.depths[row]
            {
                return None;
            }
            if above(row) < 0.0 {
                let row = (row.saturating_sub(STRIDE - 1).max(first)..row)
                    .find(|&row| above(row) < 0.0)
                    .unwrap_or(row);
                return Some(self.surface(ray, row, first, above));
            }
            row += STRIDE;
        }
        None
    }

    /// Interpolates between `row`, where `ray` is below the ground, and the row before.
    fn surface(
        &self,
        ray: &Ray,
        row: usize,
        first: usize,
        above: impl Fn(usize) -> f32,
    ) -> (f32, V3) {
        let before = row.saturating_sub(1).max(first);
        let (a, b) = (above(before), above(row));
        let k = if a > b { a / (a - b) } else { 1.0 };
        let z = self.depths[before] + (self.depths[row] - self.depths[before]) * k;
        let (column, kx) = split(ray.at(z - ray.o.2).0 / z);
        let at = |row: usize| {
            let c = &self.colours[row * COLUMNS + column..][..2];
            c[0].mix(c[1], kx)
        };
        (z - ray.o.2, at(before).mix(at(row), k))
    }
}

fn slant(column: usize) -> f32 {
    (column as f32 / (COLUMNS - 1) as f32 * 2.0 - 1.0) * SLANT
}

fn split(slant: f32) -> (usize, f32) {
    let column =
        ((slant / SLANT + 1.0) * 0.5 * (COLUMNS - 1) as f32).clamp(0.0, COLUMNS as f32 - 1.01);
    let whole = column as usize;
    (whole, column - whole as f32)
}

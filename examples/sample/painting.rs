// SPDX-License-Identifier: MPL-2.0

//! An oil painting of a bay in the evening, made of thousands of brush strokes: the sample style image.

use crate::math::{V3, fbm, mix, noise, ridges, smoothstep};
use image::{RgbImage, imageops};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

pub const WIDTH: usize = 512;
pub const HEIGHT: usize = 384;
/// The canvas has this many times the image's resolution, and is scaled down at the end, which smooths the bristles' edges.
const SUPERSAMPLING: usize = 2;

// The palette; colours are sRGB in all of this file.
const MIDNIGHT: V3 = V3(0.045, 0.065, 0.17);
const ULTRAMARINE: V3 = V3(0.08, 0.16, 0.46);
const COBALT: V3 = V3(0.14, 0.33, 0.66);
const CERULEAN: V3 = V3(0.36, 0.60, 0.76);
const TEAL: V3 = V3(0.05, 0.37, 0.41);
const SEAFOAM: V3 = V3(0.55, 0.76, 0.69);
const OLIVE: V3 = V3(0.25, 0.30, 0.10);
const OCHRE: V3 = V3(0.80, 0.56, 0.14);
const YELLOW: V3 = V3(0.97, 0.82, 0.29);
const CREAM: V3 = V3(0.98, 0.94, 0.72);
const ORANGE: V3 = V3(0.90, 0.41, 0.09);
const RED: V3 = V3(0.69, 0.14, 0.08);
const UMBER: V3 = V3(0.15, 0.085, 0.075);

/// What a point of the composition shows. Coordinates are in units of the picture's height, with y downwards.
#[derive(Clone, Copy, PartialEq)]
enum Motif {
    Sky,
    Sun,
    FarHills,
    NearHills,
    Sea,
    Field,
    Trunk,
    Foliage,
    Hull,
    Sail,
}

const SUN: (f32, f32) = (0.93, 0.335);
const SUN_RADIUS: f32 = 0.075;
const HORIZON: f32 = 0.585;
/// Whirls of the sky: x, y, radius, strength.
const WHIRLS: [[f32; 4]; 5] = [
    [0.93, 0.335, 0.20, 0.55],
    [0.56, 0.24, 0.19, -0.19],
    [1.24, 0.12, 0.16, -0.20],
    [0.70, 0.47, 0.10, -0.10],
    [0.66, 0.05, 0.13, 0.14],
];
/// Crowns of the tree: x, y, radius.
const CROWNS: [[f32; 3]; 7] = [
    [0.17, 0.23, 0.115],
    [0.31, 0.19, 0.085],
    [0.05, 0.31, 0.085],
    [0.27, 0.32, 0.075],
    [0.09, 0.13, 0.080],
    [0.36, 0.28, 0.050],
    [0.21, 0.09, 0.070],
];
/// Boats: x, waterline, size.
const BOATS: [[f32; 3]; 3] = [
    [0.62, 0.745, 0.17],
    [1.16, 0.675, 0.095],
    [0.43, 0.650, 0.07],
];

fn motif(x: f32, y: f32) -> Motif {
    let trunk = 0.155 + 0.055 * (y - 0.25) + 0.02 * (y * 11.0).sin();
    let thick = 0.013 + 0.028 * smoothstep(0.3, 0.95, y) + 0.05 * smoothstep(0.86, 0.97, y);
    let branch = 0.155 + 0.85 * (0.50 - y);
    let crown =
        |c: &[f32; 3]| (x - c[0]).hypot(y - c[1]) + 0.13 * fbm(x * 11.0, y * 11.0, 3) < c[2];
    if CROWNS.iter().any(crown) {
        return Motif::Foliage;
    }
    if (0.1..0.95).contains(&y) && (x - trunk).abs() < thick
        || (0.28..0.50).contains(&y) && (x - branch).abs() < 0.012
    {
        return Motif::Trunk;
    }
    for [cx, waterline, size] in BOATS {
        let (bx, by) = ((x - cx) / size, (waterline - y) / size);
        if (0.0..(0.17 + 0.45 * bx * bx).min(0.3)).contains(&by) && bx.abs() < 0.42 + 0.6 * by {
            return Motif::Hull;
        }
        if (0.34..1.5).contains(&by)
            && bx > -0.42 * (1.5 - by) / 1.16
            && bx < 0.10 + 0.2 * (1.5 - by) * (by - 0.34)
        {
            return Motif::Sail;
        }
    }
    let shore = 0.775 + 0.11 * smoothstep(0.0, 1.3, x) - 0.07 * smoothstep(0.35, 0.0, x)
        + 0.02 * (x * 8.0).sin();
    if y > shore {
        return Motif::Field;
    }
    if y > HORIZON {
        return Motif::Sea;
    }
    if HORIZON - y
        < 0.19 * (0.35 + ridges(x * 0.9 + 3.1, 0.4, 3)) * smoothstep(0.62, 1.34, x) + 0.015
    {
        return Motif::NearHills;
    }
    if HORIZON - y < 0.06 + 0.11 * fbm(x * 2.3 + 1.7, 7.7, 3) + 0.07 * smoothstep(0.8, 0.1, x) {
        return Motif::FarHills;
    }
    if (x - SUN.0).hypot(y - SUN.1) < SUN_RADIUS {
        return Motif::Sun;
    }
    Motif::Sky
}

/// A stream function: strokes follow its contour lines.
fn stream(motif: Motif, x: f32, y: f32) -> f32 {
    match motif {
        Motif::Sun => 0.8 * y - 0.6 * x + 3.0 * (x - SUN.0).powi(2),
        Motif::Sky => {
            let wind =
                1.5 * y + 0.35 * (2.6 * x + 0.5).sin() * (1.0 - y) + 0.16 * noise(x * 2.2, y * 2.2);
            WHIRLS.iter().fold(wind, |sum, [cx, cy, radius, strength]| {
                let r2 = ((x - cx).powi(2) + (y - cy).powi(2)) / (radius * radius);
                sum + strength * (-r2).exp() + 0.25 * strength / (1.0 + r2)
            })
        }
        Motif::FarHills => y + 0.15 * noise(x * 3.0 + 5.0, y * 3.0),
        Motif::NearHills => y + 0.35 * x + 0.16 * noise(x * 5.0, y * 4.0),
        Motif::Sea => y + 0.012 * (x * 26.0 + 40.0 * y).sin() + 0.022 * noise(x * 5.0, y * 9.0),
        Motif::Field => y - 0.45 * x + 0.5 * x * x * (1.3 - y) + 0.08 * noise(x * 4.0, y * 4.0),
        Motif::Trunk => x - 0.05 * y + 0.02 * (y * 14.0).sin(),
        Motif::Foliage => CROWNS.iter().fold(
            0.5 * y + 0.3 * x + 0.07 * noise(x * 12.0, y * 12.0),
            |sum, c| {
                let r2 = ((x - c[0]).powi(2) + (y - c[1]).powi(2)) / (c[2] * c[2]);
                sum + 0.13 * (-r2).exp()
            },
        ),
        Motif::Hull => y,
        Motif::Sail => x + 0.2 * y,
    }
}

/// The direction of the contour line at a point.
fn current(motif: Motif, x: f32, y: f32) -> (f32, f32) {
    let (e, here) = (2e-3, stream(motif, x, y));
    unit(
        stream(motif, x, y + e) - here,
        here - stream(motif, x + e, y),
    )
}

fn unit(x: f32, y: f32) -> (f32, f32) {
    let length = x.hypot(y).max(1e-9);
    (x / length, y / length)
}

/// The direction of the outline near (`x`, `y`), if one is within `reach`.
fn outline(x: f32, y: f32, reach: f32) -> Option<(f32, f32)> {
    let behind = |x: f32, y: f32| match motif(x, y) {
        Motif::Sun => Motif::Sky,
        other => other,
    };
    let here = behind(x, y);
    let (mut away, mut others) = ((0.0, 0.0), 0);
    for i in 0..16 {
        let (s, c) = (i as f32 * std::f32::consts::TAU / 16.0).sin_cos();
        if behind(x + reach * c, y + reach * s) != here {
            away = (away.0 + c, away.1 + s);
            others += 1;
        }
    }
    (others > 2 && others < 14).then(|| unit(-away.1, away.0))
}

/// A colour for a stroke at a point; `detail` goes from 0 for the underpainting to 1 for the highlights.
fn pigment(motif: Motif, x: f32, y: f32, detail: f32, rng: &mut StdRng) -> V3 {
    let lane = match motif {
        Motif::Foliage => 1.6 * noise(x * 13.0 + 3.0, y * 13.0) + 3.0 * (0.2 - y),
        _ => (stream(motif, x, y) * 13.0).sin(),
    };
    let glow = (-((x - SUN.0).hypot(y - SUN.1) - SUN_RADIUS).max(0.0) / 0.16).exp();
    let path = smoothstep(
        0.06 + 0.25 * (y - HORIZON).max(0.0),
        0.0,
        (x - SUN.0 + 0.03 * (y * 60.0).sin()).abs(),
    );
    let chance = rng.random::<f32>();
    let choices: &[V3] = match motif {
        Motif::Sun if detail > 0.6 => &[CREAM, YELLOW, CREAM],
        Motif::Sun => &[YELLOW, OCHRE, ORANGE],
        Motif::Sky if chance < 1.15 * glow => match lane {
            ..-0.3 => &[ORANGE, OCHRE, OCHRE, TEAL],
            _ => &[YELLOW, OCHRE, CREAM, YELLOW, SEAFOAM],
        },
        Motif::Sky => match lane + 0.35 * (detail - 0.5) {
            ..-0.55 => &[MIDNIGHT, ULTRAMARINE, ULTRAMARINE],
            -0.55..0.1 => &[ULTRAMARINE, COBALT, COBALT, TEAL],
            0.1..0.72 => &[COBALT, CERULEAN, CERULEAN, TEAL],
            _ => &[SEAFOAM, CERULEAN, CREAM, YELLOW],
        },
        Motif::FarHills => &[COBALT, CERULEAN, TEAL, ULTRAMARINE, SEAFOAM],
        Motif::NearHills if lane > 0.5 => &[TEAL, OCHRE, OLIVE, ORANGE],
        Motif::NearHills => &[ULTRAMARINE, MIDNIGHT, TEAL, ULTRAMARINE],
        Motif::Sea if chance < 0.85 * path => &[YELLOW, OCHRE, ORANGE, CREAM],
        Motif::Sea if lane > 0.55 => &[SEAFOAM, CERULEAN, TEAL],
        Motif::Sea => &[TEAL, TEAL, ULTRAMARINE, COBALT, MIDNIGHT],
        Motif::Field if chance < 0.12 * detail => &[RED, ORANGE, CREAM],
        Motif::Field if lane > 0.15 => &[OCHRE, YELLOW, OCHRE, ORANGE],
        Motif::Field => &[OLIVE, OLIVE, TEAL, UMBER, OCHRE],
        Motif::Trunk => &[UMBER, MIDNIGHT, UMBER, ULTRAMARINE, OCHRE],
        Motif::Foliage if lane > 0.25 => &[ORANGE, OCHRE, YELLOW, ORANGE],
        Motif::Foliage if lane > -0.35 => &[RED, ORANGE, RED, OCHRE],
        Motif::Foliage => &[OLIVE, UMBER, TEAL, MIDNIGHT, RED],
        Motif::Hull => &[RED, RED, UMBER, ORANGE],
        Motif::Sail => &[CREAM, OCHRE, CREAM, YELLOW],
    };
    let colour = choices.choose(rng).copied().unwrap_or(COBALT);
    let neighbour = choices.choose(rng).copied().unwrap_or(COBALT);
    let mut jitter = || rng.random_range(-0.045..0.045f32);
    colour.mix(neighbour, 0.18) * mix(0.72, 1.04, detail) + V3(jitter(), jitter(), jitter())
}

struct Canvas {
    width: usize,
    height: usize,
    colours: Vec<V3>,
    /// The thickness of the paint.
    relief: Vec<f32>,
}

/// A brush stroke along `path`, in canvas pixels.
struct Stroke {
    path: Vec<(f32, f32)>,
    radius: f32,
    colour: V3,
    /// The colour left on the brush from the previous stroke, which shows in some of the bristles.
    left_over: V3,
    seed: f32,
}

impl Stroke {
    /// The position of a pixel along (0..1) and across (-1..1) the stroke, if it is covered.
    fn locate(&self, x: f32, y: f32) -> Option<(f32, f32)> {
        let mut nearest = (f32::MAX, 0.0, 0.0);
        for (i, leg) in self.path.windows(2).enumerate() {
            let (ax, ay) = leg[0];
            let (dx, dy) = (leg[1].0 - ax, leg[1].1 - ay);
            let k = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
            let (ex, ey) = (x - ax - k * dx, y - ay - k * dy);
            let distance = ex * ex + ey * ey;
            if distance < nearest.0 {
                nearest = (distance, i as f32 + k, dx * ey - dy * ex);
            }
        }
        let along = nearest.1 / (self.path.len() - 1) as f32;
        let taper = smoothstep(-0.06, 0.13, along) * smoothstep(1.05, 0.55, along);
        let across = nearest.0.sqrt() / (self.radius * (0.15 + 0.85 * taper.sqrt()));
        (across < 1.0).then(|| (along, across.copysign(nearest.2)))
    }

    /// Opacity, colour and thickness of the paint at that position.
    fn paint(&self, along: f32, across: f32) -> (f32, V3, f32) {
        let length = 8.0 * self.path.len() as f32;
        let hair = across * self.radius * 0.42;
        let bristle = noise(hair + self.seed, along * length / 90.0)
            + 0.5 * noise(hair * 2.1, along * length / 45.0 + self.seed);
        let dryness = 1.3 * smoothstep(0.45, 1.05, along) + 0.7 * across.abs().powi(6);
        let opacity =
            smoothstep(-0.25, 0.15, bristle + 1.0 - dryness) * smoothstep(1.0, 0.86, across.abs());
        let mixed = smoothstep(
            0.05,
            0.5,
            noise(across * 2.3 + self.seed, self.seed + along * 1.5),
        );
        let colour = self.colour.mix(self.left_over, 0.6 * mixed) * (1.0 + 0.20 * bristle);
        let rim = smoothstep(0.55, 0.85, across.abs()) * smoothstep(1.0, 0.85, across.abs());
        let dab = smoothstep(0.2, 0.05, along);
        let thickness = 0.9 + 0.75 * bristle + 0.6 * rim + 0.5 * dab - 0.5 * along;
        (opacity, colour, thickness * self.radius.sqrt())
    }
}

impl Canvas {
    fn apply(&mut self, stroke: &Stroke) {
        let bounds = |values: &mut dyn Iterator<Item = f32>, size: usize| {
            let (low, high) = values.fold((f32::MAX, f32::MIN), |(low, high), v| {
                (low.min(v), high.max(v))
            });
            let clamp = |v: f32| v.clamp(0.0, size as f32) as usize;
            clamp(low - stroke.radius)..clamp(high + stroke.radius + 1.0)
        };
        let columns = bounds(&mut stroke.path.iter().map(|p| p.0), self.width);
        for y in bounds(&mut stroke.path.iter().map(|p| p.1), self.height) {
            for x in columns.clone() {
                let Some((along, across)) = stroke.locate(x as f32, y as f32) else {
                    continue;
                };
                let (opacity, colour, thickness) = stroke.paint(along, across);
                let i = y * self.width + x;
                self.colours[i] = self.colours[i].mix(colour, opacity);
                self.relief[i] = mix(self.relief[i], 0.35 * self.relief[i] + thickness, opacity);
            }
        }
    }

    /// The painting lit from the upper left, which shows the relief of the paint.
    fn lit(&self) -> RgbImage {
        let relief = |x: usize, y: usize| {
            self.relief[y.min(self.height - 1) * self.width + x.min(self.width - 1)]
        };
        RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let (x, y) = (x as usize, y as usize);
            let slope_x = relief(x + 1, y) - relief(x.saturating_sub(1), y);
            let slope_y = relief(x, y + 1) - relief(x, y.saturating_sub(1));
            let facing = 0.5 * (slope_x + 1.3 * slope_y);
            let shade = 1.0 + 0.26 * facing.clamp(-1.6, 1.6);
            let gloss = 0.10 * smoothstep(0.7, 1.8, facing);
            let colour = self.colours[y * self.width + x] * shade;
            image::Rgb((colour + V3(gloss, gloss, gloss)).to_rgb8())
        })
    }
}

/// Follows `direction` from (`x`, `y`), in picture units, for `length` canvas pixels in steps of 8.
fn trace(
    x: f32,
    y: f32,
    length: f32,
    scale: f32,
    direction: impl Fn(f32, f32) -> Option<(f32, f32)>,
) -> Vec<(f32, f32)> {
    const STEP: f32 = 8.0;
    let (mut x, mut y, mut before) = (x, y, (0.0, 0.0));
    let mut path = vec![(x * scale, y * scale)];
    for _ in 0..(length / STEP) as usize {
        let Some(d) = direction(x, y) else { break };
        let d = if d.0 * before.0 + d.1 * before.1 < 0.0 {
            (-d.0, -d.1)
        } else {
            d
        };
        before = d;
        (x, y) = (x + d.0 * STEP / scale, y + d.1 * STEP / scale);
        path.push((x * scale, y * scale));
    }
    path
}

/// The `i`-th point of the low-discrepancy sequence R2 (Roberts 2018) in the unit square.
fn spread(i: usize) -> (f32, f32) {
    let at = |ratio: f64| (0.5 + ratio * i as f64).fract() as f32;
    (at(0.754_877_666_246_693), at(0.569_840_290_998_053))
}

pub fn paint() -> RgbImage {
    let (width, height) = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING);
    let scale = height as f32;
    let mut canvas = Canvas {
        width,
        height,
        colours: vec![ORANGE * 0.55; width * height],
        relief: vec![0.0; width * height],
    };
    let mut rng = StdRng::seed_from_u64(1886);
    let mut left_over = COBALT;
    // Strokes, radius, length, detail; and whether only outlines are drawn.
    let layers = [
        (900, 15.0..19.0, 110.0..170.0, 0.15, false),
        (2600, 8.0..12.0, 80.0..150.0, 0.45, false),
        (2600, 4.5..6.0, 60.0..120.0, 0.0, true),
        (4200, 4.5..8.0, 45.0..120.0, 0.8, false),
        (1500, 3.5..4.8, 50.0..110.0, 0.0, true),
        (1600, 3.8..5.5, 36.0..70.0, 1.0, false),
    ];
    for (count, radii, lengths, detail, outlines) in layers {
        for i in 0..count {
            let (x, y) = spread(i + 7);
            let (x, y) = (x * width as f32 / scale * 1.04 - 0.02, y * 1.04 - 0.02);
            let here = motif(x, y);
            let small = matches!(here, Motif::Hull | Motif::Sail | Motif::Trunk);
            let shorter = match here {
                Motif::Foliage | Motif::Sun => 0.6,
                _ if small => 0.45,
                _ => 1.0,
            };
            let (radius, length) = (
                rng.random_range(radii.clone()),
                shorter * rng.random_range(lengths.clone()),
            );
            let path = if outlines {
                trace(x, y, length, scale, |x, y| outline(x, y, 0.009))
            } else {
                trace(x, y, length, scale, |x, y| {
                    (motif(x, y) == here).then(|| current(here, x, y))
                })
            };
            if path.len() < if outlines { 4 } else { 3 } {
                continue;
            }
            let colour = if outlines {
                [MIDNIGHT, UMBER, MIDNIGHT, ULTRAMARINE]
                    .choose(&mut rng)
                    .copied()
                    .unwrap_or(MIDNIGHT)
                    * 0.8
            } else {
                pigment(here, x, y, detail, &mut rng)
            };
            let radius = if small { f32::min(radius, 5.0) } else { radius };
            canvas.apply(&Stroke {
                path,
                radius,
                colour,
                left_over,
                seed: rng.random_range(0.0..500.0),
            });
            left_over = colour;
        }
    }
    imageops::resize(
        &canvas.lit(),
        WIDTH as u32,
        HEIGHT as u32,
        imageops::FilterType::CatmullRom,
    )
}

// SPDX-License-Identifier: MPL-2.0

//! Dense optical flow by inverse search: Kroeger, Timofte, Dai and Van Gool, "Fast optical flow
//! using dense inverse search" (ECCV 2016), with the paper's variational refinement.

use super::boundary::sharpen;
use super::grid::Corners;
use super::pyramid::Level;
use super::refine::refine;
use super::search::{Found, Order, Search, Sums};
use pulp::{Arch, Simd, WithSimd};
use rayon::join;

/// In pixels, how far a patch may miss the dominant motion and still count a quarter, for each fit
/// to it.
const SPREADS: [f64; 6] = [8.0, 4.0, 2.0, 1.0, 1.0, 0.5];

/// A shift of the whole picture is looked for up to this part of its sides.
const MAX_SHIFT: isize = 4;

/// Nor beyond so many pixels: the coarsest level of a thin picture is long.
const MAX_REACH: isize = 64;

/// It has to leave less than this of the difference that there is without one.
const STAND_STILL: f32 = 0.8;

/// The part of the structure that has to follow the dominant motion for it to be one.
const MIN_AGREEMENT: f64 = 0.2;

/// Rounds of the refinement, which are cheap but at the finest levels. A second one there would
/// bring the flow a seventh closer to known motions and take another third of the time.
const ROUNDS: usize = 2;
const FINEST_LEVELS: usize = 2;

/// A movement at each pixel of one level, `[h, w]`.
#[derive(Clone, Debug)]
pub struct Field {
    pub h: usize,
    pub w: usize,
    pub u: Vec<f32>,
    pub v: Vec<f32>,
}

impl Field {
    pub fn zeros(h: usize, w: usize) -> Self {
        Self {
            h,
            w,
            u: vec![0.0; h * w],
            v: vec![0.0; h * w],
        }
    }

    /// The movement between pixels, which lie at whole numbers; beyond the edge that of the edge.
    #[inline(always)]
    pub fn at(&self, y: f32, x: f32) -> (f32, f32) {
        let corners = Corners::new((self.h, self.w), [y], [x]);
        let ([u], [v]) = (corners.between(&self.u), corners.between(&self.v));
        (u, v)
    }
}

/// The movement from each pixel of `from` to where it is in `to`, each of some levels from the
/// finest on, in pixels of that.
pub fn flow(from: &[Level], to: &[Level]) -> Field {
    let shift = match (from.last(), to.last()) {
        (Some(from), Some(to)) => shift(from, to),
        _ => (0.0, 0.0),
    };
    let mut coarser: Option<Field> = None;
    let mut dominant: Option<Affine> = None;
    let levels = from.iter().zip(to).enumerate();
    for (index, (from, to)) in levels.rev() {
        let search = Search::new(from, to);
        let start = |(y, x): (f32, f32)| {
            let (u, v) = match &coarser {
                Some(coarser) => {
                    // Where a place is at half the size.
                    let (u, v) = coarser.at(0.5 * y - 0.25, 0.5 * x - 0.25);
                    (2.0 * u, 2.0 * v)
                }
                None => shift,
            };
            Found {
                u,
                v,
                structure: 0.0,
            }
        };
        let mut found: Vec<Found> = search.centres().map(start).collect();
        let mut sums = Sums::new(from.h, from.w);
        dominant = dominant.map(|motion| motion.doubled());
        if index > 0 {
            search.run(Order::Forward, &mut found, dominant.as_ref(), None);
            dominant = self::dominant(&search, &found);
            search.run(
                Order::Backward,
                &mut found,
                dominant.as_ref(),
                Some(&mut sums),
            );
        } else {
            // Most of the time goes here, and little is left to be found anew.
            search.run(
                Order::Forward,
                &mut found,
                dominant.as_ref(),
                Some(&mut sums),
            );
        }
        let mut field = sums.mean();
        if index == 0 {
            sharpen(from, to, &mut field);
        }
        let rounds = if index < FINEST_LEVELS { 1 } else { ROUNDS };
        refine(from, to, &mut field, rounds);
        coarser = Some(field);
    }
    coarser.unwrap_or_else(|| Field::zeros(1, 1))
}

/// The flow from `a` to `b`, and that from `b` to `a`.
pub fn both(a: &[Level], b: &[Level]) -> [Field; 2] {
    join(|| flow(a, b), || flow(b, a)).into()
}

/// The movement by whole pixels under which the images are most alike where they overlap.
fn shift(from: &Level, to: &Level) -> (f32, f32) {
    Arch::new().dispatch(Shift { from, to })
}

/// A function of its own, which is compiled for each kind of vector unit.
struct Shift<'a> {
    from: &'a Level,
    to: &'a Level,
}

impl Shift<'_> {
    /// The variance of the difference at a movement: a flash is no difference.
    #[inline(always)]
    fn difference<S: Simd>(&self, simd: S, dy: isize, dx: isize) -> f32 {
        let (h, w) = (self.from.h as isize, self.from.w as isize);
        let (start, len) = (0.max(-dx), (w - dx.abs()) as usize);
        let [mut total, mut squares] = [simd.splat_f32s(0.0); 2];
        let mut add = |from, to| {
            let difference = simd.sub_f32s(to, from);
            total = simd.add_f32s(total, difference);
            squares = simd.mul_add_e_f32s(difference, difference, squares);
        };
        for y in 0.max(-dy)..h.min(h - dy) {
            let (from, from_end) = S::as_simd_f32s(&self.from.from(y, start)[..len]);
            let (to, to_end) = S::as_simd_f32s(&self.to.from(y + dy, start + dx)[..len]);
            for (from, to) in from.iter().zip(to) {
                add(*from, *to);
            }
            add(
                simd.partial_load_f32s(from_end),
                simd.partial_load_f32s(to_end),
            );
        }
        let count = (len as isize * (h - dy.abs())) as f32;
        let total = simd.reduce_sum_f32s(total);
        (simd.reduce_sum_f32s(squares) - total * total / count) / count
    }
}

impl WithSimd for Shift<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
        let mut least = STAND_STILL * self.difference(simd, 0, 0);
        let mut best = (0.0, 0.0);
        let reach = |side: usize| (side as isize / MAX_SHIFT).min(MAX_REACH);
        let (reach_y, reach_x) = (reach(self.from.h), reach(self.from.w));
        for dy in -reach_y..=reach_y {
            for dx in -reach_x..=reach_x {
                let difference = self.difference(simd, dy, dx);
                if difference < least {
                    (least, best) = (difference, (dx as f32, dy as f32));
                }
            }
        }
        best
    }
}

/// A motion that is linear in the place: of each component the constant, and what x and y add.
#[derive(Default)]
pub struct Affine([[f64; 3]; 2]);

impl Affine {
    /// The movement of a place.
    pub fn at(&self, y: f32, x: f32) -> (f32, f32) {
        let [u, v] = self.0.map(|[constant, by_x, by_y]| {
            (constant + by_x * f64::from(x) + by_y * f64::from(y)) as f32
        });
        (u, v)
    }

    /// The same motion at twice the size.
    fn doubled(&self) -> Self {
        Self(
            self.0
                .map(|[constant, by_x, by_y]| [2.0 * constant - 0.5 * (by_x + by_y), by_x, by_y]),
        )
    }
}

/// The solutions of two systems with the symmetric matrix of rows (0, 1, 2), (1, 3, 4), (2, 4, 5).
fn solve([a, b, c, d, e, f]: [f64; 6], right: [[f64; 3]; 2]) -> Option<[[f64; 3]; 2]> {
    let inverse = [
        [d * f - e * e, c * e - b * f, b * e - c * d],
        [c * e - b * f, a * f - c * c, b * c - a * e],
        [b * e - c * d, b * c - a * e, a * d - b * b],
    ];
    let determinant = a * inverse[0][0] + b * inverse[0][1] + c * inverse[0][2];
    // Patches in one line tell nothing of what is across it.
    if determinant <= 1e-9 * a * d * f {
        return None;
    }
    let row = |row: [f64; 3], right: [f64; 3]| {
        (row[0] * right[0] + row[1] * right[1] + row[2] * right[2]) / determinant
    };
    let solved = right.map(|right| inverse.map(|inverse| row(inverse, right)));
    solved
        .iter()
        .flatten()
        .all(|value| value.is_finite())
        .then_some(solved)
}

/// The motion that most of the structure shares, if it has one.
fn dominant(search: &Search, found: &[Found]) -> Option<Affine> {
    let mut model = Affine::default();
    let total: f64 = found.iter().map(|found| f64::from(found.structure)).sum();
    for spread in SPREADS {
        let mut sums = [0.0; 6];
        let mut products = [[0.0; 3]; 2];
        let mut agreeing = 0.0;
        for (found, (y, x)) in found.iter().zip(search.centres()) {
            let (u, v) = model.at(y, x);
            let miss = f64::from((found.u - u).powi(2) + (found.v - v).powi(2));
            let structure = f64::from(found.structure);
            let agreement = structure / (1.0 + miss / (spread * spread)).powi(2);
            agreeing += agreement;
            let (x, y) = (f64::from(x), f64::from(y));
            for (sum, value) in sums.iter_mut().zip([1.0, x, y, x * x, x * y, y * y]) {
                *sum += agreement * value;
            }
            for (products, value) in products.iter_mut().zip([found.u, found.v]) {
                for (sum, place) in products.iter_mut().zip([1.0, x, y]) {
                    *sum += agreement * place * f64::from(value);
                }
            }
        }
        if agreeing < MIN_AGREEMENT * total {
            return None;
        }
        model = Affine(solve(sums, products)?);
    }
    Some(model)
}

#[cfg(test)]
mod tests {
    use super::super::pyramid::Pyramid;
    use super::*;
    use candle_core::{Device, Tensor};
    use rayon::ThreadPoolBuilder;

    /// Waves of many lengths and directions, the longer the higher, moved by `u`, `v`.
    fn waves((h, w): (usize, usize), (u, v): (f32, f32)) -> Pyramid {
        let pixels = (0..h * w).flat_map(|i| {
            let (y, x) = ((i / w) as f32 - v, (i % w) as f32 - u);
            let waves = (0..24).map(|wave| {
                let (frequency, angle) = (0.04 * 1.12f32.powi(wave), 2.4 * wave as f32);
                let place = angle.sin() * y + angle.cos() * x;
                0.005 / frequency * (frequency * place + angle * angle).sin()
            });
            [0.5 + waves.sum::<f32>(); 3]
        });
        let image = Tensor::from_vec(pixels.collect(), (h, w, 3), &Device::Cpu).unwrap();
        Pyramid::new(&image).unwrap()
    }

    /// Mean distance from a movement, in pixels of the image, where what moved is still in it.
    fn miss(from: &Pyramid, to: &Pyramid, (u, v): (f32, f32)) -> f32 {
        let (field, scale) = (flow(&from.levels, &to.levels), (1 << from.finest) as f32);
        let (mut sum, mut count) = (0.0, 0);
        for y in 0..field.h {
            for x in 0..field.w {
                let there = (y as f32 + v / scale, x as f32 + u / scale);
                let inside = |at: f32, side: usize| at >= 0.0 && at <= (side - 1) as f32;
                if inside(there.0, field.h) && inside(there.1, field.w) {
                    let i = y * field.w + x;
                    sum += (scale * field.u[i] - u).hypot(scale * field.v[i] - v);
                    count += 1;
                }
            }
        }
        sum / count as f32
    }

    #[test]
    fn follows_a_shift() {
        for size in [(90, 120), (200, 280)] {
            let still = waves(size, (0.0, 0.0));
            for by in [(0.0, 0.0), (0.4, -0.3), (2.6, 1.3), (-7.0, 4.5)] {
                let miss = miss(&still, &waves(size, by), by);
                assert!(miss < 0.1, "{size:?} moved by {by:?}: {miss} pixels off");
            }
        }
    }

    #[test]
    fn follows_a_large_shift() {
        let size = (180, 320);
        let by = (48.0, -20.0);
        let miss = miss(&waves(size, (0.0, 0.0)), &waves(size, by), by);
        assert!(miss < 0.5, "{miss} pixels off");
    }

    #[test]
    fn a_shift_of_the_whole_picture_is_found_at_every_width() {
        for w in 16..50 {
            let [still, moved] = [(0.0, 0.0), (3.0, -2.0)].map(|by| waves((20, w), by));
            let found = shift(&still.levels[0], &moved.levels[0]);
            assert_eq!(found, (3.0, -2.0), "{w} wide");
        }
    }

    #[test]
    fn nothing_moves_where_nothing_is() {
        let image = (Tensor::ones((50, 70, 3), candle_core::DType::F32, &Device::Cpu).unwrap()
            * 0.3)
            .unwrap();
        let pyramid = Pyramid::new(&image).unwrap();
        let field = flow(&pyramid.levels, &pyramid.levels);
        assert!(field.u.iter().chain(&field.v).all(|value| *value == 0.0));
    }

    #[test]
    fn any_size_has_a_finite_flow() {
        let sizes = [
            (16, 16),
            (17, 31),
            (16, 400),
            (401, 17),
            (33, 65),
            (131, 257),
            (24, 700),
        ];
        for size in sizes {
            let (a, b) = (waves(size, (0.0, 0.0)), waves(size, (3.0, 2.0)));
            let noise = (0..size.0 * size.1 * 3).map(|i| (i * i % 7919) as f32 * 1e30);
            let noise =
                Tensor::from_vec(noise.collect(), (size.0, size.1, 3), &Device::Cpu).unwrap();
            let noise = Pyramid::new(&noise).unwrap();
            for (a, b) in [(&a, &b), (&a, &noise), (&noise, &b)] {
                for field in both(&a.levels, &b.levels) {
                    assert_eq!((field.h, field.w), (a.levels[0].h, a.levels[0].w));
                    assert!(
                        field
                            .u
                            .iter()
                            .chain(&field.v)
                            .all(|value| value.is_finite())
                    );
                }
            }
        }
    }

    #[test]
    fn the_same_for_any_number_of_threads() {
        let size = (190, 270);
        let (a, b) = (waves(size, (0.0, 0.0)), waves(size, (5.3, -2.1)));
        let run = |threads| {
            let pool = ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let fields = pool.install(|| both(&a.levels, &b.levels));
            fields.map(|field| {
                [field.u, field.v]
                    .concat()
                    .into_iter()
                    .map(f32::to_bits)
                    .collect::<Vec<_>>()
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }

    #[test]
    fn between_pixels_and_beyond_the_edge() {
        let field = Field {
            h: 2,
            w: 2,
            u: vec![0.0, 1.0, 2.0, 3.0],
            v: vec![0.0, 0.0, 4.0, 4.0],
        };
        assert_eq!(field.at(0.5, 0.5), (1.5, 2.0));
        assert_eq!(field.at(-3.0, 9.0), (1.0, 0.0));
        assert_eq!(field.at(1.0, 0.25), (2.25, 4.0));
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Dense optical flow by inverse search: Kroeger, Timofte, Dai and Van Gool, "Fast optical flow
//! using dense inverse search" (ECCV 2016), with the paper's variational refinement.

use super::bilinear::{Bilinear, to_level};
use super::boundary::sharpen;
use super::global::{self, Affine};
use super::pyramid::Level;
use super::refine::refine;
use super::search::{Densifier, PatchFlow, PatchSearch, ScanOrder};
use rayon::join;

/// Warps of the refinement at all but the finest levels, which get one. A second there would reduce
/// the end-point error by a seventh and take another third of the time.
const WARPS: usize = 2;
const FINEST_LEVELS: usize = 2;

/// The displacement of each pixel of one level, `[h, w]`: u to the right, v down, in pixels of that
/// level.
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

    /// Interpolates the displacement between pixels, which lie at integer coordinates. The edge is
    /// replicated beyond it.
    #[inline(always)]
    pub fn sample(&self, y: f32, x: f32) -> (f32, f32) {
        let point = Bilinear::new((self.h, self.w), [y], [x]);
        let ([u], [v]) = (point.sample(&self.u), point.sample(&self.v));
        (u, v)
    }
}

/// The flow from one image to another, coarse to fine. Takes the levels of both pyramids, the finest
/// first, and returns the flow of that.
pub fn flow(from: &[Level], to: &[Level]) -> Field {
    let shift = match (from.last(), to.last()) {
        (Some(from), Some(to)) => global::shift(from, to),
        _ => (0.0, 0.0),
    };
    let mut coarser: Option<Field> = None;
    let mut dominant: Option<Affine> = None;
    let levels = from.iter().zip(to).enumerate();
    for (index, (from, to)) in levels.rev() {
        let search = PatchSearch::new(from, to);
        let start = |(y, x): (f32, f32)| {
            let (u, v) = match &coarser {
                Some(coarser) => {
                    let (u, v) = coarser.sample(to_level(y, 2.0), to_level(x, 2.0));
                    (2.0 * u, 2.0 * v)
                }
                None => shift,
            };
            PatchFlow {
                u,
                v,
                structure: 0.0,
            }
        };
        let mut patches: Vec<PatchFlow> = search.centres().map(start).collect();
        let mut densifier = Densifier::new(from.h, from.w);
        dominant = dominant.map(|motion| motion.doubled());
        if index > 0 {
            search.run(ScanOrder::Forward, &mut patches, dominant.as_ref(), None);
            dominant = global::dominant(&search, &patches);
            search.run(
                ScanOrder::Backward,
                &mut patches,
                dominant.as_ref(),
                Some(&mut densifier),
            );
        } else {
            // The finest level takes most of the time, and a second pass would change little there.
            search.run(
                ScanOrder::Forward,
                &mut patches,
                dominant.as_ref(),
                Some(&mut densifier),
            );
        }
        let mut field = densifier.into_field();
        if index == 0 {
            sharpen(from, to, &mut field);
        }
        let warps = if index < FINEST_LEVELS { 1 } else { WARPS };
        refine(from, to, &mut field, warps);
        coarser = Some(field);
    }
    coarser.unwrap_or_else(|| Field::zeros(1, 1))
}

/// The flow from `a` to `b` and that from `b` to `a`, side by side in two threads.
pub fn bidirectional(a: &[Level], b: &[Level]) -> [Field; 2] {
    join(|| flow(a, b), || flow(b, a)).into()
}

#[cfg(test)]
mod tests {
    use super::super::pyramid::Pyramid;
    use super::*;
    use crate::threads::pool;
    use candle_core::{Device, Tensor};

    /// Waves of many lengths and directions, the longer the higher, displaced by `u`, `v`.
    fn waves(size: (usize, usize), (u, v): (f32, f32)) -> Pyramid {
        Pyramid::of(size, |y, x| {
            let (y, x) = (y - v, x - u);
            let waves = (0..24).map(|wave| {
                let (frequency, angle) = (0.04 * 1.12f32.powi(wave), 2.4 * wave as f32);
                let along = angle.sin() * y + angle.cos() * x;
                0.005 / frequency * (frequency * along + angle * angle).sin()
            });
            255.0 * (0.5 + waves.sum::<f32>())
        })
    }

    /// The mean end-point error, in pixels of the image, where the displacement ends inside it.
    fn end_point_error(from: &Pyramid, to: &Pyramid, (u, v): (f32, f32)) -> f32 {
        let (field, scale) = (flow(&from.levels, &to.levels), (1 << from.finest) as f32);
        let (mut sum, mut count) = (0.0, 0);
        for y in 0..field.h {
            for x in 0..field.w {
                let target = (y as f32 + v / scale, x as f32 + u / scale);
                let inside = |at: f32, side: usize| at >= 0.0 && at <= (side - 1) as f32;
                if inside(target.0, field.h) && inside(target.1, field.w) {
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
                let error = end_point_error(&still, &waves(size, by), by);
                assert!(error < 0.1, "{size:?} moved by {by:?}: {error} pixels off");
            }
        }
    }

    #[test]
    fn follows_a_large_shift() {
        let size = (180, 320);
        let by = (48.0, -20.0);
        let error = end_point_error(&waves(size, (0.0, 0.0)), &waves(size, by), by);
        assert!(error < 0.5, "{error} pixels off");
    }

    #[test]
    fn a_shift_of_the_whole_picture_is_found_at_every_width() {
        for w in 16..50 {
            let [still, moved] = [(0.0, 0.0), (3.0, -2.0)].map(|by| waves((20, w), by));
            let found = global::shift(&still.levels[0], &moved.levels[0]);
            assert_eq!(found, (3.0, -2.0), "{w} wide");
        }
    }

    #[test]
    fn a_uniform_picture_does_not_move() {
        let pyramid = Pyramid::of((50, 70), |_, _| 76.5);
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
                for field in bidirectional(&a.levels, &b.levels) {
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
            let pool = pool(threads).build().unwrap();
            let fields = pool.install(|| bidirectional(&a.levels, &b.levels));
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
    fn fields_are_sampled_between_pixels_and_beyond_the_edge() {
        let field = Field {
            h: 2,
            w: 2,
            u: vec![0.0, 1.0, 2.0, 3.0],
            v: vec![0.0, 0.0, 4.0, 4.0],
        };
        assert_eq!(field.sample(0.5, 0.5), (1.5, 2.0));
        assert_eq!(field.sample(-3.0, 9.0), (1.0, 0.0));
        assert_eq!(field.sample(1.0, 0.25), (2.25, 4.0));
    }
}

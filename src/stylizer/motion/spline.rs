// SPDX-License-Identifier: MPL-2.0

//! An image between its pixels, by cubic B-splines (Unser, "Splines: a perfect fit for
//! signal and image processing", IEEE Signal Processing Magazine 1999): of what pixels hold they
//! lose the least, which counts where a picture is moved again for every frame.

use once_cell::sync::Lazy;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Pixels along each axis that a value is made of.
const TAPS: usize = 4;

/// The pole of the prefilter, √3 − 2 (Unser 1999, table 1).
const POLE: f32 = -0.267_949_2;

/// Terms of the prefilter's start, where the pole's power is below 1e-6.
const START: usize = 11;

/// Red, green, blue and a value that fills a vector up.
pub type Pixel = [f32; CHANNELS];
const CHANNELS: usize = 4;

/// Pixels that are filtered down the columns together, and rows that are along.
const STRIP: usize = 16;
const ROWS: usize = 4;

/// Pixels that the coefficients go on beyond the edge, as the image's mirror image.
const PAD: usize = 4;

/// How far a flow that stands still may miss the edge, in pixels.
const EDGE: f32 = 0.1;

/// Places between two pixels that weights are kept for.
const PHASES: usize = 256;

static WEIGHTS: Lazy<Vec<[f32; TAPS]>> = Lazy::new(|| {
    let phases = 0..=PHASES;
    phases
        .map(|phase| weights(phase as f32 / PHASES as f32))
        .collect()
});

/// The coefficients of the spline through an image's pixels.
pub struct Spline {
    h: usize,
    w: usize,
    weights: &'static [[f32; TAPS]],
    /// `[h + 2 PAD, w + 2 PAD]`
    coefficients: Vec<Pixel>,
}

impl Spline {
    /// Through the pixels of an image of `h` by `w`; `part(y, x, pixels)` writes those from row
    /// `y`, column `x` on.
    pub fn new((h, w): (usize, usize), part: impl Fn(usize, usize, &mut [Pixel]) + Sync) -> Self {
        // Columns side by side, so that each strip is one piece of memory.
        let mut strips = vec![[0.0; STRIP * CHANNELS]; w.div_ceil(STRIP) * h];
        strips
            .par_chunks_exact_mut(h)
            .enumerate()
            .for_each(|(strip, lines)| {
                let x = strip * STRIP;
                for (y, line) in lines.iter_mut().enumerate() {
                    let pixels = line.as_chunks_mut::<CHANNELS>().0;
                    part(y, x, &mut pixels[..STRIP.min(w - x)]);
                }
                Arch::new().dispatch(Prefilter(lines));
            });
        let stride = w + 2 * PAD;
        let mut coefficients = vec![[0.0; CHANNELS]; (h + 2 * PAD) * stride];
        coefficients[PAD * stride..][..h * stride]
            .par_chunks_mut(ROWS * stride)
            .enumerate()
            .for_each(|(group, lines)| {
                let mut columns = vec![[0.0; ROWS * CHANNELS]; w];
                let rows = lines.len() / stride;
                for (x, column) in columns.iter_mut().enumerate() {
                    let strip = &strips[x / STRIP * h + group * ROWS..];
                    for (value, line) in column
                        .as_chunks_mut::<CHANNELS>()
                        .0
                        .iter_mut()
                        .zip(&strip[..rows])
                    {
                        *value = line.as_chunks::<CHANNELS>().0[x % STRIP];
                    }
                }
                Arch::new().dispatch(Prefilter(&mut columns));
                for (row, line) in lines.chunks_exact_mut(stride).enumerate() {
                    for (x, value) in line.iter_mut().enumerate() {
                        let x = mirrored(x as isize - PAD as isize, w);
                        *value = columns[x].as_chunks::<CHANNELS>().0[row];
                    }
                }
            });
        for y in (0..PAD).chain(PAD + h..2 * PAD + h) {
            let from = (PAD + mirrored(y as isize - PAD as isize, h)) * stride;
            coefficients.copy_within(from..from + stride, y * stride);
        }
        Self {
            h,
            w,
            weights: &WEIGHTS,
            coefficients,
        }
    }

    /// Whether a place is in the image. What comes from just beyond the edge would be its last
    /// column, which a slow pan would draw out to a smear.
    #[inline(always)]
    pub fn contains(&self, y: f32, x: f32) -> bool {
        let inside = |at: f32, side: usize| (-EDGE..=(side - 1) as f32 + EDGE).contains(&at);
        inside(y, self.h) && inside(x, self.w)
    }

    /// The image between pixels, which lie at whole numbers; beyond the edge it is the edge's.
    #[inline(always)]
    pub fn at(&self, y: f32, x: f32) -> Pixel {
        let phase = |at: f32, side: usize| {
            (at.clamp(0.0, (side - 1) as f32) * PHASES as f32 + 0.5) as usize
        };
        let (y, x) = (phase(y, self.h), phase(x, self.w));
        let (wy, wx) = (&self.weights[y % PHASES], &self.weights[x % PHASES]);
        let stride = self.w + 2 * PAD;
        let start = (y / PHASES + PAD - 1) * stride + x / PHASES + PAD - 1;
        // Flat, so that the vector unit takes several pixels of a row at a time.
        let mut sums = [0.0; TAPS * CHANNELS];
        for (i, wy) in wy.iter().enumerate() {
            let taps = self.coefficients[start + i * stride..][..TAPS].as_flattened();
            for (sum, tap) in sums.iter_mut().zip(taps) {
                *sum += wy * tap;
            }
        }
        let mut value = [0.0; CHANNELS];
        for (wx, sums) in wx.iter().zip(sums.as_chunks::<CHANNELS>().0) {
            for (value, sum) in value.iter_mut().zip(sums) {
                *value += wx * sum;
            }
        }
        value
    }
}

/// Takes lines of values to the coefficients of their splines, each along the lines.
struct Prefilter<'a, const N: usize>(&'a mut [[f32; N]]);

impl<const N: usize> NullaryFnOnce for Prefilter<'_, N> {
    type Output = ();

    /// A causal and an anticausal pass, the line going on as its mirror image (Unser
    /// 1999, box 2).
    #[inline(always)]
    fn call(self) {
        let lines = self.0;
        let n = lines.len();
        if n == 1 {
            return;
        }
        const Z: f32 = POLE;
        const GAIN: f32 = (1.0 - Z) * (1.0 - 1.0 / Z);
        let mut sum = [0.0; N];
        let mut power = GAIN;
        for k in 0..=START {
            let line = &lines[mirrored(k as isize, n)];
            for (sum, value) in sum.iter_mut().zip(line) {
                *sum += power * value;
            }
            power *= Z;
        }
        lines[0] = sum;
        for line in &mut lines[1..] {
            for (value, sum) in line.iter_mut().zip(&mut sum) {
                *sum = GAIN * *value + Z * *sum;
                *value = *sum;
            }
        }
        const SCALE: f32 = Z / (Z * Z - 1.0);
        for (i, sum) in sum.iter_mut().enumerate() {
            *sum = SCALE * (lines[n - 1][i] + Z * lines[n - 2][i]);
        }
        lines[n - 1] = sum;
        for line in lines[..n - 1].iter_mut().rev() {
            for (value, sum) in line.iter_mut().zip(&mut sum) {
                *sum = Z * (*sum - *value);
                *value = *sum;
            }
        }
    }
}

/// The place within `0..side` that the mirror image beyond the edge shows.
fn mirrored(at: isize, side: usize) -> usize {
    let period = (2 * side as isize - 2).max(1);
    let at = at.rem_euclid(period) as usize;
    at.min(period as usize - at).min(side - 1)
}

/// The weights of the pixels around a place that is `t` beyond the second: the cubic B-spline at
/// t + 1, t, 1 − t and 2 − t.
fn weights(t: f32) -> [f32; TAPS] {
    let s = 1.0 - t;
    let inner = |t: f32| (4.0 + t * t * (3.0 * t - 6.0)) / 6.0;
    let outer = |t: f32| t * t * t / 6.0;
    [outer(s), inner(t), inner(s), outer(t)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spline(h: usize, w: usize, value: impl Fn(f32, f32) -> f32 + Sync) -> Spline {
        Spline::new((h, w), |y, start, part| {
            for (x, pixel) in (start..).zip(part) {
                *pixel = [value(y as f32, x as f32), 0.5, -(x as f32), 0.0];
            }
        })
    }

    #[test]
    fn the_weights_are_the_b_spline() {
        // At -1.5 to 1.5 and at -1 to 2 (Unser 1999, eq. 2).
        let half = [1.0, 23.0, 23.0, 1.0].map(|value| value / 48.0);
        let whole = [1.0, 4.0, 1.0, 0.0].map(|value| value / 6.0);
        for (t, expected) in [(0.5, half), (0.0, whole)] {
            for (weight, expected) in weights(t).iter().zip(expected) {
                assert!((weight - expected).abs() < 1e-7, "{t}: {weight} {expected}");
            }
        }
    }

    #[test]
    fn it_goes_through_the_pixels_at_every_size() {
        let value = |y: f32, x: f32| ((y * 7.3 + x * 3.1).sin() * 43.7).fract();
        for (h, w) in [(1, 1), (1, 9), (7, 1), (2, 2), (16, 17), (40, 33)] {
            let spline = spline(h, w, value);
            for y in 0..h {
                for x in 0..w {
                    let [red, green, blue, _] = spline.at(y as f32, x as f32);
                    let expected = value(y as f32, x as f32);
                    assert!(
                        (red - expected).abs() < 1e-4,
                        "{h}x{w} {y} {x}: {red} {expected}"
                    );
                    assert!((green - 0.5).abs() < 1e-5 && (blue + x as f32).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn it_keeps_waves_that_are_far_from_the_edge() {
        // Four pixels a wave: bilinear interpolation would take 0.29 of it halfway between pixels.
        let wave = |y: f32, x: f32| (x * std::f32::consts::FRAC_PI_2 + 0.3 * y).sin();
        let spline = spline(64, 64, wave);
        let worst = (0..400)
            .map(|i| (20.0 + 0.055 * i as f32, 42.0 - 0.053 * i as f32))
            .map(|(y, x)| (spline.at(y, x)[0] - wave(y, x)).abs())
            .fold(0.0, f32::max);
        assert!(worst < 0.03, "{worst}");
    }

    #[test]
    fn beyond_the_edge_it_is_the_edges() {
        let spline = spline(5, 6, |y, x| y + 10.0 * x);
        for (beyond, edge) in [((-3.0, 2.0), (0.0, 2.0)), ((2.5, 90.0), (2.5, 5.0))] {
            assert_eq!(spline.at(beyond.0, beyond.1), spline.at(edge.0, edge.1));
        }
    }
}

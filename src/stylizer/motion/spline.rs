// SPDX-License-Identifier: MPL-2.0

//! An image between its pixels, by cubic B-splines (Unser, "Splines: a perfect fit for
//! signal and image processing", IEEE Signal Processing Magazine 1999): of what pixels hold they
//! lose the least, which counts where a picture is moved again for every frame.

use super::grid::{nearest, within};
use super::light::OnPicture;
use once_cell::sync::Lazy;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Pixels along each axis that a value is made of.
const TAPS: usize = 4;

/// The pole z of the prefilter, √3 − 2, and its gain (1 − z) (1 − 1/z) (Unser 1999, table 1).
const POLE: f32 = -0.267_949_2;
const GAIN: f32 = (1.0 - POLE) * (1.0 - 1.0 / POLE);

/// Pixels before a line's beginning that the prefilter starts at: the pole's power is below 1e-6.
const START: usize = 11;

/// Red, green, blue and a value that fills a vector up.
pub type Pixel = [f32; CHANNELS];
const CHANNELS: usize = 4;

/// A pixel's coefficients as they are kept, in units of 1 / [`SCALE`]. That misses by less than a
/// twenty-fifth of a step of the 8 bits that are shown, and halves the memory, on whose reading and
/// writing the time goes. Values of -1..1 have coefficients of at most 9.
type Kept = [i16; CHANNELS];
const SCALE: f32 = 3600.0;

/// Rows that are filtered by one thread; of them so many pixels at a time down the columns, which
/// stay in the cache, and so many rows at a time along.
const BAND: usize = 64;
const STRIP: usize = 64;
const ROWS: usize = 8;

/// Pixels that the coefficients go on beyond the edge, as the image's mirror image.
const PAD: usize = 4;

/// How far a flow that stands still may miss the edge, in pixels.
const EDGE: f32 = 0.1;

/// Places between two pixels that weights are kept for.
const PHASES: usize = 256;

/// For each phase the weights of four pixels, and the same for each of their channels in the unit of
/// what is kept.
type Weights = ([f32; TAPS], [f32; TAPS * CHANNELS]);

static WEIGHTS: Lazy<[Weights; PHASES]> = Lazy::new(|| {
    std::array::from_fn(|phase| {
        let weights = weights(phase as f32 / PHASES as f32);
        (
            weights,
            std::array::from_fn(|i| weights[i / CHANNELS] / SCALE),
        )
    })
});

/// The coefficients of the spline through an image's pixels.
pub struct Spline {
    h: usize,
    w: usize,
    weights: &'static [Weights; PHASES],
    /// `[h + 2 PAD, w + 2 PAD]`
    coefficients: Vec<Kept>,
}

impl Spline {
    /// Through what the pixels of an image `[h, w, 3]` of 0..1 differ from its light. What another spline's
    /// coefficients are in is used again.
    pub fn new(
        image: &[f32],
        light: &OnPicture,
        (h, w): (usize, usize),
        spare: Option<Self>,
    ) -> Self {
        let stride = w + 2 * PAD;
        let mut coefficients = spare.map_or(Vec::new(), |spare| spare.coefficients);
        coefficients.resize((h + 2 * PAD) * stride, [0; CHANNELS]);
        let bands = coefficients[PAD * stride..][..h * stride].par_chunks_mut(BAND * stride);
        bands
            .enumerate()
            .for_each_init(Vec::new, |filtered, (band, kept)| {
                filtered.resize(kept.len() / stride * w, [0.0; CHANNELS]);
                Arch::new().dispatch(Columns {
                    image,
                    light,
                    size: (h, w),
                    start: band * BAND,
                    filtered,
                });
                let rows = filtered.chunks_mut(ROWS * w);
                for (rows, kept) in rows.zip(kept.chunks_mut(ROWS * stride)) {
                    Arch::new().dispatch(Along { rows, kept, w });
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

    /// Whether a place is in the image.
    #[inline(always)]
    pub fn contains(&self, y: f32, x: f32) -> bool {
        inside(y, self.h) & inside(x, self.w)
    }

    /// The phase of a place, down and across: beyond the edge that of the edge.
    #[inline(always)]
    pub fn phase(&self, y: f32, x: f32) -> [u32; 2] {
        let phase = |at: f32, side: usize| nearest(within(at, side) * PHASES as f32);
        [phase(y, self.h), phase(x, self.w)]
    }

    /// What the four columns around a place add to the image there, channels side by side.
    #[inline(always)]
    pub fn parts(&self, phase: [u32; 2]) -> [f32; TAPS * CHANNELS] {
        let [y, x] = phase.map(|phase| phase as usize);
        let (wy, _) = &self.weights[y % PHASES];
        let (_, wx) = &self.weights[x % PHASES];
        let stride = self.w + 2 * PAD;
        let start = (y / PHASES + PAD - 1) * stride + x / PHASES + PAD - 1;
        let rows = &self.coefficients[start..][..(TAPS - 1) * stride + TAPS];
        let mut sums = [0.0; TAPS * CHANNELS];
        for (i, wy) in wy.iter().enumerate() {
            let taps = rows[i * stride..][..TAPS].as_flattened();
            for (sum, tap) in sums.iter_mut().zip(taps) {
                *sum += wy * f32::from(*tap);
            }
        }
        for (sum, wx) in sums.iter_mut().zip(wx) {
            *sum *= wx;
        }
        sums
    }
}

/// Whether a place along an axis is in an image. What comes from just beyond the edge would be its
/// last column, which a slow pan would draw out to a smear.
#[inline(always)]
pub fn inside(at: f32, side: usize) -> bool {
    (at >= -EDGE) & (at <= (side - 1) as f32 + EDGE)
}

/// The sum of the columns' parts.
#[inline(always)]
pub fn pixel(parts: &[f32; TAPS * CHANNELS]) -> Pixel {
    let mut pixel = [0.0; CHANNELS];
    for i in 0..CHANNELS {
        let [a, b, c, d] = [0, 1, 2, 3].map(|column| parts[column * CHANNELS + i]);
        pixel[i] = (a + b) + (c + d);
    }
    pixel
}

/// The prefilter down the columns, for the rows of a band.
struct Columns<'a> {
    image: &'a [f32],
    light: &'a OnPicture,
    size: (usize, usize),
    start: usize,
    /// `[rows, w]`
    filtered: &'a mut [Pixel],
}

impl NullaryFnOnce for Columns<'_> {
    type Output = ();

    /// A causal and an anticausal pass, the column going on as its mirror image (Unser 1999, box
    /// 2), from so far before the band that where they start from does not matter.
    #[inline(always)]
    fn call(self) {
        let (h, w) = self.size;
        let height = self.filtered.len() / w;
        let mut lines = vec![[0.0; 3 * STRIP]; height + 2 * START];
        for x in (0..w).step_by(STRIP) {
            let width = STRIP.min(w - x);
            let mut sums = [0.0; 3 * STRIP];
            for (k, line) in lines.iter_mut().enumerate() {
                let y = mirrored((self.start + k) as isize - START as isize, h);
                let ([above, below], t) = self.light.row(y);
                let image = &self.image[3 * (y * w + x)..][..3 * width];
                let (above, below) = (&above[3 * x..][..3 * width], &below[3 * x..][..3 * width]);
                for i in 0..3 * width {
                    let light = above[i] + t * (below[i] - above[i]);
                    sums[i] = GAIN * (image[i] - light) + POLE * sums[i];
                    line[i] = sums[i];
                }
            }
            sums.fill(0.0);
            for (k, line) in lines.iter().enumerate().skip(START).rev() {
                for (sum, value) in sums.iter_mut().zip(line) {
                    *sum = POLE * (*sum - value);
                }
                if let Some(row) = self.filtered.chunks_exact_mut(w).nth(k - START) {
                    let pixels = sums.as_chunks::<3>().0;
                    for (value, [r, g, b]) in row[x..][..width].iter_mut().zip(pixels) {
                        *value = [*r, *g, *b, 0.0];
                    }
                }
            }
        }
    }
}

/// The prefilter along some rows `w` wide, which are then kept and go on beyond their ends.
struct Along<'a> {
    rows: &'a mut [Pixel],
    kept: &'a mut [Kept],
    w: usize,
}

impl NullaryFnOnce for Along<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { rows, kept, w } = self;
        match rows.len() == ROWS * w {
            true => filter_along::<ROWS>(rows, w),
            false => {
                for row in rows.chunks_exact_mut(w) {
                    filter_along::<1>(row, w);
                }
            }
        }
        for (row, kept) in rows.chunks_exact(w).zip(kept.chunks_exact_mut(w + 2 * PAD)) {
            keep(row.as_flattened(), kept[PAD..PAD + w].as_flattened_mut());
            for x in (0..PAD).chain(PAD + w..w + 2 * PAD) {
                kept[x] = kept[PAD + mirrored(x as isize - PAD as isize, w)];
            }
        }
    }
}

/// Both passes along `N` rows, side by side, since each pixel of a row waits for the one before.
#[inline(always)]
fn filter_along<const N: usize>(rows: &mut [Pixel], w: usize) {
    if w == 1 {
        return;
    }
    let mut rest = rows;
    let mut rows: [&mut [Pixel]; N] = std::array::from_fn(|_| {
        let (row, after) = std::mem::take(&mut rest).split_at_mut(w);
        rest = after;
        row
    });
    let mut sums = [[0.0; CHANNELS]; N];
    let mut power = GAIN;
    for k in 0..=START {
        for (sum, row) in sums.iter_mut().zip(&rows) {
            let value = row[mirrored(k as isize, w)];
            (0..CHANNELS).for_each(|i| sum[i] += power * value[i]);
        }
        power *= POLE;
    }
    for (sum, row) in sums.iter().zip(&mut rows) {
        row[0] = *sum;
    }
    for x in 1..w {
        for (sum, row) in sums.iter_mut().zip(&mut rows) {
            let value = row[x];
            (0..CHANNELS).for_each(|i| sum[i] = GAIN * value[i] + POLE * sum[i]);
            row[x] = *sum;
        }
    }
    const END: f32 = POLE / (POLE * POLE - 1.0);
    for (sum, row) in sums.iter_mut().zip(&mut rows) {
        let (last, before) = (row[w - 1], row[w - 2]);
        (0..CHANNELS).for_each(|i| sum[i] = END * (last[i] + POLE * before[i]));
        row[w - 1] = *sum;
    }
    for x in (0..w - 1).rev() {
        for (sum, row) in sums.iter_mut().zip(&mut rows) {
            let value = row[x];
            (0..CHANNELS).for_each(|i| sum[i] = POLE * (sum[i] - value[i]));
            row[x] = *sum;
        }
    }
}

/// Sets coefficients to what is kept of them.
#[inline(always)]
fn keep(values: &[f32], kept: &mut [i16]) {
    const LARGEST: i32 = i16::MAX as i32;
    for (kept, value) in kept.iter_mut().zip(values) {
        let above = within(SCALE * value + LARGEST as f32, 2 * LARGEST as usize + 1);
        *kept = (nearest(above) as i32 - LARGEST) as i16;
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
    use super::super::light::{Light, Thumbnail};
    use super::*;

    fn spline(h: usize, w: usize, value: impl Fn(f32, f32) -> f32) -> Spline {
        let rgb = |i: usize| {
            let (y, x) = ((i / w) as f32, (i % w) as f32);
            [value(y, x), 0.5, -x / w as f32]
        };
        let image: Vec<f32> = (0..h * w).flat_map(rgb).collect();
        let none = Light::new(&Thumbnail::new(&vec![0.0; h * w * 3], (h, w))).on((h, w));
        Spline::new(&image, &none, (h, w), None)
    }

    fn at(spline: &Spline, y: f32, x: f32) -> Pixel {
        pixel(&spline.parts(spline.phase(y, x)))
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
        for (h, w) in [(1, 1), (1, 9), (7, 1), (2, 2), (16, 17), (70, 130)] {
            let spline = spline(h, w, value);
            for y in 0..h {
                for x in 0..w {
                    let pixel = at(&spline, y as f32, x as f32);
                    let expected = [value(y as f32, x as f32), 0.5, -(x as f32) / w as f32, 0.0];
                    for (value, expected) in pixel.iter().zip(expected) {
                        // Half a unit of what is kept, and a little for the arithmetic.
                        assert!(
                            (value - expected).abs() < 0.5 / SCALE + 2e-5,
                            "{h}x{w} {y} {x}: {value} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_wildest_picture_is_in_range() {
        let (h, w) = (40, 50);
        let spline = spline(h, w, |y, x| if (y + x) % 2.0 == 0.0 { 1.0 } else { -1.0 });
        for (y, x) in [(0, 0), (0, 49), (20, 25), (20, 26), (39, 49)] {
            let expected = if (y + x) % 2 == 0 { 1.0 } else { -1.0 };
            let value = at(&spline, y as f32, x as f32)[0];
            assert!((value - expected).abs() < 1e-3, "{y} {x}: {value}");
        }
    }

    #[test]
    fn what_is_beyond_the_range_is_at_its_end() {
        let mut kept = [0; 4];
        keep(&[1e9, -1e9, 20.0, 0.5], &mut kept);
        assert_eq!(kept, [i16::MAX, -i16::MAX, i16::MAX, (0.5 * SCALE) as i16]);
    }

    #[test]
    fn it_keeps_waves_that_are_far_from_the_edge() {
        // Four pixels a wave: bilinear interpolation would take 0.29 of it halfway between pixels.
        let wave = |y: f32, x: f32| (x * std::f32::consts::FRAC_PI_2 + 0.3 * y).sin();
        let spline = spline(64, 64, wave);
        let worst = (0..400)
            .map(|i| (20.0 + 0.055 * i as f32, 42.0 - 0.053 * i as f32))
            .map(|(y, x)| (at(&spline, y, x)[0] - wave(y, x)).abs())
            .fold(0.0, f32::max);
        assert!(worst < 0.03, "{worst}");
    }

    #[test]
    fn beyond_the_edge_it_is_the_edges() {
        let spline = spline(5, 6, |y, x| 0.01 * y + 0.1 * x);
        for (beyond, edge) in [((-3.0, 2.0), (0.0, 2.0)), ((2.5, 90.0), (2.5, 5.0))] {
            assert_eq!(at(&spline, beyond.0, beyond.1), at(&spline, edge.0, edge.1));
        }
    }
}

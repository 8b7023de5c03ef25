// SPDX-License-Identifier: MPL-2.0

//! Interpolation of an image by cubic B-splines (Unser, "Splines: a perfect fit for signal and image
//! processing", IEEE Signal Processing Magazine 1999). They blur little, which counts where a
//! picture is resampled again for every frame.

use super::bilinear::{clamp_to_side, round_to_u32};
use super::illumination::UpsampledIllumination;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;
use std::sync::LazyLock;

/// Coefficients along each axis that a value depends on.
const TAPS: usize = 4;

/// The pole z of the prefilter, √3 − 2, and its gain (1 − z) (1 − 1/z) (Unser 1999, table 1).
const POLE: f32 = -0.267_949_2;
const GAIN: f32 = (1.0 - POLE) * (1.0 - 1.0 / POLE);

/// Pixels by which the prefilter's recursion starts early, where |z|ⁿ is below 1e-6.
const WARM_UP: usize = 11;

/// Red, green, blue and padding.
pub type Pixel = [f32; CHANNELS];
const CHANNELS: usize = 4;

/// A pixel's stored coefficients, in units of 1 / [`SCALE`]. Rounding costs less than 1/25 of an 8-bit
/// step and halves the memory traffic, which takes most of the time. Values of -1..1 have coefficients
/// of at most 9.
type Quantised = [i16; CHANNELS];
const SCALE: f32 = 3600.0;

/// Rows of the image that one thread filters at a time.
const BAND: usize = 64;
/// Columns of such a band that are filtered at a time, so that they stay in the cache.
const STRIP: usize = 64;
/// Rows of such a band that are filtered at a time.
const ROWS: usize = 8;

/// Pixels of mirrored coefficients beyond each edge.
const PAD: usize = 4;

/// How far beyond the edge a point still counts as inside, in pixels, for the error of a flow of 0.
const EDGE_TOLERANCE: f32 = 0.1;

/// Steps from one pixel to the next at which weights are tabulated.
const PHASES: usize = 256;

/// A phase's weights of the four taps, and the same over [`SCALE`] for each of their channels.
type Weights = ([f32; TAPS], [f32; TAPS * CHANNELS]);

static WEIGHTS: LazyLock<[Weights; PHASES]> = LazyLock::new(|| {
    std::array::from_fn(|phase| {
        let weights = weights(phase as f32 / PHASES as f32);
        (
            weights,
            std::array::from_fn(|i| weights[i / CHANNELS] / SCALE),
        )
    })
});

/// The coefficients of an image's interpolating spline.
pub struct Spline {
    h: usize,
    w: usize,
    weights: &'static [Weights; PHASES],
    /// `[h + 2 PAD, w + 2 PAD]`
    coefficients: Vec<Quantised>,
}

impl Spline {
    /// Interpolates the difference of an image `[h, w, 3]` of 0..1 to its illumination. The memory of
    /// `spare` is reused.
    pub fn new(
        image: &[f32],
        illumination: &UpsampledIllumination,
        (h, w): (usize, usize),
        spare: Option<Self>,
    ) -> Self {
        let stride = w + 2 * PAD;
        let mut coefficients = spare.map_or(Vec::new(), |spare| spare.coefficients);
        coefficients.resize((h + 2 * PAD) * stride, [0; CHANNELS]);
        let bands = coefficients[PAD * stride..][..h * stride].par_chunks_mut(BAND * stride);
        bands
            .enumerate()
            .for_each_init(Vec::new, |filtered, (band, quantised)| {
                filtered.resize(quantised.len() / stride * w, [0.0; CHANNELS]);
                Arch::new().dispatch(ColumnFilter {
                    image,
                    illumination,
                    size: (h, w),
                    start: band * BAND,
                    filtered,
                });
                let rows = filtered.chunks_mut(ROWS * w);
                for (rows, quantised) in rows.zip(quantised.chunks_mut(ROWS * stride)) {
                    Arch::new().dispatch(RowFilter { rows, quantised, w });
                }
            });
        for y in (0..PAD).chain(PAD + h..2 * PAD + h) {
            let from = (PAD + mirror_index(y as isize - PAD as isize, h)) * stride;
            coefficients.copy_within(from..from + stride, y * stride);
        }
        Self {
            h,
            w,
            weights: &WEIGHTS,
            coefficients,
        }
    }

    /// Whether a point is inside the image.
    #[inline(always)]
    pub fn contains(&self, y: f32, x: f32) -> bool {
        is_inside(y, self.h) & is_inside(x, self.w)
    }

    /// A point (y, x), clamped to the image, in 1 / [`PHASES`] of a pixel.
    #[inline(always)]
    pub fn phase(&self, y: f32, x: f32) -> [u32; 2] {
        let phase = |at: f32, side: usize| round_to_u32(clamp_to_side(at, side) * PHASES as f32);
        [phase(y, self.h), phase(x, self.w)]
    }

    /// The contribution of each of the four columns of coefficients around a point, channels last.
    #[inline(always)]
    pub fn columns(&self, phase: [u32; 2]) -> [f32; TAPS * CHANNELS] {
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

/// Whether a coordinate is inside an image of that side. Beyond it there is only the replicated edge,
/// which a slow pan would smear.
#[inline(always)]
pub fn is_inside(at: f32, side: usize) -> bool {
    (at >= -EDGE_TOLERANCE) & (at <= (side - 1) as f32 + EDGE_TOLERANCE)
}

/// The value at a point, from the contributions of [`Spline::columns`].
#[inline(always)]
pub fn sum_columns(columns: &[f32; TAPS * CHANNELS]) -> Pixel {
    let mut pixel = [0.0; CHANNELS];
    for i in 0..CHANNELS {
        let [a, b, c, d] = [0, 1, 2, 3].map(|column| columns[column * CHANNELS + i]);
        pixel[i] = (a + b) + (c + d);
    }
    pixel
}

/// The prefilter along the columns, for the rows of a band. Dispatched by SIMD instruction set.
struct ColumnFilter<'a> {
    image: &'a [f32],
    illumination: &'a UpsampledIllumination,
    size: (usize, usize),
    /// The band's first row.
    start: usize,
    /// `[rows of the band, w]`
    filtered: &'a mut [Pixel],
}

impl NullaryFnOnce for ColumnFilter<'_> {
    type Output = ();

    /// A causal and an anticausal pass with mirror boundaries (Unser 1999, box 2), from so far outside
    /// the band that their initial values do not matter.
    #[inline(always)]
    fn call(self) {
        let (h, w) = self.size;
        let height = self.filtered.len() / w;
        let mut lines = vec![[0.0; 3 * STRIP]; height + 2 * WARM_UP];
        for x in (0..w).step_by(STRIP) {
            let width = STRIP.min(w - x);
            let mut sums = [0.0; 3 * STRIP];
            for (k, line) in lines.iter_mut().enumerate() {
                let y = mirror_index((self.start + k) as isize - WARM_UP as isize, h);
                let ([above, below], t) = self.illumination.row(y);
                let image = &self.image[3 * (y * w + x)..][..3 * width];
                let (above, below) = (&above[3 * x..][..3 * width], &below[3 * x..][..3 * width]);
                for i in 0..3 * width {
                    let illumination = above[i] + t * (below[i] - above[i]);
                    sums[i] = GAIN * (image[i] - illumination) + POLE * sums[i];
                    line[i] = sums[i];
                }
            }
            sums.fill(0.0);
            for (k, line) in lines.iter().enumerate().skip(WARM_UP).rev() {
                for (sum, value) in sums.iter_mut().zip(line) {
                    *sum = POLE * (*sum - value);
                }
                if let Some(row) = self.filtered.chunks_exact_mut(w).nth(k - WARM_UP) {
                    let pixels = sums.as_chunks::<3>().0;
                    for (value, [r, g, b]) in row[x..][..width].iter_mut().zip(pixels) {
                        *value = [*r, *g, *b, 0.0];
                    }
                }
            }
        }
    }
}

/// The prefilter along some rows `w` wide, which are then quantised and padded with their mirror image.
/// Dispatched by SIMD instruction set.
struct RowFilter<'a> {
    rows: &'a mut [Pixel],
    quantised: &'a mut [Quantised],
    w: usize,
}

impl NullaryFnOnce for RowFilter<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { rows, quantised, w } = self;
        match rows.len() == ROWS * w {
            true => filter_rows::<ROWS>(rows, w),
            false => {
                for row in rows.chunks_exact_mut(w) {
                    filter_rows::<1>(row, w);
                }
            }
        }
        for (row, quantised) in rows
            .chunks_exact(w)
            .zip(quantised.chunks_exact_mut(w + 2 * PAD))
        {
            quantise(
                row.as_flattened(),
                quantised[PAD..PAD + w].as_flattened_mut(),
            );
            for x in (0..PAD).chain(PAD + w..w + 2 * PAD) {
                quantised[x] = quantised[PAD + mirror_index(x as isize - PAD as isize, w)];
            }
        }
    }
}

/// Both passes along `N` rows at a time, since each pixel of a row depends on the one before.
#[inline(always)]
fn filter_rows<const N: usize>(rows: &mut [Pixel], w: usize) {
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
    for k in 0..=WARM_UP {
        for (sum, row) in sums.iter_mut().zip(&rows) {
            let value = row[mirror_index(k as isize, w)];
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

/// Rounds coefficients to multiples of 1 / [`SCALE`], clamped to the range of `i16`.
#[inline(always)]
fn quantise(values: &[f32], quantised: &mut [i16]) {
    const LARGEST: i32 = i16::MAX as i32;
    for (quantised, value) in quantised.iter_mut().zip(values) {
        let shifted = clamp_to_side(SCALE * value + LARGEST as f32, 2 * LARGEST as usize + 1);
        *quantised = (round_to_u32(shifted) as i32 - LARGEST) as i16;
    }
}

/// The index within `0..side` that an index beyond the edge mirrors. The edge itself is not repeated.
fn mirror_index(at: isize, side: usize) -> usize {
    let period = (2 * side as isize - 2).max(1);
    let at = at.rem_euclid(period) as usize;
    at.min(period as usize - at).min(side - 1)
}

/// The weights of the four coefficients around a point that is `t` beyond the second: the cubic
/// B-spline at t + 1, t, 1 − t and 2 − t.
fn weights(t: f32) -> [f32; TAPS] {
    let s = 1.0 - t;
    let inner = |t: f32| (4.0 + t * t * (3.0 * t - 6.0)) / 6.0;
    let outer = |t: f32| t * t * t / 6.0;
    [outer(s), inner(t), inner(s), outer(t)]
}

#[cfg(test)]
mod tests {
    use super::super::illumination::Illumination;
    use super::super::thumbnail::Thumbnail;
    use super::*;

    fn spline(h: usize, w: usize, value: impl Fn(f32, f32) -> f32) -> Spline {
        let rgb = |i: usize| {
            let (y, x) = ((i / w) as f32, (i % w) as f32);
            [value(y, x), 0.5, -x / w as f32]
        };
        let image: Vec<f32> = (0..h * w).flat_map(rgb).collect();
        let black = Illumination::new(&Thumbnail::new(&vec![0.0; h * w * 3], (h, w)));
        Spline::new(&image, &black.upsampled((h, w)), (h, w), None)
    }

    fn at(spline: &Spline, y: f32, x: f32) -> Pixel {
        sum_columns(&spline.columns(spline.phase(y, x)))
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
                        // Half a quantisation step, and a little for the arithmetic.
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
    fn the_coefficients_of_a_checkerboard_are_in_range() {
        let (h, w) = (40, 50);
        let spline = spline(h, w, |y, x| if (y + x) % 2.0 == 0.0 { 1.0 } else { -1.0 });
        for (y, x) in [(0, 0), (0, 49), (20, 25), (20, 26), (39, 49)] {
            let expected = if (y + x) % 2 == 0 { 1.0 } else { -1.0 };
            let value = at(&spline, y as f32, x as f32)[0];
            assert!((value - expected).abs() < 1e-3, "{y} {x}: {value}");
        }
    }

    #[test]
    fn coefficients_out_of_range_are_clamped() {
        let mut quantised = [0; 4];
        quantise(&[1e9, -1e9, 20.0, 0.5], &mut quantised);
        assert_eq!(
            quantised,
            [i16::MAX, -i16::MAX, i16::MAX, (0.5 * SCALE) as i16]
        );
    }

    #[test]
    fn it_preserves_short_waves() {
        // Four pixels a wave: halfway between pixels, bilinear interpolation would lose 0.29 of it.
        let wave = |y: f32, x: f32| (x * std::f32::consts::FRAC_PI_2 + 0.3 * y).sin();
        let spline = spline(64, 64, wave);
        let worst = (0..400)
            .map(|i| (20.0 + 0.055 * i as f32, 42.0 - 0.053 * i as f32))
            .map(|(y, x)| (at(&spline, y, x)[0] - wave(y, x)).abs())
            .fold(0.0, f32::max);
        assert!(worst < 0.03, "{worst}");
    }

    #[test]
    fn the_edge_is_replicated_beyond_it() {
        let spline = spline(5, 6, |y, x| 0.01 * y + 0.1 * x);
        for (beyond, edge) in [((-3.0, 2.0), (0.0, 2.0)), ((2.5, 90.0), (2.5, 5.0))] {
            assert_eq!(at(&spline, beyond.0, beyond.1), at(&spline, edge.0, edge.1));
        }
    }
}

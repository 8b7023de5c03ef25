// SPDX-License-Identifier: MPL-2.0

//! The features that a convolution is given, rounded to bf16 and padded.

use super::kernel::CHANNELS;
use half::bf16;
use rayon::prelude::*;

/// Features `[h + 2, w + 2, channels]` with a border of zeros. They begin with a cache line, so
/// that each row of a tile is one line; elsewhere it would be parts of two, which take twice as
/// long to load.
#[derive(Default)]
pub struct Padded(Vec<Line>);

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
struct Line([bf16; CHANNELS]);

impl Padded {
    /// Takes up `values` `[h, w, channels]`, and zeros where `active`, of the same shape, is not
    /// above 0.
    pub fn round(
        &mut self,
        [h, w]: [usize; 2],
        channels: usize,
        values: &[f32],
        active: Option<&[f32]>,
    ) -> &[bf16] {
        const ZEROS: Line = Line([bf16::ZERO; CHANNELS]);
        assert!(channels.is_multiple_of(CHANNELS));
        assert_eq!(values.len(), h * w * channels);
        let pixel = channels / CHANNELS;
        let row = (w + 2) * pixel;
        let len = (h + 2) * row;
        if self.0.len() < len {
            self.0.resize(len, ZEROS);
        }
        let lines = &mut self.0[..len];
        lines
            .par_chunks_exact_mut(row)
            .enumerate()
            .for_each(|(y, lines)| {
                if y == 0 || y == h + 1 {
                    lines.fill(ZEROS);
                    return;
                }
                lines[..pixel].fill(ZEROS);
                lines[row - pixel..].fill(ZEROS);
                let range = (y - 1) * w * channels..y * w * channels;
                let active = active.map(|active| &active[range.clone()]);
                round_row(&mut lines[pixel..row - pixel], &values[range], active);
            });
        // SAFETY: a `Line` is its values, without padding.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), len * CHANNELS) }
    }
}

fn round_row(lines: &mut [Line], values: &[f32], active: Option<&[f32]>) {
    if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the features are there.
        unsafe { round_row_avx512(lines, values, active) }
    } else {
        round_row_with(lines, values, active, round);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round_row_avx512(lines: &mut [Line], values: &[f32], active: Option<&[f32]>) {
    // A closure, because a function of such features is none that `round_row_with` could call.
    round_row_with(lines, values, active, |values, to| round_avx512(values, to));
}

#[inline(always)]
fn round_row_with(
    lines: &mut [Line],
    values: &[f32],
    active: Option<&[f32]>,
    round: impl Fn(&[f32; CHANNELS], &mut [bf16; CHANNELS]),
) {
    let values = values.as_chunks::<CHANNELS>().0;
    match active {
        None => {
            for (line, values) in lines.iter_mut().zip(values) {
                round(values, &mut line.0);
            }
        }
        Some(active) => {
            let active = active.as_chunks::<CHANNELS>().0;
            for ((line, values), active) in lines.iter_mut().zip(values).zip(active) {
                let mut masked = *values;
                for (value, active) in masked.iter_mut().zip(active) {
                    *value = if *active > 0.0 { *value } else { 0.0 };
                }
                round(&masked, &mut line.0);
            }
        }
    }
}

/// Rounds to the nearest, ties to even, and what is below the normal numbers to zero, as the
/// instruction does that [`round_avx512`] is made of.
#[inline(always)]
fn round(values: &[f32; CHANNELS], to: &mut [bf16; CHANNELS]) {
    for (value, to) in values.iter().zip(to) {
        let bits = value.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let rounded = if value.is_nan() {
            bits >> 16 | 0x40
        } else if value.abs() < f32::MIN_POSITIVE {
            bits >> 16 & 0x8000
        } else {
            nearest
        };
        *to = bf16::from_bits(rounded as u16);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round_avx512(values: &[f32; CHANNELS], to: &mut [bf16; CHANNELS]) {
    use std::arch::x86_64::*;
    // SAFETY: it loads the 32 values and stores them.
    unsafe {
        let low = _mm512_loadu_ps(values.as_ptr());
        let high = _mm512_loadu_ps(values[16..].as_ptr());
        let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(to.as_mut_ptr().cast(), rounded);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::reference::Array;
    use super::*;

    #[test]
    fn a_border_of_zeros_stands_around_the_values() {
        let mut padded = Padded::default();
        // One after the other in the same memory, so that each finds values of the one before.
        for ([h, w], n) in [([3, 5], 64), ([1, 1], 32), ([4, 2], 96), ([2, 7], 32)] {
            let values: Vec<f32> = Array::random(h, w, n, 1).singles();
            let active: Vec<f32> = Array::random(h, w, n, 2).singles();
            for active in [None, Some(active.as_slice())] {
                let rounded = padded.round([h, w], n, &values, active);
                assert_eq!(rounded.len(), (h + 2) * (w + 2) * n);
                assert_eq!(rounded.as_ptr() as usize % 64, 0);
                for (i, rounded) in rounded.iter().enumerate() {
                    let (y, x, c) = (i / n / (w + 2), i / n % (w + 2), i % n);
                    let inside = (1..=h).contains(&y) && (1..=w).contains(&x);
                    let at = || ((y - 1) * w + x - 1) * n + c;
                    let expected = match active {
                        _ if !inside => 0.0,
                        Some(active) if active[at()] <= 0.0 => 0.0,
                        _ => values[at()],
                    };
                    assert_eq!(rounded.to_bits(), bf16::from_f32(expected).to_bits());
                }
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_instruction() {
        let check = |values: [f32; CHANNELS]| {
            let mut rounded = [bf16::ZERO; CHANNELS];
            round(&values, &mut rounded);
            for (value, rounded) in values.iter().zip(&rounded) {
                if value.is_normal() || value.is_infinite() || *value == 0.0 {
                    let expected = bf16::from_f32(*value).to_bits();
                    assert_eq!(rounded.to_bits(), expected, "{value:e}");
                }
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16") {
                let mut by_instruction = [bf16::ZERO; CHANNELS];
                // SAFETY: the features are there.
                unsafe { round_avx512(&values, &mut by_instruction) };
                assert_eq!(
                    rounded.map(bf16::to_bits),
                    by_instruction.map(bf16::to_bits),
                    "{values:?}"
                );
            }
        };
        let mut edges = [0.0; CHANNELS];
        for (edge, bits) in edges.iter_mut().zip([
            0,
            1 << 31,
            1,
            0x8000_0001,
            0x007f_ffff,
            0x0080_0000,
            0x3f80_7fff,
            0x3f80_8000,
            0x3f80_8001,
            0x3f81_8000,
            0x7f7f_7fff,
            0x7f7f_8000,
            0x7f7f_ffff,
            0x7f80_0000,
            0xff80_0000,
            0x7f80_0001,
            0x7fff_ffff,
            0xffc0_1234,
        ]) {
            *edge = f32::from_bits(bits);
        }
        check(edges);
        let random = Array::random(128, 1, CHANNELS, 1).singles();
        for (seed, values) in random.as_chunks::<CHANNELS>().0.iter().enumerate() {
            // Random bits, in all of the exponents.
            let mixed = |value: f32| {
                f32::from_bits(value.to_bits().wrapping_mul(0x9e37_79b1 + 2 * seed as u32))
            };
            check(*values);
            check(values.map(mixed));
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

//! Vector operations on f32 and bf16, with the AVX-512 extensions that every processor with AMX
//! has.

use half::bf16;
use std::arch::x86_64::*;
use std::mem::transmute;

/// `f32` lanes of a vector.
pub const LANES: usize = 16;

/// Whether this processor has the extensions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// Rounds to the nearest bf16, ties to even; denormals become zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn round(values: __m512) -> [bf16; LANES] {
    // SAFETY: both are 32 bytes without padding, and all bits are a bf16.
    unsafe { transmute(_mm512_cvtneps_pbh(values)) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn widen(values: [bf16; LANES]) -> __m512 {
    // SAFETY: as in `round`.
    let values: __m256i = unsafe { transmute(values) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn load(values: &[f32; LANES]) -> __m512 {
    // SAFETY: there are 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn difference(a: __m512, b: __m512) -> __m512 {
    _mm512_sub_ps(a, b)
}

/// `to = values` where `active` is above 0, else 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn copy_active(values: &[bf16; 32], active: &[bf16; 32], to: &mut [bf16; 32]) {
    // SAFETY: each is 64 bytes. (A bf16 is above 0 exactly if its bits are as an integer, NaN
    // aside.)
    unsafe {
        let mask = _mm512_cmpgt_epi16_mask(
            _mm512_loadu_si512(active.as_ptr().cast()),
            _mm512_setzero_si512(),
        );
        let kept = _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast());
        _mm512_storeu_si512(to.as_mut_ptr().cast(), kept);
    }
}

/// Interleaves 32 rows of 16 columns in pairs, `[16, 16, 2]`: the VNNI layout, in which the tile
/// product takes its second operand.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn interleave_pairs<'a>(row: impl Fn(usize) -> &'a [bf16; LANES]) -> [__m512i; 16] {
    std::array::from_fn(|pair| {
        // SAFETY: there are 16 values.
        let load = |at| unsafe { _mm256_loadu_si256(row(at).as_ptr().cast()) };
        let (first, second) = (load(2 * pair), load(2 * pair + 1));
        let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
        _mm512_or_si512(_mm512_cvtepu16_epi32(first), second)
    })
}

/// Transposes a 16x16 matrix of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn transpose_pairs(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Transpose blocks of 2x2, then of 4x4, whose columns end up in the four 128-bit lanes.
    let twos: [__m512i; 16] = std::array::from_fn(|i| {
        let (upper, lower) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
        match i % 2 {
            0 => _mm512_unpacklo_epi32(upper, lower),
            _ => _mm512_unpackhi_epi32(upper, lower),
        }
    });
    let fours: [__m512i; 16] = std::array::from_fn(|i| {
        let at = i / 4 * 4 + i % 4 / 2;
        match i % 2 {
            0 => _mm512_unpacklo_epi64(twos[at], twos[at + 2]),
            _ => _mm512_unpackhi_epi64(twos[at], twos[at + 2]),
        }
    });
    // Rows 4 * group.. of column 4 * quarter + j are lane `quarter` of `fours[4 * group + j]`.
    std::array::from_fn(|column| {
        let (quarter, j) = (column / 4, column % 4);
        let two = |group: usize| {
            let (upper, lower) = (fours[4 * group + j], fours[4 * group + 4 + j]);
            match quarter % 2 {
                0 => _mm512_shuffle_i32x4::<0x88>(upper, lower),
                _ => _mm512_shuffle_i32x4::<0xdd>(upper, lower),
            }
        };
        match quarter / 2 {
            0 => _mm512_shuffle_i32x4::<0x88>(two(0), two(2)),
            _ => _mm512_shuffle_i32x4::<0xdd>(two(0), two(2)),
        }
    })
}

// SPDX-License-Identifier: MPL-2.0

//! The transforms of Winograd's F(4x4, 3x3) for one row or column of a tile.
//!
//! Four sums of three taps each are the middle of the product of two polynomials, and that product
//! is known by its values at six points (Winograd 1980; Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", CVPR 2016). The points are 0, ±3/4, ±3/2 and ∞: the customary
//! 0, ±1, ±2 and ∞ take the features of a VGG-19 twice as far from those in f64 (2.1e-6, not 1.1e-6).

use pulp::Simd;

/// Sums a tile has on a side.
pub const TILE: usize = 4;
/// Pixels that the sums of a tile see on a side, which is also the number of points.
pub const PATCH: usize = TILE + 2;

/// The points are 0, ±A, ±B and ∞.
const A: f64 = 0.75;
const B: f64 = 1.5;
const A2: f64 = A * A;
const B2: f64 = B * B;

/// G: the values at the points of the polynomial of three taps, divided by what the interpolation
/// between the points divides by.
pub const fn kernel(taps: [f64; 3]) -> [f64; PATCH] {
    let [c0, c1, c2] = taps;
    let (near, far) = (2.0 * A2 * (A2 - B2), 2.0 * B2 * (B2 - A2));
    [
        c0 / (A2 * B2),
        (c0 + A * c1 + A2 * c2) / near,
        (c0 - A * c1 + A2 * c2) / near,
        (c0 + B * c1 + B2 * c2) / far,
        (c0 - B * c1 + B2 * c2) / far,
        c2,
    ]
}

/// Bᵀ: what a row or column of a patch becomes.
#[inline(always)]
pub fn input<S: Simd>(simd: S, d: [S::f32s; PATCH]) -> [S::f32s; PATCH] {
    let times = |factor: f64, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor as f32), x, y);
    let (even_a, odd_a) = (times(-B2, d[2], d[4]), times(-B2, d[1], d[3]));
    let (even_b, odd_b) = (times(-A2, d[2], d[4]), times(-A2, d[1], d[3]));
    [
        times(A2 * B2, d[0], times(-A2 - B2, d[2], d[4])),
        times(A, odd_a, even_a),
        times(-A, odd_a, even_a),
        times(B, odd_b, even_b),
        times(-B, odd_b, even_b),
        times(A2 * B2, d[1], times(-A2 - B2, d[3], d[5])),
    ]
}

/// Aᵀ: the sums, from the products at the points.
#[inline(always)]
pub fn output<S: Simd>(simd: S, m: [S::f32s; PATCH]) -> [S::f32s; TILE] {
    let times = |factor: f64, x, y| simd.mul_add_e_f32s(simd.splat_f32s(factor as f32), x, y);
    let scaled = |factor: f64, x| simd.mul_f32s(simd.splat_f32s(factor as f32), x);
    let (even_a, odd_a) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even_b, odd_b) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(m[0], simd.add_f32s(even_a, even_b)),
        times(A, odd_a, scaled(B, odd_b)),
        times(A2, even_a, scaled(B2, even_b)),
        times(A * A2, odd_a, times(B * B2, odd_b, m[5])),
    ]
}

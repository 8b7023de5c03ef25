// SPDX-License-Identifier: MPL-2.0

//! The one-dimensional transforms of Winograd's F(4x4, 3x3), for a row or column of a tile.
//!
//! The four sums of three taps are obtained by interpolating a product of two polynomials at six
//! points (Winograd 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
//! 2016). The points are 0, ±3/4, ±3/2 and ∞. With the customary 0, ±1, ±2 and ∞, the error of a
//! VGG-19's features to those in f64 is twice as large.

use pulp::Simd;

/// Side of an output tile.
pub const OUTPUT_TILE: usize = 4;
/// Side of an input tile, which is also the number of points.
pub const INPUT_TILE: usize = OUTPUT_TILE + 2;

/// The points are 0, ±A, ±B and ∞.
const A: f64 = 0.75;
const B: f64 = 1.5;
const A2: f64 = A * A;
const B2: f64 = B * B;

/// G g: the values of the polynomial with coefficients `taps` at the points, over the denominators
/// of the Lagrange interpolation.
pub const fn filter(taps: [f64; 3]) -> [f64; INPUT_TILE] {
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

/// Bᵀ d, of a row or column of an input tile.
#[inline(always)]
pub fn input<S: Simd>(simd: S, d: [S::f32s; INPUT_TILE]) -> [S::f32s; INPUT_TILE] {
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

/// Aᵀ m: the sums, from the products at the points.
#[inline(always)]
pub fn output<S: Simd>(simd: S, m: [S::f32s; INPUT_TILE]) -> [S::f32s; OUTPUT_TILE] {
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

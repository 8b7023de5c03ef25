// SPDX-License-Identifier: MPL-2.0

//! The micro-kernel of the `f32` convolutions on the CPU (a BLIS-style GEMM): a group of rows times
//! a packed panel of columns, with the accumulators in vector registers.

use aligned_vec::AVec;
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

/// Vectors per row of a panel: its width in columns is `PANEL_VECTORS * lanes()`.
pub const PANEL_VECTORS: usize = 2;

/// `f32` lanes of a vector on this CPU.
pub fn lanes() -> usize {
    struct Lanes;

    impl WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }

    Arch::new().dispatch(Lanes)
}

/// Splits `rows` into nearly equal groups whose accumulators fit in the vector registers.
#[inline(always)]
pub fn row_groups<S: Simd>(rows: usize) -> impl Iterator<Item = Range<usize>> {
    // 16 registers with AVX2 (8 lanes) or without SIMD (1 lane), 32 with AVX-512 (16) or NEON (4).
    let most = if matches!(S::F32_LANES, 4 | 16) {
        12
    } else {
        6
    };
    let groups = rows.div_ceil(most);
    (0..groups).map(move |group| group * rows / groups..(group + 1) * rows / groups)
}

/// Multiplies a group of rows by a panel: writes the product of `values` `[depth / lanes, rows,
/// lanes]` and `panel` `[depth, PANEL_VECTORS]` to `sums[row * stride..][..PANEL_VECTORS]` for each
/// row, and meanwhile prefetches `next`.
#[inline(always)]
pub fn multiply<S: Simd>(
    simd: S,
    rows: usize,
    values: &[f32],
    panel: &[S::f32s],
    next: &[S::f32s],
    sums: &mut [S::f32s],
    stride: usize,
) {
    match rows {
        1 => multiply_rows::<S, 1>(simd, values, panel, next, sums, stride),
        2 => multiply_rows::<S, 2>(simd, values, panel, next, sums, stride),
        3 => multiply_rows::<S, 3>(simd, values, panel, next, sums, stride),
        4 => multiply_rows::<S, 4>(simd, values, panel, next, sums, stride),
        5 => multiply_rows::<S, 5>(simd, values, panel, next, sums, stride),
        6 => multiply_rows::<S, 6>(simd, values, panel, next, sums, stride),
        7 => multiply_rows::<S, 7>(simd, values, panel, next, sums, stride),
        8 => multiply_rows::<S, 8>(simd, values, panel, next, sums, stride),
        9 => multiply_rows::<S, 9>(simd, values, panel, next, sums, stride),
        10 => multiply_rows::<S, 10>(simd, values, panel, next, sums, stride),
        11 => multiply_rows::<S, 11>(simd, values, panel, next, sums, stride),
        12 => multiply_rows::<S, 12>(simd, values, panel, next, sums, stride),
        _ => unreachable!("a group has 1 to 12 rows"),
    }
}

#[inline(always)]
fn multiply_rows<S: Simd, const ROWS: usize>(
    simd: S,
    values: &[f32],
    panel: &[S::f32s],
    next: &[S::f32s],
    sums: &mut [S::f32s],
    stride: usize,
) {
    let mut accumulators = [[simd.splat_f32s(0.0); PANEL_VECTORS]; ROWS];
    let steps = panel.len() / (PANEL_VECTORS * S::F32_LANES);
    let values = values.chunks_exact(ROWS * S::F32_LANES);
    let panel = panel.chunks_exact(PANEL_VECTORS * S::F32_LANES);
    let mut next = next.chunks(next.len().div_ceil(steps).max(1));
    for (values, panel) in values.zip(panel) {
        for vector in next.next().unwrap_or_default() {
            prefetch(vector);
        }
        for k in 0..S::F32_LANES {
            for (row, accumulators) in accumulators.iter_mut().enumerate() {
                let value = simd.splat_f32s(values[row * S::F32_LANES + k]);
                for (vector, sum) in accumulators.iter_mut().enumerate() {
                    *sum = simd.mul_add_e_f32s(value, panel[k * PANEL_VECTORS + vector], *sum);
                }
            }
        }
    }
    for (row, accumulators) in accumulators.iter().enumerate() {
        sums[row * stride..][..PANEL_VECTORS].copy_from_slice(accumulators);
    }
}

/// Prefetches the cache line in which `value` begins into the L2 cache.
#[inline(always)]
fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which changes nothing but caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// The first `len` values of `scratch`, which grows if it is shorter.
pub fn scratch_slice(scratch: &mut AVec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

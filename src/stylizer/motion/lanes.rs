// SPDX-License-Identifier: MPL-2.0

//! Vectors of a fixed number of lanes, which the compiler turns into SIMD instructions.

/// The number of values computed at a time. [`Lanes`] are passed by value, so that the compiler need
/// not assume that a store changes what was loaded.
pub const LANES: usize = 16;
pub type Lanes = [f32; LANES];

#[inline(always)]
pub fn load(values: &[f32], at: usize) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[at..at + LANES]);
    lanes
}

/// The first `count` values, padded with zeros where `values` has fewer than [`LANES`].
#[inline(always)]
pub fn load_partial(values: &[f32], count: usize) -> Lanes {
    match values.first_chunk() {
        Some(values) => *values,
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..count].copy_from_slice(&values[..count]);
            lanes
        }
    }
}

#[inline(always)]
pub fn store(values: &mut [f32], at: usize, lanes: Lanes) {
    values[at..at + LANES].copy_from_slice(&lanes);
}

/// Lanes whose values are a function of their index.
#[inline(always)]
pub fn lanes(value: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = value(i);
    }
    lanes
}

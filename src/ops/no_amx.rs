// SPDX-License-Identifier: MPL-2.0

//! In place of AMX, on processors that are not x86-64: there is none, so nothing here ever runs.

use candle_core::{Result, bail};
use half::bf16;

/// What all numbers of channels would be multiples of.
pub const CHANNELS: usize = 32;

/// The right to use AMX.
#[derive(Clone, Copy)]
pub enum Amx {}

impl Amx {
    pub fn new() -> Option<Self> {
        None
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        None
    }

    pub(super) fn needed() -> Result<Self> {
        bail!("bf16 on the CPU needs AMX")
    }
}

pub struct Conv(Amx);

impl Conv {
    pub fn new(
        amx: Amx,
        _: usize,
        _: Vec<f32>,
        _: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        match amx {}
    }

    pub fn bytes(&self) -> usize {
        match self.0 {}
    }

    pub fn forward(&self, _: [usize; 2], _: &[bf16], _: &mut [bf16]) {
        match self.0 {}
    }

    pub fn backward(&self, _: [usize; 2], _: &[bf16], _: &[bf16], _: &mut [bf16]) {
        match self.0 {}
    }
}

pub struct ImageConv(Amx);

impl ImageConv {
    pub fn new(amx: Amx, _: Vec<f32>, _: impl Fn(usize, usize, usize) -> f32 + Sync) -> Self {
        match amx {}
    }

    pub fn bytes(&self) -> usize {
        match self.0 {}
    }

    pub fn forward(&self, _: [usize; 2], _: &[f32], _: &mut [bf16]) {
        match self.0 {}
    }

    pub fn backward(&self, _: [usize; 2], _: &[bf16], _: &[bf16], _: &mut [f32]) {
        match self.0 {}
    }
}

#[derive(Default)]
pub struct Matrix;

impl Matrix {
    pub fn set(&mut self, _: usize, _: usize, _: impl Fn(usize, usize) -> f32 + Sync) {}
}

pub fn gram(amx: Amx, _: &[bf16], _: usize, _: &mut [f32]) {
    match amx {}
}

pub fn gram_backward(amx: Amx, _: &[bf16], _: &Matrix, _: &mut [bf16], _: bool) {
    match amx {}
}

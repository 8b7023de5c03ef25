// SPDX-License-Identifier: MPL-2.0

//! A stand-in for the `amx` module on architectures other than x86-64. [`Amx`] has no values, so
//! nothing here can run.

use candle_core::{Result, bail};
use half::bf16;

/// As on x86-64.
pub const CHANNEL_MULTIPLE: usize = 32;

/// Proof that this process may use AMX.
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

    pub(super) fn require() -> Result<Self> {
        bail!("bf16 on the CPU needs AMX")
    }
}

pub struct AmxConv(Amx);

impl AmxConv {
    pub fn new(
        amx: Amx,
        _: usize,
        _: Vec<f32>,
        _: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        match amx {}
    }

    pub fn forward(&self, _: [usize; 2], _: &[bf16], _: &mut [bf16]) {
        match self.0 {}
    }

    pub fn backward(&self, _: [usize; 2], _: &[bf16], _: &[bf16], _: &mut [bf16]) {
        match self.0 {}
    }
}

pub struct AmxImageConv(Amx);

impl AmxImageConv {
    pub fn new(amx: Amx, _: Vec<f32>, _: impl Fn(usize, usize, usize) -> f32 + Sync) -> Self {
        match amx {}
    }

    pub fn forward(&self, _: [usize; 2], _: &[f32], _: &mut [bf16]) {
        match self.0 {}
    }

    pub fn backward(&self, _: [usize; 2], _: &[bf16], _: &[bf16], _: &mut [f32]) {
        match self.0 {}
    }
}

#[derive(Default)]
pub struct VnniMatrix;

impl VnniMatrix {
    pub fn set(&mut self, _: usize, _: usize, _: impl Fn(usize, usize) -> f32 + Sync) {}
}

pub fn gram(amx: Amx, _: &[bf16], _: usize, _: &mut [f32]) {
    match amx {}
}

pub fn gram_backward(amx: Amx, _: &[bf16], _: &VnniMatrix, _: &mut [bf16], _: bool) {
    match amx {}
}

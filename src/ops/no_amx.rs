// SPDX-License-Identifier: MPL-2.0

//! In place of AMX, on processors that are not x86-64: there is none, so nothing here ever runs.

/// What the numbers of channels would be multiples of.
pub const CHANNELS: usize = 32;

/// The right to use AMX.
#[derive(Clone)]
pub enum Amx {}

impl Amx {
    pub fn new() -> Option<Self> {
        None
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        None
    }
}

pub struct Conv(Amx);

impl Conv {
    pub fn new(
        amx: &Amx,
        _: usize,
        _: Vec<f32>,
        _: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        match *amx {}
    }

    pub fn bytes(&self) -> usize {
        match self.0 {}
    }

    pub fn forward(&self, _: [usize; 2], _: &[f32], _: &mut [f32]) {
        match self.0 {}
    }

    pub fn backward(&self, _: [usize; 2], _: &[f32], _: &[f32], _: &mut [f32]) {
        match self.0 {}
    }
}

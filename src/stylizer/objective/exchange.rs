// SPDX-License-Identifier: MPL-2.0

//! The scalars of an evaluation that pass between the host and the device.

use crate::ops::elementwise::copy;
use crate::ops::transfer::SumsReader;
use candle_core::{DType, Device, Result, Tensor};

/// A term's scalars on the device: its kernels leave its sum, `f64` `[1]`, and read the factor of
/// its gradient, `f32` `[1]`.
pub struct TermSlot {
    pub index: usize,
    pub sum: Tensor,
    pub factor: Tensor,
}

/// The sums and the factors of all terms; either vector is transferred in one piece.
pub struct Exchange {
    sums: Tensor,
    reader: SumsReader,
    factors: Tensor,
    /// The factors that are on the device.
    written: Vec<f32>,
    allocated: usize,
}

impl Exchange {
    pub fn new(slots: usize, device: &Device) -> Result<Self> {
        let sums = Tensor::zeros(slots, DType::F64, device)?;
        Ok(Self {
            reader: SumsReader::new(sums.clone())?,
            sums,
            factors: Tensor::zeros(slots, DType::F32, device)?,
            written: vec![0.0; slots],
            allocated: 0,
        })
    }

    /// The next free slot.
    pub fn allocate(&mut self) -> Result<TermSlot> {
        let index = self.allocated;
        self.allocated += 1;
        Ok(TermSlot {
            index,
            sum: self.sums.narrow(0, index, 1)?,
            factor: self.factors.narrow(0, index, 1)?,
        })
    }

    /// The number of slots.
    pub fn slots(&self) -> usize {
        self.written.len()
    }

    /// Transfers the factors, in the order of the slots, unless they are on the device already.
    pub fn write_factors(&mut self, factors: Vec<f32>) -> Result<()> {
        if factors != self.written {
            let device = self.factors.device();
            let values = Tensor::from_slice(&factors, factors.len(), device)?;
            copy(&self.factors, &values)?;
            self.written = factors;
        }
        Ok(())
    }

    /// The sums in the order of the slots; waits for the device.
    pub fn read_sums(&mut self) -> Result<Vec<f64>> {
        self.reader.read()
    }
}

// SPDX-License-Identifier: MPL-2.0

//! What crosses between the host and the device in an evaluation.

use candle_core::{DType, Device, Tensor};

/// Where a term leaves its sum, `f64` `[1]`, and finds the factor of its gradient, `f32` `[1]`.
pub struct Place {
    pub index: usize,
    pub sum: Tensor,
    pub factor: Tensor,
}

/// The sums and the factors of all terms: each crosses to the device, or back, in one piece.
pub struct Exchange {
    pub sums: Tensor,
    factors: Tensor,
    /// The factors that are on the device.
    written: Vec<f32>,
    pub places: usize,
}

impl Exchange {
    pub fn new(places: usize, device: &Device) -> candle_core::Result<Self> {
        Ok(Self {
            sums: Tensor::zeros(places, DType::F64, device)?,
            factors: Tensor::zeros(places, DType::F32, device)?,
            written: vec![0.0; places],
            places: 0,
        })
    }

    pub fn place(&mut self) -> candle_core::Result<Place> {
        let index = self.places;
        self.places += 1;
        Ok(Place {
            index,
            sum: self.sums.narrow(0, index, 1)?,
            factor: self.factors.narrow(0, index, 1)?,
        })
    }

    pub fn write(&mut self, factors: Vec<f32>) -> candle_core::Result<()> {
        if factors != self.written {
            let device = self.factors.device();
            let values = Tensor::from_slice(&factors, factors.len(), device)?;
            self.factors.slice_set(&values, 0, 0)?;
            self.written = factors;
        }
        Ok(())
    }
}

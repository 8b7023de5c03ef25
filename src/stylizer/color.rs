// SPDX-License-Identifier: MPL-2.0

//! Transfer in luminance only (Gatys et al., "Preserving Color in Neural Artistic Style
//! Transfer", 2016, section 4): the frame and the style image are made grey before the
//! optimisation, and the frame's chrominance is put back after it.

use candle_core::{Result, Tensor};

/// Rec. 601 luma of R, G and B.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// The luma of an image `[h, w, 3]`, `[h, w, 1]`.
fn luma(image: &Tensor) -> Result<Tensor> {
    let weights = Tensor::new(&LUMA, image.device())?;
    image.broadcast_mul(&weights)?.sum_keepdim(2)
}

/// An image `[h, w, 3]` in grey.
pub fn grey(image: &Tensor) -> Result<Tensor> {
    luma(image)?.broadcast_as(image.shape())?.contiguous()
}

/// `result`'s luma with `frame`'s chrominance, both `[h, w, 3]`, held within 0..1.
pub fn with_chrominance(result: &Tensor, frame: &Tensor) -> Result<Tensor> {
    frame
        .broadcast_add(&(luma(result)? - luma(frame)?)?)?
        .clamp(0f32, 1f32)
}

// SPDX-License-Identifier: MPL-2.0

// The kernels of the CUDA side of the operations. Images are float [h, w, 3]; features are T
// [h, w, n], channels last. A kernel's suffix names T: f32, f16 or bf16, followed by x4 or x8 if a
// thread loads and stores that many neighbouring channels at once.
//
// Blocks have THREADS threads. Loops are grid-strided, so that any grid computes the same values, unless
// a kernel has a block for each tile. Sums are taken in double. They are deterministic for a given grid:
// each block writes a partial sum to a row of partials, [sums, gridDim.x], and sum_partials adds these up
// in a fixed order.

#include "common.cuh"
#include "convolution.cuh"
#include "features.cuh"
#include "image.cuh"
#include "image_conv.cuh"
#include "lbfgs.cuh"

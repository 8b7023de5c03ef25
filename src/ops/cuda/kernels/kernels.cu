// SPDX-License-Identifier: MPL-2.0

// The kernels of the CUDA side of the operations. Images are float [h, w, 3]; features are T
// [h, w, n], channels last, where a kernel's suffix says what T is: f32, f16 or bf16, with x4 or x8
// if a thread handles so many neighbouring channels at a time.
//
// Blocks have THREADS threads, and any grid will do: what there is to do is strided over it. Sums
// are taken in double and in a fixed order. Each block writes a partial sum to partials, which is
// [gridDim.y, gridDim.x].

#include "common.cuh"
#include "convolution.cuh"
#include "features.cuh"
#include "image.cuh"
#include "lbfgs.cuh"

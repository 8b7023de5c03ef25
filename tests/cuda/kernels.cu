// SPDX-License-Identifier: MPL-2.0

// The crate's kernels for the CPU. There are none of candle's: those that it compiles ahead run on one compute capability alone.

#include "../../src/ops/cuda/kernels/kernels.cu"

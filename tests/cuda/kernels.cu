// SPDX-License-Identifier: MPL-2.0

// The kernels for the CPU: the crate's, and those of candle's that its tensors need.

#include "../../src/ops/cuda/kernels/kernels.cu"

#include <cstddef>

KERNEL const_set_f64(size_t count, size_t rank, const size_t* layout, double value, double* values) {
    grid_stride(count, [=](long long i) {
        size_t offset = layout ? 0 : i, rest = i;
        for (size_t d = rank; layout && d-- > 0; rest /= layout[d]) {
            offset += rest % layout[d] * layout[rank + d];
        }
        values[offset] = value;
    });
}

KERNEL copy2d_f32(const float* from, float* to, unsigned rows, unsigned columns, unsigned from_stride, unsigned to_stride) {
    grid_stride((long long)rows * columns, [=](long long i) {
        to[i / columns * to_stride + i % columns] = from[i / columns * from_stride + i % columns];
    });
}

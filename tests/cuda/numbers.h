// SPDX-License-Identifier: MPL-2.0

// Arrays in the formats of features, as float.

#pragma once

#include "../../src/ops/cuda/kernels/host.h"

#include <cstddef>
#include <cstdint>
#include <vector>

enum class Format { F32, F16, BF16 };

inline size_t width(Format format) {
    return format == Format::F32 ? 4 : 2;
}

inline float read_value(const void* from, size_t i, Format format) {
    switch (format) {
    case Format::F16:
        return half_to_float(((uint16_t*)from)[i]);
    case Format::BF16:
        return __uint_as_float((uint32_t)((uint16_t*)from)[i] << 16);
    default:
        return ((float*)from)[i];
    }
}

inline std::vector<float> read_values(const void* from, size_t count, Format format) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; i++) {
        values[i] = read_value(from, i, format);
    }
    return values;
}

// Rounds to nearest, ties to even.
inline void write_value(void* to, size_t i, Format format, float value) {
    uint32_t bits = __float_as_uint(value);
    switch (format) {
    case Format::F16:
        ((uint16_t*)to)[i] = float_to_half(value);
        break;
    case Format::BF16:
        ((uint16_t*)to)[i] = std::isnan(value) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        break;
    default:
        ((float*)to)[i] = value;
    }
}

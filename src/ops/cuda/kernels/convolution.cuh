// SPDX-License-Identifier: MPL-2.0

// The convolution of features, for sizes and formats that cuDNN has none for.

#pragma once

#include "common.cuh"

// Positions and channels that a block computes at a time, and the terms of their sums that it has
// at hand.
constexpr int TILE = 64;
constexpr int DEPTH = 16;

// What term k of the sums at a position is a multiple of: the value of channel k % n at the tap
// k / n around it, 0 beyond the border.
template <typename T>
__device__ float term(const T* input, long long position, int k, int h, int w, int n) {
    int tap = k / n;
    int y = (int)(position / w) + tap / 3 - 1, x = (int)(position % w) + tap % 3 - 1;
    bool inside = y >= 0 && y < h && x >= 0 && x < w;
    return inside ? single(input[((long long)y * w + x) * n + k % n]) : 0;
}

// output [h, w, n_out] = input * kernel for an input [h, w, n_in] within zeros and a kernel
// [n_out, 3, 3, n_in].
template <typename T>
__device__ void convolution(const T* input, const T* kernel, T* output, int h, int w, int n_in, int n_out) {
    __shared__ float terms[DEPTH][TILE], weights[DEPTH][TILE];
    long long positions = (long long)h * w;
    int across = (n_out + TILE - 1) / TILE, depth = 9 * n_in;
    long long tiles = (positions + TILE - 1) / TILE * across;
    // A thread computes four channels at each of four positions.
    int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        long long position = tile / across * TILE;
        int channel = (int)(tile % across) * TILE;
        float sums[4][4] = {};
        for (int start = 0; start < depth; start += DEPTH) {
            // Nobody reads the terms before any more.
            __syncthreads();
            for (int i = threadIdx.x; i < DEPTH * TILE; i += THREADS) {
                int k = i % DEPTH, at = i / DEPTH;
                bool there = start + k < depth;
                terms[k][at] = there && position + at < positions
                                   ? term(input, position + at, start + k, h, w, n_in)
                                   : 0;
                weights[k][at] = there && channel + at < n_out
                                     ? single(kernel[(long long)(channel + at) * depth + start + k])
                                     : 0;
            }
            __syncthreads();
            for (int k = 0; k < DEPTH; k++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        sums[i][j] += terms[k][row + i] * weights[k][column + j];
                    }
                }
            }
        }
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                if (position + row + i < positions && channel + column + j < n_out) {
                    output[(position + row + i) * n_out + channel + column + j] = nearest<T>(sums[i][j]);
                }
            }
        }
    }
}

#define CONVOLUTION(NAME, T)                                                                                        \
    KERNEL convolution_##NAME(const T* input, const T* kernel, T* output, int h, int w, int n_in, int n_out) {      \
        convolution(input, kernel, output, h, w, n_in, n_out);                                                      \
    }

CONVOLUTION(f32, float)
CONVOLUTION(f16, Half)
CONVOLUTION(bf16, Bfloat)
#undef CONVOLUTION

// SPDX-License-Identifier: MPL-2.0

// The fallback for convolutions of features that cuDNN does not support: a plain implicit GEMM.

#pragma once

#include "common.cuh"

// A block computes a tile of TILE positions x TILE output channels, TILE_K terms of their sums at a
// time.
constexpr int TILE = 64;
constexpr int TILE_K = 16;

// Element k of a position's row of the im2col matrix: channel k % n of the neighbour at tap k / n,
// zero beyond the border.
template <typename T>
__device__ float im2col(const T* input, long long position, int k, int h, int w, int n) {
    int tap = k / n;
    int y = (int)(position / w) + tap / 3 - 1, x = (int)(position % w) + tap % 3 - 1;
    bool inside = y >= 0 && y < h && x >= 0 && x < w;
    return inside ? to_float(input[((long long)y * w + x) * n + k % n]) : 0;
}

// output [h, w, n_out] = input * kernel for an input [h, w, n_in], padded with zeros, and a kernel
// [n_out, 3, 3, n_in].
template <typename T>
__device__ void convolution(const T* input, const T* kernel, T* output, int h, int w, int n_in, int n_out) {
    __shared__ float inputs[TILE_K][TILE], weights[TILE_K][TILE];
    long long positions = (long long)h * w;
    int across = (n_out + TILE - 1) / TILE, depth = 9 * n_in;
    long long tiles = (positions + TILE - 1) / TILE * across;
    // A thread computes 4 positions x 4 channels.
    int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        long long position = tile / across * TILE;
        int channel = (int)(tile % across) * TILE;
        float sums[4][4] = {};
        for (int start = 0; start < depth; start += TILE_K) {
            // All threads are done with the tiles before.
            __syncthreads();
            for (int i = threadIdx.x; i < TILE_K * TILE; i += THREADS) {
                int k = i % TILE_K, at = i / TILE_K;
                bool inside = start + k < depth;
                inputs[k][at] = inside && position + at < positions
                                    ? im2col(input, position + at, start + k, h, w, n_in)
                                    : 0;
                weights[k][at] = inside && channel + at < n_out
                                     ? to_float(kernel[(long long)(channel + at) * depth + start + k])
                                     : 0;
            }
            __syncthreads();
            for (int k = 0; k < TILE_K; k++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        sums[i][j] += inputs[k][row + i] * weights[k][column + j];
                    }
                }
            }
        }
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++) {
                if (position + row + i < positions && channel + column + j < n_out) {
                    output[(position + row + i) * n_out + channel + column + j] = round_to<T>(sums[i][j]);
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

// SPDX-License-Identifier: MPL-2.0

// The network's first convolution, from the image to features, and its gradient with respect to the
// image. The image is padded by replicating its edge.

#pragma once

#include "common.cuh"

// Pixels of a row that a block convolves at a time, and that a thread does.
constexpr int STRIP = 64;
constexpr int THREAD_PIXELS = 4;
// Floats of a strip with a halo of one pixel at either end, rounded up to whole packs.
constexpr int STRIP_FLOATS = 3 * (STRIP + 2) + 2;

// output [h, w, n] = relu(image * kernel + bias) for an image [h, w, 3] and a kernel
// [3, 3, 3 input channels, n].
template <typename T>
__device__ void image_conv(const float* __restrict__ image, const float* __restrict__ kernel,
                           const float* __restrict__ bias, T* output, int h, int w, int n) {
    __shared__ Pack<float, 4> pixels[3][STRIP_FLOATS / 4];
    // A thread computes one output channel and keeps its weights in registers. A group of threads
    // covers the channels; the groups divide the strip's pixels among themselves.
    int group_size = min(n, THREADS), groups = THREADS / group_size;
    int group = threadIdx.x / group_size;
    int span = (STRIP / THREAD_PIXELS + groups - 1) / groups * THREAD_PIXELS;
    int across = (w + STRIP - 1) / STRIP;
    for (int first = 0; first < n; first += group_size) {
        int channel = first + threadIdx.x % group_size;
        bool active = channel < n;
        float taps[27];
        for (int tap = 0; tap < 27; tap++) {
            taps[tap] = active ? kernel[tap * n + channel] : 0;
        }
        float offset = active ? bias[channel] : 0;
        for (int strip = blockIdx.x; strip < h * across; strip += gridDim.x) {
            int y = strip / across, x = strip % across * STRIP;
            // All threads are done with the strip before.
            __syncthreads();
            for (int i = threadIdx.x; i < 9 * (STRIP + 2); i += THREADS) {
                int row = i / (3 * (STRIP + 2)), column = i % (3 * (STRIP + 2));
                int from_y = min(max(y + row - 1, 0), h - 1);
                int from_x = min(max(x + column / 3 - 1, 0), w - 1);
                pixels[row][column / 4].values[column % 4] = image[((long long)from_y * w + from_x) * 3 + column % 3];
            }
            __syncthreads();
            int end = min(min((group + 1) * span, STRIP), w - x);
            for (int start = group * span; active && start < end; start += THREAD_PIXELS) {
                float sums[THREAD_PIXELS];
#pragma unroll
                for (int i = 0; i < THREAD_PIXELS; i++) {
                    sums[i] = offset;
                }
#pragma unroll
                for (int row = 0; row < 3; row++) {
                    // The thread's pixels with their halo, in whole packs.
                    Pack<float, 4> inputs[5];
#pragma unroll
                    for (int pack = 0; pack < 5; pack++) {
                        inputs[pack] = pixels[row][start * 3 / 4 + pack];
                    }
#pragma unroll
                    for (int i = 0; i < THREAD_PIXELS; i++) {
#pragma unroll
                        for (int tap = 0; tap < 9; tap++) {
                            int at = 3 * i + tap;
                            sums[i] += taps[row * 9 + tap] * inputs[at / 4].values[at % 4];
                        }
                    }
                }
                T* outputs = output + ((long long)y * w + x + start) * n + channel;
#pragma unroll
                for (int i = 0; i < THREAD_PIXELS; i++, outputs += n) {
                    if (start + i < end) {
                        *outputs = round_to<T>(fmaxf(sums[i], 0));
                    }
                }
            }
        }
    }
}

// The tile of positions whose gradient a block computes, and the patch of these that a thread does, so that
// what it loads serves several sums. A group of threads covers the tile; the groups divide the channels
// among themselves.
constexpr int TILE_W = 32, TILE_H = THREADS / TILE_W;
constexpr int PATCH_W = 2, PATCH_H = 4;
constexpr int PATCHES_ACROSS = TILE_W / PATCH_W;
constexpr int GROUPS = PATCH_W * PATCH_H;
constexpr int GROUP_THREADS = THREADS / GROUPS;
// The tile of outputs that these depend on, which has a halo of one pixel, and the channels that are
// staged in shared memory at a time.
constexpr int HALO_W = TILE_W + 2, HALO_H = TILE_H + 2;
constexpr int CHANNEL_SLICE = 32;
// Floats from a channel to the next one: even, for loads of pairs, but no multiple of 4, which would store
// a pixel's channels to fewer banks.
constexpr int CHANNEL_STRIDE = HALO_W * HALO_H + 2;
static_assert(CHANNEL_STRIDE % 4 == 2);

union GradientTile {
    // The upstream gradient after the ReLU's derivative.
    alignas(8) float masked[CHANNEL_SLICE][CHANNEL_STRIDE];
    // The sums over each group's channels.
    float sums[GROUPS][TILE_H][TILE_W][3];
};

// Where the first tile begins along an axis. The gradient at the padding is added to that of the pixel at
// the edge, so no tile may begin between the two.
__device__ inline int first_tile(int side, int tile) {
    return (side + 1) % tile == 0 ? -2 : -1;
}

// Stages channels `first` and up of the tile at (top, left) with its halo; 0 outside of the image.
template <typename T, int N>
__device__ void stage_masked(const T* __restrict__ upstream, const T* __restrict__ output, int top, int left,
                             int first, int h, int w, int n, GradientTile& tile) {
    // A thread stages the same channels of all its pixels.
    constexpr int PACKS = CHANNEL_SLICE / N;
    int packs = n / N, pack = first / N + (int)threadIdx.x % PACKS, from = min(pack, packs - 1);
    float* masked = tile.masked[threadIdx.x % PACKS * N];
    for (int pixel = threadIdx.x / PACKS; pixel < HALO_W * HALO_H; pixel += THREADS / PACKS) {
        int row = pixel / HALO_W, y = top - 1 + row, x = left - 1 + pixel - row * HALO_W;
        // What is outside is loaded from the nearest inside, so that the loads need no branch.
        int from_y = min(max(y, 0), h - 1), from_x = min(max(x, 0), w - 1);
        bool inside = (y == from_y) & (x == from_x) & (pack == from);
        long long at = (long long)(from_y * w + from_x) * packs + from;
        Pack<T, N> gradients = load<N>(upstream, at), outputs = load<N>(output, at);
#pragma unroll
        for (int k = 0; k < N; k++) {
            bool open = inside & (to_float(outputs.values[k]) > 0);
            masked[k * CHANNEL_STRIDE + pixel] = open ? to_float(gradients.values[k]) : 0;
        }
    }
}

// Adds a channel's part to the sums of the patch at `masked`: at (y, x) the output at (y + 1 - i, x + 1 - j)
// times tap (i, j).
__device__ inline void add_channel(const float* masked, const float* taps, float (&sums)[PATCH_H][PATCH_W][3]) {
    Pack<float, 4> weights[7];
#pragma unroll
    for (int pack = 0; pack < 7; pack++) {
        weights[pack] = load<4>(taps, pack);
    }
#pragma unroll
    for (int row = 0; row < PATCH_H + 2; row++) {
        Pack<float, 2> values[PATCH_W / 2 + 1];
#pragma unroll
        for (int pair = 0; pair < PATCH_W / 2 + 1; pair++) {
            values[pair] = load<2>(masked, row * HALO_W / 2 + pair);
        }
#pragma unroll
        for (int at = 0; at < 27; at++) {
            int y = row - 2 + at / 9, c = at % 3;
#pragma unroll
            for (int x = 0; x < PATCH_W; x++) {
                int column = x + 2 - at / 3 % 3;
                if (y >= 0 && y < PATCH_H) {
                    sums[y][x][c] += values[column / 2].values[column % 2] * weights[at / 4].values[at % 4];
                }
            }
        }
    }
}

// Writes the gradient at (row, column) of the tile at (top, left): the sum over the groups, there and at
// the padding that replicates this pixel.
__device__ inline void write_gradient(const GradientTile& tile, int row, int column, int top, int left,
                                      float* gradient, int h, int w) {
    int y = top + row, x = left + column;
    if (y < 0 || y >= h || x < 0 || x >= w) {
        return;
    }
    float sums[3] = {};
    for (int r = row - (y == 0); r <= row + (y == h - 1); r++) {
        for (int c = column - (x == 0); c <= column + (x == w - 1); c++) {
#pragma unroll
            for (int i = 0; i < 3 * GROUPS; i++) {
                sums[i % 3] += tile.sums[i / 3][r][c][i % 3];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 3; i++) {
        gradient[((long long)y * w + x) * 3 + i] = sums[i];
    }
}

// The gradient [h, w, 3] with respect to the image of image_conv. upstream is the gradient with
// respect to its output, both [h, w, n]; the ReLU's derivative is applied here.
template <typename T, int N>
__device__ void image_conv_backward(const T* __restrict__ upstream, const T* __restrict__ output,
                                    const float* __restrict__ kernel, float* gradient, int h, int w, int n) {
    __shared__ GradientTile tile;
    alignas(16) __shared__ float taps[CHANNEL_SLICE][28];
    int group = threadIdx.x / GROUP_THREADS, patch = threadIdx.x % GROUP_THREADS;
    int patch_y = patch / PATCHES_ACROSS * PATCH_H, patch_x = patch % PATCHES_ACROSS * PATCH_W;
    // Tiles cover the image with its padding.
    int first_y = first_tile(h, TILE_H), first_x = first_tile(w, TILE_W);
    int down = (h - first_y) / TILE_H + 1, across = (w - first_x) / TILE_W + 1;
    for (int index = blockIdx.x; index < down * across; index += gridDim.x) {
        int top = first_y + index / across * TILE_H, left = first_x + index % across * TILE_W;
        float sums[PATCH_H][PATCH_W][3] = {};
        for (int first = 0; first < n; first += CHANNEL_SLICE) {
            // All threads are done with the slice, or the tile, before.
            __syncthreads();
            stage_masked<T, N>(upstream, output, top, left, first, h, w, n, tile);
#pragma unroll 1
            for (int i = threadIdx.x; i < 27 * CHANNEL_SLICE; i += THREADS) {
                int channel = i % CHANNEL_SLICE, at = i / CHANNEL_SLICE;
                taps[channel][at] = first + channel < n ? kernel[at * n + first + channel] : 0;
            }
            __syncthreads();
            for (int channel = group; channel < CHANNEL_SLICE; channel += GROUPS) {
                add_channel(&tile.masked[channel][patch_y * HALO_W + patch_x], taps[channel], sums);
            }
        }
        // The sums take the place of the slice.
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PATCH_H * PATCH_W * 3; i++) {
            int y = i / 3 / PATCH_W, x = i / 3 % PATCH_W, c = i % 3;
            tile.sums[group][patch_y + y][patch_x + x][c] = sums[y][x][c];
        }
        __syncthreads();
        write_gradient(tile, threadIdx.x / TILE_W, threadIdx.x % TILE_W, top, left, gradient, h, w);
    }
}

#define IMAGE_CONV(NAME, T)                                                                                           \
    KERNEL image_conv_##NAME(const float* image, const float* kernel, const float* bias, T* output, int h, int w,     \
                             int n) {                                                                                 \
        image_conv(image, kernel, bias, output, h, w, n);                                                             \
    }

// For N > 1, pointers to features must be 16-byte aligned, and n a multiple of N.
#define IMAGE_CONV_BACKWARD(NAME, T, N)                                                                               \
    KERNEL image_conv_backward_##NAME(const T* upstream, const T* output, const float* kernel, float* gradient,       \
                                      int h, int w, int n) {                                                          \
        image_conv_backward<T, N>(upstream, output, kernel, gradient, h, w, n);                                       \
    }

IMAGE_CONV(f32, float)
IMAGE_CONV(f16, Half)
IMAGE_CONV(bf16, Bfloat)
IMAGE_CONV_BACKWARD(f32, float, 1)
IMAGE_CONV_BACKWARD(f16, Half, 1)
IMAGE_CONV_BACKWARD(bf16, Bfloat, 1)
IMAGE_CONV_BACKWARD(f32x4, float, 4)
IMAGE_CONV_BACKWARD(f16x8, Half, 8)
IMAGE_CONV_BACKWARD(bf16x8, Bfloat, 8)
#undef IMAGE_CONV
#undef IMAGE_CONV_BACKWARD

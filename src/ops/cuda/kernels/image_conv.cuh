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
    long long strips = (long long)h * across;
    for (int first = 0; first < n; first += group_size) {
        int channel = first + threadIdx.x % group_size;
        bool active = channel < n;
        float taps[27];
        for (int tap = 0; tap < 27; tap++) {
            taps[tap] = active ? kernel[tap * n + channel] : 0;
        }
        float offset = active ? bias[channel] : 0;
        for (long long strip = blockIdx.x; strip < strips; strip += gridDim.x) {
            int y = (int)(strip / across), x = (int)(strip % across) * STRIP;
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
                float sums[THREAD_PIXELS] = {};
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
#pragma unroll
                for (int i = 0; i < THREAD_PIXELS; i++) {
                    if (start + i < end) {
                        long long pixel = (long long)y * w + x + start + i;
                        output[pixel * n + channel] = round_to<T>(fmaxf(sums[i] + offset, 0));
                    }
                }
            }
        }
    }
}

// The tile of pixels whose gradient a block computes, one pixel per thread; the tile of outputs that
// these depend on, which has a halo of one pixel; and the channels that are staged in shared memory
// at a time.
constexpr int TILE_W = 32;
constexpr int TILE_H = THREADS / TILE_W;
constexpr int HALO_W = TILE_W + 2;
constexpr int HALO_PIXELS = HALO_W * (TILE_H + 2);
constexpr int CHANNEL_SLICE = 16;

// For tap `index` (0..2) along one axis, the output position through which the loss depends on the
// pixel `at`, and in *tap the tap that connects them. Replicating the edge makes the outputs at the
// edge use their pixel twice, by two taps: where the output would lie outside, it is the one at the
// edge with the tap that reaches outside.
__device__ inline int output_for_tap(int index, int at, int side, int* tap) {
    int output = at + 1 - index;
    *tap = output < 0 ? 0 : output >= side ? 2 : index;
    return min(max(output, 0), side - 1);
}

// The gradient [h, w, 3] with respect to the image of image_conv. upstream is the gradient with
// respect to its output, both [h, w, n]; the ReLU's derivative is applied here.
template <typename T, int N>
__device__ void image_conv_backward(const T* __restrict__ upstream, const T* __restrict__ output,
                                    const float* __restrict__ kernel, float* gradient, int h, int w, int n) {
    // Rows of an odd length keep neighbouring channels in different banks.
    __shared__ float masked[CHANNEL_SLICE][HALO_PIXELS + 1];
    __shared__ Pack<float, 4> taps[CHANNEL_SLICE][9];
    int across = (w + TILE_W - 1) / TILE_W;
    long long tiles = (long long)((h + TILE_H - 1) / TILE_H) * across;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int top = (int)(tile / across) * TILE_H, left = (int)(tile % across) * TILE_W;
        int y = top + threadIdx.x / TILE_W, x = left + threadIdx.x % TILE_W;
        int source[9], tap[9];
#pragma unroll
        for (int i = 0; i < 9; i++) {
            int tap_y, tap_x;
            int row = output_for_tap(i / 3, y, h, &tap_y) - top + 1;
            int column = output_for_tap(i % 3, x, w, &tap_x) - left + 1;
            source[i] = row * HALO_W + column;
            tap[i] = tap_y * 3 + tap_x;
        }
        float sums[3] = {};
        for (int first = 0; first < n; first += CHANNEL_SLICE) {
            // All threads are done with the slice before.
            __syncthreads();
            for (int i = threadIdx.x; i < HALO_PIXELS * (CHANNEL_SLICE / N); i += THREADS) {
                int pixel = i / (CHANNEL_SLICE / N), channel = i % (CHANNEL_SLICE / N) * N;
                int from_y = top + pixel / HALO_W - 1, from_x = left + pixel % HALO_W - 1;
                Pack<T, N> gradients = {}, outputs = {};
                if (first + channel < n && from_y >= 0 && from_y < h && from_x >= 0 && from_x < w) {
                    long long at = (((long long)from_y * w + from_x) * n + first + channel) / N;
                    gradients = load<N>(upstream, at), outputs = load<N>(output, at);
                }
#pragma unroll
                for (int k = 0; k < N; k++) {
                    bool open = to_float(outputs.values[k]) > 0;
                    masked[channel + k][pixel] = open ? to_float(gradients.values[k]) : 0;
                }
            }
            for (int i = threadIdx.x; i < 27 * CHANNEL_SLICE; i += THREADS) {
                int channel = first + i % CHANNEL_SLICE, at = i / CHANNEL_SLICE;
                taps[i % CHANNEL_SLICE][at / 3].values[at % 3] = channel < n ? kernel[at * n + channel] : 0;
            }
            __syncthreads();
            for (int channel = 0; channel < CHANNEL_SLICE; channel++) {
#pragma unroll
                for (int i = 0; i < 9; i++) {
                    float value = masked[channel][source[i]];
                    Pack<float, 4> weights = taps[channel][tap[i]];
#pragma unroll
                    for (int c = 0; c < 3; c++) {
                        sums[c] += value * weights.values[c];
                    }
                }
            }
        }
        if (y < h && x < w) {
            for (int c = 0; c < 3; c++) {
                gradient[((long long)y * w + x) * 3 + c] = sums[c];
            }
        }
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

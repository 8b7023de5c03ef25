// SPDX-License-Identifier: MPL-2.0

// The network's first convolution, what lies between the others, and the losses of its features.

#pragma once

#include "common.cuh"

// Pixels of a row that a block convolves at a time, and those that a thread does.
constexpr int STRIP = 64;
constexpr int RUN = 4;
// A strip with a pixel at either end, rounded up to a whole number of packs.
constexpr int STRIP_ROW = 3 * (STRIP + 2) + 2;

// output [h, w, n] = relu(image * kernel + bias) for an image [h, w, 3] between copies of its edge
// and a kernel [3, 3, 3 input channels, n].
template <typename T>
__device__ void image_conv(const float* __restrict__ image, const float* __restrict__ kernel,
                           const float* __restrict__ bias, T* output, int h, int w, int n) {
    __shared__ Pack<float, 4> pixels[3][STRIP_ROW / 4];
    // A thread keeps the kernel of its channel; groups of threads share out the strip.
    int lanes = min(n, THREADS), groups = THREADS / lanes;
    int group = threadIdx.x / lanes;
    int span = (STRIP / RUN + groups - 1) / groups * RUN;
    int across = (w + STRIP - 1) / STRIP;
    long long strips = (long long)h * across;
    for (int first = 0; first < n; first += lanes) {
        int channel = first + threadIdx.x % lanes;
        bool active = channel < n;
        float taps[27];
        for (int tap = 0; tap < 27; tap++) {
            taps[tap] = active ? kernel[tap * n + channel] : 0;
        }
        float offset = active ? bias[channel] : 0;
        for (long long strip = blockIdx.x; strip < strips; strip += gridDim.x) {
            int y = (int)(strip / across), x = (int)(strip % across) * STRIP;
            // Nobody reads the strip before any more.
            __syncthreads();
            for (int i = threadIdx.x; i < 9 * (STRIP + 2); i += THREADS) {
                int row = i / (3 * (STRIP + 2)), at = i % (3 * (STRIP + 2));
                int from_y = min(max(y + row - 1, 0), h - 1);
                int from_x = min(max(x + at / 3 - 1, 0), w - 1);
                pixels[row][at / 4].values[at % 4] = image[((long long)from_y * w + from_x) * 3 + at % 3];
            }
            __syncthreads();
            int end = min(min((group + 1) * span, STRIP), w - x);
            for (int start = group * span; active && start < end; start += RUN) {
                float sums[RUN] = {};
#pragma unroll
                for (int row = 0; row < 3; row++) {
                    // The run with a pixel at either end, in whole packs.
                    Pack<float, 4> near[5];
#pragma unroll
                    for (int pack = 0; pack < 5; pack++) {
                        near[pack] = pixels[row][start * 3 / 4 + pack];
                    }
#pragma unroll
                    for (int i = 0; i < RUN; i++) {
#pragma unroll
                        for (int tap = 0; tap < 9; tap++) {
                            int at = 3 * i + tap;
                            sums[i] += taps[row * 9 + tap] * near[at / 4].values[at % 4];
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < RUN; i++) {
                    if (start + i < end) {
                        long long pixel = (long long)y * w + x + start + i;
                        output[pixel * n + channel] = nearest<T>(fmaxf(sums[i] + offset, 0));
                    }
                }
            }
        }
    }
}

// The pixels that a block takes the gradient of, one a thread, with a pixel on each side; and the
// channels of the features that it takes at a time.
constexpr int TILE_W = 32;
constexpr int TILE_H = THREADS / TILE_W;
constexpr int AROUND_W = TILE_W + 2;
constexpr int AROUND = AROUND_W * (TILE_H + 2);
constexpr int SLICE = 16;

// Of the three taps along one axis, `index` counting them, the one by which an output reaches the
// pixel `at`, and that output. Where it would lie beyond the edge, the edge's own output reaches
// the pixel by that tap's opposite, which is held within the image.
__device__ inline int reaching(int index, int at, int side, int* tap) {
    int output = at + 1 - index;
    *tap = output < 0 ? 0 : output >= side ? 2 : index;
    return min(max(output, 0), side - 1);
}

// The gradient [h, w, 3] with respect to the image of image_conv, given upstream, that with respect
// to its output [h, w, n].
template <typename T>
__device__ void image_conv_backward(const T* __restrict__ upstream, const T* __restrict__ output,
                                    const float* __restrict__ kernel, float* gradient, int h, int w, int n) {
    // An odd length, so that neighbouring channels lie in different banks.
    __shared__ float masked[SLICE][AROUND + 1];
    __shared__ Pack<float, 4> taps[SLICE][9];
    int across = (w + TILE_W - 1) / TILE_W;
    long long tiles = (long long)((h + TILE_H - 1) / TILE_H) * across;
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int top = (int)(tile / across) * TILE_H, left = (int)(tile % across) * TILE_W;
        int y = top + threadIdx.x / TILE_W, x = left + threadIdx.x % TILE_W;
        int from[9], by[9];
#pragma unroll
        for (int i = 0; i < 9; i++) {
            int tap_y, tap_x;
            int row = reaching(i / 3, y, h, &tap_y) - top + 1;
            int column = reaching(i % 3, x, w, &tap_x) - left + 1;
            from[i] = row * AROUND_W + column;
            by[i] = tap_y * 3 + tap_x;
        }
        float sums[3] = {};
        for (int first = 0; first < n; first += SLICE) {
            // Nobody reads the slice before any more.
            __syncthreads();
            for (int i = threadIdx.x; i < AROUND * SLICE; i += THREADS) {
                int channel = first + i % SLICE;
                int from_y = top + i / SLICE / AROUND_W - 1, from_x = left + i / SLICE % AROUND_W - 1;
                float value = 0;
                if (channel < n && from_y >= 0 && from_y < h && from_x >= 0 && from_x < w) {
                    long long at = ((long long)from_y * w + from_x) * n + channel;
                    value = single(output[at]) > 0 ? single(upstream[at]) : 0;
                }
                masked[i % SLICE][i / SLICE] = value;
            }
            for (int i = threadIdx.x; i < 27 * SLICE; i += THREADS) {
                int channel = first + i % SLICE, at = i / SLICE;
                taps[i % SLICE][at / 3].values[at % 3] = channel < n ? kernel[at * n + channel] : 0;
            }
            __syncthreads();
            for (int channel = 0; channel < SLICE; channel++) {
#pragma unroll
                for (int i = 0; i < 9; i++) {
                    float value = masked[channel][from[i]];
                    Pack<float, 4> weights = taps[channel][by[i]];
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

// values [.., n] = relu(values + bias [n])
template <typename T, int N>
__device__ void bias_relu(T* values, const float* __restrict__ bias, long long count, int n) {
    for_each(count / N, [=](long long i) {
        Pack<T, N> pack = load<N>(values, i);
        int channel = (int)(i % (n / N)) * N;
        // Of the bias, which is wider, 16 bytes at a time.
        constexpr int PART = N < 4 ? N : 4;
#pragma unroll
        for (int first = 0; first < N; first += PART) {
            Pack<float, PART> offsets = load<PART>(bias, (channel + first) / PART);
#pragma unroll
            for (int lane = 0; lane < PART; lane++) {
                T& value = pack.values[first + lane];
                value = nearest<T>(fmaxf(single(value) + offsets.values[lane], 0));
            }
        }
        store(values, i, pack);
    });
}

// upstream = output > 0 ? upstream : 0
template <typename T, int N> __device__ void mask(T* upstream, const T* __restrict__ output, long long count) {
    for_each(count / N, [=](long long i) {
        Pack<T, N> pack = load<N>(upstream, i), outputs = load<N>(output, i);
#pragma unroll
        for (int lane = 0; lane < N; lane++) {
            pack.values[lane] = single(outputs.values[lane]) > 0 ? pack.values[lane] : T{};
        }
        store(upstream, i, pack);
    });
}

__device__ inline float larger(float a, float b) {
    return b > a ? b : a;
}

// output [h / 2, w / 2, n], of 2x2 values of input [h, w, n] the mean or the largest.
template <typename T, int N, bool MAX>
__device__ void pool(const T* __restrict__ input, T* output, int h, int w, int n) {
    int packs = n / N, across = w / 2;
    for_each((long long)(h / 2) * across * packs, [=](long long i) {
        long long window = i / packs, y = window / across * 2, x = window % across * 2;
        long long corner = (y * w + x) * packs + i % packs, below = corner + (long long)w * packs;
        Pack<T, N> a = load<N>(input, corner), b = load<N>(input, corner + packs);
        Pack<T, N> c = load<N>(input, below), d = load<N>(input, below + packs);
        Pack<T, N> pooled;
#pragma unroll
        for (int lane = 0; lane < N; lane++) {
            float upper[] = {single(a.values[lane]), single(b.values[lane])};
            float lower[] = {single(c.values[lane]), single(d.values[lane])};
            pooled.values[lane] =
                nearest<T>(MAX ? larger(larger(upper[0], upper[1]), larger(lower[0], lower[1]))
                               : 0.25f * ((upper[0] + upper[1]) + (lower[0] + lower[1])));
        }
        store(output, i, pooled);
    });
}

// The gradient [h, w, n] with respect to the input of pool, given upstream [h / 2, w / 2, n], that
// with respect to its output. Of equal largest values the first takes it; a last odd row or column
// has none. Only the largest are looked for in input.
template <typename T, int N, bool MAX>
__device__ void pool_backward(const T* __restrict__ upstream, const T* __restrict__ input, T* gradient, int h, int w,
                              int n) {
    int packs = n / N, across = (w + 1) / 2;
    for_each((long long)((h + 1) / 2) * across * packs, [=](long long i) {
        long long window = i / packs, y = window / across * 2, x = window % across * 2;
        // The corners' places, in row-major order.
        long long corner = (y * w + x) * packs + i % packs, below = corner + (long long)w * packs;
        long long places[] = {corner, corner + packs, below, below + packs};
        bool right = x + 1 < w, lower = y + 1 < h;
        Pack<T, N> shares[4] = {};
        if (right && lower) {
            Pack<T, N> pack = load<N>(upstream, (y / 2 * (w / 2) + x / 2) * packs + i % packs);
            Pack<T, N> corners[4];
#pragma unroll
            for (int k = 0; MAX && k < 4; k++) {
                corners[k] = load<N>(input, places[k]);
            }
#pragma unroll
            for (int lane = 0; lane < N; lane++) {
                int best = 0;
                float largest = MAX ? single(corners[0].values[lane]) : 0;
#pragma unroll
                for (int k = 1; MAX && k < 4; k++) {
                    float value = single(corners[k].values[lane]);
                    best = value > largest ? k : best;
                    largest = larger(largest, value);
                }
                T share = MAX ? pack.values[lane] : nearest<T>(0.25f * single(pack.values[lane]));
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    shares[k].values[lane] = !MAX || k == best ? share : T{};
                }
            }
        }
        const bool inside[] = {true, right, lower, right && lower};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (inside[k]) {
                store(gradient, places[k], shares[k]);
            }
        }
    });
}

// gradient = *factor * (f - p), or that is added to it; the sum of (f - p)^2.
template <typename T, int N>
__device__ void content(const T* __restrict__ f, const T* __restrict__ p, const float* factor, T* gradient,
                        int accumulate, double* partials, long long count) {
    float scale = *factor;
    double sum = 0;
    for_each(count / N, [&](long long i) {
        Pack<T, N> features = load<N>(f, i), targets = load<N>(p, i);
        Pack<T, N> before = accumulate ? load<N>(gradient, i) : Pack<T, N>{};
#pragma unroll
        for (int lane = 0; lane < N; lane++) {
            float difference = single(features.values[lane]) - single(targets.values[lane]);
            sum += (double)difference * difference;
            before.values[lane] = nearest<T>(single(before.values[lane]) + scale * difference);
        }
        store(gradient, i, before);
    });
    write_partial(sum, partials, 0);
}

// The sum of x y.
template <typename T>
__device__ void dot(const T* __restrict__ x, const T* __restrict__ y, double* partials, long long count) {
    double sum = 0;
    for_each(count, [&](long long i) { sum += (double)single(x[i]) * single(y[i]); });
    write_partial(sum, partials, 0);
}

// packed = residual / rms, which any T holds, with rms its root mean square, given *squares, the sum
// of its squares; *alpha = *factor * rms gives it its size back.
template <typename T>
__device__ void residual(const float* __restrict__ residual, const double* squares, const float* factor, T* packed,
                         float* alpha, int count) {
    float rms = (float)sqrt(*squares / count);
    for_each(count, [=](long long i) { packed[i] = nearest<T>(rms > 0 ? residual[i] / rms : 0); });
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        *alpha = *factor * rms;
    }
}

// output [n, n] = the sum of partials [pieces, n, n] / positions, the lower triangle for both halves.
KERNEL gram_average(const float* partials, int pieces, double positions, float* output, int n) {
    long long matrix = (long long)n * n;
    for_each(matrix, [=](long long i) {
        long long row = i / n, column = i % n;
        if (row >= column) {
            double sum = 0;
            for (int piece = 0; piece < pieces; piece++) {
                sum += partials[piece * matrix + i];
            }
            output[i] = output[column * n + row] = (float)(sum / positions);
        }
    });
}

#define ONE_CHANNEL_A_THREAD(NAME, T)                                                                                 \
    KERNEL image_conv_##NAME(const float* image, const float* kernel, const float* bias, T* output, int h, int w,     \
                             int n) {                                                                                 \
        image_conv(image, kernel, bias, output, h, w, n);                                                             \
    }                                                                                                                 \
    KERNEL image_conv_backward_##NAME(const T* upstream, const T* output, const float* kernel, float* gradient,       \
                                      int h, int w, int n) {                                                          \
        image_conv_backward(upstream, output, kernel, gradient, h, w, n);                                             \
    }                                                                                                                 \
    KERNEL dot_##NAME(const T* x, const T* y, double* partials, long long count) {                                    \
        dot(x, y, partials, count);                                                                                   \
    }                                                                                                                 \
    KERNEL residual_##NAME(const float* values, const double* squares, const float* factor, T* packed, float* alpha,  \
                           int count) {                                                                               \
        residual(values, squares, factor, packed, alpha, count);                                                      \
    }

// For N > 1, pointers are multiples of 16 bytes, and channels of N.
#define N_CHANNELS_A_THREAD(NAME, T, N)                                                                               \
    KERNEL bias_relu_##NAME(T* values, const float* bias, long long count, int n) {                                   \
        bias_relu<T, N>(values, bias, count, n);                                                                      \
    }                                                                                                                 \
    KERNEL mask_##NAME(T* upstream, const T* output, long long count) {                                               \
        mask<T, N>(upstream, output, count);                                                                          \
    }                                                                                                                 \
    KERNEL pool_avg_##NAME(const T* input, T* output, int h, int w, int n) {                                          \
        pool<T, N, false>(input, output, h, w, n);                                                                    \
    }                                                                                                                 \
    KERNEL pool_max_##NAME(const T* input, T* output, int h, int w, int n) {                                          \
        pool<T, N, true>(input, output, h, w, n);                                                                     \
    }                                                                                                                 \
    KERNEL pool_avg_backward_##NAME(const T* upstream, T* gradient, int h, int w, int n) {                            \
        pool_backward<T, N, false>(upstream, nullptr, gradient, h, w, n);                                             \
    }                                                                                                                 \
    KERNEL pool_max_backward_##NAME(const T* upstream, const T* input, T* gradient, int h, int w, int n) {            \
        pool_backward<T, N, true>(upstream, input, gradient, h, w, n);                                                \
    }                                                                                                                 \
    KERNEL content_##NAME(const T* f, const T* p, const float* factor, T* gradient, int accumulate,                   \
                          double* partials, long long count) {                                                        \
        content<T, N>(f, p, factor, gradient, accumulate, partials, count);                                           \
    }

ONE_CHANNEL_A_THREAD(f32, float)
ONE_CHANNEL_A_THREAD(f16, Half)
ONE_CHANNEL_A_THREAD(bf16, Bfloat)
N_CHANNELS_A_THREAD(f32, float, 1)
N_CHANNELS_A_THREAD(f16, Half, 1)
N_CHANNELS_A_THREAD(bf16, Bfloat, 1)
N_CHANNELS_A_THREAD(f32x4, float, 4)
N_CHANNELS_A_THREAD(f16x8, Half, 8)
N_CHANNELS_A_THREAD(bf16x8, Bfloat, 8)

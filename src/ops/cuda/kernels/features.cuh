// SPDX-License-Identifier: MPL-2.0

// What is done with features between the convolutions: bias and ReLU, pooling, the content loss, and
// what Gram matrices need besides matrix products.

#pragma once

#include "common.cuh"

// values [.., n] = relu(values + bias [n]), for biases in f32.
template <typename T, int N>
__device__ void bias_relu(T* values, const float* __restrict__ bias, long long count, int n) {
    grid_stride(count / N, [=](unsigned i) {
        Pack<T, N> pack = load<N>(values, i);
        int channel = (int)(i % (n / N)) * N;
        // The bias is wider than 16-bit features: it is loaded 16 bytes at a time.
        constexpr int PART = N < 4 ? N : 4;
#pragma unroll
        for (int first = 0; first < N; first += PART) {
            Pack<float, PART> offsets = load<PART>(bias, (channel + first) / PART);
#pragma unroll
            for (int k = 0; k < PART; k++) {
                T& value = pack.values[first + k];
                value = round_to<T>(fmaxf(to_float(value) + offsets.values[k], 0));
            }
        }
        store(values, i, pack);
    });
}

// The gradient through a ReLU, in place: upstream = output > 0 ? upstream : 0.
template <typename T, int N>
__device__ void relu_backward(T* upstream, const T* __restrict__ output, long long count) {
    grid_stride(count / N, [=](long long i) {
        Pack<T, N> pack = load<N>(upstream, i), outputs = load<N>(output, i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            pack.values[k] = to_float(outputs.values[k]) > 0 ? pack.values[k] : T{};
        }
        store(upstream, i, pack);
    });
}

__device__ inline float larger(float a, float b) {
    return b > a ? b : a;
}

// output [h / 2, w / 2, n] = the mean or the maximum over 2x2 windows of input [h, w, n], stride 2.
template <typename T, int N, bool MAX>
__device__ void pool(const T* __restrict__ input, T* output, int h, int w, int n) {
    unsigned packs = n / N, across = w / 2;
    grid_stride((long long)(h / 2) * across * packs, [=](unsigned i) {
        unsigned window = i / packs, y = window / across * 2, x = window % across * 2;
        unsigned corner = (y * w + x) * packs + i % packs, below = corner + w * packs;
        Pack<T, N> a = load<N>(input, corner), b = load<N>(input, corner + packs);
        Pack<T, N> c = load<N>(input, below), d = load<N>(input, below + packs);
        Pack<T, N> pooled;
#pragma unroll
        for (int k = 0; k < N; k++) {
            float upper[] = {to_float(a.values[k]), to_float(b.values[k])};
            float lower[] = {to_float(c.values[k]), to_float(d.values[k])};
            pooled.values[k] =
                round_to<T>(MAX ? larger(larger(upper[0], upper[1]), larger(lower[0], lower[1]))
                               : 0.25f * ((upper[0] + upper[1]) + (lower[0] + lower[1])));
        }
        store(output, i, pooled);
    });
}

// The gradient [h, w, n] with respect to the input of pool, where that is above 0, else 0: input is the
// output of a ReLU, whose derivative is applied here. upstream is the gradient with respect to the
// output [h / 2, w / 2, n] of pool. A maximum passes it to the first of equal values in row-major
// order; a last odd row or column gets 0.
template <typename T, int N, bool MAX>
__device__ void pool_backward(const T* __restrict__ upstream, const T* __restrict__ input, T* gradient, int h, int w,
                              int n) {
    unsigned packs = n / N, across = (w + 1) / 2;
    grid_stride((long long)((h + 1) / 2) * across * packs, [=](unsigned i) {
        unsigned window = i / packs, y = window / across * 2, x = window % across * 2;
        // The packs of the window's four corners, in row-major order.
        unsigned corner = (y * w + x) * packs + i % packs, below = corner + w * packs;
        unsigned offsets[] = {corner, corner + packs, below, below + packs};
        bool right = x + 1 < (unsigned)w, lower = y + 1 < (unsigned)h;
        Pack<T, N> shares[4] = {};
        if (right && lower) {
            Pack<T, N> pack = load<N>(upstream, (y / 2 * (w / 2) + x / 2) * packs + i % packs);
            Pack<T, N> corners[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                corners[k] = load<N>(input, offsets[k]);
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                int best = 0;
                float largest = MAX ? to_float(corners[0].values[k]) : 0;
#pragma unroll
                for (int c = 1; MAX && c < 4; c++) {
                    float value = to_float(corners[c].values[k]);
                    best = value > largest ? c : best;
                    largest = larger(largest, value);
                }
                T share = MAX ? pack.values[k] : round_to<T>(0.25f * to_float(pack.values[k]));
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    bool open = to_float(corners[c].values[k]) > 0;
                    shares[c].values[k] = open && (!MAX || c == best) ? share : T{};
                }
            }
        }
        const bool inside[] = {true, right, lower, right && lower};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (inside[k]) {
                store(gradient, offsets[k], shares[k]);
            }
        }
    });
}

// Partial sums of (f - p)^2. *factor * (f - p), the gradient of half of that times *factor, is written
// to gradient or added to it.
template <typename T, int N>
__device__ void content_loss(const T* __restrict__ f, const T* __restrict__ p, const float* factor, T* gradient,
                        int accumulate, double* partials, long long count) {
    float scale = *factor;
    double sum = 0;
    grid_stride(count / N, [&](long long i) {
        Pack<T, N> features = load<N>(f, i), targets = load<N>(p, i);
        Pack<T, N> before = accumulate ? load<N>(gradient, i) : Pack<T, N>{};
#pragma unroll
        for (int k = 0; k < N; k++) {
            float difference = to_float(features.values[k]) - to_float(targets.values[k]);
            sum += (double)difference * difference;
            before.values[k] = round_to<T>(to_float(before.values[k]) + scale * difference);
        }
        store(gradient, i, before);
    });
    write_partial(sum, partials, 0);
}

// Partial sums of x y.
template <typename T>
__device__ void dot(const T* __restrict__ x, const T* __restrict__ y, double* partials, long long count) {
    double sum = 0;
    grid_stride(count, [&](long long i) { sum += (double)to_float(x[i]) * to_float(y[i]); });
    write_partial(sum, partials, 0);
}

// packed = residual / rms, where rms is the residual's root mean square, from *squares, the sum of
// its squares: so it fits any T. *alpha = *factor * rms, which the matrix product that takes packed
// multiplies by, restores its size.
template <typename T>
__device__ void normalise_residual(const float* __restrict__ residual, const double* squares, const float* factor,
                                   T* packed, float* alpha, int count) {
    float rms = (float)sqrt(*squares / count);
    grid_stride(count, [=](long long i) { packed[i] = round_to<T>(rms > 0 ? residual[i] / rms : 0); });
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        *alpha = *factor * rms;
    }
}

// Calls f(i, mirrored, average) for each element of the lower triangle of a matrix [n, n]: its index,
// that of its mirror image, and the sum of products [splits, n, n] over the splits / positions. Only
// the lower triangle of products is read, so that results are exactly symmetric.
template <typename F>
__device__ void average_splits(const float* __restrict__ products, int splits, double positions, int n, F f) {
    long long matrix = (long long)n * n;
    grid_stride(matrix, [=](unsigned i) {
        long long row = i / n, column = i % n;
        if (row >= column) {
            double sum = 0;
            // Unrolled, so that the loads do not wait for each other.
#pragma unroll 8
            for (int split = 0; split < splits; split++) {
                sum += products[split * matrix + i];
            }
            f(i, column * n + row, (float)(sum / positions));
        }
    });
}

// gram [n, n] = the average over the splits of a Gram matrix.
KERNEL gram_average(const float* products, int splits, double positions, float* gram, int n) {
    average_splits(products, splits, positions, n, [=](long long i, long long mirrored, float average) {
        gram[i] = gram[mirrored] = average;
    });
}

// residual [n, n] = that average - target [n, n], which is symmetric, and partial sums of residual^2.
KERNEL gram_residual(const float* products, int splits, double positions, const float* target, float* residual,
                     double* partials, int n) {
    double sum = 0;
    average_splits(products, splits, positions, n, [&](long long i, long long mirrored, float average) {
        float difference = average - target[i];
        residual[i] = residual[mirrored] = difference;
        sum += (i == mirrored ? 1.0 : 2.0) * difference * difference;
    });
    write_partial(sum, partials, 0);
}

#define PER_VALUE(NAME, T)                                                                                            \
    KERNEL dot_##NAME(const T* x, const T* y, double* partials, long long count) {                                    \
        dot(x, y, partials, count);                                                                                   \
    }                                                                                                                 \
    KERNEL normalise_residual_##NAME(const float* residual, const double* squares, const float* factor, T* packed,    \
                                     float* alpha, int count) {                                                       \
        normalise_residual(residual, squares, factor, packed, alpha, count);                                          \
    }

// For N > 1, pointers to features must be 16-byte aligned, and n and count multiples of N.
#define PER_PACK(NAME, T, N)                                                                                          \
    KERNEL bias_relu_##NAME(T* values, const float* bias, long long count, int n) {                                   \
        bias_relu<T, N>(values, bias, count, n);                                                                      \
    }                                                                                                                 \
    KERNEL relu_backward_##NAME(T* upstream, const T* output, long long count) {                                      \
        relu_backward<T, N>(upstream, output, count);                                                                 \
    }                                                                                                                 \
    KERNEL pool_avg_##NAME(const T* input, T* output, int h, int w, int n) {                                          \
        pool<T, N, false>(input, output, h, w, n);                                                                    \
    }                                                                                                                 \
    KERNEL pool_max_##NAME(const T* input, T* output, int h, int w, int n) {                                          \
        pool<T, N, true>(input, output, h, w, n);                                                                     \
    }                                                                                                                 \
    KERNEL pool_avg_backward_##NAME(const T* upstream, const T* input, T* gradient, int h, int w, int n) {            \
        pool_backward<T, N, false>(upstream, input, gradient, h, w, n);                                               \
    }                                                                                                                 \
    KERNEL pool_max_backward_##NAME(const T* upstream, const T* input, T* gradient, int h, int w, int n) {            \
        pool_backward<T, N, true>(upstream, input, gradient, h, w, n);                                                \
    }                                                                                                                 \
    KERNEL content_loss_##NAME(const T* f, const T* p, const float* factor, T* gradient, int accumulate,              \
                          double* partials, long long count) {                                                        \
        content_loss<T, N>(f, p, factor, gradient, accumulate, partials, count);                                      \
    }

PER_VALUE(f32, float)
PER_VALUE(f16, Half)
PER_VALUE(bf16, Bfloat)
PER_PACK(f32, float, 1)
PER_PACK(f16, Half, 1)
PER_PACK(bf16, Bfloat, 1)
PER_PACK(f32x4, float, 4)
PER_PACK(f16x8, Half, 8)
PER_PACK(bf16x8, Bfloat, 8)

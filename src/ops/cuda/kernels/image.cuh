// SPDX-License-Identifier: MPL-2.0

// The vector work of the optimisers and the terms of the loss that are of the image itself.

#pragma once

#include "common.cuh"

// The value d of a direction, or 0 if it would lead out of 0..1 from x.
__device__ inline float kept_inside(float d, float x) {
    return (x <= 0 && d < 0) || (x >= 1 && d > 0) ? 0 : d;
}

// What is not a number stays so.
__device__ inline float clamped(float x) {
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

// y += a x
KERNEL axpy(float a, const float* x, float* y, long long count) {
    for_each(count, [=](long long i) { y[i] += a * x[i]; });
}

// x *= a
KERNEL scale(float a, float* x, long long count) {
    for_each(count, [=](long long i) { x[i] *= a; });
}

// x *= *a
KERNEL scale_by(const float* a, float* x, long long count) {
    float factor = *a;
    for_each(count, [=](long long i) { x[i] *= factor; });
}

// dst = a - b
KERNEL difference(float* dst, const float* a, const float* b, long long count) {
    for_each(count, [=](long long i) { dst[i] = a[i] - b[i]; });
}

// dst = x + t d, held within 0..1.
KERNEL step(float* dst, const float* x, float t, const float* d, long long count) {
    for_each(count, [=](long long i) { dst[i] = clamped(x[i] + t * d[i]); });
}

// Clears the values of a direction d that would lead out of 0..1 from x.
KERNEL clear_outward(float* d, const float* x, long long count) {
    for_each(count, [=](long long i) { d[i] = kept_inside(d[i], x[i]); });
}

// average = decay average + (1 - decay) x, or of x squared where `squared`.
KERNEL decay(float* average, float decay, const float* x, int squared, long long count) {
    for_each(count, [=](long long i) {
        float value = squared ? x[i] * x[i] : x[i];
        average[i] = decay * average[i] + (1 - decay) * value;
    });
}

// x -= rate m / (sqrt(v / correction) + 1e-8), held within 0..1: a step of Adam (Kingma and Ba
// 2015, algorithm 1), the first moment's correction being part of rate.
KERNEL adam_step(float* x, float rate, const float* m, float correction, const float* v, long long count) {
    for_each(count, [=](long long i) {
        x[i] = clamped(x[i] - rate * m[i] / (sqrtf(v[i] / correction) + 1e-8f));
    });
}

// The sum of the squared differences between horizontal and vertical neighbours of an image
// [h, w, 3]; its gradient times *factor is added to gradient [h, w, 3].
KERNEL total_variation(const float* image, const float* factor, float* gradient, double* partials, int h, int w) {
    long long row = 3LL * w;
    float twice = 2 * *factor;
    double sum = 0;
    for_each(h * row, [&](long long i) {
        long long y = i / row, x = i % row;
        float right = x + 3 < row ? image[i] - image[i + 3] : 0;
        float below = y + 1 < h ? image[i] - image[i + row] : 0;
        float left = x >= 3 ? image[i] - image[i - 3] : 0;
        float above = y > 0 ? image[i] - image[i - row] : 0;
        gradient[i] += twice * ((left + right) + (above + below));
        sum += right * right + below * below;
    });
    write_partial(sum, partials, 0);
}

// The sum of c (x - t)^2 over the values x of an image [h, w, 3], for target [h, w, 4]: the three
// values t of a pixel and its weight c. Its gradient times *factor is added to gradient [h, w, 3].
KERNEL held(const float* image, const float* target, const float* factor, float* gradient, double* partials,
            long long pixels) {
    float twice = 2 * *factor;
    double sum = 0;
    for_each(pixels, [&](long long i) {
        float weight = target[4 * i + 3];
        for (int channel = 0; channel < 3; channel++) {
            float difference = image[3 * i + channel] - target[4 * i + channel];
            gradient[3 * i + channel] += twice * weight * difference;
            sum += weight * difference * difference;
        }
    });
    write_partial(sum, partials, 0);
}

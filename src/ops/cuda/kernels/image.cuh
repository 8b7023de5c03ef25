// SPDX-License-Identifier: MPL-2.0

// Vector operations, Adam's step, and the losses of the image itself: total variation and the
// temporal loss.

#pragma once

#include "common.cuh"

// Component d of a direction, or 0 if x is at a bound of 0..1 and d or the steepest descent points out of it.
__device__ inline float project_direction(float d, float x, float gradient) {
    return (x <= 0 && (d < 0 || gradient > 0)) || (x >= 1 && (d > 0 || gradient < 0)) ? 0 : d;
}

// x clamped to 0..1; NaN stays NaN.
__device__ inline float clamp01(float x) {
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

// x *= *a
KERNEL scale_by(const float* a, float* x, long long count) {
    float factor = *a;
    grid_stride(count, [=](long long i) { x[i] *= factor; });
}

// An exponential moving average: average = decay average + (1 - decay) x, or of x^2 if `squared`.
KERNEL decay(float* average, float decay, const float* x, int squared, long long count) {
    grid_stride(count, [=](long long i) {
        float value = squared ? x[i] * x[i] : x[i];
        average[i] = decay * average[i] + (1 - decay) * value;
    });
}

// x -= rate m / (sqrt(v / correction) + 1e-8), clamped to 0..1: a step of Adam (Kingma and Ba 2015,
// algorithm 1). rate includes the bias correction of the first moment m, correction is that of v.
KERNEL adam_step(float* x, float rate, const float* m, float correction, const float* v, long long count) {
    grid_stride(count, [=](long long i) {
        x[i] = clamp01(x[i] - rate * m[i] / (sqrtf(v[i] / correction) + 1e-8f));
    });
}

// Partial sums of the squared differences between horizontal and vertical neighbours of an image
// [h, w, 3]. Their gradient times *factor is added to gradient [h, w, 3].
KERNEL total_variation(const float* image, const float* factor, float* gradient, double* partials, int h, int w) {
    int row = 3 * w;
    float twice = 2 * *factor;
    double sum = 0;
    grid_stride((long long)h * row, [&](unsigned i) {
        int y = i / row, x = i % row;
        float right = x + 3 < row ? image[i] - image[i + 3] : 0;
        float below = y + 1 < h ? image[i] - image[i + row] : 0;
        float left = x >= 3 ? image[i] - image[i - 3] : 0;
        float above = y > 0 ? image[i] - image[i - row] : 0;
        gradient[i] += twice * ((left + right) + (above + below));
        sum += right * right + below * below;
    });
    write_partial(sum, partials, 0);
}

// The temporal loss (Ruder et al. 2016, eq. 7): partial sums of c (x - t)^2 over the values x of an
// image [h, w, 3], for target [h, w, 4], which has the three values t of a pixel and its weight c.
// Their gradient times *factor is added to gradient [h, w, 3].
KERNEL temporal_loss(const float* image, const float* target, const float* factor, float* gradient, double* partials,
                     long long pixels) {
    float twice = 2 * *factor;
    double sum = 0;
    grid_stride(pixels, [&](long long i) {
        float weight = target[4 * i + 3];
        for (int channel = 0; channel < 3; channel++) {
            float difference = image[3 * i + channel] - target[4 * i + channel];
            gradient[3 * i + channel] += twice * weight * difference;
            sum += weight * difference * difference;
        }
    });
    write_partial(sum, partials, 0);
}

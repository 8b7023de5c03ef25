// SPDX-License-Identifier: MPL-2.0

// Vector-free L-BFGS (W. Chen, Z. Wang, J. Zhou, "Large-scale L-BFGS using MapReduce", NIPS 2014): a
// direction is a linear combination of the pairs' vectors and the gradient. The inner products of
// these are kept, and the two-loop recursion (Nocedal and Wright, algorithm 7.4) runs on the
// coefficients. So nothing has to be read back by the host.
//
// vectors, float [2 * history + 2, n]: a ring buffer of pairs, with the displacements s in rows
// 0..history and the changes y of the gradient in rows history..2 * history; then the s and the y of
// the candidate, the latest step. Slots without a pair may hold anything.
// products, double [2 * history, 2 * history]: the inner products of the rows of the ring buffer.
// state, double [4]: see State.

#pragma once

#include "common.cuh"
#include "image.cuh"

enum State {
    // The number of pairs.
    PAIRS,
    // The slot of the next pair.
    NEXT,
    // Whether the latest candidate was accepted as a pair, 0 or 1.
    ACCEPTED,
    // s.y / y.y of the latest pair: the scale of the initial inverse Hessian; 0 if unknown.
    CURVATURE,
};

// The slot of the pair that is `age` pairs older than the latest.
__device__ inline int slot_of(const double* state, int history, int age) {
    int slot = (int)state[NEXT] - 1 - age;
    return slot < 0 ? slot + history : slot;
}

__device__ inline bool first_thread() {
    return blockIdx.x == 0 && threadIdx.x == 0;
}

// Partial sums [2, gridDim.x] of (trial - image)^2 and of gradient * (trial - image).
KERNEL lbfgs_step_sums(const float* image, const float* trial, const float* gradient, double* partials, long long n) {
    double squares = 0, slope = 0;
    grid_stride(n, [&](long long i) {
        double displacement = trial[i] - image[i];
        squares += displacement * displacement;
        slope += gradient[i] * displacement;
    });
    write_partial(squares, partials, 0);
    write_partial(slope, partials, 1);
}

// Stores the step from image to trial as the candidate: s = trial - image and
// y = trial_gradient - gradient.
KERNEL lbfgs_candidate(const float* image, const float* trial, const float* gradient, const float* trial_gradient,
                  float* vectors, int history, long long n) {
    float* s = vectors + 2 * history * n;
    float* y = s + n;
    grid_stride(n, [=](long long i) {
        s[i] = trial[i] - image[i];
        y[i] = trial_gradient[i] - gradient[i];
    });
}

// Partial sums of vectors[row] . x for the rows blockIdx.y of [gridDim.y, n].
KERNEL inner_products(const float* vectors, const float* x, double* partials, long long n) {
    const float* row = vectors + blockIdx.y * n;
    double sum = 0;
    grid_stride(n, [&](long long i) { sum += (double)row[i] * x[i]; });
    write_partial(sum, partials, blockIdx.y);
}

// Accepts the candidate as a pair if the cosine between its s and y is above min_cosine, and enters
// its inner products into products. s_products and y_products [2 * history + 2] are the inner
// products of all rows of vectors with the candidate's s and y. A single thread does the work.
KERNEL lbfgs_update(double* state, const double* s_products, const double* y_products, double* products, int history,
                   double min_cosine) {
    if (!first_thread()) {
        return;
    }
    int rows = 2 * history, slot = (int)state[NEXT];
    double ss = s_products[rows], sy = s_products[rows + 1], yy = y_products[rows + 1];
    bool accepted = sy > min_cosine * sqrt(ss * yy);
    state[ACCEPTED] = accepted;
    if (!accepted) {
        return;
    }
    int s = slot, y = history + slot;
    for (int row = 0; row < rows; row++) {
        products[s * rows + row] = products[row * rows + s] = s_products[row];
        products[y * rows + row] = products[row * rows + y] = y_products[row];
    }
    // s_products and y_products have those of the pair that is replaced here.
    products[s * rows + s] = ss;
    products[s * rows + y] = products[y * rows + s] = sy;
    products[y * rows + y] = yy;
    state[PAIRS] = min((int)state[PAIRS] + 1, history);
    state[NEXT] = (slot + 1) % history;
    state[CURVATURE] = sy / yy;
}

// Copies the candidate into the slot of the latest pair, if it was accepted.
KERNEL lbfgs_store(const double* state, float* vectors, int history, long long n) {
    if (state[ACCEPTED] == 0) {
        return;
    }
    const float* candidate = vectors + 2 * history * n;
    float* s = vectors + slot_of(state, history, 0) * n;
    float* y = s + history * n;
    grid_stride(n, [=](long long i) {
        s[i] = candidate[i];
        y[i] = candidate[n + i];
    });
}

// direction = -gradient, without the components that point out of 0..1 at the bounds.
KERNEL lbfgs_steepest_descent(const float* gradient, const float* image, float* direction, long long n) {
    grid_stride(n, [=](long long i) { direction[i] = project_direction(-gradient[i], image[i]); });
}

// The two-loop recursion: H q for q from lbfgs_steepest_descent and the inverse Hessian H of the pairs,
// as coefficients [2 * history + 1] of the rows of the ring buffer and, last, of q. q_products
// [2 * history] are the inner products of the rows with q, *gradient_squares is the squared norm of
// the gradient. While the curvature is unknown, the step has a root mean square of first_step. A
// single thread does the work.
KERNEL lbfgs_coefficients(const double* state, const double* products, const double* q_products,
                          const double* gradient_squares, double* coefficients, int history, long long n,
                          double first_step) {
    if (!first_thread()) {
        return;
    }
    int rows = 2 * history, pairs = (int)state[PAIRS];
    double scale = state[CURVATURE];
    if (scale == 0 && *gradient_squares > 0) {
        scale = first_step / sqrt(*gradient_squares / n);
    }
    for (int row = 0; row < rows; row++) {
        coefficients[row] = 0;
    }
    // The first loop, from the latest pair to the oldest. So far q has lost multiples of the y of the
    // later pairs. The coefficient of s holds the recursion's alpha until the second loop.
    for (int pair = 0; pair < pairs; pair++) {
        int slot = slot_of(state, history, pair);
        const double* s = products + slot * rows;
        double sum = q_products[slot];
        for (int later = 0; later < pair; later++) {
            int y = history + slot_of(state, history, later);
            sum += coefficients[y] * s[y];
        }
        coefficients[slot] = sum / s[history + slot];
        coefficients[history + slot] = -coefficients[slot];
    }
    for (int y = history; y < rows; y++) {
        coefficients[y] *= scale;
    }
    coefficients[rows] = scale;
    // The second loop, from the oldest pair to the latest. The direction has multiples of q, of all y,
    // and of the s of the older pairs.
    for (int pair = pairs - 1; pair >= 0; pair--) {
        int slot = slot_of(state, history, pair);
        const double* y = products + (history + slot) * rows;
        double sum = scale * q_products[history + slot];
        for (int other = 0; other < pairs; other++) {
            int row = slot_of(state, history, other);
            sum += coefficients[history + row] * y[history + row];
            sum += other > pair ? coefficients[row] * y[row] : 0;
        }
        coefficients[slot] -= sum / y[slot];
    }
}

// Evaluates the linear combination of lbfgs_coefficients, with q in direction on entry, and clears the
// components that point out of 0..1 at the bounds.
KERNEL lbfgs_combine(const float* vectors, const double* coefficients, const float* image, float* direction,
                     int history, long long n) {
    grid_stride(n, [=](long long i) {
        double sum = coefficients[2 * history] * direction[i];
        for (int row = 0; row < 2 * history; row++) {
            double coefficient = coefficients[row];
            // Slots without a pair have coefficient 0 and may hold NaN.
            if (coefficient != 0) {
                sum += coefficient * vectors[row * n + i];
            }
        }
        direction[i] = project_direction((float)sum, image[i]);
    });
}

// SPDX-License-Identifier: MPL-2.0

// L-BFGS without waiting for the host: the inner products of the pairs are kept, and the two-loop
// recursion (Nocedal and Wright, algorithm 7.4) runs on the coefficients of the vectors that a
// direction is a combination of (W. Chen, Z. Wang, J. Zhou, "Large-scale L-BFGS using MapReduce",
// NIPS 2014).
//
// vectors, float [2 * history + 2, n]: the displacements s in rows 0..history and the changes y of
// the gradient in rows history..2 * history, each pair in a slot of a ring; then the s and the y of
// the candidate, the step that was made last. Slots without a pair may hold anything.
// products, double [2 * history, 2 * history]: the inner products of the slots' rows.
// state, double [4]: see below.

#pragma once

#include "common.cuh"
#include "image.cuh"

enum State {
    // The number of pairs.
    PAIRS,
    // The slot that the next pair goes to.
    NEXT,
    // Whether the last candidate has become a pair, 0 or 1.
    ACCEPTED,
    // s.y / y.y of the last pair: the scale of the inverse Hessian; 0 where it is unknown.
    CURVATURE,
};

// The slot of the pair that came `age` pairs before the last.
__device__ inline int slot_of(const double* state, int history, int age) {
    int slot = (int)state[NEXT] - 1 - age;
    return slot < 0 ? slot + history : slot;
}

__device__ inline bool first_thread() {
    return blockIdx.x == 0 && threadIdx.x == 0;
}

// Partial sums, [2, gridDim.x], of (trial - image)^2 and of gradient * (trial - image).
KERNEL lbfgs_moved(const float* image, const float* trial, const float* gradient, double* partials, long long n) {
    double squares = 0, slope = 0;
    for_each(n, [&](long long i) {
        double moved = trial[i] - image[i];
        squares += moved * moved;
        slope += gradient[i] * moved;
    });
    write_partial(squares, partials, 0);
    write_partial(slope, partials, 1);
}

// The candidate of the step from image to trial: s = trial - image, y = trial_gradient - gradient.
KERNEL lbfgs_pair(const float* image, const float* trial, const float* gradient, const float* trial_gradient,
                  float* vectors, int history, long long n) {
    float* s = vectors + 2 * history * n;
    float* y = s + n;
    for_each(n, [=](long long i) {
        s[i] = trial[i] - image[i];
        y[i] = trial_gradient[i] - gradient[i];
    });
}

// Partial sums of vectors[row] . x for the rows blockIdx.y of [gridDim.y, n].
KERNEL products(const float* vectors, const float* x, double* partials, long long n) {
    const float* row = vectors + blockIdx.y * n;
    double sum = 0;
    for_each(n, [&](long long i) { sum += (double)row[i] * x[i]; });
    write_partial(sum, partials, blockIdx.y);
}

// Makes a pair of the candidate if the cosine between its s and y is above min_cosine: then its
// products take their places. s_products and y_products [2 * history + 2] are those of all rows of
// vectors with the candidate's s and y. One thread's work.
KERNEL lbfgs_learn(double* state, const double* s_products, const double* y_products, double* products, int history,
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
    // What the slot held before is in none of them.
    products[s * rows + s] = ss;
    products[s * rows + y] = products[y * rows + s] = sy;
    products[y * rows + y] = yy;
    state[PAIRS] = min((int)state[PAIRS] + 1, history);
    state[NEXT] = (slot + 1) % history;
    state[CURVATURE] = sy / yy;
}

// Copies the candidate into the slot of the last pair, if it has just become that.
KERNEL lbfgs_store(const double* state, float* vectors, int history, long long n) {
    if (state[ACCEPTED] == 0) {
        return;
    }
    const float* candidate = vectors + 2 * history * n;
    float* s = vectors + slot_of(state, history, 0) * n;
    float* y = s + history * n;
    for_each(n, [=](long long i) {
        s[i] = candidate[i];
        y[i] = candidate[n + i];
    });
}

// direction = -gradient, as far as it does not lead out of 0..1 from image.
KERNEL lbfgs_start(const float* gradient, const float* image, float* direction, long long n) {
    for_each(n, [=](long long i) { direction[i] = kept_inside(-gradient[i], image[i]); });
}

// The coefficients [2 * history + 1] of the slots' rows and, last, of the direction of lbfgs_start
// in H direction, with the inverse Hessian H of the pairs. q_products [2 * history] are the rows'
// inner products with that direction, *gradient_squares that of the gradient with itself. Where the
// curvature is unknown, a step has a root mean square of first_step. One thread's work.
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
    // From the last pair to the first: s.d takes the y of the later ones. Until the way back, the
    // coefficient of s keeps what the pair took of y.
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
    // From the first pair to the last: y.d takes the y of all and the s of the earlier ones.
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

// direction = the sum of coefficients[row] * vectors[row] and of its own multiple, the last of
// coefficients [2 * history + 1], as far as it does not lead out of 0..1 from image.
KERNEL lbfgs_combine(const float* vectors, const double* coefficients, const float* image, float* direction,
                     int history, long long n) {
    for_each(n, [=](long long i) {
        double sum = coefficients[2 * history] * direction[i];
        for (int row = 0; row < 2 * history; row++) {
            double coefficient = coefficients[row];
            // Not of a slot without a pair.
            if (coefficient != 0) {
                sum += coefficient * vectors[row * n + i];
            }
        }
        direction[i] = kept_inside((float)sum, image[i]);
    });
}

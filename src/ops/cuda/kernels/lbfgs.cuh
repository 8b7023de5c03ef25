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
// state, double [5]: see State.

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
    // The scale of the initial inverse Hessian: s.y / y.y of the latest pair or, at the start of an
    // objective, of the first pair of the one before; 0 if unknown.
    CURVATURE,
    // The CURVATURE of the objective's first pair; 0 if unknown.
    OPENING_CURVATURE,
};

// The slot of the pair that is `age` pairs older than the latest.
__device__ inline int slot_of(const double* state, int history, int age) {
    int slot = (int)state[NEXT] - 1 - age;
    return slot < 0 ? slot + history : slot;
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
// products of all rows of vectors with the candidate's s and y. A single block does the work.
KERNEL lbfgs_update(double* state, const double* s_products, const double* y_products, double* products, int history,
                    double min_cosine) {
    int rows = 2 * history, s = (int)state[NEXT], y = history + s, pairs = (int)state[PAIRS];
    double ss = s_products[rows], sy = s_products[rows + 1], yy = y_products[rows + 1];
    bool accepted = sy > min_cosine * sqrt(ss * yy);
    for (int row = threadIdx.x; accepted && row < rows; row += THREADS) {
        // s_products and y_products have those of the pair that is replaced here.
        double with_s = row == s ? ss : row == y ? sy : s_products[row];
        double with_y = row == s ? sy : row == y ? yy : y_products[row];
        products[s * rows + row] = products[row * rows + s] = with_s;
        products[y * rows + row] = products[row * rows + y] = with_y;
    }
    // All threads have read the state.
    __syncthreads();
    if (threadIdx.x == 0) {
        state[ACCEPTED] = accepted;
        if (accepted) {
            state[PAIRS] = min(pairs + 1, history);
            state[NEXT] = (s + 1) % history;
            state[CURVATURE] = sy / yy;
            if (state[OPENING_CURVATURE] == 0) {
                state[OPENING_CURVATURE] = state[CURVATURE];
            }
        }
    }
}

// Prepares for another objective: drops the pairs, and returns to the curvature scale of the first pair
// of the objective so far. A single thread does the work.
KERNEL lbfgs_next_objective(double* state) {
    if (threadIdx.x == 0) {
        state[PAIRS] = 0;
        if (state[OPENING_CURVATURE] != 0) {
            state[CURVATURE] = state[OPENING_CURVATURE];
            state[OPENING_CURVATURE] = 0;
        }
    }
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

// dots += factor * row, of `count` values, by the threads of a block.
__device__ inline void add_row(double* dots, double factor, const double* row, int count) {
    // All threads have read what they need of dots.
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += THREADS) {
        dots[i] += factor * row[i];
    }
    __syncthreads();
}

// The two-loop recursion: H q for q from lbfgs_steepest_descent and the inverse Hessian H of the pairs,
// as coefficients [2 * history + 1] of the rows of the ring buffer and, last, of q. dots [2 * history]
// are the inner products of the rows with q, and are overwritten; *gradient_squares is the squared norm
// of the gradient. While the curvature is unknown, the step has a root mean square of first_step. A
// single block does the work.
KERNEL lbfgs_coefficients(const double* state, const double* __restrict__ products, double* __restrict__ dots,
                          const double* gradient_squares, double* coefficients, int history, long long n,
                          double first_step) {
    int rows = 2 * history, pairs = (int)state[PAIRS];
    double scale = state[CURVATURE];
    if (scale == 0 && *gradient_squares > 0) {
        scale = first_step / sqrt(*gradient_squares / n);
    }
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        coefficients[row] = 0;
    }
    __syncthreads();
    // The first loop, from the latest pair to the oldest. The recursion changes q, and dots with it, so
    // that no step has to sum over pairs. The coefficient of s holds its alpha until the second loop.
    for (int pair = 0; pair < pairs; pair++) {
        int s = slot_of(state, history, pair), y = history + s;
        double alpha = dots[s] / products[s * rows + y];
        if (threadIdx.x == 0) {
            coefficients[s] = alpha;
            coefficients[y] = scale * -alpha;
        }
        add_row(dots, -alpha, products + y * rows, rows);
    }
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        dots[row] *= scale;
    }
    __syncthreads();
    // The second loop, from the oldest pair to the latest.
    for (int pair = pairs - 1; pair >= 0; pair--) {
        int s = slot_of(state, history, pair), y = history + s;
        double coefficient = coefficients[s] - dots[y] / products[s * rows + y];
        add_row(dots, coefficient, products + s * rows, rows);
        if (threadIdx.x == 0) {
            coefficients[s] = coefficient;
        }
    }
    if (threadIdx.x == 0) {
        coefficients[rows] = scale;
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

// SPDX-License-Identifier: MPL-2.0

// Vector-free L-BFGS (W. Chen, Z. Wang, J. Zhou, "Large-scale L-BFGS using MapReduce", NIPS 2014): a
// direction is a linear combination of the pairs' vectors and the gradient. The inner products of
// these are kept, and the two-loop recursion (Nocedal and Wright, algorithm 7.4) runs on the
// coefficients. So nothing has to be read back by the host.
//
// slots = history + 1: one for each pair, and a spare one for the candidate, the latest step.
// vectors, float [2 * slots, gridDim.x * BLOCK_VALUES]: a ring buffer of pairs, with the displacements s
// in rows 0..slots and the changes y of the gradient in rows slots..2 * slots, which are padded with
// zeros. Slots without a pair may hold anything.
// products, double [2 * slots, 2 * slots]: the inner products of the pairs' rows.
// sums, double [6 * slots + 1]: the inner products of s, y and q, [3, 2 * slots], with the rows of the
// pairs and of the candidate, whose s and y they are; q is the projected steepest descent after the
// step. Then the squared norm of the gradient there.
// coefficients, double [2 * slots + 1]: the direction as a linear combination of the pairs' rows and q.
// state, double [4]: see State.

#pragma once

#include "common.cuh"
#include "image.cuh"

// A block takes a tile of the values, and each of its threads some packs of 4, THREADS packs apart so
// that loads coalesce. The more packs, the fewer sums over blocks.
constexpr int PACKS = 3;
constexpr int THREAD_VALUES = 4 * PACKS;
constexpr int BLOCK_VALUES = THREAD_VALUES * THREADS;

// A kernel with a block for each tile. A multiprocessor takes two at a time: with the 128 registers that
// this leaves to each thread, loads of whole pairs overlap.
#define TILE_KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

using Pack4 = Pack<float, 4>;

enum State {
    // The number of pairs.
    PAIRS,
    // The spare slot, which becomes that of the next pair.
    NEXT,
    // The scale of the initial inverse Hessian: s.y / y.y of the latest pair or, at the start of an
    // objective, of the first pair of the one before; 0 if unknown.
    CURVATURE,
    // The CURVATURE of the objective's first pair; 0 if unknown.
    OPENING_CURVATURE,
};

// The slot of the pair that is `age` pairs older than the latest; of the candidate for an age of -1.
__device__ inline int slot_of(int next, int slots, int age) {
    int slot = next - 1 - age;
    return slot < 0 ? slot + slots : slot;
}

// A thread's values of its block's tile, of a vector.
struct Tile {
    Pack4 packs[PACKS];

    __device__ float& operator[](int i) {
        return packs[i / 4].values[i % 4];
    }

    __device__ float operator[](int i) const {
        return packs[i / 4].values[i % 4];
    }
};

// The thread's pack of the tile, as an index of a vector's packs.
__device__ inline long long pack_of(int index) {
    return ((long long)blockIdx.x * PACKS + index) * THREADS + threadIdx.x;
}

// Of a padded row.
__device__ inline Tile load_tile(const float* row) {
    Tile tile;
    for (int k = 0; k < PACKS; k++) {
        tile.packs[k] = load<4>(row, pack_of(k));
    }
    return tile;
}

__device__ inline void store_tile(float* row, const Tile& tile) {
    for (int k = 0; k < PACKS; k++) {
        store(row, pack_of(k), tile.packs[k]);
    }
}

// Whether a pack of n values is whole and aligned.
__device__ inline bool is_whole(const float* values, long long pack, long long n) {
    return 4 * pack + 4 <= n && (size_t)values % sizeof(Pack4) == 0;
}

// Of n values of any alignment; 0 beyond them.
__device__ inline Tile load_image(const float* values, long long n) {
    Tile tile{};
    for (int k = 0; k < PACKS; k++) {
        if (is_whole(values, pack_of(k), n)) {
            tile.packs[k] = load<4>(values, pack_of(k));
            continue;
        }
        for (int i = 0; i < 4; i++) {
            if (4 * pack_of(k) + i < n) {
                tile.packs[k].values[i] = values[4 * pack_of(k) + i];
            }
        }
    }
    return tile;
}

// Stores what is not beyond n values.
__device__ inline void store_image(float* values, long long n, const Tile& tile) {
    for (int k = 0; k < PACKS; k++) {
        if (is_whole(values, pack_of(k), n)) {
            store(values, pack_of(k), tile.packs[k]);
            continue;
        }
        for (int i = 0; i < 4; i++) {
            if (4 * pack_of(k) + i < n) {
                values[4 * pack_of(k) + i] = tile.packs[k].values[i];
            }
        }
    }
}

// trial = image + t direction, clamped to 0..1. Partial sums [2, gridDim.x] of (trial - image)^2 and of
// gradient * (trial - image).
TILE_KERNEL lbfgs_step(const float* image, const float* gradient, float t, const float* direction, float* trial,
                       double* partials, long long n) {
    Tile x = load_image(image, n), g = load_image(gradient, n), to = load_image(direction, n);
    double squares = 0, slope = 0;
    for (int i = 0; i < THREAD_VALUES; i++) {
        to[i] = clamp01(x[i] + t * to[i]);
        double displacement = to[i] - x[i];
        squares += displacement * displacement;
        slope += g[i] * displacement;
    }
    store_image(trial, n, to);
    write_partial(squares, partials, 0);
    write_partial(slope, partials, 1);
}

// sums += the inner products of a tile with those of three vectors.
__device__ inline void products_with(const double (&vectors)[3][THREAD_VALUES], const Tile& tile, double (&sums)[3]) {
    for (int i = 0; i < THREAD_VALUES; i++) {
        double value = tile[i];
        for (int vector = 0; vector < 3; vector++) {
            sums[vector] += value * vectors[vector][i];
        }
    }
}

// Sums of a and b over a warp: that of a in the lower half of its lanes, that of b in the upper half.
__device__ inline double warp_sums(double a, double b) {
    bool upper = threadIdx.x & 16;
    double sum = (upper ? b : a) + __shfl_xor_sync(~0u, upper ? a : b, 16);
    for (int distance = 8; distance > 0; distance /= 2) {
        sum += __shfl_xor_sync(~0u, sum, distance);
    }
    return sum;
}

// The sums over each warp of the inner products of s, y and q with a pair's s and, next to it, y.
using WarpSums = double[3][THREADS / 32][2];

// Writes the sums over the block of a pair's inner products with s, y and q to its columns of partials
// [3, 2, slots, gridDim.x].
__device__ inline void write_products(const double (&with_s)[3], const double (&with_y)[3], WarpSums& shared,
                                      double* partials, int slot, int slots) {
    double sums[3];
    for (int vector = 0; vector < 3; vector++) {
        sums[vector] = warp_sums(with_s[vector], with_y[vector]);
    }
    for (int vector = 0; vector < 3 && threadIdx.x % 16 == 0; vector++) {
        shared[vector][threadIdx.x / 32][threadIdx.x / 16 % 2] = sums[vector];
    }
    __syncthreads();
    if (threadIdx.x < 6) {
        double sum = 0;
        for (int warp = 0; warp < THREADS / 32; warp++) {
            sum += shared[threadIdx.x / 2][warp][threadIdx.x % 2];
        }
        partials[(threadIdx.x * slots + slot) * gridDim.x + blockIdx.x] = sum;
    }
}

// Moves from image and gradient to those of the trial, with s and y of the step as the candidate, and
// writes the partial sums [6 * slots + 1, gridDim.x] of sums. The trial may be the image itself: a step
// of length 0.
TILE_KERNEL lbfgs_products(float* image, float* gradient, const float* trial, const float* trial_gradient,
                           const double* state, float* vectors, double* partials, int history, long long n) {
    int slots = history + 1, next = (int)state[NEXT], pairs = (int)state[PAIRS];
    long long row = (long long)gridDim.x * BLOCK_VALUES;
    Tile x = load_image(trial, n), g = load_image(trial_gradient, n);
    Tile s = load_image(image, n), y = load_image(gradient, n);
    // s, y and q.
    double step[3][THREAD_VALUES], squares = 0;
    for (int i = 0; i < THREAD_VALUES; i++) {
        step[0][i] = s[i] = x[i] - s[i];
        step[1][i] = y[i] = g[i] - y[i];
        step[2][i] = project_direction(-g[i], x[i], g[i]);
        squares += (double)g[i] * g[i];
    }
    store_tile(vectors + next * row, s);
    store_tile(vectors + (slots + next) * row, y);
    store_image(image, n, x);
    store_image(gradient, n, g);
    write_partial(squares, partials, 6 * slots);
    // Two in turn, so that one barrier a pair is enough: the next one is after these sums are read.
    __shared__ WarpSums shared[2];
    for (int age = -1; age < pairs; age++) {
        int slot = slot_of(next, slots, age);
        Tile pair_s = load_tile(vectors + slot * row), pair_y = load_tile(vectors + (slots + slot) * row);
        double with_s[3] = {}, with_y[3] = {};
        products_with(step, pair_s, with_s);
        products_with(step, pair_y, with_y);
        write_products(with_s, with_y, shared[age & 1], partials, slot, slots);
    }
}

// Makes the candidate a pair if the cosine between its s and y is above min_cosine, and enters its
// inner products. By the threads of a block.
__device__ inline void enter_candidate(double* state, double* products, const double* sums, int history,
                                       double min_cosine) {
    int slots = history + 1, rows = 2 * slots, s = (int)state[NEXT], y = slots + s;
    const double *with_s = sums, *with_y = sums + rows;
    double ss = with_s[s], sy = with_s[y], yy = with_y[y];
    if (!(sy > min_cosine * sqrt(ss * yy))) {
        return;
    }
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        products[s * rows + row] = products[row * rows + s] = with_s[row];
        products[y * rows + row] = products[row * rows + y] = with_y[row];
    }
    // All threads have read the state.
    __syncthreads();
    if (threadIdx.x == 0) {
        state[PAIRS] = min((int)state[PAIRS] + 1, history);
        state[NEXT] = (s + 1) % slots;
        state[CURVATURE] = sy / yy;
        if (state[OPENING_CURVATURE] == 0) {
            state[OPENING_CURVATURE] = state[CURVATURE];
        }
    }
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

// The two-loop recursion, from the inner products `dots` of the pairs' rows with q, which it changes.
// alphas, of a value for each slot, may be the coefficients. By the threads of a block.
__device__ inline void two_loops(const double* products, double* dots, double* alphas, double* coefficients,
                                 int slots, int next, int pairs, double scale) {
    int rows = 2 * slots;
    // The first loop, from the latest pair to the oldest. The recursion changes q, and dots with it, so
    // that no step has to sum over pairs.
    for (int age = 0; age < pairs; age++) {
        int s = slot_of(next, slots, age), y = slots + s;
        double alpha = dots[s] / products[s * rows + y];
        if (threadIdx.x == 0) {
            alphas[s] = alpha;
            coefficients[y] = scale * -alpha;
        }
        add_row(dots, -alpha, products + y * rows, rows);
    }
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        dots[row] *= scale;
    }
    __syncthreads();
    // The second loop, from the oldest pair to the latest.
    for (int age = pairs - 1; age >= 0; age--) {
        int s = slot_of(next, slots, age), y = slots + s;
        double coefficient = alphas[s] - dots[y] / products[s * rows + y];
        add_row(dots, coefficient, products + s * rows, rows);
        if (threadIdx.x == 0) {
            coefficients[s] = coefficient;
        }
    }
    if (threadIdx.x == 0) {
        coefficients[rows] = scale;
    }
}

// Enters the candidate, and computes the coefficients of H q for the inverse Hessian H of the pairs.
// While the curvature is unknown, the step has a root mean square of first_step. sums are overwritten. A
// single block does the work.
KERNEL lbfgs_coefficients(double* state, double* products, double* sums, double* coefficients, int history,
                          long long n, double min_cosine, double first_step) {
    enter_candidate(state, products, sums, history, min_cosine);
    __syncthreads();
    int slots = history + 1, rows = 2 * slots, pairs = (int)state[PAIRS], next = (int)state[NEXT];
    double scale = state[CURVATURE], squares = sums[3 * rows];
    if (scale == 0 && squares > 0) {
        scale = first_step / sqrt(squares / n);
    }
    double *dots = sums + 2 * rows, *alphas = coefficients;
    // Shared memory answers faster. It has room for histories up to 26.
    __shared__ double cache[3072];
    if (rows * (rows + 2) <= 3072) {
        for (int i = threadIdx.x; i < rows * rows; i += THREADS) {
            cache[i] = products[i];
        }
        for (int row = threadIdx.x; row < rows; row += THREADS) {
            cache[rows * rows + row] = dots[row];
        }
        __syncthreads();
        products = cache;
        dots = cache + rows * rows;
        alphas = dots + rows;
    }
    two_loops(products, dots, alphas, coefficients, slots, next, pairs, scale);
}

// Evaluates the linear combination, and projects it.
TILE_KERNEL lbfgs_combine(const double* state, const float* vectors, const double* coefficients, const float* image,
                          const float* gradient, float* direction, int history, long long n) {
    int slots = history + 1, next = (int)state[NEXT], pairs = (int)state[PAIRS];
    long long row = (long long)gridDim.x * BLOCK_VALUES;
    Tile x = load_image(image, n), d = load_image(gradient, n);
    double sum[THREAD_VALUES], scale = coefficients[2 * slots];
    for (int i = 0; i < THREAD_VALUES; i++) {
        sum[i] = scale * project_direction(-d[i], x[i], d[i]);
    }
    // From the oldest pair to the latest: lbfgs_products has left the former in the cache.
#pragma unroll 2
    for (int age = pairs - 1; age >= 0; age--) {
        int slot = slot_of(next, slots, age);
        Tile s = load_tile(vectors + slot * row), y = load_tile(vectors + (slots + slot) * row);
        double with_s = coefficients[slot], with_y = coefficients[slots + slot];
        for (int i = 0; i < THREAD_VALUES; i++) {
            sum[i] += with_s * s[i];
            sum[i] += with_y * y[i];
        }
    }
    for (int i = 0; i < THREAD_VALUES; i++) {
        d[i] = project_direction((float)sum[i], x[i], d[i]);
    }
    store_image(direction, n, d);
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

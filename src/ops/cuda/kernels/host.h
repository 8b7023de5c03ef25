// SPDX-License-Identifier: MPL-2.0

// The parts of CUDA that the kernels use, for a C++ compiler, so that tests can run the kernels on
// the CPU. The blocks of a grid run one after another, the threads of a block concurrently.

#pragma once

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
// Only one block runs at a time, so that its shared memory may be static.
#define __shared__ static

struct Index {
    unsigned x, y;
};

inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;
inline thread_local std::barrier<>* block_barrier;

inline void __syncthreads() {
    block_barrier->arrive_and_wait();
}

using std::max;
using std::min;

inline float __uint_as_float(unsigned bits) {
    return std::bit_cast<float>(bits);
}

inline unsigned __float_as_uint(float value) {
    return std::bit_cast<unsigned>(value);
}

inline float half_to_float(unsigned short bits) {
    return std::bit_cast<_Float16>(bits);
}

inline unsigned short float_to_half(float value) {
    return std::bit_cast<unsigned short>((_Float16)value);
}

// Runs body(context) in each thread of each block of a grid; one grid at a time.
extern "C" void run_grid(unsigned grid_x, unsigned grid_y, unsigned block, void (*body)(void*), void* context) {
    static std::mutex turn;
    std::lock_guard lock(turn);
    std::barrier<> barrier(block);
    auto run = [&](unsigned thread) {
        block_barrier = &barrier;
        threadIdx = {thread, 0};
        blockDim = {block, 1};
        gridDim = {grid_x, grid_y};
        for (unsigned y = 0; y < grid_y; y++) {
            for (unsigned x = 0; x < grid_x; x++) {
                blockIdx = {x, y};
                body(context);
                __syncthreads();
            }
        }
    };
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < block; thread++) {
        threads.emplace_back(run, thread);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

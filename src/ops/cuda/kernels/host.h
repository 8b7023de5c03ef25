// SPDX-License-Identifier: MPL-2.0

// What the kernels need of CUDA, for a C++ compiler: tests run them on the CPU, where there is no
// GPU. The blocks of a grid run one after the other, the threads of a block at the same time.

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
// One block at a time: what is the block's may be everyone's.
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

inline float half_to_single(unsigned short bits) {
    return std::bit_cast<_Float16>(bits);
}

inline unsigned short single_to_half(float value) {
    return std::bit_cast<unsigned short>((_Float16)value);
}

// Calls body(context) in each thread of each block of a grid. One grid runs at a time.
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

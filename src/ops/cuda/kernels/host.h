// SPDX-License-Identifier: MPL-2.0

// The parts of CUDA that the kernels use, for a C++ compiler, so that tests can run the kernels on the CPU: one thread of a
// grid after another, each up to its next barrier.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
// Only one block runs at a time, so that its shared memory may be static.
#define __shared__ static

struct Index {
    unsigned x;
};

inline Index threadIdx, blockIdx, blockDim, gridDim;

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

// A thread of a block, on a stack of its own, so that it can wait for the others. It serves one block after another.
struct HostThread {
    std::vector<char> stack;
    // Where it waits.
    jmp_buf position;
    bool ended;
};

struct HostBlock {
    std::vector<HostThread> threads;
    jmp_buf scheduler;
    void (*body)(void*);
    void* argument;
    // The thread that runs; null where threads run to their ends.
    HostThread* running;
    bool waited;
};

inline HostBlock host_block;

// Goes on with the scheduler, until that resumes this thread. (swapcontext would ask the kernel each time.)
inline void suspend_host_thread() {
    if (!_setjmp(host_block.running->position)) {
        _longjmp(host_block.scheduler, 1);
    }
}

inline void __syncthreads() {
    if (!host_block.running) {
        fputs("a later block has a barrier where the first had none\n", stderr);
        abort();
    }
    host_block.waited = true;
    suspend_host_thread();
}

// All threads of the block must call it, as they wait for each other.
inline double __shfl_xor_sync(unsigned, double value, int distance) {
    static double values[1024];
    values[threadIdx.x] = value;
    __syncthreads();
    double other = values[threadIdx.x ^ distance];
    __syncthreads();
    return other;
}

inline void run_host_thread() {
    for (;;) {
        host_block.body(host_block.argument);
        host_block.running->ended = true;
        suspend_host_thread();
    }
}

// Runs a thread until it waits or ends.
[[gnu::noinline]] inline void resume_host_thread(HostThread& thread) {
    host_block.running = &thread;
    if (_setjmp(host_block.scheduler)) {
        return;
    }
    if (!thread.stack.empty()) {
        _longjmp(thread.position, 1);
    }
    thread.stack.resize(64 << 10);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = thread.stack.data();
    start.uc_stack.ss_size = thread.stack.size();
    makecontext(&start, run_host_thread, 0);
    setcontext(&start);
}

// Runs a block whose threads may wait for each other.
inline void run_waiting_block() {
    std::vector<HostThread>& threads = host_block.threads;
    threads.resize(max<size_t>(threads.size(), blockDim.x));
    for (HostThread& thread : threads) {
        thread.ended = false;
    }
    for (unsigned left = blockDim.x; left > 0;) {
        for (unsigned index = 0; index < blockDim.x; index++) {
            if (!threads[index].ended) {
                threadIdx = {index};
                resume_host_thread(threads[index]);
                left -= threads[index].ended;
            }
        }
    }
    host_block.running = nullptr;
}

// Runs body(argument) in each thread of each block of a grid; one grid at a time.
extern "C" inline __attribute__((used)) void run_grid(unsigned blocks, unsigned threads, void (*body)(void*),
                                                    void* argument) {
    static std::mutex turn;
    std::lock_guard lock(turn);
    gridDim = {blocks};
    blockDim = {threads};
    host_block.body = body;
    host_block.argument = argument;
    host_block.waited = false;
    for (unsigned block = 0; block < blocks; block++) {
        blockIdx = {block};
        // If no thread of the first block waits, none of the others does.
        if (block == 0 || host_block.waited) {
            run_waiting_block();
            continue;
        }
        for (unsigned index = 0; index < threads; index++) {
            threadIdx = {index};
            body(argument);
        }
    }
}

// SPDX-License-Identifier: MPL-2.0

// What the stand-ins for CUDA's libraries share: a device whose work is done on the CPU, and as late as CUDA allows.

#pragma once

#include <cuda.h>

#include <cstddef>
#include <functional>
#include <mutex>

// Held by every call that has to do with the device's memory or its streams. Recursive, as work calls functions that need it,
// too.
extern std::recursive_mutex device_lock;

using Work = std::function<void()>;

// Enqueues work on a stream, or adds it to the graph that the stream is captured into.
void enqueue(CUstream stream, Work work);

bool is_capturing(CUstream stream);

// Ends the program with a message: what was done is undefined with CUDA, or not what it allows.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Device memory is filled with this when it is allocated and freed: as a number in any format it is NaN.
constexpr int POISON = 0xff;

// It must lie in one block that is allocated, and not to be freed.
void expect_memory(const void* start, size_t bytes, const char* use);

CUresult allocate(size_t bytes, CUdeviceptr* block);
// From here on no call may use the block; work that was enqueued before may, until it is released.
void retire(CUdeviceptr block);
void release(CUdeviceptr block);
size_t allocated_bytes();
size_t device_bytes();

// Runs a grid of a kernel: see src/ops/cuda/kernels/host.h.
extern "C" void run_grid(unsigned blocks, unsigned threads, void (*body)(void*), void* argument);

// SPDX-License-Identifier: MPL-2.0

// The device's memory: blocks between guard bytes, poisoned before and after their use.

#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>

namespace {

constexpr size_t ALIGNMENT = 512, GUARD_BYTES = 512, DEVICE_BYTES = 2ull << 30;
constexpr unsigned char GUARD = 0xab;

// Freed blocks stay poisoned until so many bytes of them have gathered.
constexpr size_t FREED_BYTES = 64 << 20;

enum class State { USED, RETIRED, FREED };

struct Block {
    size_t bytes;
    State state;
};

struct Memory {
    std::map<char*, Block> blocks;
    std::deque<char*> freed;
    size_t allocated = 0, freed_bytes = 0;

    ~Memory() {
        for (auto& [start, block] : blocks) {
            check(start, block);
        }
    }

    static void check(const char* start, const Block& block) {
        auto filled = [](const char* first, size_t bytes, unsigned char value) {
            return std::all_of(first, first + bytes, [=](char byte) { return (unsigned char)byte == value; });
        };
        if (!filled(start - GUARD_BYTES, GUARD_BYTES, GUARD) || !filled(start + block.bytes, GUARD_BYTES, GUARD)) {
            fault("written beyond a block of %zu bytes", block.bytes);
        }
        if (block.state == State::FREED && !filled(start, block.bytes, POISON)) {
            fault("written to a block of %zu bytes after it was freed", block.bytes);
        }
    }
};

Memory memory;

} // namespace

CUresult allocate(size_t bytes, CUdeviceptr* block) {
    if (bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (memory.allocated + bytes > DEVICE_BYTES) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t whole = (bytes + 2 * GUARD_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    char* start = (char*)std::aligned_alloc(ALIGNMENT, whole) + GUARD_BYTES;
    std::memset(start - GUARD_BYTES, GUARD, GUARD_BYTES);
    std::memset(start, POISON, bytes);
    std::memset(start + bytes, GUARD, GUARD_BYTES);
    memory.blocks[start] = {bytes, State::USED};
    memory.allocated += bytes;
    *block = (CUdeviceptr)start;
    return CUDA_SUCCESS;
}

void retire(CUdeviceptr address) {
    auto found = memory.blocks.find((char*)address);
    if (found == memory.blocks.end() || found->second.state != State::USED) {
        fault("what is freed is not allocated");
    }
    found->second.state = State::RETIRED;
}

void release(CUdeviceptr address) {
    char* start = (char*)address;
    Block& block = memory.blocks.at(start);
    Memory::check(start, block);
    std::memset(start, POISON, block.bytes);
    block.state = State::FREED;
    memory.allocated -= block.bytes;
    memory.freed.push_back(start);
    memory.freed_bytes += block.bytes;
    while (memory.freed_bytes > FREED_BYTES) {
        char* oldest = memory.freed.front();
        memory.freed.pop_front();
        memory.freed_bytes -= memory.blocks[oldest].bytes;
        Memory::check(oldest, memory.blocks[oldest]);
        memory.blocks.erase(oldest);
        std::free(oldest - GUARD_BYTES);
    }
}

void expect_memory(const void* start, size_t bytes, const char* use) {
    auto after = memory.blocks.upper_bound((char*)start);
    if (after == memory.blocks.begin()) {
        fault("%s: no device memory", use);
    }
    auto& [first, block] = *--after;
    bool used = block.state == State::USED;
    if (!used || (char*)start + bytes > first + block.bytes) {
        fault("%s: %zu bytes at %td of a block of %zu%s", use, bytes, (char*)start - first, block.bytes,
              used ? "" : ", which is freed");
    }
}

size_t allocated_bytes() {
    return memory.allocated;
}

size_t device_bytes() {
    return DEVICE_BYTES;
}

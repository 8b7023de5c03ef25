// SPDX-License-Identifier: MPL-2.0

// A stand-in for CUDA's driver, of what the crate calls of it. A stream's work is done when something waits for it and not
// before, so that a missing wait shows. Kernels are functions of the same name in this library; the types of their
// parameters are read from the PTX.

#include "device.h"

#include <array>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

std::recursive_mutex device_lock;

struct CUstream_st {
    std::deque<Work> queue;
    // How much work was enqueued and done in all.
    size_t enqueued = 0, done = 0;
    bool capturing = false;
    std::vector<Work> captured;
};

// When it was last recorded: after so much of the stream's work.
struct CUevent_st {
    CUstream stream = nullptr;
    size_t position = 0;
    std::chrono::steady_clock::time_point time;
};

struct CUgraph_st {
    std::vector<Work> work;
};

struct CUgraphExec_st {
    std::vector<Work> work;
};

// A letter for each parameter of each kernel: see letter_of.
struct CUmod_st {
    std::map<std::string, std::string> kernels;
};

struct CUfunc_st {
    std::string name, parameters;
    void* address;
};

struct CUctx_st {
    CUdevice device;
};

namespace {

constexpr int DEVICES = 2;

// Work that a stream holds at most, before a call waits.
constexpr size_t QUEUE = 4096;

CUctx_st contexts[DEVICES];
std::set<CUstream> streams;
std::map<char*, size_t> pinned;
thread_local CUcontext current = nullptr;
// The stream that this thread captures, if other calls are forbidden meanwhile.
thread_local CUstream strict_capture = nullptr;

using Guard = std::lock_guard<std::recursive_mutex>;

void work_off(CUstream stream, size_t until) {
    while (stream->done < until) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
        stream->done++;
    }
}

bool is_done(CUevent event) {
    return !event->stream || !streams.contains(event->stream) || event->stream->done >= event->position;
}

void wait_for(CUevent event) {
    if (!is_done(event)) {
        work_off(event->stream, event->position);
    }
}

bool is_pinned(const void* address) {
    auto after = pinned.upper_bound((char*)address);
    return after != pinned.begin() && (--after, (char*)address < after->first + after->second);
}

void expect_context(const char* call) {
    if (!current) {
        fault("%s without a context", call);
    }
}

void expect_no_capture(const char* call) {
    expect_context(call);
    if (strict_capture) {
        fault("%s during a capture", call);
    }
}

void expect_not_captured(CUstream stream, const char* call) {
    expect_context(call);
    if (!streams.contains(stream)) {
        fault("%s on no stream", call);
    }
    if (stream->capturing) {
        fault("%s in a captured stream", call);
    }
}

char letter_of(const std::string& type) {
    static const std::map<std::string, char> letters{{"f32", 'f'}, {"f64", 'd'}, {"u64", 'l'}, {"u32", 'i'}};
    auto found = letters.find(type);
    return found == letters.end() ? '?' : found->second;
}

// A kernel's call. Integers and addresses, and numbers, are passed in two kinds of registers, each in their order, and more
// than six integers on the stack: so a function of any parameters can be called as one of these (x86-64's System V ABI).
struct Call {
    void* kernel;
    std::array<long, 16> integers{};
    std::array<double, 4> numbers{};
};

void make_call(void* argument) {
    auto& [kernel, i, d] = *(Call*)argument;
    auto function = (void (*)(long, long, long, long, long, long, double, double, double, double, long, long, long, long,
                              long, long, long, long, long, long))kernel;
    function(i[0], i[1], i[2], i[3], i[4], i[5], d[0], d[1], d[2], d[3], i[6], i[7], i[8], i[9], i[10], i[11], i[12], i[13],
             i[14], i[15]);
}

Call call_of(const CUfunc_st& function, void** arguments) {
    Call call{function.address};
    size_t integers = 0, numbers = 0;
    for (size_t i = 0; i < function.parameters.size(); i++) {
        void* argument = arguments[i];
        switch (function.parameters[i]) {
        case 'l':
            std::memcpy(&call.integers.at(integers++), argument, 8);
            break;
        case 'i':
            call.integers.at(integers++) = *(int*)argument;
            break;
        case 'f':
            std::memcpy(&call.numbers.at(numbers++), argument, 4);
            break;
        case 'd':
            std::memcpy(&call.numbers.at(numbers++), argument, 8);
            break;
        default:
            fault("%s has a parameter of an unknown type", function.name.c_str());
        }
    }
    return call;
}

} // namespace

void fault(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fputs("CUDA's stand-in: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    std::_Exit(70);
}

bool is_capturing(CUstream stream) {
    return stream->capturing;
}

void enqueue(CUstream stream, Work work) {
    Guard guard(device_lock);
    if (stream->capturing) {
        stream->captured.push_back(std::move(work));
        return;
    }
    stream->queue.push_back(std::move(work));
    stream->enqueued++;
    if (stream->queue.size() > QUEUE) {
        work_off(stream, stream->done + 1);
    }
}

#define CALL extern "C" CUresult
#define OK return CUDA_SUCCESS

// Devices and contexts.

CALL cuInit(unsigned) { OK; }
CALL cuDriverGetVersion(int* version) { *version = CUDA_VERSION; OK; }
CALL cuDeviceGetCount(int* count) { *count = DEVICES; OK; }
CALL cuDeviceGetName(char* name, int bytes, CUdevice) { std::snprintf(name, bytes, "Stand-in"); OK; }
CALL cuDevicePrimaryCtxRelease_v2(CUdevice) { OK; }
CALL cuCtxGetCurrent(CUcontext* context) { *context = current; OK; }
CALL cuCtxSetCurrent(CUcontext context) { current = context; OK; }

CALL cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal;
    return ordinal < DEVICES ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CALL cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR     ? 9
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR   ? 0
             : attribute == CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED     ? 1
             : attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT       ? 132
                                                                           : 0;
    OK;
}

CALL cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    contexts[device].device = device;
    *context = &contexts[device];
    OK;
}

CALL cuCtxSynchronize() {
    Guard guard(device_lock);
    expect_no_capture(__func__);
    for (CUstream stream : streams) {
        work_off(stream, stream->enqueued);
    }
    OK;
}

CALL cuGetErrorName(CUresult error, const char** name) {
    static thread_local char text[32];
    std::snprintf(text, sizeof text, error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "error %d", error);
    *name = text;
    OK;
}

CALL cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

// Memory.

CALL cuMemAllocAsync(CUdeviceptr* block, size_t bytes, CUstream stream) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    if (allocate(bytes, block) == CUDA_SUCCESS) {
        OK;
    }
    // What is freed in the stream's work is there for it.
    work_off(stream, stream->enqueued);
    return allocate(bytes, block);
}

CALL cuMemFreeAsync(CUdeviceptr block, CUstream stream) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    retire(block);
    enqueue(stream, [=] { release(block); });
    OK;
}

CALL cuMemHostAlloc(void** block, size_t bytes, unsigned) {
    Guard guard(device_lock);
    expect_no_capture(__func__);
    *block = std::malloc(bytes);
    std::memset(*block, POISON, bytes);
    pinned[(char*)*block] = bytes;
    OK;
}

CALL cuMemFreeHost(void* block) {
    Guard guard(device_lock);
    expect_no_capture(__func__);
    if (!pinned.erase((char*)block)) {
        fault("%s of what is not pinned", __func__);
    }
    // As the driver does: copies may be under way.
    for (CUstream stream : streams) {
        work_off(stream, stream->enqueued);
    }
    std::free(block);
    OK;
}

CALL cuMemGetInfo_v2(size_t* free, size_t* total) {
    Guard guard(device_lock);
    *total = device_bytes();
    *free = *total - allocated_bytes();
    OK;
}

CALL cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    Guard guard(device_lock);
    expect_context(__func__);
    expect_memory((void*)to, bytes, __func__);
    if (is_pinned(from)) {
        enqueue(stream, [=] { std::memcpy((void*)to, from, bytes); });
        OK;
    }
    // Other memory is read before the call returns. That is the rule, not a promise, but candle relies on it everywhere.
    expect_not_captured(stream, __func__);
    auto copy = std::make_shared<std::vector<char>>((char*)from, (char*)from + bytes);
    enqueue(stream, [=] { std::memcpy((void*)to, copy->data(), bytes); });
    OK;
}

CALL cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    Guard guard(device_lock);
    expect_context(__func__);
    expect_memory((void*)from, bytes, __func__);
    if (!is_pinned(to)) {
        expect_not_captured(stream, __func__);
        // To such memory, too, the copy may be under way when the call returns.
        std::memset(to, POISON, bytes);
    }
    enqueue(stream, [=] { std::memcpy(to, (void*)from, bytes); });
    OK;
}

CALL cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    Guard guard(device_lock);
    expect_context(__func__);
    expect_memory((void*)to, bytes, __func__);
    expect_memory((void*)from, bytes, __func__);
    enqueue(stream, [=] { std::memcpy((void*)to, (void*)from, bytes); });
    OK;
}

CALL cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    Guard guard(device_lock);
    expect_context(__func__);
    expect_memory((void*)to, bytes, __func__);
    enqueue(stream, [=] { std::memset((void*)to, value, bytes); });
    OK;
}

CALL cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice) { *pool = nullptr; OK; }
CALL cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void*) { OK; }
CALL cuMemPoolTrimTo(CUmemoryPool, size_t) { OK; }

CALL cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, void* value) {
    Guard guard(device_lock);
    *(cuuint64_t*)value = allocated_bytes();
    OK;
}

// Streams, events and graphs.

CALL cuStreamCreate(CUstream* stream, unsigned) {
    Guard guard(device_lock);
    expect_no_capture(__func__);
    *stream = *streams.insert(new CUstream_st).first;
    OK;
}

CALL cuStreamDestroy_v2(CUstream stream) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    work_off(stream, stream->enqueued);
    streams.erase(stream);
    OK;
}

CALL cuStreamSynchronize(CUstream stream) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    work_off(stream, stream->enqueued);
    OK;
}

CALL cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    enqueue(stream, [recorded = *event]() mutable { wait_for(&recorded); });
    OK;
}

CALL cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    Guard guard(device_lock);
    *status = stream->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    OK;
}

CALL cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    stream->capturing = true;
    strict_capture = mode == CU_STREAM_CAPTURE_MODE_RELAXED ? nullptr : stream;
    OK;
}

CALL cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    Guard guard(device_lock);
    stream->capturing = false;
    strict_capture = nullptr;
    *graph = new CUgraph_st{std::exchange(stream->captured, {})};
    OK;
}

CALL cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->work};
    OK;
}

CALL cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    enqueue(stream, [all = exec->work] {
        for (auto& work : all) {
            work();
        }
    });
    OK;
}

CALL cuGraphDestroy(CUgraph graph) { delete graph; OK; }
CALL cuGraphExecDestroy(CUgraphExec exec) { delete exec; OK; }
CALL cuEventCreate(CUevent* event, unsigned) { *event = new CUevent_st; OK; }
// Work that records it may be left.
CALL cuEventDestroy_v2(CUevent) { OK; }

CALL cuEventRecord(CUevent event, CUstream stream) {
    Guard guard(device_lock);
    expect_not_captured(stream, __func__);
    enqueue(stream, [=] { event->time = std::chrono::steady_clock::now(); });
    event->stream = stream;
    event->position = stream->enqueued;
    OK;
}

CALL cuEventQuery(CUevent event) {
    Guard guard(device_lock);
    expect_no_capture(__func__);
    if (is_done(event)) {
        OK;
    }
    // Who asks again and again must see an end.
    work_off(event->stream, event->stream->done + 1);
    return CUDA_ERROR_NOT_READY;
}

CALL cuEventSynchronize(CUevent event) {
    Guard guard(device_lock);
    expect_no_capture(__func__);
    wait_for(event);
    OK;
}

CALL cuEventElapsedTime_v2(float* milliseconds, CUevent from, CUevent to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    OK;
}

// Kernels.

CALL cuModuleLoadData(CUmodule* module, const void* image) {
    expect_no_capture(__func__);
    if (std::getenv("GPU_DRIVER_IS_OLD")) {
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    }
    const std::regex entry(R"(\.entry\s+(\w+)\s*\(([^)]*)\))"), parameter(R"(\.param\s+\.(\w+))");
    *module = new CUmod_st;
    const std::string text = (const char*)image;
    for (std::sregex_iterator it(text.begin(), text.end(), entry), end; it != end; ++it) {
        const std::string name = (*it)[1], parameters = (*it)[2];
        std::string& letters = (*module)->kernels[name];
        for (std::sregex_iterator each(parameters.begin(), parameters.end(), parameter); each != end; ++each) {
            letters += letter_of((*each)[1]);
        }
    }
    OK;
}

CALL cuModuleUnload(CUmodule) { OK; }

CALL cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    auto found = module->kernels.find(name);
    if (found == module->kernels.end()) {
        return CUDA_ERROR_NOT_FOUND;
    }
    Dl_info self;
    dladdr((void*)run_grid, &self);
    void* address = dlsym(dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD), name);
    if (!address) {
        fault("%s is not built for the CPU", name);
    }
    *function = new CUfunc_st{name, found->second, address};
    OK;
}

CALL cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                    unsigned block_y, unsigned block_z, unsigned, CUstream stream, void** arguments, void**) {
    Guard guard(device_lock);
    expect_context(__func__);
    const char* name = function->name.c_str();
    if (!grid_x || grid_x > 0x7fffffff || grid_y != 1 || grid_z != 1 || block_x > 1024 || block_y != 1 || block_z != 1) {
        fault("%s: a grid of %u x %u x %u, blocks of %u x %u x %u", name, grid_x, grid_y, grid_z, block_x, block_y, block_z);
    }
    enqueue(stream, [=, call = call_of(*function, arguments)]() mutable {
        run_grid(grid_x, block_x, make_call, &call);
    });
    OK;
}

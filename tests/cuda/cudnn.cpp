// SPDX-License-Identifier: MPL-2.0

// A stand-in for cuDNN's graph interface. Descriptors keep what is set in them, and a plan is computed from the operations in
// its graph. Which engines there are, and whether they take a graph, NVIDIA's own library is asked where CUDNN names it: it
// answers for the GPU whose properties are in the file GPU_PROPERTIES, without one. Else there are two, of which one does not
// suit.

#include "device.h"
#include "numbers.h"

#include "cudnn.inc"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

// cudnn.inc has the values of cuDNN's enumerations, which are int here.
using Status = int;
using Name = int;
using Kind = int;
using Type = int;

constexpr Status SUCCESS = 0;

// A handle.
struct Context {
    CUstream stream = nullptr;
};

// What the functions below call a descriptor.
struct Handle;

extern "C" {
size_t cudnnGetVersion();
const char* cudnnGetErrorString(Status status);
Status cudnnBackendCreateDescriptor(Kind kind, Handle** handle);
Status cudnnBackendDestroyDescriptor(Handle* handle);
Status cudnnBackendSetAttribute(Handle* handle, Name name, Type type, int64_t count, const void* values);
Status cudnnBackendFinalize(Handle* handle);
Status cudnnBackendGetAttribute(Handle* handle, Name name, Type type, int64_t room, int64_t* count, void* values);
}

namespace {

struct Descriptor {
    Kind kind;
    bool finalized = false;
    std::map<Name, std::vector<char>> values;
    std::map<Name, std::vector<std::shared_ptr<Descriptor>>> parts;
    // NVIDIA's library's.
    Handle* theirs = nullptr;

    template <typename T> T value(Name name) const {
        auto found = values.find(name);
        if (found == values.end() || found->second.size() != sizeof(T)) {
            fault("a descriptor of kind %d lacks attribute %d", kind, name);
        }
        T value;
        std::memcpy(&value, found->second.data(), sizeof value);
        return value;
    }

    template <typename T> std::vector<T> all(Name name) const {
        auto found = values.find(name);
        if (found == values.end()) {
            return {};
        }
        std::vector<T> all(found->second.size() / sizeof(T));
        std::memcpy(all.data(), found->second.data(), found->second.size());
        return all;
    }

    const Descriptor& part(Name name) const {
        auto found = parts.find(name);
        if (found == parts.end()) {
            fault("a descriptor of kind %d lacks a descriptor %d", kind, name);
        }
        return *found->second.at(0);
    }
};

std::shared_ptr<Descriptor>& of(Handle* handle) {
    return *(std::shared_ptr<Descriptor>*)handle;
}

size_t bytes_of(Type type) {
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
        return 1;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    default:
        return 4;
    }
}

void* their_library() {
    static void* library = [] {
        const char* path = std::getenv("CUDNN");
        void* opened = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) : nullptr;
        if (path && !opened) {
            fault("%s", dlerror());
        }
        return opened;
    }();
    return library;
}

// Their function of the name and type of one below.
#define THEIRS(function) ((decltype(&function))dlsym(their_library(), #function))

Handle* their_gpu() {
    static Handle* gpu = [] {
        const char* path = std::getenv("GPU_PROPERTIES");
        std::ifstream file(path ? path : "");
        std::string properties(std::istreambuf_iterator<char>(file), {});
        const auto version = std::to_string(THEIRS(cudnnGetVersion)());
        if (size_t place = properties.find("VERSION"); place != std::string::npos) {
            properties.replace(place, 7, version);
        }
        Handle* made;
        THEIRS(cudnnBackendCreateDescriptor)(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &made);
        THEIRS(cudnnBackendSetAttribute)
        (made, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, properties.size() + 1, properties.c_str());
        if (THEIRS(cudnnBackendFinalize)(made) != SUCCESS) {
            fault("cuDNN does not take the properties of the GPU");
        }
        return made;
    }();
    return gpu;
}

// Without a handle, what depends on the GPU takes its properties.
Status finalize_theirs(const Descriptor& descriptor) {
    static const std::map<Kind, Name> depend{
        {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP},
        {CUDNN_BACKEND_ENGINE_DESCRIPTOR, CUDNN_ATTR_ENGINE_DEVICEPROP},
        {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP},
    };
    if (auto found = depend.find(descriptor.kind); found != depend.end()) {
        auto gpu = their_gpu();
        THEIRS(cudnnBackendSetAttribute)(descriptor.theirs, found->second, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &gpu);
    }
    return THEIRS(cudnnBackendFinalize)(descriptor.theirs);
}

constexpr int64_t WORKSPACE_BYTES = 1 << 20;
constexpr int64_t SUITABLE_ENGINE = 0, INDETERMINATE_ENGINE = 1;

// The values of an attribute that this library sets.
std::vector<char> own_values(const Descriptor& descriptor, Name name) {
    auto bytes = [](auto value) { return std::vector<char>((char*)&value, (char*)(&value + 1)); };
    switch (name) {
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        return bytes(WORKSPACE_BYTES);
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
        return descriptor.value<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX) == INDETERMINATE_ENGINE
                   ? bytes(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
                   : std::vector<char>();
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE:
        return bytes(CUDNN_KNOB_TYPE_TILE_SIZE);
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE:
        return bytes((int64_t)3);
    default:
        return descriptor.all<char>(name);
    }
}

// Fills in the descriptors of an attribute that this library sets. Returns their number.
int64_t own_parts(const Descriptor& descriptor, Name name, int64_t room, Handle** parts) {
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        if (room < 2) {
            fault("room for %ld engines", (long)room);
        }
        for (int64_t index : {SUITABLE_ENGINE, INDETERMINATE_ENGINE}) {
            auto engine = std::make_shared<Descriptor>(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
            engine->values[CUDNN_ATTR_ENGINE_GLOBAL_INDEX].assign((char*)&index, (char*)(&index + 1));
            of(parts[index])->parts[CUDNN_ATTR_ENGINECFG_ENGINE] = {engine};
        }
        return 2;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        *of(parts[0]) = descriptor.part(name);
        return 1;
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
        return 1;
    default:
        fault("a descriptor %d is read from one of kind %d", name, descriptor.kind);
    }
}

// Features [height, width, channels], or kernels [count, 3, 3, channels].
struct Tensor {
    int64_t id, count, channels, height, width;
    Format format;
    // Only between the operations of a graph.
    bool is_virtual;

    explicit Tensor(const Descriptor& descriptor) {
        auto dims = descriptor.all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS);
        auto strides = descriptor.all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
        id = descriptor.value<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
        count = dims.at(0), channels = dims.at(1), height = dims.at(2), width = dims.at(3);
        if (strides != std::vector<int64_t>{channels * width * height, 1, channels * width, channels}) {
            fault("a tensor whose channels are not last");
        }
        switch (descriptor.value<int>(CUDNN_ATTR_TENSOR_DATA_TYPE)) {
        case CUDNN_DATA_FLOAT:
            format = Format::F32;
            break;
        case CUDNN_DATA_HALF:
            format = Format::F16;
            break;
        case CUDNN_DATA_BFLOAT16:
            format = Format::BF16;
            break;
        default:
            fault("a tensor of an unknown type");
        }
        is_virtual = descriptor.values.contains(CUDNN_ATTR_TENSOR_IS_VIRTUAL) &&
                     descriptor.value<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    }

    size_t values() const { return count * channels * height * width; }
};

using Values = std::vector<float>;

// The output [height, width, n_out] of a convolution of an input [height, width, n_in] with kernels [n_out, 3, 3, n_in].
Values convolution(const Values& input, const Values& kernels, const Tensor& shape, int64_t n_in) {
    auto [h, w, n_out] = std::tuple(shape.height, shape.width, shape.channels);
    Values output(h * w * n_out);
    for (int64_t y = 0; y < h; y++) {
        for (int64_t n = 0; n < n_out; n++) {
            for (int64_t tap = 0; tap < 9; tap++) {
                int64_t row = y + tap / 3 - 1, shift = tap % 3 - 1;
                if (row < 0 || row >= h) {
                    continue;
                }
                const float* kernel = &kernels[(n * 9 + tap) * n_in];
                for (int64_t x = std::max<int64_t>(0, -shift); x < std::min(w, w - shift); x++) {
                    const float* position = &input[(row * w + x + shift) * n_in];
                    float sum = 0;
                    for (int64_t k = 0; k < n_in; k++) {
                        sum += position[k] * kernel[k];
                    }
                    output[(y * w + x) * n_out + n] += sum;
                }
            }
        }
    }
    return output;
}

// The kernels [n_in, 3, 3, n_out] of the adjoint of a convolution with kernels [n_out, 3, 3, n_in].
Values adjoint(const Values& kernels, int64_t n_out, int64_t n_in) {
    Values turned(kernels.size());
    for (int64_t n = 0; n < n_out; n++) {
        for (int64_t tap = 0; tap < 9; tap++) {
            for (int64_t k = 0; k < n_in; k++) {
                turned[(k * 9 + 8 - tap) * n_out + n] = kernels[(n * 9 + tap) * n_in + k];
            }
        }
    }
    return turned;
}

// The operands of a plan: in device memory, and those between its operations.
struct Operands {
    std::map<int64_t, void*> addresses;
    std::map<int64_t, Values> between;

    Values read(const Tensor& tensor) const {
        return tensor.is_virtual ? between.at(tensor.id)
                                 : read_values(addresses.at(tensor.id), tensor.values(), tensor.format);
    }

    void write(const Tensor& tensor, Values values) {
        if (tensor.is_virtual) {
            between[tensor.id] = std::move(values);
            return;
        }
        for (size_t i = 0; i < values.size(); i++) {
            write_value(addresses.at(tensor.id), i, tensor.format, values[i]);
        }
    }

    void expect(const Tensor& tensor) const {
        if (tensor.is_virtual) {
            return;
        }
        auto found = addresses.find(tensor.id);
        if (found == addresses.end()) {
            fault("a plan without operand %ld", (long)tensor.id);
        }
        expect_memory(found->second, tensor.values() * ::width(tensor.format), "a convolution");
    }
};

// An operation's tensors, and its work on operands.
struct Operation {
    std::vector<Tensor> tensors;
    std::function<void(Operands&)> work;
};

Operation forward(const Descriptor& descriptor) {
    Tensor x(descriptor.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X));
    Tensor w(descriptor.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W));
    Tensor y(descriptor.part(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y));
    return {{x, w, y}, [=](Operands& operands) {
                operands.write(y, convolution(operands.read(x), operands.read(w), y, x.channels));
            }};
}

Operation backward_data(const Descriptor& descriptor) {
    Tensor dy(descriptor.part(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY));
    Tensor w(descriptor.part(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W));
    Tensor dx(descriptor.part(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX));
    return {{dy, w, dx}, [=](Operands& operands) {
                auto kernels = adjoint(operands.read(w), dy.channels, dx.channels);
                operands.write(dx, convolution(operands.read(dy), kernels, dx, dy.channels));
            }};
}

Operation pointwise(const Descriptor& descriptor) {
    Tensor x(descriptor.part(CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
    Tensor y(descriptor.part(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    const Descriptor& what = descriptor.part(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    switch (what.value<int>(CUDNN_ATTR_POINTWISE_MODE)) {
    case CUDNN_POINTWISE_ADD: {
        Tensor b(descriptor.part(CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
        return {{x, b, y}, [=](Operands& operands) {
                    Values values = operands.read(x), bias = operands.read(b);
                    for (size_t i = 0; i < values.size(); i++) {
                        values[i] += bias[i % bias.size()];
                    }
                    operands.write(y, std::move(values));
                }};
    }
    case CUDNN_POINTWISE_RELU_FWD:
        return {{x, y}, [=](Operands& operands) {
                    Values values = operands.read(x);
                    for (float& value : values) {
                        value = std::max(value, 0.f);
                    }
                    operands.write(y, std::move(values));
                }};
    default:
        fault("an unknown pointwise operation");
    }
}

Operation operation(const Descriptor& descriptor) {
    switch (descriptor.kind) {
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
        return forward(descriptor);
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
        return backward_data(descriptor);
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        return pointwise(descriptor);
    default:
        fault("an unknown operation");
    }
}

int64_t workspace_bytes(const Descriptor& plan) {
    int64_t count, bytes = WORKSPACE_BYTES;
    if (plan.theirs) {
        THEIRS(cudnnBackendGetAttribute)
        (plan.theirs, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &bytes);
    }
    return bytes;
}

} // namespace

extern "C" {

size_t cudnnGetVersion() {
    return their_library() ? THEIRS(cudnnGetVersion)() : 90000;
}

const char* cudnnGetErrorString(Status status) {
    return their_library() ? THEIRS(cudnnGetErrorString)(status) : "refused";
}

Status cudnnCreate(Context** handle) {
    *handle = new Context;
    return SUCCESS;
}

Status cudnnDestroy(Context* handle) {
    delete handle;
    return SUCCESS;
}

Status cudnnSetStream(Context* handle, CUstream stream) {
    handle->stream = stream;
    return SUCCESS;
}

Status cudnnBackendCreateDescriptor(Kind kind, Handle** handle) {
    auto descriptor = std::make_shared<Descriptor>(kind);
    *handle = (Handle*)new std::shared_ptr<Descriptor>(descriptor);
    return their_library() ? THEIRS(cudnnBackendCreateDescriptor)(kind, &descriptor->theirs) : SUCCESS;
}

Status cudnnBackendDestroyDescriptor(Handle* handle) {
    auto theirs = of(handle)->theirs;
    delete &of(handle);
    return theirs ? THEIRS(cudnnBackendDestroyDescriptor)(theirs) : SUCCESS;
}

Status cudnnBackendSetAttribute(Handle* handle, Name name, Type type,
                                       int64_t count, const void* values) {
    Descriptor& descriptor = *of(handle);
    descriptor.values[name].assign((char*)values, (char*)values + count * bytes_of(type));
    std::vector<Handle*> theirs;
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        auto& parts = descriptor.parts[name];
        parts.clear();
        for (auto part : descriptor.all<Handle*>(name)) {
            if (!of(part)->finalized) {
                fault("a descriptor of kind %d is set before it is finalized", of(part)->kind);
            }
            parts.push_back(of(part));
            theirs.push_back(of(part)->theirs);
        }
        values = theirs.data();
    }
    // Their library has no handle: that takes a GPU.
    bool theirs_too = descriptor.theirs && type != CUDNN_TYPE_HANDLE;
    return theirs_too ? THEIRS(cudnnBackendSetAttribute)(descriptor.theirs, name, type, count, values)
                      : SUCCESS;
}

Status cudnnBackendFinalize(Handle* handle) {
    Descriptor& descriptor = *of(handle);
    auto status = descriptor.theirs ? finalize_theirs(descriptor) : SUCCESS;
    descriptor.finalized = status == SUCCESS;
    return status;
}

Status cudnnBackendGetAttribute(Handle* handle, Name name, Type type,
                                       int64_t room, int64_t* count, void* values) {
    Descriptor& descriptor = *of(handle);
    bool parts = type == CUDNN_TYPE_BACKEND_DESCRIPTOR;
    if (descriptor.theirs) {
        std::vector<Handle*> theirs;
        for (int64_t i = 0; parts && i < room; i++) {
            theirs.push_back(of(((Handle**)values)[i])->theirs);
        }
        return THEIRS(cudnnBackendGetAttribute)(descriptor.theirs, name, type, room, count, parts ? theirs.data() : values);
    }
    if (parts) {
        *count = own_parts(descriptor, name, room, (Handle**)values);
        return SUCCESS;
    }
    auto own = own_values(descriptor, name);
    *count = own.size() / bytes_of(type);
    std::copy(own.begin(), own.end(), (char*)values);
    return SUCCESS;
}

Status cudnnBackendExecute(Context* handle, Handle* plan_handle,
                                  Handle* pack_handle) {
    std::lock_guard guard(device_lock);
    const Descriptor &plan = *of(plan_handle), &pack = *of(pack_handle);
    if (plan.value<Context*>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) != handle) {
        fault("a plan of another handle");
    }
    const Descriptor& engine = plan.part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).part(CUDNN_ATTR_ENGINECFG_ENGINE);
    auto ids = pack.all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    auto addresses = pack.all<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    auto workspace = pack.value<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    int64_t bytes = workspace_bytes(plan);
    expect_memory(workspace, bytes, "the workspace of a convolution");
    Operands operands;
    for (size_t i = 0; i < ids.size(); i++) {
        operands.addresses[ids[i]] = addresses.at(i);
    }
    std::vector<Operation> operations;
    for (auto& part : engine.part(CUDNN_ATTR_ENGINE_OPERATION_GRAPH).parts.at(CUDNN_ATTR_OPERATIONGRAPH_OPS)) {
        operations.push_back(operation(*part));
        for (const Tensor& tensor : operations.back().tensors) {
            operands.expect(tensor);
        }
    }
    enqueue(handle->stream, [=]() mutable {
        std::memset(workspace, POISON, bytes);
        for (auto& operation : operations) {
            operation.work(operands);
        }
    });
    return SUCCESS;
}

}

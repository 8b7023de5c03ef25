// SPDX-License-Identifier: MPL-2.0

// A stand-in for cuBLAS' matrix products, and for cuRAND, whose generators candle makes and the crate does not use.

#include "device.h"
#include "numbers.h"

#include "cublas.inc"

#include <cstring>
#include <utility>

// cublas.inc has the values of cuBLAS' enumerations, which are int here.
using Status = int;

constexpr Status SUCCESS = 0;

// A handle.
struct Context {
    CUstream stream = nullptr;
    int mode = CUBLAS_POINTER_MODE_HOST;
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
};

namespace {

// A matrix in column-major order, [rows, columns] after its transposition if there is one.
struct Matrix {
    std::vector<float> values;
    int stride;
    bool transposed;

    float at(int row, int column) const {
        return transposed ? values[column + (size_t)row * stride] : values[row + (size_t)column * stride];
    }
};

struct Operand {
    const char* start;
    Format format;
    int stride;
    // From one matrix of a batch to the next.
    long long step;
    int rows, columns;
    bool transposed;

    // The values from the first to the last of a matrix.
    size_t extent() const {
        auto [height, length] = transposed ? std::pair(columns, rows) : std::pair(rows, columns);
        return (size_t)stride * (length - 1) + height;
    }

    void expect(int count) const {
        expect_memory(start, (step * (count - 1) + extent()) * width(format), "a matrix product");
    }

    char* matrix(int index) const {
        return (char*)start + index * step * width(format);
    }

    Matrix read(int index) const {
        return {read_values(matrix(index), extent(), format), stride, transposed};
    }
};

Format format_of(int type) {
    switch (type) {
    case CUDA_R_32F:
        return Format::F32;
    case CUDA_R_16F:
        return Format::F16;
    case CUDA_R_16BF:
        return Format::BF16;
    default:
        fault("a matrix product of type %d", type);
    }
}

void multiply(float alpha, const Matrix& a, const Matrix& b, float beta, const Operand& c, int index, int depth) {
    void* product = c.matrix(index);
    auto before = beta == 0 ? std::vector<float>(c.extent()) : read_values(product, c.extent(), c.format);
    std::vector<float> sums(c.rows);
    for (int column = 0; column < c.columns; column++) {
        sums.assign(c.rows, 0);
        for (int k = 0; k < depth; k++) {
            float factor = b.at(k, column);
            for (int row = 0; row < c.rows; row++) {
                sums[row] += a.at(row, k) * factor;
            }
        }
        for (int row = 0; row < c.rows; row++) {
            size_t i = row + (size_t)column * c.stride;
            write_value(product, i, c.format, alpha * sums[row] + beta * before[i]);
        }
    }
}

} // namespace

extern "C" {

Status cublasCreate_v2(Context** handle) {
    *handle = new Context;
    return SUCCESS;
}

Status cublasDestroy_v2(Context* handle) {
    delete handle;
    return SUCCESS;
}

Status cublasSetStream_v2(Context* handle, CUstream stream) {
    handle->stream = stream;
    return SUCCESS;
}

Status cublasSetPointerMode_v2(Context* handle, int mode) {
    handle->mode = mode;
    return SUCCESS;
}

Status cublasSetWorkspace_v2(Context* handle, void* workspace, size_t bytes) {
    std::lock_guard guard(device_lock);
    expect_memory(workspace, bytes, "the workspace of matrix products");
    handle->workspace = workspace;
    handle->workspace_bytes = bytes;
    return SUCCESS;
}

Status cublasGemmStridedBatchedEx(Context* handle, int a_operation,
                                          int b_operation, int m, int n, int k, const void* alpha,
                                          const void* a_start, int a_type, int a_stride, long long a_step,
                                          const void* b_start, int b_type, int b_stride, long long b_step,
                                          const void* beta, void* c_start, int c_type, int c_stride,
                                          long long c_step, int count, int compute, int) {
    std::lock_guard guard(device_lock);
    // Products in tf32 are computed in f32.
    if (compute != CUBLAS_COMPUTE_32F && !(compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a_type == CUDA_R_32F)) {
        fault("a matrix product computed in %d", compute);
    }
    // The library's own workspace may not be allocated during a capture.
    if (is_capturing(handle->stream) && !handle->workspace) {
        fault("a matrix product without a workspace in a captured stream");
    }
    Operand a{(char*)a_start, format_of(a_type), a_stride, a_step, m, k, a_operation == CUBLAS_OP_T};
    Operand b{(char*)b_start, format_of(b_type), b_stride, b_step, k, n, b_operation == CUBLAS_OP_T};
    Operand c{(char*)c_start, format_of(c_type), c_stride, c_step, m, n, false};
    for (const Operand& operand : {a, b, c}) {
        operand.expect(count);
    }
    // Factors on the host are read before the call returns, those on the device when it is computed.
    bool on_host = handle->mode == CUBLAS_POINTER_MODE_HOST;
    float host_alpha = on_host ? *(float*)alpha : 0, host_beta = on_host ? *(float*)beta : 0;
    if (!on_host) {
        expect_memory(alpha, sizeof(float), "α");
        expect_memory(beta, sizeof(float), "β");
    }
    auto work = [=, workspace = handle->workspace, bytes = handle->workspace_bytes] {
        if (workspace) {
            std::memset(workspace, POISON, bytes);
        }
        for (int i = 0; i < count; i++) {
            float factor = on_host ? host_alpha : *(float*)alpha, kept = on_host ? host_beta : *(float*)beta;
            multiply(factor, a.read(i), b.read(i), kept, c, i, k);
        }
    };
    enqueue(handle->stream, work);
    return SUCCESS;
}

Status cublasGemmEx(Context* handle, int a_operation, int b_operation, int m, int n,
                            int k, const void* alpha, const void* a, int a_type, int a_stride, const void* b,
                            int b_type, int b_stride, const void* beta, void* c, int c_type, int c_stride,
                            int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, a_operation, b_operation, m, n, k, alpha, a, a_type, a_stride, 0, b, b_type,
                                      b_stride, 0, beta, c, c_type, c_stride, 0, 1, compute, algorithm);
}

int curandCreateGenerator(void**, int) { return 0; }
int curandDestroyGenerator(void*) { return 0; }
int curandSetStream(void*, CUstream) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }

}

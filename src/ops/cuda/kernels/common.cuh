// SPDX-License-Identifier: MPL-2.0

// What the kernels share: the types of features, grid-stride loops and reductions.

#pragma once

// Threads per block.
constexpr int THREADS = 256;

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

struct Half {
    unsigned short bits;
};

struct Bfloat {
    unsigned short bits;
};

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ inline float to_float(float value) {
    return value;
}

__device__ inline float to_float(Half value) {
    return half_to_float(value.bits);
}

__device__ inline float to_float(Bfloat value) {
    return __uint_as_float((unsigned)value.bits << 16);
}

// Rounds to nearest, ties to even.
template <typename T> __device__ T round_to(float value);

template <> __device__ inline float round_to<float>(float value) {
    return value;
}

template <> __device__ inline Half round_to<Half>(float value) {
    return {float_to_half(value)};
}

template <> __device__ inline Bfloat round_to<Bfloat>(float value) {
    unsigned bits = __float_as_uint(value);
    unsigned rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    // The carry of the rounding would turn some NaNs into infinity or a negative number.
    return {(unsigned short)(value == value ? rounded : (bits >> 16 | 0x40))};
}

// N neighbouring values that are loaded and stored by one instruction.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack {
    T values[N];
};

template <int N, typename T> __device__ Pack<T, N> load(const T* values, long long pack) {
    return reinterpret_cast<const Pack<T, N>*>(values)[pack];
}

template <int N, typename T> __device__ void store(T* values, long long pack, const Pack<T, N>& value) {
    reinterpret_cast<Pack<T, N>*>(values)[pack] = value;
}

// Calls f(i) for every i below count, as a grid-stride loop. Where f divides i it takes 32 bits of it, which is
// faster: no image has so many values, and the host refuses features of so many packs.
template <typename F> __device__ void grid_stride(long long count, F f) {
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        f(i);
    }
}

// The sum over the block; only thread 0 may use it.
__device__ inline double block_sum(double value) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = value;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
        }
        __syncthreads();
    }
    return sums[0];
}

// Writes the sum over the block to the block's column in row `row` of partials.
__device__ inline void write_partial(double value, double* partials, unsigned row) {
    double sum = block_sum(value);
    if (threadIdx.x == 0) {
        partials[row * gridDim.x + blockIdx.x] = sum;
    }
}

// sums[row] = factor * the sum of row `row` of partials [rows, parts]. One block per row.
KERNEL sum_partials(const double* partials, int parts, double factor, double* sums) {
    const double* row = partials + (long long)blockIdx.x * parts;
    double sum = 0;
    for (int part = threadIdx.x; part < parts; part += THREADS) {
        sum += row[part];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = factor * sum;
    }
}

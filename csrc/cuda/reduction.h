// Sums and maxima over the lanes of a warp and the threads of a block, in an order that depends on nothing but the number
// of threads: the same bits on every run.
#pragma once

#include "device.h"

namespace prosma::cuda {

struct Add {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Larger {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a < b ? b : a;
    }
};

// Every lane gets the result over the groups of LANES neighbours.
template <int LANES = WARP, class T, class Combine = Add>
__device__ __forceinline__ T over_lanes(T value, Combine combine = {}) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
    return over_lanes(value);
}
template <class T>
__device__ __forceinline__ T largest_of_warp(T value) {
    return over_lanes(value, Larger());
}

template <class T, int WARPS>
struct OfWarps {
    T values[WARPS];
};

// Every thread gets the result over a block of WARPS whole warps, in one dimension. All threads must come, and shared
// memory of the type OfWarps<T, WARPS> is used; two barriers.
template <int WARPS, class T, class Combine = Add>
__device__ __forceinline__ T over_block(T value, Combine combine = {}) {
    auto& of_warps = shared_object<OfWarps<T, WARPS>>();
    value = over_lanes(value, combine);
    __syncthreads();
    if (threadIdx.x % WARP == 0) of_warps.values[threadIdx.x / WARP] = value;
    __syncthreads();
    value = of_warps.values[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) value = combine(value, of_warps.values[warp]);
    return value;
}

template <int WARPS, class T>
__device__ __forceinline__ T sum_of_block(T value) {
    return over_block<WARPS>(value);
}
template <int WARPS, class T>
__device__ __forceinline__ T largest_of_block(T value) {
    return over_block<WARPS>(value, Larger());
}

}  // namespace prosma::cuda

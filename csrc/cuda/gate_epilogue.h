// What proximal_gate does with a sum of taps: threshold, activation, skip and gate, forward and backward, and the sums over
// a plane that the backward leaves behind.
//
// Comparisons are written so that a NaN goes through: it is not "at most" anything.
#pragma once

#include "device.h"
#include "gate_plan.h"

namespace prosma::cuda {

template <class C>
__device__ __forceinline__ C limit_of(C threshold) {
    return threshold < 0 ? C(0) : threshold;
}

template <class C>
__device__ __forceinline__ C sign_of(C x) {
    return x > 0 ? C(1) : x < 0 ? C(-1) : x;
}

// sign(z) * max(|z| - t, 0)
template <class C>
__device__ __forceinline__ C shrink(C z, C t) {
    return fabs(z) <= t ? C(0) : z - t * sign_of(z);
}

template <class C>
__device__ __forceinline__ C activate(C u, Activation activation) {
    if (activation == Activation::tanh) return tanh(u);
    return activation == Activation::relu && u <= 0 ? C(0) : u;
}

// act'(u), of which `gate` is act(u); 0 at the kink of relu.
template <class C>
__device__ __forceinline__ C slope_of(C u, C gate, Activation activation) {
    if (activation == Activation::tanh) return 1 - gate * gate;
    return activation == Activation::relu && u <= 0 ? C(0) : C(1);
}

template <class C>
struct Parameters {
    const C* weight;        // (dilations, C, kernel)
    const C* threshold;     // (C)
    const C* bias;          // (C), or null for 0
    const C* channel_gate;  // (B, C), or null for 1
};

template <class C>
struct OfPlane {
    C threshold = 0, limit = 0, bias = 0, factor = 1;

    __device__ __forceinline__ OfPlane(const Plan& p, const Parameters<C>& from, bool valid, int batch, int channel) {
        if (!valid) return;
        threshold = __ldg(from.threshold + channel);
        limit = limit_of(threshold);
        if (from.bias) bias = __ldg(from.bias + channel);
        if (from.channel_gate) factor = __ldg(from.channel_gate + int64_t(batch) * p.channels + channel);
    }
};

// Sums over the threads that work on one plane, in a fixed order: of its lanes, of its warps. `write(k, tc, sum)` is called
// once for each of the N values and each plane tc of the block. All threads must come.
constexpr int SUMS_AT_ONCE = 8;

template <class C>
struct OfEveryThread {
    C values[SUMS_AT_ONCE][256];
};

template <bool LAST, int N, class C, class Write>
__device__ __forceinline__ void sum_of_planes(const Plan& p, C (&values)[N], const Write& write) {
    auto& shared = shared_object<OfEveryThread<C>>();
    const int group = 1 << (p.log_x + p.log_y), channels = 1 << p.log_c, thread = int(threadIdx.x);
    // Contiguous: a plane's threads are neighbours, and its warps' first lanes are what is left to add.
    const int begin = LAST ? 1 : group, step = LAST ? channels : WARP, count = LAST ? group : group < WARP ? 1 : group / WARP;
    if constexpr (!LAST)
#pragma unroll
        for (int k = 0; k < N; ++k)
            for (int distance = min(group, WARP) / 2; distance > 0; distance /= 2)
                values[k] += __shfl_xor_sync(ALL_LANES, values[k], distance);
#pragma unroll
    for (int first = 0; first < N; first += SUMS_AT_ONCE) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < SUMS_AT_ONCE && first + k < N; ++k) shared.values[k][thread] = values[first + k];
        __syncthreads();
        const int now = min(SUMS_AT_ONCE, N - first);
        for (int item = thread; item < now * channels; item += int(blockDim.x)) {
            const int k = item % now, tc = item / now;
            C sum = 0;
            for (int i = 0; i < count; ++i) sum += shared.values[k][tc * begin + i * step];
            write(first + k, tc, sum);
        }
    }
}

}  // namespace prosma::cuda

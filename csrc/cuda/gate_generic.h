// The kernels of proximal_gate of any odd size and any dilations, in any type: each thread gathers what its numbers need
// through the L1 cache, tap by tap, with no stencil made of them.
#pragma once

#include "gate_plan.h"

namespace prosma::cuda {

constexpr int GENERIC_X = 4;
constexpr int GENERIC_LOG_THREADS = 8;
constexpr int GENERIC_TAPS = 8;  // whose gradients are summed in one pass

template <bool LAST>
using GenericPlace = Place<LAST, GENERIC_X, 1>;

// Place `i` of a kernel, as it lies: how many kernel steps it is from the centre.
struct Tap {
    int step, row, column;
    __device__ __forceinline__ Tap(const Plan& p, int i) {
        const int half = p.kernel_size / 2;
        column = i % p.kernel_size - half;
        row = i / p.kernel_size % p.kernel_size - half;
        step = i / (p.kernel_size * p.kernel_size) - p.kernel_depth / 2;
    }
};

// X neighbours of the plane from (step, row, column) on, with zeros outside of it. Sums are 64 bits wide as a dilation
// may be 2^20 and more.
template <bool LAST, class In>
__device__ __forceinline__ void gather(const Plan& p, const GenericPlace<LAST>& place, const In* from, int64_t step,
                                       int64_t row, int64_t column, Computed<In> (&to)[GENERIC_X]) {
    const bool inside = place.valid && step >= 0 && step < p.march && row >= 0 && row < p.rows;
    const In* address = from + (inside ? place.offset(p, int(step), int(row), 0) : 0);
#pragma unroll
    for (int i = 0; i < GENERIC_X; ++i) {
        const int64_t x = column + i;
        const bool there = inside && x >= 0 && x < p.width;
        to[i] = there ? decoded(load_one(address + x * place.stride), p.brain) : Computed<In>(0);
    }
}

// Calls sink(step, row, sums) for the thread's row in every step of the chunk. `mirrored` is the transposed convolution.
template <bool LAST, class In, class C, class Sink>
__device__ __forceinline__ void convolve_by_gathering(const Plan& p, const GenericPlace<LAST>& place, const In* from,
                                                      const C* weight, bool mirrored, const Sink& sink) {
    const int y = place.y(), volume = p.kernel_volume();
    for (int step = place.first; step < min(place.first + p.chunk, p.march); ++step) {
        C sums[GENERIC_X] = {};
        for (int m = 0; m < p.dilation_count; ++m) {
            const C* kernel = weight + (int64_t(m) * p.channels + (place.valid ? place.channel : 0)) * volume;
            const int64_t d = mirrored ? -p.dilations[m] : p.dilations[m];
            for (int i = 0; i < volume; ++i) {
                const Tap tap(p, i);
                C values[GENERIC_X];
                gather<LAST>(p, place, from, step + tap.step * d, y + tap.row * d, place.x() + tap.column * d, values);
                const C factor = __ldg(kernel + i);
#pragma unroll
                for (int j = 0; j < GENERIC_X; ++j) sums[j] += factor * values[j];
            }
        }
        sink(step, y, sums);
    }
}

// Adds dz(output) * field(output + tap) to `sums` for GENERIC_TAPS taps of all kernels from `first` on.
template <bool LAST, class T>
__device__ __forceinline__ void correlate_by_gathering(const Plan& p, const GenericPlace<LAST>& place, const T* field,
                                                       const Computed<T>* dz, int first,
                                                       Computed<T> (&sums)[GENERIC_TAPS]) {
    const int y = place.y(), volume = p.kernel_volume(), count = p.dilation_count * volume;
    for (int step = place.first; step < min(place.first + p.chunk, p.march); ++step) {
        Computed<T> flows[GENERIC_X], values[GENERIC_X];
        gather<LAST>(p, place, dz, step, y, place.x(), flows);
#pragma unroll
        for (int k = 0; k < GENERIC_TAPS; ++k) {
            if (first + k >= count) break;
            const Tap tap(p, (first + k) % volume);
            const int64_t d = p.dilations[(first + k) / volume];
            gather<LAST>(p, place, field, step + tap.step * d, y + tap.row * d, place.x() + tap.column * d, values);
            // A number beyond the plane's edge is no output: what stands in its flow is 0.
#pragma unroll
            for (int j = 0; j < GENERIC_X; ++j) sums[k] += flows[j] * values[j];
        }
    }
}

}  // namespace prosma::cuda

// Which kernels a call of proximal_gate takes, and how its work is divided among their threads.
#pragma once

#include "gate_epilogue.h"
#include "gate_generic.h"
#include "gate_stencil.h"

namespace prosma::cuda {

// DIMENSIONS is 2 or 3 for the stencil, and 0 for gathering.
template <int DIMENSIONS, bool IS_LAST>
struct Way {
    static constexpr int DIM = DIMENSIONS;
    static constexpr bool LAST = IS_LAST;
};

template <class C>
Parameters<C> parameters_of(const GateArguments& a) {
    return {static_cast<const C*>(a.weight), static_cast<const C*>(a.threshold), static_cast<const C*>(a.bias),
            static_cast<const C*>(a.channel_gate)};
}

inline bool is_stencil(const GateArguments& a) {
    if (a.kernel_size != 3 || a.type == DataType::float64) return false;
    for (int m = 0; m < a.dilation_count; ++m)
        if (a.dilations[m] > REACH) return false;
    return true;
}

template <class T, int DIM, bool LAST, class Body>
void with_stencil(const GateArguments& a, bool whole, const Body& body) {
    using S = Threads<T, DIM, LAST>;
    Plan p = divide(a, LAST ? Layout::channels_last : Layout::contiguous, DIM == 2, S::X, S::Y, S::LOG_THREADS,
                    S::LOG_MOST_ACROSS, S::CHUNK);
    p.wide = whole && (LAST ? p.channels : p.width) % WIDEST<T> == 0;
    body(Way<DIM, LAST>{}, p, Tile<S, LAST>(p, nullptr, Taps<DIM>::ROWS, S::Y).bytes());
}

template <bool LAST, class Body>
void with_gathering(const GateArguments& a, const Body& body) {
    const Plan p = divide(a, LAST ? Layout::channels_last : Layout::contiguous, false, GENERIC_X, 1, GENERIC_LOG_THREADS,
                          5, 8);
    body(Way<0, LAST>{}, p, size_t(0));
}

// body(Way, plan, bytes of shared memory). `whole`: all tensors begin at a multiple of 16 bytes.
template <class T, class Body>
void for_gate(const GateArguments& a, Layout layout, bool whole, const Body& body) {
    const bool last = layout == Layout::channels_last, volume = a.kernel_depth == 3;
    if constexpr (!std::is_same_v<T, double>) {
        if (is_stencil(a)) {
            if (last)
                return volume ? with_stencil<T, 3, true>(a, whole, body) : with_stencil<T, 2, true>(a, whole, body);
            return volume ? with_stencil<T, 3, false>(a, whole, body) : with_stencil<T, 2, false>(a, whole, body);
        }
    }
    return last ? with_gathering<true>(a, body) : with_gathering<false>(a, body);
}

}  // namespace prosma::cuda

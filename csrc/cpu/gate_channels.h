// What is done to the sums of the stencil, and with which weights and factors, as an item's channels have them.
#pragma once

#include "math.h"
#include "tiles.h"

namespace prosma::PROSMA_LEVEL {

// From here on results are written past the caches.
constexpr int64_t STREAMING_BYTES = 8 << 20;

template <class S>
bool streams(const GateArguments& a) {
    int64_t bytes = sizeof(S);
    for (int axis = 0; axis < AXES; ++axis) bytes *= a.sizes[axis];
    return bytes >= STREAMING_BYTES;
}

// The weights of an item's channels as whole vectors, [dilation][kz][ky][kx], the centres of all kernels added up in
// the first one's. `flipped` turns every kernel around: the transposed convolution.
template <class S>
void take_weights(const Plan<S>& plan, const Item& item, bool flipped, Vector<Compute<S>>* weights) {
    using T = Compute<S>;
    const int per_kernel = plan.taps / plan.dilations;
    const T* weight = static_cast<const T*>(plan.a.weight);
    const int64_t live = plan.layout.over_channels ? smaller(LANES<T>, plan.a.sizes[CHANNEL] - item.channel) : 1;
    for (int m = 0; m < plan.dilations; ++m)
        for (int tap = 0; tap < per_kernel; ++tap) {
            const int source = flipped ? per_kernel - 1 - tap : tap;
            const T* first = weight + (m * plan.a.sizes[CHANNEL] + item.channel) * per_kernel + source;
            Vector<T> lanes = broadcast<T>(*first);
            for (int lane = 1; lane < live; ++lane) lanes[lane] = first[lane * per_kernel];
            weights[m * per_kernel + tap] = lanes;
            if (m > 0 && tap == per_kernel / 2) weights[tap] += lanes;
        }
}

// What a row's arithmetic needs of its channels.
template <class S>
struct ChannelFactors {
    using T = Compute<S>;
    Vector<T> bias, bound, gate, threshold_counts;

    ChannelFactors(const Plan<S>& plan, const Item& item) {
        const GateArguments& a = plan.a;
        bias = plan.layout.channel_values(a.bias, item.channel, T(0));
        const Vector<T> threshold = plan.layout.channel_values(a.threshold, item.channel, T(0));
        bound = bound_of<T>(threshold);
        threshold_counts = threshold < 0 ? zero<T>() : broadcast<T>(1);
        const T* gates = static_cast<const T*>(a.channel_gate);
        gate = plan.layout.channel_values(gates ? gates + item.batch * a.sizes[CHANNEL] : nullptr, item.channel, T(1));
    }
};

template <class T, Activation ACTIVATION>
PROSMA_INLINE Vector<T> activate(Vector<T> u) {
    if constexpr (ACTIVATION == Activation::tanh) return hyperbolic_tangent(u);
    if constexpr (ACTIVATION == Activation::relu) return u <= 0 ? zero<T>() : u;
    return u;
}

// act'(u), given act(u).
template <class T, Activation ACTIVATION>
PROSMA_INLINE Vector<T> slope(Vector<T> u, Vector<T> activated) {
    if constexpr (ACTIVATION == Activation::tanh) return 1 - activated * activated;
    if constexpr (ACTIVATION == Activation::relu) return u <= 0 ? zero<T>() : broadcast<T>(1);
    return broadcast<T>(1);
}

}  // namespace prosma::PROSMA_LEVEL

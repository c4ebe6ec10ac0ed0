// proximal_gate on the GPU, forward.
//
//     z = sum_m depthwise_conv(field, weight[m], dilation d_m) + bias
//     y = skip * activation(soft threshold of z) * channel_gate
//
// One launch. Floors for n numbers of s bytes: 3 n s bytes, and 25 (3-D: 79) multiply-adds a number for dilations 1, 2, 3.
// Kernels of size 3 with dilations up to 3 march through a tile as one stencil (gate_stencil.h); others, and float64,
// gather (gate_generic.h). Either hands X sums at a time to the same lines, while they are in registers.
#include "gate_epilogue.h"
#include "gate_generic.h"
#include "gate_stencil.h"
#include "gate_start.h"
#include "kernels.h"

namespace prosma::cuda {

namespace {

template <class T>
struct Forward {
    const T* field;
    const T* skip;
    T* out;
    Parameters<Computed<T>> parameters;
};

// z of X numbers of a row -> y of them.
template <bool LAST, class T, int X, class P>
__device__ __forceinline__ void finish_row(const Plan& p, const P& place, const Forward<T>& a,
                                           const OfPlane<Computed<T>>& own, int step, int row, Computed<T> (&z)[X]) {
    const int count = place.valid && row < p.rows ? p.width - place.x() : 0;
    const int64_t at = place.offset(p, step, row, place.x());
    Computed<T> skip[X];
    if (a.skip) fetch<LAST, X>(a.skip + at, place.stride, count, p.wide, p.brain, skip);
#pragma unroll
    for (int j = 0; j < X; ++j) {
        z[j] = activate(shrink(z[j] + own.bias, own.limit), p.activation) * own.factor;
        if (a.skip) z[j] *= skip[j];
    }
    put<LAST, X>(a.out + at, place.stride, count, p.wide, p.brain, z);
}

template <class T, int DIM, bool LAST>
__global__ void __launch_bounds__(1 << Threads<T, DIM, LAST>::LOG_THREADS)
    gate_forward_stencil(const __grid_constant__ Plan p, Forward<T> a) {
    const PlaceOf<T, DIM, LAST> place(p, blockIdx.x);
    const OfPlane<float> own(p, a.parameters, place.valid, place.batch, place.channel);
    convolve_by_stencil<T, DIM, LAST>(p, place, a.field, a.parameters.weight, false, [&](int step, int row, auto& z) {
        finish_row<LAST>(p, place, a, own, step, row, z);
    });
}

template <class T, bool LAST>
__global__ void __launch_bounds__(1 << GENERIC_LOG_THREADS, 1)
    gate_forward_generic(const __grid_constant__ Plan p, Forward<T> a) {
    const GenericPlace<LAST> place(p, blockIdx.x);
    const OfPlane<Computed<T>> own(p, a.parameters, place.valid, place.batch, place.channel);
    convolve_by_gathering<LAST>(p, place, a.field, a.parameters.weight, false, [&](int step, int row, auto& z) {
        finish_row<LAST>(p, place, a, own, step, row, z);
    });
}

}  // namespace

void proximal_gate_forward(const GateArguments& a) {
    if (numbers_of(a.sizes) == 0) return;
    const OnDevice device(a.queue);
    const Layout layout = layout_of(a.sizes, a.field, a.skip, a.out);
    for_storage(a.type, [&](auto zero) {
        using T = decltype(zero);
        Forward<T> forward;
        forward.field = static_cast<const T*>(a.field.data);
        forward.skip = static_cast<const T*>(a.skip.data);
        forward.out = static_cast<T*>(a.out.data);
        forward.parameters = parameters_of<Computed<T>>(a);
        const bool whole = aligned(16, a.field.data, a.skip.data, a.out.data);
        for_gate<T>(a, layout, whole, [&](auto way, const Plan& p, size_t shared_bytes) {
            using Way = decltype(way);
            void (*kernel)(Plan, Forward<T>);
            if constexpr (Way::DIM == 0)
                kernel = gate_forward_generic<T, Way::LAST>;
            else
                kernel = gate_forward_stencil<T, Way::DIM, Way::LAST>;
            launch("proximal_gate_forward", kernel,
                   {unsigned(p.blocks()), unsigned(p.threads()), shared_bytes, device.stream()}, p, forward);
        });
    });
}

}  // namespace prosma::cuda

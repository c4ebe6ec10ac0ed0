// proximal_gate on the GPU, backward: two launches.
//
//     du = dy x s act'(u);  dz = du where |z| > t;  dx = dy act(u) s
//     dthreshold = -sum sign(z) dz (0 where threshold < 0);  dbias = sum dz;  ds = sum dy x act(u), of each batch item
//     dq = the transposed stencil of dz;  dweight = the correlation of dz with q
//
// Floors for n numbers of s bytes: 5 n s bytes, or 7 with dz kept between the launches, and 6 t n multiply-adds' flops.
// The first launch makes z again from q, and dx, dz (float32 for half types too: rounding it would put an error into
// every tap) and each block's three sums. In the second every tile has two blocks, neighbours so that they share dz in
// the L2: one makes dq, one the weight gradient, with the taps' sums in registers. Blocks leave their sums in the
// workspace, and the last block of a channel to come adds that channel's up in their order: which block it is changes
// nothing. The counters by which it knows are set to zero by the first launch.
#include "gate_epilogue.h"
#include "gate_generic.h"
#include "gate_start.h"
#include "gate_stencil.h"
#include "kernels.h"

namespace prosma::cuda {

namespace {

constexpr int SUMS = 3;  // of a plane: threshold, bias, gate

template <class T>
struct Backward {
    using C = Computed<T>;
    const T* field;
    const T* skip;
    const T* grad;
    T* field_grad;
    T* skip_grad;
    Parameters<C> parameters;
    C* weight_grad;
    C* threshold_grad;
    C* bias_grad;
    C* gate_grad;
    // The workspace.
    C* dz;
    C* weight_sums;  // (B, C, pieces, taps)
    C* plane_sums;   // (B, C, pieces, SUMS)
    int* counters;   // (C)
    int taps;        // that have sums in the workspace

    __host__ __device__ bool needs_dz() const { return field_grad || weight_grad; }
};

// How the workspace is cut up; returns its size in bytes.
template <class T>
size_t place_workspace(Backward<T>& b, const Plan& p, bool stencil, void* memory) {
    using C = Computed<T>;
    size_t used = 0;
    const auto take = [&](size_t bytes) {
        char* start = static_cast<char*>(memory) + used;
        used += (bytes + 15) / 16 * 16;
        return memory ? static_cast<void*>(start) : nullptr;
    };
    const size_t planes = size_t(p.batch) * size_t(p.channels), pieces = planes * size_t(p.pieces());
    b.taps = stencil ? (p.kernel_depth == 3 ? Taps<3>::COUNT : Taps<2>::COUNT) : p.dilation_count * p.kernel_volume();
    b.dz = static_cast<C*>(take(planes * size_t(p.volume()) * sizeof(C)));
    b.weight_sums = static_cast<C*>(take(pieces * size_t(b.taps) * sizeof(C)));
    b.plane_sums = static_cast<C*>(take(pieces * SUMS * sizeof(C)));
    b.counters = static_cast<int*>(take(size_t(p.channels) * sizeof(int)));
    return used;
}

__device__ __forceinline__ int64_t piece_of(const Plan& p, int batch, int channel, int piece) {
    return (int64_t(batch) * p.channels + channel) * p.pieces() + piece;
}

// The plane of the block's thread group tc, or false: what `Place` says of the threads in it.
template <bool LAST, class P>
__device__ __forceinline__ bool plane_of(const Plan& p, const P& place, int tc, int& batch, int& channel) {
    if constexpr (LAST) {
        batch = place.batch;
        channel = place.channel0 + tc;
        return channel < p.channels;
    } else {
        const int plane = place.batch * p.channels + place.channel - place.tc + tc;
        batch = plane / p.channels;
        channel = plane % p.channels;
        return batch < p.batch;
    }
}

// A thread's sums of a plane. It has hundreds of terms for each: what an addition rounds off goes into the next one.
template <class C>
struct PlaneSums {
    C values[SUMS] = {}, rounded_off[SUMS] = {};

    __device__ __forceinline__ void add(const C (&terms)[SUMS]) {
#pragma unroll
        for (int k = 0; k < SUMS; ++k) {
            const C term = terms[k] - rounded_off[k], sum = values[k] + term;
            const C off = (sum - values[k]) - term;
            rounded_off[k] = fabs(off) < C(INFINITY) ? off : C(0);  // an infinite sum stays one
            values[k] = sum;
        }
    }
};

// z of X numbers of a row -> dz and dx of them, and their part of the plane's sums.
template <bool LAST, class T, int X, class P>
__device__ __forceinline__ void turn_back(const Plan& p, const P& place, const Backward<T>& b,
                                          const OfPlane<Computed<T>>& own, int step, int row, Computed<T> (&z)[X],
                                          PlaneSums<Computed<T>>& sums) {
    using C = Computed<T>;
    const int count = place.valid && row < p.rows ? p.width - place.x() : 0;
    const int64_t at = place.offset(p, step, row, place.x());
    C skip[X], grad[X], dz[X], of_row[SUMS] = {};
    fetch<LAST, X>(b.grad + at, place.stride, count, p.wide, p.brain, grad);
    if (b.skip) fetch<LAST, X>(b.skip + at, place.stride, count, p.wide, p.brain, skip);
#pragma unroll
    for (int j = 0; j < X; ++j) {
        const C sum = z[j] + own.bias, u = shrink(sum, own.limit), gate = activate(u, p.activation);
        const C flow = b.skip ? grad[j] * skip[j] : grad[j];
        const C du = flow * own.factor * slope_of(u, gate, p.activation);
        dz[j] = fabs(sum) <= own.limit ? C(0) : du;
        // Beyond the plane's edge grad is 0, and so is all of this, whatever z is there.
        if (j < count) {
            of_row[0] -= own.threshold < 0 ? C(0) : sign_of(sum) * dz[j];
            of_row[1] += dz[j];
            of_row[2] += flow * gate;
        }
        grad[j] *= gate * own.factor;
    }
    sums.add(of_row);
    if (b.skip_grad) put<LAST, X>(b.skip_grad + at, place.stride, count, p.wide, p.brain, grad);
    if (b.needs_dz()) put<LAST, X>(b.dz + at, place.stride, count, p.wide, p.brain, dz);
}

template <bool LAST, class T, class P>
__device__ __forceinline__ void leave_plane_sums(const Plan& p, const P& place, const Backward<T>& b,
                                                 PlaneSums<Computed<T>>& sums) {
    sum_of_planes<LAST>(p, sums.values, [&](int k, int tc, Computed<T> sum) {
        int batch, channel;
        if (!plane_of<LAST>(p, place, tc, batch, channel)) return;
        b.plane_sums[piece_of(p, batch, channel, place.piece) * SUMS + k] = sum;
        if (k == 0 && batch == 0 && place.piece == 0) b.counters[channel] = 0;
    });
}

template <class T, int DIM, bool LAST>
__global__ void __launch_bounds__(1 << Threads<T, DIM, LAST>::LOG_THREADS, 1)
    gate_backward_stencil(const __grid_constant__ Plan p, Backward<T> b) {
    const PlaceOf<T, DIM, LAST> place(p, blockIdx.x);
    const OfPlane<float> own(p, b.parameters, place.valid, place.batch, place.channel);
    PlaneSums<float> sums;
    convolve_by_stencil<T, DIM, LAST>(p, place, b.field, b.parameters.weight, false, [&](int step, int row, auto& z) {
        turn_back<LAST>(p, place, b, own, step, row, z, sums);
    });
    leave_plane_sums<LAST>(p, place, b, sums);
}

template <class T, bool LAST>
__global__ void __launch_bounds__(1 << GENERIC_LOG_THREADS, 2)
    gate_backward_generic(const __grid_constant__ Plan p, Backward<T> b) {
    const GenericPlace<LAST> place(p, blockIdx.x);
    const OfPlane<Computed<T>> own(p, b.parameters, place.valid, place.batch, place.channel);
    PlaneSums<Computed<T>> sums;
    convolve_by_gathering<LAST>(p, place, b.field, b.parameters.weight, false, [&](int step, int row, auto& z) {
        turn_back<LAST>(p, place, b, own, step, row, z, sums);
    });
    leave_plane_sums<LAST>(p, place, b, sums);
}

// The gradient of weight `i` of one channel's, (dilations, kernel), from the sums of the taps.
template <bool STENCIL>
__device__ __forceinline__ int tap_of(const Plan& p, int i) {
    const int volume = p.kernel_volume(), d = p.dilations[i / volume];
    if constexpr (STENCIL)
        return p.kernel_depth == 3 ? Taps<3>::number(d, i % volume) : Taps<2>::number(d, i % volume);
    else
        return i;
}

// All sums of one channel, each by one thread, over batch items and pieces in their order. Other blocks wrote them: so
// they are read past the L1.
template <bool STENCIL, class T>
__device__ __forceinline__ void add_up_channel(const Plan& p, const Backward<T>& b, int channel) {
    using C = Computed<T>;
    const int volume = p.kernel_volume(), weights = b.weight_grad ? p.dilation_count * volume : 0;
    const int pieces = p.pieces(), planes = b.gate_grad ? p.batch : 0;
    for (int item = int(threadIdx.x); item < weights + 2 + planes; item += int(blockDim.x)) {
        const bool of_weight = item < weights, of_item = item >= weights + 2;
        const int stride = of_weight ? b.taps : SUMS;
        const C* from = of_weight ? b.weight_sums + tap_of<STENCIL>(p, item) : b.plane_sums + min(item - weights, 2);
        const int first = of_item ? item - weights - 2 : 0, end = of_item ? first + 1 : p.batch;
        double sum = 0;
        for (int batch = first; batch < end; ++batch)
#pragma unroll 4
            for (int piece = 0; piece < pieces; ++piece)
                sum += __ldcg(from + piece_of(p, batch, channel, piece) * stride);
        if (of_weight)
            b.weight_grad[(int64_t(item / volume) * p.channels + channel) * volume + item % volume] = C(sum);
        else if (of_item)
            b.gate_grad[int64_t(first) * p.channels + channel] = C(sum);
        else if (item == weights && b.threshold_grad)
            b.threshold_grad[channel] = C(sum);
        else if (item == weights + 1 && b.bias_grad)
            b.bias_grad[channel] = C(sum);
    }
}

struct LastOfChannels {
    int values[1 << GENERIC_LOG_THREADS];
};

// Counts this block's planes among those of their channels that are done, and adds up the channels that now are complete.
template <bool LAST, bool STENCIL, class T, class P>
__device__ __forceinline__ void count_and_add_up(const Plan& p, const P& place, const Backward<T>& b) {
    auto& last = shared_object<LastOfChannels>();
    const int channels = 1 << p.log_c;
    __threadfence();
    __syncthreads();
    for (int tc = int(threadIdx.x); tc < channels; tc += int(blockDim.x)) {
        int batch, channel;
        last.values[tc] = -1;
        if (!plane_of<LAST>(p, place, tc, batch, channel)) continue;
        if (atomicAdd(b.counters + channel, 1) == p.batch * p.pieces() - 1) last.values[tc] = channel;
    }
    __syncthreads();
    __threadfence();
    for (int tc = 0; tc < channels; ++tc)
        if (last.values[tc] >= 0) add_up_channel<STENCIL>(p, b, last.values[tc]);
}

template <bool LAST, class T, class P, int N>
__device__ __forceinline__ void leave_weight_sums(const Plan& p, const P& place, const Backward<T>& b,
                                                  Computed<T> (&sums)[N], int first) {
    sum_of_planes<LAST>(p, sums, [&](int k, int tc, Computed<T> sum) {
        int batch, channel;
        if (first + k >= b.taps || !plane_of<LAST>(p, place, tc, batch, channel)) return;
        b.weight_sums[piece_of(p, batch, channel, place.piece) * b.taps + first + k] = sum;
    });
}

// Even blocks make dq, odd ones the weight gradient. Every output of dq is written here, and nowhere else. The 1 and the 2 in
// the bounds keep ptxas from aiming at more blocks a multiprocessor by spilling a few registers, as it did for sm_100.
template <class T, int DIM, bool LAST>
__global__ void __launch_bounds__(1 << Threads<T, DIM, LAST>::LOG_THREADS, 1)
    gate_gradients_stencil(const __grid_constant__ Plan p, Backward<T> b) {
    using S = Threads<T, DIM, LAST>;
    const PlaceOf<T, DIM, LAST> place(p, blockIdx.x / 2);
    if (blockIdx.x % 2 == 0) {
        if (!b.field_grad) return;
        convolve_by_stencil<T, DIM, LAST>(p, place, b.dz, b.parameters.weight, true, [&](int step, int row, auto& dq) {
            const int count = place.valid && row < p.rows ? p.width - place.x() : 0;
            put<LAST, S::X>(b.field_grad + place.offset(p, step, row, place.x()), place.stride, count, p.wide, p.brain, dq);
        });
        return;
    }
    if (b.weight_grad) {
        float sums[Taps<DIM>::COUNT] = {};
        correlate_by_stencil<T, DIM, LAST>(p, place, b.field, b.dz, sums);
        leave_weight_sums<LAST>(p, place, b, sums, 0);
    }
    count_and_add_up<LAST, true>(p, place, b);
}

template <class T, bool LAST>
__global__ void __launch_bounds__(1 << GENERIC_LOG_THREADS, 2)
    gate_gradients_generic(const __grid_constant__ Plan p, Backward<T> b) {
    const GenericPlace<LAST> place(p, blockIdx.x / 2);
    if (blockIdx.x % 2 == 0) {
        if (!b.field_grad) return;
        convolve_by_gathering<LAST>(p, place, b.dz, b.parameters.weight, true, [&](int step, int row, auto& dq) {
            const int count = place.valid && row < p.rows ? p.width - place.x() : 0;
            put<LAST, GENERIC_X>(b.field_grad + place.offset(p, step, row, place.x()), place.stride, count, false, p.brain, dq);
        });
        return;
    }
    if (b.weight_grad)
        for (int first = 0; first < b.taps; first += GENERIC_TAPS) {
            Computed<T> sums[GENERIC_TAPS] = {};
            correlate_by_gathering<LAST>(p, place, b.field, b.dz, first, sums);
            leave_weight_sums<LAST>(p, place, b, sums, first);
        }
    count_and_add_up<LAST, false>(p, place, b);
}

template <class T>
Backward<T> backward_of(const GateArguments& a) {
    using C = Computed<T>;
    Backward<T> b = {};
    b.field = static_cast<const T*>(a.field.data);
    b.skip = static_cast<const T*>(a.skip.data);
    b.grad = static_cast<const T*>(a.grad.data);
    b.field_grad = static_cast<T*>(a.field_grad.data);
    b.skip_grad = static_cast<T*>(a.skip_grad.data);
    b.parameters = parameters_of<C>(a);
    b.weight_grad = static_cast<C*>(a.weight_grad);
    b.threshold_grad = static_cast<C*>(a.threshold_grad);
    b.bias_grad = static_cast<C*>(a.bias_grad);
    b.gate_grad = static_cast<C*>(a.channel_gate_grad);
    return b;
}

template <class T>
void start(const GateArguments& a, const OnDevice& device) {
    const Layout layout = layout_of(a.sizes, a.field, a.skip, a.grad, a.field_grad, a.skip_grad);
    const bool whole = aligned(16, a.field.data, a.skip.data, a.grad.data, a.field_grad.data, a.skip_grad.data);
    for_gate<T>(a, layout, whole, [&](auto way, const Plan& p, size_t shared_bytes) {
        using W = decltype(way);
        Backward<T> b = backward_of<T>(a);
        place_workspace(b, p, W::DIM != 0, a.workspace);
        void (*first)(Plan, Backward<T>);
        void (*second)(Plan, Backward<T>);
        if constexpr (W::DIM == 0) {
            first = gate_backward_generic<T, W::LAST>;
            second = gate_gradients_generic<T, W::LAST>;
        } else {
            first = gate_backward_stencil<T, W::DIM, W::LAST>;
            second = gate_gradients_stencil<T, W::DIM, W::LAST>;
        }
        const Grid grid{unsigned(p.blocks()), unsigned(p.threads()), shared_bytes, device.stream()};
        launch("proximal_gate_backward", first, grid, p, b);
        Grid twice = grid;
        twice.blocks.x *= 2;
        launch("proximal_gate_gradients", second, twice, p, b);
    });
}

}  // namespace

void proximal_gate_backward(const GateArguments& a) {
    const OnDevice device(a.queue);
    if (numbers_of(a.sizes) == 0) {
        // An empty batch: its sums are zero. No other gradient has an element.
        const size_t size = a.type == DataType::float64 ? 8 : 4, channels = size_t(a.sizes[CHANNEL]);
        const size_t weights = size_t(a.dilation_count) * size_t(a.kernel_depth) * size_t(a.kernel_size * a.kernel_size);
        const auto clear = [&](void* memory, size_t count) {
            if (memory) check(cudaMemsetAsync(memory, 0, count * size, device.stream()), "proximal_gate_backward");
        };
        clear(a.weight_grad, weights * channels);
        clear(a.threshold_grad, channels);
        clear(a.bias_grad, channels);
        return;
    }
    for_storage(a.type, [&](auto zero) { start<decltype(zero)>(a, device); });
}

size_t proximal_gate_workspace(const GateArguments& a) {
    size_t bytes = 0;
    if (numbers_of(a.sizes) == 0) return bytes;
    const Layout layout = layout_of(a.sizes, a.field);
    for_storage(a.type, [&](auto zero) {
        using T = decltype(zero);
        for_gate<T>(a, layout, true, [&](auto way, const Plan& p, size_t) {
            Backward<T> b = {};
            bytes = place_workspace(b, p, decltype(way)::DIM != 0, nullptr);
        });
    });
    return bytes;
}

}  // namespace prosma::cuda

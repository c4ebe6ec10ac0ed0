// soft_threshold on the GPU: y = sign(x) * max(|x| - max(threshold, 0), 0), with one threshold a channel.
//
//     dx = dy where |x| > t, else 0;   dthreshold = -sum of sign(x) dy there (0 where threshold < 0)
//
// A tensor is seen as rows of numbers: contiguous, a row is one channel's image, and a block takes a piece of it;
// channels_last, a row is one pixel's channels, and a thread keeps its channels for many pixels. Either way a thread
// moves 16 bytes at a time where the rows allow it, and the tensor is read once. Backward, each block leaves the sum of its
// piece in the workspace, and a second launch adds the pieces up in their order.
#include "kernels.h"
#include "launch.h"
#include "layout.h"
#include "numbers.h"
#include "reduction.h"

namespace prosma::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int STEPS = 4;  // packs a thread

// The threads of a block on the tensor: `across` packs wide, the rest of them on different rows.
struct Division {
    Layout layout;
    int64_t rows, width;  // in numbers
    int pack;             // numbers an access
    int across, down;     // threads along a row, and rows at once
    int64_t pieces;       // blocks along a row
    int64_t blocks;

    int channels;
    // How many sums a channel has in the workspace.
    __host__ __device__ int64_t sums() const { return layout == Layout::contiguous ? rows / channels * pieces : blocks / pieces; }
};

template <class T>
Division divide(const ShrinkArguments& a, bool narrow = false) {
    Division d;
    d.layout = layout_of(a.sizes, a.x, a.out, a.grad);
    d.channels = int(a.sizes[CHANNEL]);
    const bool planes = d.layout == Layout::contiguous;
    d.width = planes ? volume_of(a.sizes) : a.sizes[CHANNEL];
    d.rows = numbers_of(a.sizes) / d.width;
    const bool wide = !narrow && d.width % WIDEST<T> == 0 && aligned(16, a.x.data, a.out.data, a.grad.data);
    d.pack = wide ? WIDEST<T> : 1;
    d.across = THREADS;
    if (!planes)
        while (d.across > 1 && d.across / 2 * d.pack >= d.width) d.across /= 2;
    d.down = THREADS / d.across;
    const int64_t piece = int64_t(d.across) * d.pack * (planes ? STEPS : 1);
    d.pieces = ceil_div(d.width, piece);
    // channels_last: enough rows a block that the sums it leaves are few.
    d.blocks = d.pieces * (planes ? d.rows : ceil_div(d.rows, int64_t(d.down) * STEPS * 4));
    return d;
}

template <class T>
struct Pointers {
    const T* x;
    const T* grad;  // backward only
    T* out;
    const Computed<T>* threshold;
    Computed<T>* sums;  // (channels, sums), backward only
};

// One number: y, or dx and what the threshold's gradient gets of it.
template <class C>
__device__ __forceinline__ C shrunk(C x, C threshold) {
    const C t = threshold > 0 ? threshold : C(0);
    return x > t ? x - t : x < -t ? x + t : x != x ? x : C(0);
}

template <bool BACKWARD, class T, int PACK>
__device__ __forceinline__ void process(const Pointers<T>& p, int64_t at, const Computed<T>* threshold, bool one,
                                        Computed<T>* sums) {
    using C = Computed<T>;
    const Pack<T, PACK> x = load<PACK>(p.x + at);
    Pack<T, PACK> grad, out;
    if constexpr (BACKWARD) grad = load<PACK>(p.grad + at);
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
        const C value = to_computed(x[i]), limit = threshold[one ? 0 : i];
        if constexpr (BACKWARD) {
            const C t = limit > 0 ? limit : C(0);
            const C flow = value > t || value < -t ? to_computed(grad[i]) : C(0);
            out[i] = to_stored<T>(flow);
            sums[one ? 0 : i] -= limit < 0 ? C(0) : value > 0 ? flow : -flow;
        } else {
            out[i] = to_stored<T>(shrunk(value, limit));
        }
    }
    store(p.out + at, out);
}

template <bool BACKWARD, class T, int PACK>
__global__ void __launch_bounds__(THREADS) planes_kernel(Pointers<T> p, Division d) {
    const int64_t row = blockIdx.x / d.pieces, piece = blockIdx.x % d.pieces;
    const int channel = int(row % d.channels);
    const Computed<T> threshold = p.threshold[channel];
    Computed<T> sum = 0;
    int64_t at = (piece * STEPS * THREADS + threadIdx.x) * PACK;
#pragma unroll
    for (int step = 0; step < STEPS; ++step, at += THREADS * PACK)
        if (at < d.width) process<BACKWARD, T, PACK>(p, row * d.width + at, &threshold, true, &sum);
    if constexpr (BACKWARD) {
        sum = sum_of_block<THREADS / WARP>(sum);
        if (threadIdx.x == 0) p.sums[channel * d.sums() + row / d.channels * d.pieces + piece] = sum;
    }
}

template <class C, int PACK>
struct OfThreads {
    C values[THREADS * PACK];
};

template <bool BACKWARD, class T, int PACK>
__global__ void __launch_bounds__(THREADS, 1) pixels_kernel(Pointers<T> p, Division d) {
    using C = Computed<T>;
    const int column = int(threadIdx.x) % d.across, down = int(threadIdx.x) / d.across;
    const int64_t channel = (blockIdx.x % d.pieces * d.across + column) * PACK, group = blockIdx.x / d.pieces;
    const bool inside = channel < d.width;
    C threshold[PACK], sums[PACK] = {};
#pragma unroll
    for (int i = 0; i < PACK; ++i) threshold[i] = inside ? p.threshold[channel + i] : C(0);
    const int64_t rows = int64_t(d.down) * STEPS * 4, first = group * rows;
    if (inside)
#pragma unroll 4
        for (int64_t row = first + down; row < first + rows && row < d.rows; row += d.down)
            process<BACKWARD, T, PACK>(p, row * d.width + channel, threshold, false, sums);
    if constexpr (BACKWARD) {
        auto& of_threads = shared_object<OfThreads<C, PACK>>();
#pragma unroll
        for (int i = 0; i < PACK; ++i) of_threads.values[threadIdx.x * PACK + i] = sums[i];
        __syncthreads();
        if (down != 0 || !inside) return;
#pragma unroll
        for (int i = 0; i < PACK; ++i) {
            C sum = 0;
            for (int k = 0; k < d.down; ++k) sum += of_threads.values[(k * d.across + column) * PACK + i];
            p.sums[(channel + i) * d.sums() + group] = sum;
        }
    }
}

// One block a channel: its sums, each thread's in their order, and then the threads' in theirs.
template <class C>
__global__ void __launch_bounds__(THREADS) add_up_kernel(const C* sums, int64_t count, C* out) {
    C sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += sums[blockIdx.x * count + i];
    sum = sum_of_block<THREADS / WARP>(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <bool BACKWARD, class T>
void start(const ShrinkArguments& a, const OnDevice& device) {
    using C = Computed<T>;
    const Division d = divide<T>(a);
    Pointers<T> p;
    p.x = static_cast<const T*>(a.x.data);
    p.grad = static_cast<const T*>(a.grad.data);
    p.out = static_cast<T*>(a.out.data);
    p.threshold = static_cast<const C*>(a.threshold);
    p.sums = static_cast<C*>(a.workspace);
    const auto kernel = d.layout == Layout::contiguous
                            ? (d.pack == 1 ? planes_kernel<BACKWARD, T, 1> : planes_kernel<BACKWARD, T, WIDEST<T>>)
                            : (d.pack == 1 ? pixels_kernel<BACKWARD, T, 1> : pixels_kernel<BACKWARD, T, WIDEST<T>>);
    if (d.blocks) launch("soft_threshold", kernel, {unsigned(d.blocks), THREADS, 0, device.stream()}, p, d);
    if constexpr (BACKWARD)
        launch("soft_threshold_add_up", add_up_kernel<C>, {unsigned(d.channels), THREADS, 0, device.stream()},
               p.sums, d.sums(), static_cast<C*>(a.threshold_grad));
}

}  // namespace

void soft_threshold_forward(const ShrinkArguments& a) {
    const OnDevice device(a.queue);
    for_type(a.type, [&](auto zero) { start<false, decltype(zero)>(a, device); });
}

void soft_threshold_backward(const ShrinkArguments& a) {
    const OnDevice device(a.queue);
    for_type(a.type, [&](auto zero) { start<true, decltype(zero)>(a, device); });
}

size_t soft_threshold_workspace(const ShrinkArguments& a) {
    size_t bytes = 0;
    for_type(a.type, [&](auto zero) {
        using T = decltype(zero);
        const Division d = divide<T>(a, true);  // single numbers make the most pieces
        bytes = size_t(d.sums()) * size_t(d.channels) * sizeof(Computed<T>);
    });
    return bytes;
}

}  // namespace prosma::cuda

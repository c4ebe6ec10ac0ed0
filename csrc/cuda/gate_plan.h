// How proximal_gate's work is divided on the GPU.
//
// A thread makes X numbers side by side, in 3-D Y rows of them, and marches: along the height of an image, along the depth of
// a volume. A block is `threads.x` threads across, `threads.y` down and `threads.c` planes (contiguous: of any batch item
// and channel; channels_last: neighbouring channels of one item, which then are the lanes of a warp). Its tile is
// marched through for `chunk` steps; tiles and chunks together are the pieces of a plane.
#pragma once

#include <cstdint>

#include "../proximal_gate.h"
#include "launch.h"
#include "layout.h"
#include "numbers.h"

namespace prosma::cuda {

constexpr int MOST_DILATIONS = 256;

struct Plan {
    int batch, channels;
    int march, rows, width;  // sizes: height, 1 and width of an image; depth, height and width of a volume
    int log_x, log_y, log_c;
    int chunk, chunks, tiles_x, tiles_y;
    int channel_groups;  // channels_last: of one batch item
    int groups;
    bool wide;  // rows (channels_last: pixels) can be read 16 bytes at a time
    bool brain;  // of the half types bfloat16
    Activation activation;

    int kernel_size, kernel_depth, dilation_count;
    unsigned present;  // bit d: there is a kernel of dilation d
    int dilations[MOST_DILATIONS];

    __host__ __device__ int threads() const { return 1 << (log_x + log_y + log_c); }
    __host__ __device__ int pieces() const { return chunks * tiles_x * tiles_y; }
    __host__ __device__ int64_t blocks() const { return int64_t(groups) * pieces(); }
    __host__ __device__ int64_t volume() const { return int64_t(march) * rows * width; }
    __host__ __device__ int kernel_volume() const { return kernel_depth * kernel_size * kernel_size; }
};

// What a thread of a kernel with X numbers in each of Y rows has to do.
template <bool LAST, int X, int Y>
struct Place {
    int tx, ty, tc;          // of the thread in the block
    int x0, y0, first;       // where the block's tile begins, and its march
    int batch, channel;      // of the thread; the block's first channel is `channel0`
    int channel0, piece;
    bool valid;
    int64_t base, stride;    // of the thread's plane in memory, and from a number to its neighbour in the row

    __device__ __forceinline__ explicit Place(const Plan& p, unsigned block) {
        const int thread = int(threadIdx.x);
        if constexpr (LAST) {
            tc = thread & ((1 << p.log_c) - 1);
            tx = thread >> p.log_c & ((1 << p.log_x) - 1);
            ty = thread >> (p.log_c + p.log_x);
        } else {
            tx = thread & ((1 << p.log_x) - 1);
            ty = thread >> p.log_x & ((1 << p.log_y) - 1);
            tc = thread >> (p.log_x + p.log_y);
        }
        // Of channels_last tensors the channel groups follow one another, as they share cache lines; else the pieces do.
        const int pieces = p.pieces();
        const int group = LAST ? int(block / (unsigned(pieces) * p.channel_groups)) * p.channel_groups +
                                     int(block % p.channel_groups)
                               : int(block / pieces);
        piece = LAST ? int(block / p.channel_groups % pieces) : int(block % pieces);
        x0 = piece % p.tiles_x * (X << p.log_x);
        y0 = piece / p.tiles_x % p.tiles_y * (Y << p.log_y);
        first = piece / (p.tiles_x * p.tiles_y) * p.chunk;
        if constexpr (LAST) {
            batch = group / p.channel_groups;
            channel0 = group % p.channel_groups << p.log_c;
            channel = channel0 + tc;
            valid = channel < p.channels;
            base = int64_t(batch) * p.volume() * p.channels + channel;
            stride = p.channels;
        } else {
            const int plane = (group << p.log_c) + tc;
            batch = plane / p.channels;
            channel = channel0 = plane % p.channels;
            valid = batch < p.batch;
            base = int64_t(plane) * p.volume();
            stride = 1;
        }
    }

    __device__ __forceinline__ int x() const { return x0 + tx * X; }
    __device__ __forceinline__ int y() const { return y0 + ty * Y; }
    __device__ __forceinline__ int64_t offset(const Plan& p, int step, int row, int column) const {
        return base + ((int64_t(step) * p.rows + row) * p.width + column) * stride;
    }
};

inline int log_of(int64_t count, int most) {
    int log = 0;
    while (log < most && (int64_t(1) << log) < count) ++log;
    return log;
}

// The division for threads of X numbers in Y rows, of which a block has 1 << log_threads or fewer.
inline Plan divide(const GateArguments& a, Layout layout, bool image_is_marched, int x, int y, int log_threads,
                   int log_most_across, int chunk) {
    Plan p = {};
    p.batch = int(a.sizes[BATCH]);
    p.channels = int(a.sizes[CHANNEL]);
    p.march = int(a.sizes[image_is_marched ? HEIGHT : DEPTH]);
    p.rows = image_is_marched ? 1 : int(a.sizes[HEIGHT]);
    p.width = int(a.sizes[WIDTH]);
    p.activation = a.activation;
    p.brain = a.type == DataType::bfloat16;
    p.kernel_size = a.kernel_size;
    p.kernel_depth = a.kernel_depth;
    p.dilation_count = a.dilation_count;
    if (a.dilation_count > MOST_DILATIONS) throw std::invalid_argument("the CUDA kernels take 256 dilations at most");
    for (int m = 0; m < a.dilation_count; ++m) {
        p.dilations[m] = int(a.dilations[m]);
        if (p.dilations[m] < 32) p.present |= 1u << p.dilations[m];
    }
    const bool last = layout == Layout::channels_last;
    // Of channels_last volumes 16 channels, for the tile's sake: its halo is read again by its neighbours.
    const int log_least = last ? log_of(p.channels, image_is_marched ? 5 : 4) : 0;
    p.log_x = log_of(ceil_div(p.width, x), std::min(log_most_across, log_threads - log_least));
    p.log_y = log_of(ceil_div(p.rows, y), log_threads - log_least - p.log_x);
    const int64_t planes = last ? p.channels : int64_t(p.batch) * p.channels;
    p.log_c = std::min(log_of(planes, 6), log_threads - p.log_x - p.log_y);
    p.log_c = std::max(p.log_c, 5 - p.log_x - p.log_y);  // whole warps
    p.tiles_x = int(ceil_div(p.width, int64_t(x) << p.log_x));
    p.tiles_y = int(ceil_div(p.rows, int64_t(y) << p.log_y));
    p.channel_groups = int(ceil_div(p.channels, int64_t(1) << p.log_c));
    p.groups = last ? p.batch * p.channel_groups : int(ceil_div(planes, int64_t(1) << p.log_c));
    p.chunk = chunk;
    p.chunks = int(ceil_div(p.march, chunk));
    return p;
}

// X numbers of a row in the type that is computed in; those beyond `count` are 0. With `wide` there are all or none.
template <bool LAST, int X, class T>
__device__ __forceinline__ void fetch(const T* from, int64_t stride, int count, bool wide, bool brain,
                                      Computed<T> (&to)[X]) {
    if constexpr (!LAST && X % WIDEST<T> == 0) {
        if (wide) {
#pragma unroll
            for (int part = 0; part < X / WIDEST<T>; ++part) {
                Pack<T, WIDEST<T>> pack;
                if (count > 0) pack = load<WIDEST<T>>(from + part * WIDEST<T>);
#pragma unroll
                for (int i = 0; i < WIDEST<T>; ++i)
                    to[part * WIDEST<T> + i] = count > 0 ? decoded(pack[i], brain) : Computed<T>(0);
            }
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < X; ++i) to[i] = i < count ? decoded(load_one(from + i * stride), brain) : Computed<T>(0);
}

template <bool LAST, int X, class T>
__device__ __forceinline__ void put(T* to, int64_t stride, int count, bool wide, bool brain,
                                    const Computed<T> (&from)[X]) {
    if constexpr (!LAST && X % WIDEST<T> == 0) {
        if (wide) {
            if (count <= 0) return;
#pragma unroll
            for (int part = 0; part < X / WIDEST<T>; ++part) {
                Pack<T, WIDEST<T>> pack;
#pragma unroll
                for (int i = 0; i < WIDEST<T>; ++i) pack[i] = encoded<T>(from[part * WIDEST<T> + i], brain);
                store(to + part * WIDEST<T>, pack);
            }
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < X; ++i)
        if (i < count) to[i * stride] = encoded<T>(from[i], brain);
}

}  // namespace prosma::cuda

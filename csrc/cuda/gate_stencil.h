// The kernels of size 3 and dilations of {1, 2, 3} as ONE stencil of 25 distinct taps (3-D: 79), marched through.
//
// A thread reads every row (3-D: plane) of its tile once from shared memory, a window of X + 6 numbers in 16-byte
// accesses, and adds it to all seven outputs that it reaches, which are in registers, as are the weights. 2-D: 25 X
// multiply-adds for X / 4 + 2 loads. An output is complete when the march has passed it by 3 steps.
//
// The weight gradient is the same march with the roles changed: in registers are the taps' sums and the seven rows of
// dz that a row of the field meets.
#pragma once

#include "device.h"
#include "gate_plan.h"

namespace prosma::cuda {

constexpr int REACH = 3;
constexpr int SPAN = 2 * REACH + 1;
constexpr int MARGIN = 4;  // columns beside a tile's row: 3, and 1 for the alignment

// The dilation of the taps that are `dm` steps and `dy` rows away, not both 0; 0 if there are none.
__host__ __device__ constexpr int dilation_of(int dm, int dy) {
    const int m = dm < 0 ? -dm : dm, y = dy < 0 ? -dy : dy;
    return m == 0 || y == 0 || m == y ? (m > y ? m : y) : 0;
}

template <int DIM>
struct Taps {
    static constexpr int ROWS = DIM == 3 ? REACH : 0;  // a row of an image has only itself
    static constexpr int KERNEL = DIM == 3 ? 27 : 9;
    static constexpr int COUNT = REACH * (KERNEL - 1) + 1;
    // Where place `i` of the kernel with dilation `d` stands among the taps: kernel by kernel, and the centre last.
    __host__ __device__ static constexpr int number(int d, int i) {
        return i == KERNEL / 2 ? COUNT - 1 : (d - 1) * (KERNEL - 1) + i - (i > KERNEL / 2);
    }
};

template <class T, int DIM, bool LAST>
struct Threads {
    static constexpr int X = LAST ? 4 : WIDEST<T>;
    static constexpr int Y = DIM == 3 && !LAST ? 8 / X : 1;  // channels_last: 2 take more than 255 registers
    static constexpr int LOG_THREADS = LAST ? 8 : 7;
    static constexpr int LOG_MOST_ACROSS = DIM == 3 ? (LAST ? 2 : X == 8 ? 2 : 3) : 6;
    static constexpr int CHUNK = DIM == 3 ? 32 : 64;
    static constexpr int STEPS_AT_ONCE = DIM == 3 ? 1 : 4;  // loaded between two barriers
    static constexpr int ROWS_READ = Y + 2 * Taps<DIM>::ROWS;
};

template <class T, int DIM, bool LAST>
using PlaceOf = Place<LAST, Threads<T, DIM, LAST>::X, Threads<T, DIM, LAST>::Y>;

// The tile in shared memory: two buffers of STEPS_AT_ONCE steps, float32.
template <class S, bool LAST>
struct Tile {
    float* memory;
    int pitch, rows, channels, pixel;

    __host__ __device__ explicit Tile(const Plan& p, float* memory, int halo_rows, int y) : memory(memory) {
        pitch = (S::X << p.log_x) + 2 * MARGIN;
        rows = (y << p.log_y) + 2 * halo_rows;
        channels = 1 << p.log_c;
        // Two groups of 16 lanes are 4 pixels apart: 4 * 20 numbers, the other half of the banks.
        pixel = LAST ? (channels == 16 ? 20 : channels) : 1;
    }
    __host__ __device__ int step() const { return LAST ? rows * pitch * pixel : channels * rows * pitch; }
    __host__ size_t bytes() const { return sizeof(float) * 2 * S::STEPS_AT_ONCE * size_t(step()); }
    __device__ __forceinline__ float* at(int buffer, int slot, int row, int column, int channel) const {
        float* start = memory + (buffer * S::STEPS_AT_ONCE + slot) * step();
        return start + (LAST ? (row * pitch + column) * pixel + channel : (channel * rows + row) * pitch + column);
    }
};

__device__ __forceinline__ void store_four(float* to, const float* from) {
    store(to, Pack<float, 4>{from[0], from[1], from[2], from[3]});
}

// One step of the march into shared memory, with zeros outside of the plane.
template <class T, int DIM, bool LAST, class In>
__device__ __forceinline__ void load_step(const Plan& p, const PlaceOf<T, DIM, LAST>& place,
                                          const Tile<Threads<T, DIM, LAST>, LAST>& tile, const In* from, int step,
                                          int buffer, int slot) {
    using S = Threads<T, DIM, LAST>;
    constexpr int HALO = Taps<DIM>::ROWS;
    if constexpr (LAST) {
        constexpr int V = WIDEST<In>;
        const bool wide = p.wide && tile.channels >= V;
        const int pack = wide ? V : 1, packs = tile.channels / pack;
        const int columns = tile.pitch - 2, count = tile.rows * columns;
        const int channel = int(threadIdx.x) % packs * pack;
        const int64_t first = place.base - place.tc + channel;
        const bool inside_channels = place.channel0 + channel < p.channels;
        for (int i = int(threadIdx.x) / packs; i < count; i += int(blockDim.x) / packs) {
            const int row = i / columns, column = i % columns + 1;
            const int y = place.y0 + row - HALO, x = place.x0 + column - MARGIN;
            const bool inside = inside_channels && y >= 0 && y < p.rows && x >= 0 && x < p.width;
            const In* address = from + first + ((int64_t(step) * p.rows + y) * p.width + x) * p.channels;
            float* to = tile.at(buffer, slot, row, column, channel);
            if (wide) {
                float values[V];
                fetch<false, V>(address, 1, inside ? V : 0, true, p.brain, values);
#pragma unroll
                for (int v = 0; v < V; v += 4) store_four(to + v, values + v);
            } else {
                *to = inside ? decoded(load_one(address), p.brain) : 0.0f;
            }
        }
    } else {
        for (int row = place.ty; row < tile.rows; row += 1 << p.log_y) {
            const int y = place.y0 + row - HALO, left = p.width - place.x();
            const bool inside = place.valid && y >= 0 && y < p.rows;
            const In* address = from + place.offset(p, step, y, place.x());
            float values[S::X];
            fetch<false, S::X>(address, 1, inside ? left : 0, p.wide, p.brain, values);
            float* to = tile.at(buffer, slot, row, MARGIN + place.tx * S::X, place.tc);
#pragma unroll
            for (int v = 0; v < S::X; v += 4) store_four(to + v, values + v);
            if (place.tx == 0)
#pragma unroll
                for (int i = 1; i <= REACH; ++i) {
                    const bool there = inside && place.x0 - i >= 0 && place.x0 - i < p.width;
                    to[-i] = there ? decoded(load_one(address - i), p.brain) : 0.0f;
                }
            if (place.tx == (1 << p.log_x) - 1)
#pragma unroll
                for (int i = 0; i < REACH; ++i)
                    to[S::X + i] = inside && S::X + i < left ? decoded(load_one(address + S::X + i), p.brain) : 0.0f;
        }
    }
}

// The columns of one row that X outputs reach: [MARGIN + dx + j] belongs to tap dx of output j.
template <class S, bool LAST>
__device__ __forceinline__ void read_window(const Tile<S, LAST>& tile, int buffer, int slot, int row, int tx, int tc,
                                            float (&window)[S::X + 2 * MARGIN]) {
    const float* from = tile.at(buffer, slot, row, tx * S::X, tc);
    if constexpr (LAST) {
#pragma unroll
        for (int i = MARGIN - REACH; i < S::X + MARGIN + REACH; ++i) window[i] = from[i * tile.pixel];
    } else {
#pragma unroll
        for (int i = 0; i < S::X + 2 * MARGIN; i += 4) {
            const Pack<float, 4> pack = load_shared<4>(from + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) window[i + j] = pack[j];
        }
    }
}

// Calls use(dx, number of the tap) for the taps (dm, dy, .) of the stencil that are there. All loops here and around it
// are unrolled, and everything but `present` is known to the compiler.
template <int DIM, class Use>
__device__ __forceinline__ void for_taps(int dm, int dy, unsigned present, const Use& use) {
    constexpr int CENTRE = Taps<DIM>::KERNEL / 2;
    const int along = dilation_of(dm, dy);
    if (dm == 0 && dy == 0) {
        use(0, Taps<DIM>::number(1, CENTRE));
#pragma unroll
        for (int d = 1; d <= REACH; ++d)
            if (present >> d & 1) {
                use(-d, Taps<DIM>::number(d, CENTRE - 1));
                use(d, Taps<DIM>::number(d, CENTRE + 1));
            }
    } else if (along > 0 && present >> along & 1) {
        const int middle = CENTRE + dm / along * (DIM == 3 ? 9 : 3) + dy / along * 3;
#pragma unroll
        for (int x = -1; x <= 1; ++x) use(x * along, Taps<DIM>::number(along, middle + x));
    }
}

// A tap's weight: of the kernel with its dilation, or the sum where several have it; the centre is of all of them.
// `mirrored` gives the transposed stencil.
template <int DIM>
__device__ __forceinline__ void read_weights(const Plan& p, const float* weight, int channel, bool mirrored,
                                             float (&to)[Taps<DIM>::COUNT]) {
    constexpr int KERNEL = Taps<DIM>::KERNEL;
#pragma unroll
    for (int i = 0; i < Taps<DIM>::COUNT; ++i) to[i] = 0;
    for (int m = 0; m < p.dilation_count; ++m) {
        const float* kernel = weight + (int64_t(m) * p.channels + channel) * KERNEL;
#pragma unroll
        for (int tap = 0; tap < Taps<DIM>::COUNT; ++tap) {
            const bool centre = tap == Taps<DIM>::COUNT - 1;
            const int other = tap % (KERNEL - 1), i = centre ? KERNEL / 2 : other + (other >= KERNEL / 2);
            if (centre || p.dilations[m] == tap / (KERNEL - 1) + 1)
                to[tap] += __ldg(kernel + (mirrored ? KERNEL - 1 - i : i));
        }
    }
}

// Runs `body(buffer, slot, step)` for the steps of the plane from REACH before the chunk to REACH behind it, each with
// its part of `from` in shared memory, and `after(step)` for every step of these, there or not.
template <class T, int DIM, bool LAST, class In, class Body, class After>
__device__ __forceinline__ void march(const Plan& p, const PlaceOf<T, DIM, LAST>& place,
                                      const Tile<Threads<T, DIM, LAST>, LAST>& tile, const In* from, const Body& body,
                                      const After& after) {
    constexpr int AT_ONCE = Threads<T, DIM, LAST>::STEPS_AT_ONCE;
    const int first = place.first - REACH, end = min(place.first + p.chunk, p.march) + REACH;
    const auto load_group = [&](int start, int buffer) {
#pragma unroll
        for (int slot = 0; slot < AT_ONCE; ++slot)
            if (start + slot >= 0 && start + slot < p.march && start + slot < end)
                load_step<T, DIM, LAST>(p, place, tile, from, start + slot, buffer, slot);
    };
    load_group(first, 0);
    int buffer = 0;
    for (int start = first; start < end; start += AT_ONCE, buffer ^= 1) {
        __syncthreads();
        if (start + AT_ONCE < end) load_group(start + AT_ONCE, buffer ^ 1);
        for (int slot = 0; slot < AT_ONCE && start + slot < end; ++slot) {
            const int step = start + slot;
            if (step >= 0 && step < p.march) body(buffer, slot, step);
            after(step);
        }
    }
}

// Calls sink(step, row, sums) with X sums for every step of the chunk and row of the thread, there or not.
template <class T, int DIM, bool LAST, class In, class Sink>
__device__ __forceinline__ void convolve_by_stencil(const Plan& p, const PlaceOf<T, DIM, LAST>& place, const In* from,
                                                    const float* weight, bool mirrored, const Sink& sink) {
    using S = Threads<T, DIM, LAST>;
    constexpr int HALO = Taps<DIM>::ROWS;
    const Tile<S, LAST> tile(p, dynamic_shared<float>(), HALO, S::Y);
    float weights[Taps<DIM>::COUNT], sums[SPAN][S::Y][S::X] = {};
    read_weights<DIM>(p, weight, place.valid ? place.channel : 0, mirrored, weights);
    const auto add = [&](int buffer, int slot, int) {
#pragma unroll
        for (int row = 0; row < S::ROWS_READ; ++row) {
            float window[S::X + 2 * MARGIN];
            read_window<S, LAST>(tile, buffer, slot, place.ty * S::Y + row, place.tx, place.tc, window);
#pragma unroll
            for (int out = 0; out < S::Y; ++out) {
                const int dy = row - HALO - out;
                if (dy < -HALO || dy > HALO) continue;
#pragma unroll
                for (int i = 0; i < SPAN; ++i)
                    for_taps<DIM>(REACH - i, dy, p.present, [&](int dx, int tap) {
#pragma unroll
                        for (int j = 0; j < S::X; ++j) sums[i][out][j] += weights[tap] * window[MARGIN + dx + j];
                    });
            }
        }
    };
    march<T, DIM, LAST>(p, place, tile, from, add, [&](int step) {
        if (step - REACH >= place.first)
#pragma unroll
            for (int row = 0; row < S::Y; ++row) sink(step - REACH, place.y() + row, sums[0][row]);
#pragma unroll
        for (int i = 0; i < SPAN; ++i)
#pragma unroll
            for (int row = 0; row < S::Y; ++row)
#pragma unroll
                for (int j = 0; j < S::X; ++j) sums[i][row][j] = i + 1 < SPAN ? sums[i + 1][row][j] : 0.0f;
    });
}

// Adds dz(output) * field(output + tap) to `sums`, over the thread's outputs.
template <class T, int DIM, bool LAST>
__device__ __forceinline__ void correlate_by_stencil(const Plan& p, const PlaceOf<T, DIM, LAST>& place,
                                                     const T* field, const float* dz,
                                                     float (&sums)[Taps<DIM>::COUNT]) {
    using S = Threads<T, DIM, LAST>;
    constexpr int HALO = Taps<DIM>::ROWS;
    const Tile<S, LAST> tile(p, dynamic_shared<float>(), HALO, S::Y);
    float flows[SPAN][S::Y][S::X] = {};  // of the steps from REACH before to REACH behind
    const auto shift = [&](int step) {
        const bool inside = place.valid && step >= place.first && step < min(place.first + p.chunk, p.march);
#pragma unroll
        for (int row = 0; row < S::Y; ++row) {
#pragma unroll
            for (int i = 0; i + 1 < SPAN; ++i)
#pragma unroll
                for (int j = 0; j < S::X; ++j) flows[i][row][j] = flows[i + 1][row][j];
            const int y = place.y() + row, count = inside && y < p.rows ? p.width - place.x() : 0;
            const float* from = dz + place.offset(p, step, y, place.x());
            fetch<LAST, S::X>(from, place.stride, count, p.wide, p.brain, flows[SPAN - 1][row]);
        }
    };
    shift(place.first);
    const auto add = [&](int buffer, int slot, int) {
#pragma unroll
        for (int row = 0; row < S::ROWS_READ; ++row) {
            float window[S::X + 2 * MARGIN];
            read_window<S, LAST>(tile, buffer, slot, place.ty * S::Y + row, place.tx, place.tc, window);
#pragma unroll
            for (int out = 0; out < S::Y; ++out) {
                const int dy = row - HALO - out;
                if (dy < -HALO || dy > HALO) continue;
#pragma unroll
                for (int i = 0; i < SPAN; ++i)
                    for_taps<DIM>(REACH - i, dy, p.present, [&](int dx, int tap) {
#pragma unroll
                        for (int j = 0; j < S::X; ++j) sums[tap] += flows[i][out][j] * window[MARGIN + dx + j];
                    });
            }
        }
    };
    march<T, DIM, LAST>(p, place, tile, field, add, [&](int step) { shift(step + REACH + 1); });
}

}  // namespace prosma::cuda

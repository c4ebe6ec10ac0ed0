// Half an iteration of Sinkhorn in one launch, for whatever does not fit on chip, and for the gradients:
//
//     found_i = log a_i - logsumexp_j(S_ij / epsilon + given_j)
//
// A block has a tile's lines and walks along the others with a running maximum, as attention does. Nothing is added across
// blocks, so there are no atomics, and an item is the same whatever the batch.
#pragma once

#include "transport_tiles.h"

namespace prosma::cuda {

// Potentials of 0 for all that take part, before the first iteration: -inf where there is no mass.
template <int>
__global__ void __launch_bounds__(THREADS) start_kernel(const double* mass, int64_t mass_step, int64_t lines, int64_t heads,
                                                        int64_t count, double* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    to[at] = mass[at / lines / heads * mass_step + at % lines] > 0 ? 0.0 : -infinity();
}

inline unsigned blocks_for(int64_t count) { return unsigned(ceil_div(count, THREADS)); }

inline void start_potentials(const double* mass, int64_t mass_step, int64_t lines, int64_t heads, int64_t items, double* to,
                             cudaStream_t stream) {
    launch("transport_start", start_kernel<0>, {blocks_for(items * lines), THREADS, 0, stream}, mass, mass_step, lines, heads,
           items * lines, to);
}

template <class T>
__global__ void __launch_bounds__(THREADS) fill_kernel(T* to, int64_t count, T value) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count) to[at] = value;
}

struct HalfStep {
    Pairing pair;
    const double *before, *given;  // (items, lines): who takes part, and what the error is measured from; the other side's
    const double* mass;            // (B, lines) of the own side
    int64_t mass_step;
    double *found, *top, *share;   // top and share: exp((S_ij / epsilon + given_j) - top_i) share_i has the mass a_i; may be null
    double* error;                 // (items, tiles): how far the row sums before were off; may be null
    double* history;               // columns: (items, keep, lines) times epsilon; may be null
    int64_t keep, step;
    double epsilon;
    const int* done;               // (items); may be null
    int64_t tiles;
};

// An item that is done: its history goes on with what it was.
template <class C>
__device__ void repeat_history(const HalfStep& h, const Place& p) {
    const int64_t line = p.first + threadIdx.x;
    if (!h.history || h.keep == 1 || threadIdx.x >= TILE<C> || line >= h.pair.own_size) return;
    double* to = h.history + (p.item * h.keep + h.step) * h.pair.own_size + line;
    *to = to[-h.pair.own_size];
}

template <class C>
struct RunningSums {
    double top[MINE<C>], sum[MINE<C>];

    __device__ RunningSums() {
#pragma unroll
        for (int r = 0; r < MINE<C>; ++r) {
            top[r] = -infinity();
            sum[r] = 0;
        }
    }

    // Exponents of one line; those of lines that take no part are -inf.
    __device__ void add(int r, const double (&x)[MINE<C>]) {
        double largest = x[0];
#pragma unroll
        for (int c = 1; c < MINE<C>; ++c) largest = x[c] > largest ? x[c] : largest;
        if (!(largest > -infinity())) return;
        if (largest > top[r]) {
            sum[r] *= double(exponential(top[r] - largest, C(0)));
            top[r] = largest;
        }
        C part = 0;
#pragma unroll
        for (int c = 0; c < MINE<C>; ++c) part += exponential(x[c] - top[r], C(0));
        sum[r] += double(part);
    }

    // Of all threads that share the line.
    __device__ void merge() {
#pragma unroll
        for (int r = 0; r < MINE<C>; ++r) {
            const double largest = over_others(top[r], Larger());
            sum[r] = largest > -infinity() ? over_others(sum[r] * double(exponential(top[r] - largest, C(0)))) : 0.0;
            top[r] = largest;
        }
    }
};

// The logarithms of sums over the others of a tile of own lines.
template <class C>
__device__ void log_sums(const Pairing& pair, const Place& p, const Potentials& potentials, RunningSums<C>& sums) {
    for (int64_t first = 0; first < pair.other_size; first += TILE<C>) {
        Tile<C> tile;
        double given[MINE<C>];
        score_tile(pair, p, first, potentials, tile);
        other_values<C>(potentials.other, first, pair.other_size, -infinity(), given);
#pragma unroll
        for (int r = 0; r < MINE<C>; ++r) {
            double x[MINE<C>];
#pragma unroll
            for (int c = 0; c < MINE<C>; ++c)
                x[c] = finite(given[c]) ? double(tile[r][c]) * pair.scale + given[c] : -infinity();
            sums.add(r, x);
        }
    }
    sums.merge();
}

template <class C>
__global__ void __launch_bounds__(THREADS, 2) half_step_kernel(const __grid_constant__ HalfStep h) {
    const Place p = place_of<C>(blockIdx.x, h.tiles, h.pair.heads);
    if (h.done && h.done[p.item]) return repeat_history<C>(h, p);
    const double* before = h.before + p.item * h.pair.own_size;
    RunningSums<C> sums;
    log_sums(h.pair, p, {before, h.given + p.item * h.pair.other_size}, sums);
    double error = 0;
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r) {
        const int64_t line = p.first + own_line<C>(r), at = p.item * h.pair.own_size + line;
        if (line >= h.pair.own_size) continue;
        const double mass = h.mass[p.batch * h.mass_step + line];
        const bool live = finite(before[line]) && sums.sum[r] > 0;
        const double found = live ? log(mass / sums.sum[r]) - sums.top[r] : -infinity();
        if (live) {
            const double off = fabs(exp(before[line] - found) - 1);
            error = off > error ? off : error;
        }
        if (threadIdx.x % LANES) continue;
        if (h.found) h.found[at] = found;
        if (h.top) h.top[at] = live ? sums.top[r] : infinity();
        if (h.share) h.share[at] = live ? mass / sums.sum[r] : 0;
        if (h.history)
            h.history[(p.item * h.keep + (h.keep > 1 ? h.step : 0)) * h.pair.own_size + line] = live ? h.epsilon * found : 0;
    }
    if (!h.error) return;
    error = largest_of_block<THREADS / WARP>(error);
    if (threadIdx.x == 0) h.error[p.item * h.tiles + p.first / TILE<C>] = error;
}

template <class C>
void half_step(const char* name, const HalfStep& h, int64_t items, cudaStream_t stream) {
    launch(name, half_step_kernel<C>, {unsigned(items * h.tiles), THREADS, 0, stream}, h);
}

}  // namespace prosma::cuda

// Tiles of the plan and of dL/dS on the GPU, and what is made of them: the plan and dS themselves, their sums over one
// side, and what they move. The plan is never stored where nobody asked for it.
//
//     dS = T * dT / epsilon  less what the iterations take back, with shares P = T / b and R = T / a after t iterations:
//     unrolled: sum_t P^t_ij gamma^t_j + R^t_ij phi^t_i            implicit: T_ij (alpha_i + beta_j)
//
//     moved_i = sum_j A_ij v_j, or sum_j 2 A_ij (v_j - x_i) where scores are squared distances, with A the plan or dS
#pragma once

#include "transport_tiles.h"

namespace prosma::cuda {

// What the iterations of an unrolled gradient take back: (steps, items, lines), potentials over epsilon; the columns' start
// with those before the first iteration.
struct Unrolled {
    const double *f = nullptr, *phi = nullptr, *gamma = nullptr, *columns = nullptr;
    const int32_t* count = nullptr;                                    // (items): how many ran
    const double *log_row_mass = nullptr, *log_column_mass = nullptr;  // (items, lines)
    int64_t items = 0;
};

struct Slope {
    Pairing pair;
    Anchored plan;
    // dT_ij = <moved_own_i, moved_other_j>; or `moved_own` is dT, where there is no other; or nothing.
    Operand moved_own, moved_other;
    int64_t width = 0;
    const double *alpha = nullptr, *beta = nullptr;  // of the rows and of the columns
    Unrolled unrolled;
};

template <class C>
__device__ __forceinline__ void take_back(const Slope& s, const Place& p, int64_t first_other, Tile<C>& scores, Tile<C>& slope) {
    const Unrolled& u = s.unrolled;
    const bool own_rows = s.pair.own_rows;
    const int64_t rows = own_rows ? s.pair.own_size : s.pair.other_size, columns = own_rows ? s.pair.other_size : s.pair.own_size;
    const double *log_rows = u.log_row_mass + p.item * rows, *log_columns = u.log_column_mass + p.item * columns;
#pragma unroll 1
    for (int64_t t = 0; t < u.count[p.item]; ++t) {
        const int64_t of_rows = (t * u.items + p.item) * rows, of_columns = (t * u.items + p.item) * columns;
        // Of a line: potentials of P and of R, and the weight that it has in one of the two.
        const auto of_line = [&](bool is_row, int64_t line, int64_t size, double& by_column, double& by_row, double& weight) {
            by_column = by_row = -infinity();
            weight = 0;
            if (line >= size) return;
            const double log_mass = (is_row ? log_rows : log_columns)[line];
            if (!finite(log_mass)) return;
            if (is_row) {
                by_column = u.f[of_rows + line];
                by_row = by_column - log_mass;
                weight = u.phi[of_rows + line];
            } else {
                by_column = u.columns[of_columns + u.items * columns + line] - log_mass;
                by_row = u.columns[of_columns + line];
                weight = u.gamma[of_columns + line];
            }
        };
        double own_by_column[MINE<C>], own_by_row[MINE<C>], own_weight[MINE<C>];
        double by_column[MINE<C>], by_row[MINE<C>], weight[MINE<C>];
#pragma unroll
        for (int k = 0; k < MINE<C>; ++k) {
            of_line(own_rows, p.first + own_line<C>(k), s.pair.own_size, own_by_column[k], own_by_row[k], own_weight[k]);
            of_line(!own_rows, first_other + other_line<C>(k), s.pair.other_size, by_column[k], by_row[k], weight[k]);
        }
        for_pairs<C>([&](int r, int c) {
            const double x = double(scores[r][c]) * s.pair.scale;
            const double of_p = x + own_by_column[r] + by_column[c], of_r = x + own_by_row[r] + by_row[c];
            const C share_p = exponential(of_p < 0 ? of_p : 0.0, C(0)), share_r = exponential(of_r < 0 ? of_r : 0.0, C(0));
            const double gamma = own_rows ? weight[c] : own_weight[r], phi = own_rows ? own_weight[r] : weight[c];
            slope[r][c] -= share_p * C(gamma) + share_r * C(phi);
        });
    }
}

// dT.
template <class C>
__device__ __forceinline__ void arriving_tile(const Slope& s, const Place& p, int64_t first_other, Tile<C>& arriving) {
    const Potentials potentials = potentials_of(s.pair, s.plan, p);
    if (!s.moved_own.data)
        for_pairs<C>([&](int r, int c) { arriving[r][c] = 0; });
    else if (s.moved_other.data)
        product_tile(s.moved_own, s.moved_other, p, first_other, s.pair.own_size, s.pair.other_size, potentials, s.width, false,
                     arriving);
    else
        matrix_tile(s.moved_own, p, first_other, s.pair.own_size, s.pair.other_size, potentials, arriving);
}

// dS of entries that are T.
template <class C>
__device__ __forceinline__ void make_slope(const Slope& s, const Place& p, int64_t first_other, Tile<C>& scores,
                                           Tile<C>& entries) {
    Tile<C> arriving;
    arriving_tile(s, p, first_other, arriving);
    const C scale = C(s.pair.scale);
    if (s.alpha) {
        // Between parts of the plan that share little both are large, and nearly opposite.
        double of_own[MINE<C>], of_other[MINE<C>];
        const double *own_taken = s.pair.own_rows ? s.alpha : s.beta, *other_taken = s.pair.own_rows ? s.beta : s.alpha;
        own_values<C>(own_taken + p.item * s.pair.own_size, p.first, s.pair.own_size, 0, of_own);
        other_values<C>(other_taken + p.item * s.pair.other_size, first_other, s.pair.other_size, 0, of_other);
        for_pairs<C>([&](int r, int c) {
            const C slope = arriving[r][c] * (entries[r][c] * scale);
            entries[r][c] = C(double(slope) - double(entries[r][c]) * (of_own[r] + of_other[c]));
        });
    } else {
        for_pairs<C>([&](int r, int c) { entries[r][c] *= arriving[r][c] * scale; });
    }
    if (s.unrolled.items) take_back(s, p, first_other, scores, entries);
}

// T, or dS.
template <bool OF_SLOPE, class C>
__device__ __forceinline__ void entries_tile(const Slope& s, const Place& p, int64_t first_other, Tile<C>& entries) {
    Tile<C> scores;
    plan_tile(s.pair, s.plan, p, first_other, scores, entries);
    if constexpr (OF_SLOPE) make_slope(s, p, first_other, scores, entries);
}

// sums_i = sum_j of dS, or of T_ij, times vector_j where there is one, over `divisor` where there is one.
template <class C, bool OF_SLOPE>
__global__ void __launch_bounds__(THREADS, 1) sums_kernel(const __grid_constant__ Slope s, const double* vector,
                                                          const double* divisor, const int* done, double* sums, int64_t tiles) {
    const Place p = place_of<C>(blockIdx.x, tiles, s.pair.heads);
    if (done && done[p.item]) return;
    double total[MINE<C>] = {};
    for (int64_t first = 0; first < s.pair.other_size; first += TILE<C>) {
        Tile<C> entries;
        entries_tile<OF_SLOPE>(s, p, first, entries);
        double weights[MINE<C>];
#pragma unroll
        for (int c = 0; c < MINE<C>; ++c) weights[c] = 1;
        if (vector) other_values<C>(vector + p.item * s.pair.other_size, first, s.pair.other_size, 0, weights);
        for_pairs<C>([&](int r, int c) { total[r] += double(entries[r][c]) * weights[c]; });
    }
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r) {
        const double sum = over_others(total[r]);
        const int64_t line = p.first + own_line<C>(r), at = p.item * s.pair.own_size + line;
        if (threadIdx.x % LANES || line >= s.pair.own_size) continue;
        sums[at] = !divisor ? sum : divisor[at] > 0 ? sum / divisor[at] : 0;
    }
}

template <class C, bool OF_SLOPE>
void sums(const char* name, const Slope& s, int64_t items, const double* vector, const double* divisor, const int* done, double* to,
          cudaStream_t stream) {
    const int64_t tiles = tiles_of<C>(s.pair.own_size);
    launch(name, sums_kernel<C, OF_SLOPE>, {unsigned(items * tiles), THREADS, 0, stream}, s, vector, divisor, done, to, tiles);
}

// The plan, in the type of the scores, or dS, in the type that is computed in; both contiguous. The own lines are rows.
template <class C, bool OF_SLOPE>
__global__ void __launch_bounds__(THREADS, 1) write_kernel(const __grid_constant__ Slope s, void* to, DataType type, bool wide,
                                                           int64_t tiles, int64_t other_tiles) {
    const Place p = place_of<C>(blockIdx.x / unsigned(other_tiles), tiles, s.pair.heads);
    const int64_t first = int64_t(blockIdx.x % unsigned(other_tiles)) * TILE<C>;
    Tile<C> entries;
    entries_tile<OF_SLOPE>(s, p, first, entries);
    const int64_t i = p.first + own_line<C>(0), j = first + other_line<C>(0);
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r)
        if (i + r < s.pair.own_size)
            store_run(to, type, (p.item * s.pair.own_size + i + r) * s.pair.other_size + j, entries[r],
                      inside<C>(j, s.pair.other_size), wide);
}

template <class C, bool OF_SLOPE>
void write(const char* name, const Slope& s, int64_t items, void* to, DataType type, cudaStream_t stream) {
    const int64_t tiles = tiles_of<C>(s.pair.own_size), other_tiles = tiles_of<C>(s.pair.other_size);
    launch(name, write_kernel<C, OF_SLOPE>, {unsigned(items * tiles * other_tiles), THREADS, 0, stream}, s, to, type,
           in_groups(to, type, {s.pair.other_size}), tiles, other_tiles);
}

enum class Over { nothing, heads, batch };

struct Move {
    Slope slope;
    Operand values, lines;  // of the others; and of the own lines where distance is what counts
    int64_t width = 0;      // features; a block has as many of them as lines
    Over over = Over::nothing;
    bool adds = false;             // to what stands there already
    int64_t batch = 0, parts = 1;  // of the batch, where results are sums over it: parts, heads
    void* out = nullptr;           // (results, lines, width), contiguous, of the type that is computed in
};

// Lines are padded so that what lies under one another is in different banks.
template <class C>
using MovedLines = C[TILE<C>][TILE<C> + MINE<C>];

template <class C>
struct MoveShared {
    alignas(16) MovedLines<C> entries;  // of the plan or of dS, own lines by others
    alignas(16) MovedLines<C> values;
    alignas(16) MovedLines<C> lines;  // memory for it only where distance is what counts
};

// Features of a tile's lines.
template <class C>
__device__ __forceinline__ void load_lines(const Operand& o, const Place& p, int64_t first, int64_t size, const double* potentials,
                                           int64_t feature, int64_t features, MovedLines<C>& to) {
    constexpr int RUNS = TILE<C> / MINE<C>, NEIGHBOURS = 8;
    const int64_t start = p.batch * o.batch + p.head * o.head;
#pragma unroll 1
    for (int at = int(threadIdx.x); at < TILE<C> * RUNS; at += THREADS) {
        C run[MINE<C>];
        if (o.along_lines) {
            const int line = (at / NEIGHBOURS / TILE<C> * NEIGHBOURS + at % NEIGHBOURS) * MINE<C>, k = at / NEIGHBOURS % TILE<C>;
            const unsigned wanted = feature + k < features ? live_lines<C>(potentials, first + line, size) : 0;
            load_run(o, start + (first + line) * o.line + (feature + k) * o.feature, true, wanted, run);
#pragma unroll
            for (int i = 0; i < MINE<C>; ++i) to[line + i][k] = run[i];
        } else {
            const int line = at / RUNS, k = at % RUNS * MINE<C>;
            const bool live = first + line < size && finite(potentials[first + line]);
            load_run(o, start + (first + line) * o.line + (feature + k) * o.feature, false,
                     live ? places<C>(feature + k, features) : 0, run);
            store_shared(&to[line][k], run);
        }
    }
}

// out_i += sum_j entries_ij v_j, or entries_ij (v_j - x_i).
template <bool DISTANCE, class C>
__device__ __forceinline__ void add_moved(const MoveShared<C>& shared, Tile<C>& out) {
    const int own = own_line<C>(0), feature = other_line<C>(0);
#pragma unroll 1
    for (int j = 0; j < TILE<C>; j += MINE<C>) {
        Pack<C, MINE<C>> entries[MINE<C>];
#pragma unroll
        for (int r = 0; r < MINE<C>; ++r) entries[r] = load_shared<MINE<C>>(&shared.entries[own + r][j]);
#pragma unroll
        for (int i = 0; i < MINE<C>; ++i) {
            const auto values = load_shared<MINE<C>>(&shared.values[j + i][feature]);
            for_pairs<C>([&](int r, int k) {
                if constexpr (DISTANCE)
                    out[r][k] += entries[r][i] * (values[k] - shared.lines[own + r][feature + k]);
                else
                    out[r][k] += entries[r][i] * values[k];
            });
        }
    }
}

template <class C, bool OF_SLOPE>
__global__ void __launch_bounds__(THREADS, OF_SLOPE || sizeof(C) == 8 ? 1 : 2)
    move_kernel(const __grid_constant__ Move m, bool wide, int64_t tiles, int64_t pieces) {
    auto& shared = *dynamic_shared<MoveShared<C>>();
    const Slope& s = m.slope;
    const unsigned heads = unsigned(s.pair.heads), result = blockIdx.x / unsigned(pieces) / unsigned(tiles);
    const int64_t first_feature = int64_t(blockIdx.x % unsigned(pieces)) * TILE<C>;
    const int64_t first_own = int64_t(blockIdx.x / unsigned(pieces) % unsigned(tiles)) * TILE<C>;
    const int64_t of_batch = (m.batch - result / heads + m.parts - 1) / m.parts;
    const int64_t terms = m.over == Over::nothing ? 1 : m.over == Over::heads ? heads : of_batch;
    const bool distance = m.lines.data != nullptr;
    Tile<C> out = {};
#pragma unroll 1
    for (int64_t term = 0; term < terms; ++term) {
        const int64_t batch = m.over == Over::heads ? result : result / heads + (m.over == Over::batch ? term * m.parts : 0);
        const int64_t head = m.over == Over::heads ? term : result % heads;
        const Place p{batch, head, batch * heads + head, first_own};
        const Potentials potentials = potentials_of(s.pair, s.plan, p);
        __syncthreads();
        if (distance)
            load_lines<C>(m.lines, p, first_own, s.pair.own_size, potentials.own, first_feature, m.width, shared.lines);
#pragma unroll 1
        for (int64_t first = 0; first < s.pair.other_size; first += TILE<C>) {
            Tile<C> entries;
            entries_tile<OF_SLOPE>(s, p, first, entries);
            __syncthreads();
#pragma unroll
            for (int r = 0; r < MINE<C>; ++r)
                store_shared(&shared.entries[own_line<C>(r)][other_line<C>(0)], entries[r]);
            load_lines<C>(m.values, p, first, s.pair.other_size, potentials.other, first_feature, m.width, shared.values);
            __syncthreads();
            if (distance)
                add_moved<true>(shared, out);
            else
                add_moved<false>(shared, out);
        }
    }
    const int64_t feature = first_feature + other_line<C>(0);
    const int count = inside<C>(feature, m.width);
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r) {
        const int64_t line = first_own + own_line<C>(r), at = (result * s.pair.own_size + line) * m.width + feature;
        if (line >= s.pair.own_size) continue;
#pragma unroll
        for (int k = 0; k < MINE<C>; ++k) {
            if (distance) out[r][k] *= 2;
            if (m.adds && k < count) out[r][k] += static_cast<const C*>(m.out)[at + k];
        }
        store_run<C>(m.out, at, out[r], count, wide);
    }
}

template <class C, bool OF_SLOPE>
void move(const char* name, const Move& m, cudaStream_t stream) {
    const int64_t tiles = tiles_of<C>(m.slope.pair.own_size), pieces = tiles_of<C>(m.width), heads = m.slope.pair.heads;
    const int64_t results = m.over == Over::heads ? m.batch : m.over == Over::batch ? m.parts * heads : m.batch * heads;
    const size_t bytes = sizeof(MovedLines<C>) * (m.lines.data ? 3 : 2);
    launch(name, move_kernel<C, OF_SLOPE>, {unsigned(results * tiles * pieces), THREADS, bytes, stream}, m,
           in_groups(m.out, computed_type(m.values.type), {m.width}), tiles, pieces);
}

// Sums over the batch are made in parts side by side, which a second launch adds in their order.
constexpr int64_t MOST_PARTS = 32, MOST_PART_NUMBERS = int64_t(1) << 22;

inline int64_t parts_of(int64_t batch, int64_t numbers) {
    int64_t parts = MOST_PART_NUMBERS / (numbers + 1);
    parts = parts < 1 ? 1 : parts > MOST_PARTS ? MOST_PARTS : parts;
    return parts < batch ? parts : batch;
}

template <class C>
__global__ void __launch_bounds__(THREADS) add_parts_kernel(const C* parts, int64_t count, int64_t numbers, C* out) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= numbers) return;
    C sum = 0;
    for (int64_t part = 0; part < count; ++part) sum += parts[part * numbers + at];
    out[at] = sum;
}

// dreference, or a sum over the batch like it. `m.out` is the workspace for the parts.
template <class C>
void move_over_batch(const char* name, const Move& m, void* out, cudaStream_t stream) {
    move<C, true>(name, m, stream);
    const int64_t numbers = m.slope.pair.heads * m.slope.pair.own_size * m.width;
    launch("transport_add_parts", add_parts_kernel<C>, {unsigned(ceil_div(numbers, THREADS)), THREADS, 0, stream},
           static_cast<const C*>(m.out), m.parts, numbers, static_cast<C*>(out));
}

}  // namespace prosma::cuda

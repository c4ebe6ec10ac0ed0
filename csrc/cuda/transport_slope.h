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
__device__ void take_back(const Slope& s, const Place& p, int64_t first_other, const C (&scores)[MINE][MINE],
                          C (&slope)[MINE][MINE]) {
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
        double own_by_column[MINE], own_by_row[MINE], own_weight[MINE], by_column[MINE], by_row[MINE], weight[MINE];
#pragma unroll
        for (int k = 0; k < MINE; ++k) {
            of_line(own_rows, p.first + own_line(k), s.pair.own_size, own_by_column[k], own_by_row[k], own_weight[k]);
            of_line(!own_rows, first_other + other_line(k), s.pair.other_size, by_column[k], by_row[k], weight[k]);
        }
#pragma unroll
        for (int r = 0; r < MINE; ++r)
#pragma unroll
            for (int c = 0; c < MINE; ++c) {
                const double x = double(scores[r][c]) * s.pair.scale;
                const double of_p = x + own_by_column[r] + by_column[c], of_r = x + own_by_row[r] + by_row[c];
                const C share_p = exponential(of_p < 0 ? of_p : 0.0, C(0)), share_r = exponential(of_r < 0 ? of_r : 0.0, C(0));
                const double gamma = own_rows ? weight[c] : own_weight[r], phi = own_rows ? own_weight[r] : weight[c];
                slope[r][c] -= share_p * C(gamma) + share_r * C(phi);
            }
    }
}

// T and dS; without `with_slope` T alone.
template <class C>
__device__ void slope_tile(const Slope& s, const Place& p, int64_t first_other, bool with_slope, C (&plan)[MINE][MINE],
                           C (&slope)[MINE][MINE]) {
    C scores[MINE][MINE];
    plan_tile(s.pair, s.plan, p, first_other, scores, plan);
    if (!with_slope) return;
    const bool added_own = s.plan.added_to_rows == s.pair.own_rows;
    const double* own = (added_own ? s.plan.added : s.plan.top) + p.item * s.pair.own_size;
    const double* other = (added_own ? s.plan.top : s.plan.added) + p.item * s.pair.other_size;
    if (!s.moved_own.data) {
#pragma unroll
        for (int r = 0; r < MINE; ++r)
#pragma unroll
            for (int c = 0; c < MINE; ++c) slope[r][c] = 0;
    } else if (s.moved_other.data) {
        product_tile(s.moved_own, s.moved_other, p, first_other, s.pair.own_size, s.pair.other_size, own, other, s.width, false,
                        slope);
    } else {
        matrix_tile(s.moved_own, p, first_other, s.pair.own_size, s.pair.other_size, own, other, slope);
    }
    const C scale = C(s.pair.scale);
#pragma unroll
    for (int r = 0; r < MINE; ++r)
#pragma unroll
        for (int c = 0; c < MINE; ++c) slope[r][c] *= plan[r][c] * scale;
    if (s.alpha) {
        // Between parts of the plan that share little both are large, and nearly opposite.
        double of_own[MINE], of_other[MINE];
        const double *own_taken = s.pair.own_rows ? s.alpha : s.beta, *other_taken = s.pair.own_rows ? s.beta : s.alpha;
        own_values(own_taken + p.item * s.pair.own_size, p.first, s.pair.own_size, 0, of_own);
        other_values(other_taken + p.item * s.pair.other_size, first_other, s.pair.other_size, 0, of_other);
#pragma unroll
        for (int r = 0; r < MINE; ++r)
#pragma unroll
            for (int c = 0; c < MINE; ++c) slope[r][c] = C(double(slope[r][c]) - double(plan[r][c]) * (of_own[r] + of_other[c]));
    }
    if (s.unrolled.items) take_back(s, p, first_other, scores, slope);
}

// sums_i = sum_j of T * dT / epsilon, or of T_ij vector_j, over `divisor` where there is one.
template <class C>
__global__ void __launch_bounds__(THREADS) sums_kernel(Slope s, const double* vector, const double* divisor, const int* done,
                                                       double* sums, int64_t tiles) {
    const Place p(blockIdx.x, tiles, s.pair.heads);
    if (done && done[p.item]) return;
    double total[MINE] = {};
    for (int64_t first = 0; first < s.pair.other_size; first += TILE) {
        C plan[MINE][MINE], slope[MINE][MINE];
        slope_tile(s, p, first, s.moved_own.data != nullptr, plan, slope);
        double weights[MINE];
#pragma unroll
        for (int c = 0; c < MINE; ++c) weights[c] = 1;
        if (vector) other_values(vector + p.item * s.pair.other_size, first, s.pair.other_size, 0, weights);
#pragma unroll
        for (int r = 0; r < MINE; ++r)
#pragma unroll
            for (int c = 0; c < MINE; ++c) total[r] += s.moved_own.data ? double(slope[r][c]) : double(plan[r][c]) * weights[c];
    }
#pragma unroll
    for (int r = 0; r < MINE; ++r) {
        const double sum = over_others(total[r]);
        const int64_t line = p.first + own_line(r), at = p.item * s.pair.own_size + line;
        if (threadIdx.x % LANES || line >= s.pair.own_size) continue;
        sums[at] = !divisor ? sum : divisor[at] > 0 ? sum / divisor[at] : 0;
    }
}

template <class C>
void sums(const char* name, const Slope& s, int64_t items, const double* vector, const double* divisor, const int* done, double* to,
          cudaStream_t stream) {
    const int64_t tiles = tiles_of(s.pair.own_size);
    launch(name, sums_kernel<C>, {unsigned(items * tiles), THREADS, 0, stream}, s, vector, divisor, done, to, tiles);
}

// The plan, in the type of the scores, or dS, in the type that is computed in; both contiguous. The own lines are rows.
template <class C, bool SLOPE>
__global__ void __launch_bounds__(THREADS) write_kernel(Slope s, void* to, DataType type, int64_t tiles, int64_t other_tiles) {
    const Place p(blockIdx.x / other_tiles, tiles, s.pair.heads);
    const int64_t first = blockIdx.x % other_tiles * TILE;
    C plan[MINE][MINE], slope[MINE][MINE];
    slope_tile(s, p, first, SLOPE, plan, slope);
#pragma unroll
    for (int r = 0; r < MINE; ++r)
#pragma unroll
        for (int c = 0; c < MINE; ++c) {
            const int64_t i = p.first + own_line(r), j = first + other_line(c);
            if (i < s.pair.own_size && j < s.pair.other_size)
                put<C>(to, type, (p.item * s.pair.own_size + i) * s.pair.other_size + j, SLOPE ? slope[r][c] : plan[r][c]);
        }
}

template <class C, bool SLOPE>
void write(const char* name, const Slope& s, int64_t items, void* to, DataType type, cudaStream_t stream) {
    const int64_t tiles = tiles_of(s.pair.own_size), other_tiles = tiles_of(s.pair.other_size);
    launch(name, write_kernel<C, SLOPE>, {unsigned(items * tiles * other_tiles), THREADS, 0, stream}, s, to, type, tiles,
           other_tiles);
}

constexpr int WIDTH = 32;  // features that are moved at a time
constexpr int ACROSS = WIDTH / LANES;

enum class Over { nothing, heads, batch };

struct Move {
    Slope slope;
    bool by_slope = false;    // dS moves them, else the plan
    Operand values, lines;    // of the others; and of the own lines where distance is what counts
    int64_t width = 0;
    Over over = Over::nothing;
    bool adds = false;        // to what stands there already
    int64_t batch = 0, parts = 1;  // of the batch, where results are sums over it: parts, heads
    void* out = nullptr;      // (results, lines, width), contiguous, of the type that is computed in
};

template <class C>
struct MoveShared {
    C entries[TILE][TILE + 1];
    C values[TILE][WIDTH];
    C lines[TILE][WIDTH];
};

template <class C>
__global__ void __launch_bounds__(THREADS) move_kernel(Move m, int64_t tiles, int64_t pieces) {
    auto& shared = *dynamic_shared<MoveShared<C>>();
    const Slope& s = m.slope;
    const int x = int(threadIdx.x) % LANES, heads = s.pair.heads;
    const int64_t feature = int64_t(blockIdx.x) % pieces * WIDTH, tile = int64_t(blockIdx.x) / pieces % tiles;
    const int64_t result = int64_t(blockIdx.x) / pieces / tiles;
    const int64_t first_own = tile * TILE;
    const int64_t of_batch = (m.batch - result / heads + m.parts - 1) / m.parts;
    const int64_t terms = m.over == Over::nothing ? 1 : m.over == Over::heads ? heads : of_batch;
    const bool distance = m.lines.data != nullptr;
    C out[MINE][ACROSS] = {};
    for (int64_t term = 0; term < terms; ++term) {
        const int64_t batch = m.over == Over::heads ? result : result / heads + (m.over == Over::batch ? term * m.parts : 0);
        const int64_t head = m.over == Over::heads ? term : result % heads;
        const Place p(batch, head, heads, first_own);
        const bool added_own = s.plan.added_to_rows == s.pair.own_rows;
        const double* own = (added_own ? s.plan.added : s.plan.top) + p.item * s.pair.own_size;
        const double* other = (added_own ? s.plan.top : s.plan.added) + p.item * s.pair.other_size;
        const auto load_lines = [&](const Operand& o, int64_t first, int64_t size, const double* potentials, C(*to)[WIDTH]) {
            for (int at = int(threadIdx.x); at < TILE * WIDTH; at += THREADS) {
                const int line = at / WIDTH, k = at % WIDTH;
                const bool inside = feature + k < m.width && takes_part(potentials, first + line, size);
                const int64_t from = batch * o.batch + head * o.head + (first + line) * o.line + (feature + k) * o.feature;
                to[line][k] = inside ? number<C>(o.data, o.type, from) : C(0);
            }
        };
        __syncthreads();
        if (distance) load_lines(m.lines, first_own, s.pair.own_size, own, shared.lines);
        for (int64_t first = 0; first < s.pair.other_size; first += TILE) {
            C plan[MINE][MINE], slope[MINE][MINE];
            slope_tile(s, p, first, m.by_slope, plan, slope);
            __syncthreads();
#pragma unroll
            for (int r = 0; r < MINE; ++r)
#pragma unroll
                for (int c = 0; c < MINE; ++c) shared.entries[own_line(r)][other_line(c)] = m.by_slope ? slope[r][c] : plan[r][c];
            load_lines(m.values, first, s.pair.other_size, other, shared.values);
            __syncthreads();
#pragma unroll 2
            for (int j = 0; j < TILE; ++j)
#pragma unroll
                for (int r = 0; r < MINE; ++r) {
                    const C entry = shared.entries[own_line(r)][j];
#pragma unroll
                    for (int k = 0; k < ACROSS; ++k) {
                        const C value = shared.values[j][x + k * LANES];
                        out[r][k] += entry * (distance ? 2 * (value - shared.lines[own_line(r)][x + k * LANES]) : value);
                    }
                }
        }
    }
#pragma unroll
    for (int r = 0; r < MINE; ++r)
#pragma unroll
        for (int k = 0; k < ACROSS; ++k) {
            const int64_t line = first_own + own_line(r), at = feature + x + k * LANES;
            if (line >= s.pair.own_size || at >= m.width) continue;
            C* to = static_cast<C*>(m.out) + (result * s.pair.own_size + line) * m.width + at;
            *to = m.adds ? *to + out[r][k] : out[r][k];
        }
}

template <class C>
void move(const char* name, const Move& m, cudaStream_t stream) {
    const int64_t tiles = tiles_of(m.slope.pair.own_size), pieces = ceil_div(m.width, WIDTH), heads = m.slope.pair.heads;
    const int64_t results = m.over == Over::heads ? m.batch : m.over == Over::batch ? m.parts * heads : m.batch * heads;
    const size_t bytes = sizeof(MoveShared<C>);
    launch(name, move_kernel<C>, {unsigned(results * tiles * pieces), THREADS, bytes, stream}, m, tiles, pieces);
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
    move<C>(name, m, stream);
    const int64_t numbers = m.slope.pair.heads * m.slope.pair.own_size * m.width;
    launch("transport_add_parts", add_parts_kernel<C>, {unsigned(ceil_div(numbers, THREADS)), THREADS, 0, stream},
           static_cast<const C*>(m.out), m.parts, numbers, static_cast<C*>(out));
}

}  // namespace prosma::cuda

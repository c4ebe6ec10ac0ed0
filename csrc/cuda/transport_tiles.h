// Transport on the GPU, a tile of 64 x 64 pairs at a time: scores, shares of the plan, and what belongs to a line.
//
//     S_ij from memory, or <x_i, r_j>, or -|x_i - r_j|^2;      T_ij = exp((S_ij / epsilon + added) - top) * share
//
// Rows and columns are one code: a block has its own lines and walks along the others, and which of the two are rows is
// written in the arguments. A thread has 4 x 4 pairs, its own lines side by side and the others 16 apart, so that the
// lanes of a warp read neighbours. Exponents are formed in double: at |S| / epsilon = 1e4 a float's rounding would change
// the plan by 6e-4. Exponentials and products are made in the type C that is computed in, and sums over tiles in double.
//
// Potentials are counted over epsilon. A line that takes no part has an infinite one, and is never read.
#pragma once

#include "../transport.h"
#include "launch.h"
#include "layout.h"
#include "numbers.h"
#include "reduction.h"

namespace prosma::cuda {

constexpr int THREADS = 256;
constexpr int TILE = 64;
constexpr int LANES = 16;          // threads along the other lines
constexpr int MINE = TILE / LANES; // lines of a thread, in both directions
constexpr int DEPTH_STEP = 16;     // features of a product that are in shared memory at a time

// Lines of numbers: (B, heads, lines, features). Which type they have is asked when they are loaded, a branch that all threads
// take alike, so that kernels exist for float and double only: nvcc took four minutes a file with four types.
struct Operand {
    const void* data = nullptr;
    int64_t batch = 0, head = 0, line = 0, feature = 0;  // strides in elements
    DataType type = DataType::float32;
    int64_t start = 0;  // of a product: where line 0 is
};

// Scores as they are seen from one side. Without `other` the own lines are rows or columns of a matrix of scores.
struct Pairing {
    Operand own, other;
    int64_t own_size = 0, other_size = 0, depth = 0;
    int heads = 1;
    bool own_rows = true, distance = false;
    double scale = 1;  // 1 / epsilon
};

template <class C>
__device__ __forceinline__ C number(const void* data, DataType type, int64_t offset) {
    if constexpr (sizeof(C) == 8) return static_cast<const double*>(data)[offset];
    if (type == DataType::float16) return C(to_computed(static_cast<const float16*>(data)[offset]));
    if (type == DataType::bfloat16) return C(to_computed(static_cast<const bfloat16*>(data)[offset]));
    return C(static_cast<const float*>(data)[offset]);
}

template <class C>
__device__ __forceinline__ void put(void* data, DataType type, int64_t offset, C value) {
    if constexpr (sizeof(C) == 8)
        static_cast<double*>(data)[offset] = value;
    else if (type == DataType::float16)
        static_cast<float16*>(data)[offset] = to_stored<float16>(value);
    else if (type == DataType::bfloat16)
        static_cast<bfloat16*>(data)[offset] = to_stored<bfloat16>(value);
    else
        static_cast<float*>(data)[offset] = value;
}

inline DataType computed_type(DataType type) { return type == DataType::float64 ? type : DataType::float32; }

// Calls `body` with a number of the type that is computed in.
template <class Body>
void for_computed(DataType type, const Body& body) {
#if !defined(PROSMA_FEW_TYPES)
    if (type == DataType::float64) return body(double{});
#endif
    if (type == DataType::float64) throw std::invalid_argument("this build has no float64");
    body(float{});
}

// Where a block is: its item, and its own lines.
struct Place {
    int64_t batch, head, item, first;

    __device__ Place(int64_t index, int64_t tiles, int heads)
        : batch(index / tiles / heads), head(index / tiles % heads), item(index / tiles), first(index % tiles * TILE) {}
    __device__ Place(int64_t batch, int64_t head, int heads, int64_t first)
        : batch(batch), head(head), item(batch * heads + head), first(first) {}
};

__device__ __forceinline__ int own_line(int r) { return int(threadIdx.x) / LANES * MINE + r; }
__device__ __forceinline__ int other_line(int c) { return int(threadIdx.x) % LANES + LANES * c; }

__device__ __forceinline__ bool finite(double value) { return value - value == 0; }
__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

// Whether a line takes part, as the potentials of its side say.
__device__ __forceinline__ bool takes_part(const double* potentials, int64_t line, int64_t size) {
    return line < size && finite(potentials[line]);
}

template <class C>
struct Chunk {
    C own[DEPTH_STEP][TILE + 4];
    C other[DEPTH_STEP][TILE + 4];
};

template <class C>
__device__ void load_chunk(const Operand& o, int64_t start, int64_t first, int64_t size, const double* potentials, int64_t feature,
                           int64_t features, C (*to)[TILE + 4]) {
    const int k = int(threadIdx.x) % DEPTH_STEP;
    for (int line = int(threadIdx.x) / DEPTH_STEP; line < TILE; line += THREADS / DEPTH_STEP) {
        const bool inside = feature + k < features && takes_part(potentials, first + line, size);
        to[k][line] = inside ? number<C>(o.data, o.type, start + (first + line) * o.line + (feature + k) * o.feature) : C(0);
    }
}

// sum_d x_id y_jd, or -sum_d (x_id - y_jd)^2, of a tile. The order of the sum is the same from both sides.
template <class C>
__device__ void product_tile(const Operand& own, const Operand& other, const Place& p, int64_t first_other, int64_t own_size,
                             int64_t other_size, const double* own_potentials, const double* other_potentials, int64_t depth,
                             bool distance, C (&tile)[MINE][MINE]) {
    auto& chunk = shared_object<Chunk<C>>();
    const int64_t own_start = own.start + p.batch * own.batch + p.head * own.head;
    const int64_t other_start = other.start + p.batch * other.batch + p.head * other.head;
#pragma unroll
    for (int r = 0; r < MINE; ++r)
#pragma unroll
        for (int c = 0; c < MINE; ++c) tile[r][c] = 0;
#pragma unroll 1
    for (int64_t d = 0; d < depth; d += DEPTH_STEP) {
        __syncthreads();
        load_chunk(own, own_start, p.first, own_size, own_potentials, d, depth, chunk.own);
        load_chunk(other, other_start, first_other, other_size, other_potentials, d, depth, chunk.other);
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < DEPTH_STEP; ++k) {
            C x[MINE], y[MINE];
#pragma unroll
            for (int r = 0; r < MINE; ++r) x[r] = chunk.own[k][own_line(r)];
#pragma unroll
            for (int c = 0; c < MINE; ++c) y[c] = chunk.other[k][other_line(c)];
#pragma unroll
            for (int r = 0; r < MINE; ++r)
#pragma unroll
                for (int c = 0; c < MINE; ++c) {
                    const C difference = x[r] - y[c];
                    tile[r][c] += distance ? -difference * difference : x[r] * y[c];
                }
        }
    }
}

// A tile of a matrix whose lines and features are lines of the two sides.
template <class C>
__device__ void matrix_tile(const Operand& m, const Place& p, int64_t first_other, int64_t own_size, int64_t other_size,
                            const double* own_potentials, const double* other_potentials, C (&tile)[MINE][MINE]) {
    const int64_t start = p.batch * m.batch + p.head * m.head;
#pragma unroll
    for (int c = 0; c < MINE; ++c) {
        const int64_t j = first_other + other_line(c);
        const bool inside = takes_part(other_potentials, j, other_size);
#pragma unroll
        for (int r = 0; r < MINE; ++r) {
            const int64_t i = p.first + own_line(r);
            const bool both = inside && takes_part(own_potentials, i, own_size);
            tile[r][c] = both ? number<C>(m.data, m.type, start + i * m.line + j * m.feature) : C(0);
        }
    }
}

// Potentials of the item's lines say who takes part.
template <class C>
__device__ __forceinline__ void score_tile(const Pairing& pair, const Place& p, int64_t first_other, const double* own_potentials,
                                           const double* other_potentials, C (&tile)[MINE][MINE]) {
    if (pair.other.data)
        product_tile(pair.own, pair.other, p, first_other, pair.own_size, pair.other_size, own_potentials, other_potentials,
                        pair.depth, pair.distance, tile);
    else
        matrix_tile(pair.own, p, first_other, pair.own_size, pair.other_size, own_potentials, other_potentials, tile);
}

__device__ __forceinline__ float exponential(double x, float) { return expf(float(x)); }
__device__ __forceinline__ double exponential(double x, double) { return exp(x); }

// `values` of the thread's lines; `otherwise` where a line ends.
__device__ __forceinline__ void own_values(const double* values, int64_t first, int64_t size, double otherwise,
                                           double (&to)[MINE]) {
#pragma unroll
    for (int r = 0; r < MINE; ++r) to[r] = first + own_line(r) < size ? values[first + own_line(r)] : otherwise;
}
__device__ __forceinline__ void other_values(const double* values, int64_t first, int64_t size, double otherwise,
                                             double (&to)[MINE]) {
#pragma unroll
    for (int c = 0; c < MINE; ++c) to[c] = first + other_line(c) < size ? values[first + other_line(c)] : otherwise;
}

// A plan by potentials that make it: T_ij = exp((S_ij / epsilon + added) - top) * share, where `added` belongs to one side and
// `top` and `share` (1 where there is none) to the other, all of them (items, lines).
struct Anchored {
    const double *added = nullptr, *top = nullptr, *share = nullptr;
    bool added_to_rows = true;
};

// Above any exponent of a plan, and finite when summed: e^69.
constexpr double HIGHEST = 69;

template <class C>
__device__ void plan_tile(const Pairing& pair, const Anchored& plan, const Place& p, int64_t first_other, C (&scores)[MINE][MINE],
                          C (&entries)[MINE][MINE]) {
    const bool added_own = plan.added_to_rows == pair.own_rows;
    const int64_t own_start = p.item * pair.own_size, other_start = p.item * pair.other_size;
    const double* own = (added_own ? plan.added : plan.top) + own_start;
    const double* other = (added_own ? plan.top : plan.added) + other_start;
    score_tile(pair, p, first_other, own, other, scores);
    double by_own[MINE], by_other[MINE], share[MINE];
    own_values(own, p.first, pair.own_size, infinity(), by_own);
    other_values(other, first_other, pair.other_size, infinity(), by_other);
#pragma unroll
    for (int k = 0; k < MINE; ++k) share[k] = 1;
    if (plan.share && added_own) other_values(plan.share + other_start, first_other, pair.other_size, 0, share);
    if (plan.share && !added_own) own_values(plan.share + own_start, p.first, pair.own_size, 0, share);
#pragma unroll
    for (int r = 0; r < MINE; ++r)
#pragma unroll
        for (int c = 0; c < MINE; ++c) {
            const double x = double(scores[r][c]) * pair.scale;
            const double exponent = added_own ? (x + by_own[r]) - by_other[c] : (x + by_other[c]) - by_own[r];
            const C entry = exponential(exponent < HIGHEST ? exponent : HIGHEST, C(0)) * C(share[added_own ? c : r]);
            entries[r][c] = finite(by_own[r]) && finite(by_other[c]) ? entry : C(0);
        }
}

// Over the threads that share their own lines.
template <class T, class Combine = Add>
__device__ __forceinline__ T over_others(T value, Combine combine = {}) {
    return over_lanes<LANES>(value, combine);
}

inline Operand matrix_of(const Matrices& m, bool own_rows, DataType type) {
    return {m.data, m.strides[0], 0, m.strides[own_rows ? 1 : 2], m.strides[own_rows ? 2 : 1], type};
}
inline Operand lines_of(const Matrices& m, DataType type) { return {m.data, m.strides[0], 0, m.strides[1], m.strides[2], type}; }
// (heads, lines, features), or (B, heads, lines, features), contiguous, of the type that is computed in.
inline Operand shared_lines(const void* data, int64_t lines, int64_t features, DataType type) {
    return {data, 0, lines * features, features, 1, computed_type(type)};
}
inline Operand items_lines(const void* data, int64_t heads, int64_t lines, int64_t features, DataType type) {
    return {data, heads * lines * features, lines * features, features, 1, computed_type(type)};
}

// Of forward, backward and apply alike.
template <class Arguments>
Pairing pairing(const Arguments& a, const Matrices& scores, bool own_rows) {
    Pairing pair;
    pair.own_size = own_rows ? a.rows : a.columns;
    pair.other_size = own_rows ? a.columns : a.rows;
    pair.heads = int(a.heads);
    pair.own_rows = own_rows;
    pair.scale = 1 / a.epsilon;
    if (scores.data) {
        pair.own = matrix_of(scores, own_rows, a.type);
        return pair;
    }
    const Operand tokens = lines_of(a.tokens, a.type), supports = shared_lines(a.reference, a.columns, a.depth, a.type);
    pair.own = own_rows ? tokens : supports;
    pair.other = own_rows ? supports : tokens;
    pair.depth = a.depth;
    pair.distance = a.squared_distance;
    return pair;
}

// Hands out parts of the caller's workspace. Without memory it only measures.
class Workspace {
public:
    explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <class E>
    E* take(int64_t count) {
        const size_t start = used_;
        used_ += (size_t(count) * sizeof(E) + 127) / 128 * 128;
        return memory_ ? reinterpret_cast<E*>(memory_ + start) : nullptr;
    }
    size_t used() const { return used_; }

private:
    char* memory_;
    size_t used_ = 0;
};

inline int64_t tiles_of(int64_t lines) { return ceil_div(lines, TILE); }

}  // namespace prosma::cuda

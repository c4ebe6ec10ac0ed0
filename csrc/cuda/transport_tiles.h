// Transport on the GPU, a tile of 64 x 64 pairs at a time: scores, shares of the plan, and what belongs to a line.
//
//     S_ij from memory, or <x_i, r_j>, or -|x_i - r_j|^2;      T_ij = exp((S_ij / epsilon + added) - top) * share
//
// Rows and columns are one code: a block has its own lines and walks along the others, and which of the two are rows is
// written in the arguments. A thread has 4 x 4 pairs, side by side in both directions, so that numbers are moved 16 bytes at
// a time wherever they lie side by side in memory too. In double it has 2 x 2: the registers do not hold the sums of more
// beside what they are made of. Exponents are formed in double: at |S| / epsilon = 1e4 a float's rounding would change
// the plan by 6e-4. Exponentials and products are made in the type C that is computed in, and sums over tiles in double.
//
// Potentials are counted over epsilon. A line that takes no part has an infinite one, and is never used.
#pragma once

#include <initializer_list>

#include "../transport.h"
#include "launch.h"
#include "layout.h"
#include "numbers.h"
#include "reduction.h"

namespace prosma::cuda {

// By its launch bounds a kernel has 255 registers a thread where one block a multiprocessor is enough, and 128 where two have to
// fit. It is two wherever nothing spills then.
constexpr int THREADS = 256;
constexpr int LANES = 16;       // threads along the own lines, and along the others
constexpr int DEPTH_STEP = 16;  // features of a product that are in shared memory at a time

// Lines of a thread in both directions, and of a block.
template <class C>
constexpr int MINE = WIDEST<C>;
template <class C>
constexpr int TILE = LANES * MINE<C>;

template <class C>
struct Tile {
    C pairs[MINE<C>][MINE<C>];
    __device__ __forceinline__ C (&operator[](int r))[MINE<C>] { return pairs[r]; }
};

// body(r, c) for every pair of a thread.
template <class C, class Body>
__device__ __forceinline__ void for_pairs(const Body& body) {
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r)
#pragma unroll
        for (int c = 0; c < MINE<C>; ++c) body(r, c);
}

// Lines of numbers: (B, heads, lines, features). Which type they have is asked when they are loaded, a branch that all threads
// take alike, so that kernels exist for float and double only: nvcc took four minutes a file with four types.
struct Operand {
    const void* data = nullptr;
    int64_t batch = 0, head = 0, line = 0, feature = 0;  // strides in elements
    DataType type = DataType::float32;
    bool along_lines = false;  // lines lie closer together than features
    bool wide = false;         // what lies closer together can be read MINE at a time
    int64_t start = 0;         // of a product: where line 0 is
};

// Whether MINE numbers side by side are one access everywhere, with these strides between them.
inline bool in_groups(const void* data, DataType type, std::initializer_list<int64_t> strides) {
    const int numbers = type == DataType::float64 ? MINE<double> : MINE<float>;
    const int bytes = type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
    for (const int64_t stride : strides)
        if (stride % numbers) return false;
    return aligned(numbers * bytes, data);
}

inline Operand operand(const void* data, int64_t batch, int64_t head, int64_t line, int64_t feature, DataType type) {
    Operand o{data, batch, head, line, feature, type};
    o.along_lines = feature != 1 && line < feature;
    o.wide = (o.along_lines ? line : feature) == 1 && in_groups(data, type, {batch, head, o.along_lines ? feature : line});
    return o;
}

// Scores as they are seen from one side. Without `other` the own lines are rows or columns of a matrix of scores.
struct Pairing {
    Operand own, other;
    int64_t own_size = 0, other_size = 0, depth = 0;
    int heads = 1;
    bool own_rows = true, distance = false;
    double scale = 1;  // 1 / epsilon
};

// COUNT numbers, `step` apart. `wanted` has a bit for each; the others are 0 and not read.
template <class T, class C, int COUNT>
__device__ __forceinline__ void load_run(const void* data, int64_t at, int64_t step, unsigned wanted, bool wide, C (&to)[COUNT]) {
    const T* from = static_cast<const T*>(data) + at;
    if (wide && wanted == (1u << COUNT) - 1) {
        const Pack<T, COUNT> pack = load<COUNT>(from);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) to[k] = to_computed(pack[k]);
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) to[k] = wanted >> k & 1 ? to_computed(from[k * step]) : C(0);
    }
}

// Of one feature of neighbouring lines, or of one line's neighbouring features.
template <class C, int COUNT>
__device__ __forceinline__ void load_run(const Operand& o, int64_t at, bool of_lines, unsigned wanted, C (&to)[COUNT]) {
    const int64_t step = of_lines ? o.line : o.feature;
    const bool wide = o.wide && of_lines == o.along_lines;
    if constexpr (sizeof(C) == 8)
        load_run<double>(o.data, at, step, wanted, wide, to);
    else if (o.type == DataType::float16)
        load_run<float16>(o.data, at, step, wanted, wide, to);
    else if (o.type == DataType::bfloat16)
        load_run<bfloat16>(o.data, at, step, wanted, wide, to);
    else
        load_run<float>(o.data, at, step, wanted, wide, to);
}

// To COUNT places of shared memory side by side.
template <class C, int COUNT>
__device__ __forceinline__ void store_shared(C* to, const C (&from)[COUNT]) {
    Pack<C, COUNT> pack;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) pack[k] = from[k];
    store(to, pack);
}

// To the first `inside` of COUNT places of global memory side by side.
template <class T, class C, int COUNT>
__device__ __forceinline__ void store_run(void* data, int64_t at, const C (&from)[COUNT], int inside, bool wide) {
    T* to = static_cast<T*>(data) + at;
    if (wide && inside >= COUNT) {
        Pack<T, COUNT> pack;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) pack[k] = to_stored<T>(from[k]);
        store_whole(to, pack);
    } else {
#pragma unroll
        for (int k = 0; k < COUNT; ++k)
            if (k < inside) to[k] = to_stored<T>(from[k]);
    }
}

template <class C, int COUNT>
__device__ __forceinline__ void store_run(void* data, DataType type, int64_t at, const C (&from)[COUNT], int inside, bool wide) {
    if constexpr (sizeof(C) == 8)
        store_run<double>(data, at, from, inside, wide);
    else if (type == DataType::float16)
        store_run<float16>(data, at, from, inside, wide);
    else if (type == DataType::bfloat16)
        store_run<bfloat16>(data, at, from, inside, wide);
    else
        store_run<float>(data, at, from, inside, wide);
}

inline DataType computed_type(DataType type) { return type == DataType::float64 ? type : DataType::float32; }

// What `body` makes of a number of the type that is computed in.
template <class Body>
auto for_computed(DataType type, const Body& body) {
#if !defined(PROSMA_FEW_TYPES)
    if (type == DataType::float64) return body(double{});
#endif
    if (type == DataType::float64) throw std::invalid_argument("this build has no float64");
    return body(float{});
}

// Where a block is: its item, and its own lines.
struct Place {
    int64_t batch, head, item, first;
};

template <class C>
__device__ __forceinline__ Place place_of(unsigned index, int64_t tiles, int heads) {
    const unsigned item = index / unsigned(tiles);
    return {item / unsigned(heads), item % unsigned(heads), item, int64_t(index % unsigned(tiles)) * TILE<C>};
}

template <class C>
__device__ __forceinline__ int own_line(int r) {
    return int(threadIdx.x) / LANES * MINE<C> + r;
}
template <class C>
__device__ __forceinline__ int other_line(int c) {
    return int(threadIdx.x) % LANES * MINE<C> + c;
}

__device__ __forceinline__ bool finite(double value) { return value - value == 0; }
__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

// How many of MINE places from `at` on are there: none where it is not above 0.
template <class C>
__device__ __forceinline__ int inside(int64_t at, int64_t size) {
    return size - at < MINE<C> ? int(size - at) : MINE<C>;
}

// The same as a bit each.
template <class C>
__device__ __forceinline__ unsigned places(int64_t at, int64_t size) {
    const int count = inside<C>(at, size);
    return count > 0 ? (1u << count) - 1 : 0;
}

// `values` of MINE lines from `line` on; `otherwise` where they end.
template <class C, class To>
__device__ __forceinline__ void line_values(const double* values, int64_t line, int64_t size, double otherwise, To (&to)[MINE<C>]) {
    const int count = inside<C>(line, size);
#pragma unroll
    for (int k = 0; k < MINE<C>; ++k) to[k] = To(k < count ? values[line + k] : otherwise);
}
template <class C>
__device__ __forceinline__ void own_values(const double* values, int64_t first, int64_t size, double otherwise,
                                           double (&to)[MINE<C>]) {
    line_values<C>(values, first + own_line<C>(0), size, otherwise, to);
}
template <class C>
__device__ __forceinline__ void other_values(const double* values, int64_t first, int64_t size, double otherwise,
                                             double (&to)[MINE<C>]) {
    line_values<C>(values, first + other_line<C>(0), size, otherwise, to);
}

// Of an item's own lines, and of the others. They say which take part.
struct Potentials {
    const double *own, *other;
};

// Which of MINE lines from `line` on take part: a bit each.
template <class C>
__device__ __forceinline__ unsigned live_lines(const double* potentials, int64_t line, int64_t size) {
    const int count = inside<C>(line, size);
    unsigned live = 0;
#pragma unroll
    for (int k = 0; k < MINE<C>; ++k)
        if (k < count && finite(potentials[line + k])) live |= 1u << k;
    return live;
}

template <class C>
struct Chunk {
    using Features = C[DEPTH_STEP][TILE<C> + MINE<C>];
    alignas(16) Features own, other;
};

// What a thread loads of one side of a product: at each step MINE features of a line, or a feature of MINE lines.
template <class C>
class Side {
public:
    __device__ __forceinline__ Side(const Operand& o, const Place& p, int64_t first, int64_t size, const double* potentials)
        : o_(o), live_(live_lines<C>(potentials, first + line(), size)),
          at_(o.start + p.batch * o.batch + p.head * o.head + (first + line()) * o.line + feature() * o.feature) {
        static_assert(THREADS == LANES * DEPTH_STEP, "a thread loads MINE numbers");
    }

    __device__ __forceinline__ void load(int64_t step, int64_t depth) {
        const unsigned features = places<C>(step + feature(), depth);
        const unsigned wanted = o_.along_lines ? (features ? live_ : 0) : live_ & 1 ? features : 0;
        load_run(o_, at_ + step * o_.feature, o_.along_lines, wanted, run_);
    }

    __device__ __forceinline__ void store(typename Chunk<C>::Features& to) const {
        if (o_.along_lines) {
            store_shared(&to[feature()][line()], run_);
        } else {
#pragma unroll
            for (int k = 0; k < MINE<C>; ++k) to[feature() + k][line()] = run_[k];
        }
    }

private:
    static constexpr int RUNS = DEPTH_STEP / MINE<C>;  // of a line

    // Of the tile, and of the step: the first that the thread loads.
    __device__ __forceinline__ int line() const {
        return o_.along_lines ? int(threadIdx.x) % LANES * MINE<C> : int(threadIdx.x) / RUNS;
    }
    __device__ __forceinline__ int feature() const {
        return o_.along_lines ? int(threadIdx.x) / LANES : int(threadIdx.x) % RUNS * MINE<C>;
    }

    const Operand& o_;
    unsigned live_;
    int64_t at_;
    C run_[MINE<C>];
};

template <bool DISTANCE, class C>
__device__ __forceinline__ void add_products(const Chunk<C>& chunk, Tile<C>& tile) {
#pragma unroll 4
    for (int k = 0; k < DEPTH_STEP; ++k) {
        const auto x = load_shared<MINE<C>>(&chunk.own[k][own_line<C>(0)]);
        const auto y = load_shared<MINE<C>>(&chunk.other[k][other_line<C>(0)]);
        for_pairs<C>([&](int r, int c) {
            if constexpr (DISTANCE)
                tile[r][c] -= (x[r] - y[c]) * (x[r] - y[c]);
            else
                tile[r][c] += x[r] * y[c];
        });
    }
}

// sum_d x_id y_jd, or -sum_d (x_id - y_jd)^2, of a tile. The order of the sum is the same from both sides. The next numbers are
// loaded while the present ones are multiplied.
template <class C>
__device__ __forceinline__ void product_tile(const Operand& own, const Operand& other, const Place& p, int64_t first_other,
                                             int64_t own_size, int64_t other_size, const Potentials& potentials, int64_t depth,
                                             bool distance, Tile<C>& tile) {
    auto& chunk = shared_object<Chunk<C>>();
    Side<C> x(own, p, p.first, own_size, potentials.own), y(other, p, first_other, other_size, potentials.other);
    for_pairs<C>([&](int r, int c) { tile[r][c] = 0; });
    x.load(0, depth);
    y.load(0, depth);
#pragma unroll 1
    for (int64_t step = 0; step < depth; step += DEPTH_STEP) {
        __syncthreads();
        x.store(chunk.own);
        y.store(chunk.other);
        __syncthreads();
        if (step + DEPTH_STEP < depth) {
            x.load(step + DEPTH_STEP, depth);
            y.load(step + DEPTH_STEP, depth);
        }
        if (distance)
            add_products<true>(chunk, tile);
        else
            add_products<false>(chunk, tile);
    }
}

// A tile of a matrix whose lines and features are lines of the two sides.
template <class C>
__device__ __forceinline__ void matrix_tile(const Operand& m, const Place& p, int64_t first_other, int64_t own_size,
                                            int64_t other_size, const Potentials& potentials, Tile<C>& tile) {
    const int64_t i = p.first + own_line<C>(0), j = first_other + other_line<C>(0);
    const int64_t at = p.batch * m.batch + p.head * m.head + i * m.line + j * m.feature;
    const unsigned own = live_lines<C>(potentials.own, i, own_size), other = live_lines<C>(potentials.other, j, other_size);
    if (m.along_lines) {
#pragma unroll
        for (int c = 0; c < MINE<C>; ++c) {
            C run[MINE<C>];
            load_run(m, at + c * m.feature, true, other >> c & 1 ? own : 0, run);
#pragma unroll
            for (int r = 0; r < MINE<C>; ++r) tile[r][c] = run[r];
        }
    } else {
#pragma unroll
        for (int r = 0; r < MINE<C>; ++r) load_run(m, at + r * m.line, false, own >> r & 1 ? other : 0, tile[r]);
    }
}

template <class C>
__device__ __forceinline__ void score_tile(const Pairing& pair, const Place& p, int64_t first_other, const Potentials& potentials,
                                           Tile<C>& tile) {
    if (pair.other.data)
        product_tile(pair.own, pair.other, p, first_other, pair.own_size, pair.other_size, potentials, pair.depth, pair.distance,
                     tile);
    else
        matrix_tile(pair.own, p, first_other, pair.own_size, pair.other_size, potentials, tile);
}

__device__ __forceinline__ float exponential(double x, float) { return expf(float(x)); }
__device__ __forceinline__ double exponential(double x, double) { return exp(x); }

// A plan by potentials that make it: T_ij = exp((S_ij / epsilon + added) - top) * share, where `added` belongs to one side and
// `top` and `share` (1 where there is none) to the other, all of them (items, lines).
struct Anchored {
    const double *added = nullptr, *top = nullptr, *share = nullptr;
    bool added_to_rows = true;
};

__device__ __forceinline__ Potentials potentials_of(const Pairing& pair, const Anchored& plan, const Place& p) {
    const bool added_own = plan.added_to_rows == pair.own_rows;
    return {(added_own ? plan.added : plan.top) + p.item * pair.own_size,
            (added_own ? plan.top : plan.added) + p.item * pair.other_size};
}

// Above any exponent of a plan, and finite when summed: e^69.
constexpr double HIGHEST = 69;

template <class C>
__device__ __forceinline__ void plan_tile(const Pairing& pair, const Anchored& plan, const Place& p, int64_t first_other,
                                          Tile<C>& scores, Tile<C>& entries) {
    const bool added_own = plan.added_to_rows == pair.own_rows;
    const Potentials potentials = potentials_of(pair, plan, p);
    score_tile(pair, p, first_other, potentials, scores);
    double by_own[MINE<C>], by_other[MINE<C>];
    own_values<C>(potentials.own, p.first, pair.own_size, infinity(), by_own);
    other_values<C>(potentials.other, first_other, pair.other_size, infinity(), by_other);
    C share[MINE<C>];
#pragma unroll
    for (int k = 0; k < MINE<C>; ++k) share[k] = 1;
    if (plan.share && added_own)
        line_values<C>(plan.share + p.item * pair.other_size, first_other + other_line<C>(0), pair.other_size, 0, share);
    if (plan.share && !added_own)
        line_values<C>(plan.share + p.item * pair.own_size, p.first + own_line<C>(0), pair.own_size, 0, share);
    for_pairs<C>([&](int r, int c) {
        const double x = double(scores[r][c]) * pair.scale;
        const double exponent = added_own ? (x + by_own[r]) - by_other[c] : (x + by_other[c]) - by_own[r];
        const C entry = exponential(exponent < HIGHEST ? exponent : HIGHEST, C(0)) * (added_own ? share[c] : share[r]);
        entries[r][c] = finite(by_own[r]) && finite(by_other[c]) ? entry : C(0);
    });
}

// Over the threads that share their own lines.
template <class T, class Combine = Add>
__device__ __forceinline__ T over_others(T value, Combine combine = {}) {
    return over_lanes<LANES>(value, combine);
}

inline Operand matrix_of(const Matrices& m, bool own_rows, DataType type) {
    return operand(m.data, m.strides[0], 0, m.strides[own_rows ? 1 : 2], m.strides[own_rows ? 2 : 1], type);
}
inline Operand lines_of(const Matrices& m, DataType type) {
    return operand(m.data, m.strides[0], 0, m.strides[1], m.strides[2], type);
}
// (heads, lines, features), or (B, heads, lines, features), contiguous, of the type that is computed in.
inline Operand shared_lines(const void* data, int64_t lines, int64_t features, DataType type) {
    return operand(data, 0, lines * features, features, 1, computed_type(type));
}
inline Operand items_lines(const void* data, int64_t heads, int64_t lines, int64_t features, DataType type) {
    return operand(data, heads * lines * features, lines * features, features, 1, computed_type(type));
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

template <class C>
int64_t tiles_of(int64_t lines) {
    return ceil_div(lines, TILE<C>);
}

}  // namespace prosma::cuda

// The mixed maps of a tile, and the way back from a map's gradient to those of its parts and of the weights.
//
// Everything stands in shared memory as rows of pixels, a row a class, and a lane works on its own pixels: no barrier. Only
// the gradients of weights go across pixels: they are products of the gradient's rows with the parts', and there a
// lane takes 3 x 3 entries over all of the tile's pixels, 9 multiply-adds for 6 numbers read.
#pragma once

#include "logit_mixing_sums.h"

namespace prosma::cuda::mixing {

constexpr int AT_ONCE = 4;        // classes that a product forms together
constexpr int ENTRIES = 3;        // rows and columns of a lane's part of a weight's gradient

struct Subset {
    unsigned levels;  // as bits
    int row;          // of its first member
    __device__ __forceinline__ Subset(const Problem& p, int number)
        : levels(p.subset_levels[number]), row(p.subset_row[number]) {}
    __device__ __forceinline__ bool holds(int level) const { return levels >> level & 1; }
};

template <class T>
__device__ __forceinline__ const T* numbers(const void* stored) {
    return static_cast<const T*>(stored);
}

// a += factor * b
template <class T>
__device__ __forceinline__ void add_to(Pixels<T>& a, T factor, const Pixels<T>& b) {
#pragma unroll
    for (int i = 0; i < WIDEST<T>; ++i) a[i] += factor * b[i];
}
template <class T>
__device__ __forceinline__ void add_to(Pixels<T>& a, const Pixels<T>& factor, const Pixels<T>& b) {
#pragma unroll
    for (int i = 0; i < WIDEST<T>; ++i) a[i] += factor[i] * b[i];
}

template <class T, bool MULTIPLY>
__device__ __forceinline__ void combine(const Tile<T>& tile, const Subset& subset) {
    const Problem& p = tile.p;
    for (int c = 0; c < p.classes; ++c) {
        Pixels<T> map = filled(T(MULTIPLY ? 1 : 0));
        for (int level = 0; level < p.levels; ++level) {
            if (!subset.holds(level)) continue;
            const Pixels<T> part = tile.part(level, c);
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) map[i] = MULTIPLY ? map[i] * part[i] : map[i] + part[i];
        }
        tile.store(tile.shared.map, c, map);
    }
}

template <class T>
__device__ __forceinline__ void concatenate(const Tile<T>& tile, const Subset& subset, int number) {
    const Problem& p = tile.p;
    const int64_t columns = int64_t(p.members) * p.classes;
    for (int first = 0; first < p.classes; first += AT_ONCE) {
        Pixels<T> sums[AT_ONCE];
        const T* weights[AT_ONCE];
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q) {
            const int c = first + q < p.classes ? first + q : p.classes - 1;
            sums[q] = filled(p.concat_bias ? __ldg(numbers<T>(p.concat_bias) + c * p.subsets + number) : T(0));
            weights[q] = numbers<T>(p.concat_weight) + c * columns + int64_t(subset.row) * p.classes;
        }
        for (int level = 0; level < p.levels; ++level) {
            if (!subset.holds(level)) continue;
            for (int k = 0; k < p.classes; ++k) {
                const Pixels<T> part = tile.part(level, k);
#pragma unroll
                for (int q = 0; q < AT_ONCE; ++q) add_to(sums[q], __ldg(weights[q] + k), part);
            }
#pragma unroll
            for (int q = 0; q < AT_ONCE; ++q) weights[q] += p.classes;
        }
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q)
            if (first + q < p.classes) tile.store(tile.shared.map, first + q, sums[q]);
    }
}

// The share of each part at each pixel, in the rows `shares`.
template <class T>
__device__ __forceinline__ void attend(const Tile<T>& tile, const Subset& subset) {
    const Problem& p = tile.p;
    T* const shares = tile.shared.shares;
    Pixels<T> peak, total = filled(T(0));
    int row = subset.row;
    for (int level = 0; level < p.levels; ++level) {
        if (!subset.holds(level)) continue;
        Pixels<T> score = filled(p.attention_bias ? __ldg(numbers<T>(p.attention_bias) + row) : T(0));
        const T* const weights = numbers<T>(p.attention_weight) + int64_t(row) * p.classes;
        for (int c = 0; c < p.classes; ++c) add_to(score, __ldg(weights + c), tile.part(level, c));
        tile.store(shares, level, score);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) peak[i] = row == subset.row || score[i] > peak[i] ? score[i] : peak[i];
        ++row;
    }
    for (int level = 0; level < p.levels; ++level) {
        if (!subset.holds(level)) continue;
        Pixels<T> score = tile.load(shares, level);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            score[i] = exponential(score[i] - peak[i]);
            total[i] += score[i];
        }
        tile.store(shares, level, score);
    }
    for (int level = 0; level < p.levels; ++level) {
        if (!subset.holds(level)) continue;
        Pixels<T> share = tile.load(shares, level);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) share[i] /= total[i];
        tile.store(shares, level, share);
    }
}

template <class T>
__device__ __forceinline__ void weigh(const Tile<T>& tile, const Subset& subset) {
    const Problem& p = tile.p;
    for (int c = 0; c < p.classes; ++c) {
        Pixels<T> map = filled(T(0));
        for (int level = 0; level < p.levels; ++level)
            if (subset.holds(level))
                add_to(map, tile.load(tile.shared.shares, level), tile.part(level, c));
        tile.store(tile.shared.map, c, map);
    }
}

template <class T>
__device__ void mix(const Tile<T>& tile, Mix operation, int number) {
    const Subset subset(tile.p, number);
    switch (operation) {
        case Mix::add: return combine<T, false>(tile, subset);
        case Mix::multiply: return combine<T, true>(tile, subset);
        case Mix::concat: return concatenate(tile, subset, number);
        case Mix::attention: attend(tile, subset); return weigh(tile, subset);
    }
}

// Activates the levels into the parts, for the domain of probabilities.
template <class T>
__device__ void activate(const Tile<T>& tile) {
    const Problem& p = tile.p;
    for (int level = 0; level < p.levels; ++level) {
        const T* const from = tile.shared.levels + tile.rows_of(level) * p.stride;
        T* const to = tile.shared.parts + tile.rows_of(level) * p.stride;
        Softmax<T> s = {};
        if (!p.sigmoid) s = exponentiate(tile, from, to);
        for (int c = 0; c < p.classes; ++c) {
            Pixels<T> values = tile.load(p.sigmoid ? from : to, c);
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) values[i] = p.sigmoid ? sigmoid(values[i]) : values[i] / s.total[i];
            tile.store(to, c, values);
        }
    }
}

// The way back: from G, in the rows of the map.

template <class T>
__device__ __forceinline__ void change_gradient(const Tile<T>& tile, int level, int c, const Pixels<T>& by) {
    Pixels<T> gradient = tile.gradient(level, c);
    add_to(gradient, T(1), by);
    tile.store(tile.shared.gradients, tile.rows_of(level) + c, gradient);
}

template <class T>
__device__ __forceinline__ void add_back(const Tile<T>& tile, const Subset& subset) {
    for (int c = 0; c < tile.p.classes; ++c) {
        const Pixels<T> gradient = tile.load(tile.shared.map, c);
        for (int level = 0; level < tile.p.levels; ++level)
            if (subset.holds(level)) change_gradient(tile, level, c, gradient);
    }
}

// By the products of the parts before and after each, never by division.
template <class T>
__device__ __forceinline__ void multiply_back(const Tile<T>& tile, const Subset& subset) {
    const Problem& p = tile.p;
    for (int c = 0; c < p.classes; ++c) {
        Pixels<T> before[MOST_LEVELS], running = tile.load(tile.shared.map, c), after = filled(T(1));
#pragma unroll
        for (int level = 0; level < MOST_LEVELS; ++level) {
            if (!subset.holds(level)) continue;
            before[level] = running;
            const Pixels<T> part = tile.part(level, c);
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) running[i] *= part[i];
        }
#pragma unroll
        for (int level = MOST_LEVELS - 1; level >= 0; --level) {
            if (!subset.holds(level)) continue;
            const Pixels<T> part = tile.part(level, c);
            Pixels<T> by;
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) {
                by[i] = before[level][i] * after[i];
                after[i] *= part[i];
            }
            change_gradient(tile, level, c, by);
        }
    }
}

template <class T>
__device__ __forceinline__ void concatenate_back(const Tile<T>& tile, const Subset& subset) {
    const Problem& p = tile.p;
    const int64_t columns = int64_t(p.members) * p.classes;
    int row = subset.row;
    for (int level = 0; level < p.levels; ++level) {
        if (!subset.holds(level)) continue;
        for (int first = 0; first < p.classes; first += AT_ONCE) {
            Pixels<T> sums[AT_ONCE];
#pragma unroll
            for (int q = 0; q < AT_ONCE; ++q) sums[q] = filled(T(0));
            const T* const weights = numbers<T>(p.concat_weight) + int64_t(row) * p.classes;
            for (int c = 0; c < p.classes; ++c) {
                const Pixels<T> gradient = tile.load(tile.shared.map, c);
#pragma unroll
                for (int q = 0; q < AT_ONCE; ++q) {
                    const int k = first + q < p.classes ? first + q : p.classes - 1;
                    add_to(sums[q], __ldg(weights + c * columns + k), gradient);
                }
            }
#pragma unroll
            for (int q = 0; q < AT_ONCE; ++q)
                if (first + q < p.classes) change_gradient(tile, level, first + q, sums[q]);
        }
        ++row;
    }
}

// The shares make room for the gradients of the scores: t_i = a_i (<G, P_i> - <G, M>), and <G, M> = sum a_i <G, P_i>.
template <class T>
__device__ __forceinline__ void attend_back(const Tile<T>& tile, const Subset& subset) {
    const Problem& p = tile.p;
    Pixels<T> inner[MOST_LEVELS], common = filled(T(0));
#pragma unroll
    for (int level = 0; level < MOST_LEVELS; ++level) {
        if (!subset.holds(level)) continue;
        inner[level] = filled(T(0));
        for (int c = 0; c < p.classes; ++c)
            add_to(inner[level], tile.load(tile.shared.map, c), tile.part(level, c));
        add_to(common, tile.load(tile.shared.shares, level), inner[level]);
    }
    int row = subset.row;
#pragma unroll
    for (int level = 0; level < MOST_LEVELS; ++level) {
        if (!subset.holds(level)) continue;
        const Pixels<T> share = tile.load(tile.shared.shares, level);
        Pixels<T> tilt;
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) tilt[i] = share[i] * (inner[level][i] - common[i]);
        const T* const weights = numbers<T>(p.attention_weight) + int64_t(row) * p.classes;
        for (int c = 0; c < p.classes; ++c) {
            Pixels<T> by = filled(T(0));
            add_to(by, share, tile.load(tile.shared.map, c));
            add_to(by, __ldg(weights + c), tilt);
            change_gradient(tile, level, c, by);
        }
        tile.store(tile.shared.shares, level, tilt);
        ++row;
    }
}

// Adds to a table [row][class, and one for the bias] the products of so many rows with a part's, summed over the tile.
template <class T>
__device__ void add_products(const Tile<T>& tile, const T* rows, int count, int level, const Table& table, int64_t start) {
    const Problem& p = tile.p;
    const T* const part = tile.shared.parts + tile.rows_of(level) * p.stride;
    const int columns = p.classes + 1, across = (columns + ENTRIES - 1) / ENTRIES, down = (count + ENTRIES - 1) / ENTRIES;
    for (int entry = tile.lane; entry < across * down; entry += WARP) {
        const int row = entry / across * ENTRIES, column = entry % across * ENTRIES;
        const T *left[ENTRIES], *right[ENTRIES];
#pragma unroll
        for (int q = 0; q < ENTRIES; ++q) {
            left[q] = rows + (row + q < count ? row + q : count - 1) * p.stride;
            right[q] = column + q < p.classes ? part + (column + q) * p.stride : tile.shared.ones;
        }
        T sums[ENTRIES][ENTRIES] = {};
        for (int pixel = 0; pixel < p.pixels(); pixel += WIDEST<T>) {
            Pixels<T> a[ENTRIES], b[ENTRIES];
#pragma unroll
            for (int q = 0; q < ENTRIES; ++q) {
                a[q] = load_shared<WIDEST<T>>(left[q] + pixel);
                b[q] = load_shared<WIDEST<T>>(right[q] + pixel);
            }
#pragma unroll
            for (int q = 0; q < ENTRIES; ++q)
#pragma unroll
                for (int r = 0; r < ENTRIES; ++r)
#pragma unroll
                    for (int i = 0; i < WIDEST<T>; ++i) sums[q][r] += a[q][i] * b[r][i];
        }
#pragma unroll
        for (int q = 0; q < ENTRIES; ++q)
#pragma unroll
            for (int r = 0; r < ENTRIES; ++r)
                if (row + q < count && column + r < columns)
                    table.add(start + int64_t(row + q) * columns + column + r, sums[q][r]);
    }
}

// The gradients of the weights: of a member of a subset, [class][class + 1] for concat and [class + 1] for attention.
template <class T>
__device__ void add_weight_gradients(const Tile<T>& tile, const Subset& subset, bool concat, const Table& table) {
    const Problem& p = tile.p;
    const int64_t columns = p.classes + 1;
    __syncwarp();
    int row = subset.row;
    for (int level = 0; level < p.levels; ++level) {
        if (!subset.holds(level)) continue;
        if (concat)
            add_products(tile, tile.shared.map, p.classes, level, table, row * p.classes * columns);
        else
            add_products(tile, tile.shared.shares + level * p.stride, 1, level, table, p.concat_numbers() + row * columns);
        ++row;
    }
    __syncwarp();
}

// From G to the gradients of the map's parts and parameters.
template <class T>
__device__ void unmix(const Tile<T>& tile, Mix operation, int number, const Table& table) {
    const Subset subset(tile.p, number);
    if (tile.active) {
        if (operation == Mix::add) add_back(tile, subset);
        if (operation == Mix::multiply) multiply_back(tile, subset);
        if (operation == Mix::concat) concatenate_back(tile, subset);
        if (operation == Mix::attention) attend_back(tile, subset);
    }
    if (operation == Mix::concat && tile.p.concat_gradients) add_weight_gradients(tile, subset, true, table);
    if (operation == Mix::attention && tile.p.attention_gradients) add_weight_gradients(tile, subset, false, table);
}

// From the gradient of a level's part to that of the level: through the activation, and with what the level itself is
// supervised with.
template <class T>
__device__ void finish_level(const Tile<T>& tile, int level) {
    const Problem& p = tile.p;
    if (p.probabilities) {
        Pixels<T> inner = filled(T(0));
        for (int c = 0; c < p.classes && !p.sigmoid; ++c)
            add_to(inner, tile.part(level, c), tile.gradient(level, c));
        for (int c = 0; c < p.classes; ++c) {
            const Pixels<T> part = tile.part(level, c);
            Pixels<T> gradient = tile.gradient(level, c);
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i)
                gradient[i] = part[i] * (p.sigmoid ? (1 - part[i]) * gradient[i] : gradient[i] - inner[i]);
            tile.store(tile.shared.gradients, tile.rows_of(level) + c, gradient);
        }
    }
    map_gradient(tile, tile.shared.levels + tile.rows_of(level) * p.stride, tile.shared.map, level);
    for (int c = 0; c < p.classes; ++c) change_gradient(tile, level, c, tile.load(tile.shared.map, c));
}

}  // namespace prosma::cuda::mixing

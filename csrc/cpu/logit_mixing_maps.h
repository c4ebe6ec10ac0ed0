// The mixed maps of a tile, and the gradients of their parts and parameters from the map's.
//
// Everything is [class][cell]. Parameters stay as they are stored; a weight is broadcast where it is used.
#pragma once

#include "logit_mixing_levels.h"
#include "logit_mixing_statistics.h"

namespace prosma::PROSMA_LEVEL::mixing {

template <class T>
struct Weights {
    const T *concat, *concat_bias, *attention, *attention_bias;
    int64_t concat_columns;
    int classes, subsets;

    explicit Weights(const Plan<T>& plan)
        : concat(static_cast<const T*>(plan.a.concat_weight)), concat_bias(static_cast<const T*>(plan.a.concat_bias)),
          attention(static_cast<const T*>(plan.a.attention_weight)), attention_bias(static_cast<const T*>(plan.a.attention_bias)),
          concat_columns(int64_t(plan.classes) * plan.subsets.rows), classes(plan.classes), subsets(plan.subsets.count) {}
};

template <class T>
void add_parts(int classes, const Subset& subset, const Vector<T>* const* parts, Vector<T>* map) {
    with_count<MOST_LEVELS>(subset.size, [&](auto size) {
        for (int i = 0; i < classes * CELLS; ++i) {
            Vector<T> sum = parts[subset.members[0]][i];
            for (int j = 1; j < size.value; ++j) sum += parts[subset.members[j]][i];
            map[i] = sum;
        }
    });
}

template <class T>
void multiply_parts(int classes, const Subset& subset, const Vector<T>* const* parts, Vector<T>* map) {
    with_count<MOST_LEVELS>(subset.size, [&](auto size) {
        for (int i = 0; i < classes * CELLS; ++i) {
            Vector<T> product = parts[subset.members[0]][i];
            for (int j = 1; j < size.value; ++j) product *= parts[subset.members[j]][i];
            map[i] = product;
        }
    });
}

// to[row][cell] (+)= sum over columns of weight[row * row_step + column * column_step] * from[column][cell]; from a row to
// the next one it is so many vectors, on both sides.
template <class T>
struct Product {
    const T* weight;
    int64_t row_step, column_step;
    int rows, columns;
    bool add;
    int64_t step;
};

template <int ROWS, int WIDTH, class T>
PROSMA_INLINE void combine_rows(const Product<T>& p, const T* weight, const Vector<T>* from, Vector<T>* to) {
    Vector<T> sums[ROWS][WIDTH];
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int k = 0; k < WIDTH; ++k) sums[r][k] = p.add ? to[r * p.step + k] : zero<T>();
    for (int c = 0; c < p.columns; ++c, from += p.step, weight += p.column_step)
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int k = 0; k < WIDTH; ++k) sums[r][k] += weight[r * p.row_step] * from[k];
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int k = 0; k < WIDTH; ++k) to[r * p.step + k] = sums[r][k];
}

template <int WIDTH, class T>
PROSMA_INLINE void combine_columns(const Product<T>& p, const Vector<T>* from, Vector<T>* to) {
    constexpr int ROWS = 3;
    int r = 0;
    for (; r + ROWS <= p.rows; r += ROWS) combine_rows<ROWS, WIDTH>(p, p.weight + r * p.row_step, from, to + r * p.step);
    for (; r < p.rows; ++r) combine_rows<1, WIDTH>(p, p.weight + r * p.row_step, from, to + r * p.step);
}

// 3 rows by 8 vectors are 24 sums of AVX-512's 32 registers; by 4 they are 12 of AVX2's and SSE2's 16.
template <class T>
void combine(const Product<T>& p, const Vector<T>* from, Vector<T>* to, int64_t cells) {
    constexpr int WIDTH = VECTOR_BYTES == 64 ? 8 : 4;
    int64_t k = 0;
    for (; k + WIDTH <= cells; k += WIDTH) combine_columns<WIDTH>(p, from + k, to + k);
    for (; k + 2 <= cells; k += 2) combine_columns<2>(p, from + k, to + k);
    for (; k < cells; ++k) combine_columns<1>(p, from + k, to + k);
}

// Concat's and attention's products for one part of a subset, and the transposed ones, which are added.
template <class T>
Product<T> concat_product(const Weights<T>& w, int row, bool add, int64_t step) {
    return {w.concat + int64_t(row) * w.classes, w.concat_columns, 1, w.classes, w.classes, add, step};
}
template <class T>
Product<T> concat_transposed(const Weights<T>& w, int row, int64_t step) {
    return {w.concat + int64_t(row) * w.classes, 1, w.concat_columns, w.classes, w.classes, true, step};
}
template <class T>
Product<T> score_product(const Weights<T>& w, int row, bool add, int64_t step) {
    return {w.attention + int64_t(row) * w.classes, 0, 1, 1, w.classes, add, step};
}
template <class T>
Product<T> score_transposed(const Weights<T>& w, int row, int64_t step) {
    return {w.attention + int64_t(row) * w.classes, 1, 0, w.classes, 1, true, step};
}

// Clears what does not count: interpolated from NaN it may be one.
template <class T>
void clear_absent(const TargetTile<T>& target, int channels, Vector<T>* values) {
    if (target.all_present) return;
    for (int c = 0; c < channels; ++c)
        for (int k = 0; k < CELLS; ++k) values[c * CELLS + k] = target.present[k] > 0 ? values[c * CELLS + k] : zero<T>();
}

// Calls body(subset number, row of the parameters) for every subset that holds the level.
template <class T, class Body>
PROSMA_INLINE void for_each_holder(const Plan<T>& plan, int level, const Body& body) {
    for (int number = 0; number < plan.subsets.count; ++number) {
        const Subset& subset = plan.subsets.of[number];
        for (int j = 0; j < subset.size; ++j)
            if (subset.members[j] == level) body(number, subset.row + j);
    }
}

// A level's rows, interpolated along the width, times the weights of every subset that holds it.
template <class T>
void weigh_rows(const Plan<T>& plan, const Weights<T>& weights, int level, const Block& block, const LevelTile<T>& tile) {
    const int64_t step = class_length(plan, level) / LANES<T>;
    const int64_t cells = plan.level[level].y.counts[block.y_block] * plan.block_vectors;
    const auto* rows = reinterpret_cast<const Vector<T>*>(tile.rows);
    for_each_holder(plan, level, [&](int number, int row) {
        const auto to = [&](int64_t channel) {
            return reinterpret_cast<Vector<T>*>(tile.weighted + weighted_offset(plan, level, number, int(channel)));
        };
        if (plan.has_concat) combine(concat_product(weights, row, false, step), rows, to(0), cells);
        if (plan.has_attention) combine(score_product(weights, row, false, step), rows, to(plan.weighted_channels - 1), cells);
    });
}

// Adds a subset's weighted rows of a level, of the channels from `first`, to a tile's pixels.
template <class T>
void add_weighted(const Plan<T>& plan, const LevelTile<T>& tile, int level, int number, int first, int channels, Vector<T>* to) {
    interpolate_runs<true>(tile.runs, channels, tile.weighted + weighted_offset(plan, level, number, first), row_length(plan),
                           class_length(plan, level), to);
}

template <class T>
void concatenate_parts(const Plan<T>& plan, const Weights<T>& weights, const LevelTile<T>* levels, const TargetTile<T>& target,
                       const Subset& subset, int number, const Vector<T>* const* parts, Vector<T>* map) {
    for (int c = 0; c < weights.classes; ++c) {
        const T bias = weights.concat_bias ? weights.concat_bias[c * weights.subsets + number] : T(0);
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) map[c * CELLS + k] = broadcast<T>(bias);
    }
    for (int j = 0; j < subset.size; ++j) {
        const int level = subset.members[j];
        if (plan.level[level].weighted)
            add_weighted(plan, levels[level], level, number, 0, weights.classes, map);
        else
            combine(concat_product(weights, subset.row + j, true, CELLS), parts[level], map, CELLS);
    }
    clear_absent(target, weights.classes, map);
}

// The share of each part at each pixel, [member][cell].
template <class T>
void attend(const Plan<T>& plan, const Weights<T>& weights, const LevelTile<T>* levels, const TargetTile<T>& target,
            const Subset& subset, int number, const Vector<T>* const* parts, Vector<T>* shares) {
    for (int j = 0; j < subset.size; ++j) {
        const int level = subset.members[j];
        const T bias = weights.attention_bias ? weights.attention_bias[subset.row + j] : T(0);
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) shares[j * CELLS + k] = broadcast<T>(bias);
        if (plan.level[level].weighted)
            add_weighted(plan, levels[level], level, number, int(plan.weighted_channels) - 1, 1, shares + j * CELLS);
        else
            combine(score_product(weights, subset.row + j, true, CELLS), parts[level], shares + j * CELLS, CELLS);
    }
    clear_absent(target, subset.size, shares);
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        Vector<T> peak = shares[k], total = zero<T>();
        for (int j = 1; j < subset.size; ++j) peak = shares[j * CELLS + k] > peak ? shares[j * CELLS + k] : peak;
        for (int j = 0; j < subset.size; ++j) {
            shares[j * CELLS + k] = exponential(shares[j * CELLS + k] - peak);
            total += shares[j * CELLS + k];
        }
        const Vector<T> inverse = 1 / total;
        for (int j = 0; j < subset.size; ++j) shares[j * CELLS + k] *= inverse;
    }
}

template <class T>
void weigh_parts(int classes, const Subset& subset, const Vector<T>* const* parts, const Vector<T>* shares, Vector<T>* map) {
    with_count<MOST_LEVELS>(subset.size, [&](auto size) {
        for (int c = 0; c < classes; ++c)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) {
                Vector<T> sum = shares[k] * parts[subset.members[0]][c * CELLS + k];
                for (int j = 1; j < size.value; ++j) sum += shares[j * CELLS + k] * parts[subset.members[j]][c * CELLS + k];
                map[c * CELLS + k] = sum;
            }
    });
}

// The way back: from G, the map's gradient, to those of its parts, which are added to.

template <class T>
void add_backward(int classes, const Subset& subset, const Vector<T>* gradient, Vector<T>* const* parts_gradients) {
    for (int j = 0; j < subset.size; ++j) {
        Vector<T>* to = parts_gradients[subset.members[j]];
        for (int i = 0; i < classes * CELLS; ++i) to[i] += gradient[i];
    }
}

// By the products of the parts before and after each, never by division.
template <class T>
void multiply_backward(int classes, const Subset& subset, const Vector<T>* const* parts, const Vector<T>* gradient,
                       Vector<T>* const* parts_gradients) {
    with_count<MOST_LEVELS>(subset.size, [&](auto size) {
        for (int i = 0; i < classes * CELLS; ++i) {
            Vector<T> before[size.value], after = broadcast<T>(1);
            before[0] = gradient[i];
            for (int j = 1; j < size.value; ++j) before[j] = before[j - 1] * parts[subset.members[j - 1]][i];
            for (int j = size.value - 1; j >= 0; --j) {
                parts_gradients[subset.members[j]][i] += before[j] * after;
                after *= parts[subset.members[j]][i];
            }
        }
    });
}

// `tilts`, [member][cell], receives the gradients of the scores: a_i (<G, P_i> - <G, M>). What reaches the parts through
// the scores is left to the caller.
template <class T>
void attention_backward(int classes, const Subset& subset, const Vector<T>* const* parts, const Vector<T>* shares,
                        const Vector<T>* map, const Vector<T>* gradient, Vector<T>* tilts, Vector<T>* const* parts_gradients) {
    Vector<T> inner[CELLS] = {};
    for (int c = 0; c < classes; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) inner[k] += gradient[c * CELLS + k] * map[c * CELLS + k];
    for (int j = 0; j < subset.size; ++j) {
        const Vector<T>* part = parts[subset.members[j]];
        Vector<T>* to = parts_gradients[subset.members[j]];
        Vector<T> tilt[CELLS];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) tilt[k] = -inner[k];
        for (int c = 0; c < classes; ++c)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) tilt[k] += gradient[c * CELLS + k] * part[c * CELLS + k];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) tilts[j * CELLS + k] = tilt[k] * shares[j * CELLS + k];
        for (int c = 0; c < classes; ++c)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) to[c * CELLS + k] += shares[j * CELLS + k] * gradient[c * CELLS + k];
    }
}

// Gradients of weights are sums over pixels of a row's gradient times the classes of a part. There lanes are classes: the
// parts are transposed once a tile, [pixel][column], with a column of ones behind the classes that gives the bias.

template <class T>
int64_t column_stride(int classes) {
    return round_up(classes + 1, LANES<T>);
}

template <class T>
void transpose_part(int classes, const Vector<T>* part, int64_t step, int64_t cells, T* columns) {
    constexpr int L = LANES<T>;
    const int64_t stride = column_stride<T>(classes);
    for (int64_t k = 0; k < cells; ++k)
        for (int64_t group = 0; group < stride; group += L) {
            Vector<T> square[L];
            for (int c = 0; c < L; ++c)
                square[c] = group + c < classes ? part[(group + c) * step + k] : broadcast<T>(group + c == classes ? 1 : 0);
            transpose<T>(square);
            for (int pixel = 0; pixel < L; ++pixel) store<T>(columns + (k * L + pixel) * stride + group, square[pixel]);
        }
}

// sums[row][column] += sum over a tile's pixels, so many cells, of gradient[row][pixel] * columns[pixel][column]. The sum is
// formed by itself: one chain over all pixels until they go on in double was 18 eps off where eager PyTorch is 1.
template <class T>
void add_outer_product(int rows, const Vector<T>* gradient, int64_t step, int64_t cells, int64_t stride, const T* columns, T* sums) {
    constexpr int MOST_ROWS = 12;
    const int64_t pixels = cells * LANES<T>, row_step = step * LANES<T>;
    const int parts = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int part = 0, first = 0; part < parts; ++part) {
        const int count = (rows - first) / (parts - part);
        with_count<MOST_ROWS>(count, [&](auto known) {
            const T* from = reinterpret_cast<const T*>(gradient + first * step);
            for (int64_t group = 0; group < stride; group += LANES<T>) {
                Vector<T> own[known.value];
                for (int r = 0; r < known.value; ++r) own[r] = zero<T>();
                for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                    const Vector<T> values = load<T>(columns + pixel * stride + group);
                    for (int r = 0; r < known.value; ++r) own[r] += from[r * row_step + pixel] * values;
                }
                for (int r = 0; r < known.value; ++r) {
                    T* const to = sums + (first + r) * stride + group;
                    store<T>(to, load<T>(to) + own[r]);
                }
            }
        });
        first += count;
    }
}

}  // namespace prosma::PROSMA_LEVEL::mixing

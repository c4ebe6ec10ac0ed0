// The mixed maps of a tile, and the gradients of their parts and parameters from the map's.
//
// Everything is [class][cell]. Parameters stay as they are stored; a weight is broadcast where it is used.
#pragma once

#include "logit_mixing_statistics.h"

namespace prosma::PROSMA_LEVEL::mixing {

template <int COUNT>
struct Known {
    static constexpr int value = COUNT;
};

// Calls body(Known<count>) for a count from 1 to MOST.
template <int MOST, class Body>
PROSMA_INLINE void with_count(int count, const Body& body) {
    if constexpr (MOST > 1) {
        if (count < MOST) return with_count<MOST - 1>(count, body);
    }
    body(Known<MOST>{});
}

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

// to[row][cell] += sum over columns of weight[row * row_step + column * column_step] * from[column][cell].
template <int ROWS, int WIDTH, class T>
PROSMA_INLINE void combine_rows(const T* weight, int64_t row_step, int64_t column_step, int columns, const Vector<T>* from, Vector<T>* to) {
    Vector<T> sums[ROWS][WIDTH];
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int k = 0; k < WIDTH; ++k) sums[r][k] = to[r * CELLS + k];
    for (int c = 0; c < columns; ++c, from += CELLS, weight += column_step)
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int k = 0; k < WIDTH; ++k) sums[r][k] += weight[r * row_step] * from[k];
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int k = 0; k < WIDTH; ++k) to[r * CELLS + k] = sums[r][k];
}

// 3 rows by 8 vectors are 24 sums of AVX-512's 32 registers; by 4 they are 12 of AVX2's and SSE2's 16.
template <class T>
void combine(const T* weight, int64_t row_step, int64_t column_step, int rows, int columns, const Vector<T>* from, Vector<T>* to) {
    constexpr int ROWS = 3, WIDTH = VECTOR_BYTES == 64 ? CELLS : CELLS / 2;
    for (int k = 0; k < CELLS; k += WIDTH) {
        int r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            combine_rows<ROWS, WIDTH>(weight + r * row_step, row_step, column_step, columns, from + k, to + r * CELLS + k);
        for (; r < rows; ++r)
            combine_rows<1, WIDTH>(weight + r * row_step, row_step, column_step, columns, from + k, to + r * CELLS + k);
    }
}

template <class T>
void concatenate_parts(const Weights<T>& weights, const Subset& subset, int number, const Vector<T>* const* parts, Vector<T>* map) {
    for (int c = 0; c < weights.classes; ++c) {
        const T bias = weights.concat_bias ? weights.concat_bias[c * weights.subsets + number] : T(0);
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) map[c * CELLS + k] = broadcast<T>(bias);
    }
    for (int j = 0; j < subset.size; ++j)
        combine(weights.concat + int64_t(subset.row + j) * weights.classes, weights.concat_columns, 1, weights.classes, weights.classes,
                parts[subset.members[j]], map);
}

// The share of each part at each pixel, [member][cell].
template <class T>
void attend(const Weights<T>& weights, const Subset& subset, const Vector<T>* const* parts, Vector<T>* shares) {
    for (int j = 0; j < subset.size; ++j) {
        const T bias = weights.attention_bias ? weights.attention_bias[subset.row + j] : T(0);
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) shares[j * CELLS + k] = broadcast<T>(bias);
        combine(weights.attention + int64_t(subset.row + j) * weights.classes, 0, 1, 1, weights.classes, parts[subset.members[j]],
                shares + j * CELLS);
    }
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

// Forms the map; `shares` is [MOST_LEVELS][cell], written by attention.
template <class T>
void mix(const Weights<T>& weights, Mix operation, const Subset& subset, int number, const Vector<T>* const* parts, Vector<T>* shares,
         Vector<T>* map) {
    switch (operation) {
        case Mix::add: return add_parts<T>(weights.classes, subset, parts, map);
        case Mix::multiply: return multiply_parts<T>(weights.classes, subset, parts, map);
        case Mix::concat: return concatenate_parts(weights, subset, number, parts, map);
        case Mix::attention:
            attend(weights, subset, parts, shares);
            return weigh_parts<T>(weights.classes, subset, parts, shares, map);
    }
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

template <class T>
void concat_backward(const Weights<T>& weights, const Subset& subset, const Vector<T>* gradient, Vector<T>* const* parts_gradients) {
    for (int j = 0; j < subset.size; ++j)
        combine(weights.concat + int64_t(subset.row + j) * weights.classes, 1, weights.concat_columns, weights.classes, weights.classes,
                gradient, parts_gradients[subset.members[j]]);
}

// `tilts`, [member][cell], receives the gradients of the scores: a_i (<G, P_i> - <G, M>).
template <class T>
void attention_backward(const Weights<T>& weights, const Subset& subset, const Vector<T>* const* parts, const Vector<T>* shares,
                        const Vector<T>* map, const Vector<T>* gradient, Vector<T>* tilts, Vector<T>* const* parts_gradients) {
    Vector<T> inner[CELLS] = {};
    for (int c = 0; c < weights.classes; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) inner[k] += gradient[c * CELLS + k] * map[c * CELLS + k];
    for (int j = 0; j < subset.size; ++j) {
        const Vector<T>* part = parts[subset.members[j]];
        Vector<T>* to = parts_gradients[subset.members[j]];
        const T* weight = weights.attention + int64_t(subset.row + j) * weights.classes;
        Vector<T> tilt[CELLS];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) tilt[k] = -inner[k];
        for (int c = 0; c < weights.classes; ++c)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) tilt[k] += gradient[c * CELLS + k] * part[c * CELLS + k];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) tilts[j * CELLS + k] = tilt[k] = tilt[k] * shares[j * CELLS + k];
        for (int c = 0; c < weights.classes; ++c)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k)
                to[c * CELLS + k] += shares[j * CELLS + k] * gradient[c * CELLS + k] + weight[c] * tilt[k];
    }
}

// Gradients of weights are sums over pixels of a row's gradient times the classes of a part. There lanes are classes: the
// parts are transposed once a tile, [pixel][column], with a column of ones behind the classes that gives the bias.

template <class T>
int64_t column_stride(int classes) {
    return round_up(classes + 1, LANES<T>);
}

template <class T>
void transpose_part(int classes, const Vector<T>* part, T* columns) {
    constexpr int L = LANES<T>;
    const int64_t stride = column_stride<T>(classes);
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k)
        for (int64_t group = 0; group < stride; group += L) {
            Vector<T> square[L];
            for (int c = 0; c < L; ++c)
                square[c] = group + c < classes ? part[(group + c) * CELLS + k] : broadcast<T>(group + c == classes ? 1 : 0);
            transpose<T>(square);
            for (int pixel = 0; pixel < L; ++pixel) store<T>(columns + (k * L + pixel) * stride + group, square[pixel]);
        }
}

// sums[row][column] += sum over the tile's pixels of gradient[row][pixel] * columns[pixel][column]. The tile's sum is
// formed by itself: one chain over all pixels until they go on in double was 18 eps off where eager PyTorch is 1.
template <class T>
void add_outer_product(int rows, const Vector<T>* gradient, int64_t stride, const T* columns, T* sums) {
    constexpr int MOST_ROWS = 12, PIXELS = CELLS * LANES<T>;
    const int parts = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int part = 0, first = 0; part < parts; ++part) {
        const int count = (rows - first) / (parts - part);
        with_count<MOST_ROWS>(count, [&](auto known) {
            const T* from = reinterpret_cast<const T*>(gradient + first * CELLS);
            for (int64_t group = 0; group < stride; group += LANES<T>) {
                Vector<T> own[known.value];
                for (int r = 0; r < known.value; ++r) own[r] = zero<T>();
                for (int pixel = 0; pixel < PIXELS; ++pixel) {
                    const Vector<T> values = load<T>(columns + pixel * stride + group);
                    for (int r = 0; r < known.value; ++r) own[r] += from[r * PIXELS + pixel] * values;
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

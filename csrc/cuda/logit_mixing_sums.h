// The sums of one map over a tile, and the map's gradient from theirs.
//
// A lane goes over the classes of its own pixels. What it has of 8 classes and 4 sums, 32 numbers, the warp adds up and
// spreads over its lanes at once: halves are exchanged for halves, 31 shuffles where one sum after the other takes
// 160. Lane i then adds number i to the table of its block, in float64.
#pragma once

#include "logit_mixing_tile.h"

namespace prosma::cuda::mixing {

constexpr int SUMMED_CLASSES = 8, SUMMED_KINDS = 4;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float logarithm_of_more(float x) { return log1pf(x); }
__device__ __forceinline__ double logarithm_of_more(double x) { return log1p(x); }

// Sums over the warp of COUNT numbers, a power of two: lane i gets number i / (32 / COUNT).
template <int COUNT, class T>
__device__ __forceinline__ T spread_sums(T (&values)[COUNT]) {
    const int lane = int(threadIdx.x) % WARP;
    int distance = WARP / 2;
#pragma unroll
    for (int half = COUNT / 2; half > 0; half /= 2, distance /= 2) {
        const bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i) {
            if (i >= half) continue;
            const T kept = upper ? values[i + half] : values[i], given = upper ? values[i] : values[i + half];
            values[i] = kept + __shfl_xor_sync(ALL_LANES, given, distance);
        }
    }
#pragma unroll
    for (; distance > 0; distance /= 2) values[0] += __shfl_xor_sync(ALL_LANES, values[0], distance);
    return values[0];
}

// A block's sums: the first tile writes them, the others add.
struct Table {
    double* numbers;
    bool fresh;

    template <class T>
    __device__ __forceinline__ void add(int64_t at, T value) const {
        numbers[at] = fresh ? double(value) : numbers[at] + double(value);
    }
};

template <class T>
struct Softmax {
    Pixels<T> peak, total, at_label;
};

// Of the map in the rows `from`; e^(M - peak) goes to the rows `to` unless that is null.
template <class T>
__device__ __forceinline__ Softmax<T> exponentiate(const Tile<T>& tile, const T* from, T* to) {
    const auto codes = tile.codes(0);
    Softmax<T> s = {tile.load(from, 0), filled(T(0)), filled(T(0))};
    for (int c = 0; c < tile.p.classes; ++c) {
        const Pixels<T> map = tile.load(from, c);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            s.peak[i] = map[i] > s.peak[i] ? map[i] : s.peak[i];
            s.at_label[i] = codes[i] == c ? map[i] : s.at_label[i];
        }
    }
    for (int c = 0; c < tile.p.classes; ++c) {
        Pixels<T> map = tile.load(from, c);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            map[i] = exponential(map[i] - s.peak[i]);
            s.total[i] += map[i];
        }
        if (to) tile.store(to, c, map);
    }
    return s;
}

template <class T>
__device__ __forceinline__ Pixels<T> shares_of(const Tile<T>& tile, const Softmax<T>& s) {
    Pixels<T> inverse;
#pragma unroll
    for (int i = 0; i < WIDEST<T>; ++i) inverse[i] = tile.is_present(i) ? 1 / s.total[i] : T(0);
    return inverse;
}

// Adds the warp's sums of some classes from `first` on to a table [class][kind].
template <class T>
__device__ __forceinline__ void add_up(const Tile<T>& tile, int first, T (&sums)[SUMMED_CLASSES * SUMMED_KINDS],
                                       const Table& table, int64_t map) {
    const T sum = spread_sums(sums);
    if (first + tile.lane / SUMMED_KINDS < tile.p.classes)
        table.add((map * tile.p.classes + first) * SUMMED_KINDS + tile.lane, sum);
}

// The map in the rows `from`; the rows `scratch` may be the same.
template <class T>
__device__ void add_softmax_sums(const Tile<T>& tile, const T* from, T* scratch, const Table& table, int64_t map) {
    const Problem& p = tile.p;
    Softmax<T> s = {};
    Pixels<T> inverse = filled(T(0)), log_total = filled(T(0));
    if (tile.active) {
        s = exponentiate(tile, from, p.logs ? nullptr : scratch);
        inverse = shares_of(tile, s);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) log_total[i] = logarithm(s.total[i]) + s.peak[i];
    }
    for (int first = 0; first < p.classes; first += SUMMED_CLASSES) {
        T sums[SUMMED_CLASSES * SUMMED_KINDS] = {}, logs[SUMMED_CLASSES] = {};
        const auto codes = tile.active ? tile.codes(0) : Pack<signed char, WIDEST<T>>{};
#pragma unroll
        for (int k = 0; k < SUMMED_CLASSES; ++k) {
            if (!tile.active || first + k >= p.classes) continue;
            const Pixels<T> values = tile.load(p.logs ? from : scratch, first + k);
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) {
                const bool own = codes[i] == first + k;
                const T q = (p.logs ? exponential(values[i] - s.peak[i]) : values[i]) * inverse[i];
                sums[k * SUMMED_KINDS + CROSS_ENTROPY] += own ? log_total[i] - s.at_label[i] : T(0);
                sums[k * SUMMED_KINDS + INTERSECTION] += own ? q : T(0);
                sums[k * SUMMED_KINDS + PROBABILITY] += q;
                sums[k * SUMMED_KINDS + SQUARE] += q * q;
                if (p.logs) logs[k] += tile.is_present(i) ? values[i] - log_total[i] : T(0);
            }
        }
        add_up(tile, first, sums, table, map);
        if (!p.logs) continue;
        const T sum = spread_sums(logs);
        const int c = first + tile.lane / SUMMED_KINDS;
        if (tile.lane % SUMMED_KINDS == 0 && c < p.classes)
            table.add((int64_t(p.maps) * SUMMED_KINDS + map) * p.classes + c, sum);
    }
}

// 1 / (1 + e^-x), and log(1 + e^x), both from e^-|x|.
template <class T>
struct Sigmoid {
    T p, softplus;
    __device__ __forceinline__ explicit Sigmoid(T x) {
        const T decay = exponential(x < 0 ? x : -x);
        p = (x < 0 ? decay : T(1)) / (1 + decay);
        softplus = (x > 0 ? x : T(0)) + logarithm_of_more(decay);
    }
};

template <class T>
__device__ __forceinline__ T sigmoid(T x) {
    const T decay = exponential(x < 0 ? x : -x);
    return (x < 0 ? decay : T(1)) / (1 + decay);
}

template <class T>
__device__ void add_sigmoid_sums(const Tile<T>& tile, const T* from, const Table& table, int64_t map) {
    const Problem& p = tile.p;
    for (int first = 0; first < p.classes; first += SUMMED_CLASSES) {
        T sums[SUMMED_CLASSES * SUMMED_KINDS] = {};
#pragma unroll
        for (int k = 0; k < SUMMED_CLASSES; ++k) {
            if (!tile.active || first + k >= p.classes) continue;
            const Pixels<T> values = tile.load(from, first + k);
            const auto codes = tile.codes(first + k);
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) {
                const Sigmoid<T> s(values[i]);
                const bool counted = codes[i] >= 0, own = codes[i] == tile.code_of_class(first + k);
                sums[k * SUMMED_KINDS + CROSS_ENTROPY] += (counted ? s.softplus : T(0)) - (own ? values[i] : T(0));
                sums[k * SUMMED_KINDS + INTERSECTION] += own ? s.p : T(0);
                sums[k * SUMMED_KINDS + PROBABILITY] += counted ? s.p : T(0);
                sums[k * SUMMED_KINDS + SQUARE] += counted ? s.p * s.p : T(0);
            }
        }
        add_up(tile, first, sums, table, map);
    }
}

// The gradients of a map's sums.
template <class T>
struct SumGradients {
    const T* of[SUMS];

    __device__ __forceinline__ SumGradients(const Problem& p, int64_t image, int64_t map) {
#pragma unroll
        for (int kind = 0; kind < SUMS; ++kind) {
            const T* const start = static_cast<const T*>(p.sum_grads[kind]);
            of[kind] = start ? start + ((p.per_sample ? image * p.maps : 0) + map) * p.classes : nullptr;
        }
    }
    __device__ __forceinline__ T operator()(Sum kind, int c) const { return of[kind] ? __ldg(of[kind] + c) : T(0); }
};

// Those of one class; d = overlap y + all + square p.
template <class T>
struct ClassGradients {
    T entropy, overlap, all, square, log;
    __device__ __forceinline__ ClassGradients(const SumGradients<T>& g, int c)
        : entropy(g(CROSS_ENTROPY, c)), overlap(g(INTERSECTION, c)), all(g(PROBABILITY, c)), square(2 * g(SQUARE, c)),
          log(g(LOG_PROBABILITY, c)) {}
    __device__ __forceinline__ T d(bool own, T p) const { return all + square * p + (own ? overlap : T(0)); }
    __device__ __forceinline__ T at_label(bool own) const { return own ? entropy : T(0); }
};

// G goes to the rows `to`, which may be the map's own. With d = gI y + gP + 2 gQ p and common = gCE at the label - <d, p>
// - sum gL it is p (d + common) - gCE y + gL.
template <class T>
__device__ __forceinline__ void softmax_gradient(const Tile<T>& tile, const T* from, T* to, const SumGradients<T>& g) {
    const Problem& p = tile.p;
    const Softmax<T> s = exponentiate(tile, from, to);
    const Pixels<T> inverse = shares_of(tile, s);
    const auto codes = tile.codes(0);
    Pixels<T> common = filled(T(0));
    for (int c = 0; c < p.classes; ++c) {
        const Pixels<T> powers = tile.load(to, c);
        const ClassGradients<T> of(g, c);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            const T q = powers[i] * inverse[i];
            const bool own = codes[i] == c;
            common[i] += of.at_label(own) - of.log - q * of.d(own, q);
        }
    }
    for (int c = 0; c < p.classes; ++c) {
        Pixels<T> values = tile.load(to, c);
        const ClassGradients<T> of(g, c);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            const T q = values[i] * inverse[i];
            const bool own = codes[i] == c;
            values[i] = tile.is_present(i) ? q * (of.d(own, q) + common[i]) - of.at_label(own) + of.log : T(0);
        }
        tile.store(to, c, values);
    }
}

template <class T>
__device__ __forceinline__ void sigmoid_gradient(const Tile<T>& tile, const T* from, T* to, const SumGradients<T>& g) {
    for (int c = 0; c < tile.p.classes; ++c) {
        Pixels<T> values = tile.load(from, c);
        const auto codes = tile.codes(c);
        const ClassGradients<T> of(g, c);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            const bool counted = codes[i] >= 0, own = codes[i] == tile.code_of_class(c);
            const T q = sigmoid(values[i]);
            const T gradient = (1 - q) * (q * of.d(own, q) + of.log) + of.entropy * q - of.at_label(own);
            values[i] = counted ? gradient : T(0);
        }
        tile.store(to, c, values);
    }
}

template <class T>
__device__ __forceinline__ void map_gradient(const Tile<T>& tile, const T* from, T* to, int64_t map) {
    const SumGradients<T> g(tile.p, tile.image, map);
    if (tile.p.sigmoid)
        sigmoid_gradient(tile, from, to, g);
    else
        softmax_gradient(tile, from, to, g);
}

}  // namespace prosma::cuda::mixing

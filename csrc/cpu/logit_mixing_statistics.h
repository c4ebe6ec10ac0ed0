// The sums of one map over a tile, and the map's gradient from theirs.
//
// Softmax: three sweeps over the classes, each with a tile's vectors as independent chains: the maximum and the logit at
// the label; e^(M - max) and its total; then p = e / total and the sums. The label's part is a product with its ones and
// zeros. What does not count has a share of 0 (the total's inverse is 0 there) and no label, and so adds nothing.
#pragma once

#include "logit_mixing_target.h"
#include "math.h"

namespace prosma::PROSMA_LEVEL::mixing {

// Below this total the products of exponentials that make a sum's softmax may have lost their digits.
constexpr float LEAST_TOTAL = 1e-20f;

// e^(M - peak), not yet divided by their total.
template <class T>
struct Powers {
    Vector<T>* values;          // [class][cell]
    Vector<T> total[CELLS];
    Vector<T> at_label[CELLS];  // M - peak at the label; anything where there is none
};

template <class T>
void exponentiate(int classes, const Vector<T>* map, const TargetTile<T>& target, bool subtract_peak, Powers<T>& powers,
                  const Ahead* ahead = nullptr) {
    Vector<T> peak[CELLS], label[CELLS], total[CELLS];
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        peak[k] = subtract_peak ? map[k] : zero<T>();
        label[k] = total[k] = zero<T>();
    }
    for (int c = 0; c < classes; ++c) {
        const Vector<T>*values = map + c * CELLS, *labels = target.labels + c * CELLS;
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) label[k] += labels[k] * values[k];
        if (subtract_peak)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) peak[k] = values[k] > peak[k] ? values[k] : peak[k];
    }
    for (int c = 0; c < classes; ++c) {
        const Vector<T>* values = map + c * CELLS;
        Vector<T>* to = powers.values + c * CELLS;
        if (ahead) ahead->ask_for_class(c);
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> power = exponential(values[k] - peak[k]);
            total[k] += power;
            to[k] = power;
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        powers.total[k] = total[k];
        powers.at_label[k] = label[k] - peak[k];
    }
}

// The powers of a sum of maps, as products; false if they may have lost their digits.
template <class T>
bool multiply_powers(int classes, int count, const Powers<T>* const* factors, Powers<T>& powers) {
    Vector<T> total[CELLS], label[CELLS];
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        total[k] = zero<T>();
        label[k] = factors[0]->at_label[k] + factors[1]->at_label[k];
    }
    for (int j = 2; j < count; ++j)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) label[k] += factors[j]->at_label[k];
    for (int c = 0; c < classes; ++c) {
        Vector<T> product[CELLS];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) product[k] = factors[0]->values[c * CELLS + k] * factors[1]->values[c * CELLS + k];
        for (int j = 2; j < count; ++j)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) product[k] *= factors[j]->values[c * CELLS + k];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            total[k] += product[k];
            powers.values[c * CELLS + k] = product[k];
        }
    }
    Vector<T> least = total[0];
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        powers.total[k] = total[k];
        powers.at_label[k] = label[k];
        least = total[k] < least ? total[k] : least;
    }
    return all_of<T>(one_where<T>(least >= T(LEAST_TOTAL)));
}

// Adds one map's sums, [class][SUMS]. `map` is read for the log-probabilities only; null where they are not asked for.
template <class T>
void add_softmax_sums(int classes, const Powers<T>& powers, const Vector<T>* map, const TargetTile<T>& target, Vector<T>* sums) {
    Vector<T> inverse[CELLS], entropy[CELLS], label_logit[CELLS] = {};
    if (map)  // log p_c = M_c - (M at the label) + (log p at the label)
        for (int c = 0; c < classes; ++c)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) label_logit[k] += target.labels[c * CELLS + k] * map[c * CELLS + k];
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        inverse[k] = target.present[k] / powers.total[k];
        entropy[k] = logarithm(powers.total[k]) - powers.at_label[k];
    }
    for (int c = 0; c < classes; ++c, sums += SUMS) {
        Vector<T> entropy_sum = sums[CROSS_ENTROPY], overlap = sums[INTERSECTION];
        Vector<T> probability = sums[PROBABILITY], square = sums[SQUARE];
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> p = powers.values[c * CELLS + k] * inverse[k], label = target.labels[c * CELLS + k];
            entropy_sum += label * entropy[k];
            overlap += label * p;
            probability += p;
            square += p * p;
        }
        sums[CROSS_ENTROPY] = entropy_sum;
        sums[INTERSECTION] = overlap;
        sums[PROBABILITY] = probability;
        sums[SQUARE] = square;
        if (!map) continue;
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) sums[LOG_PROBABILITY] += target.present[k] * (map[c * CELLS + k] - label_logit[k] - entropy[k]);
    }
}

// 1 / (1 + e^-x), and log(1 + e^x) if asked for, both from e^-|x|.
template <class T>
PROSMA_INLINE Vector<T> sigmoid_of(Vector<T> x, Vector<T>* softplus) {
    const Vector<T> decay = exponential(-absolute<T>(x)), sum = 1 + decay;
    if (softplus) *softplus = (x > 0 ? x : zero<T>()) + logarithm(sum) + (decay - (sum - 1)) / sum;
    return (x < 0 ? decay : broadcast<T>(1)) / sum;
}

template <class T>
void add_sigmoid_sums(int classes, const Vector<T>* map, bool with_log, const TargetTile<T>& target, Vector<T>* sums) {
    for (int c = 0; c < classes; ++c, sums += SUMS)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> value = map[c * CELLS + k], label = target.labels[c * CELLS + k];
            const Vector<T> counted = target.counted[c * target.counted_stride + k];
            Vector<T> softplus;
            const Vector<T> p = counted * sigmoid_of<T>(value, &softplus);
            sums[CROSS_ENTROPY] += counted * softplus - label * value;
            sums[INTERSECTION] += label * p;
            sums[PROBABILITY] += p;
            sums[SQUARE] += p * p;
            if (with_log) sums[LOG_PROBABILITY] += counted * (value - softplus);
        }
}

// Backward: G, the gradient of the map, [class][cell], from the gradients of its sums, [class][SUMS].

template <class T>
void softmax_gradient(int classes, const Powers<T>& powers, const TargetTile<T>& target, const T* grads, Vector<T>* gradient) {
    Vector<T> inverse[CELLS], common[CELLS];
    T all_logs = 0;
    for (int c = 0; c < classes; ++c) all_logs += grads[c * SUMS + LOG_PROBABILITY];
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) {
        inverse[k] = target.present[k] / powers.total[k];
        common[k] = broadcast<T>(-all_logs);
    }
    // G = p (d + common) - gCE_c y_c + gL_c, where common = gCE at the label - <d, p> - sum gL.
    for (int c = 0; c < classes; ++c) {
        const T* g = grads + c * SUMS;
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> p = powers.values[c * CELLS + k] * inverse[k], label = target.labels[c * CELLS + k];
            const Vector<T> d = g[PROBABILITY] + g[INTERSECTION] * label + 2 * g[SQUARE] * p;
            common[k] += g[CROSS_ENTROPY] * label - p * d;
        }
    }
    for (int c = 0; c < classes; ++c) {
        const T* g = grads + c * SUMS;
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> p = powers.values[c * CELLS + k] * inverse[k], label = target.labels[c * CELLS + k];
            const Vector<T> d = g[PROBABILITY] + common[k] + g[INTERSECTION] * label + 2 * g[SQUARE] * p;
            gradient[c * CELLS + k] = p * d - g[CROSS_ENTROPY] * label;
        }
        if (g[LOG_PROBABILITY] != 0)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) gradient[c * CELLS + k] += g[LOG_PROBABILITY] * target.present[k];
    }
}

template <class T>
void sigmoid_gradient(int classes, const Vector<T>* map, const TargetTile<T>& target, const T* grads, Vector<T>* gradient) {
    for (int c = 0; c < classes; ++c) {
        const T* g = grads + c * SUMS;
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> p = sigmoid_of<T>(map[c * CELLS + k], nullptr), label = target.labels[c * CELLS + k];
            const Vector<T> d = g[PROBABILITY] + g[INTERSECTION] * label + 2 * g[SQUARE] * p;
            const Vector<T> rest = g[CROSS_ENTROPY] * (p - label) + g[LOG_PROBABILITY] * (1 - p);
            gradient[c * CELLS + k] = target.counted[c * target.counted_stride + k] * (p * (1 - p) * d + rest);
        }
    }
}

// The activation of every level, for the domain of probabilities.
template <class T>
void activate(const Plan<T>& plan, const Vector<T>* logits, const TargetTile<T>& target, Powers<T>& powers, Vector<T>* parts) {
    if (plan.a.sigmoid) {
        for (int i = 0; i < plan.classes * CELLS; ++i) parts[i] = sigmoid_of<T>(logits[i], nullptr);
        return;
    }
    (void)powers;
    exponentiate(plan.classes, logits, target, true, powers);
    for (int c = 0; c < plan.classes; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) parts[c * CELLS + k] = powers.values[c * CELLS + k] / powers.total[k];
}

// dZ = P (dP - <dP, P>) or P (1 - P) dP, added to `gradient`.
template <class T>
void add_activation_gradient(const Plan<T>& plan, const Vector<T>* parts, const Vector<T>* parts_gradient, Vector<T>* gradient) {
    if (plan.a.sigmoid) {
        for (int i = 0; i < plan.classes * CELLS; ++i) gradient[i] += parts[i] * (1 - parts[i]) * parts_gradient[i];
        return;
    }
    Vector<T> inner[CELLS] = {};
    for (int c = 0; c < plan.classes; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k) inner[k] += parts[c * CELLS + k] * parts_gradient[c * CELLS + k];
    for (int c = 0; c < plan.classes; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < CELLS; ++k)
            gradient[c * CELLS + k] += parts[c * CELLS + k] * (parts_gradient[c * CELLS + k] - inner[k]);
}

}  // namespace prosma::PROSMA_LEVEL::mixing

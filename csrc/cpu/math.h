// The functions of a vector that the language lacks.
#pragma once

#include <cmath>

#include "storage.h"

namespace prosma::PROSMA_LEVEL {

// sign(z) * max(|z| - bound, 0). The comparison is asked so that a NaN passes.
template <class T>
PROSMA_INLINE Vector<T> shrink(Vector<T> z, Vector<T> bound) {
    return absolute<T>(z) <= bound ? zero<T>() : z - (z < 0 ? -bound : bound);
}

// max(threshold, 0), and NaN where it is NaN.
template <class T>
PROSMA_INLINE Vector<T> bound_of(Vector<T> threshold) {
    return threshold < 0 ? zero<T>() : threshold;
}

// e^x for x in [-87, 0], to 1 ulp or two: 2^n by the exponent's bits, and e^r for |r| <= ln(2)/2 by its series.
PROSMA_INLINE Vector<float> exponential_of_negative(Vector<float> x) {
    typedef int32_t Whole __attribute__((vector_size(VECTOR_BYTES)));
    const Vector<float> shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    const Vector<float> n = shifted - 12582912.0f;
    const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector<float> series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r * r + r + 1.0f;
    const Whole exponent = (bits_of<Whole>(shifted) - bits_of<Whole>(broadcast<float>(12582912.0f)) + 127) << 23;
    return series * bits_of<Vector<float>>(exponent);
}

// Near 0 by its odd series (the quotient below would cancel), elsewhere 1 - 2 / (e^2|x| + 1).
PROSMA_INLINE Vector<float> hyperbolic_tangent(Vector<float> x) {
    const Vector<float> magnitude = absolute<float>(x);
    const Vector<float> square = x * x;
    // Minimax on |x| <= 0.625: relative error 2e-8.
    Vector<float> series = square * -5.70498872745e-3f + 2.06390887954e-2f;
    series = series * square - 5.37397155531e-2f;
    series = series * square + 1.33314422036e-1f;
    series = series * square - 3.33332819422e-1f;
    const Vector<float> near = x + x * square * series;
    const Vector<float> bounded = magnitude > 10.0f ? broadcast<float>(10.0f) : magnitude;  // tanh(10) is 1 in float
    const Vector<float> decay = exponential_of_negative(-2.0f * bounded);
    const Vector<float> far = (1.0f - decay) / (1.0f + decay);
    const Vector<float> result = magnitude < 0.625f ? near : x < 0 ? -far : far;
    return x == x ? result : x;
}

// In double, the oracle's type, exactness before speed.
PROSMA_INLINE Vector<double> hyperbolic_tangent(Vector<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = ::tanh(x[i]);
    return x;
}

}  // namespace prosma::PROSMA_LEVEL

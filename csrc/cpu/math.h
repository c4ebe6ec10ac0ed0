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

// e^x for x up to 88, shorter by two multiply-adds: relative error 1e-7 at 0, and 4e-8 * |x| more. Below -86.6 it stays
// at e^-86.6. The polynomial is minimax for 2^r, |r| <= 1/2.
PROSMA_INLINE Vector<float> exponential(Vector<float> x) {
    const Vector<float> bounded = larger_of(broadcast<float>(-86.6f), x);  // a NaN passes
    const Vector<float> shifted = bounded * 1.44269504f + 12582912.0f;        // 1.5 * 2^23: rounds to the nearest integer
    const Vector<float> n = shifted - 12582912.0f;
    const Vector<float> r = bounded * 1.44269504f - n;
    Vector<float> series = r * 1.3276472e-3f + 9.6755414e-3f;
    series = series * r + 5.5507133e-2f;
    series = series * r + 2.4022120e-1f;
    series = series * r + 6.9314697e-1f;
    series = series * r + 1.0f;
    return bits_of<Vector<float>>(bits_of<Words>(series) + (bits_of<Words>(shifted) << 23));
}

// The natural logarithm of positive numbers that are not subnormal, to 1 ulp or two, near 1 as well: with the nearest
// power of two divided out, ln(1 + f) = f - f^2/2 + f^3 * polynomial.
PROSMA_INLINE Vector<float> logarithm(Vector<float> x) {
    const Words root_half = bits_of<Words>(broadcast<float>(0.70710678f));
    typedef int32_t Whole __attribute__((vector_size(VECTOR_BYTES)));
    const Whole exponent = (bits_of<Whole>(x) - bits_of<Whole>(root_half)) >> 23;
    const Vector<float> f = bits_of<Vector<float>>(bits_of<Words>(x) - (bits_of<Words>(exponent) << 23)) - 1.0f;
    const Vector<float> n = __builtin_convertvector(exponent, Vector<float>);
    Vector<float> series = f * -8.3054925e-2f + 1.2798944e-1f;
    series = series * f - 1.2943403e-1f;
    series = series * f + 1.4190230e-1f;
    series = series * f - 1.6643489e-1f;
    series = series * f + 2.0001880e-1f;
    series = series * f - 2.5000281e-1f;
    series = series * f + 3.3333327e-1f;
    const Vector<float> square = f * f;
    const Vector<float> small = series * square * f + n * -2.12194440e-4f - 0.5f * square;
    const Vector<float> result = f + small + n * 0.693359375f;
    return x == x ? result : x;
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
PROSMA_INLINE Vector<double> exponential(Vector<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = ::exp(x[i]);
    return x;
}

PROSMA_INLINE Vector<double> logarithm(Vector<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = ::log(x[i]);
    return x;
}

PROSMA_INLINE Vector<double> hyperbolic_tangent(Vector<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = ::tanh(x[i]);
    return x;
}

}  // namespace prosma::PROSMA_LEVEL

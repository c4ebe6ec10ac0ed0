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

// e^x for every x: 0 below -87, where floats lose their last bits, and no more than e^88 above. Lanes of NaN are not kept.
PROSMA_INLINE Vector<float> exponential_or_zero(Vector<float> x) {
    const Vector<float> low = broadcast<float>(-87.0f), high = broadcast<float>(88.0f);
    const Vector<float> bounded = x < low ? low : x > high ? high : x;
    return x < low ? zero<float>() : exponential_of_negative(bounded);
}

// The same to 2e-16 for |x| < 700: 0 below, no more than e^709 above. The series of e^r ends at r^13 / 13!, 1.6e-16.
PROSMA_INLINE Vector<double> exponential_or_zero(Vector<double> x) {
    const Vector<double> low = broadcast<double>(-708.0), high = broadcast<double>(709.0);
    const Vector<double> bounded = x < low ? low : x > high ? high : x;
    const Vector<double> shifted = bounded * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
    const Vector<double> n = shifted - 6755399441055744.0;
    const Vector<double> r = (bounded - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    Vector<double> series = r * (1.0 / 6227020800) + 1.0 / 479001600;
    series = series * r + 1.0 / 39916800;
    series = series * r + 1.0 / 3628800;
    series = series * r + 1.0 / 362880;
    series = series * r + 1.0 / 40320;
    series = series * r + 1.0 / 5040;
    series = series * r + 1.0 / 720;
    series = series * r + 1.0 / 120;
    series = series * r + 1.0 / 24;
    series = series * r + 1.0 / 6;
    series = series * r + 0.5;
    series = series * r * r + r + 1.0;
    const Mask<double> exponent =
        (bits_of<Mask<double>>(shifted) - bits_of<Mask<double>>(broadcast<double>(6755399441055744.0)) + 1023) << 52;
    return x < low ? zero<double>() : series * bits_of<Vector<double>>(exponent);
}

// log(x) for positive normal x, to 2 ulp: x = 2^n m with m around 1, and log(m) = 2 artanh((m - 1) / (m + 1)) by its series,
// which ends at s^23 / 23, 6e-18 of the first term for |s| <= 0.172.
PROSMA_INLINE Vector<double> logarithm_of_normal(Vector<double> x) {
    const Mask<double> bits = bits_of<Mask<double>>(x);
    const Mask<double> above = bits - 0x3fe6a09e667f3bcdLL;  // from sqrt(1/2)
    const Mask<double> n = above >> 52;
    const Vector<double> m = bits_of<Vector<double>>(bits - (n << 52));
    const Vector<double> s = (m - 1.0) / (m + 1.0), square = s * s;
    Vector<double> series = square * (1.0 / 23) + 1.0 / 21;
    series = series * square + 1.0 / 19;
    series = series * square + 1.0 / 17;
    series = series * square + 1.0 / 15;
    series = series * square + 1.0 / 13;
    series = series * square + 1.0 / 11;
    series = series * square + 1.0 / 9;
    series = series * square + 1.0 / 7;
    series = series * square + 1.0 / 5;
    series = series * square + 1.0 / 3;
    const Vector<double> whole = __builtin_convertvector(n, Vector<double>);
    return whole * 0.693147180369123816490 + (2.0 * s + (2.0 * s * square * series + whole * 1.90821492927058770002e-10));
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

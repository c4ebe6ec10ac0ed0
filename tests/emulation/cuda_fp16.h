// CUDA's __half, for loads and stores: the kernels compute in float32.
#pragma once

#include "cuda_runtime.h"

struct __half {
    unsigned short bits;
};

inline float __half2float(__half value) {
    const unsigned sign = unsigned(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
    if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    const float scaled = __uint_as_float(magnitude << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(scaled));
}

// To nearest, ties to even: the addition of a power of two rounds where the last bit of the half will stand.
inline __half __float2half(float value) {
    const unsigned sign = __float_as_uint(value) >> 16 & 0x8000, bits = __float_as_uint(value) & 0x7fffffff;
    const float magnitude = __uint_as_float(bits);
    if (bits > 0x7f800000) return {static_cast<unsigned short>(sign | 0x7fff)};
    if (magnitude >= 65520.0f) return {static_cast<unsigned short>(sign | 0x7c00)};
    if (magnitude < 0x1p-14f) return {static_cast<unsigned short>(sign | (__float_as_uint(magnitude + 0.5f) - 0x3f000000))};
    const unsigned rounded = bits + 0xfff + (bits >> 13 & 1);
    return {static_cast<unsigned short>(sign | ((rounded >> 13) - (112 << 10)))};
}

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

// CUDA's __nv_bfloat16, for loads and stores: the kernels compute in float32.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    unsigned short bits;
};

inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }

// To nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return {static_cast<unsigned short>(0x7fff)};
    return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

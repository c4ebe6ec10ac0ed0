// Products of small matrices by the lanes of one warp: out (16, 8) += a (16, 8) b (8, 8).
//
// Of the lane l, with row = l / 4 and column = l % 4:
//     a[0], a[1], a[2], a[3] = A[row][column], A[row + 8][column], A[row][column + 4], A[row + 8][column + 4]
//     b[0], b[1] = B[column][row], B[column + 4][row]
//     out[0], out[1], out[2], out[3] = OUT[row][2 column], OUT[row][2 column + 1], and the same of row + 8
// Which of the eight inner numbers stand in column and which in column + 4 is free, as long as A and B agree.
//
// float: TF32 units. float32's precision takes three products of numbers split into two TF32 parts; the product of
// the two small parts is below float32's own rounding. double: the float64 units.
#pragma once

#include "device.h"

namespace prosma::cuda {

// The nearest number of 10 mantissa bits, ties away from zero.
__device__ __forceinline__ float rounded_to_tf32(float x) {
#if defined(__CUDA_ARCH__)
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    const unsigned bits = __float_as_uint(x);
    return (bits & 0x7f800000) == 0x7f800000 ? x : __uint_as_float((bits + 0x1000) & ~0x1fffu);
#endif
}

#if !defined(__CUDA_ARCH__)

template <class C>
struct Fragments {
    C a[4], b[2];
};

#if defined(PROSMA_EMULATION)

template <class C>
void multiply_16_8_8(C (&out)[4], const C (&a)[4], const C (&b)[2], emulation::Site site = emulation::Site::current()) {
    Fragments<C> own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const emulation::Warp& warp = emulation::exchange(ALL_LANES, &own, sizeof(own), site);
    const int row = int(threadIdx.x) % WARP / 4, column = int(threadIdx.x) % 4;
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 8; ++k) {
            const int half = i / 2, n = 2 * column + i % 2;
            const auto of_a = emulation::given_by<Fragments<C>>(warp, unsigned(row * 4 + k % 4));
            const auto of_b = emulation::given_by<Fragments<C>>(warp, unsigned(n * 4 + k % 4));
            out[i] += of_a.a[half + k / 4 * 2] * of_b.b[k / 4];
        }
}

#else

template <class C>
__device__ void multiply_16_8_8(C (&)[4], const C (&)[4], const C (&)[2]) {}

#endif

#else

__device__ __forceinline__ void multiply_16_8_8(float (&out)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(out[0]), "+f"(out[1]), "+f"(out[2]), "+f"(out[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

__device__ __forceinline__ void multiply_8_8_4(double& out0, double& out1, double a, double b) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+d"(out0), "+d"(out1)
        : "d"(a), "d"(b));
}
__device__ __forceinline__ void multiply_16_8_8(double (&out)[4], const double (&a)[4], const double (&b)[2]) {
    multiply_8_8_4(out[0], out[1], a[0], b[0]);
    multiply_8_8_4(out[0], out[1], a[2], b[1]);
    multiply_8_8_4(out[2], out[3], a[1], b[0]);
    multiply_8_8_4(out[2], out[3], a[3], b[1]);
}

#endif

// A number as the units take it: itself, its TF32, or two TF32 numbers that sum up to it.
template <bool EXACT, class C, int N>
struct Split {
    C high[N], low[N];

    __device__ __forceinline__ void take(const C (&from)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if constexpr (sizeof(C) == 8) {
                high[i] = from[i];
            } else {
                high[i] = rounded_to_tf32(from[i]);
                // Of an infinity the rest would be NaN, which the product has anyway.
                if constexpr (EXACT) low[i] = rounded_to_tf32(from[i] - high[i]);
            }
        }
    }
};

// out += a b, small terms first.
template <bool EXACT, class C>
__device__ __forceinline__ void multiply(C (&out)[4], const Split<EXACT, C, 4>& a, const Split<EXACT, C, 2>& b) {
    if constexpr (EXACT && sizeof(C) == 4) {
        multiply_16_8_8(out, a.low, b.high);
        multiply_16_8_8(out, a.high, b.low);
    }
    multiply_16_8_8(out, a.high, b.high);
}

}  // namespace prosma::cuda

// The four types of the tensors in CUDA kernels: stored as they are, computed in float (double for double), and loaded
// and stored up to 16 bytes at a time.
//
//     for_type(a.type, [&](auto zero) { using T = decltype(zero); launch("...", kernel<T>, ...); });
//     Pack<T, 4> pack = load<4>(address);    to_computed(pack[0])    store(address, pack);
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "../arguments.h"

namespace prosma::cuda {

using float16 = __half;
using bfloat16 = __nv_bfloat16;

template <class T>
using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;

__host__ __device__ __forceinline__ float to_computed(float value) { return value; }
__host__ __device__ __forceinline__ double to_computed(double value) { return value; }
__host__ __device__ __forceinline__ float to_computed(float16 value) { return __half2float(value); }
__host__ __device__ __forceinline__ float to_computed(bfloat16 value) { return __bfloat162float(value); }

// To nearest, ties to even.
template <class T>
__host__ __device__ __forceinline__ T to_stored(Computed<T> value) {
    if constexpr (std::is_same_v<T, float16>)
        return __float2half(value);
    else if constexpr (std::is_same_v<T, bfloat16>)
        return __float2bfloat16(value);
    else
        return value;
}

// float16 or bfloat16, as a flag says at run time: for kernels that take long to compile, and little notice of it.
struct Bits16 {
    unsigned short bits;
};

// One number, through the read-only path.
template <class T>
__device__ __forceinline__ T load_one(const T* address) {
    if constexpr (std::is_same_v<T, Bits16>)
        return {__ldg(&address->bits)};
    else
        return __ldg(address);
}

template <class T>
__device__ __forceinline__ Computed<T> decoded(T value, bool brain) {
    if constexpr (std::is_same_v<T, Bits16>) {
        if (brain) return __uint_as_float(unsigned(value.bits) << 16);
        return __half2float(__ushort_as_half(value.bits));
    } else {
        return value;
    }
}

template <class T>
__device__ __forceinline__ T encoded(Computed<T> value, bool brain) {
    if constexpr (std::is_same_v<T, Bits16>)
        return {brain ? __bfloat16_as_ushort(__float2bfloat16(value)) : __half_as_ushort(__float2half(value))};
    else
        return value;
}

// Numbers side by side, aligned for one access.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
    T values[COUNT];
    __host__ __device__ __forceinline__ T& operator[](int i) { return values[i]; }
    __host__ __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

// How many numbers make 16 bytes.
template <class T>
constexpr int WIDEST = 16 / int(sizeof(T));

template <int BYTES>
struct Word;
template <>
struct Word<16> { using Type = uint4; };
template <>
struct Word<8> { using Type = uint2; };
template <>
struct Word<4> { using Type = unsigned; };
template <>
struct Word<2> { using Type = unsigned short; };
template <>
struct Word<1> { using Type = unsigned char; };

// A pack is read and written as a word of its size through a union, in which both are the same bytes. The union has a
// constructor because the half types have one, without which a union has none.
//
// Of memory that nobody writes while the kernel runs. The address must be a multiple of COUNT numbers.
template <int COUNT, class T>
__device__ __forceinline__ Pack<T, COUNT> load(const T* address) {
    using W = typename Word<int(sizeof(T)) * COUNT>::Type;
    union Both {
        W word;
        Pack<T, COUNT> pack;
        __device__ Both() {}
    } both;
    both.word = __ldg(reinterpret_cast<const W*>(address));
    return both.pack;
}

template <class T, int COUNT>
__device__ __forceinline__ typename Word<int(sizeof(T)) * COUNT>::Type word_of(const Pack<T, COUNT>& pack) {
    union Both {
        Pack<T, COUNT> pack;
        typename Word<int(sizeof(T)) * COUNT>::Type word;
        __device__ Both() {}
    } both;
    both.pack = pack;
    return both.word;
}

template <class T, int COUNT>
__device__ __forceinline__ void store(T* address, const Pack<T, COUNT>& pack) {
    *reinterpret_cast<typename Word<int(sizeof(T)) * COUNT>::Type*>(address) = word_of(pack);
}

// To global memory, by one instruction whatever stands beside it: where another branch writes the same numbers one by one, the
// compiler makes single writes of `store` too.
template <class T, int COUNT>
__device__ __forceinline__ void store_whole(T* address, const Pack<T, COUNT>& pack) {
    __stwb(reinterpret_cast<typename Word<int(sizeof(T)) * COUNT>::Type*>(address), word_of(pack));
}

// Shared memory, or global memory that this kernel writes: the same without the read-only path.
template <int COUNT, class T>
__device__ __forceinline__ Pack<T, COUNT> load_shared(const T* address) {
    return *reinterpret_cast<const Pack<T, COUNT>*>(address);
}

// Calls `body` with a number of the type; PROSMA_FEW_TYPES leaves float64 and float16 out, for a test that has seconds.
template <class Body>
void for_type(DataType type, const Body& body) {
    switch (type) {
        case DataType::float32: return body(float{});
        case DataType::bfloat16: return body(bfloat16{});
#if !defined(PROSMA_FEW_TYPES)
        case DataType::float64: return body(double{});
        case DataType::float16: return body(float16{});
#else
        default: throw std::invalid_argument("this build has float32 and bfloat16 only");
#endif
    }
}

// The same with both half types as Bits16; `brain` for bfloat16 is the caller's to pass on.
template <class Body>
void for_storage(DataType type, const Body& body) {
    switch (type) {
        case DataType::float32: return body(float{});
        case DataType::float16:
        case DataType::bfloat16: return body(Bits16{});
#if !defined(PROSMA_FEW_TYPES)
        case DataType::float64: return body(double{});
#else
        default: throw std::invalid_argument("this build has no float64");
#endif
    }
}

}  // namespace prosma::cuda

// What a thread does by itself, by CUDA's own names: atomics, loads and stores past the caches, and arithmetic.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <type_traits>

// Integers only: a sum of floating-point numbers would depend on the order.
template <class T, class Change>
T emulated_atomic(T* address, const Change& change) {
    static_assert(std::is_integral_v<T>, "atomics are for integers");
    const T before = *address;
    *address = change(before);
    return before;
}
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
    return emulated_atomic(address, [=](T before) { return T(before + value); });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
    return emulated_atomic(address, [=](T before) { return T(before | value); });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
    return emulated_atomic(address, [=](T before) { return std::min(before, value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
    return emulated_atomic(address, [=](T before) { return std::max(before, value); });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
    return emulated_atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    return emulated_atomic(address, [=](T before) { return before == expected ? value : before; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}

template <class T>
T __ldg(const T* address) { return *address; }
template <class T>
T __ldcs(const T* address) { return *address; }
template <class T>
T __ldcg(const T* address) { return *address; }
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T>
void __stwb(T* address, std::type_identity_t<T> value) { *address = value; }

template <class T>
T min(T a, T b) { return b < a ? b : a; }
template <class T>
T max(T a, T b) { return a < b ? b : a; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / ::sqrt(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }

// One vector register of the processor level this file is compiled for, in the compiler's own vector types.
//
// Everything of csrc/cpu is compiled once a level, in a namespace of that level's name. Nothing here uses the
// standard library's templates: their code, compiled for AVX-512 under a name that all levels share, could be the
// copy that the linker keeps for everybody.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define PROSMA_INLINE inline __attribute__((always_inline))

namespace prosma::PROSMA_LEVEL {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PROSMA_AVX512 1
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T>
struct Register;
template <>
struct Register<float> {
    typedef float Values __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct Register<double> {
    typedef double Values __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(VECTOR_BYTES)));
};

template <class T>
using Vector = typename Register<T>::Values;
template <class T>
using Mask = typename Register<T>::Mask;
template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

template <class T>
PROSMA_INLINE Vector<T> load(const T* from) {
    Vector<T> values;
    memcpy(&values, from, sizeof(values));
    return values;
}

template <class T>
PROSMA_INLINE void store(T* to, Vector<T> values) {
    memcpy(to, &values, sizeof(values));
}

template <class T>
PROSMA_INLINE Vector<T> broadcast(T value) {
    return value - Vector<T>{};  // not +: 0 + (-0) would lose the sign
}

template <class T>
PROSMA_INLINE Vector<T> zero() {
    return Vector<T>{};
}

template <class T>
PROSMA_INLINE Mask<T> lane_numbers() {
    Mask<T> lane{};
    for (int i = 0; i < LANES<T>; ++i) lane[i] = i;
    return lane;
}

// The first `count` lanes of `values`, and 0 in the others.
template <class T>
PROSMA_INLINE Vector<T> keep_first(Vector<T> values, int count) {
    return lane_numbers<T>() < count ? values : zero<T>();
}

template <class T>
PROSMA_INLINE T sum_of_lanes(Vector<T> values) {
    // Halves onto halves: a fixed order, and the error of log2(lanes) additions.
    T lanes[LANES<T>];
    memcpy(lanes, &values, sizeof(values));
    for (int half = LANES<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// LANES consecutive values out of two vectors that follow each other: those at `first` and after, lane by lane.
// A load that straddles two cache lines takes 2.2 cycles on Zen 5, where this takes none from the multiply-adds.
#if defined(PROSMA_AVX512)
constexpr bool HAS_WINDOWS = true;
PROSMA_INLINE Vector<float> window(Vector<float> low, Vector<float> high, Mask<float> first) {
    return (Vector<float>)_mm512_permutex2var_ps((__m512)low, (__m512i)first, (__m512)high);
}
PROSMA_INLINE Vector<double> window(Vector<double> low, Vector<double> high, Mask<double> first) {
    return (Vector<double>)_mm512_permutex2var_pd((__m512d)low, (__m512i)first, (__m512d)high);
}
#else
constexpr bool HAS_WINDOWS = false;
template <class T>
PROSMA_INLINE Vector<T> window(Vector<T> low, Vector<T>, Mask<T>) {
    return low;  // never called
}
#endif

// Every second lane of the result from `first`, the others from `second`: of their lower or of their upper halves.
template <class T, bool UPPER>
PROSMA_INLINE Vector<T> interleave(Vector<T> first, Vector<T> second) {
    Mask<T> from{};
    for (int i = 0; i < LANES<T>; ++i) from[i] = i / 2 + (UPPER ? LANES<T> / 2 : 0) + i % 2 * LANES<T>;
#if defined(PROSMA_AVX512)
    return window(first, second, from);
#elif defined(__clang__)
    Vector<T> result{};
    for (int i = 0; i < LANES<T>; ++i) result[i] = i % 2 ? second[from[i] - LANES<T>] : first[from[i]];
    return result;
#else
    return __builtin_shuffle(first, second, from);
#endif
}

// A square of LANES vectors, transposed in place: log2(LANES) rounds of interleaving its halves.
template <class T>
PROSMA_INLINE void transpose(Vector<T>* square) {
    constexpr int HALF = LANES<T> / 2;
    for (int round = 1; round < LANES<T>; round *= 2) {
        Vector<T> from[LANES<T>];
        memcpy(from, square, sizeof(from));
        for (int i = 0; i < HALF; ++i) {
            square[2 * i] = interleave<T, false>(from[i], from[i + HALF]);
            square[2 * i + 1] = interleave<T, true>(from[i], from[i + HALF]);
        }
    }
}

// The larger of each pair of lanes; where one is NaN, the second. (Of a comparison and a choice the compiler makes two
// instructions if one operand is a constant.)
PROSMA_INLINE Vector<float> larger_of(Vector<float> first, Vector<float> second) {
#if defined(PROSMA_AVX512)
    return (Vector<float>)_mm512_maskz_max_ps(__mmask16(0xffff), (__m512)first, (__m512)second);
#elif defined(__AVX2__)
    return (Vector<float>)_mm256_max_ps((__m256)first, (__m256)second);
#else
    return first > second ? first : second;
#endif
}

template <class T>
PROSMA_INLINE Vector<T> absolute(Vector<T> values) {
    return values < 0 ? -values : values;
}

}  // namespace prosma::PROSMA_LEVEL

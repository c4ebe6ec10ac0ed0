// How tensors are read and written: the four element types, and rows of any stride.
//
// Half types exist only in memory: they are widened to float when loaded and rounded to nearest even when stored.
#pragma once

#include "../arguments.h"
#include "vector.h"

namespace prosma::PROSMA_LEVEL {

struct Float16 {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

// What a type is computed in.
template <class S>
struct ComputeOf {
    using Type = float;
};
template <>
struct ComputeOf<double> {
    using Type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::Type;

template <class To, class From>
PROSMA_INLINE To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

PROSMA_INLINE float widen(float value) { return value; }
PROSMA_INLINE double widen(double value) { return value; }
PROSMA_INLINE float widen(BFloat16 value) { return bits_of<float>(uint32_t(value.bits) << 16); }

PROSMA_INLINE float widen(Float16 value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_of<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return bits_of<float>(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = float(magnitude) * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

template <class S>
struct Narrow;
template <>
struct Narrow<float> {
    static PROSMA_INLINE float from(float value) { return value; }
};
template <>
struct Narrow<double> {
    static PROSMA_INLINE double from(double value) { return value; }
};
template <>
struct Narrow<BFloat16> {
    static PROSMA_INLINE BFloat16 from(float value) {
        const uint32_t bits = bits_of<uint32_t>(value);
        if (value != value) return {uint16_t(bits >> 16 | 0x40u)};
        return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
    }
};
template <>
struct Narrow<Float16> {
    static PROSMA_INLINE Float16 from(float value) {
        const uint32_t bits = bits_of<uint32_t>(value);
        const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
        const uint32_t magnitude = bits & 0x7fffffffu;
        if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
        if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and beyond round to infinity
        if (magnitude < 0x38800000u) {  // below 2^-14: the addition aligns the subnormal's bits and rounds them
            const float aligned = bits_of<float>(magnitude) + 0.5f;
            return {uint16_t(sign | (bits_of<uint32_t>(aligned) - 0x3f000000u))};
        }
        const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
        return {uint16_t(sign | rounded >> 13)};
    }
};

// Whole vectors of consecutive elements.

template <class S>
PROSMA_INLINE Vector<Compute<S>> load_vector(const S* from) {
    Vector<Compute<S>> values;
    for (int i = 0; i < LANES<Compute<S>>; ++i) values[i] = widen(from[i]);
    return values;
}
template <class S>
PROSMA_INLINE void store_vector(S* to, Vector<Compute<S>> values) {
    for (int i = 0; i < LANES<Compute<S>>; ++i) to[i] = Narrow<S>::from(values[i]);
}
template <>
PROSMA_INLINE Vector<float> load_vector(const float* from) {
    return load(from);
}
template <>
PROSMA_INLINE Vector<double> load_vector(const double* from) {
    return load(from);
}
template <>
PROSMA_INLINE void store_vector(float* to, Vector<float> values) {
    store(to, values);
}
template <>
PROSMA_INLINE void store_vector(double* to, Vector<double> values) {
    store(to, values);
}

typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

template <>
PROSMA_INLINE Vector<float> load_vector(const BFloat16* from) {
    Halves halves;
    memcpy(&halves, from, sizeof(halves));
    return bits_of<Vector<float>>(__builtin_convertvector(halves, Words) << 16);
}
template <>
PROSMA_INLINE void store_vector(BFloat16* to, Vector<float> values) {
    const Words bits = bits_of<Words>(values);
    const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const Words quiet_nan = bits >> 16 | 0x40u;
    const Halves halves = __builtin_convertvector(values != values ? quiet_nan : rounded, Halves);
    memcpy(to, &halves, sizeof(halves));
}
#if defined(PROSMA_AVX512)
constexpr __mmask16 ALL_LANES = 0xffff;  // the unmasked forms make GCC 12 warn of its own headers
template <>
PROSMA_INLINE Vector<float> load_vector(const Float16* from) {
    return (Vector<float>)_mm512_maskz_cvtph_ps(ALL_LANES, _mm256_loadu_si256((const __m256i*)from));
}
template <>
PROSMA_INLINE void store_vector(Float16* to, Vector<float> values) {
    _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(ALL_LANES, (__m512)values, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
template <>
PROSMA_INLINE Vector<float> load_vector(const Float16* from) {
    return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
template <>
PROSMA_INLINE void store_vector(Float16* to, Vector<float> values) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// Partial vectors, at the ends of rows. Never touches an element beyond `count`.

template <class S>
PROSMA_INLINE Vector<Compute<S>> load_first(const S* from, int count) {
    S elements[LANES<Compute<S>>] = {};
    memcpy(elements, from, sizeof(S) * size_t(count));
    return load_vector<S>(elements);
}
template <class S>
PROSMA_INLINE void store_first(S* to, Vector<Compute<S>> values, int count) {
    S elements[LANES<Compute<S>>];
    store_vector<S>(elements, values);
    memcpy(to, elements, sizeof(S) * size_t(count));
}
#if defined(PROSMA_AVX512)
template <>
PROSMA_INLINE Vector<float> load_first(const float* from, int count) {
    return (Vector<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
}
template <>
PROSMA_INLINE void store_first(float* to, Vector<float> values, int count) {
    _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)values);
}
#endif

// Writes past the caches: a result larger than they are would otherwise be read from memory before it is overwritten.
template <class S>
PROSMA_INLINE void stream_vector(S* to, Vector<Compute<S>> values) {
    store_vector<S>(to, values);
}
#if defined(PROSMA_AVX512)
template <>
PROSMA_INLINE void stream_vector(float* to, Vector<float> values) {
    if ((uintptr_t)to % VECTOR_BYTES == 0)
        _mm512_stream_ps(to, (__m512)values);
    else
        store(to, values);
}
#elif defined(__AVX2__)
template <>
PROSMA_INLINE void stream_vector(float* to, Vector<float> values) {
    if ((uintptr_t)to % VECTOR_BYTES == 0)
        _mm256_stream_ps(to, (__m256)values);
    else
        store(to, values);
}
#endif

PROSMA_INLINE void finish_streaming() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

// One row of a tensor as a sequence of vectors, whichever axis their lanes run along.
template <class S>
struct Row {
    using T = Compute<S>;
    S* start;
    int64_t vector_stride, lane_stride;
    int64_t whole;        // so many vectors, from the first on, are LANES consecutive elements
    int64_t last;         // number of the last vector
    int live, live_last;  // lanes that exist: in every vector, and in the last one

    PROSMA_INLINE int live_in(int64_t v) const { return v == last ? live_last : live; }

    // KNOWN_WHOLE: the caller knows that v < whole, see for_each_vector.
    template <bool KNOWN_WHOLE = false>
    PROSMA_INLINE Vector<T> read(int64_t v) const {
        const S* from = start + v * vector_stride;
        return KNOWN_WHOLE || v < whole ? load_vector<S>(from) : read_some(from, live_in(v));
    }

    template <bool KNOWN_WHOLE = false>
    PROSMA_INLINE void write(int64_t v, Vector<T> values, bool streaming) const {
        S* to = start + v * vector_stride;
        if (!KNOWN_WHOLE && v >= whole)
            write_some(to, values, live_in(v));
        else if (streaming)
            stream_vector<S>(to, values);
        else
            store_vector<S>(to, values);
    }

    __attribute__((noinline)) Vector<T> read_some(const S* from, int count) const {
        if (lane_stride == 1) return load_first<S>(from, count);
        T lanes[LANES<T>] = {};
        for (int i = 0; i < count; ++i) lanes[i] = widen(from[i * lane_stride]);
        return load<T>(lanes);
    }

    __attribute__((noinline)) void write_some(S* to, Vector<T> values, int count) const {
        if (lane_stride == 1) return store_first<S>(to, values, count);
        T lanes[LANES<T>];
        store<T>(lanes, values);
        for (int i = 0; i < count; ++i) to[i * lane_stride] = Narrow<S>::from(lanes[i]);
    }
};

template <bool VALUE>
struct Known {
    static constexpr bool value = VALUE;
};

// Calls body(v, Known<whole>) for the vectors [first, end): those that are whole in every row concerned are most, and
// need no questions asked about each.
template <class Body>
PROSMA_INLINE void for_each_vector(int64_t first, int64_t end, int64_t whole, const Body& body) {
    int64_t v = first;
    for (; v < end && v < whole; ++v) body(v, Known<true>{});
    for (; v < end; ++v) body(v, Known<false>{});
}

PROSMA_INLINE int64_t least(int64_t a, int64_t b, int64_t c) {
    const int64_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

// The rows of one plane of one image's channel group.
template <class S>
struct Rows {
    Row<S> first;
    int64_t row_stride;

    PROSMA_INLINE Row<S> operator[](int64_t row) const {
        Row<S> result = first;
        result.start += row * row_stride;
        return result;
    }
};

// Which axis the lanes of a vector run along, chosen from the strides of the tensor that leads the work.
struct Layout {
    bool over_channels;
    int lanes;
    int64_t channels, width, groups, vectors;  // channel groups; vectors in a row

    Layout(const Tensor& leader, const int64_t* sizes, int lanes_of_type) : lanes(lanes_of_type) {
        channels = sizes[CHANNEL];
        width = sizes[WIDTH];
        // With fewer channels than a quarter of the lanes, gathering along the width wastes less.
        over_channels = leader.strides[CHANNEL] == 1 && leader.strides[WIDTH] != 1 && channels * 4 >= lanes;
        groups = over_channels ? (channels + lanes - 1) / lanes : channels;
        vectors = over_channels ? width : (width + lanes - 1) / lanes;
    }

    int64_t first_channel(int64_t group) const { return over_channels ? group * lanes : group; }

    template <class S>
    Rows<S> rows(const Tensor& tensor, int64_t batch, int64_t channel, int64_t plane) const {
        const int64_t* s = tensor.strides;
        Row<S> row;
        row.start = static_cast<S*>(tensor.data) + batch * s[BATCH] + channel * s[CHANNEL] + plane * s[DEPTH];
        row.lane_stride = s[over_channels ? CHANNEL : WIDTH];
        row.vector_stride = over_channels ? s[WIDTH] : lanes * s[WIDTH];
        row.last = vectors - 1;
        row.live = over_channels && channels - channel < lanes ? int(channels - channel) : lanes;
        row.live_last = over_channels ? row.live : int(width - row.last * lanes);
        row.whole = row.lane_stride != 1 || row.live != lanes ? 0 : row.live_last == lanes ? vectors : vectors - 1;
        return {row, s[HEIGHT]};
    }

    // One value a channel, as the lanes of this channel group see it.
    template <class T>
    Vector<T> channel_values(const void* values, int64_t channel, T otherwise) const {
        Vector<T> result = broadcast<T>(otherwise);
        if (!values) return result;
        for (int lane = 0; lane < LANES<T>; ++lane) {
            const int64_t own = channel + (over_channels ? lane : 0);
            if (own < channels) result[lane] = static_cast<const T*>(values)[own];
        }
        return result;
    }
};

}  // namespace prosma::PROSMA_LEVEL

// The arithmetic of Sinkhorn on rows of the kernel matrix K_ij = exp(S_ij * scale + f_i + g_j).
//
// Exponents are formed in double: at |S| / epsilon = 1e4 a float's rounding alone would change K by 6e-4. The products
// with K are made in the type T that is computed in. Rows are padded to whole vectors; where a column is only padding, g is
// PADDING and K is 0, so that no loop asks where a row ends.
//
// A sweep takes GROUP rows at a time: their sums with v, then u = mass / sum, and their part of the column sums while they
// are still in L1, in one loop with the next rows' sums with v. v and the column sums are loaded once a group.
#pragma once

#include "math.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace prosma::PROSMA_LEVEL {

constexpr int GROUP = 4;
constexpr double PADDING = -1e300;

// A scaling may not pass `largest`, nor a sum fall under `smallest`: then what K lost where it is below the smallest
// number of the type (1e-38 * 1e13 * 1e4 rows) is less than 1e-7 of every sum.
template <class T>
struct Range;
template <>
struct Range<float> {
    static constexpr float largest = 1e13f, smallest = 1e-14f;
};
template <>
struct Range<double> {
    static constexpr double largest = 1e120, smallest = 1e-120;
};

// While it lives, numbers below the smallest normal one are 0: an addition that meets one takes 150 cycles.
class WithoutDenormals {
public:
#if defined(__SSE__)
    WithoutDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
    ~WithoutDenormals() { _mm_setcsr(before_); }
#else
    WithoutDenormals() {}
#endif
    WithoutDenormals(const WithoutDenormals&) = delete;
    WithoutDenormals& operator=(const WithoutDenormals&) = delete;

private:
#if defined(__SSE__)
    unsigned before_;
#endif
};

template <class T>
constexpr int64_t whole_vectors(int64_t count) {
    return (count + LANES<T> - 1) / LANES<T> * LANES<T>;
}
constexpr int64_t whole_groups(int64_t count) { return (count + GROUP - 1) / GROUP * GROUP; }

// LANES<double> numbers as doubles, and back.
PROSMA_INLINE Vector<double> load_double(const double* from) { return load<double>(from); }
PROSMA_INLINE Vector<double> load_double(const float* from) {
#if defined(PROSMA_AVX512)
    return (Vector<double>)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));  // GCC 12 makes two halves of it by itself
#else
    typedef float Half __attribute__((vector_size(VECTOR_BYTES / 2)));
    Half values;
    memcpy(&values, from, sizeof(values));
    return __builtin_convertvector(values, Vector<double>);
#endif
}

// How many vectors of doubles make one of T.
template <class T>
constexpr int PARTS = int(sizeof(double) / sizeof(T));

PROSMA_INLINE Vector<double> narrow(const Vector<double> (&parts)[1]) { return parts[0]; }
PROSMA_INLINE Vector<float> narrow(const Vector<double> (&parts)[2]) {
#if defined(PROSMA_AVX512)
    const __m512 low = _mm512_castps256_ps512(_mm512_maskz_cvtpd_ps(0xff, (__m512d)parts[0]));
    return (Vector<float>)_mm512_maskz_insertf32x8(ALL_LANES, low, _mm512_maskz_cvtpd_ps(0xff, (__m512d)parts[1]), 1);
#elif defined(__AVX2__)
    return (Vector<float>)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)parts[1]), _mm256_cvtpd_ps((__m256d)parts[0]));
#else
    Vector<float> values;
    for (int i = 0; i < LANES<float>; ++i) values[i] = float(parts[i / LANES<double>][i % LANES<double>]);
    return values;
#endif
}

// The largest S_j * scale + g_j of a row.
template <class T>
double row_maximum(const T* scores, double scale, const double* g, int64_t length) {
    constexpr int CHAINS = LANES<T> / LANES<double> * 2;
    Vector<double> largest[CHAINS];
    for (int i = 0; i < CHAINS; ++i) largest[i] = broadcast<double>(-1e305);
    int64_t j = 0;
    const auto step = [&](int chain) {
        const Vector<double> x = load_double(scores + j) * scale + load<double>(g + j);
        largest[chain] = x > largest[chain] ? x : largest[chain];
        j += LANES<double>;
    };
    while (j + CHAINS * LANES<double> <= length)
        for (int i = 0; i < CHAINS; ++i) step(i);
    while (j < length) step(0);
    double result = largest[0][0];
    for (int i = 0; i < CHAINS; ++i)
        for (int lane = 0; lane < LANES<double>; ++lane) result = largest[i][lane] > result ? largest[i][lane] : result;
    return result;
}

// largest_j = max(largest_j, S_j * scale + f)
template <class T>
void raise_column_maxima(const T* scores, double scale, double f, int64_t length, double* largest) {
    for (int64_t j = 0; j < length; j += LANES<double>) {
        const Vector<double> x = load_double(scores + j) * scale + f, before = load<double>(largest + j);
        store<double>(largest + j, x > before ? x : before);
    }
}

// Which of the potentials is added first. Where |S| * scale is so large that the order matters (1e16 and more), only the
// potential that was made last, from sums in the same order, keeps the exponents below 0.
enum class Order { column_first, row_first };

// K_j = exp(S_j * scale + f + g_j) for one row.
template <Order ORDER, class T>
void exponentiate_row(const T* scores, double scale, double f, const double* g, int64_t length, T* kernel) {
    for (int64_t j = 0; j < length; j += LANES<T>) {
        Vector<double> x[PARTS<T>];
        for (int part = 0; part < PARTS<T>; ++part) {
            const int64_t at = j + part * LANES<double>;
            const Vector<double> score = load_double(scores + at) * scale;
            x[part] = ORDER == Order::column_first ? (score + load<double>(g + at)) + f : (score + f) + load<double>(g + at);
        }
        store<T>(kernel + j, exponential_or_zero(narrow(x)));
    }
}

// The sums of the lanes of GROUP vectors. The chain of a sweep passes here once a group: half the time of a scalar loop.
template <class T>
PROSMA_INLINE void sums_of_lanes(const Vector<T> (&vectors)[GROUP], T* sums) {
    for (int r = 0; r < GROUP; ++r) sums[r] = sum_of_lanes<T>(vectors[r]);
}
#if defined(__AVX2__)
PROSMA_INLINE __m256 folded(Vector<float> values) {
#if defined(PROSMA_AVX512)
    values += (Vector<float>)_mm512_maskz_shuffle_f32x4(ALL_LANES, (__m512)values, (__m512)values, 0x4e);
#endif
    __m256 low;
    memcpy(&low, &values, sizeof(low));
    return low;
}
PROSMA_INLINE __m256d folded(Vector<double> values) {
#if defined(PROSMA_AVX512)
    values += (Vector<double>)_mm512_maskz_shuffle_f64x2(0xff, (__m512d)values, (__m512d)values, 0x4e);
#endif
    __m256d low;
    memcpy(&low, &values, sizeof(low));
    return low;
}
template <>
PROSMA_INLINE void sums_of_lanes<float>(const Vector<float> (&vectors)[GROUP], float* sums) {
    const __m256 low = _mm256_hadd_ps(folded(vectors[0]), folded(vectors[1]));
    const __m256 high = _mm256_hadd_ps(folded(vectors[2]), folded(vectors[3]));
    const __m256 both = _mm256_hadd_ps(low, high);
    _mm_storeu_ps(sums, _mm256_castps256_ps128(both) + _mm256_extractf128_ps(both, 1));
}
template <>
PROSMA_INLINE void sums_of_lanes<double>(const Vector<double> (&vectors)[GROUP], double* sums) {
    const __m256d low = _mm256_hadd_pd(folded(vectors[0]), folded(vectors[1]));
    const __m256d high = _mm256_hadd_pd(folded(vectors[2]), folded(vectors[3]));
    _mm256_storeu_pd(sums, _mm256_permute2f128_pd(low, high, 0x20) + _mm256_permute2f128_pd(low, high, 0x31));
}
#endif

// sums_r = sum_j K_rj v_j for the GROUP rows at `kernel`. With ADD also added_j += sum_r factors_r J_rj for the GROUP
// rows at `before`, in the same loop: while these come from L1, the others are on their way from L2.
template <bool ADD, class T>
PROSMA_INLINE void dot_group(const T* kernel, const T* v, int64_t length, T* sums, const T* before, const T* factors, T* added) {
    Vector<T> sum[GROUP] = {}, factor[GROUP];
    if (ADD)
        for (int r = 0; r < GROUP; ++r) factor[r] = broadcast<T>(factors[r]);
    for (int64_t j = 0; j < length; j += LANES<T>) {
        const Vector<T> value = load<T>(v + j);
#pragma GCC unroll 4
        for (int r = 0; r < GROUP; ++r) sum[r] += load<T>(kernel + r * length + j) * value;
        if (!ADD) continue;
        Vector<T> add = load<T>(added + j);
#pragma GCC unroll 4
        for (int r = 0; r < GROUP; ++r) add += load<T>(before + r * length + j) * factor[r];
        store<T>(added + j, add);
    }
    sums_of_lanes<T>(sum, sums);
}

// sums_j += sum_r factors_r K_rj
template <class T>
PROSMA_INLINE void add_group(const T* kernel, const T* factors, int64_t length, T* sums) {
    Vector<T> factor[GROUP];
    for (int r = 0; r < GROUP; ++r) factor[r] = broadcast<T>(factors[r]);
    for (int64_t j = 0; j < length; j += LANES<T>) {
        Vector<T> sum = load<T>(sums + j);
#pragma GCC unroll 4
        for (int r = 0; r < GROUP; ++r) sum += load<T>(kernel + r * length + j) * factor[r];
        store<T>(sums + j, sum);
    }
}

// sums_v_r = sum_j K_rj v_j and sums_w_r = sum_j K_rj w_j
template <class T>
PROSMA_INLINE void two_dots_group(const T* kernel, const T* v, const T* w, int64_t length, T* sums_v, T* sums_w) {
    Vector<T> sum_v[GROUP] = {}, sum_w[GROUP] = {};
    for (int64_t j = 0; j < length; j += LANES<T>) {
        const Vector<T> factor_v = load<T>(v + j), factor_w = load<T>(w + j);
#pragma GCC unroll 4
        for (int r = 0; r < GROUP; ++r) {
            const Vector<T> values = load<T>(kernel + r * length + j);
            sum_v[r] += values * factor_v;
            sum_w[r] += values * factor_w;
        }
    }
    sums_of_lanes<T>(sum_v, sums_v);
    sums_of_lanes<T>(sum_w, sums_w);
}

// total_j += sums_j, and sums_j = 0: sums over a block are made in T, those over blocks in double.
template <class T>
void move_sums(T* sums, int64_t length, double* total) {
    for (int64_t j = 0; j < length; j += LANES<double>)
        store<double>(total + j, load<double>(total + j) + load_double(sums + j));
    memset(sums, 0, sizeof(T) * size_t(length));
}

// One half step and the next over the rows of a block, in K and the scalings of what K holds:
//     row_sums_i = sum_j K_ij v_j,  u_i = mass_i / row_sums_i,  sums_j += K_ij u_i
// False if a row sum or u left the range; what was computed then is worth nothing.
//
// The columns' part of a group is added two groups later: what lies between, sum, quotient and broadcast, would otherwise be
// waited for once a group, 100 cycles where the loops take 160.
template <class T>
bool sweep_block(const T* kernel, int64_t rows, int64_t length, const double* mass, const T* v, T* u, T* row_sums, T* sums) {
    bool within = true;
    T factors[2][GROUP] = {};
    const int64_t step = GROUP * length, groups = whole_groups(rows) / GROUP;
    for (int64_t g = 0; g < groups; ++g) {
        T sum[GROUP], *factor = factors[g % 2];
        if (g < 2)
            dot_group<false, T>(kernel + g * step, v, length, sum, nullptr, nullptr, nullptr);
        else
            dot_group<true, T>(kernel + g * step, v, length, sum, kernel + (g - 2) * step, factor, sums);
        const int64_t i = g * GROUP;
        const int live = rows - i < GROUP ? int(rows - i) : GROUP;
        for (int r = 0; r < GROUP; ++r) {
            if (r >= live) {
                factor[r] = 0;
                continue;
            }
            row_sums[i + r] = sum[r];
            u[i + r] = factor[r] = T(mass[i + r]) / sum[r];
            within = within & (sum[r] >= Range<T>::smallest) & (factor[r] <= Range<T>::largest);
        }
    }
    for (int64_t g = groups < 2 ? 0 : groups - 2; g < groups; ++g) add_group<T>(kernel + g * step, factors[g % 2], length, sums);
    return within;
}

// sums_j += sum_i K_ij
template <class T>
void sum_block(const T* kernel, int64_t rows, int64_t length, T* sums) {
    T ones[GROUP];
    for (int64_t i = 0; i < rows; i += GROUP) {
        for (int r = 0; r < GROUP; ++r) ones[r] = i + r < rows ? T(1) : T(0);
        add_group<T>(kernel + i * length, ones, length, sums);
    }
}

// One iteration backwards over the rows of a block, in K and the scalings of what K holds. v is that before the iteration,
// w = (dL/dg) * (v after it) / b:
//     r_i = sum_j K_ij v_j,  u_i = mass_i / r_i,  phi_i = incoming_i - u_i sum_j K_ij w_j,  y_i = phi_i / r_i,  sums_j += y_i K_ij
template <class T>
void sweep_block_backward(const T* kernel, int64_t rows, int64_t length, const double* mass, const double* incoming,
                          const T* v, const T* w, T* u, T* y, T* sums) {
    for (int64_t i = 0; i < rows; i += GROUP) {
        T sum_v[GROUP], sum_w[GROUP], factor[GROUP];
        two_dots_group<T>(kernel + i * length, v, w, length, sum_v, sum_w);
        const int live = rows - i < GROUP ? int(rows - i) : GROUP;
        for (int r = 0; r < GROUP; ++r) {
            factor[r] = 0;
            if (r >= live) continue;
            u[i + r] = T(mass[i + r]) / sum_v[r];
            const T phi = (incoming ? T(incoming[i + r]) : T(0)) - u[i + r] * sum_w[r];
            y[i + r] = factor[r] = phi / sum_v[r];
        }
        add_group<T>(kernel + i * length, factor, length, sums);
    }
}

// sums_r = sum_j K_rj v_j for the rows of a block.
template <class T>
void dot_block(const T* kernel, int64_t rows, int64_t length, const T* v, T* sums) {
    for (int64_t i = 0; i < rows; i += GROUP) {
        T sum[GROUP];
        dot_group<false, T>(kernel + i * length, v, length, sum, nullptr, nullptr, nullptr);
        for (int r = 0; r < GROUP && i + r < rows; ++r) sums[i + r] = sum[r];
    }
}

// sums_j += factor * K_j v_j slope_j for one row; returns the sum of what it adds.
template <class T>
T add_slope_row(const T* kernel, const T* v, const T* slope, T factor, int64_t length, T* sums) {
    Vector<T> total{};
    for (int64_t j = 0; j < length; j += LANES<T>) {
        const Vector<T> part = factor * load<T>(kernel + j) * load<T>(v + j) * load<T>(slope + j);
        total += part;
        store<T>(sums + j, load<T>(sums + j) + part);
    }
    return sum_of_lanes<T>(total);
}

// Sums in double of K as it is, whatever its type: with sums in T they would not be of the same numbers.

// sums_r = sum_j K_rj v_j for GROUP rows.
template <class T>
PROSMA_INLINE void exact_dots_group(const T* kernel, const double* v, int64_t length, double* sums) {
    Vector<double> sum[GROUP] = {};
    for (int64_t j = 0; j < length; j += LANES<double>) {
        const Vector<double> value = load<double>(v + j);
#pragma GCC unroll 4
        for (int r = 0; r < GROUP; ++r) sum[r] += load_double(kernel + r * length + j) * value;
    }
    sums_of_lanes<double>(sum, sums);
}

// sums_j += sum_r factors_r K_rj for GROUP rows.
template <class T>
PROSMA_INLINE void exact_add_group(const T* kernel, const double* factors, int64_t length, double* sums) {
    for (int64_t j = 0; j < length; j += LANES<double>) {
        Vector<double> sum = load<double>(sums + j);
#pragma GCC unroll 4
        for (int r = 0; r < GROUP; ++r) sum += load_double(kernel + r * length + j) * factors[r];
        store<double>(sums + j, sum);
    }
}

// sums_j += factor * K_j v_j slope_j for one row; returns the sum of what it adds.
template <class T>
double exact_slope_row(const T* kernel, const T* v, const T* slope, double factor, int64_t length, double* sums) {
    Vector<double> total{};
    for (int64_t j = 0; j < length; j += LANES<double>) {
        const Vector<double> part = factor * load_double(kernel + j) * (load_double(v + j) * load_double(slope + j));
        total += part;
        store<double>(sums + j, load<double>(sums + j) + part);
    }
    return sum_of_lanes<double>(total);
}

// to_j = factor * K_j * (v_j slope_j - alpha - beta_j) for one row; `slope` may be null, for 0.
template <class T>
void exact_difference_row(const T* kernel, const T* v, const T* slope, double factor, double alpha, const double* beta,
                          int64_t length, T* to) {
    for (int64_t j = 0; j < length; j += LANES<T>) {
        Vector<double> parts[PARTS<T>];
        for (int part = 0; part < PARTS<T>; ++part) {
            const int64_t at = j + part * LANES<double>;
            Vector<double> value = -(alpha + load<double>(beta + at));
            if (slope) value += load_double(v + at) * load_double(slope + at);
            parts[part] = factor * load_double(kernel + at) * value;
        }
        store<T>(to + j, narrow(parts));
    }
}

// to_i = base_i + log(above_i / below_i) + constant
template <class T>
void add_logarithms(const double* base, const double* above, const T* below, double constant, int64_t count, double* to) {
    for (int64_t i = 0; i < count; i += LANES<double>) {
        const int live = count - i < LANES<double> ? int(count - i) : LANES<double>;
        double ratio[LANES<double>];
        for (int lane = 0; lane < LANES<double>; ++lane) ratio[lane] = lane < live ? above[i + lane] / double(below[i + lane]) : 1.0;
        store<double>(ratio, logarithm_of_normal(load<double>(ratio)));
        for (int lane = 0; lane < live; ++lane) to[i + lane] = base[i + lane] + (ratio[lane] + constant);
    }
}

template <class T>
PROSMA_INLINE bool all_lanes(Mask<T> mask) {
    bool all = true;
    for (int lane = 0; lane < LANES<T>; ++lane) all = all && mask[lane];
    return all;
}

// to_i = base_i + log(scaling_i) + constant. False, and then `to` is worth nothing, if a scaling is too small for a float's
// logarithm. The powers of two are counted in double, so that it is off by 3e-8, as the scalings themselves are; it divides
// by nothing, where `add_logarithms` divides twice and took a tenth of the forward's time.
inline bool add_logarithms_of_scalings(const double* base, const float* scalings, double constant, int64_t count, double* to) {
    const Vector<float> root_half = broadcast<float>(0.70710678f);
    Mask<float> within = ~Mask<float>{};
    int64_t i = 0;
    for (; i + LANES<float> <= count; i += LANES<float>) {
        const Vector<float> scaling = load<float>(scalings + i);
        within &= scaling >= 1.2e-38f;
        const Mask<float> exponent = (bits_of<Mask<float>>(scaling) - bits_of<Mask<float>>(root_half)) >> 23;
        float twos[LANES<float>], rest[LANES<float>];
        store<float>(twos, __builtin_convertvector(exponent, Vector<float>));
        store<float>(rest, logarithm(bits_of<Vector<float>>(bits_of<Mask<float>>(scaling) - (exponent << 23))));
        for (int part = 0; part < PARTS<float>; ++part) {
            const int at = part * LANES<double>;
            const Vector<double> logarithm = load_double(twos + at) * 0.69314718055994531 + (load_double(rest + at) + constant);
            store<double>(to + i + at, load<double>(base + i + at) + logarithm);
        }
    }
    for (; i < count; ++i) {
        if (!(scalings[i] >= 1.2e-38f)) return false;
        to[i] = base[i] + (::log(double(scalings[i])) + constant);
    }
    return all_lanes<float>(within);
}
inline bool add_logarithms_of_scalings(const double*, const double*, double, int64_t, double*) { return false; }

// to_i = exp(exponent_i - base_i)
template <class To>
void exponentiate_difference(const double* exponents, const double* base, int64_t count, To* to) {
    int64_t i = 0;
    for (; i + LANES<To> <= count; i += LANES<To>) {
        Vector<double> parts[PARTS<To>];
        for (int part = 0; part < PARTS<To>; ++part) {
            const int64_t at = i + part * LANES<double>;
            parts[part] = exponential_or_zero(load<double>(exponents + at) - load<double>(base + at));
        }
        store<To>(to + i, narrow(parts));
    }
    for (; i < count; i += LANES<double>) {
        const int live = count - i < LANES<double> ? int(count - i) : LANES<double>;
        double x[LANES<double>];
        for (int lane = 0; lane < LANES<double>; ++lane) x[lane] = lane < live ? exponents[i + lane] - base[i + lane] : 0.0;
        store<double>(x, exponential_or_zero(load<double>(x)));
        for (int lane = 0; lane < live; ++lane) to[i + lane] = To(x[lane]);
    }
}

// sum_i x_i y_i
template <class S>
double exact_product(const double* x, const S* y, int64_t count) {
    Vector<double> sums{};
    int64_t i = 0;
    for (; i + LANES<double> <= count; i += LANES<double>) sums += load<double>(x + i) * load_double(y + i);
    double sum = sum_of_lanes<double>(sums);
    for (; i < count; ++i) sum += x[i] * double(y[i]);
    return sum;
}

}  // namespace prosma::PROSMA_LEVEL

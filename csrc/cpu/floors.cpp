// The processor's own limits, by loops that do nothing else.
//
// fma   a = a * factor + addend in 12 registers: 2 units of latency 4 need 8 chains, and 12 with the two constants fit
//       the 16 registers of AVX2.
// exp   x = -e^x in 12 chains: a chain's 40 cycles of latency hide behind the other 11. Relative error 7.5e-8 by the
//       polynomial, 2e-7 with float32 rounding. The kernels' own exponential is a little more exact and slower.
// copy  each thread its own part of the buffer, by whole vectors, with normal and with non-temporal stores.
#include "../floors.h"

#include <ctime>

#include "parallel.h"
#include "storage.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace prosma::PROSMA_LEVEL {

namespace {

constexpr int CHAINS = 12;
// Rounds of about a millisecond: shorter than a scheduler's quantum, so that some round runs undisturbed, and a
// thousand times longer than the barriers around it.
constexpr int FMA_STEPS = 200000;
constexpr int EXP_STEPS = 16000;

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

struct Round {
    double seconds = 1e30;
    int threads = 1;  // those that OpenMP gave, which may be fewer than were asked for
};

// Runs body(thread, threads) on all threads at once, again and again for `seconds`; returns the shortest round.
template <class Body>
Round shortest_round(int threads, double seconds, const Body& body) {
    Round shortest;
#if defined(_OPENMP)
    // A round lasts from the first thread's start to the last one's end, by their own clocks: were it thread 0 that
    // timed it, a round at whose start that thread is held up would seem twice as fast.
    const double end = now() + seconds;
    double first = 1e30, last = 0;
    bool more = true;
#pragma omp parallel num_threads(threads < 1 ? 1 : threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        if (thread == 0) shortest.threads = team;
        while (more) {
#pragma omp barrier
            const double start = now();
            body(thread, team);
            const double stop = now();
#pragma omp critical
            {
                if (start < first) first = start;
                if (stop > last) last = stop;
            }
#pragma omp barrier
            if (thread == 0) {
                if (last - first < shortest.seconds) shortest.seconds = last - first;
                more = last < end;
                first = 1e30;
                last = 0;
            }
#pragma omp barrier
        }
    }
#else
    const double end = now() + seconds;
    (void)threads;
    do {
        const double start = now();
        body(0, 1);
        const double taken = now() - start;
        if (taken < shortest.seconds) shortest.seconds = taken;
    } while (now() < end);
#endif
    return shortest;
}

// Read and written through `volatile`, so that the compiler can neither foresee the values nor drop the loops.
template <class T>
struct Opaque {
    volatile T factor = T(0.999);
    volatile T addend = T(0.001);
    volatile T result = T(0);
};

template <class T>
double fma_rate_of(int threads, double seconds) {
    const Round shortest = shortest_round(threads, seconds, [](int, int) {
        Opaque<T> opaque;
        const Vector<T> factor = broadcast<T>(opaque.factor), addend = broadcast<T>(opaque.addend);
        Vector<T> chains[CHAINS];
        for (int i = 0; i < CHAINS; ++i) chains[i] = factor + T(i);
        for (int step = 0; step < FMA_STEPS; ++step)
            for (int i = 0; i < CHAINS; ++i) chains[i] = chains[i] * factor + addend;
        for (int i = 1; i < CHAINS; ++i) chains[0] += chains[i];
        opaque.result = sum_of_lanes<T>(chains[0]);
    });
    return 2e-9 * FMA_STEPS * CHAINS * LANES<T> * shortest.threads / shortest.seconds;
}

// -e^x: 2^n by the exponent's bits, times a polynomial fitted to -e^r for |r| <= ln(2)/2.
PROSMA_INLINE Vector<float> negative_exponential(Vector<float> x) {
    const Vector<float> shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    const Vector<float> n = shifted - 12582912.0f;
    const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector<float> series = r * -0.00829764828f - 0.0419154316f;
    series = series * r - 0.166675746f;
    series = series * r - 0.499988943f;
    series = series * r - 0.999999702f;
    series = series * r - 1.00000012f;
    return bits_of<Vector<float>>(bits_of<Mask<float>>(series) + (bits_of<Mask<float>>(shifted) << 23));
}

// The caller's pages are those of the machine's default size, as a tensor's are.
class Buffer {
public:
    explicit Buffer(size_t bytes) : memory_(static_cast<float*>(aligned_alloc(4096, bytes))) {}
    ~Buffer() { free(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data() const { return memory_; }

private:
    float* memory_;
};

PROSMA_INLINE void store_past_the_cache(float* to, Vector<float> values) {
#if defined(__clang__)
    __builtin_nontemporal_store(values, reinterpret_cast<Vector<float>*>(to));
#elif defined(PROSMA_AVX512)
    _mm512_stream_ps(to, (__m512)values);
#elif defined(__AVX2__)
    _mm256_stream_ps(to, (__m256)values);
#elif defined(__SSE2__)
    _mm_stream_ps(to, (__m128)values);
#else
    store<float>(to, values);
#endif
}

PROSMA_INLINE void complete_stores() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

template <bool past_the_cache>
void copy_part(float* to, const float* from, size_t count) {
    constexpr int step = 4 * LANES<float>;
    for (size_t i = 0; i < count; i += step) {
        for (int part = 0; part < 4; ++part) {
            const size_t at = i + size_t(part) * LANES<float>;
            if (past_the_cache)
                store_past_the_cache(to + at, load<float>(from + at));
            else
                store<float>(to + at, load<float>(from + at));
        }
        asm volatile("" ::: "memory");  // or the compiler makes a call of memcpy out of the loop
    }
    if (past_the_cache) complete_stores();
}

template <bool past_the_cache>
double shortest_copy(float* to, const float* from, size_t count, int threads, double seconds) {
    const Round shortest = shortest_round(threads, seconds, [=](int thread, int team) {
        const size_t pages = count / 1024;
        const size_t first = pages * size_t(thread) / size_t(team) * 1024;
        const size_t last = pages * size_t(thread + 1) / size_t(team) * 1024;
        copy_part<past_the_cache>(to + first, from + first, last - first);
    });
    return shortest.seconds;
}

}  // namespace

double fma_rate(int threads, double seconds, bool double_precision) {
    return double_precision ? fma_rate_of<double>(threads, seconds) : fma_rate_of<float>(threads, seconds);
}

double exp_rate(int threads, double seconds) {
    const Round shortest = shortest_round(threads, seconds, [](int, int) {
        Opaque<float> opaque;
        Vector<float> chains[CHAINS];
        for (int i = 0; i < CHAINS; ++i) chains[i] = broadcast<float>(-opaque.factor) / float(i + 1);
        for (int step = 0; step < EXP_STEPS; ++step)
            for (int i = 0; i < CHAINS; ++i) chains[i] = negative_exponential(chains[i]);
        for (int i = 1; i < CHAINS; ++i) chains[0] += chains[i];
        opaque.result = sum_of_lanes<float>(chains[0]);
    });
    return 1e-9 * EXP_STEPS * CHAINS * LANES<float> * shortest.threads / shortest.seconds;
}

double copy_rate(int threads, size_t bytes, double seconds) {
    bytes = (bytes < 4096 ? 4096 : bytes) / 4096 * 4096;
    const Buffer from(bytes), to(bytes);
    if (!from.data() || !to.data()) return 0;
    const size_t count = bytes / sizeof(float);
    for (size_t i = 0; i < count; ++i) from.data()[i] = float(i % 97);
    const double normal = shortest_copy<false>(to.data(), from.data(), count, threads, seconds / 2);
    const double streamed = shortest_copy<true>(to.data(), from.data(), count, threads, seconds / 2);
    return 2e-9 * double(bytes) / (normal < streamed ? normal : streamed);
}

}  // namespace prosma::PROSMA_LEVEL

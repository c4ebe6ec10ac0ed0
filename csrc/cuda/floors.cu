// The GPU's own limits, by kernels that do nothing else.
//
// fma   8 chains a thread and 16 blocks of 256 threads a multiprocessor: far more independent work than the 4 cycles
//       of latency need.
// exp   the hardware's base-2 exponential with the multiplication that makes it natural, 4 chains a thread.
// copy  16 bytes a thread and step, or the driver's own copy where that is faster.
#include "../floors.h"

#include <cuda_runtime.h>

#include "launch.h"

namespace prosma::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int BLOCKS_A_MULTIPROCESSOR = 16;
constexpr int FMA_CHAINS = 8;
constexpr int EXP_CHAINS = 4;
constexpr int STEPS = 4096;

template <class T>
__global__ void __launch_bounds__(THREADS) fma_kernel(T factor, T addend, T* out) {
    T chains[FMA_CHAINS];
#pragma unroll
    for (int i = 0; i < FMA_CHAINS; ++i) chains[i] = T(threadIdx.x + i);
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < FMA_CHAINS; ++i) chains[i] = fma(chains[i], factor, addend);
    }
    T sum = 0;
#pragma unroll
    for (int i = 0; i < FMA_CHAINS; ++i) sum += chains[i];
    // Never true with the factor and addend of the host, which the compiler does not know: it has to do the work.
    if (sum == T(-1)) *out = sum;
}

__global__ void __launch_bounds__(THREADS) exp_kernel(float scale, float* out) {
    float chains[EXP_CHAINS];
#pragma unroll
    for (int i = 0; i < EXP_CHAINS; ++i) chains[i] = -1.0f / float(threadIdx.x + i + 1);
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < EXP_CHAINS; ++i) chains[i] = __expf(chains[i] * scale);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EXP_CHAINS; ++i) sum += chains[i];
    if (sum == -1.0f) *out = sum;
}

__global__ void __launch_bounds__(THREADS) copy_kernel(uint4* __restrict__ to, const uint4* __restrict__ from,
                                                       size_t count) {
    const size_t stride = size_t(gridDim.x) * THREADS;
    for (size_t i = size_t(blockIdx.x) * THREADS + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

class Memory {
public:
    explicit Memory(size_t bytes) { check(cudaMalloc(&data_, bytes), "memory for the floors"); }
    ~Memory() { cudaFree(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void* data_ = nullptr;
};

class Event {
public:
    Event() { check(cudaEventCreate(&event_), "event"); }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    cudaEvent_t get() const { return event_; }

private:
    cudaEvent_t event_;
};

// Starts `body` again and again until the device has worked for `seconds`; returns the shortest, in seconds.
template <class Body>
double shortest_round(double seconds, const Body& body) {
    const Event start, stop;
    double shortest = 1e30, total = 0;
    while (total < seconds) {
        check(cudaEventRecord(start.get()), "event");
        body();
        check(cudaEventRecord(stop.get()), "event");
        check(cudaEventSynchronize(stop.get()), "floors");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()), "event");
        const double taken = 1e-3 * double(milliseconds);
        total += taken > 1e-6 ? taken : 1e-6;
        if (taken > 0 && taken < shortest) shortest = taken;
    }
    return shortest;
}

unsigned multiprocessors() {
    int device = 0, count = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "device");
    return unsigned(count);
}

template <class T>
double fma_rate_of(double seconds) {
    const Memory out(sizeof(T));
    const unsigned blocks = multiprocessors() * BLOCKS_A_MULTIPROCESSOR;
    const double shortest = shortest_round(seconds, [&] {
        launch("fma_kernel", fma_kernel<T>, {blocks, THREADS}, T(0.999), T(0.001), out.as<T>());
    });
    return 2e-9 * STEPS * FMA_CHAINS * THREADS * double(blocks) / shortest;
}

}  // namespace

double fma_rate(double seconds, bool double_precision) {
    return double_precision ? fma_rate_of<double>(seconds) : fma_rate_of<float>(seconds);
}

double exp_rate(double seconds) {
    const Memory out(sizeof(float));
    const unsigned blocks = multiprocessors() * BLOCKS_A_MULTIPROCESSOR;
    const double shortest = shortest_round(seconds, [&] {
        launch("exp_kernel", exp_kernel, {blocks, THREADS}, -1.0f, out.as<float>());
    });
    return 1e-9 * STEPS * EXP_CHAINS * THREADS * double(blocks) / shortest;
}

double copy_rate(size_t bytes, double seconds) {
    bytes = (bytes < 4096 ? 4096 : bytes) / 4096 * 4096;
    const Memory from(bytes), to(bytes);
    check(cudaMemset(from.as<void>(), 1, bytes), "memory for the floors");
    const unsigned blocks = multiprocessors() * BLOCKS_A_MULTIPROCESSOR;
    const double ours = shortest_round(seconds / 2, [&] {
        launch("copy_kernel", copy_kernel, {blocks, THREADS}, to.as<uint4>(), from.as<uint4>(), bytes / sizeof(uint4));
    });
    const double driver = shortest_round(seconds / 2, [&] {
        check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), bytes, cudaMemcpyDeviceToDevice), "copy");
    });
    return 2e-9 * double(bytes) / (ours < driver ? ours : driver);
}

}  // namespace prosma::cuda

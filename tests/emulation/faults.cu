// Kernels with one fault each, and one with none: the emulation must tell them apart. `faults NAME SEED` runs one.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/reduction.h"

using namespace prosma::cuda;

namespace {

constexpr int THREADS = 64;

struct Shared {
    float values[THREADS];
};

__global__ void right(float* out) {
    auto& shared = shared_object<Shared>();
    shared.values[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    const float sum = sum_of_block<THREADS / WARP>(shared.values[THREADS - 1 - threadIdx.x]);
    out[blockIdx.x * THREADS + threadIdx.x] = sum - float(THREADS * (THREADS - 1) / 2) + 1;
}

__global__ void no_barrier(float* out) {
    auto& shared = shared_object<Shared>();
    shared.values[threadIdx.x] = 1;
    out[blockIdx.x * THREADS + threadIdx.x] = shared.values[THREADS - 1 - threadIdx.x];
}

__global__ void no_warp_barrier(float* out) {
    auto& shared = shared_object<Shared>();
    shared.values[threadIdx.x] = 1;
    out[blockIdx.x * THREADS + threadIdx.x] = shared.values[threadIdx.x ^ 1];
}

__global__ void beyond_shared(float* out) {
    float* values = dynamic_shared<float>();
    values[threadIdx.x + 1] = 1;
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x + 1];
}

__global__ void beyond_global(float* out) { out[blockIdx.x * THREADS + threadIdx.x + 1] = 1; }

__global__ void unwritten(float* out) {
    auto& shared = shared_object<Shared>();
    if (threadIdx.x != 5) shared.values[threadIdx.x] = 1;
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = shared.values[threadIdx.x];
}

__global__ void one_lane_elsewhere(float* out) {
    if (threadIdx.x == WARP + 3)
        __syncthreads();
    else
        sum_of_warp(1.0f);
    out[blockIdx.x * THREADS + threadIdx.x] = 1;
}

__global__ void two_barriers(float* out) {
    if (threadIdx.x < WARP)
        __syncthreads();
    else
        __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = 1;
}

__global__ void lane_has_ended(float* out) {
    out[blockIdx.x * THREADS + threadIdx.x] = 1;
    if (threadIdx.x == 3) return;
    sum_of_warp(1.0f);
}

__global__ void copy_not_awaited(const float* ones, float* out) {
    float* values = dynamic_shared<float>();
    copy_async<4>(values + threadIdx.x, ones + threadIdx.x);
    copy_async_commit();
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned(float* out) {
    if (threadIdx.x < THREADS / 4 - 1) reinterpret_cast<float4*>(out + 1)[threadIdx.x] = make_float4(1, 1, 1, 1);
}

__global__ void cluster_sum(float* out) {
    auto& shared = shared_object<Shared>();
    shared.values[threadIdx.x] = float(cluster_rank());
    cluster_barrier();
    float sum = 0;
    for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += in_block(&shared.values[threadIdx.x], rank)[0];
    cluster_barrier();
    out[blockIdx.x * THREADS + threadIdx.x] = sum / 6;
}

__global__ void cluster_without_barrier(float* out) {
    auto& shared = shared_object<Shared>();
    shared.values[threadIdx.x] = 1;
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = in_block(&shared.values[0], cluster_rank() ^ 1)[threadIdx.x];
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    emulation::order = std::atoi(arguments[2]);
    constexpr unsigned blocks = 4;
    std::vector<float> ones(THREADS, 1.0f), out(blocks * THREADS);
    std::memset(out.data(), 0xff, out.size() * sizeof(float));
    const Grid plain{blocks, THREADS}, dynamic{blocks, THREADS, THREADS * sizeof(float)}, four{blocks, THREADS, 0, nullptr, 4};
    const auto run = [&](const char* kernel_name, void (*kernel)(float*), const Grid& grid) {
        if (name == kernel_name) launch(kernel_name, kernel, grid, out.data());
    };
    run("right", right, plain);
    run("no_barrier", no_barrier, plain);
    run("no_warp_barrier", no_warp_barrier, plain);
    run("beyond_shared", beyond_shared, dynamic);
    run("beyond_global", beyond_global, plain);
    run("unwritten", unwritten, plain);
    run("one_lane_elsewhere", one_lane_elsewhere, plain);
    run("two_barriers", two_barriers, plain);
    run("lane_has_ended", lane_has_ended, plain);
    run("misaligned", misaligned, plain);
    run("cluster_sum", cluster_sum, four);
    run("cluster_without_barrier", cluster_without_barrier, four);
    if (name == "copy_not_awaited") launch("copy_not_awaited", copy_not_awaited, dynamic, ones.data(), out.data());
    for (const float value : out)
        if (value != 1) {
            std::fprintf(stderr, "a result is %g\n", double(value));
            return 1;
        }
}

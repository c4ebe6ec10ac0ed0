// What the threads of a block share, under names that have two bodies: the GPU's, and that of tests/emulation, which runs
// the same kernels on the CPU. Kernels take their shared memory from here only, and instructions that not every GPU has.
//
//     auto& shared = shared_object<Shared>();     static shared memory: one object a block for each type `Shared`
//     float* tile = dynamic_shared<float>();      what the launch asked for, aligned to 128 bytes
//     copy_async<16>(to_shared, from_global); copy_async_commit(); copy_async_wait<0>(); __syncthreads();
//     cluster_rank(), cluster_size(), cluster_barrier(), in_block(address, rank)
//
// The second number in a kernel's launch bounds, how many blocks a multiprocessor should hold, is there even where it is 1:
// without it the assembler, for sm_100 and sm_120 above all, spills a few registers to make room for one block more.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace prosma::cuda {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

#if defined(PROSMA_EMULATION)

using emulation::shared_object;

template <class T>
T* dynamic_shared() {
    return static_cast<T*>(emulation::dynamic_shared());
}

template <int BYTES>
void copy_async(void* to, const void* from) {
    emulation::copy_async(to, from, BYTES);
}
inline void copy_async_commit() { emulation::copy_async_commit(); }
template <int LEFT>
void copy_async_wait() {
    emulation::copy_async_wait(LEFT);
}

inline void cluster_barrier(emulation::Site site = emulation::Site::current()) { emulation::cluster_barrier(site); }
inline unsigned cluster_rank() { return __clusterRelativeBlockRank(); }
inline unsigned cluster_size() { return __clusterSizeInBlocks(); }
template <class T>
T* in_block(T* shared, unsigned rank) {
    return static_cast<T*>(emulation::in_block(shared, rank));
}

#else

template <class T>
__device__ __forceinline__ T& shared_object() {
    __shared__ T object;
    return object;
}

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char prosma_dynamic_shared[];
    return reinterpret_cast<T*>(prosma_dynamic_shared);
}

// Global to shared memory past the registers; 16 bytes past the L1 as well. Both addresses are multiples of BYTES.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    const unsigned shared = unsigned(__cvta_generic_to_shared(to));
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of this thread's groups but the last LEFT have arrived. Other threads' need a barrier after it.
template <int LEFT>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Below sm_90 a cluster is one block; the launch refuses others there.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// The address in block `rank` of the cluster of what lies at `shared` in this one.
template <class T>
__device__ __forceinline__ T* in_block(T* shared, unsigned rank) {
    uint64_t address;
    asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
    return reinterpret_cast<T*>(address);
}
#else
__device__ __forceinline__ void cluster_barrier() { __syncthreads(); }
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_size() { return 1; }
template <class T>
__device__ __forceinline__ T* in_block(T* shared, unsigned) {
    return shared;
}
#endif

#endif

}  // namespace prosma::cuda

// CUDA's runtime as ordinary C++: the kernels of csrc/cuda, compiled with this header in the place of CUDA's own, run on
// the CPU, where AddressSanitizer and UndefinedBehaviorSanitizer can watch every access. What they must keep to: README.md.
#pragma once

#include <stdint.h>

#include <tuple>
#include <utility>

#include "arithmetic.h"
#include "communication.h"
#include "fibers.h"

#define PROSMA_EMULATION 1
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "shared memory comes from shared_object and dynamic_shared of csrc/cuda/device.h");

// The host's side: one device, which works while the call lasts.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttributeValue {
    struct {
        unsigned x, y, z;
    } clusterDim;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute* attrs = nullptr;
    unsigned numAttrs = 0;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : error == cudaErrorInvalidValue ? "invalid value" : "invalid configuration";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount            ? emulation::chip.multiprocessors
             : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? emulation::chip.shared_memory()
             : attribute == cudaDevAttrComputeCapabilityMajor       ? emulation::chip.major
                                                                    : emulation::chip.minor;
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    return std::memset(to, value, bytes), cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value > emulation::chip.shared_memory()) return cudaErrorInvalidValue;
    emulation::allowed_shared[kernel] = value;
    return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* configuration, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const dim3 blocks = configuration->gridDim, threads = configuration->blockDim;
    dim3 together;
    for (unsigned i = 0; i < configuration->numAttrs; ++i) {
        const auto& cluster = configuration->attrs[i].val.clusterDim;
        together = dim3(cluster.x, cluster.y, cluster.z);
    }
    const auto allowed = emulation::allowed_shared.find(reinterpret_cast<const void*>(kernel));
    const size_t most = allowed == emulation::allowed_shared.end() ? 48 * 1024 : size_t(allowed->second);
    const unsigned in_cluster = together.x * together.y * together.z;
    const bool clusters = in_cluster > 0 && in_cluster <= (emulation::chip.major >= 9 ? 8 : 1) &&
                          blocks.x % together.x == 0 && blocks.y % together.y == 0 && blocks.z % together.z == 0;
    const bool grid = blocks.x > 0 && blocks.x < 1u << 31 && blocks.y > 0 && blocks.y < 65536 && blocks.z > 0 && blocks.z < 65536;
    const size_t count = size_t(threads.x) * threads.y * threads.z;
    if (!clusters || !grid || !count || count > 1024 || threads.z > 64) return cudaErrorInvalidConfiguration;
    if (configuration->dynamicSmemBytes > most) return cudaErrorInvalidValue;
    const std::tuple<Parameters...> kept(std::forward<Arguments>(arguments)...);
    emulation::run(blocks, threads, together, configuration->dynamicSmemBytes, [&] { std::apply(kernel, kept); });
    return cudaSuccess;
}

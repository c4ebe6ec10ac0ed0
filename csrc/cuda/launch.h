// The one place where CUDA kernels are started. Every start is checked, so that a wrong launch is an error with the
// kernel's name where it happens, and not a strange number later.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

#include "../arguments.h"

namespace prosma::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a launch error is kept for the next caller unless it is taken
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// The tensors' device is the current one while this lives; the caller's comes back after.
class OnDevice {
public:
    explicit OnDevice(const Queue& queue) : queue_(queue) {
        check(cudaGetDevice(&before_), "device");
        if (before_ != queue.device) check(cudaSetDevice(queue.device), "device");
    }
    ~OnDevice() {
        if (before_ != queue_.device) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    cudaStream_t stream() const { return static_cast<cudaStream_t>(queue_.stream); }
    int attribute(cudaDeviceAttr which) const {
        int value = 0;
        check(cudaDeviceGetAttribute(&value, which, queue_.device), "device");
        return value;
    }
    int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
    // What one block may have of it: 227 KiB on sm_90 and sm_100, 163 on sm_80, 99 on sm_86, sm_89 and sm_120.
    size_t shared_memory() const { return size_t(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)); }
    bool has_clusters() const { return attribute(cudaDevAttrComputeCapabilityMajor) >= 9; }

private:
    Queue queue_;
    int before_ = 0;
};

// `cluster`: so many blocks, neighbours in x, run together and see one another's shared memory; from sm_90 on.
struct Grid {
    dim3 blocks;
    dim3 threads;
    size_t shared_bytes = 0;
    cudaStream_t stream = nullptr;
    unsigned cluster = 1;
};

template <class T>
struct Exactly {
    using Type = T;
};

// Above 48 KiB of dynamic shared memory a kernel has to ask for it.
constexpr size_t SHARED_WITHOUT_ASKING = 48 * 1024;

// launch("name", kernel, {blocks, threads, shared bytes, stream, cluster}, arguments...): the arguments are converted to the
// kernel's own parameter types.
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid,
            typename Exactly<Parameters>::Type... arguments) {
    if (grid.shared_bytes > SHARED_WITHOUT_ASKING)
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   int(grid.shared_bytes)),
              name);
    cudaLaunchConfig_t configuration = {};
    configuration.gridDim = grid.blocks;
    configuration.blockDim = grid.threads;
    configuration.dynamicSmemBytes = grid.shared_bytes;
    configuration.stream = grid.stream;
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = grid.cluster;
    together.val.clusterDim.y = together.val.clusterDim.z = 1;
    configuration.attrs = &together;
    configuration.numAttrs = grid.cluster > 1;
    check(cudaLaunchKernelEx(&configuration, kernel, arguments...), name);
}

}  // namespace prosma::cuda

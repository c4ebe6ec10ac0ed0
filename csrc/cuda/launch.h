// The one place where CUDA kernels are started. Every start is checked, so that a wrong launch is an error with the
// kernel's name where it happens, and not a strange number later.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace prosma::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a launch error is kept for the next caller unless it is taken
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct Grid {
    dim3 blocks;
    dim3 threads;
    size_t shared_bytes = 0;
    cudaStream_t stream = nullptr;
};

template <class T>
struct Exactly {
    using Type = T;
};

// Above 48 KiB of dynamic shared memory a kernel has to ask for it.
constexpr size_t SHARED_WITHOUT_ASKING = 48 * 1024;

// launch("name", kernel, {blocks, threads, shared bytes, stream}, arguments...): the arguments are converted to the
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
    check(cudaLaunchKernelEx(&configuration, kernel, arguments...), name);
}

}  // namespace prosma::cuda

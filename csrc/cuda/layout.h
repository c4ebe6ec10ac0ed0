// How an image tensor lies in memory, as the CUDA kernels know it: contiguous, or channels_last. Python copies others.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../arguments.h"

namespace prosma::cuda {

enum class Layout { contiguous, channels_last };

inline int64_t volume_of(const int64_t* sizes) { return sizes[DEPTH] * sizes[HEIGHT] * sizes[WIDTH]; }
inline int64_t numbers_of(const int64_t* sizes) { return sizes[BATCH] * sizes[CHANNEL] * volume_of(sizes); }

inline bool lies(const Tensor& tensor, const int64_t* sizes, Layout layout) {
    const int order[2][AXES] = {{WIDTH, HEIGHT, DEPTH, CHANNEL, BATCH}, {CHANNEL, WIDTH, HEIGHT, DEPTH, BATCH}};
    int64_t step = 1;
    for (int axis : order[layout == Layout::channels_last]) {
        if (sizes[axis] != 1 && tensor.strides[axis] != step) return false;
        step *= sizes[axis];
    }
    return true;
}

// Of all of these tensors; those that are absent do not count.
template <class... Tensors>
Layout layout_of(const int64_t* sizes, const Tensors&... tensors) {
    for (const Layout layout : {Layout::contiguous, Layout::channels_last})
        if (((!tensors.data || lies(tensors, sizes, layout)) && ...)) return layout;
    throw std::invalid_argument("the tensors must be contiguous, or channels_last, all alike");
}

template <class... Pointers>
bool aligned(int bytes, const Pointers*... pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) % uintptr_t(bytes) == 0) && ...);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace prosma::cuda

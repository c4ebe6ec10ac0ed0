// What the native functions of proximal_gate and soft_threshold are given.
#pragma once

#include "arguments.h"

namespace prosma {

enum class Activation { identity = 0, tanh = 1, relu = 2 };

// Parameters and their gradients are contiguous and of the type that is computed in: double for float64, else float.
struct GateArguments {
    DataType type = DataType::float32;
    int threads = 1;
    int64_t sizes[AXES] = {0, 0, 0, 0, 0};
    int kernel_size = 1;   // in height and width
    int kernel_depth = 1;  // 1 for images, kernel_size for volumes
    int dilation_count = 0;
    const int64_t* dilations = nullptr;
    Activation activation = Activation::identity;

    Tensor field, skip, out;
    const void* weight = nullptr;     // (dilations, C, kernel_depth, kernel_size, kernel_size)
    const void* threshold = nullptr;  // (C)
    const void* channel_gate = nullptr;  // (B, C)
    const void* bias = nullptr;          // (C)

    // Backward only. A null pointer means: not asked for.
    Tensor grad, field_grad, skip_grad;
    void* weight_grad = nullptr;
    void* threshold_grad = nullptr;
    void* channel_gate_grad = nullptr;
    void* bias_grad = nullptr;

    // CUDA only.
    Queue queue;
    void* workspace = nullptr;
};

struct ShrinkArguments {
    DataType type = DataType::float32;
    int threads = 1;
    int64_t sizes[AXES] = {0, 0, 0, 0, 0};
    Tensor x, out, grad;
    const void* threshold = nullptr;
    void* threshold_grad = nullptr;

    // CUDA only.
    Queue queue;
    void* workspace = nullptr;
};

}  // namespace prosma

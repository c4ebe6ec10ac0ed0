// What every operator's native functions are given: raw pointers, sizes and strides. Nothing of torch.
#pragma once

#include <cstdint>

namespace prosma {

enum class DataType { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// Axes of every image tensor. A 2-D image is a volume of depth 1.
enum Axis { BATCH = 0, CHANNEL = 1, DEPTH = 2, HEIGHT = 3, WIDTH = 4, AXES = 5 };

// An image tensor in memory; absent where data is null. Strides count elements and may be anything, 0 included.
struct Tensor {
    void* data = nullptr;
    int64_t strides[AXES] = {0, 0, 0, 0, 0};
};

// Where CUDA work goes: the device of the tensors, and the caller's current stream on it.
struct Queue {
    int device = 0;
    void* stream = nullptr;
};

}  // namespace prosma

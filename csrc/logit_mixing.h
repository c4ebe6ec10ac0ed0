// What the native functions of mixed_logit_statistics are given.
#pragma once

#include "arguments.h"

namespace prosma {

enum class LabelType {
    uint8 = 0, int8 = 1, int16 = 2, int32 = 3, int64 = 4, float32 = 5, float64 = 6, float16 = 7, bfloat16 = 8
};
enum class Mix { add = 0, multiply = 1, concat = 2, attention = 3 };

constexpr int MIXES = 4;
constexpr int MOST_LEVELS = 6;
constexpr int MOST_CLASSES = 128;

// The sums, in the order of the result.
enum Sum { CROSS_ENTROPY = 0, INTERSECTION = 1, PROBABILITY = 2, SQUARE = 3, LOG_PROBABILITY = 4, SUMS = 5 };

struct MixingLevel {
    int64_t sizes[AXES] = {0, 0, 0, 0, 0};
    Tensor logits;
    Tensor grad;  // backward only; absent if not needed
};

// Parameters, sums and their gradients are contiguous and of the type that is computed in: double for float64, else float.
struct MixingArguments {
    DataType type = DataType::float32;
    int threads = 1;
    int64_t sizes[AXES] = {0, 0, 0, 0, 0};  // B, C, and the target's spatial sizes
    int level_count = 0;
    MixingLevel levels[MOST_LEVELS];

    Tensor target;
    LabelType label_type = LabelType::uint8;
    bool per_channel = false;  // zeros and ones for each channel; else class indices, with a channel stride of 0
    bool has_ignore = false;
    int64_t ignore_index = 0;

    int mix_count = 0;
    Mix mixes[MIXES] = {};
    bool sigmoid = false;        // else softmax
    bool probabilities = false;  // the domain; else logits
    bool align_corners = false;
    bool per_sample = false;

    const void* concat_weight = nullptr;     // (C, C * sum |S|)
    const void* concat_bias = nullptr;       // (C, subsets)
    const void* attention_weight = nullptr;  // (sum |S|, C)
    const void* attention_bias = nullptr;    // (sum |S|)

    // Forward only: ([B,] U, C), the last null if not asked for; ([B,] C); ([B]).
    void* sums[SUMS] = {};
    int64_t* class_pixels = nullptr;
    int64_t* pixels = nullptr;
    int64_t* invalid = nullptr;

    // Backward only. A null pointer means: zero, or not needed.
    const void* sum_grads[SUMS] = {};
    void* concat_weight_grad = nullptr;
    void* concat_bias_grad = nullptr;
    void* attention_weight_grad = nullptr;
    void* attention_bias_grad = nullptr;

    // CUDA only.
    Queue queue;
    void* workspace = nullptr;
};

}  // namespace prosma

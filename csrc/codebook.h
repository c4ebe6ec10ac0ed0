// What the native functions of nearest_code and code_statistics are given.
#pragma once

#include "arguments.h"

namespace prosma {

enum class Metric { euclidean = 0, cosine = 1 };

// Vectors of `sizes[LAST]` numbers each, numbered over the axes before it, in order. Strides may be anything, 0 included.
struct Vectors {
    enum { LEADING = 4, LAST = LEADING };
    void* data = nullptr;
    int64_t sizes[LEADING + 1] = {1, 1, 1, 1, 1};
    int64_t strides[LEADING + 1] = {0, 0, 0, 0, 0};
};

// What is computed in: double for float64, else float. It is the type of the codebook and of the sums.
struct NearestArguments {
    DataType type = DataType::float32;
    int threads = 1;
    Vectors tokens;
    int64_t codes = 1;
    const void* codebook = nullptr;  // (codes, D), contiguous
    Metric metric = Metric::euclidean;
    void* quantized = nullptr;   // (tokens, D), contiguous, of `type`
    int64_t* index = nullptr;    // (tokens)
    int64_t* lost = nullptr;     // how many tokens had no finite score, and so got index 0

    // CUDA only. Of the tokens' leading axes the first two are 1.
    Queue queue;
    bool exact = true;          // float32 products, rather than TF32
    int* lost_flag = nullptr;   // 1 if a token had no finite score, else 0
    void* workspace = nullptr;
};

struct StatisticsArguments {
    DataType type = DataType::float32;
    int threads = 1;
    Vectors tokens;
    int64_t codes = 1;
    const int64_t* index = nullptr;  // (tokens)
    int64_t* count = nullptr;        // (codes)
    void* sum = nullptr;             // (codes, D), contiguous
    int64_t* wrong = nullptr;        // how many indices were out of range; if any, there are no results

    // CUDA only: instead of `index`, the tokens sorted by it, each code's list cut into chunks.
    Queue queue;
    const int64_t* order = nullptr;   // (tokens)
    const int64_t* first = nullptr;   // (codes + 1) where a code's list begins in `order`
    const int64_t* chunks = nullptr;  // (codes + 1) where its chunks begin among all
    const int64_t* owner = nullptr;   // (most_chunks) whose code a chunk is; `codes` of those that are none
    int64_t chunk = 1, most_chunks = 0;
    void* workspace = nullptr;  // (most_chunks, D) of what is computed in
};

}  // namespace prosma

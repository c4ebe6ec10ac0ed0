// What the native functions of transport are given: Sinkhorn on scores, or on tokens and a reference, and plans applied.
#pragma once

#include "arguments.h"

namespace prosma {

// (B, rows, columns) in memory; absent where data is null. Strides count elements and may be anything, 0 included.
struct Matrices {
    void* data = nullptr;
    int64_t strides[3] = {0, 0, 0};
};

// Scores (B, rows, columns), with heads = 1; or, where `scores` is absent, tokens (B, rows, depth) and a contiguous
// reference (heads, columns, depth) of the type that is computed in: double for float64, else float.
struct TransportArguments {
    DataType type = DataType::float32;  // of scores, tokens and grad_plan
    int threads = 1;
    int64_t batch = 0, heads = 1, rows = 0, columns = 0, depth = 0;
    Matrices scores, tokens;
    const void* reference = nullptr;
    bool squared_distance = false;  // the score is -|x - r|^2 instead of <x, r>

    const double* row_mass = nullptr;  // (B, rows), and the elements from one batch item to the next
    int64_t row_mass_step = 0;
    const double* column_mass = nullptr;
    int64_t column_mass_step = 0;
    double epsilon = 1;

    // Forward. The results are contiguous; plan has the type of the scores, the others the type that is computed in.
    int64_t iterations = 1;
    double tolerance = 0;
    void* plan = nullptr;     // (B, rows, columns), or null where it is not wanted
    void* aligned = nullptr;  // (B, heads, columns, depth)
    void* row = nullptr;      // (B, heads, rows)
    void* column = nullptr;

    // Both. `keep` is 1 or the number of iterations.
    int64_t keep = 1;
    double* history = nullptr;  // (B, heads, keep, columns)
    int32_t* count = nullptr;   // (B, heads)

    // Backward. Null pointers: no such gradient arrives, or is not asked for.
    bool unrolled = true;
    Matrices grad_plan;
    const void* grad_row = nullptr;  // from here on contiguous, of the type that is computed in
    const void* grad_column = nullptr;
    const void* grad_aligned = nullptr;
    void* scores_grad = nullptr;
    void* tokens_grad = nullptr;
    void* reference_grad = nullptr;

    Queue queue;  // from here on CUDA only
    void* workspace = nullptr;
};

// out = T^T values (B, heads, columns, width) or, with columns_side false, the sum over heads of T values (B, rows, width), where
// T_ij = exp((S_ij + row_i + column_j) / epsilon). A potential of -inf: that row or column takes no part.
struct ApplyArguments {
    DataType type = DataType::float32;  // of tokens
    int threads = 1;
    int64_t batch = 0, heads = 1, rows = 0, columns = 0, depth = 0, width = 0;
    Matrices tokens;
    // From here on everything is contiguous and of the type that is computed in.
    const void* reference = nullptr;
    bool squared_distance = false;
    const void* row = nullptr;     // (B, heads, rows)
    const void* column = nullptr;  // (B, heads, columns)
    const void* values = nullptr;  // (B, rows, width), or (B, heads, columns, width)
    bool columns_side = true;
    double epsilon = 1;
    void* out = nullptr;

    // Backward. Null: not asked for.
    const void* grad = nullptr;
    void* tokens_grad = nullptr;
    void* reference_grad = nullptr;
    void* row_grad = nullptr;
    void* column_grad = nullptr;
    void* values_grad = nullptr;

    Queue queue;  // from here on CUDA only
    void* workspace = nullptr;
};

}  // namespace prosma

// Vectors of D numbers wherever they lie in memory.
#pragma once

#include "../codebook.h"
#include "storage.h"

namespace prosma::PROSMA_LEVEL {

inline int64_t count_of(const Vectors& vectors) {
    int64_t count = 1;
    for (int axis = 0; axis < Vectors::LEADING; ++axis) count *= vectors.sizes[axis];
    return count;
}

inline int64_t dimensions_of(const Vectors& vectors) { return vectors.sizes[Vectors::LAST]; }

// Where vector n starts, in elements from the first.
inline int64_t start_of(const Vectors& vectors, int64_t n) {
    int64_t offset = 0;
    for (int axis = Vectors::LEADING - 1; axis > 0; --axis) {
        offset += n % vectors.sizes[axis] * vectors.strides[axis];
        n /= vectors.sizes[axis];
    }
    return offset + n * vectors.strides[0];
}

}  // namespace prosma::PROSMA_LEVEL

// Vectors and codes as Python gives them, for the CPU's bindings and for CUDA's.
#pragma once

#include "bindings.h"

namespace prosma::bindings {

// Both tuples end with the axis of the vectors' own numbers.
inline Vectors vectors(uintptr_t address, const py::tuple& sizes, const py::tuple& strides) {
    constexpr int axes = Vectors::LEADING + 1;
    if (int(sizes.size()) != axes || int(strides.size()) != axes) throw std::invalid_argument("vectors have 5 axes");
    Vectors result;
    result.data = pointer<void>(address);
    for (int axis = 0; axis < axes; ++axis) {
        result.sizes[axis] = sizes[size_t(axis)].cast<int64_t>();
        result.strides[axis] = strides[size_t(axis)].cast<int64_t>();
        if (result.sizes[axis] < 0) throw std::invalid_argument("a size is negative");
    }
    if (result.sizes[Vectors::LAST] < 1) throw std::invalid_argument("vectors must hold numbers");
    return result;
}

inline int64_t code_count(int64_t codes) {
    if (codes < 1 || codes > INT32_MAX) throw std::invalid_argument("there must be 1 code or more, and fewer than 2^31");
    return codes;
}

}  // namespace prosma::bindings

// What the bindings of transport for the CPU and for a GPU share: Python's numbers as the arguments of csrc/transport.h.
#pragma once

#include "bindings.h"

namespace prosma::bindings {

inline Matrices matrices(uintptr_t address, const py::tuple& strides) {
    Matrices result;
    result.data = pointer<void>(address);
    if (!result.data) return result;
    if (strides.size() != 3) throw std::invalid_argument("scores and tokens have 3 dimensions");
    for (size_t axis = 0; axis < 3; ++axis) result.strides[axis] = strides[axis].cast<int64_t>();
    return result;
}

inline int64_t at_least(int64_t value, int64_t least, const char* what) {
    if (value < least) throw std::invalid_argument(what);
    return value;
}

// What forward and backward share. `sizes` is (B, heads, rows, columns, depth), with depth 0 for scores.
inline TransportArguments transport_arguments(int type, const py::tuple& sizes, uintptr_t data, const py::tuple& strides,
                                              uintptr_t reference, bool squared_distance, const py::tuple& masses, double epsilon) {
    if (sizes.size() != 5) throw std::invalid_argument("sizes are (B, heads, rows, columns, depth)");
    if (!(epsilon > 0)) throw std::invalid_argument("epsilon must be positive");
    TransportArguments a;
    a.type = data_type(type);
    a.batch = at_least(sizes[0].cast<int64_t>(), 0, "a negative size");
    a.heads = at_least(sizes[1].cast<int64_t>(), 1, "there must be a head");
    a.rows = at_least(sizes[2].cast<int64_t>(), 1, "there must be a row");
    a.columns = at_least(sizes[3].cast<int64_t>(), 1, "there must be a column");
    a.depth = at_least(sizes[4].cast<int64_t>(), reference ? 1 : 0, "tokens must have a feature");
    (reference ? a.tokens : a.scores) = matrices(data, strides);
    a.reference = pointer<void>(reference);
    a.squared_distance = squared_distance;
    a.row_mass = pointer<const double>(masses[0].cast<uintptr_t>());
    a.row_mass_step = masses[1].cast<int64_t>();
    a.column_mass = pointer<const double>(masses[2].cast<uintptr_t>());
    a.column_mass_step = masses[3].cast<int64_t>();
    a.epsilon = epsilon;
    return a;
}

// `result` is the plan for scores, or 0 where it is not wanted, and T^T x for tokens.
inline TransportArguments forward_arguments(int type, const py::tuple& sizes, uintptr_t data, const py::tuple& strides,
                                            uintptr_t reference, bool squared_distance, const py::tuple& masses, double epsilon,
                                            int64_t iterations, double tolerance, int64_t keep, uintptr_t result, uintptr_t row,
                                            uintptr_t column, uintptr_t history, uintptr_t count) {
    TransportArguments a = transport_arguments(type, sizes, data, strides, reference, squared_distance, masses, epsilon);
    a.iterations = at_least(iterations, 1, "there must be an iteration");
    if (keep != 1 && keep != iterations) throw std::invalid_argument("keep must be 1 or the number of iterations");
    a.tolerance = tolerance;
    a.keep = keep;
    (reference ? a.aligned : a.plan) = pointer<void>(result);
    a.row = pointer<void>(row);
    a.column = pointer<void>(column);
    a.history = pointer<double>(history);
    a.count = pointer<int32_t>(count);
    return a;
}

// `grad` belongs to the plan, any strides, or to T^T x, contiguous.
inline TransportArguments backward_arguments(int type, const py::tuple& sizes, uintptr_t data, const py::tuple& strides,
                                             uintptr_t reference, bool squared_distance, const py::tuple& masses, double epsilon,
                                             int64_t keep, bool unrolled, uintptr_t history, uintptr_t count, uintptr_t grad,
                                             const py::tuple& grad_strides, uintptr_t grad_row, uintptr_t grad_column,
                                             uintptr_t data_grad, uintptr_t reference_grad) {
    TransportArguments a = transport_arguments(type, sizes, data, strides, reference, squared_distance, masses, epsilon);
    a.keep = at_least(keep, 1, "there must be a history");
    a.unrolled = unrolled;
    a.history = pointer<double>(history);
    a.count = pointer<int32_t>(count);
    if (reference)
        a.grad_aligned = pointer<void>(grad);
    else
        a.grad_plan = matrices(grad, grad_strides);
    a.grad_row = pointer<void>(grad_row);
    a.grad_column = pointer<void>(grad_column);
    (reference ? a.tokens_grad : a.scores_grad) = pointer<void>(data_grad);
    a.reference_grad = pointer<void>(reference_grad);
    return a;
}

inline ApplyArguments apply_forward_arguments(int type, const py::tuple& sizes, uintptr_t tokens, const py::tuple& strides,
                                              uintptr_t reference, bool squared_distance, uintptr_t row, uintptr_t column,
                                              uintptr_t values, bool columns_side, double epsilon, uintptr_t out) {
    if (sizes.size() != 6) throw std::invalid_argument("sizes are (B, heads, rows, columns, depth, width)");
    if (!(epsilon > 0)) throw std::invalid_argument("epsilon must be positive");
    ApplyArguments a;
    a.type = data_type(type);
    a.batch = at_least(sizes[0].cast<int64_t>(), 0, "a negative size");
    a.heads = at_least(sizes[1].cast<int64_t>(), 1, "there must be a head");
    a.rows = at_least(sizes[2].cast<int64_t>(), 1, "there must be a row");
    a.columns = at_least(sizes[3].cast<int64_t>(), 1, "there must be a column");
    a.depth = at_least(sizes[4].cast<int64_t>(), 1, "tokens must have a feature");
    a.width = at_least(sizes[5].cast<int64_t>(), 1, "values must have a feature");
    a.tokens = matrices(tokens, strides);
    a.reference = pointer<void>(reference);
    a.squared_distance = squared_distance;
    a.row = pointer<void>(row);
    a.column = pointer<void>(column);
    a.values = pointer<void>(values);
    a.columns_side = columns_side;
    a.epsilon = epsilon;
    a.out = pointer<void>(out);
    return a;
}

inline ApplyArguments apply_backward_arguments(int type, const py::tuple& sizes, uintptr_t tokens, const py::tuple& strides,
                                               uintptr_t reference, bool squared_distance, uintptr_t row, uintptr_t column,
                                               uintptr_t values, bool columns_side, double epsilon, uintptr_t grad,
                                               uintptr_t tokens_grad, uintptr_t reference_grad, uintptr_t row_grad,
                                               uintptr_t column_grad, uintptr_t values_grad) {
    ApplyArguments a = apply_forward_arguments(type, sizes, tokens, strides, reference, squared_distance, row, column, values,
                                               columns_side, epsilon, 0);
    a.grad = pointer<void>(grad);
    a.tokens_grad = pointer<void>(tokens_grad);
    a.reference_grad = pointer<void>(reference_grad);
    a.row_grad = pointer<void>(row_grad);
    a.column_grad = pointer<void>(column_grad);
    a.values_grad = pointer<void>(values_grad);
    return a;
}

}  // namespace prosma::bindings

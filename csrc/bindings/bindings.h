// What the bindings of every operator share.
//
// Tensors arrive as (address, strides). What the native code relies on is checked here once more, cheaply, because a
// wrong number would be a wild pointer there.
#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>

#include "../levels.h"

namespace prosma::bindings {

namespace py = pybind11;

// The processor level that runs; csrc/bindings.cpp chooses it.
extern const Level* selected;

// Each file of this folder adds the functions of one operator to the module.
void proximal_gate(py::module_& module);
void logit_mixing(py::module_& module);
void codebook(py::module_& module);
void transport(py::module_& module);

// <operator>_cuda.cpp, only in builds with the CUDA kernels: the same for `<operator>_cuda_forward` and so on.
void proximal_gate_cuda(py::module_& module);
void codebook_cuda(py::module_& module);
void logit_mixing_cuda(py::module_& module);
void transport_cuda(py::module_& module);

// Fills `to` from a tuple of the leading axes (B, C) and one to three spatial ones, which are the last of D, H, W.
inline void spread(const py::tuple& from, int64_t missing, int64_t* to) {
    const size_t count = from.size();
    if (count < 2 || count > AXES) throw std::invalid_argument("tensors have 2 to 5 dimensions");
    for (int axis = 0; axis < AXES; ++axis) to[axis] = missing;
    for (size_t i = 0; i < count; ++i) {
        const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(from.ptr(), Py_ssize_t(i)));
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        to[i < 2 ? i : AXES - count + i] = value;
    }
}

inline Tensor placed(uintptr_t address, const py::tuple& strides) {
    Tensor tensor;
    tensor.data = reinterpret_cast<void*>(address);
    if (tensor.data) spread(strides, 0, tensor.strides);
    return tensor;
}

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline void check_memory(bool enough) {
    if (!enough) throw std::bad_alloc();
}

inline DataType data_type(int code) {
    if (code < 0 || code > 3) throw std::invalid_argument("unknown dtype");
    return DataType(code);
}

inline Queue queue(int device, uintptr_t stream) {
    Queue queue;
    queue.device = device;
    queue.stream = reinterpret_cast<void*>(stream);
    return queue;
}

inline int thread_count(int threads) { return threads < 1 ? 1 : threads; }

}  // namespace prosma::bindings

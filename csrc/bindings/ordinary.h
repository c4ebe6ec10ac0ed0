// Reads tensors through Python's own protocol, for calls that have nothing to compute and so cost what the way there
// costs.
//
// A call is ordinary if its tensors are plain dense CPU tensors of the right types and shapes, with no gradient to
// record. What is not ordinary is left to Python, which knows every rule and has the words for what is wrong: nothing
// here raises, it declines. A call of proximal_gate on 32 numbers takes a third of the time that its checks, its choice
// of backend and its unpacking take in Python.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "bindings.h"

namespace prosma::bindings {

// What tensors are recognised by. Python hands torch over once, so that nothing of it is needed to build.
struct Torch {
    py::module_ module;
    py::object tensor, parameter, dtypes[4];
    py::str dtype = "dtype", shape = "shape", is_cpu = "is_cpu", requires_grad = "requires_grad", is_neg = "is_neg",
            stride = "stride", data_ptr = "data_ptr", empty_like = "empty_like";

    explicit Torch(const py::module_& torch)
        : module(torch), tensor(torch.attr("Tensor")), parameter(torch.attr("nn").attr("Parameter")) {
        const char* names[] = {"float32", "float64", "float16", "bfloat16"};  // in the order of DataType
        for (int type = 0; type < 4; ++type) dtypes[type] = torch.attr(names[type]);
    }
};

// Thrown where a call is not ordinary, and caught where the call came in.
struct NotOrdinary {};

inline void ordinary_if(bool condition) {
    if (!condition) throw NotOrdinary();
}

inline py::object taken(PyObject* reference) {
    if (!reference) {
        PyErr_Clear();  // a sparse tensor has no strides: whatever is the matter, Python will say it
        throw NotOrdinary();
    }
    return py::reinterpret_steal<py::object>(reference);
}

// A dense CPU tensor without a gradient to record, its sizes, and where its numbers are.
class OrdinaryTensor {
public:
    OrdinaryTensor(const Torch& torch, py::handle object, bool recording) {
        const auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        ordinary_if(kind == torch.tensor.ptr() || kind == torch.parameter.ptr());
        const auto get = [&](const py::str& name) { return taken(PyObject_GetAttr(object.ptr(), name.ptr())); };
        const auto call = [&](const py::str& name) {
            return taken(PyObject_CallMethodNoArgs(object.ptr(), name.ptr()));
        };
        ordinary_if(get(torch.is_cpu).ptr() == Py_True && call(torch.is_neg).ptr() == Py_False);
        ordinary_if(!recording || get(torch.requires_grad).ptr() == Py_False);
        const py::object dtype = get(torch.dtype);
        while (type_ < 4 && dtype.ptr() != torch.dtypes[type_].ptr()) ++type_;
        ordinary_if(type_ < 4);
        rank_ = numbers(get(torch.shape), sizes_);
        ordinary_if(numbers(call(torch.stride), strides_) == rank_);
        address_ = PyLong_AsVoidPtr(call(torch.data_ptr).ptr());
        ordinary_if(address_ != nullptr);  // nothing to compute, or a tensor of zeros that has no memory
    }

    DataType type() const { return DataType(type_); }
    int rank() const { return rank_; }
    int64_t size(int axis) const { return sizes_[axis]; }
    void* address() const { return address_; }

    bool same_sizes(const OrdinaryTensor& other) const {
        return rank_ == other.rank_ && !memcmp(sizes_, other.sizes_, sizeof(int64_t) * rank_);
    }

    bool contiguous() const {
        int64_t step = 1;
        for (int axis = rank_ - 1; axis >= 0; --axis) {
            if (sizes_[axis] != 1 && strides_[axis] != step) return false;
            step *= sizes_[axis];
        }
        return true;
    }

    // Sizes or strides in the order of the axes of every image tensor.
    void spread_sizes(int64_t* to) const { spread(sizes_, 1, to); }

    Tensor placed() const {
        Tensor tensor;
        tensor.data = address_;
        spread(strides_, 0, tensor.strides);
        return tensor;
    }

private:
    int type_ = 0, rank_ = 0;
    int64_t sizes_[AXES], strides_[AXES];
    void* address_ = nullptr;

    static int numbers(const py::object& from, int64_t* to) {
        ordinary_if(PyTuple_Check(from.ptr()) && PyTuple_GET_SIZE(from.ptr()) <= AXES);
        const int count = int(PyTuple_GET_SIZE(from.ptr()));
        for (int i = 0; i < count; ++i) to[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(from.ptr(), i));
        return count;
    }

    void spread(const int64_t* from, int64_t missing, int64_t* to) const {
        for (int axis = 0; axis < AXES; ++axis) to[axis] = missing;
        for (int i = 0; i < rank_; ++i) to[i < 2 ? i : AXES - rank_ + i] = from[i];
    }
};

// Whether the environment leaves the choice of backend to us.
inline bool environment_allows_native() {
    const char* asked = std::getenv("PROSMA_OPS_BACKEND");
    return !asked || !*asked || !std::strcmp(asked, "auto") || !std::strcmp(asked, "cpu");
}

}  // namespace prosma::bindings

// Reads tensors where torch keeps them, for calls that have nothing to compute and so cost what the way there costs.
//
// A call is ordinary if its tensors are plain dense CPU tensors of the right types and shapes, with no gradient to
// record. What is not ordinary is left to Python, which knows every rule and has the words for what is wrong: nothing
// here raises, it declines. A call of proximal_gate on 32 numbers takes a third of the time that its checks, its choice
// of backend and its unpacking take in Python.
//
// Where a tensor's numbers, sizes and strides are, torch tells through DLPack's table of C functions. Asked for them one
// Python attribute at a time, the call took half as long again.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "bindings.h"

namespace prosma::bindings {

// DLPack's own structures (DLTensor and DLPackExchangeAPI of version 1.3), as far as they are used here.
struct DenseTensor {
    void* data;
    int32_t device_type, device;
    int32_t rank;
    uint8_t type_class, type_bits;
    uint16_t type_lanes;
    const int64_t *sizes, *strides;
    uint64_t byte_offset;
};

struct ExchangeTable {
    static constexpr uint32_t MAJOR_VERSION = 1;
    uint32_t major_version, minor_version;
    void *older_table, *allocate, *share, *adopt;
    int (*describe)(void* object, DenseTensor* to);  // not 0 where it cannot, with a Python error set
};

// What tensors are recognised by. Python hands torch over once, so that nothing of it is needed to build.
struct Torch {
    py::module_ module;
    py::object tensor, parameter;
    py::str requires_grad = "requires_grad", is_neg = "is_neg", empty_like = "empty_like";
    const ExchangeTable* table = nullptr;  // absent where torch has none that is known here: then no call is ordinary

    explicit Torch(const py::module_& torch)
        : module(torch), tensor(torch.attr("Tensor")), parameter(torch.attr("nn").attr("Parameter")) {
        const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
        constexpr const char* name = "dlpack_exchange_api";
        if (!PyCapsule_IsValid(capsule.ptr(), name)) return;
        const auto* found = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), name));
        if (found->major_version == ExchangeTable::MAJOR_VERSION && found->describe) table = found;
    }

    py::object made_by(const py::str& function, py::handle argument) const {
        PyObject* result = PyObject_CallMethodOneArg(module.ptr(), function.ptr(), argument.ptr());
        if (!result) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(result);
    }
};

// Null until Python has handed torch over.
extern const Torch* known_torch;

// Thrown where a call is not ordinary, and caught where the call came in.
struct NotOrdinary {};

inline void ordinary_if(bool condition) {
    if (!condition) throw NotOrdinary();
}

inline bool answers(PyObject* answer, PyObject* expected) {
    if (!answer) PyErr_Clear();  // whatever is the matter, Python will say it
    Py_XDECREF(answer);
    return answer == expected;
}

// A dense CPU tensor, its sizes, and where its numbers are. Valid while the tensor is.
class OrdinaryTensor {
public:
    // A result that torch has just made.
    OrdinaryTensor(const Torch& torch, py::handle object) {
        if (torch.table->describe(object.ptr(), &dense_) != 0) {
            PyErr_Clear();  // a sparse tensor has no strides
            throw NotOrdinary();
        }
        constexpr int32_t cpu = 1;
        ordinary_if(dense_.device_type == cpu && dense_.rank <= AXES);
        ordinary_if(dense_.data != nullptr);  // nothing to compute, or a tensor of zeros that has no memory
        take_type();
    }

    // An argument: a plain tensor without a gradient to record.
    OrdinaryTensor(const Torch& torch, py::handle object, bool recording) : OrdinaryTensor(torch, plain(torch, object)) {
        ordinary_if(answers(PyObject_CallMethodNoArgs(object.ptr(), torch.is_neg.ptr()), Py_False));
        ordinary_if(!recording || answers(PyObject_GetAttr(object.ptr(), torch.requires_grad.ptr()), Py_False));
    }

    DataType type() const { return type_; }
    int rank() const { return dense_.rank; }
    int64_t size(int axis) const { return dense_.sizes[axis]; }
    void* address() const { return static_cast<char*>(dense_.data) + dense_.byte_offset; }

    bool same_sizes(const OrdinaryTensor& other) const {
        return rank() == other.rank() && !memcmp(dense_.sizes, other.dense_.sizes, sizeof(int64_t) * size_t(rank()));
    }

    bool contiguous() const {
        int64_t step = 1;
        for (int axis = rank() - 1; axis >= 0; --axis) {
            if (size(axis) != 1 && dense_.strides[axis] != step) return false;
            step *= size(axis);
        }
        return true;
    }

    // Sizes or strides in the order of the axes of every image tensor.
    void spread_sizes(int64_t* to) const { spread(dense_.sizes, 1, to); }

    Tensor placed() const {
        Tensor tensor;
        tensor.data = address();
        spread(dense_.strides, 0, tensor.strides);
        return tensor;
    }

private:
    DenseTensor dense_;
    DataType type_;

    static py::handle plain(const Torch& torch, py::handle object) {
        const auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        ordinary_if(kind == torch.tensor.ptr() || kind == torch.parameter.ptr());
        return object;
    }

    void take_type() {
        constexpr uint8_t ieee = 2, bfloat = 4;
        const int bits = dense_.type_bits;
        const bool is_ieee = dense_.type_class == ieee && (bits == 16 || bits == 32 || bits == 64);
        const bool is_bfloat = dense_.type_class == bfloat && bits == 16;
        ordinary_if(dense_.type_lanes == 1 && (is_ieee || is_bfloat));
        type_ = is_bfloat                   ? DataType::bfloat16
                : bits == 16                ? DataType::float16
                : bits == 32                ? DataType::float32
                                            : DataType::float64;
    }

    void spread(const int64_t* from, int64_t missing, int64_t* to) const {
        for (int axis = 0; axis < AXES; ++axis) to[axis] = missing;
        for (int i = 0; i < rank(); ++i) to[i < 2 ? i : AXES - rank() + i] = from[i];
    }
};

// Whether the environment leaves the choice of backend to us.
inline bool environment_allows_native() {
    const char* asked = std::getenv("PROSMA_OPS_BACKEND");
    return !asked || !*asked || !std::strcmp(asked, "auto") || !std::strcmp(asked, "cpu");
}

// What `run(torch)` returns, or None for a call that is not ordinary.
template <class Run>
PyObject* ordinary_call(const Run& run) {
    try {
        ordinary_if(known_torch && known_torch->table && environment_allows_native());
        return run(*known_torch).release().ptr();
    } catch (const NotOrdinary&) {
        Py_RETURN_NONE;
    } catch (py::error_already_set& error) {
        error.restore();
        return nullptr;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

}  // namespace prosma::bindings

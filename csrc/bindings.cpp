// The Python module prosma_ops._native: raw pointers, sizes and strides in, nothing of torch anywhere.
//
// Tensors arrive as (address, strides). What the native code relies on is checked here once more, cheaply, because a
// wrong number would be a wild pointer there.
#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "levels.h"

namespace py = pybind11;
using namespace prosma;

namespace {

const Level* selected = &LEVELS[0];

// Fills `to` from a tuple of the leading axes (B, C) and one to three spatial ones, which are the last of D, H, W.
void spread(const py::tuple& from, int64_t missing, int64_t* to) {
    const size_t count = from.size();
    if (count < 2 || count > AXES) throw std::invalid_argument("tensors have 2 to 5 dimensions");
    for (int axis = 0; axis < AXES; ++axis) to[axis] = missing;
    for (size_t i = 0; i < count; ++i) {
        const long long value = PyLong_AsLongLong(PyTuple_GET_ITEM(from.ptr(), Py_ssize_t(i)));
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        to[i < 2 ? i : AXES - count + i] = value;
    }
}

Tensor placed(uintptr_t address, const py::tuple& strides) {
    Tensor tensor;
    tensor.data = reinterpret_cast<void*>(address);
    if (tensor.data) spread(strides, 0, tensor.strides);
    return tensor;
}

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void check_memory(bool enough) {
    if (!enough) throw std::bad_alloc();
}

// The arguments that forward and backward share, and the storage that they point to.
struct Gate {
    GateArguments a;
    std::vector<int64_t> dilations;

    Gate(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilation_tuple, int activation) {
        if (type < 0 || type > 3) throw std::invalid_argument("unknown dtype");
        if (activation < 0 || activation > 2) throw std::invalid_argument("unknown activation");
        if (kernel_size < 1 || kernel_size % 2 == 0) throw std::invalid_argument("the kernel size must be odd");
        if (shape.size() < 4) throw std::invalid_argument("the field has 4 or 5 dimensions");
        a.type = DataType(type);
        a.threads = threads < 1 ? 1 : threads;
        spread(shape, 1, a.sizes);
        a.kernel_size = kernel_size;
        a.kernel_depth = shape.size() == 5 ? kernel_size : 1;
        for (const py::handle& dilation : dilation_tuple) {
            dilations.push_back(dilation.cast<int64_t>());
            if (dilations.back() < 1) throw std::invalid_argument("dilations must be at least 1");
        }
        if (dilations.empty()) throw std::invalid_argument("there must be one dilation or more");
        a.dilation_count = int(dilations.size());
        a.dilations = dilations.data();
        a.activation = Activation(activation);
    }

    void take_parameters(uintptr_t weight, uintptr_t threshold, uintptr_t channel_gate, uintptr_t bias) {
        a.weight = pointer<void>(weight);
        a.threshold = pointer<void>(threshold);
        a.channel_gate = pointer<void>(channel_gate);
        a.bias = pointer<void>(bias);
    }
};

void proximal_gate_forward(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilations,
                           int activation, uintptr_t field, const py::tuple& field_strides, uintptr_t skip,
                           const py::tuple& skip_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t weight,
                           uintptr_t threshold, uintptr_t channel_gate, uintptr_t bias) {
    Gate gate(type, threads, shape, kernel_size, dilations, activation);
    gate.a.field = placed(field, field_strides);
    gate.a.skip = placed(skip, skip_strides);
    gate.a.out = placed(out, out_strides);
    gate.take_parameters(weight, threshold, channel_gate, bias);
    py::gil_scoped_release release;
    check_memory(selected->proximal_gate_forward(gate.a));
}

void proximal_gate_backward(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilations,
                            int activation, uintptr_t grad, const py::tuple& grad_strides, uintptr_t field,
                            const py::tuple& field_strides, uintptr_t skip, const py::tuple& skip_strides,
                            uintptr_t field_grad, const py::tuple& field_grad_strides, uintptr_t skip_grad,
                            const py::tuple& skip_grad_strides, uintptr_t weight, uintptr_t threshold,
                            uintptr_t channel_gate, uintptr_t bias, uintptr_t weight_grad, uintptr_t threshold_grad,
                            uintptr_t channel_gate_grad, uintptr_t bias_grad) {
    Gate gate(type, threads, shape, kernel_size, dilations, activation);
    gate.a.grad = placed(grad, grad_strides);
    gate.a.field = placed(field, field_strides);
    gate.a.skip = placed(skip, skip_strides);
    gate.a.field_grad = placed(field_grad, field_grad_strides);
    gate.a.skip_grad = placed(skip_grad, skip_grad_strides);
    gate.take_parameters(weight, threshold, channel_gate, bias);
    gate.a.weight_grad = pointer<void>(weight_grad);
    gate.a.threshold_grad = pointer<void>(threshold_grad);
    gate.a.channel_gate_grad = pointer<void>(channel_gate_grad);
    gate.a.bias_grad = pointer<void>(bias_grad);
    py::gil_scoped_release release;
    check_memory(selected->proximal_gate_backward(gate.a));
}

ShrinkArguments shrink(int type, int threads, const py::tuple& shape) {
    if (type < 0 || type > 3) throw std::invalid_argument("unknown dtype");
    ShrinkArguments a;
    a.type = DataType(type);
    a.threads = threads < 1 ? 1 : threads;
    spread(shape, 1, a.sizes);
    return a;
}

void soft_threshold_forward(int type, int threads, const py::tuple& shape, uintptr_t x, const py::tuple& x_strides,
                            uintptr_t out, const py::tuple& out_strides, uintptr_t threshold) {
    ShrinkArguments a = shrink(type, threads, shape);
    a.x = placed(x, x_strides);
    a.out = placed(out, out_strides);
    a.threshold = pointer<void>(threshold);
    py::gil_scoped_release release;
    check_memory(selected->soft_threshold_forward(a));
}

void soft_threshold_backward(int type, int threads, const py::tuple& shape, uintptr_t grad, const py::tuple& grad_strides,
                             uintptr_t x, const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides,
                             uintptr_t threshold, uintptr_t threshold_grad) {
    ShrinkArguments a = shrink(type, threads, shape);
    a.grad = placed(grad, grad_strides);
    a.x = placed(x, x_strides);
    a.out = placed(out, out_strides);
    a.threshold = pointer<void>(threshold);
    a.threshold_grad = pointer<void>(threshold_grad);
    py::gil_scoped_release release;
    check_memory(selected->soft_threshold_backward(a));
}

std::string select_level(const std::string& name) {
    std::string known;
    for (const Level& level : LEVELS) known += std::string(known.empty() ? "" : ", ") + level.name;
    const Level* best = nullptr;
    for (const Level& level : LEVELS) {
        if (name != "auto" && name != level.name) continue;
        if (level.processor_has_it())
            best = &level;
        else if (name != "auto")
            throw std::invalid_argument("this processor does not have level '" + name + "'");
    }
    if (!best) throw std::invalid_argument("this build has no level '" + name + "'; it has auto, " + known);
    selected = best;
    return best->name;
}

py::tuple level_names(bool runnable_only) {
    py::list names;
    for (const Level& level : LEVELS)
        if (!runnable_only || level.processor_has_it()) names.append(level.name);
    return py::tuple(names);
}

py::dict build_record() {
    py::dict record;
    record["compiler"] = PROSMA_COMPILER;
    record["flags"] = PROSMA_BUILD_FLAGS;
#if defined(_OPENMP)
    record["openmp"] = true;
#else
    record["openmp"] = false;
#endif
    return record;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The compiled kernels of prosma_ops. Use prosma_ops.native, which knows when they are absent.";
    select_level("auto");
    module.def("select_level", &select_level);
    module.attr("levels") = level_names(false);
    module.attr("runnable_levels") = level_names(true);
    module.attr("build") = build_record();
    module.def("proximal_gate_forward", &proximal_gate_forward);
    module.def("proximal_gate_backward", &proximal_gate_backward);
    module.def("soft_threshold_forward", &soft_threshold_forward);
    module.def("soft_threshold_backward", &soft_threshold_backward);

    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    module.def("fma_rate", [](int threads, double seconds, bool double_precision) {
        return selected->fma_rate(threads, seconds, double_precision);
    }, py::arg("threads"), py::arg("seconds"), py::arg("double_precision") = false, unlocked);
    module.def("exp_rate", [](int threads, double seconds) { return selected->exp_rate(threads, seconds); },
               py::arg("threads"), py::arg("seconds"), unlocked);
    module.def("copy_rate", [](int threads, size_t bytes, double seconds) {
        return selected->copy_rate(threads, bytes, seconds);
    }, py::arg("threads"), py::arg("bytes"), py::arg("seconds"), unlocked);
#if defined(PROSMA_CUDA)
    module.attr("cuda") = true;
    module.def("cuda_fma_rate", &prosma::cuda::fma_rate, py::arg("seconds"), py::arg("double_precision") = false, unlocked);
    module.def("cuda_exp_rate", &prosma::cuda::exp_rate, py::arg("seconds"), unlocked);
    module.def("cuda_copy_rate", &prosma::cuda::copy_rate, py::arg("bytes"), py::arg("seconds"), unlocked);
#else
    module.attr("cuda") = false;
#endif
}

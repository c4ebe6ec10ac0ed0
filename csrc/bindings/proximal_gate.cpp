// prosma_ops._native: proximal_gate and soft_threshold.
#include "bindings.h"
#include "gate.h"
#include "ordinary.h"

namespace prosma::bindings {

const Torch* known_torch = nullptr;

namespace {

void gate_forward(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilations,
                  int activation, uintptr_t field, const py::tuple& field_strides, uintptr_t skip,
                  const py::tuple& skip_strides, uintptr_t out, const py::tuple& out_strides, uintptr_t weight,
                  uintptr_t threshold, uintptr_t channel_gate, uintptr_t bias) {
    Gate gate(type, shape, kernel_size, dilations, activation);
    gate.a.threads = thread_count(threads);
    gate.take_tensors(field, field_strides, skip, skip_strides, out, out_strides);
    gate.take_parameters(weight, threshold, channel_gate, bias);
    py::gil_scoped_release release;
    check_memory(selected->proximal_gate_forward(gate.a));
}

void gate_backward(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilations,
                   int activation, uintptr_t grad, const py::tuple& grad_strides, uintptr_t field,
                   const py::tuple& field_strides, uintptr_t skip, const py::tuple& skip_strides,
                   uintptr_t field_grad, const py::tuple& field_grad_strides, uintptr_t skip_grad,
                   const py::tuple& skip_grad_strides, uintptr_t weight, uintptr_t threshold,
                   uintptr_t channel_gate, uintptr_t bias, uintptr_t weight_grad, uintptr_t threshold_grad,
                   uintptr_t channel_gate_grad, uintptr_t bias_grad) {
    Gate gate(type, shape, kernel_size, dilations, activation);
    gate.a.threads = thread_count(threads);
    gate.take_tensors_and_gradients(grad, grad_strides, field, field_strides, skip, skip_strides, field_grad,
                                    field_grad_strides, skip_grad, skip_grad_strides);
    gate.take_parameters(weight, threshold, channel_gate, bias);
    gate.take_parameter_gradients(weight_grad, threshold_grad, channel_gate_grad, bias_grad);
    py::gil_scoped_release release;
    check_memory(selected->proximal_gate_backward(gate.a));
}

// The forward pass of an ordinary call: the result, or None for a call that Python has to look at.
class OrdinaryGate {
public:
    OrdinaryGate(const Torch& torch, bool recording) : torch_(torch), recording_(recording) {}

    py::object run(int threads, PyObject* const* arguments) {
        const OrdinaryTensor field = read(arguments[0]), weight = read(arguments[1]);
        const py::handle threshold = arguments[2], skip = arguments[3], channel_gate = arguments[4], bias = arguments[5];
        a_.type = field.type();
        a_.threads = thread_count(threads);
        field.spread_sizes(a_.sizes);
        take_kernels(field, weight);
        take_dilations(arguments[6], weight.size(0));
        take_activation(arguments[7]);
        const int64_t batch = a_.sizes[BATCH], channels = a_.sizes[CHANNEL];
        a_.threshold = parameter(threshold, 1, channels);
        if (!bias.is_none()) a_.bias = parameter(bias, 1, channels);
        if (!channel_gate.is_none()) a_.channel_gate = parameter(channel_gate, 2, batch, channels);
        if (!skip.is_none()) {
            const OrdinaryTensor other = read(skip);
            ordinary_if(other.type() == field.type() && other.same_sizes(field));
            a_.skip = other.placed();
        }
        a_.field = field.placed();
        const py::object out = torch_.made_by(torch_.empty_like, arguments[0]);
        a_.out = OrdinaryTensor(torch_, out).placed();
        bool enough_memory;
        Py_BEGIN_ALLOW_THREADS;
        enough_memory = selected->proximal_gate_forward(a_);
        Py_END_ALLOW_THREADS;
        check_memory(enough_memory);
        return out;
    }

private:
    static constexpr int MOST_DILATIONS = 16;
    static constexpr int64_t LARGEST_DILATION = 1 << 20;  // as in prosma_ops/ops/proximal_gate.py

    const Torch& torch_;
    bool recording_;
    GateArguments a_;
    int64_t dilations_[MOST_DILATIONS];

    OrdinaryTensor read(py::handle object) const { return OrdinaryTensor(torch_, object, recording_); }

    void take_kernels(const OrdinaryTensor& field, const OrdinaryTensor& weight) {
        const int rank = field.rank(), last = rank - 1;
        ordinary_if((rank == 4 || rank == 5) && weight.rank() == rank && weight.size(1) == field.size(1));
        ordinary_if(weight.size(last) % 2 == 1 && weight.size(2) == weight.size(last));
        ordinary_if(weight.size(last - 1) == weight.size(last));
        ordinary_if(is_parameter(weight));
        a_.kernel_size = int(weight.size(last));
        a_.kernel_depth = rank == 5 ? a_.kernel_size : 1;
        a_.weight = weight.address();
    }

    void take_dilations(py::handle dilations, int64_t kernels) {
        ordinary_if(PyTuple_CheckExact(dilations.ptr()) && kernels <= MOST_DILATIONS);
        ordinary_if(PyTuple_GET_SIZE(dilations.ptr()) == kernels);
        for (int64_t i = 0; i < kernels; ++i) {
            PyObject* dilation = PyTuple_GET_ITEM(dilations.ptr(), i);
            ordinary_if(PyLong_CheckExact(dilation));
            int overflow = 0;
            dilations_[i] = PyLong_AsLongLongAndOverflow(dilation, &overflow);
            ordinary_if(!overflow && dilations_[i] >= 1 && dilations_[i] <= LARGEST_DILATION);
        }
        a_.dilation_count = int(kernels);
        a_.dilations = dilations_;
    }

    void take_activation(py::handle activation) {
        ordinary_if(PyUnicode_CheckExact(activation.ptr()));
        const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(activation.ptr(), name) == 0; };
        a_.activation = is("tanh") ? Activation::tanh : is("relu") ? Activation::relu : Activation::identity;
        ordinary_if(a_.activation != Activation::identity || is("identity"));
    }

    // Contiguous and of the type that is computed in, so that it is used where it lies.
    bool is_parameter(const OrdinaryTensor& tensor) const {
        const DataType computed = a_.type == DataType::float64 ? DataType::float64 : DataType::float32;
        return tensor.type() == computed && tensor.contiguous();
    }

    const void* parameter(py::handle object, int rank, int64_t first, int64_t second = 1) const {
        const OrdinaryTensor tensor = read(object);
        ordinary_if(tensor.rank() == rank && tensor.size(0) == first && (rank == 1 || tensor.size(1) == second));
        ordinary_if(is_parameter(tensor));
        return tensor.address();
    }
};

// (threads, whether gradients are recorded, field, weight, threshold, skip, channel_gate, bias, dilations, activation),
// by Python's own fast protocol, in which nobody converts what is only looked at.
PyObject* gate_ordinary(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    return ordinary_call([&](const Torch& torch) {
        ordinary_if(count == 10);
        const int threads = int(PyLong_AsLong(arguments[0]));
        return OrdinaryGate(torch, arguments[1] == Py_True).run(threads, arguments + 2);
    });
}

PyMethodDef ordinary_functions[] = {
    {"proximal_gate_ordinary", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&gate_ordinary)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr}};

ShrinkArguments shrink(int type, int threads, const py::tuple& shape) {
    ShrinkArguments a;
    a.type = data_type(type);
    a.threads = thread_count(threads);
    spread(shape, 1, a.sizes);
    return a;
}

void shrink_forward(int type, int threads, const py::tuple& shape, uintptr_t x, const py::tuple& x_strides,
                    uintptr_t out, const py::tuple& out_strides, uintptr_t threshold) {
    ShrinkArguments a = shrink(type, threads, shape);
    a.x = placed(x, x_strides);
    a.out = placed(out, out_strides);
    a.threshold = pointer<void>(threshold);
    py::gil_scoped_release release;
    check_memory(selected->soft_threshold_forward(a));
}

void shrink_backward(int type, int threads, const py::tuple& shape, uintptr_t grad, const py::tuple& grad_strides,
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

}  // namespace

void proximal_gate(py::module_& module) {
    module.def("recognise", [](const py::module_& torch) {
        if (!known_torch) known_torch = new Torch(torch);
    });
    if (PyModule_AddFunctions(module.ptr(), ordinary_functions) != 0) throw py::error_already_set();
    module.def("proximal_gate_forward", &gate_forward);
    module.def("proximal_gate_backward", &gate_backward);
    module.def("soft_threshold_forward", &shrink_forward);
    module.def("soft_threshold_backward", &shrink_backward);
}

}  // namespace prosma::bindings

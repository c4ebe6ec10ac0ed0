// prosma_ops._native: proximal_gate and soft_threshold.
#include <vector>

#include "bindings.h"

namespace prosma::bindings {
namespace {

// The arguments that forward and backward share, and the storage that they point to.
struct Gate {
    GateArguments a;
    std::vector<int64_t> dilations;

    Gate(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilation_tuple, int activation) {
        if (activation < 0 || activation > 2) throw std::invalid_argument("unknown activation");
        if (kernel_size < 1 || kernel_size % 2 == 0) throw std::invalid_argument("the kernel size must be odd");
        if (shape.size() < 4) throw std::invalid_argument("the field has 4 or 5 dimensions");
        a.type = data_type(type);
        a.threads = thread_count(threads);
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

void gate_forward(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilations,
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

void gate_backward(int type, int threads, const py::tuple& shape, int kernel_size, const py::tuple& dilations,
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
    module.def("proximal_gate_forward", &gate_forward);
    module.def("proximal_gate_backward", &gate_backward);
    module.def("soft_threshold_forward", &shrink_forward);
    module.def("soft_threshold_backward", &shrink_backward);
}

}  // namespace prosma::bindings

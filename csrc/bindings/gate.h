// The arguments of proximal_gate as Python gives them, for the CPU's bindings and for CUDA's.
#pragma once

#include <vector>

#include "bindings.h"

namespace prosma::bindings {

// The arguments that forward and backward share, and the storage that they point to.
struct Gate {
    GateArguments a;
    std::vector<int64_t> dilations;

    Gate(int type, const py::tuple& shape, int kernel_size, const py::tuple& dilation_tuple, int activation) {
        if (activation < 0 || activation > 2) throw std::invalid_argument("unknown activation");
        if (kernel_size < 1 || kernel_size % 2 == 0) throw std::invalid_argument("the kernel size must be odd");
        if (shape.size() < 4) throw std::invalid_argument("the field has 4 or 5 dimensions");
        a.type = data_type(type);
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

    void take_tensors(uintptr_t field, const py::tuple& field_strides, uintptr_t skip, const py::tuple& skip_strides,
                      uintptr_t out, const py::tuple& out_strides) {
        a.field = placed(field, field_strides);
        a.skip = placed(skip, skip_strides);
        a.out = placed(out, out_strides);
    }

    void take_tensors_and_gradients(uintptr_t grad, const py::tuple& grad_strides, uintptr_t field,
                                    const py::tuple& field_strides, uintptr_t skip, const py::tuple& skip_strides,
                                    uintptr_t field_grad, const py::tuple& field_grad_strides, uintptr_t skip_grad,
                                    const py::tuple& skip_grad_strides) {
        a.grad = placed(grad, grad_strides);
        a.field = placed(field, field_strides);
        a.skip = placed(skip, skip_strides);
        a.field_grad = placed(field_grad, field_grad_strides);
        a.skip_grad = placed(skip_grad, skip_grad_strides);
    }

    void take_parameters(uintptr_t weight, uintptr_t threshold, uintptr_t channel_gate, uintptr_t bias) {
        a.weight = pointer<void>(weight);
        a.threshold = pointer<void>(threshold);
        a.channel_gate = pointer<void>(channel_gate);
        a.bias = pointer<void>(bias);
    }

    void take_parameter_gradients(uintptr_t weight, uintptr_t threshold, uintptr_t channel_gate, uintptr_t bias) {
        a.weight_grad = pointer<void>(weight);
        a.threshold_grad = pointer<void>(threshold);
        a.channel_gate_grad = pointer<void>(channel_gate);
        a.bias_grad = pointer<void>(bias);
    }
};

}  // namespace prosma::bindings

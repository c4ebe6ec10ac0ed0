// prosma_ops._native: proximal_gate and soft_threshold on a GPU. Pointers are to device memory, and `device` and `stream`
// say where the work is queued.
#include "../cuda/kernels.h"
#include "bindings.h"
#include "gate.h"

namespace prosma::bindings {
namespace {

void gate_forward(int type, int device, uintptr_t stream, const py::tuple& shape, int kernel_size,
                  const py::tuple& dilations, int activation, uintptr_t field, const py::tuple& field_strides,
                  uintptr_t skip, const py::tuple& skip_strides, uintptr_t out, const py::tuple& out_strides,
                  uintptr_t weight, uintptr_t threshold, uintptr_t channel_gate, uintptr_t bias) {
    Gate gate(type, shape, kernel_size, dilations, activation);
    gate.a.queue = queue(device, stream);
    gate.take_tensors(field, field_strides, skip, skip_strides, out, out_strides);
    gate.take_parameters(weight, threshold, channel_gate, bias);
    py::gil_scoped_release release;
    cuda::proximal_gate_forward(gate.a);
}

size_t gate_workspace(int type, const py::tuple& shape, int kernel_size, const py::tuple& dilations, uintptr_t field,
                      const py::tuple& field_strides) {
    Gate gate(type, shape, kernel_size, dilations, 0);
    gate.a.field = placed(field, field_strides);
    return cuda::proximal_gate_workspace(gate.a);
}

void gate_backward(int type, int device, uintptr_t stream, const py::tuple& shape, int kernel_size,
                   const py::tuple& dilations, int activation, uintptr_t grad, const py::tuple& grad_strides,
                   uintptr_t field, const py::tuple& field_strides, uintptr_t skip, const py::tuple& skip_strides,
                   uintptr_t field_grad, const py::tuple& field_grad_strides, uintptr_t skip_grad,
                   const py::tuple& skip_grad_strides, uintptr_t weight, uintptr_t threshold, uintptr_t channel_gate,
                   uintptr_t bias, uintptr_t weight_grad, uintptr_t threshold_grad, uintptr_t channel_gate_grad,
                   uintptr_t bias_grad, uintptr_t workspace) {
    Gate gate(type, shape, kernel_size, dilations, activation);
    gate.a.queue = queue(device, stream);
    gate.take_tensors_and_gradients(grad, grad_strides, field, field_strides, skip, skip_strides, field_grad,
                                    field_grad_strides, skip_grad, skip_grad_strides);
    gate.take_parameters(weight, threshold, channel_gate, bias);
    gate.take_parameter_gradients(weight_grad, threshold_grad, channel_gate_grad, bias_grad);
    gate.a.workspace = pointer<void>(workspace);
    py::gil_scoped_release release;
    cuda::proximal_gate_backward(gate.a);
}

ShrinkArguments shrink(int type, int device, uintptr_t stream, const py::tuple& shape, uintptr_t x,
                       const py::tuple& x_strides) {
    ShrinkArguments a;
    a.type = data_type(type);
    a.queue = queue(device, stream);
    spread(shape, 1, a.sizes);
    a.x = placed(x, x_strides);
    return a;
}

void shrink_forward(int type, int device, uintptr_t stream, const py::tuple& shape, uintptr_t x,
                                 const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides,
                                 uintptr_t threshold) {
    ShrinkArguments a = shrink(type, device, stream, shape, x, x_strides);
    a.out = placed(out, out_strides);
    a.threshold = pointer<void>(threshold);
    py::gil_scoped_release release;
    cuda::soft_threshold_forward(a);
}

size_t shrink_workspace(int type, const py::tuple& shape, uintptr_t x, const py::tuple& x_strides) {
    return cuda::soft_threshold_workspace(shrink(type, 0, 0, shape, x, x_strides));
}

void shrink_backward(int type, int device, uintptr_t stream, const py::tuple& shape, uintptr_t grad,
                                  const py::tuple& grad_strides, uintptr_t x, const py::tuple& x_strides,
                                  uintptr_t x_grad, const py::tuple& x_grad_strides, uintptr_t threshold,
                                  uintptr_t threshold_grad, uintptr_t workspace) {
    ShrinkArguments a = shrink(type, device, stream, shape, x, x_strides);
    a.grad = placed(grad, grad_strides);
    a.out = placed(x_grad, x_grad_strides);
    a.threshold = pointer<void>(threshold);
    a.threshold_grad = pointer<void>(threshold_grad);
    a.workspace = pointer<void>(workspace);
    py::gil_scoped_release release;
    cuda::soft_threshold_backward(a);
}

}  // namespace

void proximal_gate_cuda(py::module_& module) {
    module.def("proximal_gate_cuda_forward", &gate_forward);
    module.def("proximal_gate_cuda_workspace", &gate_workspace);
    module.def("proximal_gate_cuda_backward", &gate_backward);
    module.def("soft_threshold_cuda_forward", &shrink_forward);
    module.def("soft_threshold_cuda_workspace", &shrink_workspace);
    module.def("soft_threshold_cuda_backward", &shrink_backward);
}

}  // namespace prosma::bindings

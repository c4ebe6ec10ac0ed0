// prosma_ops._native: proximal_gate and soft_threshold on a GPU. Pointers are to device memory, and `device` and `stream`
// say where the work is queued.
#include "../cuda/kernels.h"
#include "bindings.h"

namespace prosma::bindings {
namespace {

ShrinkArguments shrink(int type, int device, uintptr_t stream, const py::tuple& shape, uintptr_t x,
                       const py::tuple& x_strides) {
    ShrinkArguments a;
    a.type = data_type(type);
    a.queue = queue(device, stream);
    spread(shape, 1, a.sizes);
    a.x = placed(x, x_strides);
    return a;
}

void soft_threshold_cuda_forward(int type, int device, uintptr_t stream, const py::tuple& shape, uintptr_t x,
                                 const py::tuple& x_strides, uintptr_t out, const py::tuple& out_strides,
                                 uintptr_t threshold) {
    ShrinkArguments a = shrink(type, device, stream, shape, x, x_strides);
    a.out = placed(out, out_strides);
    a.threshold = pointer<void>(threshold);
    py::gil_scoped_release release;
    cuda::soft_threshold_forward(a);
}

size_t soft_threshold_cuda_workspace(int type, const py::tuple& shape, uintptr_t x, const py::tuple& x_strides) {
    return cuda::soft_threshold_workspace(shrink(type, 0, 0, shape, x, x_strides));
}

void soft_threshold_cuda_backward(int type, int device, uintptr_t stream, const py::tuple& shape, uintptr_t grad,
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
    module.def("soft_threshold_cuda_forward", &soft_threshold_cuda_forward);
    module.def("soft_threshold_cuda_workspace", &soft_threshold_cuda_workspace);
    module.def("soft_threshold_cuda_backward", &soft_threshold_cuda_backward);
}

}  // namespace prosma::bindings

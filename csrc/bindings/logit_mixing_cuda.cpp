// prosma_ops._native: mixed_logit_statistics on a GPU. Pointers are to device memory, and `device` and `stream` say where the
// work is queued.
#include "../cuda/kernels.h"
#include "logit_mixing.h"

namespace prosma::bindings {
namespace {

MixingArguments queued(const py::tuple& shared, int device, uintptr_t stream, uintptr_t workspace) {
    MixingArguments a = arguments_of(shared);
    a.queue = queue(device, stream);
    a.workspace = pointer<void>(workspace);
    return a;
}

// Of the forward; of the backward where there are destinations of gradients.
size_t workspace_of(const py::tuple& shared, const py::tuple& sums, const py::tuple& level_grads, const py::tuple& parameter_grads) {
    MixingArguments a = arguments_of(shared);
    const bool of_backward = level_grads.size() > 0;
    if (of_backward)
        take_destinations(a, level_grads, parameter_grads);
    else
        take_sums(a, sums);
    return cuda::mixed_logit_statistics_workspace(a, of_backward);
}

void forward_on(const py::tuple& shared, int device, uintptr_t stream, uintptr_t workspace, const py::tuple& sums,
                uintptr_t class_pixels, uintptr_t pixels, uintptr_t invalid) {
    MixingArguments a = queued(shared, device, stream, workspace);
    take_sums(a, sums);
    take_counts(a, class_pixels, pixels, invalid);
    py::gil_scoped_release release;
    cuda::mixed_logit_statistics_forward(a);
}

void backward_on(const py::tuple& shared, int device, uintptr_t stream, uintptr_t workspace, const py::tuple& sum_grads,
                 const py::tuple& level_grads, const py::tuple& parameter_grads) {
    MixingArguments a = queued(shared, device, stream, workspace);
    take_sum_grads(a, sum_grads);
    take_destinations(a, level_grads, parameter_grads);
    py::gil_scoped_release release;
    cuda::mixed_logit_statistics_backward(a);
}

}  // namespace

void logit_mixing_cuda(py::module_& module) {
    module.def("mixed_logit_statistics_cuda_workspace", &workspace_of);
    module.def("mixed_logit_statistics_cuda_forward", &forward_on);
    module.def("mixed_logit_statistics_cuda_backward", &backward_on);
}

}  // namespace prosma::bindings

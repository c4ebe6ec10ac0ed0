// prosma_ops._native: Sinkhorn, transport plans, what they move, and plans applied, on a GPU. Pointers are to device memory,
// and `device` and `stream` say where the work is queued.
#include "../cuda/kernels.h"
#include "transport.h"

namespace prosma::bindings {
namespace {

// What Python calls: (type, device, stream, what `build` takes..., workspace).
template <class Arguments, class... Parameters>
auto queued(Arguments (*build)(int, Parameters...), void (*run)(const Arguments&)) {
    return [build, run](int type, int device, uintptr_t stream, Parameters... parameters, uintptr_t workspace) {
        Arguments a = build(type, parameters...);
        a.queue = queue(device, stream);
        a.workspace = pointer<void>(workspace);
        py::gil_scoped_release release;
        run(a);
    };
}

// How many bytes that workspace has to have: (type, what `build` takes...).
template <class Arguments, class... Parameters>
auto measured(Arguments (*build)(int, Parameters...), size_t (*workspace)(const Arguments&)) {
    return [build, workspace](int type, Parameters... parameters) { return workspace(build(type, parameters...)); };
}

}  // namespace

void transport_cuda(py::module_& module) {
    for (const char* name : {"sinkhorn_cuda_forward", "transport_plan_cuda_forward", "transport_align_cuda_forward"})
        module.def(name, queued(&forward_arguments, &cuda::transport_forward));
    for (const char* name : {"transport_plan_cuda_backward", "transport_align_cuda_backward"})
        module.def(name, queued(&backward_arguments, &cuda::transport_backward));
    module.def("apply_plan_cuda_forward", queued(&apply_forward_arguments, &cuda::apply_plan_forward));
    module.def("apply_plan_cuda_backward", queued(&apply_backward_arguments, &cuda::apply_plan_backward));
    for (const char* name : {"transport_plan_cuda_forward_workspace", "transport_align_cuda_forward_workspace"})
        module.def(name, measured(&forward_arguments, &cuda::transport_forward_workspace));
    for (const char* name : {"transport_plan_cuda_backward_workspace", "transport_align_cuda_backward_workspace"})
        module.def(name, measured(&backward_arguments, &cuda::transport_backward_workspace));
    module.def("apply_plan_cuda_forward_workspace", measured(&apply_forward_arguments, &cuda::apply_plan_workspace));
    module.def("apply_plan_cuda_backward_workspace", measured(&apply_backward_arguments, &cuda::apply_plan_workspace));
}

}  // namespace prosma::bindings

// prosma_ops._native: Sinkhorn, transport plans, what they move, and plans applied.
#include "transport.h"

namespace prosma::bindings {
namespace {

// What Python calls: (type, threads, what `build` takes...).
template <class Arguments, class... Parameters>
auto threaded(Arguments (*build)(int, Parameters...), bool (*Level::*run)(const Arguments&)) {
    return [build, run](int type, int threads, Parameters... parameters) {
        Arguments a = build(type, parameters...);
        a.threads = thread_count(threads);
        py::gil_scoped_release release;
        check_memory((selected->*run)(a));
    };
}

}  // namespace

void transport(py::module_& module) {
    for (const char* name : {"transport_plan_forward", "transport_align_forward"})
        module.def(name, threaded(&forward_arguments, &Level::transport_forward));
    for (const char* name : {"transport_plan_backward", "transport_align_backward"})
        module.def(name, threaded(&backward_arguments, &Level::transport_backward));
    module.def("apply_plan_forward", threaded(&apply_forward_arguments, &Level::apply_plan_forward));
    module.def("apply_plan_backward", threaded(&apply_backward_arguments, &Level::apply_plan_backward));
}

}  // namespace prosma::bindings

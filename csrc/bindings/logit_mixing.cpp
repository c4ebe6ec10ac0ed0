// prosma_ops._native: mixed_logit_statistics.
#include "logit_mixing.h"

namespace prosma::bindings {
namespace {

void forward(const py::tuple& shared, const py::tuple& sums, uintptr_t class_pixels, uintptr_t pixels, uintptr_t invalid) {
    MixingArguments a = arguments_of(shared);
    take_sums(a, sums);
    take_counts(a, class_pixels, pixels, invalid);
    py::gil_scoped_release release;
    check_memory(selected->mixed_logit_statistics_forward(a));
}

void backward(const py::tuple& shared, const py::tuple& sum_grads, const py::tuple& level_grads, const py::tuple& parameter_grads) {
    MixingArguments a = arguments_of(shared);
    take_sum_grads(a, sum_grads);
    take_destinations(a, level_grads, parameter_grads);
    py::gil_scoped_release release;
    check_memory(selected->mixed_logit_statistics_backward(a));
}

}  // namespace

void logit_mixing(py::module_& module) {
    module.def("mixed_logit_statistics_forward", &forward);
    module.def("mixed_logit_statistics_backward", &backward);
}

}  // namespace prosma::bindings

// The Python module prosma_ops._native: the choice of processor level, the measured floors, and the operators, each
// bound by its own file of csrc/bindings.
#include <string>

#include "bindings/bindings.h"

using namespace prosma;
using bindings::selected;
namespace py = pybind11;

const Level* bindings::selected = &LEVELS[0];

namespace {

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
    prosma::bindings::proximal_gate(module);
    prosma::bindings::logit_mixing(module);
    prosma::bindings::codebook(module);
    prosma::bindings::transport(module);

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
    prosma::bindings::proximal_gate_cuda(module);
    prosma::bindings::codebook_cuda(module);
    prosma::bindings::logit_mixing_cuda(module);
    prosma::bindings::transport_cuda(module);
    module.def("cuda_fma_rate", &prosma::cuda::fma_rate, py::arg("seconds"), py::arg("double_precision") = false, unlocked);
    module.def("cuda_exp_rate", &prosma::cuda::exp_rate, py::arg("seconds"), unlocked);
    module.def("cuda_copy_rate", &prosma::cuda::copy_rate, py::arg("bytes"), py::arg("seconds"), unlocked);
#else
    module.attr("cuda") = false;
#endif
}

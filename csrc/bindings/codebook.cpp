// prosma_ops._native: nearest_code and code_statistics.
#include "bindings.h"
#include "vectors.h"

namespace prosma::bindings {
namespace {

// Returns how many tokens had no finite score.
int64_t nearest_code_forward(int type, int threads, uintptr_t tokens, const py::tuple& sizes, const py::tuple& strides,
                             uintptr_t codebook, int64_t codes, int metric, uintptr_t quantized, uintptr_t index) {
    if (metric < 0 || metric > 1) throw std::invalid_argument("unknown metric");
    NearestArguments a;
    int64_t lost = 0;
    a.type = data_type(type);
    a.threads = thread_count(threads);
    a.tokens = vectors(tokens, sizes, strides);
    a.codes = code_count(codes);
    a.codebook = pointer<void>(codebook);
    a.metric = Metric(metric);
    a.quantized = pointer<void>(quantized);
    a.index = pointer<int64_t>(index);
    a.lost = &lost;
    py::gil_scoped_release release;
    check_memory(selected->nearest_code_forward(a));
    return lost;
}

// Returns how many indices were out of range; if any, nothing is written but counts.
int64_t code_statistics_forward(int type, int threads, uintptr_t tokens, const py::tuple& sizes,
                                const py::tuple& strides, uintptr_t index, int64_t codes, uintptr_t count, uintptr_t sum) {
    StatisticsArguments a;
    int64_t wrong = 0;
    a.type = data_type(type);
    a.threads = thread_count(threads);
    a.tokens = vectors(tokens, sizes, strides);
    a.codes = code_count(codes);
    a.index = pointer<int64_t>(index);
    a.count = pointer<int64_t>(count);
    a.sum = pointer<void>(sum);
    a.wrong = &wrong;
    py::gil_scoped_release release;
    check_memory(selected->code_statistics_forward(a));
    return wrong;
}

}  // namespace

void codebook(py::module_& module) {
    module.def("nearest_code_forward", &nearest_code_forward);
    module.def("code_statistics_forward", &code_statistics_forward);
}

}  // namespace prosma::bindings

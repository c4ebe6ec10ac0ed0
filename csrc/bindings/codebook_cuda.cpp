// prosma_ops._native: nearest_code and code_statistics on a GPU. Pointers are to device memory, and `device` and `stream`
// say where the work is queued.
#include "../cuda/kernels.h"
#include "bindings.h"
#include "vectors.h"

namespace prosma::bindings {
namespace {

void nearest_code_forward(int type, int device, uintptr_t stream, uintptr_t tokens, const py::tuple& sizes,
                          const py::tuple& strides, uintptr_t codebook, int64_t codes, int metric, bool exact,
                          uintptr_t quantized, uintptr_t index, uintptr_t lost, uintptr_t workspace) {
    if (metric < 0 || metric > 1) throw std::invalid_argument("unknown metric");
    NearestArguments a;
    a.type = data_type(type);
    a.queue = queue(device, stream);
    a.tokens = vectors(tokens, sizes, strides);
    a.codes = code_count(codes);
    a.codebook = pointer<void>(codebook);
    a.metric = Metric(metric);
    a.exact = exact;
    a.quantized = pointer<void>(quantized);
    a.index = pointer<int64_t>(index);
    a.lost_flag = pointer<int>(lost);
    a.workspace = pointer<void>(workspace);
    py::gil_scoped_release release;
    cuda::nearest_code_forward(a);
}

size_t nearest_code_workspace(int type, const py::tuple& sizes, const py::tuple& strides, int64_t codes) {
    NearestArguments a;
    a.type = data_type(type);
    a.tokens = vectors(0, sizes, strides);
    a.codes = code_count(codes);
    return cuda::nearest_code_workspace(a);
}

void code_statistics_forward(int type, int device, uintptr_t stream, uintptr_t tokens, const py::tuple& sizes,
                             const py::tuple& strides, int64_t codes, uintptr_t order, uintptr_t first,
                             uintptr_t chunks, uintptr_t owner, int64_t chunk, int64_t most_chunks, uintptr_t sum,
                             uintptr_t workspace) {
    if (chunk < 1 || most_chunks < 0) throw std::invalid_argument("there must be chunks of 1 token or more");
    StatisticsArguments a;
    a.type = data_type(type);
    a.queue = queue(device, stream);
    a.tokens = vectors(tokens, sizes, strides);
    a.codes = code_count(codes);
    a.order = pointer<int64_t>(order);
    a.first = pointer<int64_t>(first);
    a.chunks = pointer<int64_t>(chunks);
    a.owner = pointer<int64_t>(owner);
    a.chunk = chunk;
    a.most_chunks = most_chunks;
    a.sum = pointer<void>(sum);
    a.workspace = pointer<void>(workspace);
    py::gil_scoped_release release;
    cuda::code_statistics_forward(a);
}

}  // namespace

void codebook_cuda(py::module_& module) {
    module.def("nearest_code_cuda_forward", &nearest_code_forward);
    module.def("nearest_code_cuda_workspace", &nearest_code_workspace);
    module.def("code_statistics_cuda_forward", &code_statistics_forward);
}

}  // namespace prosma::bindings

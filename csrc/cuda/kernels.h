// What csrc/cuda offers to the bindings. Pointers are to device memory; work is queued on `queue` and nothing waits for it.
// Scratch memory is the caller's: `..._workspace` says how many bytes, aligned to 16, uninitialised.
#pragma once

#include <cstddef>

#include "../proximal_gate.h"

namespace prosma::cuda {

void soft_threshold_forward(const ShrinkArguments& a);
void soft_threshold_backward(const ShrinkArguments& a);
size_t soft_threshold_workspace(const ShrinkArguments& a);

}  // namespace prosma::cuda

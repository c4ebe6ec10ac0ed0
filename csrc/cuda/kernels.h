// What csrc/cuda offers to the bindings. Pointers are to device memory; work is queued on `queue` and nothing waits for it.
// Scratch memory is the caller's: `..._workspace` says how many bytes, aligned to 16, uninitialised.
#pragma once

#include <cstddef>

#include "../codebook.h"
#include "../logit_mixing.h"
#include "../proximal_gate.h"
#include "../transport.h"

namespace prosma::cuda {

void proximal_gate_forward(const GateArguments& a);
void proximal_gate_backward(const GateArguments& a);
size_t proximal_gate_workspace(const GateArguments& a);

void soft_threshold_forward(const ShrinkArguments& a);
void soft_threshold_backward(const ShrinkArguments& a);
size_t soft_threshold_workspace(const ShrinkArguments& a);

void nearest_code_forward(const NearestArguments& a);
size_t nearest_code_workspace(const NearestArguments& a);
void code_statistics_forward(const StatisticsArguments& a);

void mixed_logit_statistics_forward(const MixingArguments& a);
void mixed_logit_statistics_backward(const MixingArguments& a);
size_t mixed_logit_statistics_workspace(const MixingArguments& a, bool of_backward);

void transport_forward(const TransportArguments& a);
size_t transport_forward_workspace(const TransportArguments& a);
void transport_backward(const TransportArguments& a);
size_t transport_backward_workspace(const TransportArguments& a);
void apply_plan_forward(const ApplyArguments& a);
void apply_plan_backward(const ApplyArguments& a);
size_t apply_plan_workspace(const ApplyArguments& a);

}  // namespace prosma::cuda

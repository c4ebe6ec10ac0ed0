// What every processor level offers. Included by each file of csrc/cpu, for its own level, and by csrc/levels.h, for all.
#if !defined(PROSMA_LEVEL)
#error "compile csrc/cpu with -DPROSMA_LEVEL=portable, v3 or v4"
#endif

#include <cstddef>

#include "../codebook.h"
#include "../logit_mixing.h"
#include "../proximal_gate.h"
#include "../transport.h"

namespace prosma::PROSMA_LEVEL {

// Each is false if there was not enough memory.
bool proximal_gate_forward(const GateArguments& arguments);
bool proximal_gate_backward(const GateArguments& arguments);
bool soft_threshold_forward(const ShrinkArguments& arguments);
bool soft_threshold_backward(const ShrinkArguments& arguments);
bool mixed_logit_statistics_forward(const MixingArguments& arguments);
bool mixed_logit_statistics_backward(const MixingArguments& arguments);
bool nearest_code_forward(const NearestArguments& arguments);
bool code_statistics_forward(const StatisticsArguments& arguments);
bool transport_forward(const TransportArguments& arguments);
bool transport_backward(const TransportArguments& arguments);
bool apply_plan_forward(const ApplyArguments& arguments);
bool apply_plan_backward(const ApplyArguments& arguments);

}  // namespace prosma::PROSMA_LEVEL

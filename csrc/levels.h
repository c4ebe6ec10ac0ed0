// The kernels of every processor level that was compiled in, and the choice among them at run time.
#pragma once

#include "floors.h"

#define PROSMA_LEVEL portable
#include "cpu/kernels.h"
#undef PROSMA_LEVEL
#if defined(PROSMA_HAS_V3)
#define PROSMA_LEVEL v3
#include "cpu/kernels.h"
#undef PROSMA_LEVEL
#endif
#if defined(PROSMA_HAS_V4)
#define PROSMA_LEVEL v4
#include "cpu/kernels.h"
#undef PROSMA_LEVEL
#endif

namespace prosma {

struct Level {
    const char* name;
    bool (*processor_has_it)();
    bool (*proximal_gate_forward)(const GateArguments&);
    bool (*proximal_gate_backward)(const GateArguments&);
    bool (*soft_threshold_forward)(const ShrinkArguments&);
    bool (*soft_threshold_backward)(const ShrinkArguments&);
    double (*fma_rate)(int threads, double seconds, bool double_precision);
    double (*exp_rate)(int threads, double seconds);
    double (*copy_rate)(int threads, size_t bytes, double seconds);
    bool (*mixed_logit_statistics_forward)(const MixingArguments&);
    bool (*mixed_logit_statistics_backward)(const MixingArguments&);
    bool (*nearest_code_forward)(const NearestArguments&);
    bool (*code_statistics_forward)(const StatisticsArguments&);
    bool (*transport_forward)(const TransportArguments&);
    bool (*transport_backward)(const TransportArguments&);
    bool (*apply_plan_forward)(const ApplyArguments&);
    bool (*apply_plan_backward)(const ApplyArguments&);
};

#define PROSMA_LEVEL_ENTRY(level, processor_has_it)                                                              \
    {                                                                                                            \
        #level, processor_has_it, level::proximal_gate_forward, level::proximal_gate_backward,                    \
            level::soft_threshold_forward, level::soft_threshold_backward, level::fma_rate, level::exp_rate,      \
            level::copy_rate,                                                                                    \
            level::mixed_logit_statistics_forward, level::mixed_logit_statistics_backward,                        \
            level::nearest_code_forward, level::code_statistics_forward, level::transport_forward,                 \
            level::transport_backward, level::apply_plan_forward, level::apply_plan_backward                       \
    }

// Slowest first.
inline const Level LEVELS[] = {
    PROSMA_LEVEL_ENTRY(portable, [] { return true; }),
#if defined(PROSMA_HAS_V3)
    PROSMA_LEVEL_ENTRY(v3, [] {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
               __builtin_cpu_supports("bmi2");
    }),
#endif
#if defined(PROSMA_HAS_V4)
    PROSMA_LEVEL_ENTRY(v4, [] {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }),
#endif
};

#undef PROSMA_LEVEL_ENTRY

}  // namespace prosma

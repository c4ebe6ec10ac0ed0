// What this machine can do at most: multiply-adds, exponentials and copied bytes a second. Every benchmark measures
// these beside itself and reports its distance from them.
//
// On the CPU there is one set of functions a processor level. The bindings call those of the level that was selected,
// with the interpreter's lock released, since each takes as long as `seconds` says:
//
//     prosma::v4::fma_rate(threads, seconds, double_precision)     GFLOP/s, a multiply-add counting as two
//     prosma::v4::exp_rate(threads, seconds)                       1e9 exponentials a second, float32
//     prosma::v4::copy_rate(threads, bytes, seconds)               GB/s, bytes read + bytes written
//
// Each runs short rounds in which all threads start together, and returns the rate of the best round: a floor is
// what the machine can do, not what it does while others use it. `copy_rate` allocates 2 * bytes, and returns 0 if it
// cannot. On a GPU the functions of prosma::cuda work on the calling thread's current device and throw
// std::runtime_error with CUDA's reason.
#pragma once

#include <cstddef>

#define PROSMA_DECLARE_FLOORS(level)                                           \
    namespace prosma::level {                                                  \
    double fma_rate(int threads, double seconds, bool double_precision);       \
    double exp_rate(int threads, double seconds);                              \
    double copy_rate(int threads, size_t bytes, double seconds);               \
    }

PROSMA_DECLARE_FLOORS(portable)
PROSMA_DECLARE_FLOORS(v3)
PROSMA_DECLARE_FLOORS(v4)

#undef PROSMA_DECLARE_FLOORS

namespace prosma::cuda {

double fma_rate(double seconds, bool double_precision);
double exp_rate(double seconds);
double copy_rate(size_t bytes, double seconds);

}  // namespace prosma::cuda

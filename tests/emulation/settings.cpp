// What module.cpp sets, in a file that sees the emulation: that one is compiled without the sanitizers.
#include "cuda_runtime.h"

namespace emulation {

void set_order(int seed) { order = seed; }

void set_chip(int major, int minor) {
    chip.major = major;
    chip.minor = minor;
}

}  // namespace emulation

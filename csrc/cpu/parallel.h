// The parallel loop over independent work items, each with scratch memory that its thread keeps.
//
// Which items there are must depend on sizes alone, never on the number of threads: then one thread and many give
// bitwise the same results.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace prosma::PROSMA_LEVEL {

// Aligned memory that a thread keeps from call to call: fresh pages cost more than the work of a small call.
class Scratch {
public:
    ~Scratch() { free(memory_); }

    void* at_least(size_t bytes) {
        if (bytes > size_) {
            free(memory_);
            size_ = (bytes + 4095) / 4096 * 4096;
            memory_ = aligned_alloc(4096, size_);
            if (!memory_) size_ = 0;
        }
        return memory_;
    }

private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

inline Scratch& thread_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

// Calls body(item, scratch) for every item; false if there was not enough memory, and then results are unfinished.
// Items are handed out a few at a time: neighbours share rows in the cache, and a thread that the machine holds up
// delays the others by at most one hand-out.
template <class Body>
bool for_each_item([[maybe_unused]] int threads, int64_t items, size_t scratch_bytes, const Body& body) {
    bool enough_memory = true;
#if defined(_OPENMP)
    if (threads > items) threads = int(items);
    if (threads > 1) {
        int64_t share = items / (int64_t(threads) * 8);
        share = share < 1 ? 1 : share > 16 ? 16 : share;
#pragma omp parallel num_threads(threads)
        {
            void* scratch = thread_scratch().at_least(scratch_bytes);
            if (!scratch) {
#pragma omp atomic write
                enough_memory = false;
            }
#pragma omp for schedule(dynamic, share)
            for (int64_t item = 0; item < items; ++item)
                if (scratch) body(item, scratch);
        }
        return enough_memory;
    }
#endif
    void* scratch = thread_scratch().at_least(scratch_bytes);
    if (!scratch) return false;
    for (int64_t item = 0; item < items; ++item) body(item, scratch);
    return enough_memory;
}

}  // namespace prosma::PROSMA_LEVEL

// The emulation itself: the threads of a launch, one at a time, and how they wait for one another.
//
// A thread is a fiber. It runs until it has to wait for others, at a barrier or for the lanes of its warp, and then
// the next one runs: forwards, backwards or in shuffled order. So whatever lacks a barrier is read before it is written
// in one of the orders. All blocks of a cluster are alive together; clusters follow one another.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <source_location>
#include <vector>

#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
// Without AddressSanitizer nobody has to be told of a stack.
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "vector_types.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

using Site = std::source_location;

constexpr size_t STACK = 256 * 1024;
constexpr size_t LARGEST_EXCHANGE = 64;  // bytes a lane

struct Memory {
    explicit Memory(size_t size) : bytes(size) {
        if (posix_memalign(&data, 128, size ? size : 1)) std::abort();
        std::memset(data, 0xff, size);  // NaN in every type
    }
    ~Memory() { std::free(data); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    bool holds(const void* address) const {
        return address >= data && address < static_cast<char*>(data) + (bytes ? bytes : 1);
    }

    void* data = nullptr;
    size_t bytes;
};

// Where the threads of a block or of a cluster wait for one another; `result` is how many of them said yes.
struct Barrier {
    unsigned alive = 0, waiting = 0;
    int votes = 0, result = 0;
};

struct Fiber;

struct Warp {
    Fiber* lanes[warpSize] = {};
    alignas(16) unsigned char given[warpSize][LARGEST_EXCHANGE];  // by each lane, in the exchange before
};

struct Cluster;

struct Block {
    uint3 index;
    unsigned rank;
    Cluster* cluster;
    Barrier barrier;
    std::vector<Warp> warps;
    std::unique_ptr<Memory> dynamic;
    std::map<const void*, std::unique_ptr<Memory>> objects;
};

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

enum class State { ready, at_barrier, in_warp, done };

struct Fiber {
    uint3 thread;
    unsigned lane;
    Block* block;
    Warp* warp;
    State state;
    Barrier* barrier;
    Site site;
    unsigned mask;
    const void* given;
    size_t bytes;
    std::vector<std::vector<Copy>> copies;  // groups that were committed, and at last the one that is open

    char* stack = nullptr;
    void* fake_stack = nullptr;
#if defined(__x86_64__)
    void* pointer = nullptr;
#else
    ucontext_t context;
#endif
};

struct Cluster {
    std::vector<Block> blocks;
    std::vector<Fiber*> fibers;
    Barrier barrier;
};

struct Chip {
    int major = 9, minor = 0;
    int multiprocessors = 3;
    int shared_memory() const { return (major == 9 || major == 10 ? 227 : major == 8 && minor == 0 ? 163 : 99) * 1024; }
};

inline Chip chip;
inline int order = 0;  // 0: forwards; -1: backwards; else shuffled by this seed
inline std::mt19937 shuffler;
inline std::vector<std::unique_ptr<Fiber>> pool;
inline std::map<const void*, int> allowed_shared;
inline Fiber* running = nullptr;
inline const std::function<void()>* body = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;
inline void* scheduler_fake_stack = nullptr;

[[noreturn]] inline void fail(const char* what, const Fiber& fiber) {
    std::fprintf(stderr, "emulation: %s\n  block (%u, %u, %u), thread (%u, %u, %u), %s:%u %s\n", what, fiber.block->index.x,
                 fiber.block->index.y, fiber.block->index.z, fiber.thread.x, fiber.thread.y, fiber.thread.z,
                 fiber.site.file_name(), unsigned(fiber.site.line()), fiber.site.function_name());
    std::abort();
}

#if defined(__x86_64__)
inline void* scheduler_pointer = nullptr;

// Keeps what a call must preserve on this stack, and goes on where the other one stopped.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}
inline void to_fiber(Fiber& fiber) { switch_stacks(&scheduler_pointer, fiber.pointer); }
inline void to_scheduler(Fiber& fiber) { switch_stacks(&fiber.pointer, scheduler_pointer); }
inline void prepare(Fiber& fiber, void (*start)()) {
    void** top = reinterpret_cast<void**>(fiber.stack + STACK) - 2;
    *top = reinterpret_cast<void*>(start);
    fiber.pointer = top - 6;
}
#else
inline ucontext_t scheduler_context;
inline void to_fiber(Fiber& fiber) { swapcontext(&scheduler_context, &fiber.context); }
inline void to_scheduler(Fiber& fiber) { swapcontext(&fiber.context, &scheduler_context); }
inline void prepare(Fiber& fiber, void (*start)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, start, 0);
}
#endif

inline void wait() {
    Fiber& fiber = *running;
    __sanitizer_start_switch_fiber(&fiber.fake_stack, scheduler_stack, scheduler_stack_size);
    to_scheduler(fiber);
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_size);
}

inline void resume(Fiber& fiber) {
    running = &fiber;
    threadIdx = fiber.thread;
    blockIdx = fiber.block->index;
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK);
    to_fiber(fiber);
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

inline void release(Barrier& barrier) {
    const Fiber* first = nullptr;
    for (Fiber* fiber : running->block->cluster->fibers) {
        const bool waits = fiber->state == State::at_barrier && fiber->barrier == &barrier;
        if (!waits) continue;
        if (first && (first->site.line() != fiber->site.line() || first->site.file_name() != fiber->site.file_name())) {
            std::fprintf(stderr, "emulation: threads wait at different barriers; one at line %u\n", unsigned(first->site.line()));
            fail("the other:", *fiber);
        }
        first = fiber;
        fiber->state = State::ready;
    }
    barrier.result = barrier.votes;
    barrier.waiting = 0;
    barrier.votes = 0;
}

// The last to come releases the others and goes on.
inline int meet(Barrier& barrier, int vote, Site site) {
    running->site = site;
    running->barrier = &barrier;
    running->state = State::at_barrier;
    barrier.votes += vote != 0;
    if (++barrier.waiting == barrier.alive)
        release(barrier);
    else
        wait();
    return barrier.result;
}

inline void leave(Barrier& barrier) {
    if (--barrier.alive && barrier.waiting == barrier.alive) release(barrier);
}

// Every lane of `mask` gives `bytes` bytes, and then sees what the others gave, until its next exchange.
inline const Warp& exchange(unsigned mask, const void* given, size_t bytes, Site site) {
    Fiber& self = *running;
    Warp& warp = *self.warp;
    self.site = site;
    if (!(mask >> self.lane & 1)) fail("a lane is not in its own mask", self);
    if (bytes > LARGEST_EXCHANGE) fail("too much for one exchange", self);
    self.mask = mask;
    self.given = given;
    self.bytes = bytes;
    self.state = State::in_warp;
    for (unsigned lane = 0; lane < unsigned(warpSize); ++lane) {
        const Fiber* other = warp.lanes[lane];
        if (!other || !(mask >> lane & 1)) continue;
        if (other->state == State::done) fail("a lane of the mask has ended", self);
        const bool here = other->state == State::in_warp && other->mask == mask && other->site.line() == site.line();
        if (!here) {
            wait();
            return warp;
        }
    }
    for (unsigned lane = 0; lane < unsigned(warpSize); ++lane) {
        if (!(mask >> lane & 1)) continue;
        std::memset(warp.given[lane], 0xff, LARGEST_EXCHANGE);
        if (Fiber* other = warp.lanes[lane]) {
            if (other->bytes) std::memcpy(warp.given[lane], other->given, other->bytes);
            other->state = State::ready;
        }
    }
    return warp;
}

template <class T>
T given_by(const Warp& warp, unsigned lane) {
    T value;
    std::memcpy(&value, warp.given[lane], sizeof(T));
    return value;
}

[[noreturn]] inline void live() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
    for (;;) {
        (*body)();
        running->state = State::done;
        leave(running->block->barrier);
        leave(running->block->cluster->barrier);
        wait();
    }
}

inline Fiber& fiber_of_pool(size_t number) {
    while (pool.size() <= number) {
        pool.push_back(std::make_unique<Fiber>());
        Fiber& fiber = *pool.back();
        void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) std::abort();
        fiber.stack = static_cast<char*>(stack);
        prepare(fiber, &live);
    }
    return *pool[number];
}

inline void place(Cluster& cluster, dim3 threads, size_t shared_bytes) {
    const unsigned count = threads.x * threads.y * threads.z;
    for (Block& block : cluster.blocks) {
        block.cluster = &cluster;
        block.barrier.alive = count;
        block.warps.resize((count + warpSize - 1) / warpSize);
        block.dynamic = std::make_unique<Memory>(shared_bytes);
        for (unsigned i = 0; i < count; ++i) {
            Fiber& fiber = fiber_of_pool(cluster.fibers.size());
            fiber.thread = {i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y)};
            fiber.lane = i % warpSize;
            fiber.block = &block;
            fiber.warp = &block.warps[i / warpSize];
            fiber.warp->lanes[fiber.lane] = &fiber;
            fiber.state = State::ready;
            fiber.copies.assign(1, {});
            cluster.fibers.push_back(&fiber);
        }
    }
    cluster.barrier.alive = unsigned(cluster.fibers.size());
}

template <class T>
void arrange(std::vector<T>& items) {
    if (order > 0) std::shuffle(items.begin(), items.end(), shuffler);
    if (order < 0) std::reverse(items.begin(), items.end());
}

inline void run(Cluster& cluster) {
    std::vector<Fiber*> fibers = cluster.fibers;
    if (order < 0) arrange(fibers);
    for (bool any = true; any;) {
        if (order > 0) arrange(fibers);
        bool moved = false;
        any = false;
        for (Fiber* fiber : fibers) {
            if (fiber->state == State::ready) {
                resume(*fiber);
                moved = true;
            }
            any |= fiber->state != State::done;
        }
        if (any && !moved)
            for (Fiber* fiber : fibers)
                if (fiber->state != State::done) fail("the threads wait for one another; one of them:", *fiber);
    }
}

inline void run(dim3 blocks, dim3 threads, dim3 together, size_t shared_bytes, const std::function<void()>& kernel) {
    gridDim = blocks;
    blockDim = threads;
    body = &kernel;
    shuffler.seed(unsigned(order));
    std::vector<uint3> starts;
    for (unsigned z = 0; z < blocks.z; z += together.z)
        for (unsigned y = 0; y < blocks.y; y += together.y)
            for (unsigned x = 0; x < blocks.x; x += together.x) starts.push_back({x, y, z});
    arrange(starts);
    for (const uint3& start : starts) {
        Cluster cluster;
        cluster.blocks.resize(size_t(together.x) * together.y * together.z);
        for (unsigned i = 0; i < cluster.blocks.size(); ++i) {
            cluster.blocks[i].rank = i;
            cluster.blocks[i].index = {start.x + i % together.x, start.y + i / together.x % together.y,
                                       start.z + i / (together.x * together.y)};
        }
        place(cluster, threads, shared_bytes);
        run(cluster);
    }
}

inline void* object_of(Block& block, const void* key, size_t bytes) {
    std::unique_ptr<Memory>& memory = block.objects[key];
    if (!memory) memory = std::make_unique<Memory>(bytes);
    return memory->data;
}

template <class T>
inline const char key_of = 0;

// What csrc/cuda/device.h makes its functions of.

template <class T>
T& shared_object() {
    return *static_cast<T*>(object_of(*running->block, &key_of<T>, sizeof(T)));
}

inline void* dynamic_shared() { return running->block->dynamic->data; }

inline void copy_async(void* to, const void* from, size_t bytes) { running->copies.back().push_back({to, from, bytes}); }

inline void copy_async_commit() { running->copies.emplace_back(); }

// Copies arrive as late as they may: when they are waited for.
inline void copy_async_wait(size_t left) {
    auto& groups = running->copies;
    while (groups.size() > left + 1) {
        for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
        groups.erase(groups.begin());
    }
}

}  // namespace emulation

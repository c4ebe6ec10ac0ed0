// What the threads of a block, of a warp and of a cluster say to one another, by CUDA's own names.
#pragma once

#include "fibers.h"

inline void __syncthreads(emulation::Site site = emulation::Site::current()) {
    emulation::meet(emulation::running->block->barrier, 0, site);
}
inline int __syncthreads_count(int vote, emulation::Site site = emulation::Site::current()) {
    return emulation::meet(emulation::running->block->barrier, vote, site);
}
inline int __syncthreads_or(int vote, emulation::Site site = emulation::Site::current()) {
    return emulation::meet(emulation::running->block->barrier, vote, site) > 0;
}
inline int __syncthreads_and(int vote, emulation::Site site = emulation::Site::current()) {
    return emulation::meet(emulation::running->block->barrier, !vote, site) == 0;
}

inline void __syncwarp(unsigned mask = ~0u, emulation::Site site = emulation::Site::current()) {
    emulation::exchange(mask, nullptr, 0, site);
}

inline unsigned __ballot_sync(unsigned mask, int vote, emulation::Site site = emulation::Site::current()) {
    const emulation::Warp& warp = emulation::exchange(mask, &vote, sizeof(vote), site);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < unsigned(warpSize); ++lane)
        if (mask >> lane & 1 && warp.lanes[lane] && emulation::given_by<int>(warp, lane)) votes |= 1u << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int vote, emulation::Site site = emulation::Site::current()) {
    return __ballot_sync(mask, vote, site) != 0;
}
inline int __all_sync(unsigned mask, int vote, emulation::Site site = emulation::Site::current()) {
    return __ballot_sync(mask, !vote, site) == 0;
}

namespace emulation {

// The value of lane `source`; one that is not in the mask gives no number.
template <class T>
T shuffled(unsigned mask, T value, int source, Site site) {
    const Warp& warp = exchange(mask, &value, sizeof(T), site);
    if (source == int(running->lane)) return value;
    if (!(mask >> source & 1) || !warp.lanes[source]) {
        std::memset(static_cast<void*>(&value), 0xff, sizeof(T));
        return value;
    }
    return given_by<T>(warp, unsigned(source));
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulation::Site site = emulation::Site::current()) {
    const int lane = int(emulation::running->lane);
    return emulation::shuffled(mask, value, lane / width * width + (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, emulation::Site site = emulation::Site::current()) {
    const int lane = int(emulation::running->lane), source = lane ^ lanes;
    return emulation::shuffled(mask, value, source / width > lane / width ? lane : source, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, emulation::Site site = emulation::Site::current()) {
    const int lane = int(emulation::running->lane), source = lane + int(by);
    return emulation::shuffled(mask, value, source / width == lane / width ? source : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, emulation::Site site = emulation::Site::current()) {
    const int lane = int(emulation::running->lane), source = lane - int(by);
    return emulation::shuffled(mask, value, source >= lane / width * width ? source : lane, site);
}

// Clusters and distributed shared memory, by CUDA's own names for sm_90.

inline unsigned __clusterRelativeBlockRank() { return emulation::running->block->rank; }
inline unsigned __clusterSizeInBlocks() { return unsigned(emulation::running->block->cluster->blocks.size()); }
namespace emulation {
inline void cluster_barrier(Site site = Site::current()) { meet(running->block->cluster->barrier, 0, site); }

// The address in block `rank` of what lies at `address` in this one's shared memory.
inline void* in_block(const void* address, unsigned rank) {
    Block& here = *running->block;
    if (rank >= here.cluster->blocks.size()) fail("there is no such block in the cluster", *running);
    Block& there = here.cluster->blocks[rank];
    const auto moved = [&](const Memory& from, void* to) {
        return static_cast<char*>(to) + (static_cast<const char*>(address) - static_cast<const char*>(from.data));
    };
    if (here.dynamic->holds(address)) return moved(*here.dynamic, there.dynamic->data);
    for (const auto& [key, memory] : here.objects)
        if (memory->holds(address)) return moved(*memory, object_of(there, key, memory->bytes));
    fail("an address outside of the shared memory", *running);
}
}  // namespace emulation

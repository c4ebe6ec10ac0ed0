// One item's work: its blocks, tile by tile, every map of a tile formed in turn, and what a thread keeps while it does so.
#pragma once

#include "logit_mixing_levels.h"
#include "logit_mixing_maps.h"

namespace prosma::PROSMA_LEVEL::mixing {

// A thread's scratch memory for everything that forward and backward both need.
template <class T>
struct Workspace {
    LevelTile<T> levels[MOST_LEVELS];
    const Vector<T>* logits[MOST_LEVELS];
    const Vector<T>* parts[MOST_LEVELS];
    Vector<T>* own_parts[MOST_LEVELS];  // null in the domain of logits, where the parts are the logits
    Powers<T> part_powers[MOST_LEVELS];  // whose products are the powers of sums
    Powers<T> powers;
    TargetTile<T> target;
    Vector<T>*map, *shares;
    Weights<T> weights;
    Cell cells[CELLS];
    bool products;  // softmax of sums by products of powers

    Workspace(const Plan<T>& plan, Arena& arena, bool wants_logs) : weights(plan) {
        const int64_t vectors = int64_t(plan.classes) * CELLS;
        products = plan.has_add && !plan.a.sigmoid && !wants_logs;
        for (int i = 0; i < plan.levels; ++i) {
            levels[i] = lay_out_level(plan, i, arena);
            logits[i] = levels[i].logits;
            own_parts[i] = plan.a.probabilities ? arena.take<Vector<T>>(vectors) : nullptr;
            parts[i] = own_parts[i] ? own_parts[i] : logits[i];
            part_powers[i].values = products ? arena.take<Vector<T>>(vectors) : nullptr;
        }
        powers.values = arena.take<Vector<T>>(vectors);
        target.labels = arena.take<Vector<T>>(vectors);
        target.counted = arena.take<Vector<T>>(plan.a.per_channel ? vectors : CELLS);
        target.class_pixels = arena.take<Vector<T>>(plan.classes);
        map = arena.take<Vector<T>>(vectors);
        shares = arena.take<Vector<T>>(MOST_LEVELS * CELLS);
    }
};

// What the tiles of a block read of the levels that are interpolated.
template <class S>
void prepare_block(const Plan<Compute<S>>& plan, const Block& block, const Workspace<Compute<S>>& work) {
    prepare_levels<S>(plan, block, work.levels);
    for (int i = 0; i < plan.levels; ++i)
        if (plan.level[i].weighted) weigh_rows(plan, work.weights, i, block, work.levels[i]);
}

// Forms a mixed map in `work.map`; attention's shares in `work.shares`, [MOST_LEVELS][cell].
template <class T>
void mix(const Plan<T>& plan, Mix operation, int number, const Workspace<T>& work) {
    const Subset& subset = plan.subsets.of[number];
    switch (operation) {
        case Mix::add: return add_parts<T>(plan.classes, subset, work.parts, work.map);
        case Mix::multiply: return multiply_parts<T>(plan.classes, subset, work.parts, work.map);
        case Mix::concat:
            return concatenate_parts(plan, work.weights, work.levels, work.target, subset, number, work.parts, work.map);
        case Mix::attention:
            attend(plan, work.weights, work.levels, work.target, subset, number, work.parts, work.shares);
            return weigh_parts<T>(plan.classes, subset, work.parts, work.shares, work.map);
    }
}

// Brings a tile's target and levels, and the parts that are mixed.
template <class S>
void take_tile(const Plan<Compute<S>>& plan, const Block& block, int64_t first_cell, Workspace<Compute<S>>& work) {
    place_cells(plan, block, first_cell, work.cells);
    read_target(plan, block, work.cells, work.target);
    take_levels<S>(plan, block, work.cells, work.target, work.levels);
    if (!plan.a.probabilities) return;
    for (int i = 0; i < plan.levels; ++i) {
        activate(plan, work.logits[i], work.target, work.powers, work.own_parts[i]);
        if (work.products) exponentiate(plan.classes, work.parts[i], work.target, false, work.part_powers[i]);
    }
}

// Calls original(level, powers) for every level and mixed(operation, subset number, powers, map) for every mixed map, in
// the order of the result. For softmax `powers` are those of the map; `map` is formed, but for sums whose powers are
// products of their parts'.
template <class T, class Original, class Mixed>
PROSMA_INLINE void for_each_map(const Plan<T>& plan, Workspace<T>& work, const Original& original, const Mixed& mixed) {
    const bool softmax = !plan.a.sigmoid, keep = work.products && !plan.a.probabilities;
    for (int i = 0; i < plan.levels; ++i) {
        Powers<T>& powers = keep ? work.part_powers[i] : work.powers;
        const Ahead* ahead = plan.level[i].direct ? &work.levels[i].ahead : nullptr;
        if (softmax) exponentiate(plan.classes, work.logits[i], work.target, true, powers, ahead);
        original(i, powers);
    }
    for (int m = 0; m < plan.a.mix_count; ++m)
        for (int number = 0; number < plan.subsets.count; ++number) {
            const Subset& subset = plan.subsets.of[number];
            const Powers<T>* factors[MOST_LEVELS];
            for (int j = 0; j < subset.size; ++j) factors[j] = &work.part_powers[subset.members[j]];
            const bool multiplied = plan.a.mixes[m] == Mix::add && work.products &&
                                    multiply_powers(plan.classes, subset.size, factors, work.powers);
            if (!multiplied) {
                mix(plan, plan.a.mixes[m], number, work);
                if (softmax) exponentiate(plan.classes, work.map, work.target, true, work.powers);
            }
            mixed(plan.a.mixes[m], number, work.powers, work.map);
        }
}

// Calls tile(block, first cell) for the tiles of an item's blocks, between start(block) and finish(block); flush() after
// every CELLS_IN_FLOAT cells and at the end.
template <class T, class Start, class Visit, class Finish, class Flush>
PROSMA_INLINE void for_each_tile(const Plan<T>& plan, int64_t item, const Start& start, const Visit& tile, const Finish& finish,
                                 const Flush& flush) {
    const int64_t first = item % plan.items_in_image * plan.blocks_in_item;
    int64_t cells = 0;
    for (int64_t number = first; number < smaller(first + plan.blocks_in_item, plan.blocks); ++number) {
        const Block block = block_of(plan, item / plan.items_in_image, number);
        start(block);
        for (int64_t cell = 0; cell < block.rows * block.vectors; cell += CELLS) {
            tile(block, cell);
            cells += CELLS;
            if (cells < CELLS_IN_FLOAT) continue;
            flush();
            cells = 0;
        }
        finish(block);
    }
    flush();
}

// The plan, in memory of its own.
template <class T>
struct Planned {
    Scratch memory;
    bool enough;
    Arena arena;
    Plan<T> plan;

    explicit Planned(const MixingArguments& a) : enough(reserve(a)), arena(memory.at_least(1)), plan(a, arena, enough) {}

private:
    bool reserve(const MixingArguments& a) {
        Arena counting(nullptr);
        const Plan<T> counted(a, counting, false);
        return memory.at_least(larger(1, int64_t(counting.used()))) != nullptr;
    }
};

}  // namespace prosma::PROSMA_LEVEL::mixing

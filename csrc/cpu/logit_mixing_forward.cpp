// mixed_logit_statistics on the CPU: the sums of every mixed map, of cross-entropy and Dice and what is like them.
//
//     P_i = the logits of level i up-sampled, or their softmax; maps: each level, and for every subset S of levels
//     sum_i P_i, prod_i P_i, W_S [P_i] + b_S, sum_i softmax_i(<v_i, P_i> + c_i) P_i;    p = softmax(map)
//     sums over pixels, class by class: -log p at the label, p at the label, p, p^2
//
// How it reaches its speed. No map is ever stored: a tile of eight vectors of pixels goes through all maps while its
// levels, all classes of them, are in the first caches. Vectors run over pixels, so a softmax is three sweeps over the
// classes without a shuffle. The softmax of a sum needs no exponentials: its powers are products of those of its parts.
// Interpolation along the width is done once for each row of a level that a block needs, not for each row of pixels; so are
// the products with concat's and attention's weights, which commute with it, where a level has half as many rows or fewer.
#include "kernels.h"
#include "logit_mixing_tile.h"

namespace prosma::PROSMA_LEVEL {
namespace {

using namespace mixing;

// An item's sums in double: [map][class][SUMS], then pixels by class, pixels, invalid labels.
template <class T>
int64_t doubles_of(const Plan<T>& plan) {
    return int64_t(plan.maps) * plan.classes * SUMS + plan.classes + 2;
}

template <class T>
void add_to(double* to, Vector<T>& from) {
    *to += double(sum_of_lanes<T>(from));
    from = zero<T>();
}

template <class T>
void flush_sums(const Plan<T>& plan, Vector<T>* sums, TargetTile<T>& target, double* to) {
    for (int64_t i = 0; i < int64_t(plan.maps) * plan.classes * SUMS; ++i)
        if (i % SUMS != LOG_PROBABILITY || plan.a.sums[LOG_PROBABILITY]) add_to<T>(to + i, sums[i]);
    to += int64_t(plan.maps) * plan.classes * SUMS;
    for (int c = 0; c < plan.classes; ++c) add_to<T>(to + c, target.class_pixels[c]);
    add_to<T>(to + plan.classes, target.pixels);
    add_to<T>(to + plan.classes + 1, target.invalid);
}

// Adds the sums of all maps of a tile.
template <class T>
__attribute__((noinline)) void add_tile(const Plan<T>& plan, Workspace<T>& work, bool wants_logs, Vector<T>* sums) {
    count_pixels(plan, work.target);
    const auto add = [&](const Powers<T>& powers, const Vector<T>* map) {
        if (plan.a.sigmoid)
            add_sigmoid_sums(plan.classes, map, wants_logs, work.target, sums);
        else
            add_softmax_sums(plan.classes, powers, wants_logs ? map : nullptr, work.target, sums);
        sums += plan.classes * SUMS;
    };
    for_each_map(
        plan, work, [&](int level, const Powers<T>& powers) { add(powers, work.logits[level]); },
        [&](Mix, int, const Powers<T>& powers, const Vector<T>* map) { add(powers, map); });
}

template <class S>
void forward_item(const Plan<Compute<S>>& plan, int64_t item, void* scratch, double* partial) {
    using T = Compute<S>;
    Arena arena(scratch);
    const bool wants_logs = plan.a.sums[LOG_PROBABILITY];
    Workspace<T> work(plan, arena, wants_logs);
    const int64_t sum_count = int64_t(plan.maps) * plan.classes * SUMS;
    auto* sums = arena.template take<Vector<T>>(sum_count);
    for (int64_t i = 0; i < sum_count; ++i) sums[i] = zero<T>();
    for (int c = 0; c < plan.classes; ++c) work.target.class_pixels[c] = zero<T>();
    work.target.pixels = work.target.invalid = zero<T>();
    for (int64_t i = 0; i < doubles_of(plan); ++i) partial[i] = 0;

    for_each_tile(
        plan, item, [&](const Block& block) { prepare_block<S>(plan, block, work); },
        [&](const Block& block, int64_t cell) {
            take_tile<S>(plan, block, cell, work);
            add_tile(plan, work, wants_logs, sums);
        },
        [](const Block&) {}, [&] { flush_sums(plan, sums, work.target, partial); });
}

// The sums of all items of one image, or of all images, in order.
template <class T>
void write_results(const Plan<T>& plan, const double* partials) {
    const MixingArguments& a = plan.a;
    const int64_t batches = a.sizes[BATCH], results = a.per_sample ? batches : 1, doubles = doubles_of(plan);
    const int64_t items = a.per_sample ? plan.items_in_image : plan.items, values = int64_t(plan.maps) * plan.classes;
    for (int64_t result = 0; result < results; ++result) {
        const auto total = [&](int64_t quantity) {
            double sum = 0;
            for (int64_t item = 0; item < items; ++item) sum += partials[(result * items + item) * doubles + quantity];
            return sum;
        };
        for (int kind = 0; kind < SUMS; ++kind)
            for (int64_t i = 0; a.sums[kind] && i < values; ++i)
                static_cast<T*>(a.sums[kind])[result * values + i] = T(total(i * SUMS + kind));
        const int64_t counts = values * SUMS;
        for (int c = 0; c < plan.classes; ++c) a.class_pixels[result * plan.classes + c] = int64_t(total(counts + c));
        a.pixels[result] = int64_t(total(counts + plan.classes));
        a.invalid[result] = int64_t(total(counts + plan.classes + 1));
    }
}

template <class S>
bool forward(const MixingArguments& a) {
    using T = Compute<S>;
    Planned<T> planned(a);
    if (!planned.enough) return false;
    Plan<T>& plan = planned.plan;
    plan.cut_into_items(doubles_of(plan));
    Arena counting(nullptr);
    Workspace<T>(plan, counting, a.sums[LOG_PROBABILITY]);
    counting.take<Vector<T>>(int64_t(plan.maps) * plan.classes * SUMS);
    Scratch memory;
    auto* partials = static_cast<double*>(memory.at_least(size_t(larger(1, plan.items) * doubles_of(plan)) * sizeof(double)));
    if (!partials) return false;
    if (!for_each_item(plan.threads(), plan.items, counting.used(), [&](int64_t item, void* scratch) {
            forward_item<S>(plan, item, scratch, partials + item * doubles_of(plan));
        }))
        return false;
    write_results(plan, partials);
    return true;
}

}  // namespace

bool mixed_logit_statistics_forward(const MixingArguments& a) {
    switch (a.type) {
        case DataType::float64: return forward<double>(a);
        case DataType::float16: return forward<Float16>(a);
        case DataType::bfloat16: return forward<BFloat16>(a);
        default: return forward<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

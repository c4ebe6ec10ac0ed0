// The backward of mixed_logit_statistics on the CPU: gradients of the levels and parameters from those of the sums.
//
// A second pass of the forward's shape. Every map is formed again, its gradient G made from its powers, and handed on to
// the parts while the tile is in the caches: by addition, by products of the other parts, by W^T G (where the forward
// weighs rows instead of pixels: on rows, at a block's end), and through the shares of attention. What a tile gives to a
// level that was interpolated is added to the rows it came from, at a block's end collected into a patch of low-resolution
// pixels, and at the very end the patches are summed up, in order.
#include "kernels.h"
#include "logit_mixing_tile.h"

namespace prosma::PROSMA_LEVEL {
namespace {

using namespace mixing;

// The gradients of the parameters over an item: for each member of each subset, [class] rows for concat and one for
// attention, of a column each class and one for the bias.
template <class T>
struct ParameterSums {
    T *concat, *attention;  // [member][class][stride], [member][stride]; null if not needed
    T* columns[MOST_LEVELS];  // a tile's parts, transposed
    int64_t stride;
    int classes, members;

    ParameterSums(const Plan<T>& plan, Arena& arena)
        : stride(column_stride<T>(plan.classes)), classes(plan.classes), members(plan.subsets.rows) {
        const MixingArguments& a = plan.a;
        const bool wants_concat = plan.has_concat && (a.concat_weight_grad || a.concat_bias_grad);
        const bool wants_attention = plan.has_attention && (a.attention_weight_grad || a.attention_bias_grad);
        concat = wants_concat ? arena.take<T>(members * classes * stride) : nullptr;
        attention = wants_attention ? arena.take<T>(members * stride) : nullptr;
        needs_concat = wants_concat;
        needs_attention = wants_attention;
        for (int i = 0; i < plan.levels; ++i)
            columns[i] = wants_concat || wants_attention ? arena.take<T>(CELLS * LANES<T> * stride) : nullptr;
    }

    bool needs_concat, needs_attention;  // known also while memory is only counted

    int64_t rows() const { return int64_t(members) * ((needs_concat ? classes : 0) + (needs_attention ? 1 : 0)); }
    // What an item keeps in double: its rows without what fills them up.
    int64_t doubles() const { return rows() * (classes + 1); }

    void clear() const {
        if (needs_concat)
            for (int64_t i = 0; i < members * classes * stride; ++i) concat[i] = 0;
        if (needs_attention)
            for (int64_t i = 0; i < members * stride; ++i) attention[i] = 0;
    }

    void flush(double* to) const {
        const auto flush_rows = [&](T* from, int64_t count) {
            for (int64_t row = 0; row < count; ++row, from += stride)
                for (int c = 0; c <= classes; ++c) *to++ += double(from[c]);
        };
        if (needs_concat) flush_rows(concat, int64_t(members) * classes);
        if (needs_attention) flush_rows(attention, members);
        clear();
    }

    void take_parts(const Plan<T>& plan, const Vector<T>* const* parts) const {
        for (int i = 0; i < plan.levels; ++i)
            if (columns[i] && !plan.level[i].weighted) transpose_part<T>(classes, parts[i], CELLS, CELLS, columns[i]);
    }

    // From gradients, [channel][cell], that belong to the level's columns; `row` is that of the parameters.
    void add_concat(int row, const Vector<T>* gradient, int64_t step, int64_t cells, int level) const {
        if (concat) add_outer_product(classes, gradient, step, cells, stride, columns[level], concat + int64_t(row) * classes * stride);
    }
    void add_attention(int row, const Vector<T>* gradient, int64_t step, int64_t cells, int level) const {
        if (attention) add_outer_product(1, gradient, step, cells, stride, columns[level], attention + int64_t(row) * stride);
    }
};

template <class T>
struct BackwardWorkspace : Workspace<T> {
    Vector<T>* gradient;                       // of the map
    Vector<T>* level_gradients[MOST_LEVELS];   // dZ
    Vector<T>* parts_gradients[MOST_LEVELS];   // dP; the same in the domain of logits
    Vector<T>* tilts;                          // [MOST_LEVELS][cell]
    T* row_gradients[MOST_LEVELS];             // [class][row][pixel], as the interpolated rows
    T* weighted_gradients[MOST_LEVELS];        // as the weighted rows
    T* grads;                                  // of the sums, [map][class][SUMS]
    ParameterSums<T> parameters;

    BackwardWorkspace(const Plan<T>& plan, Arena& arena) : Workspace<T>(plan, arena, false), parameters(plan, arena) {
        const int64_t vectors = int64_t(plan.classes) * CELLS;
        gradient = arena.take<Vector<T>>(vectors);
        for (int i = 0; i < plan.levels; ++i) {
            level_gradients[i] = arena.take<Vector<T>>(vectors);
            parts_gradients[i] = plan.a.probabilities ? arena.take<Vector<T>>(vectors) : level_gradients[i];
            const bool through_rows = plan.level[i].weighted || (!plan.level[i].direct && plan.a.levels[i].grad.data);
            row_gradients[i] = through_rows ? arena.take<T>(plan.classes * class_length(plan, i)) : nullptr;
            weighted_gradients[i] = plan.level[i].weighted ? arena.take<T>(weighted_length(plan, i)) : nullptr;
        }
        tilts = arena.take<Vector<T>>(MOST_LEVELS * CELLS);
        grads = arena.take<T>(int64_t(plan.maps) * plan.classes * SUMS);
    }
};

template <class T>
void take_sum_gradients(const Plan<T>& plan, int64_t batch, T* grads) {
    const int64_t values = int64_t(plan.maps) * plan.classes, first = plan.a.per_sample ? batch * values : 0;
    for (int kind = 0; kind < SUMS; ++kind) {
        const T* from = static_cast<const T*>(plan.a.sum_grads[kind]);
        for (int64_t i = 0; i < values; ++i) grads[i * SUMS + kind] = from ? from[first + i] : T(0);
    }
}

// Adds a tile's gradients of some channels of a subset to those of the level's weighted rows.
template <class T>
void add_to_weighted(const Plan<T>& plan, const BackwardWorkspace<T>& work, int level, int number, int first, int channels,
                     const Vector<T>* gradient) {
    add_runs(work.levels[level].runs, channels, gradient, row_length(plan), class_length(plan, level),
             work.weighted_gradients[level] + weighted_offset(plan, level, number, first));
}

// From the gradient of a mixed map, in `work.gradient`, to those of its parts and parameters.
template <class T>
void hand_on(const Plan<T>& plan, Mix operation, int number, const Vector<T>* map, BackwardWorkspace<T>& work) {
    const Subset& subset = plan.subsets.of[number];
    const ParameterSums<T>& sums = work.parameters;
    switch (operation) {
        case Mix::add: return add_backward<T>(plan.classes, subset, work.gradient, work.parts_gradients);
        case Mix::multiply: return multiply_backward<T>(plan.classes, subset, work.parts, work.gradient, work.parts_gradients);
        case Mix::concat:
            for (int j = 0; j < subset.size; ++j) {
                const int level = subset.members[j], row = subset.row + j;
                if (plan.level[level].weighted) {
                    add_to_weighted(plan, work, level, number, 0, plan.classes, work.gradient);
                    continue;
                }
                combine(concat_transposed(work.weights, row, CELLS), work.gradient, work.parts_gradients[level], CELLS);
                sums.add_concat(row, work.gradient, CELLS, CELLS, level);
            }
            return;
        case Mix::attention:
            attention_backward<T>(plan.classes, subset, work.parts, work.shares, map, work.gradient, work.tilts, work.parts_gradients);
            for (int j = 0; j < subset.size; ++j) {
                const int level = subset.members[j], row = subset.row + j;
                const Vector<T>* tilt = work.tilts + j * CELLS;
                if (plan.level[level].weighted) {
                    add_to_weighted(plan, work, level, number, int(plan.weighted_channels) - 1, 1, tilt);
                    continue;
                }
                combine(score_transposed(work.weights, row, CELLS), tilt, work.parts_gradients[level], CELLS);
                sums.add_attention(row, tilt, CELLS, CELLS, level);
            }
            return;
    }
}

// A level's rows as columns, for so many cells from `first`. What is not finite and has no gradient takes part in no pixel
// that counts: it becomes 0, or its product with the gradients' zeros would be NaN.
template <class T>
void take_row_columns(const Plan<T>& plan, const BackwardWorkspace<T>& work, int level, int64_t first, int64_t cells) {
    const int64_t step = class_length(plan, level) / LANES<T>;
    const auto* values = reinterpret_cast<const Vector<T>*>(work.levels[level].rows) + first;
    const auto* gradients = reinterpret_cast<const Vector<T>*>(work.row_gradients[level]) + first;
    for (int c = 0; c < plan.classes; ++c)
        for (int64_t k = 0; k < cells; ++k) {
            const Vector<T> value = values[c * step + k];
            const Vector<T> used = gradients[c * step + k] != 0 ? value : zero<T>();
            work.map[c * CELLS + k] = value - value == 0 ? value : used;
        }
    transpose_part<T>(plan.classes, work.map, CELLS, cells, work.parameters.columns[level]);
}

// From the gradients of a level's weighted rows to those of its rows and of the weights.
template <class T>
void collect_weighted(const Plan<T>& plan, const Block& block, int level, const BackwardWorkspace<T>& work) {
    const ParameterSums<T>& sums = work.parameters;
    const int64_t step = class_length(plan, level) / LANES<T>;
    const int64_t cells = plan.level[level].y.counts[block.y_block] * plan.block_vectors;
    const auto from = [&](int number, int64_t channel) {
        return reinterpret_cast<const Vector<T>*>(work.weighted_gradients[level] + weighted_offset(plan, level, number, int(channel)));
    };
    const int64_t score = plan.weighted_channels - 1;
    for (int64_t first = 0; (sums.concat || sums.attention) && first < cells; first += CELLS) {
        const int64_t count = smaller(CELLS, cells - first);
        take_row_columns(plan, work, level, first, count);
        for_each_holder(plan, level, [&](int number, int row) {
            sums.add_concat(row, from(number, 0) + first, step, count, level);
            sums.add_attention(row, from(number, score) + first, step, count, level);
        });
    }
    auto* const to = reinterpret_cast<Vector<T>*>(work.row_gradients[level]);
    for_each_holder(plan, level, [&](int number, int row) {
        if (plan.has_concat) combine(concat_transposed(work.weights, row, step), from(number, 0), to, cells);
        if (plan.has_attention) combine(score_transposed(work.weights, row, step), from(number, score), to, cells);
    });
}

template <class T>
void clear(T* values, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES<T>) store<T>(values + i, zero<T>());
}

// The gradients of a tile's levels.
template <class T>
__attribute__((noinline)) void differentiate_tile(const Plan<T>& plan, BackwardWorkspace<T>& work) {
    const T* grads = work.grads;
    const auto differentiate = [&](const Powers<T>& powers, const Vector<T>* map, Vector<T>* to) {
        if (plan.a.sigmoid)
            sigmoid_gradient(plan.classes, map, work.target, grads, to);
        else
            softmax_gradient(plan.classes, powers, work.target, grads, to);
        grads += plan.classes * SUMS;
    };
    for (int i = 0; plan.a.probabilities && i < plan.levels; ++i)
        for (int j = 0; j < plan.classes * CELLS; ++j) work.parts_gradients[i][j] = zero<T>();
    work.parameters.take_parts(plan, work.parts);
    for_each_map(
        plan, static_cast<Workspace<T>&>(work),
        [&](int level, const Powers<T>& powers) { differentiate(powers, work.logits[level], work.level_gradients[level]); },
        [&](Mix operation, int number, const Powers<T>& powers, const Vector<T>* map) {
            differentiate(powers, map, work.gradient);
            hand_on(plan, operation, number, map, work);
        });
    for (int i = 0; plan.a.probabilities && i < plan.levels; ++i)
        add_activation_gradient(plan, work.parts[i], work.parts_gradients[i], work.level_gradients[i]);
}

template <class S>
void backward_item(const Plan<Compute<S>>& plan, int64_t item, void* scratch, Compute<S>* patches, double* partials) {
    using T = Compute<S>;
    Arena arena(scratch);
    BackwardWorkspace<T> work(plan, arena);
    take_sum_gradients(plan, item / plan.items_in_image, work.grads);
    double* partial = partials + item * work.parameters.doubles();
    for (int64_t i = 0; i < work.parameters.doubles(); ++i) partial[i] = 0;
    work.parameters.clear();
    work.target.invalid = zero<T>();

    for_each_tile(
        plan, item,
        [&](const Block& block) {
            prepare_block<S>(plan, block, work);
            for (int i = 0; i < plan.levels; ++i) {
                if (work.row_gradients[i]) clear(work.row_gradients[i], plan.classes * class_length(plan, i));
                if (work.weighted_gradients[i]) clear(work.weighted_gradients[i], weighted_length(plan, i));
            }
        },
        [&](const Block& block, int64_t cell) {
            take_tile<S>(plan, block, cell, work);
            differentiate_tile(plan, work);
            for (int i = 0; i < plan.levels; ++i) {
                if (work.row_gradients[i])
                    add_runs(work.levels[i].runs, plan.classes, work.level_gradients[i], row_length(plan), class_length(plan, i),
                             work.row_gradients[i]);
                else if (plan.a.levels[i].grad.data)
                    write_tile<S>(plan, i, block, work.cells, work.level_gradients[i]);
            }
        },
        [&](const Block& block) {
            for (int i = 0; i < plan.levels; ++i) {
                if (work.weighted_gradients[i]) collect_weighted(plan, block, i, work);
                if (!work.row_gradients[i] || !plan.a.levels[i].grad.data) continue;
                collect_rows(plan, i, block, work.row_gradients[i], work.levels[i].patch);
                keep_patch(plan, i, block, work.levels[i].patch, patches);
            }
        },
        [&] { work.parameters.flush(partial); });
    finish_streaming();
}

// Where the gradients of the parameters lie in an item's doubles, and where they are stored.
template <class T>
void write_parameters(const Plan<T>& plan, const ParameterSums<T>& sums, const double* partials) {
    const int classes = plan.classes, columns = classes + 1;
    const auto total = [&](int64_t quantity) {
        double sum = 0;
        for (int64_t item = 0; item < plan.items; ++item) sum += partials[item * sums.doubles() + quantity];
        return T(sum);
    };
    auto* const weight = static_cast<T*>(plan.a.concat_weight_grad);
    auto* const bias = static_cast<T*>(plan.a.concat_bias_grad);
    auto* const attention_weight = static_cast<T*>(plan.a.attention_weight_grad);
    auto* const attention_bias = static_cast<T*>(plan.a.attention_bias_grad);
    const int64_t members = sums.members;
    for (int64_t member = 0; sums.needs_concat && weight && member < members; ++member)
        for (int row = 0; row < classes; ++row)
            for (int c = 0; c < classes; ++c)
                weight[row * members * classes + member * classes + c] = total((member * classes + row) * columns + c);
    for (int number = 0; sums.needs_concat && bias && number < plan.subsets.count; ++number)
        for (int row = 0; row < classes; ++row)
            bias[row * plan.subsets.count + number] = total((int64_t(plan.subsets.of[number].row) * classes + row) * columns + classes);
    const int64_t first = sums.needs_concat ? members * classes * columns : 0;
    for (int64_t member = 0; sums.needs_attention && member < members; ++member) {
        for (int c = 0; attention_weight && c < classes; ++c) attention_weight[member * classes + c] = total(first + member * columns + c);
        if (attention_bias) attention_bias[member] = total(first + member * columns + classes);
    }
}

template <class S>
bool backward(const MixingArguments& a) {
    using T = Compute<S>;
    Planned<T> planned(a);
    if (!planned.enough) return false;
    Plan<T>& plan = planned.plan;
    Arena counting(nullptr);
    const BackwardWorkspace<T> counted(plan, counting);
    const int64_t doubles = counted.parameters.doubles();
    plan.cut_into_items(doubles);
    Scratch memory;
    Arena sizes(nullptr);
    sizes.take<double>(plan.items * doubles);
    sizes.take<T>(a.sizes[BATCH] * plan.blocks * plan.partial_elements);
    Arena arena(memory.at_least(sizes.used() + 1));
    if (!memory.at_least(1)) return false;
    auto* const partials = arena.take<double>(plan.items * doubles);
    auto* const patches = arena.take<T>(a.sizes[BATCH] * plan.blocks * plan.partial_elements);
    if (!for_each_item(plan.threads(), plan.items, counting.used(), [&](int64_t item, void* scratch) {
            backward_item<S>(plan, item, scratch, patches, partials);
        }))
        return false;
    write_parameters(plan, counted.parameters, partials);
    return gather_levels<S>(plan, patches);
}

}  // namespace

bool mixed_logit_statistics_backward(const MixingArguments& a) {
    switch (a.type) {
        case DataType::float64: return backward<double>(a);
        case DataType::float16: return backward<Float16>(a);
        case DataType::bfloat16: return backward<BFloat16>(a);
        default: return backward<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

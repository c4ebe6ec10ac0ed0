// What the bindings of mixed_logit_statistics share, on the CPU and on a GPU: tuples from Python, made into the arguments.
#pragma once

#include "../logit_mixing.h"
#include "bindings.h"

namespace prosma::bindings {

// (address, strides), or (address, strides, shape).
inline Tensor placed_pair(const py::handle& from) {
    const auto pair = py::reinterpret_borrow<py::tuple>(from);
    return placed(pair[0].cast<uintptr_t>(), pair[1].cast<py::tuple>());
}

// What forward and backward share, in the order in which prosma_ops/ops/logit_mixing_native.py puts it into a tuple. `shape` is
// (B, C, *spatial) with the target's spatial sizes; the target has a channel axis, of any stride if it holds class indices.
inline MixingArguments arguments_of(const py::tuple& shared) {
    if (shared.size() != 14) throw std::invalid_argument("the shared arguments are 14");
    const auto number = [&](size_t i) { return shared[i].cast<int>(); };
    const auto flag = [&](size_t i) { return shared[i].cast<bool>(); };
    const auto tuple = [&](size_t i) { return shared[i].cast<py::tuple>(); };
    MixingArguments a;
    a.type = data_type(number(0));
    a.threads = thread_count(number(1));
    spread(tuple(2), 1, a.sizes);
    const py::tuple levels = tuple(3), mixes = tuple(8), parameters = tuple(13);
    if (levels.size() < 1 || levels.size() > size_t(MOST_LEVELS)) throw std::invalid_argument("there are 1 to 6 levels");
    if (a.sizes[CHANNEL] < 1 || a.sizes[CHANNEL] > MOST_CLASSES) throw std::invalid_argument("there are 1 to 128 classes");
    a.level_count = int(levels.size());
    for (int i = 0; i < a.level_count; ++i) {
        const auto level = levels[size_t(i)].cast<py::tuple>();
        a.levels[i].logits = placed_pair(level);
        spread(level[2].cast<py::tuple>(), 1, a.levels[i].sizes);
        for (int axis = DEPTH; axis < AXES; ++axis)
            if (a.levels[i].sizes[axis] < 1) throw std::invalid_argument("levels have no empty axis");
    }
    for (int axis = DEPTH; axis < AXES; ++axis)
        if (a.sizes[axis] < 1) throw std::invalid_argument("the target has no empty axis");
    a.target = placed_pair(shared[4]);
    if (number(5) < 0 || number(5) > int(LabelType::bfloat16)) throw std::invalid_argument("unknown label dtype");
    a.label_type = LabelType(number(5));
    a.per_channel = flag(6);
    if (!a.per_channel) a.target.strides[CHANNEL] = 0;
    a.has_ignore = !shared[7].is_none();
    if (a.has_ignore) a.ignore_index = shared[7].cast<int64_t>();
    if (mixes.size() > size_t(MIXES)) throw std::invalid_argument("there are four operators");
    for (const py::handle& mix : mixes) {
        const int code = mix.cast<int>();
        if (code < 0 || code >= MIXES) throw std::invalid_argument("unknown operator");
        a.mixes[a.mix_count++] = Mix(code);
    }
    a.sigmoid = flag(9);
    a.probabilities = flag(10);
    a.align_corners = flag(11);
    a.per_sample = flag(12);
    a.concat_weight = pointer<void>(parameters[0].cast<uintptr_t>());
    a.concat_bias = pointer<void>(parameters[1].cast<uintptr_t>());
    a.attention_weight = pointer<void>(parameters[2].cast<uintptr_t>());
    a.attention_bias = pointer<void>(parameters[3].cast<uintptr_t>());
    for (int m = 0; m < a.mix_count && a.level_count > 1; ++m)
        if ((a.mixes[m] == Mix::concat && !a.concat_weight) || (a.mixes[m] == Mix::attention && !a.attention_weight))
            throw std::invalid_argument("an operator has no weight");
    return a;
}

inline void take_sums(MixingArguments& a, const py::tuple& sums) {
    for (int kind = 0; kind < SUMS; ++kind) a.sums[kind] = pointer<void>(sums[size_t(kind)].cast<uintptr_t>());
}

inline void take_counts(MixingArguments& a, uintptr_t class_pixels, uintptr_t pixels, uintptr_t invalid) {
    a.class_pixels = pointer<int64_t>(class_pixels);
    a.pixels = pointer<int64_t>(pixels);
    a.invalid = pointer<int64_t>(invalid);
}

inline void take_sum_grads(MixingArguments& a, const py::tuple& sum_grads) {
    for (int kind = 0; kind < SUMS; ++kind) a.sum_grads[kind] = pointer<void>(sum_grads[size_t(kind)].cast<uintptr_t>());
}

inline void take_destinations(MixingArguments& a, const py::tuple& level_grads, const py::tuple& parameter_grads) {
    for (int i = 0; i < a.level_count; ++i) a.levels[i].grad = placed_pair(level_grads[size_t(i)]);
    a.concat_weight_grad = pointer<void>(parameter_grads[0].cast<uintptr_t>());
    a.concat_bias_grad = pointer<void>(parameter_grads[1].cast<uintptr_t>());
    a.attention_weight_grad = pointer<void>(parameter_grads[2].cast<uintptr_t>());
    a.attention_bias_grad = pointer<void>(parameter_grads[3].cast<uintptr_t>());
}

}  // namespace prosma::bindings

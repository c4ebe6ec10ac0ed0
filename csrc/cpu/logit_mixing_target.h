// The target of a tile: which class each pixel has, and whether it counts, from labels of any type.
#pragma once

#include "logit_mixing_plan.h"

namespace prosma::PROSMA_LEVEL::mixing {

// What a label becomes: its class, or one of these.
constexpr int IGNORED = -1, INVALID = -2;

template <class T>
struct TargetTile {
    Vector<T>* labels;   // [class][cell] 1 where the pixel has the class and counts, else 0
    Vector<T>* counted;  // [cell], or [class][cell] if the target is per channel: 1 or 0
    Vector<T> present[CELLS];  // counted in any channel
    int64_t counted_stride;    // cells from a channel's to the next one's, or 0
    bool all_present;
    Vector<T>* class_pixels;  // [class] counts, lane by lane
    Vector<T> pixels, invalid;
};

// Labels are compared in the type that holds them: as numbers, so that a uint8 of 255 is no -1.
template <class Label>
struct ComparedAs {
    using Type = int32_t;
};
template <>
struct ComparedAs<int64_t> {
    using Type = int64_t;
};
template <>
struct ComparedAs<float> {
    using Type = float;
};
template <>
struct ComparedAs<double> {
    using Type = double;
};
template <>
struct ComparedAs<Float16> {
    using Type = float;
};
template <>
struct ComparedAs<BFloat16> {
    using Type = float;
};

template <class Label>
PROSMA_INLINE typename ComparedAs<Label>::Type number_of(Label label) {
    return label;
}
PROSMA_INLINE float number_of(Float16 label) { return widen(label); }
PROSMA_INLINE float number_of(BFloat16 label) { return widen(label); }

template <class Label>
struct LabelRule {
    using Number = typename ComparedAs<Label>::Type;
    Number largest, ignored;
    bool has_ignore;

    LabelRule(const MixingArguments& a, int largest_label) : largest(Number(largest_label)), ignored(Number(a.ignore_index)) {
        // An index that the type cannot hold is the number of no label.
        has_ignore = a.has_ignore && int64_t(ignored) == a.ignore_index;
    }

    template <class T>
    PROSMA_INLINE T code(Label label) const {
        const Number number = number_of(label);
        const auto code = int32_t(number >= 0 && number <= largest ? number : Number(INVALID));
        constexpr bool has_fractions = Number(0.5) != 0;
        const T value = T(!has_fractions || number == Number(code) ? code : INVALID);
        return has_ignore && number == ignored ? T(IGNORED) : value;
    }
};

// The codes of `live` labels; lanes beyond them are ignored.
template <class T, class Label>
PROSMA_INLINE Vector<T> read_codes(const Label* from, int64_t stride, int live, const LabelRule<Label>& rule) {
    constexpr int L = LANES<T>;
    T codes[L];
    if (live == L && stride == 1) {
        for (int lane = 0; lane < L; ++lane) codes[lane] = rule.template code<T>(from[lane]);
    } else {
        for (int lane = 0; lane < L; ++lane) codes[lane] = lane < live ? rule.template code<T>(from[lane * stride]) : T(IGNORED);
    }
    return load<T>(codes);
}

template <class T>
PROSMA_INLINE Vector<T> one_where(Mask<T> condition) {
    return condition ? broadcast<T>(1) : zero<T>();
}

template <class T>
PROSMA_INLINE bool all_of(Vector<T> ones) {
    return sum_of_lanes<T>(ones) == T(LANES<T>);
}

template <class T, class Label>
void read_codes(const Plan<T>& plan, const Block& block, const Cell* cells, Vector<T>* codes) {
    const MixingArguments& a = plan.a;
    const int64_t* strides = a.target.strides;
    const Label* plane = static_cast<const Label*>(a.target.data) + block.batch * strides[BATCH] + block.plane * strides[DEPTH];
    const LabelRule<Label> rule(a, a.per_channel ? 1 : int(larger(plan.classes - 1, 1)));
    for (int c = 0; c < (a.per_channel ? plan.classes : 1); ++c, plane += strides[CHANNEL])
        for (int k = 0; k < CELLS; ++k) {
            const Label* from = plane + cells[k].row * strides[HEIGHT] + cells[k].vector * LANES<T> * strides[WIDTH];
            codes[c * CELLS + k] = read_codes<T>(from, strides[WIDTH], cells[k].live, rule);
        }
}

template <class T>
void read_codes(const Plan<T>& plan, const Block& block, const Cell* cells, Vector<T>* codes) {
    switch (plan.a.label_type) {
        case LabelType::uint8: return read_codes<T, uint8_t>(plan, block, cells, codes);
        case LabelType::int8: return read_codes<T, int8_t>(plan, block, cells, codes);
        case LabelType::int16: return read_codes<T, int16_t>(plan, block, cells, codes);
        case LabelType::int32: return read_codes<T, int32_t>(plan, block, cells, codes);
        case LabelType::int64: return read_codes<T, int64_t>(plan, block, cells, codes);
        case LabelType::float32: return read_codes<T, float>(plan, block, cells, codes);
        case LabelType::float64: return read_codes<T, double>(plan, block, cells, codes);
        case LabelType::float16: return read_codes<T, Float16>(plan, block, cells, codes);
        case LabelType::bfloat16: return read_codes<T, BFloat16>(plan, block, cells, codes);
    }
}

template <class T>
void read_target(const Plan<T>& plan, const Block& block, const Cell* cells, TargetTile<T>& tile) {
    const bool per_channel = plan.a.per_channel;
    const int first_class = plan.classes == 1 ? 1 : 0;
    Vector<T>* const codes = tile.counted;  // which they become, in place
    read_codes(plan, block, cells, codes);
    Vector<T> invalid = zero<T>();
#pragma GCC unroll 8
    for (int k = 0; k < CELLS; ++k) tile.present[k] = zero<T>();
    for (int c = 0; c < plan.classes; ++c)
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> code = codes[(per_channel ? c : 0) * CELLS + k];
            tile.labels[c * CELLS + k] = one_where<T>(code == T(per_channel ? 1 : first_class + c));
        }
    for (int c = 0; c < (per_channel ? plan.classes : 1); ++c)
        for (int k = 0; k < CELLS; ++k) {
            const Vector<T> code = codes[c * CELLS + k], counted = one_where<T>(code >= 0);
            codes[c * CELLS + k] = counted;
            tile.present[k] = counted > 0 ? counted : tile.present[k];
            invalid += one_where<T>(code == INVALID);
        }
    tile.invalid += invalid;
    tile.counted_stride = per_channel ? CELLS : 0;
    Vector<T> least = tile.present[0];
    for (int k = 1; k < CELLS; ++k) least = tile.present[k] < least ? tile.present[k] : least;
    tile.all_present = all_of<T>(least);
}

// Adds the tile's pixels to the counts.
template <class T>
void count_pixels(const Plan<T>& plan, TargetTile<T>& tile) {
    for (int c = 0; c < plan.classes; ++c) {
        Vector<T> sum = tile.class_pixels[c];
        for (int k = 0; k < CELLS; ++k) sum += tile.labels[c * CELLS + k];
        tile.class_pixels[c] = sum;
    }
    for (int k = 0; k < CELLS; ++k) tile.pixels += tile.present[k];
}

}  // namespace prosma::PROSMA_LEVEL::mixing

// What the CUDA kernels of mixed_logit_statistics are told: sizes, pointers, subsets, and how the target is cut into tiles.
//
// A tile is a rectangle of one plane of one image and the work of one warp: a block is a warp. It is at most 32 wide, and of
// as many pixels as leave the levels, the map and, backward, the gradients of all classes 48 KiB of shared memory:
// 128 for 4 levels of 9 classes. None of it depends on the device, so that all devices sum up in the same order.
#pragma once

#include "../logit_mixing.h"
#include "layout.h"
#include "numbers.h"

namespace prosma::cuda::mixing {

constexpr int MOST_SUBSETS = 57;  // of two or more of six levels
constexpr int WIDEST_TILE = 32;
constexpr int64_t SHARED_BYTES = 48 << 10;

// A lane's pixels, neighbours in a row: 16 bytes, one access of shared memory.
template <class T>
using Pixels = Pack<T, WIDEST<T>>;

struct Place {  // depth, height, width
    int at[3];
    __host__ __device__ __forceinline__ int operator[](int axis) const { return at[axis]; }
};

struct LevelOf {
    const void* logits = nullptr;
    void* grad = nullptr;
    int64_t strides[AXES], grad_strides[AXES];
    Place sizes;
    bool direct;                      // as large as the target: taken as it is
    int patch_rows, patch_columns;    // the most pixels of it that a tile touches
    int64_t patch;                    // where they start among those of all levels
};

struct Problem {
    DataType type;
    Place sizes;  // of the target
    int batch, classes, levels, maps, subsets, members;
    LevelOf level[MOST_LEVELS];
    unsigned char subset_levels[MOST_SUBSETS];  // as bits
    short subset_row[MOST_SUBSETS];             // of its first member among the members of all subsets

    const void* target;
    int64_t target_strides[AXES];
    LabelType label_type;
    bool per_channel, has_ignore;
    int64_t ignore_index;

    int mix_count;
    Mix mixes[MIXES];
    bool sigmoid, probabilities, align_corners, per_sample, logs;
    const void *concat_weight, *concat_bias, *attention_weight, *attention_bias;

    const void* sum_grads[SUMS];                   // backward only, as all that follows
    bool concat_gradients, attention_gradients;    // of the parameters: needed

    bool backward;
    int tile_width, tile_height, stride;  // stride: numbers from a row of a tile's pixels in shared memory to the next
    int tiles_across, tiles_down, tiles;  // of a plane, and of an image
    int64_t patch_numbers;                // of a tile, for all levels

    // Of one level's logits, in so many images.
    __host__ __device__ __forceinline__ int64_t numbers_of(const LevelOf& level, int images) const {
        return int64_t(images) * classes * level.sizes[0] * level.sizes[1] * level.sizes[2];
    }
    __host__ __device__ __forceinline__ int pixels() const { return tile_width * tile_height; }
    __host__ __device__ __forceinline__ int axes() const { return tile_width + tile_height + 1; }
    __host__ __device__ __forceinline__ int code_rows() const { return per_channel ? classes : 1; }
    __host__ __device__ __forceinline__ int table_numbers() const { return maps * classes * (logs ? SUMS : SUMS - 1); }
    __host__ __device__ __forceinline__ int64_t concat_numbers() const {
        return concat_gradients ? int64_t(members) * classes * (classes + 1) : 0;
    }
    __host__ __device__ __forceinline__ int64_t parameter_numbers() const {
        return concat_numbers() + (attention_gradients ? int64_t(members) * (classes + 1) : 0);
    }
};

// Where the target's coordinate falls along one axis of a level: at `low`, and by `share` on the way to the next one. A
// quotient of whole numbers, so that every kernel finds the same, and exactly what interpolation is defined as.
template <class T>
struct Between {
    int low;
    T share;
};

template <class T>
__host__ __device__ __forceinline__ Between<T> between(int position, int full, int size, bool align_corners) {
    const int64_t divisor = align_corners ? (full > 1 ? full - 1 : 1) : 2 * int64_t(full);
    const int64_t number = align_corners ? int64_t(position) * (size - 1) : (2 * int64_t(position) + 1) * size - full;
    if (number <= 0) return {0, T(0)};
    const int64_t low = number / divisor;
    if (low >= size - 1) return {size - 1, T(0)};
    return {int(low), T(number - low * divisor) / T(divisor)};
}

// Coordinates of the target among which are all that fall less than 1 from `place`.
struct Span {
    int first, last;
};

__host__ __device__ __forceinline__ int64_t position_of(int64_t place, int full, int size, bool align_corners) {
    if (align_corners) return size > 1 ? place * (full - 1) / (size - 1) : 0;
    return ((2 * place + 1) * full - size) / (2 * int64_t(size));
}

__host__ __device__ __forceinline__ Span touching(int place, int full, int size, bool align_corners) {
    const int64_t first = place == 0 ? 0 : position_of(place - 1, full, size, align_corners) - 1;
    const int64_t last = place >= size - 1 ? full - 1 : position_of(place + 1, full, size, align_corners) + 1;
    return {int(first < 0 ? 0 : first), int(last < full ? last : full - 1)};
}

// Hands out pieces of one block of memory; without memory it only counts.
struct Pieces {
    char* memory;
    int64_t used = 0;

    template <class T>
    __host__ __device__ __forceinline__ T* take(int64_t count) {
        T* const piece = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
        used += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
        return piece;
    }
};

// A tile in shared memory. Rows of pixels, `stride` apart: [level][class], [class], [level].
template <class T>
struct Shared {
    T *levels, *parts, *gradients, *map, *shares, *ones;
    T* share;           // [level][axes]: of the tile's columns, of its rows, and of its plane
    int* low;           // the same
    signed char* code;  // [1 or class][pixel]

    // Returns how many bytes that takes.
    __host__ __device__ __forceinline__ int64_t lay_out(const Problem& p, char* memory) {
        Pieces pieces{memory};
        const int64_t rows = int64_t(p.levels) * p.classes;
        levels = pieces.take<T>(rows * p.stride);
        parts = p.probabilities ? pieces.take<T>(rows * p.stride) : levels;
        gradients = p.backward ? pieces.take<T>(rows * p.stride) : nullptr;
        map = pieces.take<T>(int64_t(p.classes) * p.stride);
        shares = pieces.take<T>(int64_t(p.levels) * p.stride);
        ones = p.backward ? pieces.take<T>(p.stride) : nullptr;
        share = pieces.take<T>(int64_t(p.levels) * p.axes());
        low = pieces.take<int>(int64_t(p.levels) * p.axes());
        code = pieces.take<signed char>(int64_t(p.code_rows()) * p.pixels());
        return pieces.used;
    }
};

inline void list_subsets(Problem& p) {
    p.subsets = p.members = 0;
    for (int size = 2; size <= p.levels; ++size) {
        int chosen[MOST_LEVELS];
        for (int i = 0; i < size; ++i) chosen[i] = i;
        for (bool more = true; more;) {
            unsigned bits = 0;
            for (int i = 0; i < size; ++i) bits |= 1u << chosen[i];
            p.subset_levels[p.subsets] = static_cast<unsigned char>(bits);
            p.subset_row[p.subsets++] = short(p.members);
            p.members += size;
            int last = size - 1;
            while (last >= 0 && chosen[last] == p.levels - size + last) --last;
            more = last >= 0;
            if (!more) continue;
            ++chosen[last];
            for (int i = last + 1; i < size; ++i) chosen[i] = chosen[i - 1] + 1;
        }
    }
}

// The most coordinates of a level that `count` neighbours of the target lie between.
inline int most_touched(int count, int full, int size, bool align_corners) {
    const int64_t steps = count - 1;
    const int64_t span = align_corners ? steps * (size - 1) / (full > 1 ? full - 1 : 1) : steps * size / full;
    return int(span + 3 < size ? span + 3 : size);
}

template <class T>
void cut_into_tiles(Problem& p) {
    const auto cut = [&](int pixels) {
        p.tile_width = WIDEST<T>;
        while (p.tile_width < p.sizes[2] && p.tile_width < WIDEST_TILE && p.tile_width < pixels) p.tile_width *= 2;
        p.tile_height = pixels / p.tile_width;
        // Backward lanes read different rows at once, which an odd number of 16-byte words from one row to the next
        // spreads over the banks.
        p.stride = pixels + (p.backward ? WIDEST<T> : 0);
        Shared<T> shared;
        return shared.lay_out(p, nullptr);
    };
    int pixels = 32 * WIDEST<T>;
    while (cut(pixels) > SHARED_BYTES && pixels > WIDEST<T>) pixels /= 2;
    p.tiles_across = int(ceil_div(p.sizes[2], p.tile_width));
    p.tiles_down = int(ceil_div(p.sizes[1], p.tile_height));
    p.tiles = p.sizes[0] * p.tiles_across * p.tiles_down;
    p.patch_numbers = 0;
    for (int i = 0; i < p.levels; ++i) {
        LevelOf& level = p.level[i];
        if (level.direct || !level.grad) continue;
        level.patch_rows = most_touched(p.tile_height, p.sizes[1], level.sizes[1], p.align_corners);
        level.patch_columns = most_touched(p.tile_width, p.sizes[2], level.sizes[2], p.align_corners);
        level.patch = p.patch_numbers;
        p.patch_numbers += int64_t(p.classes) * level.patch_rows * level.patch_columns;
    }
}

template <class T>
Problem describe(const MixingArguments& a, bool backward) {
    Problem p = {};
    p.type = a.type;
    p.backward = backward;
    p.batch = int(a.sizes[BATCH]);
    p.classes = int(a.sizes[CHANNEL]);
    p.levels = a.level_count;
    for (int axis = 0; axis < 3; ++axis) p.sizes.at[axis] = int(a.sizes[DEPTH + axis]);
    for (int i = 0; i < p.levels; ++i) {
        LevelOf& level = p.level[i];
        const MixingLevel& from = a.levels[i];
        level.logits = from.logits.data;
        level.grad = from.grad.data;
        level.direct = true;
        for (int axis = 0; axis < AXES; ++axis) {
            level.strides[axis] = from.logits.strides[axis];
            level.grad_strides[axis] = from.grad.strides[axis];
        }
        for (int axis = 0; axis < 3; ++axis) {
            level.sizes.at[axis] = int(from.sizes[DEPTH + axis]);
            level.direct &= level.sizes[axis] == p.sizes[axis];
        }
    }
    list_subsets(p);
    p.target = a.target.data;
    for (int axis = 0; axis < AXES; ++axis) p.target_strides[axis] = a.target.strides[axis];
    p.label_type = a.label_type;
    p.per_channel = a.per_channel;
    p.has_ignore = a.has_ignore;
    p.ignore_index = a.ignore_index;
    bool has_concat = false, has_attention = false;
    for (int m = 0; m < a.mix_count; ++m) {
        p.mixes[m] = a.mixes[m];
        has_concat |= a.mixes[m] == Mix::concat;
        has_attention |= a.mixes[m] == Mix::attention;
    }
    p.mix_count = a.mix_count;
    p.maps = p.levels + p.mix_count * p.subsets;
    p.sigmoid = a.sigmoid;
    p.probabilities = a.probabilities;
    p.align_corners = a.align_corners;
    p.per_sample = a.per_sample;
    p.logs = a.sums[LOG_PROBABILITY] != nullptr;
    p.concat_weight = a.concat_weight;
    p.concat_bias = a.concat_bias;
    p.attention_weight = a.attention_weight;
    p.attention_bias = a.attention_bias;
    for (int kind = 0; kind < SUMS; ++kind) p.sum_grads[kind] = a.sum_grads[kind];
    p.concat_gradients = has_concat && (a.concat_weight_grad || a.concat_bias_grad);
    p.attention_gradients = has_attention && (a.attention_weight_grad || a.attention_bias_grad);
    cut_into_tiles<T>(p);
    return p;
}

}  // namespace prosma::cuda::mixing

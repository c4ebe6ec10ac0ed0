// A tile of a warp: its labels, its levels up-sampled once for all maps, and the way back to the levels' own pixels.
//
// A lane owns WIDEST<T> pixels side by side and works on them alone, with accesses of 16 bytes; what it reads of others are
// the coordinates, which the warp finds together once a tile. The way back sums each row of the tile along the columns that
// lie around one of the level's, then the rows, in order: a patch of the level's pixels for each tile, which the last
// kernel adds up. No atomics.
#pragma once

#include "device.h"
#include "logit_mixing_problem.h"
#include "reduction.h"

namespace prosma::cuda::mixing {

// What a label becomes: its class, or one of these.
constexpr int IGNORED = -1, INVALID = -2;

template <class T>
__device__ __forceinline__ Pixels<T> filled(T value) {
    Pixels<T> pixels;
#pragma unroll
    for (int i = 0; i < WIDEST<T>; ++i) pixels[i] = value;
    return pixels;
}

template <class T>
struct Tile {
    const Problem& p;
    Shared<T> shared;
    int lane;
    bool active;       // small tiles leave lanes without pixels
    int own;           // the lane's first pixel
    unsigned present;  // which of its pixels count in any channel, as bits
    int64_t image;
    int number;        // among the tiles of the image
    int plane, row, column;  // of the tile's first pixel

    __device__ explicit Tile(const Problem& problem) : p(problem), lane(int(threadIdx.x)), own(lane * WIDEST<T>), present(0) {
        active = own < p.pixels();
        shared.lay_out(p, dynamic_shared<char>());
    }

    __device__ __forceinline__ void move_to(int64_t to_image, int to_number) {
        image = to_image;
        number = to_number;
        const int across = number % p.tiles_across, rest = number / p.tiles_across;
        column = across * p.tile_width;
        row = rest % p.tiles_down * p.tile_height;
        plane = rest / p.tiles_down;
    }

    // The lane's pixels in row `at` of rows of pixels.
    __device__ __forceinline__ Pixels<T> load(const T* rows, int at) const {
        return load_shared<WIDEST<T>>(rows + at * p.stride + own);
    }
    __device__ __forceinline__ void store(T* rows, int at, const Pixels<T>& pixels) const {
        *reinterpret_cast<Pixels<T>*>(rows + at * p.stride + own) = pixels;
    }
    __device__ __forceinline__ int rows_of(int level) const { return level * p.classes; }
    __device__ __forceinline__ Pixels<T> part(int level, int c) const { return load(shared.parts, rows_of(level) + c); }
    __device__ __forceinline__ Pixels<T> gradient(int level, int c) const {
        return load(shared.gradients, rows_of(level) + c);
    }
    __device__ __forceinline__ bool is_present(int i) const { return present >> i & 1; }

    __device__ __forceinline__ Pack<signed char, WIDEST<T>> codes(int c) const {
        return load_shared<WIDEST<T>>(shared.code + (p.per_channel ? c : 0) * p.pixels() + own);
    }
    // The code of a pixel that belongs to class c.
    __device__ __forceinline__ int code_of_class(int c) const { return p.per_channel || p.classes == 1 ? 1 : c; }
};

// The labels.

template <class L>
__device__ __forceinline__ int code_of_whole(const Problem& p, const L* labels, int64_t at) {
    const int64_t label = int64_t(__ldg(labels + at));
    if (p.has_ignore && label == p.ignore_index) return IGNORED;
    const int64_t largest = p.per_channel || p.classes == 1 ? 1 : p.classes - 1;
    return label < 0 || label > largest ? INVALID : int(label);
}

__device__ __forceinline__ int code_of_number(const Problem& p, double label) {
    if (p.has_ignore && label == double(p.ignore_index)) return IGNORED;
    const double largest = p.per_channel || p.classes == 1 ? 1 : p.classes - 1;
    return label >= 0 && label <= largest && label == double(int(label)) ? int(label) : INVALID;
}

template <class L>
__device__ __forceinline__ double number_at(const void* labels, int64_t at) {
    return double(to_computed(cuda::load<1>(static_cast<const L*>(labels) + at)[0]));
}

__device__ __forceinline__ int code_at(const Problem& p, int64_t at) {
    switch (p.label_type) {
        case LabelType::uint8: return code_of_whole(p, static_cast<const unsigned char*>(p.target), at);
        case LabelType::int8: return code_of_whole(p, static_cast<const signed char*>(p.target), at);
        case LabelType::int16: return code_of_whole(p, static_cast<const short*>(p.target), at);
        case LabelType::int32: return code_of_whole(p, static_cast<const int*>(p.target), at);
        case LabelType::int64: return code_of_whole(p, static_cast<const long long*>(p.target), at);
        case LabelType::float32: return code_of_number(p, number_at<float>(p.target, at));
        case LabelType::float64: return code_of_number(p, number_at<double>(p.target, at));
        case LabelType::float16: return code_of_number(p, number_at<float16>(p.target, at));
        case LabelType::bfloat16: return code_of_number(p, number_at<bfloat16>(p.target, at));
    }
    return INVALID;
}

// Returns how many labels of the lane are no class.
template <class T>
__device__ int read_labels(Tile<T>& tile) {
    const Problem& p = tile.p;
    tile.present = 0;
    if (!tile.active) return 0;
    int invalid = 0;
    const int y = tile.row + tile.own / p.tile_width, x = tile.column + tile.own % p.tile_width;
    for (int c = 0; c < p.code_rows(); ++c)
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i) {
            int code = IGNORED;
            if (y < p.sizes[1] && x + i < p.sizes[2])
                code = code_at(p, tile.image * p.target_strides[BATCH] + c * p.target_strides[CHANNEL] +
                                      tile.plane * p.target_strides[DEPTH] + y * p.target_strides[HEIGHT] +
                                      (x + i) * p.target_strides[WIDTH]);
            invalid += code == INVALID;
            if (code >= 0) tile.present |= 1u << i;
            tile.shared.code[c * p.pixels() + tile.own + i] = static_cast<signed char>(code < 0 ? IGNORED : code);
        }
    return invalid;
}

// The levels.

template <class T>
__device__ __forceinline__ T stored_at(const Problem& p, const void* numbers, int64_t at) {
    if constexpr (sizeof(T) == sizeof(double)) {
        return __ldg(static_cast<const double*>(numbers) + at);
    } else {
        if (p.type == DataType::float32) return __ldg(static_cast<const float*>(numbers) + at);
        if (p.type == DataType::float16) return to_computed(cuda::load<1>(static_cast<const float16*>(numbers) + at)[0]);
        return to_computed(cuda::load<1>(static_cast<const bfloat16*>(numbers) + at)[0]);
    }
}

template <class T>
__device__ __forceinline__ void store_at(const Problem& p, void* numbers, int64_t at, T value) {
    if constexpr (sizeof(T) == sizeof(double)) {
        static_cast<double*>(numbers)[at] = value;
    } else if (p.type == DataType::float32) {
        static_cast<float*>(numbers)[at] = value;
    } else if (p.type == DataType::float16) {
        static_cast<float16*>(numbers)[at] = to_stored<float16>(value);
    } else {
        static_cast<bfloat16*>(numbers)[at] = to_stored<bfloat16>(value);
    }
}

// Where the tile's columns, its rows and its plane fall in each level.
template <class T>
__device__ void find_coordinates(const Tile<T>& tile) {
    const Problem& p = tile.p;
    const int axes = p.axes();
    for (int entry = tile.lane; entry < p.levels * axes; entry += WARP) {
        const int level = entry / axes, i = entry % axes;
        const int axis = i < p.tile_width ? 2 : i < axes - 1 ? 1 : 0;
        const int first = axis == 2 ? tile.column + i : axis == 1 ? tile.row + i - p.tile_width : tile.plane;
        const int full = p.sizes[axis], position = first < full ? first : full - 1;
        const Between<T> found = between<T>(position, full, p.level[level].sizes[axis], p.align_corners);
        tile.shared.low[entry] = found.low;
        tile.shared.share[entry] = found.share;
    }
}

template <class T>
struct Neighbours {
    int64_t lower, upper;  // offsets
    T share;               // of the upper
};

template <class T>
__device__ __forceinline__ Neighbours<T> neighbours(const Tile<T>& tile, int level, int axis, int entry) {
    const LevelOf& own = tile.p.level[level];
    const int at = level * tile.p.axes() + entry, low = tile.shared.low[at];
    const int high = low + 1 < own.sizes[axis] ? low + 1 : low;
    const int64_t stride = own.strides[DEPTH + axis];
    return {low * stride, high * stride, tile.shared.share[at]};
}

template <class T>
__device__ void take_direct(const Tile<T>& tile, int level, int64_t plane, int y, int x) {
    const Problem& p = tile.p;
    const LevelOf& own = p.level[level];
    const int64_t at = plane + tile.plane * own.strides[DEPTH] + y * own.strides[HEIGHT] + x * own.strides[WIDTH];
    for (int c = 0; c < p.classes; ++c) {
        Pixels<T> values = filled(T(0));
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i)
            if (tile.is_present(i))
                values[i] = stored_at<T>(p, own.logits, at + c * own.strides[CHANNEL] + i * own.strides[WIDTH]);
        tile.store(tile.shared.levels, tile.rows_of(level) + c, values);
    }
}

// One level at the lane's pixels; 0 where nothing counts, so that whatever stands there, NaN too, reaches nothing.
template <class T>
__device__ void interpolate(const Tile<T>& tile, int level, int64_t image) {
    const Problem& p = tile.p;
    const LevelOf& own = p.level[level];
    const Neighbours<T> z = neighbours(tile, level, 0, p.axes() - 1);
    const Neighbours<T> y = neighbours(tile, level, 1, p.tile_width + tile.own / p.tile_width);
    Neighbours<T> x[WIDEST<T>];
#pragma unroll
    for (int i = 0; i < WIDEST<T>; ++i) x[i] = neighbours(tile, level, 2, tile.own % p.tile_width + i);
    for (int c = 0; c < p.classes; ++c) {
        Pixels<T> values = filled(T(0));
        const int64_t of_class = image + c * own.strides[CHANNEL];
        for (int far = 0; far < (z.share != 0 ? 2 : 1); ++far) {
            const int64_t plane = of_class + (far ? z.upper : z.lower);
            const T weight = far ? z.share : 1 - z.share;
#pragma unroll
            for (int i = 0; i < WIDEST<T>; ++i) {
                if (!tile.is_present(i)) continue;
                const auto row = [&](int64_t at) {
                    return (1 - x[i].share) * stored_at<T>(p, own.logits, at + x[i].lower) +
                           x[i].share * stored_at<T>(p, own.logits, at + x[i].upper);
                };
                values[i] += weight * ((1 - y.share) * row(plane + y.lower) + y.share * row(plane + y.upper));
            }
        }
        tile.store(tile.shared.levels, tile.rows_of(level) + c, values);
    }
}

template <class T>
__device__ void take_levels(const Tile<T>& tile) {
    if (!tile.active) return;
    const Problem& p = tile.p;
    for (int level = 0; level < p.levels; ++level) {
        const int64_t image = tile.image * p.level[level].strides[BATCH];
        if (p.level[level].direct)
            take_direct(tile, level, image, tile.row + tile.own / p.tile_width, tile.column + tile.own % p.tile_width);
        else
            interpolate(tile, level, image);
    }
}

// The way back.

template <class T>
__device__ void write_direct(const Tile<T>& tile, int level) {
    const Problem& p = tile.p;
    const LevelOf& own = p.level[level];
    const int y = tile.row + tile.own / p.tile_width, x = tile.column + tile.own % p.tile_width;
    if (!tile.active || y >= p.sizes[1]) return;
    const int64_t at = tile.image * own.grad_strides[BATCH] + tile.plane * own.grad_strides[DEPTH] +
                       y * own.grad_strides[HEIGHT] + x * own.grad_strides[WIDTH];
    for (int c = 0; c < p.classes; ++c) {
        const Pixels<T> values = tile.gradient(level, c);
#pragma unroll
        for (int i = 0; i < WIDEST<T>; ++i)
            if (x + i < p.sizes[2])
                store_at<T>(p, own.grad, at + c * own.grad_strides[CHANNEL] + i * own.grad_strides[WIDTH], values[i]);
    }
}

// A lane takes a column of the level's: each row of the tile gives it one sum, which belongs to two rows of the level. They
// come in order, so that two running sums are enough.
template <class T>
__device__ void collect_column(const Tile<T>& tile, int level, int c, int j, T* patch) {
    const Problem& p = tile.p;
    const LevelOf& own = p.level[level];
    const int* low = tile.shared.low + level * p.axes();
    const T* share = tile.shared.share + level * p.axes();
    const int column = low[0] + j;
    if (column >= own.sizes[2]) return;
    const Span span = touching(column, p.sizes[2], own.sizes[2], p.align_corners);
    const int first = span.first > tile.column ? span.first - tile.column : 0;
    const int last = span.last < tile.column + p.tile_width - 1 ? span.last - tile.column : p.tile_width - 1;
    const T* gradient = tile.shared.gradients + (tile.rows_of(level) + c) * p.stride;
    int at = 0;
    T upper = 0, lower = 0;
    for (int r = 0; r < p.tile_height; ++r, gradient += p.tile_width) {
        T sum = 0;
        for (int x = first; x <= last; ++x) {
            const T weight = low[x] == column ? 1 - share[x] : low[x] + 1 == column ? share[x] : T(0);
            sum += weight * gradient[x];
        }
        const int row = low[p.tile_width + r] - low[p.tile_width];
        for (; at < row; ++at) {
            patch[at * own.patch_columns] = upper;
            upper = lower;
            lower = 0;
        }
        upper += (1 - share[p.tile_width + r]) * sum;
        lower += share[p.tile_width + r] * sum;
    }
    for (; at < own.patch_rows; ++at) {
        patch[at * own.patch_columns] = upper;
        upper = lower;
        lower = 0;
    }
}

template <class T>
__device__ void give_back(const Tile<T>& tile, T* patches) {
    const Problem& p = tile.p;
    for (int level = 0; level < p.levels; ++level) {
        const LevelOf& own = p.level[level];
        if (!own.grad) continue;
        if (own.direct) {
            write_direct(tile, level);
            continue;
        }
        const int columns = own.patch_columns, of_class = own.patch_rows * columns;
        for (int entry = tile.lane; entry < p.classes * columns; entry += WARP) {
            const int c = entry / columns, j = entry % columns;
            collect_column(tile, level, c, j, patches + own.patch + c * of_class + j);
        }
    }
}

}  // namespace prosma::cuda::mixing

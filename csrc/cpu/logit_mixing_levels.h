// The levels of a tile: read in place, or interpolated; and the way back, of their gradients.
//
// Interpolation of a block: the low-resolution pixels that it needs are copied, planes blended if there is a depth, to
// a patch [row][column][class]; each of the patch's rows is interpolated along the width, by products of pixels with
// the vectors of a band of weights, to [class][row][pixel]; a tile's pixels are sums of two such rows. The transpose goes
// the same way back: a tile adds to two rows; at the block's end rows are transposed so that lanes are classes, and
// each pixel adds to two columns of the patch; the patches of all blocks are summed up at the end, in order.
#pragma once

#include "logit_mixing_target.h"

namespace prosma::PROSMA_LEVEL::mixing {

// The cells of a tile between two rows of a level, in runs that share them.
template <class T>
struct Runs {
    struct Run {
        int first, count;
        int64_t offset;  // of the upper row's pixels
    };
    int count;
    Run of[CELLS];
    T weight[CELLS], next_weight[CELLS];
};

template <class T>
struct LevelTile {
    T* patch;  // [row][column][class_stride]
    T* rows;   // [class][row][pixel of the block]
    Vector<T>* logits;  // [class][cell]
    T* weighted;        // [subset][channel][row][pixel of the block]; null if the level is not weighted
    Runs<T> runs;
    Ahead ahead;  // of a level that is read in place
};

// Elements from an interpolated row to the next one, and from a class to the next one. An odd number of vectors, so that
// rows do not fall into one set of the cache.
template <class T>
int64_t row_length(const Plan<T>& plan) {
    return plan.block_vectors * LANES<T>;
}
template <class T>
int64_t class_length(const Plan<T>& plan, int level) {
    return (plan.level[level].y.largest * plan.block_vectors | 1) * LANES<T>;
}

// Elements of a level's weighted rows, and where those of a subset's channel start.
template <class T>
int64_t weighted_length(const Plan<T>& plan, int level) {
    return plan.level[level].subsets * plan.weighted_channels * class_length(plan, level);
}
template <class T>
int64_t weighted_offset(const Plan<T>& plan, int level, int subset, int channel) {
    return (plan.level[level].order[subset] * plan.weighted_channels + channel) * class_length(plan, level);
}

template <class T>
LevelTile<T> lay_out_level(const Plan<T>& plan, int level, Arena& arena) {
    LevelTile<T> tile = {nullptr, nullptr, arena.take<Vector<T>>(plan.classes * CELLS), nullptr, {}, {}};
    if (plan.level[level].direct) return tile;
    tile.patch = arena.take<T>(plan.level[level].patch_elements);
    tile.rows = arena.take<T>(plan.classes * class_length(plan, level));
    if (plan.level[level].weighted) tile.weighted = arena.take<T>(weighted_length(plan, level));
    return tile;
}

template <class S>
const S* start_of(const Tensor& tensor, int64_t batch, int64_t plane) {
    return static_cast<const S*>(tensor.data) + batch * tensor.strides[BATCH] + plane * tensor.strides[DEPTH];
}

template <class S>
PROSMA_INLINE Vector<Compute<S>> read_lanes(const S* from, int64_t stride, int live) {
    using T = Compute<S>;
    if (stride == 1) return live == LANES<T> ? load_vector<S>(from) : load_first<S>(from, live);
    T lanes[LANES<T>] = {};
    for (int lane = 0; lane < live; ++lane) lanes[lane] = widen(from[lane * stride]);
    return load<T>(lanes);
}

template <class S>
PROSMA_INLINE void write_lanes(S* to, int64_t stride, int live, Vector<Compute<S>> values) {
    using T = Compute<S>;
    if (stride == 1) return live == LANES<T> ? store_vector<S>(to, values) : store_first<S>(to, values, live);
    T lanes[LANES<T>];
    store<T>(lanes, values);
    for (int lane = 0; lane < live; ++lane) to[lane * stride] = Narrow<S>::from(lanes[lane]);
}

// Copies the pixels that the block needs of the level; [row][column][class].
template <class S>
void take_patch(const Plan<Compute<S>>& plan, int number, const Block& block, Compute<S>* patch) {
    using T = Compute<S>;
    const LevelPlan<T>& level = plan.level[number];
    const Tensor& logits = plan.a.levels[number].logits;
    const int32_t* planes = level.z.list_of(block.plane);
    const T weight = level.z.weight[block.plane], next_weight = level.z.next_weight[block.plane];
    const S* plane = start_of<S>(logits, block.batch, planes[0]);
    const S* next_plane = start_of<S>(logits, block.batch, planes[1]);
    const int32_t *rows = level.y.list_of(block.y_block), *columns = level.x.list_of(block.x_block);
    const int64_t row_count = level.y.counts[block.y_block], column_count = level.x.counts[block.x_block];
    for (int64_t row = 0; row < row_count; ++row)
        for (int64_t column = 0; column < column_count; ++column) {
            const int64_t at = rows[row] * logits.strides[HEIGHT] + columns[column] * logits.strides[WIDTH];
            T* to = patch + (row * level.x.largest + column) * plan.class_stride;
            for (int c = 0; c < plan.classes; ++c) {
                const int64_t from = at + c * logits.strides[CHANNEL];
                to[c] = next_weight == 0 ? widen(plane[from]) : weight * widen(plane[from]) + next_weight * widen(next_plane[from]);
            }
        }
}

// Interpolates the patch along the width.
template <class T>
void interpolate_rows(const Plan<T>& plan, int number, const Block& block, const LevelTile<T>& tile) {
    constexpr int L = LANES<T>;
    const LevelPlan<T>& level = plan.level[number];
    const int64_t row_count = level.y.counts[block.y_block], length = row_length(plan), class_step = class_length(plan, number);
    for (int64_t v = 0; v < block.vectors; ++v) {
        const int64_t vector = block.first_vector + v;
        const Vector<T>* band = level.band + vector * 2 * L;
        const int taps = level.band_count[vector];
        for (int64_t row = 0; row < row_count; ++row) {
            const T* from = tile.patch + (row * level.x.largest + level.band_first[vector]) * plan.class_stride;
            T* to = tile.rows + row * length + v * L;
            for (int c = 0; c < plan.classes; ++c) {
                Vector<T> sum = from[c] * band[0];
                for (int tap = 1; tap < taps; ++tap) sum += from[tap * plan.class_stride + c] * band[tap];
                store<T>(to + c * class_step, sum);
            }
        }
    }
}

template <class S>
void prepare_levels(const Plan<Compute<S>>& plan, const Block& block, const LevelTile<Compute<S>>* tiles) {
    for (int i = 0; i < plan.levels; ++i) {
        if (plan.level[i].direct) continue;
        take_patch<S>(plan, i, block, tiles[i].patch);
        interpolate_rows(plan, i, block, tiles[i]);
    }
}

template <class T>
void find_runs(const Plan<T>& plan, int number, const Cell* cells, Runs<T>& runs) {
    const Axis<T>& y = plan.level[number].y;
    const int64_t length = row_length(plan);
    runs.count = 0;
    for (int k = 0; k < CELLS; ++k) {
        const int64_t offset = y.index[cells[k].row] * length + cells[k].block_vector * LANES<T>;
        if (runs.count == 0 || runs.of[runs.count - 1].offset != offset) runs.of[runs.count++] = {k, 0, offset};
        ++runs.of[runs.count - 1].count;
        runs.weight[k] = y.weight[cells[k].row];
        runs.next_weight[k] = y.next_weight[cells[k].row];
    }
}

// Between rows of some channels, [channel][row][pixel], and a tile's pixels, [channel][cell].
template <bool ADD, class T>
void interpolate_runs(const Runs<T>& runs, int channels, const T* rows, int64_t length, int64_t channel_step, Vector<T>* pixels) {
    for (int run = 0; run < runs.count; ++run) {
        const int first = runs.of[run].first;
        const T* const start = rows + runs.of[run].offset;
        with_count<CELLS>(runs.of[run].count, [&](auto count) {
            Vector<T> weight[count.value], next_weight[count.value];
            for (int k = 0; k < count.value; ++k) {
                weight[k] = broadcast<T>(runs.weight[first + k]);
                next_weight[k] = broadcast<T>(runs.next_weight[first + k]);
            }
            const T* from = start;
            Vector<T>* to = pixels + first;
            for (int c = 0; c < channels; ++c, from += channel_step, to += CELLS) {
                const Vector<T> upper = load<T>(from), lower = load<T>(from + length);
#pragma GCC unroll 8
                for (int k = 0; k < count.value; ++k)
                    to[k] = ADD ? to[k] + weight[k] * upper + next_weight[k] * lower : weight[k] * upper + next_weight[k] * lower;
            }
        });
    }
}

// The transpose: adds pixels to the rows that they were interpolated from. Pixels that do not count are 0.
template <class T>
void add_runs(const Runs<T>& runs, int channels, const Vector<T>* pixels, int64_t length, int64_t channel_step, T* rows) {
    for (int run = 0; run < runs.count; ++run) {
        const int first = runs.of[run].first;
        T* const start = rows + runs.of[run].offset;
        with_count<CELLS>(runs.of[run].count, [&](auto count) {
            Vector<T> weight[count.value], next_weight[count.value];
            for (int k = 0; k < count.value; ++k) {
                weight[k] = broadcast<T>(runs.weight[first + k]);
                next_weight[k] = broadcast<T>(runs.next_weight[first + k]);
            }
            T* to = start;
            const Vector<T>* from = pixels + first;
            for (int c = 0; c < channels; ++c, from += CELLS, to += channel_step) {
                Vector<T> upper = weight[0] * from[0], lower = next_weight[0] * from[0];
#pragma GCC unroll 8
                for (int k = 1; k < count.value; ++k) {
                    upper += weight[k] * from[k];
                    lower += next_weight[k] * from[k];
                }
                store<T>(to, load<T>(to) + upper);
                store<T>(to + length, load<T>(to + length) + lower);
            }
        });
    }
}

// Where a tile's vectors lie within a class's plane, and which are whole and in memory's order. If all are, they are read
// and written without a question each: the questions took as long as the memory.
template <class S>
struct Places {
    int64_t at[CELLS];
    bool whole[CELLS], all_whole = true;

    Places(const Cell* cells, const int64_t* strides) {
        constexpr int L = LANES<Compute<S>>;
        for (int k = 0; k < CELLS; ++k) {
            at[k] = cells[k].row * strides[HEIGHT] + cells[k].vector * L * strides[WIDTH];
            whole[k] = cells[k].live == L && strides[WIDTH] == 1;
            all_whole &= whole[k];
        }
    }
};

template <class S>
Ahead ahead_of(const Plan<Compute<S>>& plan, const S* plane, const int64_t* strides, int64_t first) {
    const int64_t step = plan.all_direct ? LANES<Compute<S>> * strides[WIDTH] : strides[HEIGHT];
    const S* start = plane + first + CELLS * step;
    return {reinterpret_cast<const char*>(start), strides[CHANNEL] * int64_t(sizeof(S)), step * int64_t(sizeof(S))};
}

template <class S>
void read_tile(const Plan<Compute<S>>& plan, int number, const Block& block, const Cell* cells, LevelTile<Compute<S>>& tile) {
    using T = Compute<S>;
    const Tensor& logits = plan.a.levels[number].logits;
    const int64_t* strides = logits.strides;
    const S* plane = start_of<S>(logits, block.batch, block.plane);
    const Places<S> places(cells, strides);
    tile.ahead = ahead_of(plan, plane, strides, places.at[0]);
    for (int c = 0; c < plan.classes; ++c, plane += strides[CHANNEL]) {
        Vector<T>* const to = tile.logits + c * CELLS;
        if (places.all_whole)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) to[k] = load_vector<S>(plane + places.at[k]);
        else
            for (int k = 0; k < CELLS; ++k) to[k] = read_lanes<S>(plane + places.at[k], strides[WIDTH], cells[k].live);
    }
}

// The logits of all levels; 0 where no channel counts, so that whatever stands there, NaN too, reaches nothing.
template <class S>
void take_levels(const Plan<Compute<S>>& plan, const Block& block, const Cell* cells, const TargetTile<Compute<S>>& target,
                 LevelTile<Compute<S>>* tiles) {
    using T = Compute<S>;
    for (int i = 0; i < plan.levels; ++i) {
        if (plan.level[i].direct) {
            read_tile<S>(plan, i, block, cells, tiles[i]);
        } else {
            find_runs(plan, i, cells, tiles[i].runs);
            interpolate_runs<false>(tiles[i].runs, plan.classes, tiles[i].rows, row_length(plan), class_length(plan, i), tiles[i].logits);
        }
        if (target.all_present) continue;
        for (int c = 0; c < plan.classes; ++c)
            for (int k = 0; k < CELLS; ++k) {
                Vector<T>& value = tiles[i].logits[c * CELLS + k];
                value = target.present[k] > 0 ? value : zero<T>();
            }
    }
}

// The way back.

// From here on a level's gradient is written past the caches, which saves reading it first.
constexpr int64_t STREAMING_BYTES = 8 << 20;

template <class S>
void write_tile(const Plan<Compute<S>>& plan, int number, const Block& block, const Cell* cells, const Vector<Compute<S>>* gradient) {
    int64_t bytes = sizeof(S);
    for (int axis = 0; axis < AXES; ++axis) bytes *= plan.a.sizes[axis];
    const bool streaming = bytes >= STREAMING_BYTES;
    const Tensor& grad = plan.a.levels[number].grad;
    const int64_t* strides = grad.strides;
    S* plane = const_cast<S*>(start_of<S>(grad, block.batch, block.plane));
    const Places<S> places(cells, strides);
    for (int c = 0; c < plan.classes; ++c, plane += strides[CHANNEL], gradient += CELLS)
        if (streaming && places.all_whole)
#pragma GCC unroll 8
            for (int k = 0; k < CELLS; ++k) stream_vector<S>(plane + places.at[k], gradient[k]);
        else
            for (int k = 0; k < CELLS; ++k)
                if (streaming && places.whole[k])
                    stream_vector<S>(plane + places.at[k], gradient[k]);
                else if (cells[k].live)
                    write_lanes<S>(plane + places.at[k], strides[WIDTH], cells[k].live, gradient[k]);
}

// The transpose of `interpolate_rows`, into a patch that it first clears.
template <class T>
void collect_rows(const Plan<T>& plan, int number, const Block& block, const T* rows, T* patch) {
    constexpr int L = LANES<T>;
    const LevelPlan<T>& level = plan.level[number];
    const int64_t row_count = level.y.counts[block.y_block], length = row_length(plan), class_step = class_length(plan, number);
    const int64_t stride = plan.class_stride;
    for (int64_t i = 0; i < level.patch_elements; i += L) store<T>(patch + i, zero<T>());
    for (int64_t row = 0; row < row_count; ++row)
        for (int64_t group = 0; group < plan.classes; group += L)
            for (int64_t v = 0; v < block.vectors; ++v) {
                Vector<T> lanes[L];
                const T* from = rows + group * class_step + row * length + v * L;
                for (int c = 0; c < L; ++c) lanes[c] = group + c < plan.classes ? load<T>(from + c * class_step) : zero<T>();
                transpose<T>(lanes);
                const int64_t first = (block.first_vector + v) * L, live = smaller(L, plan.a.sizes[WIDTH] - first);
                for (int64_t pixel = 0; pixel < live; ++pixel) {
                    T* to = patch + (row * level.x.largest + level.x.index[first + pixel]) * stride + group;
                    store<T>(to, load<T>(to) + level.x.weight[first + pixel] * lanes[pixel]);
                    store<T>(to + stride, load<T>(to + stride) + level.x.next_weight[first + pixel] * lanes[pixel]);
                }
            }
}

// Keeps a block's patch until all blocks are done: [row][column][class].
template <class T>
void keep_patch(const Plan<T>& plan, int number, const Block& block, const T* patch, T* partials) {
    const LevelPlan<T>& level = plan.level[number];
    const int64_t pixels = level.y.counts[block.y_block] * level.x.largest;
    T* to = partials + (block.batch * plan.blocks + block.number) * plan.partial_elements + level.partial_offset;
    for (int64_t i = 0; i < pixels; ++i)
        for (int c = 0; c < plan.classes; ++c) to[i * plan.classes + c] = patch[i * plan.class_stride + c];
}

// Sums up the patches of all blocks for some classes of one plane of a level's gradient, in order, and writes it.
template <class S>
void gather_plane(const Plan<Compute<S>>& plan, int number, int64_t batch, int64_t plane, int first_class, int classes,
                  const Compute<S>* partials, double* sums) {
    using T = Compute<S>;
    const LevelPlan<T>& level = plan.level[number];
    const int64_t height = level.y.level_size, width = level.x.level_size;
    for (int64_t i = 0; i < height * width * classes; ++i) sums[i] = 0;
    for (int64_t number_of_block = 0; number_of_block < plan.blocks; ++number_of_block) {
        const Block block = block_of(plan, batch, number_of_block);
        const int32_t* planes = level.z.list_of(block.plane);
        double weight = 0;
        if (planes[0] == plane) weight += level.z.weight[block.plane];
        if (planes[1] == plane) weight += level.z.next_weight[block.plane];
        if (weight == 0) continue;
        const T* patch = partials + (batch * plan.blocks + number_of_block) * plan.partial_elements + level.partial_offset;
        const int32_t *rows = level.y.list_of(block.y_block), *columns = level.x.list_of(block.x_block);
        for (int32_t row = 0; row < level.y.counts[block.y_block]; ++row)
            for (int32_t column = 0; column < level.x.counts[block.x_block]; ++column) {
                const T* from = patch + (row * level.x.largest + column) * plan.classes + first_class;
                double* to = sums + (rows[row] * width + columns[column]) * classes;
                for (int c = 0; c < classes; ++c) to[c] += weight * double(from[c]);
            }
    }
    const Tensor& grad = plan.a.levels[number].grad;
    S* start = const_cast<S*>(start_of<S>(grad, batch, plane));
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
            for (int c = 0; c < classes; ++c)
                start[(first_class + c) * grad.strides[CHANNEL] + y * grad.strides[HEIGHT] + x * grad.strides[WIDTH]] =
                    Narrow<S>::from(T(sums[(y * width + x) * classes + c]));
}

// The gradients of the levels that were interpolated.
template <class S>
bool gather_levels(const Plan<Compute<S>>& plan, const Compute<S>* partials) {
    constexpr int64_t SUMS_BYTES = 1 << 20;
    for (int i = 0; i < plan.levels; ++i) {
        const int64_t* sizes = plan.a.levels[i].sizes;
        if (plan.level[i].direct || !plan.a.levels[i].grad.data) continue;
        const int64_t pixels = sizes[HEIGHT] * sizes[WIDTH];
        const int at_once = int(larger(1, smaller(plan.classes, SUMS_BYTES / (pixels * int64_t(sizeof(double))))));
        const int64_t parts = ceiling(plan.classes, at_once), depth = sizes[DEPTH];
        const bool enough = for_each_item(plan.threads(), plan.a.sizes[BATCH] * depth * parts, size_t(pixels * at_once) * sizeof(double),
                                          [&](int64_t item, void* memory) {
            const int first = int(item % parts) * at_once;
            gather_plane<S>(plan, i, item / (parts * depth), item / parts % depth, first, int(smaller(at_once, plan.classes - first)),
                            partials, static_cast<double*>(memory));
        });
        if (!enough) return false;
    }
    return true;
}

}  // namespace prosma::PROSMA_LEVEL::mixing

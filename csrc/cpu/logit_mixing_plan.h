// Which maps there are, how the target is cut into blocks, and where its pixels fall among those of each level.
//
// A block is a rectangle of vectors of one plane of one image; an item, the unit of work, is a run of blocks of one
// image. Both depend on sizes alone, so that any number of threads gives the same sums.
#pragma once

#include "../logit_mixing.h"
#include "parallel.h"
#include "storage.h"

namespace prosma::PROSMA_LEVEL::mixing {

constexpr int MOST_SUBSETS = 57;  // of two or more of six levels
// Sums run in float over so many vectors a lane; then they go on in double.
constexpr int64_t CELLS_IN_FLOAT = 256;
// A block that up-samples is 32 x 32 pixels: its rows of all levels stay in the second-level cache, and few
// low-resolution pixels are interpolated twice. Where nothing is up-sampled whole rows are read, in memory's order.
constexpr int64_t BLOCK_COLUMNS = 32, BLOCK_ROWS = 32, BLOCK_CELLS = 128;
// What the weighted rows of all levels may take of the second-level cache; the backward keeps as much again.
constexpr int64_t WEIGHTED_BYTES = 320 << 10;
// What all items' partial sums may take together.
constexpr int64_t PARTIAL_BYTES = 64 << 20;

PROSMA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PROSMA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
PROSMA_INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
PROSMA_INLINE int64_t round_up(int64_t a, int64_t b) { return ceiling(a, b) * b; }

template <int COUNT>
struct Known {
    static constexpr int value = COUNT;
};

// Calls body(Known<count>) for a count from 1 to MOST.
template <int MOST, class Body>
PROSMA_INLINE void with_count(int count, const Body& body) {
    if constexpr (MOST > 1) {
        if (count < MOST) return with_count<MOST - 1>(count, body);
    }
    body(Known<MOST>{});
}

// Hands out pieces of one block of memory; without memory it only counts.
class Arena {
public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <class V>
    V* take(int64_t count) {
        char* piece = memory_ ? memory_ + used_ : nullptr;
        used_ += size_t(round_up(count * int64_t(sizeof(V)), 64));
        return reinterpret_cast<V*>(piece);
    }
    size_t used() const { return used_; }

private:
    char* memory_;
    size_t used_ = 0;
};

struct Subset {
    int size;
    int members[MOST_LEVELS];
    int row;  // of its first member among the members of all subsets: how parameters are stored
};

// By size, then lexicographically.
struct Subsets {
    int count = 0, rows = 0;
    Subset of[MOST_SUBSETS];

    explicit Subsets(int levels) {
        for (int size = 2; size <= levels; ++size) {
            Subset next = {size, {}, 0};
            for (int i = 0; i < size; ++i) next.members[i] = i;
            for (bool more = true; more;) {
                next.row = rows;
                of[count++] = next;
                rows += size;
                int last = size - 1;
                while (last >= 0 && next.members[last] == levels - size + last) --last;
                more = last >= 0;
                if (!more) continue;
                ++next.members[last];
                for (int i = last + 1; i < size; ++i) next.members[i] = next.members[i - 1] + 1;
            }
        }
    }
};

// Where the target's coordinates along one axis fall between a level's. Each needs two neighbours; a block of
// coordinates needs a list of them, which leaves out what lies between where the level is finer than the target.
template <class T>
struct Axis {
    int32_t* index;        // [coordinate]: its first neighbour, as a place in its block's list; the second follows
    T *weight, *next_weight;  // [coordinate]
    int32_t* positions;    // [2 * coordinate]: its block's list starts where twice its first coordinate says
    int32_t* counts;       // [block]
    int64_t block, size, level_size, largest;  // coordinates in a block; of target and level; the longest list

    void lay_out(Arena& arena, int64_t target_size, int64_t size_of_level, int64_t block_size) {
        size = target_size;
        level_size = size_of_level;
        block = block_size;
        index = arena.take<int32_t>(size);
        weight = arena.take<T>(size);
        next_weight = arena.take<T>(size);
        positions = arena.take<int32_t>(2 * round_up(size, block));
        counts = arena.take<int32_t>(ceiling(size, block));
    }

    // As torch.nn.functional.interpolate has it, in double.
    void fill(bool align_corners) {
        largest = 0;
        int64_t previous = -1;
        int32_t* list = positions;
        int32_t count = 0;
        for (int64_t i = 0; i < size; ++i) {
            if (i % block == 0) {
                list = positions + 2 * i;
                count = 0;
                previous = -1;
            }
            double source = align_corners ? (size > 1 ? double(i) * double(level_size - 1) / double(size - 1) : 0.0)
                                          : (double(i) + 0.5) * double(level_size) / double(size) - 0.5;
            if (source < 0) source = 0;
            int64_t low = int64_t(source);
            double fraction = source - double(low);
            if (low >= level_size - 1) {  // at the edge both neighbours are the last pixel
                low = larger(0, level_size - 2);
                fraction = level_size > 1 ? 1 : 0;
            }
            if (low > previous) list[count++] = int32_t(low);
            if (low + 1 > previous) list[count++] = int32_t(smaller(low + 1, level_size - 1));
            previous = low + 1;
            index[i] = count - 2;
            weight[i] = T(1 - fraction);
            next_weight[i] = T(fraction);
            counts[i / block] = count;
            largest = larger(largest, count);
        }
    }

    const int32_t* list_of(int64_t block_number) const { return positions + 2 * block_number * block; }
};

// How one level is interpolated. Along the width, a vector of the target is a sum over the neighbours that its lanes
// need, of each pixel times a vector of weights: a band of the matrix that interpolates.
template <class T>
struct LevelPlan {
    bool direct;  // as large as the target: read in place
    Axis<T> x, y, z;
    int32_t *band_first, *band_count;  // [vector of the row]
    Vector<T>* band;                   // [vector of the row][2 * LANES]
    int64_t patch_elements, partial_offset;
    bool weighted;                // the products of its logits with the weights are interpolated, instead of formed anew
    int32_t order[MOST_SUBSETS];  // of a subset among those that hold the level
    int64_t subsets;              // that hold it
};

template <class T>
struct Plan {
    static constexpr int L = LANES<T>;

    const MixingArguments& a;
    int classes, levels;
    Subsets subsets;
    int maps;
    bool any_direct, all_direct, has_concat = false, has_attention = false, has_add = false;
    int64_t row_vectors, block_vectors, block_rows, x_blocks, y_blocks, blocks, blocks_in_item, items_in_image, items;
    int64_t weighted_channels;  // of a subset in a level's weighted rows: concat's classes, and attention's score
    int64_t class_stride;      // classes, filled up to whole vectors
    int64_t partial_elements;  // of a block's low-resolution gradients
    LevelPlan<T> level[MOST_LEVELS];

    // `doubles`: that an item keeps until all are done.
    Plan(const MixingArguments& arguments, Arena& arena, bool ready) : a(arguments), subsets(arguments.level_count) {
        classes = int(a.sizes[CHANNEL]);
        levels = a.level_count;
        maps = levels + a.mix_count * subsets.count;
        class_stride = round_up(classes, L);
        for (int m = 0; m < a.mix_count; ++m) {
            has_add |= a.mixes[m] == Mix::add;
            has_concat |= a.mixes[m] == Mix::concat;
            has_attention |= a.mixes[m] == Mix::attention;
        }
        any_direct = false;
        all_direct = true;
        for (int i = 0; i < levels; ++i) {
            const int64_t* sizes = a.levels[i].sizes;
            level[i].direct = sizes[DEPTH] == a.sizes[DEPTH] && sizes[HEIGHT] == a.sizes[HEIGHT] && sizes[WIDTH] == a.sizes[WIDTH];
            any_direct |= level[i].direct;
            all_direct &= level[i].direct;
        }
        cut_into_blocks();
        partial_elements = 0;
        for (int i = 0; i < levels; ++i)
            if (!level[i].direct) lay_out(i, arena, ready);
        choose_weighted(ready);
    }

    // Interpolation commutes with what is linear in the logits. A level of few rows has its products with concat's and
    // attention's weights formed on its interpolated rows, before they are blended along the height.
    void choose_weighted(bool ready) {
        weighted_channels = (has_concat ? classes : 0) + (has_attention ? 1 : 0);
        int64_t bytes = 0;
        for (int i = 0; i < levels; ++i) {
            LevelPlan<T>& own = level[i];
            own.subsets = 0;
            for (int number = 0; number < subsets.count; ++number)
                for (int j = 0; j < subsets.of[number].size; ++j)
                    if (subsets.of[number].members[j] == i) own.order[number] = int32_t(own.subsets++);
            own.weighted = false;
            if (!ready || own.direct || a.probabilities || 2 * own.y.largest > block_rows) continue;
            const int64_t more = own.subsets * weighted_channels * own.y.largest * block_vectors * VECTOR_BYTES;
            own.weighted = more > 0 && bytes + more <= WEIGHTED_BYTES;
            if (own.weighted) bytes += more;
        }
    }

    void cut_into_blocks() {
        row_vectors = ceiling(a.sizes[WIDTH], L);
        block_vectors = smaller(row_vectors, all_direct ? BLOCK_CELLS : BLOCK_COLUMNS / L);
        block_rows = smaller(a.sizes[HEIGHT], all_direct ? ceiling(BLOCK_CELLS, block_vectors) : BLOCK_ROWS);
        x_blocks = ceiling(row_vectors, block_vectors);
        block_vectors = ceiling(row_vectors, x_blocks);
        x_blocks = ceiling(row_vectors, block_vectors);
        y_blocks = ceiling(a.sizes[HEIGHT], block_rows);
        block_rows = ceiling(a.sizes[HEIGHT], y_blocks);
        y_blocks = ceiling(a.sizes[HEIGHT], block_rows);
        blocks = x_blocks * y_blocks * a.sizes[DEPTH];
        blocks_in_item = ceiling(CELLS_IN_FLOAT, block_vectors * block_rows);
    }

    // Cuts the images into items, each of which will keep so many doubles.
    void cut_into_items(int64_t doubles) {
        const int64_t most = larger(1, PARTIAL_BYTES / larger(1, doubles * 8 * larger(1, a.sizes[BATCH])));
        blocks_in_item = larger(blocks_in_item, ceiling(blocks, most));
        items_in_image = ceiling(blocks, blocks_in_item);
        items = a.sizes[BATCH] * items_in_image;
    }

    void lay_out(int number, Arena& arena, bool ready) {
        LevelPlan<T>& own = level[number];
        const int64_t* sizes = a.levels[number].sizes;
        own.x.lay_out(arena, a.sizes[WIDTH], sizes[WIDTH], block_vectors * L);
        own.y.lay_out(arena, a.sizes[HEIGHT], sizes[HEIGHT], block_rows);
        own.z.lay_out(arena, a.sizes[DEPTH], sizes[DEPTH], 1);
        own.band_first = arena.take<int32_t>(row_vectors);
        own.band_count = arena.take<int32_t>(row_vectors);
        own.band = arena.take<Vector<T>>(row_vectors * 2 * L);
        if (!ready) return;
        own.x.fill(a.align_corners);
        own.y.fill(a.align_corners);
        own.z.fill(a.align_corners);
        fill_band(own);
        own.patch_elements = own.y.largest * own.x.largest * class_stride;
        own.partial_offset = partial_elements;
        partial_elements += own.y.largest * own.x.largest * classes;
    }

    void fill_band(LevelPlan<T>& own) const {
        for (int64_t v = 0; v < row_vectors; ++v) {
            const int64_t first = v * L, live = smaller(L, a.sizes[WIDTH] - first);
            own.band_first[v] = own.x.index[first];
            own.band_count[v] = own.x.index[first + live - 1] + 2 - own.band_first[v];
            Vector<T>* band = own.band + v * 2 * L;
            for (int tap = 0; tap < own.band_count[v]; ++tap) band[tap] = zero<T>();
            for (int lane = 0; lane < live; ++lane) {
                const int tap = own.x.index[first + lane] - own.band_first[v];
                band[tap][lane] += own.x.weight[first + lane];
                band[tap + 1][lane] += own.x.next_weight[first + lane];
            }
        }
    }

    int threads() const {
        // Pixels times classes times maps below which a second thread costs more than it saves.
        int64_t work = maps;
        for (int axis = 0; axis < AXES; ++axis) work *= a.sizes[axis];
        return work < (1 << 14) ? 1 : a.threads;
    }
};

// One block: its plane, its first row and vector, and its size.
struct Block {
    int64_t batch, number, plane, y_block, x_block, first_row, rows, first_vector, vectors;
};

template <class T>
Block block_of(const Plan<T>& plan, int64_t batch, int64_t number) {
    Block block;
    block.batch = batch;
    block.number = number;
    block.plane = number / (plan.x_blocks * plan.y_blocks);
    block.y_block = number / plan.x_blocks % plan.y_blocks;
    block.x_block = number % plan.x_blocks;
    block.first_row = block.y_block * plan.block_rows;
    block.rows = smaller(plan.block_rows, plan.a.sizes[HEIGHT] - block.first_row);
    block.first_vector = block.x_block * plan.block_vectors;
    block.vectors = smaller(plan.block_vectors, plan.row_vectors - block.first_vector);
    return block;
}

// A tile is so many vectors of a block, row by row, or column by column if a level is interpolated: neighbours then lie
// between the same two of its rows; all of a tile's classes and levels stay in the caches, and its
// vectors are the independent chains that hide the latency of an exponential.
constexpr int CELLS = 8;

struct Cell {
    int64_t row, vector;  // in the image
    int block_row, block_vector;
    int live;  // pixels, 0 in what fills up the block's last tile
};

// Where a level's next tile lies, whose lines are asked for while the present one is computed: spread over the work on
// its classes, for a core waits for a dozen lines at a time and a tile has 72 of nine classes.
struct Ahead {
    const char* start = nullptr;
    int64_t class_bytes = 0, cell_bytes = 0;

    PROSMA_INLINE void ask_for_class(int c) const {
        for (int k = 0; k < CELLS; ++k) __builtin_prefetch(start + c * class_bytes + k * cell_bytes);
    }
};

// The tile whose first cell has this number in the block.
template <class T>
void place_cells(const Plan<T>& plan, const Block& block, int64_t first, Cell* cells) {
    const int64_t count = block.rows * block.vectors;
    for (int k = 0; k < CELLS; ++k) {
        const int64_t number = smaller(first + k, count - 1);
        Cell& cell = cells[k];
        cell.block_row = int(plan.all_direct ? number / block.vectors : number % block.rows);
        cell.block_vector = int(plan.all_direct ? number % block.vectors : number / block.rows);
        cell.row = block.first_row + cell.block_row;
        cell.vector = block.first_vector + cell.block_vector;
        cell.live = first + k < count ? int(smaller(LANES<T>, plan.a.sizes[WIDTH] - cell.vector * LANES<T>)) : 0;
    }
}

}  // namespace prosma::PROSMA_LEVEL::mixing

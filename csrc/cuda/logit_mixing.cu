// mixed_logit_statistics on the GPU: the sums that losses are made of, of every mix of several logit maps.
//
//     Z_i = level i, up-sampled;  P_i = Z_i, or its probabilities;  maps: every Z_i, and for each subset S and operator
//     sum P_i,  prod P_i,  W_S [P_i] + b_S,  sum a_i P_i;  of each map sums over pixels of CE, p y, p, p^2 (, log p)
//
// No map is ever stored: a warp has a tile of pixels in shared memory, with all levels up-sampled once, and makes all maps
// from it, one after the other, and their sums. A lane has four neighbouring pixels of all classes to itself, so that
// whatever goes over classes or levels needs no other thread: reads of 16 bytes, four independent chains, no barrier. Every
// warp adds to a table of its own, and a second launch adds up the tables. The backward makes each map again, turns it
// into its gradient in place, and hands that on to the gradients of its parts, which stand in shared memory as well; a
// tile leaves a patch of each level's own pixels, and a second launch adds up the patches and the tables of the weights'
// gradients. Two launches each, no atomics, and sums in an order that no device changes.
//
// Of 48 maps of 9 classes that is 432 exponentials a pixel and pass; of memory, only the levels and the labels are read.
// Shared memory, 26 KB a warp forward and 47 backward (4 levels, 9 classes), lets 8 and 4 warps work on a multiprocessor
// of an H200, each with four pixels a lane. None of it is a measured time.
#include "kernels.h"
#include "launch.h"
#include "logit_mixing_maps.h"

namespace prosma::cuda {

namespace {

using namespace mixing;

#if defined(PROSMA_EMULATION)
// So few that in small cases too a warp has several tiles, and images come in turns.
constexpr int64_t FORWARD_WARPS = 5, BACKWARD_WARPS = 3, WORKSPACE_BYTES = 48 << 10;
#else
// Warps at work: 8 and 4 on each of the 132 multiprocessors of an H200; elsewhere the same, for the same sums. And what
// tables and patches may take: images come in turns if they need more.
constexpr int64_t FORWARD_WARPS = 1056, BACKWARD_WARPS = 528, WORKSPACE_BYTES = 128 << 20;
#endif
constexpr int COLUMNS = 32, ROWS = 8;  // of a block that adds up tables

// How the tiles are shared among blocks of one warp: `groups` of images whose sums stay apart.
struct Division {
    int groups, blocks;    // blocks of a group
    int64_t tiles;         // of a group
    int first_image, images;
};

Division divide(const Problem& p, int images, bool apart, int64_t warps, int64_t table_bytes) {
    Division d;
    d.groups = apart ? images : 1;
    d.first_image = 0;
    d.images = images;
    d.tiles = int64_t(p.tiles) * (apart ? 1 : images);
    int64_t most = warps < WORKSPACE_BYTES / (table_bytes + 1) ? warps : WORKSPACE_BYTES / (table_bytes + 1);
    most = d.groups > 0 && most / d.groups > 1 ? most / d.groups : 1;
    d.blocks = int(most < d.tiles ? most : d.tiles);
    return d;
}

// Calls visit(tile, fresh) for every tile of a block.
template <class T, class Visit>
__device__ __forceinline__ void for_each_tile(Tile<T>& tile, const Division& d, const Visit& visit) {
    const int group = int(blockIdx.x) / d.blocks, number = int(blockIdx.x) % d.blocks;
    for (int64_t i = number; i < d.tiles; i += d.blocks) {
        const int64_t of_all = int64_t(group) * d.tiles + i;
        tile.move_to(d.first_image + of_all / tile.p.tiles, int(of_all % tile.p.tiles));
        __syncwarp();
        find_coordinates(tile);
        const int invalid = read_labels(tile);
        __syncwarp();
        take_levels(tile);
        if (tile.p.probabilities && tile.active) activate(tile);
        visit(invalid, i == number);
    }
}

// Calls mixed(operation, subset number, map) for every mixed map.
template <class Mixed>
__device__ __forceinline__ void for_each_mix(const Problem& p, const Mixed& mixed) {
    for (int m = 0; m < p.mix_count; ++m)
        for (int number = 0; number < p.subsets; ++number) mixed(p.mixes[m], number, p.levels + m * p.subsets + number);
}

// Adds the tile's pixels of each class, all that count, and its invalid labels.
template <class T>
__device__ void count_pixels(const Tile<T>& tile, int invalid, int64_t* counts, bool fresh) {
    const Problem& p = tile.p;
    for (int c = 0; c < p.classes + 2; ++c) {
        int count = c == p.classes ? __popc(tile.present) : invalid;
        if (c < p.classes) {
            count = 0;
            const auto codes = tile.active ? tile.codes(c) : Pack<signed char, WIDEST<T>>{};
            for (int i = 0; tile.active && i < WIDEST<T>; ++i) count += codes[i] == tile.code_of_class(c);
        }
        count = sum_of_warp(count);
        if (tile.lane == 0) counts[c] = (fresh ? 0 : counts[c]) + count;
    }
}

// Shared memory leaves a lane all registers that it can name: with no more said than WARP, float64 spilled some on sm_80.
template <class T>
__global__ void __launch_bounds__(WARP, 1)
    statistics_kernel(const __grid_constant__ Problem p, const __grid_constant__ Division d, double* tables,
                      int64_t* counts) {
    Tile<T> tile(p);
    tables += int64_t(blockIdx.x) * p.table_numbers();
    counts += int64_t(blockIdx.x) * (p.classes + 2);
    for_each_tile(tile, d, [&](int invalid, bool fresh) {
        const Table table{tables, fresh};
        const auto add_sums = [&](const T* from, int64_t map) {
            if (p.sigmoid)
                add_sigmoid_sums(tile, from, table, map);
            else
                add_softmax_sums(tile, from, tile.shared.map, table, map);
        };
        count_pixels(tile, invalid, counts, fresh);
        for (int level = 0; level < p.levels; ++level)
            add_sums(tile.shared.levels + tile.rows_of(level) * p.stride, level);
        for_each_mix(p, [&](Mix operation, int number, int map) {
            if (tile.active) mix(tile, operation, number);
            add_sums(tile.shared.map, map);
        });
    });
}

template <class T>
__global__ void __launch_bounds__(WARP, 1)
    gradient_kernel(const __grid_constant__ Problem p, const __grid_constant__ Division d, double* tables, T* patches) {
    Tile<T> tile(p);
    tables += blockIdx.x * p.parameter_numbers();
    if (tile.active) *reinterpret_cast<Pixels<T>*>(tile.shared.ones + tile.own) = filled(T(1));
    for_each_tile(tile, d, [&](int, bool fresh) {
        const Table table{tables, fresh && d.first_image == 0};
        for (int row = 0; tile.active && row < p.levels * p.classes; ++row)
            tile.store(tile.shared.gradients, row, filled(T(0)));
        for_each_mix(p, [&](Mix operation, int number, int map) {
            if (tile.active) {
                mix(tile, operation, number);
                map_gradient(tile, tile.shared.map, tile.shared.map, map);
            }
            unmix(tile, operation, number, table);
        });
        for (int level = 0; tile.active && level < p.levels; ++level) finish_level(tile, level);
        __syncwarp();
        give_back(tile, patches + ((tile.image - d.first_image) * p.tiles + tile.number) * p.patch_numbers);
    });
}

// The sums of `rows` rows of a table of `columns` columns: every block COLUMNS of them, every warp each ROWS-th row.
template <class V>
struct OfWarpsRows {
    V values[ROWS][COLUMNS];
};

template <class V>
__device__ __forceinline__ V sum_of_column(const V* table, int64_t rows, int64_t columns, int64_t column) {
    auto& of_warps = shared_object<OfWarpsRows<V>>();
    const int lane = int(threadIdx.x) % COLUMNS, warp = int(threadIdx.x) / COLUMNS;
    V sum = 0;
#pragma unroll 4
    for (int64_t row = warp; row < rows && column < columns; row += ROWS) sum += table[row * columns + column];
    of_warps.values[warp][lane] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < ROWS; ++i) sum += of_warps.values[i][lane];
    return sum;
}

struct Sums {
    void* of[SUMS];
    int64_t *class_pixels, *pixels, *invalid;
};

template <class T>
__global__ void __launch_bounds__(COLUMNS * ROWS)
    add_up_sums_kernel(const double* tables, const int64_t* counts, int64_t rows, int maps, int classes, int columns,
                       const __grid_constant__ Sums to) {
    const int blocks = (columns + COLUMNS - 1) / COLUMNS, of_group = blocks + (classes + 2 + COLUMNS - 1) / COLUMNS;
    const int64_t group = blockIdx.x / of_group;
    const int block = int(blockIdx.x) % of_group, lane = int(threadIdx.x) % COLUMNS;
    const bool first_warp = int(threadIdx.x) < COLUMNS;
    if (block < blocks) {
        const int column = block * COLUMNS + lane, dense = maps * classes * SUMMED_KINDS;
        const double sum = sum_of_column(tables + group * rows * columns, rows, columns, column);
        if (!first_warp || column >= columns) return;
        const int kind = column < dense ? column % SUMMED_KINDS : LOG_PROBABILITY;
        const int at = column < dense ? column / SUMMED_KINDS : column - dense;
        static_cast<T*>(to.of[kind])[group * maps * classes + at] = T(sum);
        return;
    }
    const int c = (block - blocks) * COLUMNS + lane;
    const int64_t sum = sum_of_column(counts + group * rows * (classes + 2), rows, classes + 2, c);
    if (!first_warp) return;
    if (c < classes) to.class_pixels[group * classes + c] = sum;
    if (c == classes) to.pixels[group] = sum;
    if (c == classes + 1) to.invalid[group] = sum;
}

struct ParameterGradients {
    void *concat_weight, *concat_bias, *attention_weight, *attention_bias;
};

// Entry `at` of a table of the weights' gradients goes where that weight is stored.
template <class T>
__device__ __forceinline__ void store_parameter(const Problem& p, const ParameterGradients& to, int64_t at, T value) {
    const int columns = p.classes + 1, column = int(at % columns);
    const bool of_concat = at < p.concat_numbers();
    const int64_t row = (of_concat ? at : at - p.concat_numbers()) / columns;
    if (!of_concat) {
        T* const stored = static_cast<T*>(column < p.classes ? to.attention_weight : to.attention_bias);
        if (stored) stored[column < p.classes ? row * p.classes + column : row] = value;
        return;
    }
    const int64_t member = row / p.classes, c = row % p.classes;
    if (column < p.classes) {
        if (to.concat_weight) static_cast<T*>(to.concat_weight)[(c * p.members + member) * p.classes + column] = value;
        return;
    }
    for (int number = 0; to.concat_bias && number < p.subsets; ++number)
        if (p.subset_row[number] == member) static_cast<T*>(to.concat_bias)[c * p.subsets + number] = value;
}

// One pixel of a level: what all tiles around it have given to it.
template <class T>
__device__ T sum_of_patches(const Problem& p, const LevelOf& own, const T* patches, int image, int c, const Place& at) {
    const Span planes = touching(at[0], p.sizes[0], own.sizes[0], p.align_corners);
    const Span rows = touching(at[1], p.sizes[1], own.sizes[1], p.align_corners);
    const Span columns = touching(at[2], p.sizes[2], own.sizes[2], p.align_corners);
    const auto place_in = [&](int axis, int position) {  // in the patch of a tile that starts at `position`
        return at[axis] - between<T>(position, p.sizes[axis], own.sizes[axis], p.align_corners).low;
    };
    double sum = 0;
    for (int z = planes.first; z <= planes.last; ++z) {
        const Between<T> found = between<T>(z, p.sizes[0], own.sizes[0], p.align_corners);
        const T weight = found.low == at[0] ? 1 - found.share : found.low + 1 == at[0] ? found.share : T(0);
        if (weight == 0) continue;
        for (int down = rows.first / p.tile_height; down <= rows.last / p.tile_height; ++down) {
            const int row = place_in(1, down * p.tile_height);
            if (row < 0 || row >= own.patch_rows) continue;
            for (int across = columns.first / p.tile_width; across <= columns.last / p.tile_width; ++across) {
                const int column = place_in(2, across * p.tile_width);
                if (column < 0 || column >= own.patch_columns) continue;
                const int64_t tile = (int64_t(z) * p.tiles_down + down) * p.tiles_across + across;
                const int64_t entry = (int64_t(c) * own.patch_rows + row) * own.patch_columns + column;
                const int64_t patch = (int64_t(image) * p.tiles + tile) * p.patch_numbers + own.patch;
                sum += double(weight) * double(patches[patch + entry]);
            }
        }
    }
    return T(sum);
}

// One block is enough for a multiprocessor: left alone, ptxas keeps to 64 registers on sm_100 and spills 20 bytes.
template <class T>
__global__ void __launch_bounds__(COLUMNS * ROWS, 1)
    add_up_gradients_kernel(const __grid_constant__ Problem p, const __grid_constant__ Division d, const double* tables,
                            int64_t parameter_blocks, const __grid_constant__ ParameterGradients to, const T* patches) {
    if (blockIdx.x < parameter_blocks) {
        const int64_t column = int64_t(blockIdx.x) * COLUMNS + threadIdx.x % COLUMNS, columns = p.parameter_numbers();
        const double sum = sum_of_column(tables, d.blocks, columns, column);
        if (threadIdx.x < COLUMNS && column < columns) store_parameter(p, to, column, T(sum));
        return;
    }
    int64_t at = (blockIdx.x - parameter_blocks) * blockDim.x + threadIdx.x;
    for (int level = 0; level < p.levels; ++level) {
        const LevelOf& own = p.level[level];
        if (own.direct || !own.grad) continue;
        const int64_t count = p.numbers_of(own, d.images);
        if (at >= count) {
            at -= count;
            continue;
        }
        Place place;
        int64_t rest = at, stored = 0;
        for (int axis = 2; axis >= 0; --axis) {
            place.at[axis] = int(rest % own.sizes[axis]);
            rest /= own.sizes[axis];
            stored += place[axis] * own.grad_strides[DEPTH + axis];
        }
        const int c = int(rest % p.classes), image = int(rest / p.classes);
        stored += c * own.grad_strides[CHANNEL] + (d.first_image + image) * own.grad_strides[BATCH];
        return store_at<T>(p, own.grad, stored, sum_of_patches(p, own, patches, image, c, place));
    }
}

template <class Body>
void for_computed(DataType type, const Body& body) {
    if (type != DataType::float64) return body(float{});
#if !defined(PROSMA_FEW_TYPES)
    body(double{});
#else
    throw std::invalid_argument("this build has no float64");
#endif
}

template <class T>
size_t shared_bytes(const Problem& p) {
    Shared<T> shared;
    return size_t(shared.lay_out(p, nullptr));
}

Division divide_forward(const Problem& p) {
    const int64_t numbers = p.table_numbers() + p.classes + 2;
    return divide(p, p.batch, p.per_sample, FORWARD_WARPS, numbers * int64_t(sizeof(double)));
}

// Where the workspace of the forward is cut.
struct ForwardSpace {
    double* tables;
    int64_t* counts;
    size_t bytes;
    ForwardSpace(const Problem& p, const Division& d, void* memory) {
        Pieces pieces{static_cast<char*>(memory)};
        tables = pieces.take<double>(int64_t(d.groups) * d.blocks * p.table_numbers());
        counts = pieces.take<int64_t>(int64_t(d.groups) * d.blocks * (p.classes + 2));
        bytes = size_t(pieces.used);
    }
};

template <class T>
void forward(const MixingArguments& a, const OnDevice& device) {
    const Problem p = describe<T>(a, false);
    const Division d = divide_forward(p);
    const ForwardSpace space(p, d, a.workspace);
    const Grid warps = {unsigned(d.groups * d.blocks), WARP, shared_bytes<T>(p), device.stream()};
    if (p.batch)  // else the sums of no rows, which are 0
        launch("mixed_logit_statistics", statistics_kernel<T>, warps, p, d, space.tables, space.counts);
    Sums to = {};
    for (int kind = 0; kind < SUMS; ++kind) to.of[kind] = a.sums[kind];
    to.class_pixels = a.class_pixels;
    to.pixels = a.pixels;
    to.invalid = a.invalid;
    const int64_t blocks = ceil_div(p.table_numbers(), COLUMNS) + ceil_div(p.classes + 2, COLUMNS);
    const Grid grid = {unsigned(blocks * d.groups), COLUMNS * ROWS, 0, device.stream()};
    if (d.groups)
        launch("mixed_logit_statistics_add_up", add_up_sums_kernel<T>, grid, space.tables, space.counts, d.blocks, p.maps,
               p.classes, p.table_numbers(), to);
}

template <class T>
struct BackwardSpace {
    int images;  // at once
    Division division;
    double* tables;
    T* patches;
    size_t bytes;
    BackwardSpace(const Problem& p, void* memory) {
        const int64_t of_image = p.tiles * p.patch_numbers * int64_t(sizeof(T)) + 1, most = WORKSPACE_BYTES / of_image;
        images = int(most < p.batch ? most : p.batch);
        if (images < 1) images = 1;
        const int64_t table_bytes = p.parameter_numbers() * int64_t(sizeof(double));
        division = divide(p, images < p.batch ? images : p.batch, false, BACKWARD_WARPS, table_bytes);
        Pieces pieces{static_cast<char*>(memory)};
        tables = pieces.take<double>(division.blocks * p.parameter_numbers());
        patches = pieces.take<T>(images * p.tiles * p.patch_numbers);
        bytes = size_t(pieces.used);
    }
};

template <class T>
void backward(const MixingArguments& a, const OnDevice& device) {
    const Problem p = describe<T>(a, true);
    const BackwardSpace<T> space(p, a.workspace);
    const ParameterGradients to = {a.concat_weight_grad, a.concat_bias_grad, a.attention_weight_grad,
                                   a.attention_bias_grad};
    int first = 0;
    do {
        Division d = space.division;
        d.first_image = first;
        d.images = p.batch - first < space.images ? p.batch - first : space.images;
        d.tiles = int64_t(d.images) * p.tiles;
        const Grid warps = {unsigned(d.blocks), WARP, shared_bytes<T>(p), device.stream()};
        if (d.tiles)
            launch("mixed_logit_statistics_backward", gradient_kernel<T>, warps, p, d, space.tables, space.patches);
        int64_t elements = 0;
        for (int i = 0; i < p.levels; ++i)
            if (!p.level[i].direct && p.level[i].grad) elements += p.numbers_of(p.level[i], d.images);
        const bool last = first + d.images == p.batch;
        const int64_t of_parameters = last ? ceil_div(p.parameter_numbers(), COLUMNS) : 0;
        const int64_t blocks = of_parameters + ceil_div(elements, COLUMNS * ROWS);
        const Grid grid = {unsigned(blocks), COLUMNS * ROWS, 0, device.stream()};
        if (blocks)
            launch("mixed_logit_statistics_backward_add_up", add_up_gradients_kernel<T>, grid, p, d, space.tables,
                   of_parameters, to, space.patches);
        first += space.images;
    } while (first < p.batch);
}

}  // namespace

void mixed_logit_statistics_forward(const MixingArguments& a) {
    const OnDevice device(a.queue);
    for_computed(a.type, [&](auto zero) { forward<decltype(zero)>(a, device); });
}

void mixed_logit_statistics_backward(const MixingArguments& a) {
    const OnDevice device(a.queue);
    for_computed(a.type, [&](auto zero) { backward<decltype(zero)>(a, device); });
}

size_t mixed_logit_statistics_workspace(const MixingArguments& a, bool of_backward) {
    size_t bytes = 0;
    for_computed(a.type, [&](auto zero) {
        using T = decltype(zero);
        const Problem p = describe<T>(a, of_backward);
        bytes = of_backward ? BackwardSpace<T>(p, nullptr).bytes : ForwardSpace(p, divide_forward(p), nullptr).bytes;
    });
    return bytes;
}

}  // namespace prosma::cuda

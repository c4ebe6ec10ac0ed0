// How the work on an image or a volume is cut into items, and how an item's rows lie in scratch memory.
//
// An item is a band of rows, over a range of planes, of one image and one group of channels: one channel where vectors
// run along the width (contiguous tensors), a vector of channels where they run over channels (channels_last). What the
// items are depends on sizes alone, so that any number of threads gives the same sums. A band is worked through in
// tiles, as many rows as the cache holds; the forward has a band a tile.
#pragma once

#include "../proximal_gate.h"
#include "stencil.h"
#include "storage.h"

namespace prosma::PROSMA_LEVEL {

PROSMA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PROSMA_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
PROSMA_INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
PROSMA_INLINE int64_t round_up(int64_t a, int64_t b) { return ceiling(a, b) * b; }

// Images whose lanes are channels are worked on pixel by pixel where the weights of their taps fit the registers (pixels.h).
#if defined(PROSMA_AVX512)
constexpr bool HOLDS_ALL_TAPS = true;
#else
constexpr bool HOLDS_ALL_TAPS = false;
#endif
constexpr int MOST_HELD_DILATIONS = 3;

// A tile and its halos should stay in the second-level cache, and leave room there for what streams through. Pixel by
// pixel that is more: lines of other channels come along.
constexpr int64_t TILE_BYTES = 512 << 10, TILE_BYTES_OF_PIXELS = 256 << 10;
// A patch is a strip of rows by a chunk of vectors: 24 rows are 8 lines of dilation 3, 12 of 2 and 24 of 1, so that blocks
// of 8 and 6 fit exactly; 16 vectors of 30 rows are 34 KB with their neighbours (8 and 32 vectors were 5 % slower). Pixel
// by pixel, rows are taken one after another, and seven of 32 pixels are 17 KB.
constexpr int STRIP = MOST_BLOCKS;
constexpr int CHUNK = 16, CHUNK_OF_PIXELS = 32;
// Enough items that several threads find work. What two items share is computed twice, in volumes in two directions:
// there 16 items instead of 64, in bands instead of tiles, took the backward of 1x32x64^3 from 91 to 81 ms, and in
// channels_last from 143 to 118. In images longer bands lose more than they save: one group of channels wanders away
// from the rows whose cache lines' neighbours the next group would find. Pixel by pixel 32 items, with the smaller tile
// and the longer chunk, took the backward of 4x64x128^2 from 25.9 to 24.5 ms.
constexpr int64_t FEWEST_ITEMS_OF_IMAGES = 64, FEWEST_ITEMS_OF_PIXELS = 32, FEWEST_ITEMS_OF_VOLUMES = 16;
// Multiply-adds below which a second thread costs more than it saves (starting it takes about 5 us).
constexpr int64_t WORTH_A_THREAD = 1 << 19;

// The geometry of the work: how an image is cut into items, and how an item's rows lie in scratch memory.
template <class S>
struct Plan {
    using T = Compute<S>;
    static constexpr int L = LANES<T>;

    const GateArguments& a;
    Layout layout;
    int64_t groups, vectors;   // channel groups; vectors in a row
    int64_t step;              // scratch elements from a pixel to its right neighbour
    int64_t reach_rows, reach_planes, left, row_length;
    int taps_in_plane, taps, dilations;
    int64_t tile_rows, band_rows, bands, chunk_planes, depth_chunks, items;
    int64_t chunk;  // vectors of a patch

    Plan(const GateArguments& arguments, int halos, int planes_kept)
        : a(arguments), layout(arguments.field, arguments.sizes, L), groups(layout.groups), vectors(layout.vectors) {
        const int64_t height = a.sizes[HEIGHT];
        step = layout.over_channels ? L : 1;
        dilations = a.dilation_count;
        taps_in_plane = a.kernel_size * a.kernel_size;
        taps = dilations * a.kernel_depth * taps_in_plane;
        int64_t reach_columns = 0;
        reach_rows = reach_planes = 0;
        for (int m = 0; m < dilations; ++m) {
            reach_columns = larger(reach_columns, a.kernel_size / 2 * column_dilation(m));
            reach_rows = larger(reach_rows, a.kernel_size / 2 * row_dilation(m));
            reach_planes = larger(reach_planes, a.kernel_depth / 2 * a.dilations[m]);
        }
        left = round_up(reach_columns * step, L);
        // An odd number of vectors: rows a multiple of 4096 bytes apart would all fall into one set of the cache.
        row_length = left + vectors * L + left;
        if (row_length / L % 2 == 0) row_length += L;
        const int64_t ring = ring_planes();
        const int64_t row_bytes = row_length * int64_t(sizeof(T)) * ring * planes_kept;
        const int64_t fewest_rows = larger(MOST_ROWS, halos * 2 * reach_rows);
        const int64_t tile_bytes = holds_all_taps() ? TILE_BYTES_OF_PIXELS : TILE_BYTES;
        const int64_t cached_rows = larger(tile_bytes / larger(row_bytes, 1) - halos * 2 * reach_rows, fewest_rows);
        cut_for_threads();
        if (halos == 1) bands = larger(bands, ceiling(height, cached_rows));
        band_rows = larger(1, ceiling(height, bands));
        bands = ceiling(height, band_rows);
        tile_rows = ceiling(band_rows, ceiling(band_rows, cached_rows));
        items = a.sizes[BATCH] * groups * bands * depth_chunks;
        chunk = holds_all_taps() ? CHUNK_OF_PIXELS : CHUNK;
    }

    // Cuts images into as many bands and chunks of planes as it takes to have items enough, with the least in their halos.
    void cut_for_threads() {
        const int64_t height = a.sizes[HEIGHT], depth = a.sizes[DEPTH];
        const int64_t of_images = holds_all_taps() ? FEWEST_ITEMS_OF_PIXELS : FEWEST_ITEMS_OF_IMAGES;
        const int64_t fewest_items = depth > 1 ? FEWEST_ITEMS_OF_VOLUMES : of_images;
        const int64_t wanted = ceiling(fewest_items, larger(a.sizes[BATCH] * groups, 1));
        const int64_t most_bands = larger(1, height / larger(MOST_ROWS, 4 * reach_rows));
        const int64_t most_chunks = larger(1, depth / larger(4, 4 * reach_planes));
        int64_t best_parts = 0, least_work = 0;
        for (int64_t b = 1; b <= smaller(wanted, most_bands); ++b) {
            const int64_t c = smaller(ceiling(wanted, b), most_chunks), parts = smaller(b * c, wanted);
            const int64_t work = b * (ceiling(height, b) + 2 * reach_rows) * c * (ceiling(depth, c) + 2 * reach_planes);
            if (parts < best_parts || (parts == best_parts && work >= least_work)) continue;
            best_parts = parts;
            least_work = work;
            bands = b;
            chunk_planes = larger(1, ceiling(depth, c));
        }
        depth_chunks = ceiling(depth, chunk_planes);
    }

    // Where a dilation passes the image's size its outer taps read nothing but padding, at the size as well as beyond.
    int64_t column_dilation(int m) const { return smaller(a.dilations[m], a.sizes[WIDTH]); }
    int64_t row_dilation(int m) const { return smaller(a.dilations[m], a.sizes[HEIGHT]); }
    bool holds_all_taps() const {
        return HOLDS_ALL_TAPS && layout.over_channels && a.kernel_size == 3 && a.kernel_depth == 1 && dilations <= MOST_HELD_DILATIONS;
    }
    // Lanes of a row's last vector that are inside the row. (Lanes that stand for channels never meet.)
    int live_last() const { return layout.over_channels ? L : int(a.sizes[WIDTH] - (vectors - 1) * L); }
    int64_t parts() const { return bands * depth_chunks; }  // of one image and channel group
    int64_t ring_planes() const { return smaller(2 * reach_planes + 1, a.sizes[DEPTH]); }

    int threads() const {
        int64_t work = int64_t(taps);
        for (int axis = 0; axis < AXES; ++axis) work *= a.sizes[axis];
        return work < WORTH_A_THREAD ? 1 : a.threads;
    }

    Taps taps_of(int m, int kz, int64_t out_length) const {
        const bool skip_centre = m > 0 && kz == a.kernel_depth / 2;
        return {a.kernel_size, column_dilation(m) * step, row_dilation(m) * row_length, row_dilation(m) * out_length, skip_centre};
    }
};

// One item: which image, channels, rows and planes.
struct Item {
    int64_t batch, group, channel, first_row, end_row, first_plane, end_plane;
};

// The order of the items. Bands of one channel follow each other where they share halo rows; where lanes are channels the
// groups do, because they share cache lines' neighbours and memory pages.
template <class S>
int64_t number_of(const Plan<S>& plan, int64_t batch, int64_t group, int64_t part) {
    const int64_t parts = plan.parts();
    return plan.layout.over_channels ? (batch * parts + part) * plan.groups + group : (batch * plan.groups + group) * parts + part;
}

template <class S>
Item item_of(const Plan<S>& plan, int64_t number) {
    const int64_t parts = plan.parts(), in_image = number % (parts * plan.groups);
    const int64_t part = plan.layout.over_channels ? in_image / plan.groups : in_image % parts;
    const int64_t band = part % plan.bands, chunk = part / plan.bands;
    Item item;
    item.batch = number / (parts * plan.groups);
    item.group = plan.layout.over_channels ? in_image % plan.groups : in_image / parts;
    item.channel = plan.layout.first_channel(item.group);
    item.first_row = band * plan.band_rows;
    item.end_row = smaller(item.first_row + plan.band_rows, plan.a.sizes[HEIGHT]);
    item.first_plane = chunk * plan.chunk_planes;
    item.end_plane = smaller(item.first_plane + plan.chunk_planes, plan.a.sizes[DEPTH]);
    return item;
}

template <class S>
PROSMA_INLINE Rows<S> rows_of(const Plan<S>& plan, const Tensor& tensor, const Item& item, int64_t plane) {
    return plan.layout.template rows<S>(tensor, item.batch, item.channel, plane);
}

// A part of an item's plane whose sums, and the rows they are made of, stay in the first-level cache over all dilations.
struct Patch {
    int64_t plane, first_row, end_row, first_vector, vectors;
};

template <class S, class Visit>
PROSMA_INLINE void for_each_patch(const Plan<S>& plan, int64_t plane, int64_t first_row, int64_t end_row, const Visit& visit) {
    for (int64_t row = first_row; row < end_row; row += STRIP)
        for (int64_t vector = 0; vector < plan.vectors; vector += plan.chunk)
            visit(Patch{plane, row, smaller(row + STRIP, end_row), vector, smaller(plan.chunk, plan.vectors - vector)});
}

// A stack of planes of a tile in scratch memory, of which the last few are kept: plane z lies where z % planes says.
template <class S>
struct Ring {
    using T = Compute<S>;
    T* memory;
    int64_t planes, rows, row_length, left, first_row;  // first_row: the image row of the tile's first row, halo included

    T* row(int64_t plane, int64_t image_row) const {
        return memory + ((plane % planes) * rows + image_row - first_row) * row_length + left;
    }
    int64_t elements() const { return planes * rows * row_length; }
};

template <class T>
PROSMA_INLINE void clear(T* from, int64_t elements) {
    for (int64_t i = 0; i < elements; i += LANES<T>) store<T>(from + i, zero<T>());
}

template <class S>
void clear_rows(const Ring<S>& ring, int64_t plane, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) clear(ring.row(plane, row) - ring.left, ring.row_length);
}

}  // namespace prosma::PROSMA_LEVEL

// Dense products of small matrices from packed panels: C (rows x columns) = A (rows x depth) * B (depth x columns).
//
// A is packed into panels of TILE_ROWS rows and B into panels of TILE_COLUMNS columns; in a panel, what one step of
// the depth needs lies together, whatever the strides were. A panel of A times a panel of B is one tile of C, which
// stays in registers through the whole depth: with AVX-512, a step is 2 loads, 12 broadcasts and 24 multiply-adds.
// What then happens to a tile is the caller's: store it, add it to a matrix, or compare it while it is in registers.
//
// An element of C is the sum over the depth in order, wherever in a tile it stands: its bits do not depend on its
// neighbours.
#pragma once

#include "storage.h"

namespace prosma::PROSMA_LEVEL {

// 24 sums, 2 vectors and a broadcast number of AVX-512's 32 registers; 12, 2 and 1 of AVX2's 16; and of SSE2's 16 some
// are needed for the products, since it cannot multiply and add in one.
#if defined(PROSMA_AVX512)
constexpr int TILE_ROWS = 12;
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 6;
#else
constexpr int TILE_ROWS = 4;
#endif
constexpr int TILE_VECTORS = 2;
template <class T>
constexpr int TILE_COLUMNS = TILE_VECTORS * LANES<T>;

template <class T>
struct Tile {
    Vector<T> sums[TILE_ROWS][TILE_VECTORS];
};

template <int WIDTH>
constexpr int64_t panels_of(int64_t items) {
    return (items + WIDTH - 1) / WIDTH;
}

// Elements that `pack` writes.
template <int WIDTH>
constexpr int64_t packed_size(int64_t items, int64_t depth) {
    return panels_of<WIDTH>(items) * WIDTH * depth;
}

// Packs `items` rows of A (WIDTH = TILE_ROWS) or columns of B (WIDTH = TILE_COLUMNS): element k of item i, which is read
// from[i * item_step + k * depth_step], goes to panel i / WIDTH, place k * WIDTH + i % WIDTH. The last panel is filled up with
// zeros. `chosen`, unless null, numbers the items to take.
template <int WIDTH, class S>
void pack(const S* from, int64_t items, int64_t depth, int64_t item_step, int64_t depth_step, const int32_t* chosen,
          Compute<S>* to) {
    for (int64_t first = 0; first < items; first += WIDTH, to += WIDTH * depth) {
        const int live = items - first < WIDTH ? int(items - first) : WIDTH;
        if (item_step == 1 && !chosen) {
            for (int64_t k = 0; k < depth; ++k) {
                const S* source = from + first + k * depth_step;
                Compute<S>* place = to + k * WIDTH;
                if (live == WIDTH)
                    for (int i = 0; i < WIDTH; ++i) place[i] = widen(source[i]);
                else
                    for (int i = 0; i < WIDTH; ++i) place[i] = i < live ? widen(source[i]) : Compute<S>(0);
            }
            continue;
        }
        for (int i = 0; i < WIDTH; ++i) {
            if (i >= live) {
                for (int64_t k = 0; k < depth; ++k) to[k * WIDTH + i] = 0;
                continue;
            }
            const S* source = from + (chosen ? chosen[first + i] : first + i) * item_step;
            for (int64_t k = 0; k < depth; ++k) to[k * WIDTH + i] = widen(source[k * depth_step]);
        }
    }
}

// One panel of A times one panel of B.
template <class T>
PROSMA_INLINE Tile<T> tile_product(const T* rows, const T* columns, int64_t depth) {
    Tile<T> tile{};
    for (int64_t k = 0; k < depth; ++k, rows += TILE_ROWS, columns += TILE_COLUMNS<T>) {
        Vector<T> vectors[TILE_VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; ++v) vectors[v] = load<T>(columns + v * LANES<T>);
#pragma GCC unroll 12
        for (int r = 0; r < TILE_ROWS; ++r) {
            const Vector<T> factor = broadcast<T>(rows[r]);
#pragma GCC unroll 2
            for (int v = 0; v < TILE_VECTORS; ++v) tile.sums[r][v] += factor * vectors[v];
        }
    }
    return tile;
}

// Calls consume(row, column, value) for the vectors of a tile: `value` belongs to row `row` of it and to the LANES columns
// from `column` on.
template <class T, class Consume>
PROSMA_INLINE void for_each_vector_of(const Tile<T>& tile, const Consume& consume) {
#pragma GCC unroll 12
    for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < TILE_VECTORS; ++v) consume(r, v * LANES<T>, tile.sums[r][v]);
}

// C = A * B, or C += A * B, for all panels. C has rows of `row_step` elements and is touched only where `rows` and `columns`
// say that it exists. A is what should be small, a block of rows: it stays in the caches while the panels of B pass by once.
template <bool ADD, class T>
void multiply(const T* a, const T* b, int64_t rows, int64_t columns, int64_t depth, T* c, int64_t row_step) {
    for (int64_t j = 0; j < columns; j += TILE_COLUMNS<T>) {
        const T* panel = b + j * depth;
        for (int64_t i = 0; i < rows; i += TILE_ROWS) {
            const Tile<T> tile = tile_product<T>(a + i * depth, panel, depth);
            T* corner = c + i * row_step + j;
            if (rows - i >= TILE_ROWS && columns - j >= TILE_COLUMNS<T>) {
                for_each_vector_of<T>(tile, [&](int r, int column, Vector<T> value) {
                    T* to = corner + r * row_step + column;
                    store<T>(to, ADD ? load<T>(to) + value : value);
                });
                continue;
            }
            for_each_vector_of<T>(tile, [&](int r, int column, Vector<T> value) {
                if (r >= rows - i || column >= columns - j) return;
                const int64_t left = columns - j - column;
                const int live = left < LANES<T> ? int(left) : LANES<T>;
                T* to = corner + r * row_step + column;
                store_first<T>(to, ADD ? load_first<T>(to, live) + value : value, live);
            });
        }
    }
}

}  // namespace prosma::PROSMA_LEVEL

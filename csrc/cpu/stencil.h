// The two inner loops of a dilated depthwise convolution, on zero-padded rows in scratch memory.
//
// A block is ROWS output rows that lie `dilation` apart: y, y + d, y + 2d, ... Their taps read the rows between
// y - d and y + ROWS * d of the same residue only, so each loaded vector serves up to three outputs and each weight
// stays in its register: 72 multiply-adds for 30 loads at ROWS = 8, where a loop over taps would need 72 loads. What
// counts is loads that straddle a cache line: they cost two, and all horizontal taps do.
//
// The same code serves both layouts. Where lanes run along the width, a horizontal tap is a shift by `dilation`
// elements; where they run over channels, by `dilation` whole vectors. Weights come as whole vectors either way.
#pragma once

#include "vector.h"

namespace prosma::PROSMA_LEVEL {

constexpr int MOST_ROWS = 8;
constexpr int MOST_BLOCKS = 24;  // the rows of a strip: even of one row each, no more blocks are needed

struct Taps {
    int size;          // taps in a direction: 1, 3, 5, ...
    int64_t shift;     // elements between horizontal neighbours
    int64_t row_step;  // elements between vertical neighbours, and between a block's rows: dilation * length of a row
    int64_t out_step;  // the same in the sums or the gradient
    bool skip_centre;  // the centre tap of this kernel has been folded into another's
};

// What a kernel does to the sums: the first of a stencil starts them, the others add to them, most without their centre.
enum Part { FIRST, WHOLE, RIM };

// Hides from the compiler where a pointer came from. Otherwise it keeps an address a load (thirty of them, in memory for
// lack of registers) instead of adding a row step: 180 extra instructions on a block's 136 multiply-adds.
template <class T>
PROSMA_INLINE void forget_origin(T*& pointer) {
    asm("" : "+r"(pointer));
}

// A vector and its neighbours `shift` elements to the left and right. Where the shift is shorter than a vector they are
// cut out of three aligned loads; where it is a whole number of vectors, plain loads are aligned anyway.
template <class T, bool WINDOWED>
struct Neighbourhood {
    int64_t shift;
    Mask<T> left_lanes, right_lanes;

    explicit Neighbourhood(int64_t elements) : shift(elements) {
        left_lanes = lane_numbers<T>() + int(LANES<T> - shift);
        right_lanes = lane_numbers<T>() + int(shift);
    }

    PROSMA_INLINE void load_three(const T* from, Vector<T>* values) const {
        if constexpr (WINDOWED) {
            const Vector<T> before = load<T>(from - LANES<T>), here = load<T>(from), after = load<T>(from + LANES<T>);
            values[0] = window(before, here, left_lanes);
            values[1] = here;
            values[2] = window(here, after, right_lanes);
        } else {
            values[0] = load<T>(from - shift);
            values[1] = load<T>(from);
            values[2] = load<T>(from + shift);
        }
    }
};

// What is done besides the stencil, a little at a time, so that memory and arithmetic do not take turns: memory is asked
// for rows that will be read soon, and rows whose sums are complete are finished and written.
struct Meanwhile {
    struct Wanted {
        const char* start;
        int64_t step;  // bytes between vectors
    };
    static constexpr int MOST_WANTED = 4 * MOST_BLOCKS;
    Wanted wanted[MOST_WANTED];
    int count = 0, current = 0, at_once = 0;

    void (*finish)(const void* context, int64_t row) = nullptr;
    const void* context = nullptr;
    int64_t row = 0, end_row = 0, finished_at_once = 0;

    // Spreads what there is to do over so many steps.
    void spread(int64_t steps) {
        at_once = int((count + steps - 1) / steps);
        finished_at_once = (end_row - row + steps - 1) / steps;
    }

    // Asks for one vector of each of the rows whose turn it is. Called once a vector of the stencil: asked for in one go,
    // they would keep its own loads waiting (channels_last: backward 11.2 ms instead of 9.2).
    PROSMA_INLINE void fetch(int64_t v) const {
        const int end = current + at_once < count ? current + at_once : count;
        for (int i = current; i < end; ++i) __builtin_prefetch(wanted[i].start + v * wanted[i].step, 0, 2);
    }

    // To the next rows, after every block.
    __attribute__((noinline)) void step() {
        current = current + at_once < count ? current + at_once : count;
        for (int64_t budget = finished_at_once; budget > 0 && row < end_row; --budget) finish(context, row++);
    }

    void complete() {
        while (row < end_row) finish(context, row++);
    }
};

// out[row] += the kernel over `in` (= start + the kernel, in the FIRST part), for ROWS rows and `vectors` vectors of each.
// `in` points at the centre tap of out's first row.
template <class T, int ROWS, Part PART, bool WINDOWED>
PROSMA_INLINE void convolve_block(const T* in, T* out, const Vector<T>* weight, Vector<T> start, const Taps& taps, int vectors,
                                  const Meanwhile& meanwhile) {
    constexpr int L = LANES<T>;
    const Neighbourhood<T, WINDOWED> neighbourhood(taps.shift);
    const int64_t row_step = taps.row_step, out_step = taps.out_step;
    Vector<T> kernel[3][3];
    for (int tap = 0; tap < 9; ++tap) kernel[tap / 3][tap % 3] = weight[tap];
    in -= row_step;
    for (int v = 0; v < vectors; ++v, in += L, out += L) {
        meanwhile.fetch(v);
        Vector<T> sums[ROWS];
        T* to = out;
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row, to += out_step, forget_origin(to)) sums[row] = PART == FIRST ? start : load<T>(to);
        const T* from = in;
#pragma GCC unroll 16
        for (int source = 0; source < ROWS + 2; ++source, from += row_step, forget_origin(from)) {
            Vector<T> values[3];
            neighbourhood.load_three(from, values);
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx)
#pragma GCC unroll 3
                for (int ky = 0; ky < 3; ++ky) {
                    const int row = source - ky;
                    if (row < 0 || row >= ROWS || (PART == RIM && kx == 1 && ky == 1)) continue;
                    sums[row] += kernel[ky][kx] * values[kx];
                }
        }
        to = out;
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row, to += out_step, forget_origin(to)) store<T>(to, sums[row]);
    }
}

// One vector of each of ROWS rows: sums[tap] += gradient * in shifted by the tap. MASKED leaves out the lanes beyond the
// row's end: the gradient is 0 there, but what a shift brings in from the row may be NaN or Inf, and 0 * NaN is NaN.
template <class T, int ROWS, bool SKIP_CENTRE, bool WINDOWED, bool MASKED>
PROSMA_INLINE void correlate_column(const T* in, const T* gradient, Vector<T> (*sums)[3],
                                    const Neighbourhood<T, WINDOWED>& neighbourhood, const Taps& taps, int live) {
    const int64_t row_step = taps.row_step, gradient_step = taps.out_step;
    Vector<T> gradients[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row, gradient += gradient_step, forget_origin(gradient)) gradients[row] = load<T>(gradient);
#pragma GCC unroll 16
    for (int source = 0; source < ROWS + 2; ++source, in += row_step, forget_origin(in)) {
        Vector<T> values[3];
        neighbourhood.load_three(in, values);
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
            if (MASKED) values[kx] = keep_first<T>(values[kx], live);
#pragma GCC unroll 3
            for (int ky = 0; ky < 3; ++ky) {
                const int row = source - ky;
                if (row < 0 || row >= ROWS || (SKIP_CENTRE && kx == 1 && ky == 1)) continue;
                sums[ky][kx] += gradients[row] * values[kx];
            }
        }
    }
}

// weight_sums[tap] += the same over `vectors` vectors, of which the last has `live_last` lanes: the gradient of the
// weights, a vector a tap.
template <class T, int ROWS, bool SKIP_CENTRE, bool WINDOWED>
PROSMA_INLINE void correlate_block(const T* in, const T* gradient, Vector<T>* weight_sums, const Taps& taps, int vectors, int live_last,
                                   const Meanwhile& meanwhile) {
    constexpr int L = LANES<T>;
    const Neighbourhood<T, WINDOWED> neighbourhood(taps.shift);
    const int whole = live_last == L ? vectors : vectors - 1;
    Vector<T> sums[3][3] = {};
    in -= taps.row_step;
    for (int v = 0; v < whole; ++v, in += L, gradient += L) {
        meanwhile.fetch(v);
        correlate_column<T, ROWS, SKIP_CENTRE, WINDOWED, false>(in, gradient, sums, neighbourhood, taps, L);
    }
    if (whole < vectors)
        correlate_column<T, ROWS, SKIP_CENTRE, WINDOWED, true>(in, gradient, sums, neighbourhood, taps, live_last);
    for (int tap = 0; tap < 9; ++tap) weight_sums[tap] += sums[tap / 3][tap % 3];
}

// Sizes beyond 3 have more weights than there are registers. There the taps are taken eight at a time - k * k - 1, the
// taps without the centre, is always a multiple of eight - and the centre by itself.
constexpr int TAPS_AT_ONCE = 8;

PROSMA_INLINE void offsets_of(const Taps& taps, int first, int count, int64_t* offsets, int* numbers) {
    const int centre = taps.size * taps.size / 2, reach = taps.size / 2;
    for (int i = 0; i < count; ++i) {
        const int tap = count == 1 ? centre : first + i + (first + i >= centre);
        numbers[i] = tap;
        offsets[i] = (tap / taps.size - reach) * taps.row_step + (tap % taps.size - reach) * taps.shift;
    }
}

template <class T, int COUNT>
PROSMA_INLINE void convolve_taps(const T* in, T* out, const Vector<T>* weight, const Taps& taps, int first, int rows, int vectors) {
    int64_t offsets[COUNT];
    int numbers[COUNT];
    offsets_of(taps, first, COUNT, offsets, numbers);
    Vector<T> kernel[COUNT];
    for (int i = 0; i < COUNT; ++i) kernel[i] = weight[numbers[i]];
    for (int row = 0; row < rows; ++row)
        for (int v = 0; v < vectors; ++v) {
            const T* from = in + row * taps.row_step + v * LANES<T>;
            T* to = out + row * taps.out_step + v * LANES<T>;
            Vector<T> sums[2] = {load<T>(to), zero<T>()};  // two chains of additions hide half of their latency
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) sums[i % 2] += kernel[i] * load<T>(from + offsets[i]);
            store<T>(to, COUNT > 1 ? sums[0] + sums[1] : sums[0]);
        }
}

template <class T, int COUNT>
PROSMA_INLINE void correlate_taps(const T* in, const T* gradient, Vector<T>* weight_sums, const Taps& taps, int first, int rows,
                                  int vectors, int live_last) {
    int64_t offsets[COUNT];
    int numbers[COUNT];
    offsets_of(taps, first, COUNT, offsets, numbers);
    Vector<T> sums[COUNT] = {};
    for (int row = 0; row < rows; ++row)
        for (int v = 0; v < vectors; ++v) {
            const T* from = in + row * taps.row_step + v * LANES<T>;
            const Vector<T> value = load<T>(gradient + row * taps.out_step + v * LANES<T>);
            if (v + 1 == vectors && live_last != LANES<T>) {
                for (int i = 0; i < COUNT; ++i) sums[i] += value * keep_first<T>(load<T>(from + offsets[i]), live_last);
                continue;
            }
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; ++i) sums[i] += value * load<T>(from + offsets[i]);
        }
    for (int i = 0; i < COUNT; ++i) weight_sums[numbers[i]] += sums[i];
}

template <class T>
__attribute__((noinline)) void convolve_any_rows(const T* in, T* out, const Vector<T>* weight, const Taps& taps, int rows, int vectors) {
    for (int first = 0; first < taps.size * taps.size - 1; first += TAPS_AT_ONCE)
        convolve_taps<T, TAPS_AT_ONCE>(in, out, weight, taps, first, rows, vectors);
    if (!taps.skip_centre) convolve_taps<T, 1>(in, out, weight, taps, 0, rows, vectors);
}

template <class T>
__attribute__((noinline)) void correlate_any_rows(const T* in, const T* gradient, Vector<T>* sums, const Taps& taps, int rows, int vectors,
                                                  int live_last) {
    for (int first = 0; first < taps.size * taps.size - 1; first += TAPS_AT_ONCE)
        correlate_taps<T, TAPS_AT_ONCE>(in, gradient, sums, taps, first, rows, vectors, live_last);
    if (!taps.skip_centre) correlate_taps<T, 1>(in, gradient, sums, taps, 0, rows, vectors, live_last);
}

// How a strip of rows is cut into blocks of one dilation: residue by residue, in blocks of nearly equal height.

struct Blocks {
    int rows = 0;             // of the strip
    int count[MOST_ROWS + 1]; // blocks of each height
    int first_row[MOST_ROWS + 1][MOST_BLOCKS];

    void cut(int strip_rows, int64_t dilation) {
        if (rows == strip_rows) return;
        rows = strip_rows;
        for (int height = 1; height <= MOST_ROWS; ++height) count[height] = 0;
        for (int residue = 0; residue < dilation && residue < rows; ++residue) {
            const int lines = int((rows - residue + dilation - 1) / dilation);
            const int blocks = (lines + MOST_ROWS - 1) / MOST_ROWS;
            for (int b = 0, done = 0; b < blocks; ++b) {
                const int height = (lines - done) / (blocks - b);
                first_row[height][count[height]++] = residue + done * int(dilation);
                done += height;
            }
        }
    }
};

// All blocks of one height in one call, so that weights are loaded once and the strip's overhead is small.
template <class T>
struct Strip {
    const T* in;
    T* out;              // sums, or in a correlation the gradient (read only)
    Vector<T>* weights;  // or the sums of their gradients
    const Vector<T>* start;  // what the FIRST part of a stencil starts the sums with, null in the others
    Taps taps;
    int vectors;
    int live_last;  // lanes of the last of these vectors that are inside the row
    int64_t row_length, out_length;
};

template <class T, int ROWS, Part PART, bool WINDOWED>
__attribute__((noinline)) void convolve_blocks(const Strip<T>& strip, const int* first_row, int count, Meanwhile& meanwhile) {
    const Vector<T> start = PART == FIRST ? *strip.start : zero<T>();
    for (int block = 0; block < count; ++block) {
        const T* in = strip.in + first_row[block] * strip.row_length;
        T* out = strip.out + first_row[block] * strip.out_length;
        convolve_block<T, ROWS, PART, WINDOWED>(in, out, strip.weights, start, strip.taps, strip.vectors, meanwhile);
        meanwhile.step();
    }
}

template <class T, int ROWS, bool SKIP_CENTRE, bool WINDOWED>
__attribute__((noinline)) void correlate_blocks(const Strip<T>& strip, const int* first_row, int count, Meanwhile& meanwhile) {
    for (int block = 0; block < count; ++block) {
        const T* in = strip.in + first_row[block] * strip.row_length;
        T* out = strip.out + first_row[block] * strip.out_length;
        correlate_block<T, ROWS, SKIP_CENTRE, WINDOWED>(in, out, strip.weights, strip.taps, strip.vectors,
                                                        strip.live_last, meanwhile);
        meanwhile.step();
    }
}

template <class T, int ROWS>
void convolve_any_blocks(const Strip<T>& strip, const int* first_row, int count, Meanwhile& meanwhile) {
    for (int block = 0; block < count; ++block) {
        const T* in = strip.in + first_row[block] * strip.row_length;
        T* out = strip.out + first_row[block] * strip.out_length;
        for (int row = 0; strip.start && row < ROWS; ++row)
            for (int v = 0; v < strip.vectors; ++v) store<T>(out + row * strip.taps.out_step + v * LANES<T>, *strip.start);
        for (int v = 0; v < strip.vectors; ++v) meanwhile.fetch(v);
        convolve_any_rows<T>(in, out, strip.weights, strip.taps, ROWS, strip.vectors);
        meanwhile.step();
    }
}

template <class T, int ROWS>
void correlate_any_blocks(const Strip<T>& strip, const int* first_row, int count, Meanwhile& meanwhile) {
    for (int block = 0; block < count; ++block) {
        const T* in = strip.in + first_row[block] * strip.row_length;
        T* out = strip.out + first_row[block] * strip.out_length;
        for (int v = 0; v < strip.vectors; ++v) meanwhile.fetch(v);
        correlate_any_rows<T>(in, out, strip.weights, strip.taps, ROWS, strip.vectors, strip.live_last);
        meanwhile.step();
    }
}

// Which of the forms above serves these taps.
template <class T, int ROWS, bool WINDOWED>
auto convolution(const Strip<T>& strip) {
    if (strip.taps.size != 3) return &convolve_any_blocks<T, ROWS>;
    if (strip.start) return &convolve_blocks<T, ROWS, FIRST, WINDOWED>;
    return strip.taps.skip_centre ? &convolve_blocks<T, ROWS, RIM, WINDOWED> : &convolve_blocks<T, ROWS, WHOLE, WINDOWED>;
}

template <class T, int ROWS, bool WINDOWED>
auto correlation(const Strip<T>& strip) {
    if (strip.taps.size != 3) return &correlate_any_blocks<T, ROWS>;
    return strip.taps.skip_centre ? &correlate_blocks<T, ROWS, true, WINDOWED> : &correlate_blocks<T, ROWS, false, WINDOWED>;
}

template <class T, int ROWS>
void convolve_height(const Strip<T>& strip, const Blocks& blocks, Meanwhile& meanwhile) {
    if (!blocks.count[ROWS]) return;
    const bool windowed = HAS_WINDOWS && strip.taps.shift < LANES<T>;
    const auto run = windowed ? convolution<T, ROWS, HAS_WINDOWS>(strip) : convolution<T, ROWS, false>(strip);
    run(strip, blocks.first_row[ROWS], blocks.count[ROWS], meanwhile);
}

template <class T, int ROWS>
void correlate_height(const Strip<T>& strip, const Blocks& blocks, Meanwhile& meanwhile) {
    if (!blocks.count[ROWS]) return;
    const bool windowed = HAS_WINDOWS && strip.taps.shift < LANES<T>;
    const auto run = windowed ? correlation<T, ROWS, HAS_WINDOWS>(strip) : correlation<T, ROWS, false>(strip);
    run(strip, blocks.first_row[ROWS], blocks.count[ROWS], meanwhile);
}

template <class T, int ROWS = MOST_ROWS>
void convolve(const Strip<T>& strip, const Blocks& blocks, Meanwhile& meanwhile) {
    convolve_height<T, ROWS>(strip, blocks, meanwhile);
    if constexpr (ROWS > 1) convolve<T, ROWS - 1>(strip, blocks, meanwhile);
}

template <class T, int ROWS = MOST_ROWS>
void correlate(const Strip<T>& strip, const Blocks& blocks, Meanwhile& meanwhile) {
    correlate_height<T, ROWS>(strip, blocks, meanwhile);
    if constexpr (ROWS > 1) correlate<T, ROWS - 1>(strip, blocks, meanwhile);
}

}  // namespace prosma::PROSMA_LEVEL

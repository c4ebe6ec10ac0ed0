// The stencil on images whose lanes are channels, all taps of an output summed in registers, and the forward pass made of it.
//
// There each tap is one aligned vector of the field and one vector of weights. With the weights of up to three dilations
// of 3 x 3 in 25 of AVX-512's 32 registers, four neighbouring outputs take one load a multiply-add, which a processor
// does as fast as the multiply-adds themselves, and no sums go to memory between one dilation and the next.
//
// In the forward a strip of rows moves down a band of the image: of many channels at once, so that memory is read as it lies (a vector
// of channels by itself is 64 bytes of every pixel, and what the processor fetches beside them on its own is wasted).
// The rows above the strip stay in a ring, so that each is copied once.
#pragma once

#include "gate_channels.h"
#include "parallel.h"

namespace prosma::PROSMA_LEVEL {

constexpr int64_t STRIP_ROWS = 8;
// Enough bands that several threads find work, long enough that the copies of their halos are few.
constexpr int64_t FEWEST_BANDS = 16;
// Channel groups that a strip takes at once: at 16 channels a group, 512 bytes of every pixel.
constexpr int64_t MOST_GROUPS = 8;
// Pixels of a row that are summed before the next row's: 22 of 14 rows, with their neighbours, are 20 KB.
constexpr int64_t PIXELS_AT_ONCE = 16;
constexpr int NEIGHBOURS = 4;
constexpr int64_t LINE_BYTES = 64;

// Tells the compiler nothing of where a value came from, so that it keeps it instead of loading it again.
template <class T>
PROSMA_INLINE void hold([[maybe_unused]] Vector<T>& value) {
#if defined(PROSMA_AVX512)
    asm("" : "+v"(value));
#endif
}

template <int VALUE>
struct Count {
    static constexpr int value = VALUE;
};

// The rows that one dilation's kernel reads around an output row, and how far apart its columns are.
template <class T>
struct KernelRows {
    const T* rows[3];
    int64_t shift;
};

// sums[i] = start + all taps around pixel `column + i`. The centres of all kernels are the first one's.
template <class T, int DILATIONS, int COUNT>
PROSMA_INLINE void sum_taps(const KernelRows<T>* kernels, const Vector<T>* weights, Vector<T> start, int64_t column, Vector<T>* sums) {
    constexpr int L = LANES<T>;
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) sums[i] = start;
#pragma GCC unroll 3
    for (int m = 0; m < DILATIONS; ++m)
#pragma GCC unroll 3
        for (int ky = 0; ky < 3; ++ky)
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; ++kx) {
                if (m > 0 && ky == 1 && kx == 1) continue;
                const T* from = kernels[m].rows[ky] + column * L + (kx - 1) * kernels[m].shift;
                forget_origin(from);
#pragma GCC unroll 4
                for (int i = 0; i < COUNT; ++i) sums[i] += weights[m * 9 + ky * 3 + kx] * load<T>(from + i * L);
            }
}

// The weights, in registers. The centres of all kernels but the first are never asked for.
template <class T, int DILATIONS>
struct HeldWeights {
    Vector<T> taps[DILATIONS * 9];

    PROSMA_INLINE explicit HeldWeights(const Vector<T>* weights) {
        for (int tap = 0; tap < DILATIONS * 9; ++tap) {
            taps[tap] = weights[tap];
            if (tap < 9 || tap % 9 != 4) hold<T>(taps[tap]);
        }
    }
};

// out = start + the stencil over a patch of rows that lie one after another. `in` and `out` point at its first pixel.
template <class S, int DILATIONS>
__attribute__((noinline)) void convolve_pixels(const Plan<S>& plan, const Compute<S>* in, Compute<S>* out, int64_t out_length,
                                               const Patch& patch, const Vector<Compute<S>>* weights, Vector<Compute<S>> start,
                                               Meanwhile& meanwhile) {
    using T = Compute<S>;
    constexpr int L = LANES<T>;
    const HeldWeights<T, DILATIONS> held(weights);
    for (int64_t row = patch.first_row; row < patch.end_row; ++row, in += plan.row_length, out += out_length) {
        KernelRows<T> kernels[DILATIONS];
        for (int m = 0; m < DILATIONS; ++m) {
            kernels[m].shift = plan.column_dilation(m) * L;
            for (int ky = 0; ky < 3; ++ky) kernels[m].rows[ky] = in + (ky - 1) * plan.row_dilation(m) * plan.row_length;
        }
        const auto sum = [&](auto count, int64_t column) {
            Vector<T> sums[count.value];
            sum_taps<T, DILATIONS, count.value>(kernels, held.taps, start, column, sums);
            for (int i = 0; i < count.value; ++i) {
                meanwhile.fetch(column + i);
                store<T>(out + (column + i) * L, sums[i]);
            }
        };
        int64_t column = 0;
        for (; column + NEIGHBOURS <= patch.vectors; column += NEIGHBOURS) sum(Count<NEIGHBOURS>{}, column);
        for (; column < patch.vectors; ++column) sum(Count<1>{}, column);
        meanwhile.step();
    }
}

template <class S>
void convolve_pixels(const Plan<S>& plan, const Ring<S>& ring, Compute<S>* out, int64_t out_length, const Patch& patch,
                     const Vector<Compute<S>>* weights, Vector<Compute<S>> start, Meanwhile& meanwhile) {
    const Compute<S>* in = ring.row(patch.plane, patch.first_row) + patch.first_vector * Plan<S>::L;
    meanwhile.spread(patch.end_row - patch.first_row);
    switch (plan.dilations) {
        case 1: convolve_pixels<S, 1>(plan, in, out, out_length, patch, weights, start, meanwhile); break;
        case 2: convolve_pixels<S, 2>(plan, in, out, out_length, patch, weights, start, meanwhile); break;
        default: convolve_pixels<S, 3>(plan, in, out, out_length, patch, weights, start, meanwhile);
    }
    meanwhile.complete();
}

// How images are cut: into bands of rows, and sets of channel groups that are worked on together.
template <class S>
struct PixelPlan {
    using T = Compute<S>;

    const Plan<S>& plan;
    int64_t slots;  // rows in the ring, and one of zeros: what lies above and below the image
    int64_t group_length, set_groups, sets, band_rows, bands, items;

    explicit PixelPlan(const Plan<S>& whole) : plan(whole), slots(STRIP_ROWS + 2 * whole.reach_rows + 1) {
        const int64_t batch = plan.a.sizes[BATCH], height = plan.a.sizes[HEIGHT];
        group_length = slots * plan.row_length;
        set_groups = larger(1, smaller(TILE_BYTES / group_bytes(), smaller(plan.groups, MOST_GROUPS)));
        sets = ceiling(plan.groups, set_groups);
        set_groups = ceiling(plan.groups, sets);
        bands = smaller(ceiling(FEWEST_BANDS, larger(1, batch * sets)), height / larger(STRIP_ROWS, 4 * plan.reach_rows));
        band_rows = round_up(ceiling(height, larger(1, bands)), STRIP_ROWS);
        bands = ceiling(height, band_rows);
        items = batch * sets * bands;
    }

    int64_t group_bytes() const { return group_length * int64_t(sizeof(T)); }

    bool serves() const { return plan.holds_all_taps() && group_bytes() <= TILE_BYTES; }

    size_t scratch() const {
        return size_t(set_groups) * (size_t(plan.taps) * VECTOR_BYTES + size_t(group_bytes())) + size_t(slots) * sizeof(int64_t);
    }
};

// Asks memory for the pixels of rows that will be read soon, a few cache lines at a time.
struct Ahead {
    const char* next_row = nullptr;
    int64_t row_step = 0, pixel_step = 0, lines = 0, pixels = 0, rows = 0;  // steps in bytes; lines of a pixel
    const char* at = nullptr;
    int64_t line = 0, pixel = 0;

    void begin_row() {
        at = next_row;
        next_row += row_step;
        line = pixel = 0;
    }

    PROSMA_INLINE void fetch(int count) {
        for (; count > 0 && rows > 0; --count) {
            __builtin_prefetch(at + line * LINE_BYTES, 0, 2);
            if (++line < lines) continue;
            line = 0;
            at += pixel_step;
            if (++pixel < pixels) continue;
            --rows;
            begin_row();
        }
    }
};

// A band of rows of a set of channel groups.
template <class S, Activation ACTIVATION, int DILATIONS>
class PixelItem {
    using T = Compute<S>;
    static constexpr int L = LANES<T>;

    const PixelPlan<S>& cut;
    const Plan<S>& plan = cut.plan;
    const GateArguments& a = plan.a;
    const bool streaming;
    Item item;  // of the set's first group
    int64_t groups;
    Vector<T>* weights;
    T* ring;
    int64_t* offsets;  // where the rows around a strip are in a group's ring
    Ahead field_ahead, skip_ahead;

public:
    PixelItem(const PixelPlan<S>& cut_, int64_t number, void* scratch, bool streaming_) : cut(cut_), streaming(streaming_) {
        const int64_t band = number % cut.bands;
        item.batch = number / (cut.bands * cut.sets);
        item.group = number / cut.bands % cut.sets * cut.set_groups;
        item.first_plane = 0;
        item.end_plane = 1;
        item.first_row = band * cut.band_rows;
        item.end_row = smaller(item.first_row + cut.band_rows, a.sizes[HEIGHT]);
        groups = smaller(cut.set_groups, plan.groups - item.group);
        weights = static_cast<Vector<T>*>(scratch);
        ring = reinterpret_cast<T*>(weights + cut.set_groups * plan.taps);
        offsets = reinterpret_cast<int64_t*>(ring + cut.set_groups * cut.group_length);
        for (int64_t g = 0; g < groups; ++g) prepare_group(g);
    }

    void run() {
        const int64_t height = a.sizes[HEIGHT];
        int64_t taken = larger(0, item.first_row - plan.reach_rows);
        for (int64_t first = item.first_row; first < item.end_row; first += STRIP_ROWS) {
            const int64_t end = smaller(first + STRIP_ROWS, item.end_row);
            for (; taken < smaller(height, end + plan.reach_rows); ++taken) take_row(taken);
            for (int64_t i = 0; i < cut.slots - 1; ++i) offsets[i] = offset_of(first - plan.reach_rows + i);
            field_ahead = rows_ahead(a.field, taken);
            skip_ahead = rows_ahead(a.skip, end);
            for (int64_t g = 0; g < groups; ++g) sum_group(g, first, end);
        }
        if (streaming) finish_streaming();
    }

private:
    Item of_group(int64_t g) const {
        Item one = item;
        one.group += g;
        one.channel = plan.layout.first_channel(one.group);
        return one;
    }

    int64_t offset_of(int64_t row) const {
        const bool inside = row >= 0 && row < a.sizes[HEIGHT];
        return (inside ? row % (cut.slots - 1) : cut.slots - 1) * plan.row_length + plan.left;
    }

    // Rows are written between the zeros to their left and right, which therefore last.
    void prepare_group(int64_t g) {
        take_weights(plan, of_group(g), false, weights + g * plan.taps);
        T* row = ring + g * cut.group_length;
        for (int64_t slot = 0; slot < cut.slots; ++slot, row += plan.row_length) {
            clear(row, slot + 1 < cut.slots ? plan.left : plan.row_length);
            clear(row + plan.left + plan.vectors * L, plan.left);
        }
    }

    // Copies one row of all channel groups, pixel by pixel as they lie in memory.
    void take_row(int64_t row) {
        Row<S> from[MOST_GROUPS];
        bool whole = true;
        for (int64_t g = 0; g < groups; ++g) {
            from[g] = rows_of(plan, a.field, of_group(g), 0)[row];
            whole = whole && from[g].whole == plan.vectors;
        }
        T* to = ring + offset_of(row);
        for_each_vector(0, plan.vectors, whole ? plan.vectors : 0, [&](int64_t v, auto all_whole) {
            for (int64_t g = 0; g < groups; ++g)
                store(to + g * cut.group_length + v * L, from[g].template read<all_whole.value>(v));
        });
    }

    // The strip of rows that a tensor is read of next.
    Ahead rows_ahead(const Tensor& tensor, int64_t first_row) const {
        Ahead ahead;
        if (!tensor.data) return ahead;
        const Rows<S> rows = rows_of(plan, tensor, of_group(0), 0);
        ahead.next_row = reinterpret_cast<const char*>(rows[first_row].start);
        ahead.row_step = rows.row_stride * int64_t(sizeof(S));
        ahead.pixel_step = rows.first.vector_stride * int64_t(sizeof(S));
        ahead.lines = ceiling(groups * L * int64_t(sizeof(S)), LINE_BYTES);
        ahead.pixels = plan.vectors;
        ahead.rows = larger(0, smaller(STRIP_ROWS, a.sizes[HEIGHT] - first_row));
        ahead.begin_row();
        return ahead;
    }

    __attribute__((noinline)) void sum_group(int64_t g, int64_t first, int64_t end) {
        const Item own = of_group(g);
        const ChannelFactors<S> factors(plan, own);
        const Rows<S> outs = rows_of(plan, a.out, own, 0), skips = a.skip.data ? rows_of(plan, a.skip, own, 0) : outs;
        const HeldWeights<T, DILATIONS> held(weights + g * plan.taps);
        for (int64_t column = 0; column < plan.vectors; column += PIXELS_AT_ONCE)
            for (int64_t row = first; row < end; ++row) {
                KernelRows<T> kernels[DILATIONS];
                find_rows(g, row - first, kernels);
                const Row<S> out = outs[row], skip = skips[row];
                const int64_t end_column = smaller(plan.vectors, column + PIXELS_AT_ONCE);
                const int64_t end_whole = least(end_column, out.whole, a.skip.data ? skip.whole : end_column);
                int64_t v = column;
                for (; v + NEIGHBOURS <= end_whole; v += NEIGHBOURS)
                    write_pixels<NEIGHBOURS, true>(kernels, held.taps, factors, out, skip, v);
                for (; v < end_column; ++v) write_pixels<1, false>(kernels, held.taps, factors, out, skip, v);
            }
    }

    void find_rows(int64_t g, int64_t strip_row, KernelRows<T>* kernels) const {
        const T* memory = ring + g * cut.group_length;
        for (int m = 0; m < DILATIONS; ++m) {
            for (int ky = 0; ky < 3; ++ky)
                kernels[m].rows[ky] = memory + offsets[plan.reach_rows + strip_row + (ky - 1) * plan.row_dilation(m)];
            kernels[m].shift = plan.column_dilation(m) * L;
        }
    }

    template <int COUNT, bool WHOLE>
    PROSMA_INLINE void write_pixels(const KernelRows<T>* kernels, const Vector<T>* held, const ChannelFactors<S>& factors,
                                    const Row<S>& out, const Row<S>& skip, int64_t column) {
        Vector<T> sums[COUNT];
        sum_taps<T, DILATIONS, COUNT>(kernels, held, factors.bias, column, sums);
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; ++i) {
            Vector<T> y = activate<T, ACTIVATION>(shrink<T>(sums[i], factors.bound));
            if (a.skip.data) y *= skip.template read<WHOLE>(column + i);
            out.template write<WHOLE>(column + i, y * factors.gate, streaming);
        }
        field_ahead.fetch(COUNT);
        skip_ahead.fetch(COUNT);
    }
};

template <class S, Activation ACTIVATION, int DILATIONS>
bool forward_of_pixels(const PixelPlan<S>& cut) {
    const bool streaming = streams<S>(cut.plan.a);
    return for_each_item(cut.plan.threads(), cut.items, cut.scratch(), [&](int64_t number, void* scratch) {
        PixelItem<S, ACTIVATION, DILATIONS>(cut, number, scratch, streaming).run();
    });
}

template <class S, Activation ACTIVATION>
bool forward_of_pixels(const PixelPlan<S>& cut) {
    switch (cut.plan.dilations) {
        case 1: return forward_of_pixels<S, ACTIVATION, 1>(cut);
        case 2: return forward_of_pixels<S, ACTIVATION, 2>(cut);
        default: return forward_of_pixels<S, ACTIVATION, 3>(cut);
    }
}

}  // namespace prosma::PROSMA_LEVEL

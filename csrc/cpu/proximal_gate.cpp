// proximal_gate on the CPU:  y = skip * act(soft_threshold(sum_m dilated_depthwise_conv(q, w_m) + bias, t)) * gate
//
// How it reaches its speed. The field is read once: a tile of rows (in volumes a ring of planes of such tiles) is copied,
// widened to float and zero-padded, into scratch memory that stays in the caches, so the stencil has no borders and
// knows no strides. All dilations are summed there, blocks of eight rows a dilation apart at a time (stencil.h).
// Threshold, activation, skip and channel gate are applied on the way out. (Images in channels_last have a stencil and a
// forward pass of their own where AVX-512 is: pixels.h.) The backward makes z again from q, turns it
// in place into dz, and takes dq and the weight gradient from that same tile: q, skip and dy are read once, dq and
// dskip written once, and nothing of the field's size is stored in between. From one tile of a band to the next it
// carries the rows of dz that both need, so that they are made once.
#include "gate_channels.h"
#include "kernels.h"
#include "parallel.h"
#include "pixels.h"

namespace prosma::PROSMA_LEVEL {
namespace {

// Copies one plane's rows of the field, halo included, into the ring, zero-padded: those from `first_row` on, as far as
// the ring goes.
template <class S>
void take_plane(const Plan<S>& plan, const Item& item, const Ring<S>& ring, int64_t plane, int64_t first_row) {
    constexpr int L = Plan<S>::L;
    const Rows<S> rows = rows_of(plan, plan.a.field, item, plane);
    for (int64_t row = first_row; row < ring.first_row + ring.rows; ++row) {
        auto* to = ring.row(plane, row);
        if (row < 0 || row >= plan.a.sizes[HEIGHT]) {
            clear(to - ring.left, ring.row_length);
            continue;
        }
        const Row<S> from = rows[row];
        clear(to - ring.left, ring.left);
        for_each_vector(0, plan.vectors, from.whole, [&](int64_t v, auto whole) {
            store(to + v * L, from.template read<whole.value>(v));
        });
        clear(to + plan.vectors * L, ring.left);
    }
}

// Adds the patch's part of a tensor to what will be read soon.
template <class S>
void want(const Plan<S>& plan, const Tensor& tensor, const Item& item, const Patch& patch, Meanwhile& meanwhile) {
    if (!tensor.data || patch.plane < 0 || patch.plane >= plan.a.sizes[DEPTH]) return;
    const Rows<S> rows = rows_of(plan, tensor, item, patch.plane);
    const int64_t end = smaller(patch.end_row, plan.a.sizes[HEIGHT]), stride = rows.first.vector_stride;
    for (int64_t row = larger(patch.first_row, 0); row < end && meanwhile.count < Meanwhile::MOST_WANTED; ++row)
        meanwhile.wanted[meanwhile.count++] = {reinterpret_cast<const char*>(rows[row].start + patch.first_vector * stride),
                                               stride * int64_t(sizeof(S))};
}

// Rows of the field that will be copied soon.
struct Upcoming {
    const Item& item;
    int64_t plane, first_row, end_row;
};

// Adds the patch's share of the upcoming rows, of a tile's rows [first_row, end_row), to what will be read soon.
template <class S>
void want_upcoming(const Plan<S>& plan, const Upcoming& next, Patch patch, int64_t first_row, int64_t end_row, Meanwhile& meanwhile) {
    const int64_t rows = end_row - first_row, upcoming = next.end_row - next.first_row;
    patch.plane = next.plane;
    patch.end_row = next.first_row + (patch.end_row - first_row) * upcoming / rows;
    patch.first_row = next.first_row + (patch.first_row - first_row) * upcoming / rows;
    want(plan, plan.a.field, next.item, patch, meanwhile);
}

template <class S>
int64_t blocks_in(const Plan<S>& plan, const Patch& patch) {
    return plan.dilations * plan.a.kernel_depth * ceiling(patch.end_row - patch.first_row, MOST_ROWS);
}

// Calls run(strip, blocks) for every kernel and plane of the stencil around a patch; `out` points at the patch's first sum.
template <class S, class Run>
PROSMA_INLINE void for_each_part(const Plan<S>& plan, const Ring<S>& in, Compute<S>* out, int64_t out_length, const Patch& patch,
                                 Vector<Compute<S>>* weights, Blocks* blocks, const Run& run) {
    constexpr int L = Plan<S>::L;
    const int64_t rows = patch.end_row - patch.first_row;
    const int live_last = patch.first_vector + patch.vectors == plan.vectors ? plan.live_last() : L;
    for (int m = 0; m < plan.dilations; ++m) {
        blocks[m].cut(int(rows), plan.row_dilation(m));
        for (int kz = 0; kz < plan.a.kernel_depth; ++kz) {
            const int64_t source = patch.plane + (kz - plan.a.kernel_depth / 2) * plan.a.dilations[m];
            if (source < 0 || source >= plan.a.sizes[DEPTH]) continue;
            run(Strip<Compute<S>>{in.row(source, patch.first_row) + patch.first_vector * L, out,
                                  weights + (m * plan.a.kernel_depth + kz) * plan.taps_in_plane, nullptr,
                                  plan.taps_of(m, kz, out_length), int(patch.vectors), live_last, plan.row_length, out_length},
                blocks[m]);
        }
    }
}

// out = start + the stencil over the patch.
template <class S>
void convolve_patch(const Plan<S>& plan, const Ring<S>& in, Compute<S>* out, int64_t out_length, const Patch& patch,
                    Vector<Compute<S>>* weights, Vector<Compute<S>> start, Blocks* blocks, Meanwhile& meanwhile) {
    if (plan.holds_all_taps()) return convolve_pixels(plan, in, out, out_length, patch, weights, start, meanwhile);
    meanwhile.spread(blocks_in(plan, patch));
    const Vector<Compute<S>>* first = &start;
    for_each_part(plan, in, out, out_length, patch, weights, blocks, [&](Strip<Compute<S>> strip, const Blocks& cut) {
        strip.start = first;
        first = nullptr;
        convolve(strip, cut, meanwhile);
    });
    meanwhile.complete();
}

template <class S>
void correlate_patch(const Plan<S>& plan, const Ring<S>& in, Compute<S>* gradient, const Patch& patch, Vector<Compute<S>>* sums,
                     Blocks* blocks, Meanwhile& meanwhile) {
    meanwhile.spread(blocks_in(plan, patch));
    for_each_part(plan, in, gradient, plan.row_length, patch, sums, blocks,
                  [&](const Strip<Compute<S>>& strip, const Blocks& cut) { correlate(strip, cut, meanwhile); });
}

// Elements between a patch's rows of sums: an odd number of vectors, as in the rings.
template <class T>
constexpr int64_t PATCH_LENGTH = (CHUNK_OF_PIXELS + 1) * LANES<T>;

// A patch whose sums are complete, and what it takes to make y of them, a row at a time.
template <class S, Activation ACTIVATION>
struct FinishedPatch {
    using T = Compute<S>;
    const T* sums;
    Patch patch;
    Rows<S> outs, skips;
    const ChannelFactors<S>* factors;
    bool has_skip, streaming;

    void write_row(int64_t row) const {
        const T* from = sums + (row - patch.first_row) * PATCH_LENGTH<T>;
        const Row<S> out = outs[row], skip = skips[row];
        const int64_t end = patch.first_vector + patch.vectors;
        for_each_vector(patch.first_vector, end, least(out.whole, has_skip ? skip.whole : end, end), [&](int64_t v, auto whole) {
            const Vector<T> z = load<T>(from + (v - patch.first_vector) * LANES<T>);
            Vector<T> y = activate<T, ACTIVATION>(shrink<T>(z, factors->bound));
            if (has_skip) y *= skip.template read<whole.value>(v);
            out.template write<whole.value>(v, y * factors->gate, streaming);
        });
    }

    static void write(const void* context, int64_t row) { static_cast<const FinishedPatch*>(context)->write_row(row); }
};

// Scratch memory is laid out by hand: weights, then how strips are cut into blocks, then the rings.
inline Blocks* fresh_blocks(void* memory, int count) {
    Blocks* blocks = static_cast<Blocks*>(memory);
    for (int i = 0; i < count; ++i) blocks[i].rows = 0;
    return blocks;
}

template <class T>
T* first_vector(void* memory) {
    return reinterpret_cast<T*>((uintptr_t(memory) + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES);
}

template <class S>
size_t scratch_bytes(const Plan<S>& plan, int weight_sets, int block_sets, int64_t rows) {
    return size_t(weight_sets * plan.taps + 1) * VECTOR_BYTES + size_t(block_sets * plan.dilations) * sizeof(Blocks) +
           size_t(rows * plan.row_length) * sizeof(Compute<S>);
}

template <class S, Activation ACTIVATION>
void forward_item(const Plan<S>& plan, int64_t number, void* scratch, bool streaming) {
    using T = Compute<S>;
    const GateArguments& a = plan.a;
    const Item item = item_of(plan, number), next = item_of(plan, smaller(number + 1, plan.items - 1));
    auto* weights = static_cast<Vector<T>*>(scratch);
    auto* blocks = fresh_blocks(weights + plan.taps, plan.dilations);
    T* const sums = first_vector<T>(blocks + plan.dilations);  // of two patches, in turn
    const Ring<S> field = {sums + 2 * STRIP * PATCH_LENGTH<T>, plan.ring_planes(), item.end_row - item.first_row + 2 * plan.reach_rows,
                           plan.row_length, plan.left, item.first_row - plan.reach_rows};
    take_weights(plan, item, false, weights);
    const ChannelFactors<S> factors(plan, item);

    // While a patch is summed, the one before it is written.
    FinishedPatch<S, ACTIVATION> finished = {};
    int turn = 0;
    int64_t taken = larger(0, item.first_plane - plan.reach_planes);
    for (int64_t plane = item.first_plane; plane < item.end_plane; ++plane) {
        for (; taken < smaller(plane + plan.reach_planes + 1, a.sizes[DEPTH]); ++taken) take_plane(plan, item, field, taken, field.first_row);
        const Rows<S> outs = rows_of(plan, a.out, item, plane), skips = a.skip.data ? rows_of(plan, a.skip, item, plane) : outs;
        const bool last_plane = plane + 1 == item.end_plane;
        const Item& then = last_plane ? next : item;
        const Upcoming upcoming = {then, last_plane ? next.first_plane : taken, then.first_row - plan.reach_rows,
                                   then.end_row + plan.reach_rows};
        for_each_patch(plan, plane, item.first_row, item.end_row, [&](const Patch& patch) {
            Meanwhile meanwhile;
            meanwhile.finish = finished.write;
            meanwhile.context = &finished;
            meanwhile.row = finished.patch.first_row;
            meanwhile.end_row = finished.patch.end_row;
            want(plan, a.skip, item, patch, meanwhile);
            want_upcoming(plan, upcoming, patch, item.first_row, item.end_row, meanwhile);
            T* own = sums + turn * STRIP * PATCH_LENGTH<T>;
            convolve_patch(plan, field, own, PATCH_LENGTH<T>, patch, weights, factors.bias, blocks, meanwhile);
            finished = {own, patch, outs, skips, &factors, a.skip.data != nullptr, streaming};
            turn = 1 - turn;
        });
    }
    for (int64_t row = finished.patch.first_row; row < finished.patch.end_row; ++row) finished.write_row(row);
    if (streaming) finish_streaming();
}

template <class S, Activation ACTIVATION>
bool forward(const GateArguments& a) {
    const Plan<S> plan(a, 1, 1);
    if constexpr (HOLDS_ALL_TAPS)
        if (const PixelPlan<S> cut(plan); cut.serves()) return forward_of_pixels<S, ACTIVATION>(cut);
    const int64_t rows = (plan.tile_rows + 2 * plan.reach_rows) * plan.ring_planes();
    const size_t scratch = scratch_bytes(plan, 1, 1, rows) + 2 * STRIP * PATCH_LENGTH<Compute<S>> * sizeof(Compute<S>);
    const bool streaming = streams<S>(a);
    return for_each_item(plan.threads(), plan.items, scratch,
                         [&](int64_t item, void* memory) { forward_item<S, ACTIVATION>(plan, item, memory, streaming); });
}

// Sums over an item beside those of the weights, in double: they are of one sign after another, and cost a row's end only.
enum ExtraSums { THRESHOLD_SUM, BIAS_SUM, GATE_SUM, EXTRA_SUMS };

// The tensors that a plane's backward reads and writes.
template <class S>
struct BackwardRows {
    Rows<S> grads, skips, skip_grads;
    bool has_skip, wants_skip;

    BackwardRows(const Plan<S>& plan, const Item& item, int64_t plane)
        : has_skip(plan.a.skip.data), wants_skip(plan.a.skip_grad.data) {
        grads = rows_of(plan, plan.a.grad, item, plane);
        skips = has_skip ? rows_of(plan, plan.a.skip, item, plane) : grads;
        skip_grads = wants_skip ? rows_of(plan, plan.a.skip_grad, item, plane) : grads;
    }
};

// A patch of z becomes dz, in place and padded; where it is the item's own (not halo), dskip and the sums are made too.
template <class S, Activation ACTIVATION>
void gate_row_backward(const Plan<S>& plan, const BackwardRows<S>& tensors, Compute<S>* row_start, const Patch& patch, int64_t row,
                       const ChannelFactors<S>& factors, bool own, bool streaming, double (*sums)[Plan<S>::L]) {
    using T = Compute<S>;
    const Row<S> grad = tensors.grads[row], skip = tensors.skips[row], skip_grad = tensors.skip_grads[row];
    const bool wants_skip = own && tensors.wants_skip;
    const int64_t end = patch.first_vector + patch.vectors;
    Vector<T> threshold_sum{}, bias_sum{}, gate_sum{};
    const int64_t all_whole = least(grad.whole, tensors.has_skip ? skip.whole : end, wants_skip ? skip_grad.whole : end);
    for_each_vector(patch.first_vector, end, all_whole, [&](int64_t v, auto whole) {
        const Vector<T> z = load<T>(row_start + v * LANES<T>), dy = grad.template read<whole.value>(v);
        const Vector<T> u = shrink<T>(z, factors.bound), activated = activate<T, ACTIVATION>(u);
        const Vector<T> x = tensors.has_skip ? skip.template read<whole.value>(v) : broadcast<T>(1);
        const Vector<T> du = dy * x * factors.gate * slope<T, ACTIVATION>(u, activated);
        Vector<T> dz = absolute<T>(z) <= factors.bound ? zero<T>() : du;
        Vector<T> dgate = dy * x * activated;
        if (const int live = grad.live_in(v); !whole.value && live != LANES<T>) {
            dz = keep_first<T>(dz, live);  // beyond the row's end z may be anything, NaN too
            dgate = keep_first<T>(dgate, live);
        }
        store<T>(row_start + v * LANES<T>, dz);
        if (wants_skip) skip_grad.template write<whole.value>(v, dy * activated * factors.gate, streaming);
        bias_sum += dz;
        threshold_sum += z < 0 ? dz : -dz;
        gate_sum += dgate;
    });
    if (patch.first_vector == 0) clear(row_start - plan.left, plan.left);
    if (end == plan.vectors) clear(row_start + end * LANES<T>, plan.left);
    if (!own) return;
    threshold_sum *= factors.threshold_counts;
    for (int lane = 0; lane < LANES<T>; ++lane) {
        sums[THRESHOLD_SUM][lane] += threshold_sum[lane];
        sums[BIAS_SUM][lane] += bias_sum[lane];
        sums[GATE_SUM][lane] += gate_sum[lane];
    }
}

// One plane of dq: the transposed convolution of dz.
template <class S>
void transpose_plane(const Plan<S>& plan, const Item& item, const Ring<S>& dz, Compute<S>* sums, int64_t plane,
                     Vector<Compute<S>>* flipped, Blocks* blocks, bool streaming) {
    using T = Compute<S>;
    const Rows<S> rows = rows_of(plan, plan.a.field_grad, item, plane);
    for_each_patch(plan, plane, item.first_row, item.end_row, [&](const Patch& patch) {
        Meanwhile nothing;
        convolve_patch(plan, dz, sums, PATCH_LENGTH<T>, patch, flipped, zero<T>(), blocks, nothing);
        for (int64_t row = patch.first_row; row < patch.end_row; ++row) {
            const Row<S> to = rows[row];
            const T* values = sums + (row - patch.first_row) * PATCH_LENGTH<T>;
            for (int64_t v = 0; v < patch.vectors; ++v) to.write(patch.first_vector + v, load(values + v * LANES<T>), streaming);
        }
    });
}

// An item's sums, as they wait for the others': one number each, or one a lane where lanes are channels.
template <class S>
struct Partials {
    const Plan<S>& plan;
    double* memory;

    int64_t slots() const { return plan.layout.over_channels ? Plan<S>::L : 1; }
    int64_t per_item() const { return (plan.taps + EXTRA_SUMS) * slots(); }

    void keep(int64_t item, const Vector<Compute<S>>* weight_sums, const double (*extra_sums)[Plan<S>::L]) const {
        double* to = memory + item * per_item();
        for (int i = 0; i < plan.taps; ++i)
            for (int64_t slot = 0; slot < slots(); ++slot)
                *to++ = plan.layout.over_channels ? weight_sums[i][slot] : sum_of_lanes<Compute<S>>(weight_sums[i]);
        for (int i = 0; i < EXTRA_SUMS; ++i)
            for (int64_t slot = 0; slot < slots(); ++slot) {
                *to = extra_sums[i][slot];
                for (int lane = 1; !plan.layout.over_channels && lane < Plan<S>::L; ++lane) *to += extra_sums[i][lane];
                ++to;
            }
    }

    // Over the parts of one image and channel, in order.
    double over_parts(int64_t batch, int64_t channel, int quantity) const {
        const int64_t group = plan.layout.over_channels ? channel / Plan<S>::L : channel;
        const int64_t slot = plan.layout.over_channels ? channel % Plan<S>::L : 0;
        double sum = 0;
        for (int64_t part = 0; part < plan.parts(); ++part)
            sum += memory[number_of(plan, batch, group, part) * per_item() + quantity * slots() + slot];
        return sum;
    }

    double over_batch(int64_t channel, int quantity) const {
        double sum = 0;
        for (int64_t batch = 0; batch < plan.a.sizes[BATCH]; ++batch) sum += over_parts(batch, channel, quantity);
        return sum;
    }
};

template <class S>
void reduce(const Plan<S>& plan, const Partials<S>& partials) {
    using T = Compute<S>;
    const GateArguments& a = plan.a;
    const int64_t channels = a.sizes[CHANNEL];
    const int per_kernel = plan.taps / plan.dilations, centre = per_kernel / 2;
    for (int64_t c = 0; c < channels; ++c) {
        if (a.weight_grad)
            for (int m = 0; m < plan.dilations; ++m)
                for (int tap = 0; tap < per_kernel; ++tap)
                    static_cast<T*>(a.weight_grad)[(m * channels + c) * per_kernel + tap] =
                        T(partials.over_batch(c, tap == centre ? centre : m * per_kernel + tap));
        if (a.threshold_grad) static_cast<T*>(a.threshold_grad)[c] = T(partials.over_batch(c, plan.taps + THRESHOLD_SUM));
        if (a.bias_grad) static_cast<T*>(a.bias_grad)[c] = T(partials.over_batch(c, plan.taps + BIAS_SUM));
        if (a.channel_gate_grad)
            for (int64_t b = 0; b < a.sizes[BATCH]; ++b)
                static_cast<T*>(a.channel_gate_grad)[b * channels + c] = T(partials.over_parts(b, c, plan.taps + GATE_SUM));
    }
}

// Rows and planes of dz beyond its own that an item needs: as far as dq's taps reach.
template <class S>
struct Halo {
    int64_t rows, planes;

    explicit Halo(const Plan<S>& plan) : rows(plan.a.field_grad.data ? plan.reach_rows : 0),
                                         planes(plan.a.field_grad.data ? plan.reach_planes : 0) {}
};

// The rows of dz that the next tile needs and this one has made, over all planes of an item.
template <class S>
struct Carried {
    using T = Compute<S>;
    T* memory;
    int64_t rows, row_length, first_plane;

    T* of(int64_t plane) const { return memory + (plane - first_plane) * rows * row_length; }

    void keep(const Ring<S>& dz, int64_t plane, int64_t first_row) const {
        memcpy(of(plane), dz.row(plane, first_row) - dz.left, size_t(rows * row_length) * sizeof(T));
    }
    void bring(const Ring<S>& dz, int64_t plane, int64_t first_row) const {
        memcpy(dz.row(plane, first_row) - dz.left, of(plane), size_t(rows * row_length) * sizeof(T));
    }
};

// A tile of the backward: the item's planes, the tile's own rows (those of dq), and the rows of dz to be made for it.
struct BackwardTile {
    Item own;
    int64_t first_made, end_made;
    bool first, last;  // of its band
};

template <class S>
BackwardTile tile_of(const Plan<S>& plan, const Item& item, int64_t first_row, const Halo<S>& halo) {
    BackwardTile tile = {item, first_row + halo.rows, 0, first_row == item.first_row, false};
    tile.own.first_row = first_row;
    tile.own.end_row = smaller(first_row + plan.tile_rows, item.end_row);
    tile.last = tile.own.end_row == item.end_row;
    if (tile.first) tile.first_made = first_row - halo.rows;
    tile.end_made = tile.own.end_row + halo.rows;
    return tile;
}

template <class S, Activation ACTIVATION>
class BackwardItem {
    using T = Compute<S>;
    const Plan<S>& plan;
    const GateArguments& a = plan.a;
    const Item item, next_item;
    const Halo<S> halo{plan};
    const ChannelFactors<S> factors;
    const bool streaming;
    Vector<T>*weights, *flipped, *sums;
    Blocks* blocks;  // for z, the correlation and dq
    T* field_sums;
    Ring<S> field, dz;
    Carried<S> carried;
    double extra_sums[EXTRA_SUMS][Plan<S>::L] = {};

public:
    BackwardItem(const Plan<S>& plan_, int64_t number, void* scratch, bool streaming_)
        : plan(plan_), item(item_of(plan, number)), next_item(item_of(plan, smaller(number + 1, plan.items - 1))),
          factors(plan, item), streaming(streaming_) {
        weights = static_cast<Vector<T>*>(scratch);
        flipped = weights + plan.taps;
        sums = flipped + plan.taps;
        blocks = fresh_blocks(sums + plan.taps, 3 * plan.dilations);
        field_sums = first_vector<T>(blocks + 3 * plan.dilations);
        const int64_t reach = plan.reach_rows, planes = plan.ring_planes();
        field = {field_sums + STRIP * PATCH_LENGTH<T>, planes, plan.tile_rows + 4 * reach, plan.row_length, plan.left, 0};
        dz = {field.memory + field.elements(), planes, plan.tile_rows + 2 * reach, plan.row_length, plan.left, 0};
        carried = {dz.memory + dz.elements(), 2 * halo.rows, plan.row_length, larger(0, item.first_plane - halo.planes)};
        take_weights(plan, item, false, weights);
        if (a.field_grad.data) take_weights(plan, item, true, flipped);
        for (int i = 0; i < plan.taps; ++i) sums[i] = zero<T>();
    }

    void run() {
        for (int64_t row = item.first_row; row < item.end_row; row += plan.tile_rows) {
            const BackwardTile tile = tile_of(plan, item, row, halo);
            run_tile(tile, tile.last ? tile_of(plan, next_item, next_item.first_row, halo) : tile_of(plan, item, tile.own.end_row, halo));
        }
        if (streaming) finish_streaming();
    }

    void keep(int64_t number, const Partials<S>& partials) const { partials.keep(number, sums, extra_sums); }

private:
    // The field's rows that a tile has to copy: all around those it makes, but in images those that the tile before it had.
    int64_t first_copied(const BackwardTile& tile) const {
        return tile.first_made + (plan.ring_planes() > 1 || tile.first ? -plan.reach_rows : plan.reach_rows);
    }

    void move_field(const BackwardTile& tile) {
        const int64_t shared = first_copied(tile) - (tile.first_made - plan.reach_rows);
        const T* from = shared ? field.row(0, tile.first_made - plan.reach_rows) - field.left : nullptr;
        if (shared) memmove(field.memory, from, size_t(shared * field.row_length) * sizeof(T));
        field.first_row = tile.first_made - plan.reach_rows;
        field.rows = tile.end_made - tile.first_made + 2 * plan.reach_rows;
    }

    void run_tile(const BackwardTile& tile, const BackwardTile& next) {
        move_field(tile);
        dz.first_row = tile.own.first_row - plan.reach_rows;
        dz.rows = tile.own.end_row - tile.own.first_row + 2 * plan.reach_rows;
        const int64_t depth = a.sizes[DEPTH], end_plane = smaller(depth, item.end_plane + halo.planes);
        int64_t plane = larger(0, item.first_plane - halo.planes), taken = larger(0, plane - plan.reach_planes);
        int64_t written = item.first_plane;
        for (; plane < end_plane; ++plane) {
            for (; taken < smaller(plane + plan.reach_planes + 1, depth); ++taken) take_plane(plan, item, field, taken, first_copied(tile));
            const bool last_plane = plane + 1 == end_plane;
            const BackwardTile& then = last_plane ? next : tile;
            make_plane(tile, plane, {then.own, last_plane ? next.own.first_plane : taken, first_copied(then), then.end_made + plan.reach_rows});
            if (!a.field_grad.data) continue;
            // A plane of dq can be made once dz reaches beyond it; at the end of the depth, all that are left can.
            const int64_t ready = plane + 1 == depth ? depth : plane + 1 - plan.reach_planes;
            for (; written < smaller(ready, item.end_plane); ++written)
                transpose_plane(plan, tile.own, dz, field_sums, written, flipped, blocks + 2 * plan.dilations, streaming);
        }
    }

    // One plane of dz for a tile, and with it dskip and the sums.
    void make_plane(const BackwardTile& tile, int64_t plane, const Upcoming& upcoming) {
        const int64_t height = a.sizes[HEIGHT], first = larger(0, tile.first_made), end = smaller(height, tile.end_made);
        if (tile.first)
            clear_rows(dz, plane, dz.first_row, first);
        else
            carried.bring(dz, plane, tile.own.first_row - halo.rows);
        clear_rows(dz, plane, end, dz.first_row + dz.rows);
        const BackwardRows<S> tensors(plan, item, plane);
        const bool own_plane = item.first_plane <= plane && plane < item.end_plane;
        for_each_patch(plan, plane, first, end, [&](const Patch& patch) {
            make_patch(tensors, patch, own_plane);
            const Patch inner = own_rows(patch);
            if (!own_plane || !a.weight_grad || inner.first_row >= inner.end_row) return;
            Meanwhile meanwhile;
            want_upcoming(plan, upcoming, patch, first, end, meanwhile);
            correlate_patch(plan, field, dz.row(plane, inner.first_row) + patch.first_vector * LANES<T>, inner, sums,
                            blocks + plan.dilations, meanwhile);
        });
        if (!tile.last) carried.keep(dz, plane, tile.own.end_row - halo.rows);
    }

    void make_patch(const BackwardRows<S>& tensors, const Patch& patch, bool own_plane) {
        Meanwhile meanwhile;
        want(plan, a.grad, item, patch, meanwhile);
        want(plan, a.skip, item, patch, meanwhile);
        T* const start = dz.row(patch.plane, patch.first_row) + patch.first_vector * LANES<T>;
        convolve_patch(plan, field, start, plan.row_length, patch, weights, factors.bias, blocks, meanwhile);
        for (int64_t row = patch.first_row; row < patch.end_row; ++row) {
            const bool own = own_plane && item.first_row <= row && row < item.end_row;
            gate_row_backward<S, ACTIVATION>(plan, tensors, dz.row(patch.plane, row), patch, row, factors, own, streaming, extra_sums);
        }
    }

    Patch own_rows(Patch patch) const {
        patch.first_row = larger(patch.first_row, item.first_row);
        patch.end_row = smaller(patch.end_row, item.end_row);
        return patch;
    }
};

template <class S, Activation ACTIVATION>
bool backward(const GateArguments& a) {
    const Plan<S> plan(a, 2, 2);
    const Halo<S> halo(plan);
    const int64_t planes = smaller(a.sizes[DEPTH], plan.chunk_planes + 2 * halo.planes);
    const int64_t rows = (2 * plan.tile_rows + 6 * plan.reach_rows) * plan.ring_planes() + 2 * halo.rows * planes;
    const size_t scratch = scratch_bytes(plan, 3, 3, rows) + STRIP * PATCH_LENGTH<Compute<S>> * sizeof(Compute<S>);
    const bool streaming = streams<S>(a);
    Scratch memory;
    Partials<S> partials{plan, nullptr};
    partials.memory = static_cast<double*>(memory.at_least(size_t(larger(plan.items, 1) * partials.per_item()) * sizeof(double)));
    if (!partials.memory) return false;
    if (!for_each_item(plan.threads(), plan.items, scratch, [&](int64_t number, void* own) {
            BackwardItem<S, ACTIVATION> item(plan, number, own, streaming);
            item.run();
            item.keep(number, partials);
        }))
        return false;
    reduce(plan, partials);
    return true;
}

template <class S>
bool forward_of_type(const GateArguments& a) {
    switch (a.activation) {
        case Activation::tanh: return forward<S, Activation::tanh>(a);
        case Activation::relu: return forward<S, Activation::relu>(a);
        default: return forward<S, Activation::identity>(a);
    }
}

template <class S>
bool backward_of_type(const GateArguments& a) {
    switch (a.activation) {
        case Activation::tanh: return backward<S, Activation::tanh>(a);
        case Activation::relu: return backward<S, Activation::relu>(a);
        default: return backward<S, Activation::identity>(a);
    }
}

}  // namespace

bool proximal_gate_forward(const GateArguments& a) {
    switch (a.type) {
        case DataType::float64: return forward_of_type<double>(a);
        case DataType::float16: return forward_of_type<Float16>(a);
        case DataType::bfloat16: return forward_of_type<BFloat16>(a);
        default: return forward_of_type<float>(a);
    }
}

bool proximal_gate_backward(const GateArguments& a) {
    switch (a.type) {
        case DataType::float64: return backward_of_type<double>(a);
        case DataType::float16: return backward_of_type<Float16>(a);
        case DataType::bfloat16: return backward_of_type<BFloat16>(a);
        default: return backward_of_type<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

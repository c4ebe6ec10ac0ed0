// soft_threshold on the CPU: u = sign(x) * max(|x| - max(threshold, 0), 0), one threshold a channel.
//
// Bound by memory: one pass reads x and writes u; the backward reads dy and x, writes dx, and sums the threshold's
// gradient on the way. An item is one channel group of one image (of one plane, if there are few).
#include "kernels.h"
#include "math.h"
#include "parallel.h"
#include "storage.h"

namespace prosma::PROSMA_LEVEL {
namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t WORTH_A_THREAD = 1 << 15;

struct Place {
    int64_t batch, channel, plane;
};

// The work as (batch, channel group, plane) items of whole planes.
template <class S>
struct Cut {
    const ShrinkArguments& a;
    Layout layout;
    int64_t planes, items;

    explicit Cut(const ShrinkArguments& arguments)
        : a(arguments), layout(arguments.x, arguments.sizes, LANES<Compute<S>>), planes(a.sizes[DEPTH]) {
        items = a.sizes[BATCH] * layout.groups * planes;
    }

    Place place(int64_t item) const {
        return {item / (planes * layout.groups), layout.first_channel(item / planes % layout.groups), item % planes};
    }

    int threads() const {
        return items * a.sizes[HEIGHT] * layout.vectors * layout.lanes < WORTH_A_THREAD ? 1 : a.threads;
    }
};

template <class S>
void shrink_plane(const Cut<S>& cut, int64_t item) {
    using T = Compute<S>;
    const Place at = cut.place(item);
    const Vector<T> bound = bound_of<T>(cut.layout.channel_values(cut.a.threshold, at.channel, T(0)));
    const Rows<S> xs = cut.layout.template rows<S>(cut.a.x, at.batch, at.channel, at.plane);
    const Rows<S> outs = cut.layout.template rows<S>(cut.a.out, at.batch, at.channel, at.plane);
    for (int64_t h = 0; h < cut.a.sizes[HEIGHT]; ++h) {
        const Row<S> x = xs[h], out = outs[h];
        for (int64_t v = 0; v < cut.layout.vectors; ++v) out.write(v, shrink<T>(x.read(v), bound), false);
    }
}

template <class S>
Vector<Compute<S>> shrink_plane_backward(const Cut<S>& cut, int64_t item) {
    using T = Compute<S>;
    const Place at = cut.place(item);
    const Vector<T> threshold = cut.layout.channel_values(cut.a.threshold, at.channel, T(0)), bound = bound_of<T>(threshold);
    Vector<T> sum{};
    const Rows<S> xs = cut.layout.template rows<S>(cut.a.x, at.batch, at.channel, at.plane);
    const Rows<S> grads = cut.layout.template rows<S>(cut.a.grad, at.batch, at.channel, at.plane);
    const Rows<S> outs = cut.layout.template rows<S>(cut.a.out, at.batch, at.channel, at.plane);
    for (int64_t h = 0; h < cut.a.sizes[HEIGHT]; ++h) {
        const Row<S> x = xs[h], grad = grads[h], out = outs[h];
        Vector<T> row_sum{};
        for (int64_t v = 0; v < cut.layout.vectors; ++v) {
            const Vector<T> value = x.read(v);
            // Lanes beyond the row's end read as 0 here and there, and add nothing unless the bound is NaN.
            const Vector<T> dx = keep_first<T>(absolute<T>(value) <= bound ? zero<T>() : grad.read(v), grad.live_in(v));
            out.write(v, dx, false);
            row_sum += value < 0 ? dx : -dx;
        }
        sum += row_sum;
    }
    return threshold < 0 ? zero<T>() : sum;
}

template <class S>
bool forward(const ShrinkArguments& a) {
    const Cut<S> cut(a);
    return for_each_item(cut.threads(), cut.items, 1, [&](int64_t item, void*) { shrink_plane(cut, item); });
}

template <class S>
bool backward(const ShrinkArguments& a) {
    using T = Compute<S>;
    const Cut<S> cut(a);
    Scratch memory;
    auto* partials = static_cast<Vector<T>*>(memory.at_least(size_t(cut.items + 1) * VECTOR_BYTES));
    if (!partials) return false;
    if (!for_each_item(cut.threads(), cut.items, 1,
                       [&](int64_t item, void*) { partials[item] = shrink_plane_backward(cut, item); }))
        return false;
    const int64_t batches = a.sizes[BATCH], groups = cut.layout.groups, planes = cut.planes;
    for (int64_t c = 0; c < a.sizes[CHANNEL]; ++c) {
        const int64_t group = cut.layout.over_channels ? c / cut.layout.lanes : c;
        double sum = 0;
        for (int64_t b = 0; b < batches; ++b)
            for (int64_t plane = 0; plane < planes; ++plane) {
                const Vector<T>& partial = partials[(b * groups + group) * planes + plane];
                sum += cut.layout.over_channels ? partial[c % cut.layout.lanes] : sum_of_lanes<T>(partial);
            }
        static_cast<T*>(a.threshold_grad)[c] = T(sum);
    }
    return true;
}

}  // namespace

bool soft_threshold_forward(const ShrinkArguments& a) {
    switch (a.type) {
        case DataType::float64: return forward<double>(a);
        case DataType::float16: return forward<Float16>(a);
        case DataType::bfloat16: return forward<BFloat16>(a);
        default: return forward<float>(a);
    }
}

bool soft_threshold_backward(const ShrinkArguments& a) {
    switch (a.type) {
        case DataType::float64: return backward<double>(a);
        case DataType::float16: return backward<Float16>(a);
        case DataType::bfloat16: return backward<BFloat16>(a);
        default: return backward<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

// Runs the CPU kernels of mixed_logit_statistics on random sizes, strides, types and settings, in buffers of exactly the size
// that they may touch. Built with AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_sanitizers.py; prints
// how many cases ran.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/kernels.h"

using namespace prosma;

namespace {

std::mt19937 generator(20260302);

int64_t draw(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(generator); }

size_t bytes_of(DataType type) { return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2; }

size_t bytes_of(LabelType type) {
    switch (type) {
        case LabelType::uint8:
        case LabelType::int8: return 1;
        case LabelType::int16:
        case LabelType::float16:
        case LabelType::bfloat16: return 2;
        case LabelType::int32:
        case LabelType::float32: return 4;
        default: return 8;
    }
}

// A tensor in a heap block of its own, which ends with its last element.
struct Buffer {
    Tensor tensor;
    int64_t elements = 1;
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};

    Buffer(const int64_t* sizes, size_t element_bytes, char byte) {
        const int order[2][AXES] = {{WIDTH, HEIGHT, DEPTH, CHANNEL, BATCH}, {CHANNEL, WIDTH, HEIGHT, DEPTH, BATCH}};
        const bool channels_last = draw(0, 2) == 0;
        int64_t step = draw(0, 3) ? 1 : 2;
        for (int axis : order[channels_last]) {
            tensor.strides[axis] = step;
            elements += step * (sizes[axis] - 1);
            step *= sizes[axis];
        }
        memory.reset(static_cast<char*>(std::malloc(size_t(elements) * element_bytes)));
        std::memset(memory.get(), byte, size_t(elements) * element_bytes);
        tensor.data = memory.get();
    }
};

// Classes, ignored and invalid ones among them, in whatever type.
void fill_labels(Buffer& labels, LabelType type, int64_t largest) {
    for (int64_t i = 0; i < labels.elements; ++i) {
        const int64_t value = draw(0, 9) ? draw(0, largest) : draw(-3, 120);
        void* to = labels.memory.get() + size_t(i) * bytes_of(type);
        const float number = float(value);
        uint32_t bits;
        std::memcpy(&bits, &number, 4);
        switch (type) {
            case LabelType::uint8:
            case LabelType::int8: *static_cast<int8_t*>(to) = int8_t(value); break;
            case LabelType::int16: *static_cast<int16_t*>(to) = int16_t(value); break;
            case LabelType::int32: *static_cast<int32_t*>(to) = int32_t(value); break;
            case LabelType::int64: *static_cast<int64_t*>(to) = draw(0, 9) ? value : INT64_MIN; break;
            case LabelType::float32: *static_cast<float*>(to) = draw(0, 9) ? number : 1e30f; break;
            case LabelType::float64: *static_cast<double*>(to) = draw(0, 9) ? double(value) : NAN; break;
            case LabelType::float16: *static_cast<uint16_t*>(to) = draw(0, 1) ? 0x3c00 : 0; break;
            case LabelType::bfloat16: *static_cast<uint16_t*>(to) = uint16_t(bits >> 16); break;
        }
    }
}

template <class T>
struct Values {
    std::vector<T> values;
    explicit Values(int64_t count, bool written = false) : values(size_t(count)) {
        for (T& value : values) value = written ? T(NAN) : T(double(draw(-8, 8)) / 8);
    }
    T* data() { return values.data(); }
    bool finite() const {
        for (T value : values)
            if (!std::isfinite(double(value))) return false;
        return true;
    }
};

void require(bool fine) {
    if (!fine) std::abort();
}

template <class T>
void run(DataType type) {
    MixingArguments a;
    a.type = type;
    a.threads = int(draw(1, 2));
    a.sizes[BATCH] = draw(1, 2);
    a.sizes[CHANNEL] = draw(0, 4) ? draw(1, 9) : draw(15, 33);
    a.sizes[DEPTH] = draw(0, 1) ? draw(1, 5) : 1;
    a.sizes[HEIGHT] = draw(0, 3) ? draw(1, 12) : draw(30, 70);
    a.sizes[WIDTH] = draw(0, 3) ? draw(1, 20) : draw(60, 150);
    a.level_count = int(draw(0, 4) ? draw(1, 3) : draw(4, MOST_LEVELS));
    a.sigmoid = a.sizes[CHANNEL] == 1 || draw(0, 2) == 0;
    a.probabilities = draw(0, 2) == 0;
    a.align_corners = draw(0, 1);
    a.per_sample = draw(0, 1);
    a.per_channel = a.sigmoid && draw(0, 1);
    a.has_ignore = draw(0, 1);
    a.ignore_index = draw(-2, 3);
    a.label_type = LabelType(draw(0, 8));
    for (Mix mix : {Mix::attention, Mix::add, Mix::concat, Mix::multiply})
        if (draw(0, 2)) a.mixes[a.mix_count++] = mix;

    const int64_t B = a.sizes[BATCH], C = a.sizes[CHANNEL], L = a.level_count;
    int64_t subsets = (int64_t(1) << L) - L - 1, members = L * (int64_t(1) << (L - 1)) - L;
    std::vector<Buffer> logits, grads;
    for (int i = 0; i < L; ++i) {
        MixingLevel& level = a.levels[i];
        std::memcpy(level.sizes, a.sizes, sizeof(a.sizes));
        for (int axis = DEPTH; axis < AXES; ++axis)
            if (draw(0, 2)) level.sizes[axis] = draw(1, draw(0, 4) ? a.sizes[axis] : 2 * a.sizes[axis]);
        logits.emplace_back(level.sizes, bytes_of(type), 0x3c);
        grads.emplace_back(level.sizes, bytes_of(type), char(0xff));
        level.logits = logits.back().tensor;
        if (draw(0, 4)) level.grad = grads.back().tensor;
    }
    int64_t target_sizes[AXES];
    std::memcpy(target_sizes, a.sizes, sizeof(a.sizes));
    if (!a.per_channel) target_sizes[CHANNEL] = 1;
    Buffer target(target_sizes, bytes_of(a.label_type), 0);
    fill_labels(target, a.label_type, a.per_channel ? 1 : C - 1);
    a.target = target.tensor;
    if (!a.per_channel) a.target.strides[CHANNEL] = 0;

    const int64_t maps = L + a.mix_count * subsets, results = a.per_sample ? B : 1;
    Values<T> concat_weight(C * C * members), concat_bias(C * subsets), attention_weight(members * C), attention_bias(members);
    Values<T> concat_weight_grad(C * C * members, true), concat_bias_grad(C * subsets, true);
    Values<T> attention_weight_grad(members * C, true), attention_bias_grad(members, true);
    a.concat_weight = concat_weight.data();
    a.attention_weight = attention_weight.data();
    if (draw(0, 1)) a.concat_bias = concat_bias.data();
    if (draw(0, 1)) a.attention_bias = attention_bias.data();
    std::vector<Values<T>> sums(SUMS, Values<T>(results * maps * C, true)), sum_grads(SUMS, Values<T>(results * maps * C));
    std::vector<int64_t> class_pixels(size_t(results * C)), pixels(size_t(results), 0), invalid(size_t(results), 0);
    const bool wants_logs = draw(0, 1);
    for (int kind = 0; kind < SUMS; ++kind) {
        if (kind != LOG_PROBABILITY || wants_logs) a.sums[kind] = sums[size_t(kind)].data();
        if (draw(0, 3)) a.sum_grads[kind] = sum_grads[size_t(kind)].data();
    }
    a.class_pixels = class_pixels.data();
    a.pixels = pixels.data();
    a.invalid = invalid.data();
    require(PROSMA_LEVEL::mixed_logit_statistics_forward(a));
    for (int kind = 0; kind < SUMS; ++kind) require(!a.sums[kind] || sums[size_t(kind)].finite());

    bool has_concat = false, has_attention = false;
    for (int m = 0; m < a.mix_count; ++m) {
        has_concat |= a.mixes[m] == Mix::concat;
        has_attention |= a.mixes[m] == Mix::attention;
    }
    const bool wants_concat = has_concat && draw(0, 3), wants_attention = has_attention && draw(0, 3);
    if (wants_concat) a.concat_weight_grad = concat_weight_grad.data(), a.concat_bias_grad = concat_bias_grad.data();
    if (wants_attention) a.attention_weight_grad = attention_weight_grad.data(), a.attention_bias_grad = attention_bias_grad.data();
    require(PROSMA_LEVEL::mixed_logit_statistics_backward(a));
    require(!wants_concat || (concat_weight_grad.finite() && concat_bias_grad.finite()));
    require(!wants_attention || (attention_weight_grad.finite() && attention_bias_grad.finite()));
}

}  // namespace

int main(int, char** arguments) {
    const int cases = std::atoi(arguments[1]);
    for (int i = 0; i < cases; ++i) {
        run<float>(DataType::float32);
        run<double>(DataType::float64);
        run<float>(DataType::float16);
        run<float>(DataType::bfloat16);
    }
    std::printf("%d cases\n", 4 * cases);
}

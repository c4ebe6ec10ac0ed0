// Runs the CPU kernels on random shapes, strides and types, in buffers of exactly the size that they may touch. Built with
// AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_sanitizers.py; prints how many cases ran.
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

std::mt19937 generator(20260301);

int64_t draw(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(generator); }

size_t bytes_of(DataType type) { return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2; }

enum Placing { CONTIGUOUS, CHANNELS_LAST, SPREAD, EXPANDED, PLACINGS };

// A tensor in a heap block of its own, which ends with its last element.
struct Buffer {
    Tensor tensor;
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};

    Buffer(const int64_t* sizes, DataType type, Placing placing, bool written) {
        const int order[2][AXES] = {{WIDTH, HEIGHT, DEPTH, CHANNEL, BATCH}, {CHANNEL, WIDTH, HEIGHT, DEPTH, BATCH}};
        int64_t step = placing == SPREAD ? 2 : 1, last = 0;
        for (int axis : order[placing == CHANNELS_LAST]) {
            tensor.strides[axis] = step;
            step *= sizes[axis];
        }
        if (placing == EXPANDED) tensor.strides[HEIGHT] = tensor.strides[CHANNEL] = 0;
        for (int axis = 0; axis < AXES; ++axis) last += tensor.strides[axis] * (sizes[axis] - 1);
        const size_t bytes = size_t(last + 1) * bytes_of(type);
        memory.reset(static_cast<char*>(std::malloc(bytes)));
        std::memset(memory.get(), written ? 0xff : 0x3c, bytes);  // NaN in every type, or a small number
        tensor.data = memory.get();
    }
};

template <class T>
struct Values {
    std::vector<T> values;
    explicit Values(int64_t count, double scale) : values(size_t(count)) {
        for (T& value : values) value = T(scale * double(draw(-8, 8)) / 8);
    }
    bool finite() const {
        for (T value : values)
            if (!std::isfinite(double(value))) return false;
        return true;
    }
};

template <class T>
void run(DataType type) {
    const bool volume = draw(0, 1);
    GateArguments a;
    a.type = type;
    a.sizes[BATCH] = draw(1, 2);
    a.sizes[CHANNEL] = draw(0, 3) ? draw(1, 6) : draw(15, 35);
    a.sizes[DEPTH] = volume ? draw(1, 7) : 1;
    a.sizes[HEIGHT] = draw(0, 3) ? draw(1, 12) : draw(20, 60);
    a.sizes[WIDTH] = draw(0, 3) ? draw(1, 20) : draw(30, 150);
    a.kernel_size = int(2 * draw(0, volume ? 2 : 4) + 1);
    a.kernel_depth = volume ? a.kernel_size : 1;
    a.activation = Activation(draw(0, 2));
    std::vector<int64_t> dilations;
    for (int64_t m = draw(1, 3); m > 0; --m) dilations.push_back(draw(0, 5) ? draw(1, 4) : draw(5, 1 << 20));
    a.dilations = dilations.data();
    a.dilation_count = int(dilations.size());

    const int64_t B = a.sizes[BATCH], C = a.sizes[CHANNEL];
    const int64_t taps = a.dilation_count * a.kernel_depth * a.kernel_size * a.kernel_size;
    Values<T> weight(taps * C, 1), threshold(C, 0.5), gate(B * C, 1), bias(C, 1);
    Values<T> weight_grad(taps * C, NAN), threshold_grad(C, NAN), gate_grad(B * C, NAN), bias_grad(C, NAN);
    const auto any = [] { return Placing(draw(0, PLACINGS - 1)); };
    const auto dense = [] { return Placing(draw(0, SPREAD)); };
    Buffer field(a.sizes, type, any(), false), skip(a.sizes, type, any(), false), grad(a.sizes, type, any(), false);
    Buffer out(a.sizes, type, dense(), true), field_grad(a.sizes, type, dense(), true), skip_grad(a.sizes, type, dense(), true);
    const bool has_skip = draw(0, 2), has_gate = draw(0, 1), has_bias = draw(0, 1);
    a.field = field.tensor;
    a.out = out.tensor;
    a.grad = grad.tensor;
    if (has_skip) a.skip = skip.tensor;
    a.weight = weight.values.data();
    a.threshold = threshold.values.data();
    if (has_gate) a.channel_gate = gate.values.data();
    if (has_bias) a.bias = bias.values.data();
    if (draw(0, 3)) a.field_grad = field_grad.tensor;
    if (has_skip && draw(0, 3)) a.skip_grad = skip_grad.tensor;
    const bool wants_weight = draw(0, 3);
    if (wants_weight) a.weight_grad = weight_grad.values.data();
    a.threshold_grad = threshold_grad.values.data();
    if (has_gate) a.channel_gate_grad = gate_grad.values.data();
    if (has_bias) a.bias_grad = bias_grad.values.data();
    if (!PROSMA_LEVEL::proximal_gate_forward(a) || !PROSMA_LEVEL::proximal_gate_backward(a)) std::abort();
    if ((wants_weight && !weight_grad.finite()) || !threshold_grad.finite() || (has_gate && !gate_grad.finite())) std::abort();

    ShrinkArguments s;
    s.type = type;
    std::memcpy(s.sizes, a.sizes, sizeof(s.sizes));
    s.x = field.tensor;
    s.grad = grad.tensor;
    s.out = out.tensor;
    s.threshold = threshold.values.data();
    s.threshold_grad = threshold_grad.values.data();
    if (!PROSMA_LEVEL::soft_threshold_forward(s) || !PROSMA_LEVEL::soft_threshold_backward(s)) std::abort();
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

// Runs nearest_code and code_statistics on random sizes, strides and types, in buffers of exactly the size that they may
// touch. Built with AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_sanitizers.py; prints how many cases ran.
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

enum Placing { CONTIGUOUS, CHANNELS_FIRST, SPREAD, EXPANDED, PLACINGS };

// Vectors in a heap block of their own, which ends with the last number.
struct Buffer {
    Vectors vectors;
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};

    Buffer(DataType type, Placing placing, int64_t dimensions) {
        for (int axis = 0; axis < Vectors::LEADING; ++axis) vectors.sizes[axis] = draw(0, 2) ? draw(1, 4) : draw(1, 9);
        vectors.sizes[Vectors::LAST] = dimensions;
        const int order[2][5] = {{4, 3, 2, 1, 0}, {3, 2, 1, 4, 0}};
        int64_t step = placing == SPREAD ? 3 : 1, last = 0;
        for (int axis : order[placing == CHANNELS_FIRST]) {
            vectors.strides[axis] = step;
            step *= vectors.sizes[axis];
        }
        if (placing == EXPANDED) vectors.strides[2] = 0;
        for (int axis = 0; axis < 5; ++axis) last += vectors.strides[axis] * (vectors.sizes[axis] - 1);
        const size_t bytes = size_t(last + 1) * bytes_of(type);
        memory.reset(static_cast<char*>(std::malloc(bytes)));
        for (size_t i = 0; i < bytes; ++i) memory.get()[i] = char(draw(0x30, 0x3c));  // finite in every type
        vectors.data = memory.get();
    }

    int64_t count() const { return vectors.sizes[0] * vectors.sizes[1] * vectors.sizes[2] * vectors.sizes[3]; }
};

template <class T>
void run(DataType type) {
    const int64_t dimensions = draw(0, 2) ? draw(1, 40) : draw(60, 300), codes = draw(0, 2) ? draw(1, 30) : draw(31, 200);
    const Buffer tokens(type, Placing(draw(0, PLACINGS - 1)), dimensions);
    const int64_t count = tokens.count();
    std::vector<T> codebook(size_t(codes * dimensions));
    for (T& value : codebook) value = T(draw(-8, 8)) / 8;
    std::vector<int64_t> index(size_t(count), -7);
    std::vector<char> quantized(size_t(count * dimensions) * bytes_of(type), char(0xff));
    int64_t lost = -1;
    NearestArguments a;
    a.type = type;
    a.tokens = tokens.vectors;
    a.codes = codes;
    a.codebook = codebook.data();
    a.metric = Metric(draw(0, 1));
    a.quantized = quantized.data();
    a.index = index.data();
    a.lost = &lost;
    if (!PROSMA_LEVEL::nearest_code_forward(a) || lost != 0) std::abort();
    for (int64_t k : index)
        if (k < 0 || k >= codes) std::abort();

    std::vector<int64_t> counts(size_t(codes), -7);
    std::vector<T> sums(size_t(codes * dimensions), T(NAN));
    int64_t wrong = -1;
    for (int64_t& k : index)
        if (!draw(0, 5)) k = -1;
    StatisticsArguments s;
    s.type = type;
    s.tokens = tokens.vectors;
    s.codes = codes;
    s.index = index.data();
    s.count = counts.data();
    s.sum = sums.data();
    s.wrong = &wrong;
    if (!PROSMA_LEVEL::code_statistics_forward(s) || wrong != 0) std::abort();
    for (T value : sums)
        if (!std::isfinite(double(value))) std::abort();
    index[size_t(draw(0, count - 1))] = draw(0, 1) ? codes : -2;
    if (!PROSMA_LEVEL::code_statistics_forward(s) || wrong != 1) std::abort();
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

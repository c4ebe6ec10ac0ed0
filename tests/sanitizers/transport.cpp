// Runs the CPU kernels of transport on random sizes, strides, types and masses, in buffers of exactly the size that they may
// touch, results and gradients included. Rows and columns without mass hold NaN, which must reach nothing. Built with
// AddressSanitizer and UndefinedBehaviorSanitizer by tests/test_sanitizers.py; prints how many cases ran.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>

#include "cpu/kernels.h"

using namespace prosma;

namespace {

std::mt19937 generator(20260311);

int64_t draw(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(generator); }
double draw_real(double least, double most) { return std::uniform_real_distribution<double>(least, most)(generator); }

// A heap block that ends with its last element.
template <class T>
struct Block {
    std::unique_ptr<T[]> memory;
    int64_t count;

    explicit Block(int64_t count, double scale = 1) : memory(new T[size_t(count)]), count(count) {
        for (int64_t i = 0; i < count; ++i)
            memory[size_t(i)] = T(std::is_signed<T>::value ? scale * draw_real(-1, 1) : scale * draw_real(0, 100));
    }
    T* data() const { return memory.get(); }
    T& operator[](int64_t i) const { return memory[size_t(i)]; }
};

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

template <class T>
void require_finite(const Block<T>& block, const char* what, bool infinity_too = false) {
    for (int64_t i = 0; i < block.count; ++i)
        require(std::isfinite(double(block[i])) || (infinity_too && block[i] == -std::numeric_limits<T>::infinity()), what);
}

// Storage of a matrix per batch item: contiguous, transposed, or with gaps. Half types are stored as their bits.
template <class S>
struct Stored {
    Matrices place;
    Block<S> block;

    static int64_t size(const int64_t* sizes, int64_t* strides) {
        const int64_t gap = draw(1, 2);
        const bool transposed = draw(0, 1);
        strides[transposed ? 1 : 2] = gap;
        strides[transposed ? 2 : 1] = gap * sizes[transposed ? 1 : 2];
        strides[0] = draw(0, 3) ? gap * sizes[1] * sizes[2] : 0;
        int64_t last = 0;
        for (int axis = 0; axis < 3; ++axis) last += strides[axis] * (sizes[axis] - 1);
        return last + 1;
    }
    Stored(const int64_t* sizes, double scale) : block(size(sizes, place.strides), scale) { place.data = block.data(); }
    S& at(int64_t b, int64_t i, int64_t j) const { return block[b * place.strides[0] + i * place.strides[1] + j * place.strides[2]]; }
};

struct Masses {
    Block<double> row, column;
    int64_t row_step, column_step;

    Masses(int64_t batch, int64_t rows, int64_t columns)
        : row(batch * rows), column(batch * columns), row_step(draw(0, 3) ? rows : 0), column_step(draw(0, 3) ? columns : 0) {
        fill(row);
        fill(column);
    }
    static void fill(const Block<double>& block) {
        const bool with_zeros = draw(0, 1);
        for (int64_t i = 0; i < block.count; ++i) block[i] = with_zeros && draw(0, 3) == 0 ? 0 : draw_real(0.1, 1);
    }
};

struct Sizes {
    int64_t batch, heads, rows, columns, depth;
};

// Most are small; some pass the bounds of a block, of the cache, and of what is kept.
Sizes sizes_of_a_case(bool pair) {
    Sizes s{draw(1, 3), pair ? draw(1, 2) : 1, draw(1, 40), draw(1, 40), pair ? draw(1, 9) : 0};
    if (draw(0, 9) == 0) s.rows = draw(90, 300);
    if (draw(0, 9) == 0) s.columns = draw(90, 300);
    if (draw(0, 24) == 0) s = {1, s.heads, draw(600, 900), draw(600, 900), s.depth};
    return s;
}

template <class T, class S>
void sinkhorn(DataType type, bool pair) {
    const Sizes z = sizes_of_a_case(pair);
    const int64_t data_sizes[3] = {z.batch, z.rows, pair ? z.depth : z.columns};
    const Stored<S> data(data_sizes, draw(0, 5) ? 3 : 300);
    const Masses masses(z.batch, z.rows, z.columns);
    if (data.place.strides[0] != 0 && std::is_floating_point<S>::value)
        for (int64_t b = 0; b < z.batch; ++b)
            for (int64_t i = 0; i < z.rows; ++i)
                for (int64_t j = 0; j < data_sizes[2]; ++j)
                    if (masses.row[b * masses.row_step + i] == 0) data.at(b, i, j) = S(NAN);
    const Block<T> reference(z.heads * z.columns * z.depth + 1);
    TransportArguments a;
    a.type = type;
    a.batch = z.batch;
    a.heads = z.heads;
    a.rows = z.rows;
    a.columns = z.columns;
    a.depth = z.depth;
    (pair ? a.tokens : a.scores) = data.place;
    if (pair) a.reference = reference.data();
    a.squared_distance = pair && draw(0, 1);
    a.row_mass = masses.row.data();
    a.row_mass_step = masses.row_step;
    a.column_mass = masses.column.data();
    a.column_mass_step = masses.column_step;
    a.epsilon = std::pow(10.0, draw_real(-3, 1));
    a.iterations = draw(0, 3) ? draw(1, 4) : draw(30, 40);
    a.tolerance = draw(0, 1) ? 1e-2 : 0;
    a.unrolled = draw(0, 2);
    a.keep = a.unrolled ? a.iterations : 1;
    const int64_t items = z.batch * z.heads;
    const Block<S> plan(pair ? 1 : items * z.rows * z.columns);
    const Block<T> aligned(items * z.columns * z.depth + 1), row(items * z.rows), column(items * z.columns);
    const Block<double> history(items * a.keep * z.columns);
    const Block<int32_t> count(items);
    if (pair)
        a.aligned = aligned.data();
    else if (draw(0, 3))
        a.plan = plan.data();
    a.row = row.data();
    a.column = column.data();
    a.history = history.data();
    a.count = count.data();
    require(PROSMA_LEVEL::transport_forward(a), "no memory");
    if (std::is_floating_point<S>::value || pair) {
        require_finite(row, "a row potential is not finite", true);
        require_finite(column, "a column potential is not finite", true);
        require_finite(history, "the history is not finite");
        require_finite(aligned, "what was aligned is not finite");
    }
    for (int64_t i = 0; i < items; ++i) require(count[i] >= 1 && count[i] <= a.iterations, "the count is out of range");

    const int64_t plan_sizes[3] = {z.batch, z.rows, z.columns};
    const Stored<S> grad_plan(plan_sizes, 1);
    const Block<T> grad_row(items * z.rows), grad_column(items * z.columns), grad_aligned(items * z.columns * z.depth + 1);
    const Block<T> scores_grad(items * z.rows * z.columns), tokens_grad(z.batch * z.rows * z.depth + 1);
    const Block<T> reference_grad(z.heads * z.columns * z.depth + 1);
    if (draw(0, 3)) a.grad_row = grad_row.data();
    if (draw(0, 3)) a.grad_column = grad_column.data();
    if (pair) {
        if (draw(0, 3)) a.grad_aligned = grad_aligned.data();
        if (draw(0, 3)) a.tokens_grad = tokens_grad.data();
        if (draw(0, 3)) a.reference_grad = reference_grad.data();
    } else {
        if (draw(0, 3)) a.grad_plan = grad_plan.place;
        a.scores_grad = scores_grad.data();
    }
    require(PROSMA_LEVEL::transport_backward(a), "no memory");
    if (!std::is_floating_point<S>::value && !pair) return;
    require_finite(scores_grad, "the gradient of the scores is not finite");
    require_finite(tokens_grad, "the gradient of the tokens is not finite");
    require_finite(reference_grad, "the gradient of the reference is not finite");
}

template <class T>
void apply(DataType type) {
    const Sizes z = sizes_of_a_case(true);
    const int64_t width = draw(1, 9), items = z.batch * z.heads, token_sizes[3] = {z.batch, z.rows, z.depth};
    const Stored<T> tokens(token_sizes, 1);
    const bool columns_side = draw(0, 1);
    const int64_t of_rows = z.batch * z.rows * width, of_columns = items * z.columns * width;
    const Block<T> reference(z.heads * z.columns * z.depth), row(items * z.rows), column(items * z.columns);
    for (int64_t i = 0; i < row.count; ++i)
        if (draw(0, 7) == 0) row[i] = -std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < column.count; ++j)
        if (draw(0, 7) == 0) column[j] = -std::numeric_limits<T>::infinity();
    const Block<T> values(columns_side ? of_rows : of_columns), values_grad(values.count);
    const Block<T> out(columns_side ? of_columns : of_rows), grad(out.count);
    const Block<T> tokens_grad(z.batch * z.rows * z.depth), reference_grad(reference.count), row_grad(row.count), column_grad(column.count);
    ApplyArguments a;
    a.type = type;
    a.batch = z.batch;
    a.heads = z.heads;
    a.rows = z.rows;
    a.columns = z.columns;
    a.depth = z.depth;
    a.width = width;
    a.tokens = tokens.place;
    a.reference = reference.data();
    a.squared_distance = draw(0, 1);
    a.row = row.data();
    a.column = column.data();
    a.values = values.data();
    a.columns_side = columns_side;
    a.epsilon = draw_real(0.2, 2);
    a.out = out.data();
    require(PROSMA_LEVEL::apply_plan_forward(a), "no memory");
    require_finite(out, "what was applied is not finite");
    a.grad = grad.data();
    if (draw(0, 3)) a.tokens_grad = tokens_grad.data();
    if (draw(0, 3)) a.reference_grad = reference_grad.data();
    if (draw(0, 3)) a.row_grad = row_grad.data();
    if (draw(0, 3)) a.column_grad = column_grad.data();
    if (draw(0, 3)) a.values_grad = values_grad.data();
    require(PROSMA_LEVEL::apply_plan_backward(a), "no memory");
    for (const Block<T>* block : {&tokens_grad, &reference_grad, &row_grad, &column_grad, &values_grad})
        require_finite(*block, "a gradient of apply_plan is not finite");
}

}  // namespace

int main(int, char** arguments) {
    const int cases = std::atoi(arguments[1]);
    for (int i = 0; i < cases; ++i) {
        const bool pair = i % 2;
        sinkhorn<float, float>(DataType::float32, pair);
        sinkhorn<double, double>(DataType::float64, pair);
        sinkhorn<float, uint16_t>(draw(0, 1) ? DataType::float16 : DataType::bfloat16, false);
        draw(0, 1) ? apply<float>(DataType::float32) : apply<double>(DataType::float64);
    }
    std::printf("%d cases\n", 4 * cases);
}

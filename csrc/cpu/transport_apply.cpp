// A plan that potentials give, T_ij = exp((S_ij + row_i + column_j) / epsilon), applied to values, on the CPU.
//
// T is made block by block of rows, scores by a product and then their exponentials, and used up while it is in the cache:
// T^T values or T values, and backwards T times the gradient, dT = a product of values and gradient, dS = T dT / epsilon, and what
// follows from dS. Neither T nor dS exists as a whole. Small problems are shared out by batch item, the heads of one in
// order; of a larger one all threads take chunks of rows.
#include "kernels.h"
#include "transport_pair.h"

namespace prosma::PROSMA_LEVEL {
namespace {

template <class T>
struct ApplyMemory {
    int32_t *row_numbers, *column_numbers;
    double *f, *g, *partial;
    T *row_sums, *across, *down, *moved;
    Supports<T> supports;
    PairMemory<T> pair;

    ApplyMemory(Arena& arena, const Cut<T>& cut) : supports(arena, cut), pair(arena, cut) {
        const int64_t rows = whole_groups(cut.rows), chunks = cut.chunks(cut.rows);
        row_numbers = arena.take<int32_t>(rows);
        column_numbers = arena.take<int32_t>(cut.length);
        f = arena.take<double>(rows);
        g = arena.take<double>(cut.length);
        partial = arena.take<double>(chunks * cut.length);
        row_sums = arena.take<T>(rows);
        across = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.length, cut.width));
        down = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.width, cut.columns));
        moved = arena.take<T>(chunks * cut.columns * cut.width);
    }
};

// One head of one batch item.
template <class T, class Loop>
class Apply {
public:
    Apply(const ApplyArguments& a, const Cut<T>& cut, const ApplyMemory<T>& memory, int64_t batch, int64_t head, const Loop& loop)
        : a_(a), cut_(cut), m_(memory), batch_(batch), head_(head), item_(batch * a.heads + head), loop_(loop), supports_(memory.supports) {
        const T* row = static_cast<const T*>(a.row) + item_ * a.rows;
        const T* column = static_cast<const T*>(a.column) + item_ * a.columns;
        scores_.rows = choose(a.rows, m_.row_numbers, [&](int64_t i) { return row[i] != T(-INFINITY); });
        scores_.columns = choose(a.columns, m_.column_numbers, [&](int64_t j) { return column[j] != T(-INFINITY); });
        rows_ = scores_.rows.count;
        columns_ = scores_.columns.count;
        scores_.length = whole_vectors<T>(columns_);
        scores_.type = a.type;
        scores_.tokens = a.tokens.data;
        scores_.token_start = batch * a.tokens.strides[0];
        scores_.token_step = a.tokens.strides[1];
        scores_.feature_step = a.tokens.strides[2];
        scores_.depth = a.depth;
        if (empty()) return;
        supports_.fill(static_cast<const T*>(a.reference) + head * a.columns * a.depth, a.squared_distance, a.epsilon, scores_);
        for (int64_t i = 0; i < rows_; ++i) m_.f[i] = double(row[scores_.rows[i]]) / a.epsilon;
        for (int64_t j = 0; j < scores_.length; ++j)
            m_.g[j] = j < columns_ ? double(column[scores_.columns[j]]) / a.epsilon + supports_.shift[j] : PADDING;
    }

    void forward() {
        T* out = static_cast<T*>(a_.out);
        if (a_.columns_side) {
            out += item_ * a_.columns * a_.width;
            memset(out, 0, sizeof(T) * size_t(a_.columns * a_.width));
            if (!empty()) gather(static_cast<const T*>(a_.values) + batch_ * a_.rows * a_.width, out);
        } else {
            out += batch_ * a_.rows * a_.width;
            if (head_ == 0) memset(out, 0, sizeof(T) * size_t(a_.rows * a_.width));
            if (!empty()) spread(static_cast<const T*>(a_.values) + item_ * a_.columns * a_.width, out);
        }
    }

    // The gradients of tokens and reference are added to those given.
    void backward(T* tokens_grad, T* reference_grad) {
        const T* values = static_cast<const T*>(a_.values);
        const T* grad = static_cast<const T*>(a_.grad);
        T* values_grad = static_cast<T*>(a_.values_grad);
        const int64_t of_rows = batch_ * a_.rows * a_.width, of_columns = item_ * a_.columns * a_.width;
        clear_own_gradients();
        if (a_.columns_side) {
            if (values_grad && head_ == 0) memset(values_grad + of_rows, 0, sizeof(T) * size_t(a_.rows * a_.width));
            if (empty()) return;
            if (values_grad) spread(grad + of_columns, values_grad + of_rows);
            score_gradients(values + of_rows, grad + of_columns, tokens_grad, reference_grad);
        } else {
            if (values_grad) memset(values_grad + of_columns, 0, sizeof(T) * size_t(a_.columns * a_.width));
            if (empty()) return;
            if (values_grad) gather(grad + of_rows, values_grad + of_columns);
            score_gradients(grad + of_rows, values + of_columns, tokens_grad, reference_grad);
        }
    }

private:
    bool empty() const { return !rows_ || !columns_; }

    // Calls body(chunk, first, count, T of these rows, desk) for every block.
    template <class Body>
    void for_each_block(const Body& body) const {
        loop_(cut_.chunks(rows_), [&](int64_t chunk, Desk<T>& desk) {
            const int64_t start = chunk * cut_.chunk, end = start + cut_.chunk < rows_ ? start + cut_.chunk : rows_;
            for (int64_t first = start; first < end; first += cut_.block) {
                const int64_t count = end - first < cut_.block ? end - first : cut_.block;
                const ScoreRows<T> rows = score_rows(scores_, first, count, desk);
                for (int64_t i = 0; i < count; ++i) {
                    // desk.tokens are from the centre already
                    const double shift = scores_.centre ? -squared_length(desk.tokens + i * a_.depth, a_.depth) / a_.epsilon : 0;
                    exponentiate_row<Order::row_first>(rows[i], scores_.scale, m_.f[first + i] + shift, m_.g, scores_.length,
                                                       desk.kernel + i * scores_.length);
                }
                body(chunk, first, count, desk.kernel, desk);
            }
        });
    }

    // desk.values = the rows of `from` (rows, width) that a block has.
    void read_values(const T* from, int64_t first, int64_t count, const Desk<T>& desk) const {
        for (int64_t i = 0; i < count; ++i)
            memcpy(desk.values + i * a_.width, from + scores_.rows[first + i] * a_.width, sizeof(T) * size_t(a_.width));
    }

    // to_j += sum_i T_ij from_i
    void gather(const T* from, T* to) const {
        const int64_t width = a_.width, size = columns_ * width, chunks = cut_.chunks(rows_);
        memset(m_.moved, 0, sizeof(T) * size_t(chunks * size));
        for_each_block([&](int64_t chunk, int64_t first, int64_t count, const T* plan, const Desk<T>& desk) {
            read_values(from, first, count, desk);
            pack<TILE_ROWS, T>(plan, columns_, count, 1, scores_.length, nullptr, desk.panels);
            pack<TILE_COLUMNS<T>, T>(desk.values, width, count, 1, width, nullptr, desk.other_panels);
            multiply<true, T>(desk.panels, desk.other_panels, columns_, width, count, m_.moved + chunk * size, width);
        });
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
            for (int64_t j = 0; j < columns_; ++j) add(m_.moved + chunk * size + j * width, width, to + scores_.columns[j] * width);
    }

    // to_i += sum_j T_ij from_j
    void spread(const T* from, T* to) const {
        const int64_t width = a_.width;
        T* chosen = m_.moved;
        for (int64_t j = 0; j < columns_; ++j) memcpy(chosen + j * width, from + scores_.columns[j] * width, sizeof(T) * size_t(width));
        pack<TILE_COLUMNS<T>, T>(chosen, width, columns_, 1, width, nullptr, m_.down);
        for_each_block([&](int64_t, int64_t first, int64_t count, const T* plan, const Desk<T>& desk) {
            pack<TILE_ROWS, T>(plan, count, columns_, scores_.length, 1, nullptr, desk.panels);
            multiply<false, T>(desk.panels, m_.down, count, width, columns_, desk.moved, width);
            for (int64_t i = 0; i < count; ++i) add(desk.moved + i * width, width, to + scores_.rows[first + i] * width);
        });
    }

    // dS_ij = T_ij <of_rows_i, of_columns_j> / epsilon, and what follows from it.
    void score_gradients(const T* of_rows, const T* of_columns, T* tokens_grad, T* reference_grad) {
        if (!tokens_grad && !reference_grad && !a_.row_grad && !a_.column_grad) return;
        const PairGradients<T> gradients(scores_, supports_, m_.pair, cut_, tokens_grad, reference_grad);
        const int64_t width = a_.width, length = scores_.length, chunks = cut_.chunks(rows_);
        memset(m_.across, 0, sizeof(T) * size_t(packed_size<TILE_COLUMNS<T>>(length, width)));
        pack<TILE_COLUMNS<T>, T>(of_columns, columns_, width, width, 1, scores_.columns.numbers, m_.across);
        memset(m_.partial, 0, sizeof(double) * size_t(chunks * length));
        const T inverse = T(1 / a_.epsilon);
        for_each_block([&](int64_t chunk, int64_t first, int64_t count, const T* plan, const Desk<T>& desk) {
            read_values(of_rows, first, count, desk);
            pack<TILE_ROWS, T>(desk.values, count, width, width, 1, nullptr, desk.panels);
            multiply<false, T>(desk.panels, m_.across, count, length, width, desk.slope, length);
            memset(desk.sums, 0, sizeof(T) * size_t(length));
            for (int64_t i = 0; i < count; ++i)
                m_.row_sums[first + i] = scale_row(plan + i * length, inverse, length, desk.slope + i * length, desk.sums);
            move_sums<T>(desk.sums, length, m_.partial + chunk * length);
            if (gradients.wanted()) gradients.add(chunk, first, count, desk);
        });
        gradients.finish();
        if (a_.row_grad)
            for (int64_t i = 0; i < rows_; ++i) static_cast<T*>(a_.row_grad)[item_ * a_.rows + scores_.rows[i]] = m_.row_sums[i];
        if (!a_.column_grad) return;
        for (int64_t j = 0; j < columns_; ++j) {
            double sum = 0;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += m_.partial[chunk * length + j];
            static_cast<T*>(a_.column_grad)[item_ * a_.columns + scores_.columns[j]] = T(sum);
        }
    }

    // slope_j = T_j slope_j / epsilon, which is added to sums_j; returns its sum.
    static T scale_row(const T* plan, T inverse, int64_t length, T* slope, T* sums) {
        Vector<T> total{};
        for (int64_t j = 0; j < length; j += LANES<T>) {
            const Vector<T> value = load<T>(plan + j) * load<T>(slope + j) * inverse;
            store<T>(slope + j, value);
            store<T>(sums + j, load<T>(sums + j) + value);
            total += value;
        }
        return sum_of_lanes<T>(total);
    }

    void clear_own_gradients() const {
        if (a_.row_grad) memset(static_cast<T*>(a_.row_grad) + item_ * a_.rows, 0, sizeof(T) * size_t(a_.rows));
        if (a_.column_grad) memset(static_cast<T*>(a_.column_grad) + item_ * a_.columns, 0, sizeof(T) * size_t(a_.columns));
    }

    const ApplyArguments& a_;
    const Cut<T>& cut_;
    const ApplyMemory<T>& m_;
    int64_t batch_, head_, item_;
    const Loop& loop_;
    Supports<T> supports_;
    Scores<T> scores_;
    int64_t rows_, columns_;
};

template <class T, bool BACKWARD>
bool small_problems(const ApplyArguments& a, const Cut<T>& cut, int64_t inner) {
    Arena measure(nullptr);
    ApplyMemory<T>(measure, cut);
    Desk<T>(measure, cut, inner);
    T* reference_grad = static_cast<T*>(a.reference_grad);
    const int64_t size = reference_grad ? a.heads * a.columns * a.depth : 0;
    return in_waves<T>(a.threads, a.batch, measure.used(), size,
        [&](int64_t batch, void* scratch, T* sums) {
            Arena arena(scratch);
            const ApplyMemory<T> memory(arena, cut);
            Desk<T> desk(arena, cut, inner);
            const Alone<T> loop{desk};
            T* tokens_grad = static_cast<T*>(a.tokens_grad);
            if (tokens_grad) tokens_grad += batch * a.rows * a.depth;
            for (int64_t head = 0; head < a.heads; ++head) {
                Apply<T, Alone<T>> apply(a, cut, memory, batch, head, loop);
                if (BACKWARD)
                    apply.backward(tokens_grad, reference_grad ? sums + head * a.columns * a.depth : nullptr);
                else
                    apply.forward();
            }
        },
        [&](int64_t, const T* sums) { add(sums, size, reference_grad); });
}

template <class T, bool BACKWARD>
bool large_problems(const ApplyArguments& a, const Cut<T>& cut, int64_t inner) {
    Arena measure(nullptr);
    ApplyMemory<T>(measure, cut);
    Scratch shared;
    void* scratch = shared.at_least(measure.used());
    if (!scratch) return false;
    const WithoutDenormals without;
    Arena arena(scratch);
    const ApplyMemory<T> memory(arena, cut);
    const Together<T> together(cut, inner, a.threads, measure.used());
    for (int64_t item = 0; item < a.batch * a.heads; ++item) {
        const int64_t batch = item / a.heads, head = item % a.heads;
        T* tokens_grad = static_cast<T*>(a.tokens_grad);
        T* reference_grad = static_cast<T*>(a.reference_grad);
        if (tokens_grad) tokens_grad += batch * a.rows * a.depth;
        if (reference_grad) reference_grad += head * a.columns * a.depth;
        Apply<T, Together<T>> apply(a, cut, memory, batch, head, together);
        if (BACKWARD)
            apply.backward(tokens_grad, reference_grad);
        else
            apply.forward();
    }
    return together.had_memory();
}

template <class T, bool BACKWARD>
bool run(const ApplyArguments& a) {
    const Cut<T> cut(a.rows, a.columns, a.depth, a.width);
    const int64_t inner = cut.length > a.width ? cut.length : a.width;
    if (BACKWARD && a.tokens_grad) memset(a.tokens_grad, 0, sizeof(T) * size_t(a.batch * a.rows * a.depth));
    if (BACKWARD && a.reference_grad) memset(a.reference_grad, 0, sizeof(T) * size_t(a.heads * a.columns * a.depth));
    return cut.small ? small_problems<T, BACKWARD>(a, cut, inner) : large_problems<T, BACKWARD>(a, cut, inner);
}

}  // namespace

bool apply_plan_forward(const ApplyArguments& a) {
    return a.type == DataType::float64 ? run<double, false>(a) : run<float, false>(a);
}

bool apply_plan_backward(const ApplyArguments& a) {
    return a.type == DataType::float64 ? run<double, true>(a) : run<float, true>(a);
}

}  // namespace prosma::PROSMA_LEVEL

// Sinkhorn, the plan T = exp((S + f + g) / epsilon), and what it moves, aligned = T^T x, on the CPU.
//
// A problem whose kernel matrix fits the L2 cache is one thread's work from its first score to its last result, and the
// problems are shared out among the threads. Of a larger one all threads take chunks of rows, one sweep after the other.
// Which it is depends on sizes alone. The results are made from K: T_ij = u_i K_ij v_j, without another exponential.
#include "kernels.h"
#include "transport_solver.h"

namespace prosma::PROSMA_LEVEL {
namespace {

template <class T>
struct ForwardMemory {
    SolverMemory<T> solver;
    Supports<T> supports;
    T* aligned;  // (chunks, columns, depth)

    ForwardMemory(Arena& arena, const Cut<T>& cut)
        : solver(arena, cut), supports(arena, cut), aligned(arena.take<T>(cut.chunks(cut.rows) * cut.columns * cut.depth)) {}
};

// One row of the plan: factor * K_j * v_j.
template <class S, class T>
void write_plan_row(const T* kernel, const T* v, T factor, const Chosen& columns, S* to) {
    if (columns.numbers) {
        for (int64_t j = 0; j < columns.count; ++j) to[columns[j]] = Narrow<S>::from(factor * kernel[j] * v[j]);
        return;
    }
    for (int64_t j = 0; j < columns.count; j += LANES<T>) {
        const Vector<T> values = factor * load<T>(kernel + j) * load<T>(v + j);
        if (columns.count - j >= LANES<T>)
            store_vector<S>(to + j, values);
        else
            store_first<S>(to + j, values, int(columns.count - j));
    }
}

template <class T>
void fill(T* to, int64_t count, T value) {
    for (int64_t i = 0; i < count; ++i) to[i] = value;
}

template <class S, class T = Compute<S>>
class Forward {
public:
    Forward(const TransportArguments& a, const Cut<T>& cut, const ForwardMemory<T>& memory, int64_t item)
        : a_(a), cut_(cut), m_(memory), batch_(item / a.heads), head_(item % a.heads), item_(item) {}

    template <class Loop>
    void run(const Loop& loop) {
        Problem<T> problem(a_, batch_, m_.solver);
        if (problem.empty()) return leave_empty();
        const T* reference = static_cast<const T*>(a_.reference);
        Supports<T> supports = m_.supports;
        supports.fill(reference ? reference + head_ * a_.columns * a_.depth : nullptr, a_.squared_distance, a_.epsilon, problem.scores);
        Solver<T, Loop> solver(cut_, problem, m_.solver, supports.shift, loop);
        const double log_unit = ::log(problem.unit);
        const int64_t count = solver.solve(a_.iterations, a_.tolerance, [&](int64_t done) {
            if (a_.keep == 1) return;
            solver.near_column_potentials(m_.solver.potential);
            write_history(problem, supports, done - 1);
        });
        solver.column_potentials(m_.solver.potential);
        write_history(problem, supports, a_.keep > 1 ? count - 1 : 0);
        finish(solver, problem, count, log_unit);
        if (a_.plan) write_plan(solver, problem);
        if (a_.aligned) write_aligned(solver, problem);
    }

private:
    void leave_empty() {
        const int64_t columns = a_.columns;
        fill<T>(static_cast<T*>(a_.row) + item_ * a_.rows, a_.rows, T(-INFINITY));
        fill<T>(static_cast<T*>(a_.column) + item_ * columns, columns, T(-INFINITY));
        fill<double>(a_.history + item_ * a_.keep * columns, a_.keep * columns, 0.0);
        a_.count[item_] = int32_t(a_.tolerance > 0 ? 1 : a_.iterations);
        if (a_.plan) memset(static_cast<S*>(a_.plan) + item_ * a_.rows * columns, 0, sizeof(S) * size_t(a_.rows * columns));
        if (a_.aligned) memset(static_cast<T*>(a_.aligned) + item_ * columns * a_.depth, 0, sizeof(T) * size_t(columns * a_.depth));
    }

    // The column potentials in memory.potential.
    void write_history(const Problem<T>& problem, const Supports<T>& supports, int64_t step) {
        const double* g = m_.solver.potential;
        double* to = a_.history + (item_ * a_.keep + step) * a_.columns;
        const int32_t* numbers = problem.scores.columns.numbers;
        if (!numbers) {
            for (int64_t j = 0; j < problem.columns; ++j) to[j] = a_.epsilon * (g[j] - supports.shift[j]);
            return;
        }
        fill<double>(to, a_.columns, 0.0);
        for (int64_t j = 0; j < problem.columns; ++j) to[numbers[j]] = a_.epsilon * (g[j] - supports.shift[j]);
    }

    // The rest of the history, and the potentials.
    template <class Solver>
    void finish(Solver& solver, const Problem<T>& problem, int64_t count, double log_unit) {
        double* last = a_.history + (item_ * a_.keep + (a_.keep > 1 ? count - 1 : 0)) * a_.columns;
        for (int64_t step = count; step < a_.keep; ++step)
            memcpy(a_.history + (item_ * a_.keep + step) * a_.columns, last, sizeof(double) * size_t(a_.columns));
        a_.count[item_] = int32_t(count);
        T* column = static_cast<T*>(a_.column) + item_ * a_.columns;
        T* row = static_cast<T*>(a_.row) + item_ * a_.rows;
        if (problem.scores.columns.numbers) fill<T>(column, a_.columns, T(-INFINITY));
        if (problem.scores.rows.numbers) fill<T>(row, a_.rows, T(-INFINITY));
        for (int64_t j = 0; j < problem.columns; ++j) column[problem.scores.columns[j]] = T(last[problem.scores.columns[j]]);
        const Scores<T>& scores = problem.scores;
        if (!scores.centre) {
            for (int64_t i = 0; i < problem.rows; ++i) row[scores.rows[i]] = T(a_.epsilon * (m_.solver.before[i] + log_unit));
            return;
        }
        solver.for_each_rows([&](int64_t first, int64_t count, const Desk<T>& desk) {
            scores.read_tokens(first, count, desk.tokens);
            for (int64_t i = 0; i < count; ++i) {
                const double shift = row_shift(scores, desk.tokens + i * scores.depth, a_.epsilon);
                row[scores.rows[first + i]] = T(a_.epsilon * (m_.solver.before[first + i] + log_unit - shift));
            }
        });
    }

    template <class Solver>
    void write_plan(Solver& solver, const Problem<T>& problem) {
        S* plan = static_cast<S*>(a_.plan) + item_ * a_.rows * a_.columns;
        const Scores<T>& scores = problem.scores;
        if (scores.rows.numbers || scores.columns.numbers) memset(plan, 0, sizeof(S) * size_t(a_.rows * a_.columns));
        const T unit = T(problem.unit);
        solver.for_each_block([&](int64_t, int64_t first, int64_t count, const T* kernel, const Desk<T>&) {
            for (int64_t i = 0; i < count; ++i)
                write_plan_row<S, T>(kernel + i * scores.length, m_.solver.v, unit * m_.solver.u[first + i], scores.columns,
                                     plan + scores.rows[first + i] * a_.columns);
        });
    }

    // aligned_j = v_j sum_i K_ij (u_i x_i), by a product for each block; the chunks' sums are added in order.
    template <class Solver>
    void write_aligned(Solver& solver, const Problem<T>& problem) {
        const Scores<T>& scores = problem.scores;
        const int64_t depth = a_.depth, columns = problem.columns, size = columns * depth;
        memset(m_.aligned, 0, sizeof(T) * size_t(cut_.chunks(problem.rows) * size));
        solver.for_each_block([&](int64_t chunk, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            scores.read_tokens(first, count, desk.tokens);
            for (int64_t i = 0; i < count; ++i)
                for (int64_t d = 0; d < depth; ++d) desk.tokens[i * depth + d] *= m_.solver.u[first + i];
            pack<TILE_ROWS, T>(kernel, columns, count, 1, scores.length, nullptr, desk.panels);
            pack<TILE_COLUMNS<T>, T>(desk.tokens, depth, count, 1, depth, nullptr, desk.other_panels);
            multiply<true, T>(desk.panels, desk.other_panels, columns, depth, count, m_.aligned + chunk * size, depth);
        });
        T* aligned = static_cast<T*>(a_.aligned) + item_ * a_.columns * depth;
        if (scores.columns.numbers) memset(aligned, 0, sizeof(T) * size_t(a_.columns * depth));
        for (int64_t j = 0; j < columns; ++j)
            for (int64_t d = 0; d < depth; ++d) {
                T sum = 0;
                for (int64_t chunk = 0; chunk < cut_.chunks(problem.rows); ++chunk) sum += m_.aligned[chunk * size + j * depth + d];
                aligned[scores.columns[j] * depth + d] = sum * m_.solver.v[j] * T(problem.unit);
            }
    }

    const TransportArguments& a_;
    const Cut<T>& cut_;
    const ForwardMemory<T>& m_;
    int64_t batch_, head_, item_;
};

template <class S>
bool forward(const TransportArguments& a) {
    using T = Compute<S>;
    const Cut<T> cut(a.rows, a.columns, a.depth, 0);
    Arena measure(nullptr);
    ForwardMemory<T>(measure, cut);
    const int64_t items = a.batch * a.heads;
    if (cut.small) {
        Desk<T>(measure, cut, 0);
        const size_t bytes = measure.used();
        return for_each_item(affordable(a.threads, bytes), items, bytes, [&](int64_t item, void* scratch) {
            const WithoutDenormals without;
            Arena arena(scratch);
            const ForwardMemory<T> memory(arena, cut);
            Desk<T> desk(arena, cut, 0);
            Forward<S>(a, cut, memory, item).run(Alone<T>{desk});
        });
    }
    Scratch shared;
    void* scratch = shared.at_least(measure.used());
    if (!scratch) return false;
    const WithoutDenormals without;
    Arena arena(scratch);
    const ForwardMemory<T> memory(arena, cut);
    const Together<T> together(cut, 0, a.threads, measure.used());
    for (int64_t item = 0; item < items; ++item) Forward<S>(a, cut, memory, item).run(together);
    return together.had_memory();
}

}  // namespace

bool transport_forward(const TransportArguments& a) {
    switch (a.type) {
        case DataType::float64: return forward<double>(a);
        case DataType::float16: return forward<Float16>(a);
        case DataType::bfloat16: return forward<BFloat16>(a);
        default: return forward<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

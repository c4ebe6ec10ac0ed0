// The gradients of Sinkhorn's potentials, of the plan, and of T^T x on the CPU: see transport_gradient.h for dL/dS.
//
// Of scores, dS is the result. Of tokens and a reference, dT_ij = <x_i, dA_j>, and each block of dS becomes dx += dS r and
// dr += dS^T x while it is in the cache.
#include "kernels.h"
#include "transport_implicit.h"
#include "transport_pair.h"
#include "transport_unrolled.h"

namespace prosma::PROSMA_LEVEL {
namespace {

// Of scores: dT is read from memory, dS is written there.
template <class T>
class ScoreSlope {
public:
    ScoreSlope(const TransportArguments& a, const Problem<T>& problem, const GradientMemory<T>& memory, int64_t batch)
        : a_(a), scores_(problem.scores), unit_(problem.unit), m_(memory) {
        incoming_ = problem.scores;
        incoming_.data = a.grad_plan.data;
        incoming_.start = batch * a.grad_plan.strides[0];
        incoming_.row_step = a.grad_plan.strides[1];
        incoming_.column_step = a.grad_plan.strides[2];
        out_ = static_cast<T*>(a.scores_grad) + batch * a.rows * a.columns;
        if (scores_.rows.numbers || scores_.columns.numbers) memset(out_, 0, sizeof(T) * size_t(a.rows * a.columns));
    }

    bool exists() const { return a_.grad_plan.data; }

    void prepare(const T* v) {
        for (int64_t j = 0; j < scores_.columns.count; ++j) m_.slope_v[j] = T(double(v[j]) * unit_ / a_.epsilon);
    }

    ScoreRows<T> rows(int64_t first, int64_t count, const Desk<T>& desk) const {
        Desk<T> into = desk;
        into.scores = desk.slope;
        return score_rows(incoming_, first, count, into);
    }

    void move(int64_t, int64_t, int64_t, const T*, const T*, const Desk<T>&) const {}

    // Blocks come in turns, one turn for every update: the first writes, the others add.
    void next_turn() { ++turn_; }

    T* direct_row(int64_t i) const { return turn_ > 1 || scores_.columns.numbers ? nullptr : row_of(i); }

    void deliver(int64_t, int64_t first, int64_t count, const Desk<T>& desk) const {
        const Chosen& columns = scores_.columns;
        for (int64_t i = 0; i < count; ++i) {
            const T* from = desk.slope + i * scores_.length;
            T* to = row_of(first + i);
            if (columns.numbers)
                for (int64_t j = 0; j < columns.count; ++j) to[columns[j]] = (turn_ > 1 ? to[columns[j]] : T(0)) + from[j];
            else if (turn_ > 1)
                for (int64_t j = 0; j < columns.count; ++j) to[j] += from[j];
            else
                memcpy(to, from, sizeof(T) * size_t(columns.count));
        }
    }

private:
    const TransportArguments& a_;
    const Scores<T>& scores_;
    double unit_;
    const GradientMemory<T>& m_;
    Scores<T> incoming_;
    T* row_of(int64_t i) const { return out_ + scores_.rows[i] * a_.columns; }

    T* out_;
    int turn_ = 0;
};

// What the gradient of T^T x needs besides.
template <class T>
struct IncomingMemory {
    T* values;  // (columns, depth): T v dA
    T* across;  // packed for x dA^T
    T* down;    // packed for T dA

    IncomingMemory(Arena& arena, const Cut<T>& cut) {
        values = arena.take<T>(cut.columns * cut.depth);
        across = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.length, cut.depth));
        down = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.depth, cut.columns));
    }
};

// Of tokens and a reference: dT_ij = <x_i, dA_j>, and besides dx_i = sum_j T_ij dA_j.
template <class T>
class PairSlope {
public:
    PairSlope(const TransportArguments& a, const Problem<T>& problem, const GradientMemory<T>& memory, const IncomingMemory<T>& incoming,
              const PairGradients<T>& gradients, int64_t item)
        : scores_(problem.scores), unit_(problem.unit), epsilon_(a.epsilon), m_(memory), i_(incoming), gradients_(gradients),
          columns_(problem.columns), depth_(a.depth) {
        if (a.grad_aligned) grad_ = static_cast<const T*>(a.grad_aligned) + item * a.columns * depth_;
    }

    bool exists() const { return grad_; }

    void prepare(const T* v) {
        for (int64_t j = 0; j < columns_; ++j) {
            m_.slope_v[j] = T(1 / epsilon_);
            for (int64_t d = 0; d < depth_; ++d)
                i_.values[j * depth_ + d] = T(unit_ * double(v[j])) * grad_[scores_.columns[j] * depth_ + d];
        }
        memset(i_.across, 0, sizeof(T) * size_t(packed_size<TILE_COLUMNS<T>>(scores_.length, depth_)));
        pack<TILE_COLUMNS<T>, T>(i_.values, columns_, depth_, depth_, 1, nullptr, i_.across);
        pack<TILE_COLUMNS<T>, T>(i_.values, depth_, columns_, 1, depth_, nullptr, i_.down);
    }

    ScoreRows<T> rows(int64_t first, int64_t count, const Desk<T>& desk) const {
        scores_.read_tokens(first, count, desk.tokens);
        pack<TILE_ROWS, T>(desk.tokens, count, depth_, depth_, 1, nullptr, desk.token_panels);
        multiply<false, T>(desk.token_panels, i_.across, count, scores_.length, depth_, desk.slope, scores_.length);
        return {desk.slope, scores_.length, nullptr};
    }

    // dx_i += u_i sum_j K_ij v_j dA_j
    void move(int64_t, int64_t first, int64_t count, const T* kernel, const T* u, const Desk<T>& desk) const {
        pack<TILE_ROWS, T>(kernel, count, columns_, scores_.length, 1, nullptr, desk.panels);
        multiply<false, T>(desk.panels, i_.down, count, depth_, columns_, desk.moved, depth_);
        gradients_.add_to_tokens(first, count, u, desk.moved);
    }

    void next_turn() const {}

    T* direct_row(int64_t) const { return nullptr; }

    void deliver(int64_t chunk, int64_t first, int64_t count, const Desk<T>& desk) const { gradients_.add(chunk, first, count, desk); }

private:
    const Scores<T>& scores_;
    double unit_, epsilon_;
    const GradientMemory<T>& m_;
    const IncomingMemory<T>& i_;
    const PairGradients<T>& gradients_;
    int64_t columns_, depth_;
    const T* grad_ = nullptr;
};

template <class T>
struct BackwardMemory {
    GradientMemory<T> gradient;
    IncomingMemory<T> incoming;
    PairMemory<T> pair;

    BackwardMemory(Arena& arena, const Cut<T>& cut, int64_t window)
        : gradient(arena, cut, window), incoming(arena, cut), pair(arena, cut) {}
};

template <class T>
int64_t window_for(const TransportArguments& a, const Cut<T>& cut) {
    return a.unrolled ? window_of(cut) : 0;
}

template <class T>
int64_t inner_depth(const Cut<T>& cut, int64_t window) {
    const int64_t vectors = window ? 2 * window : 1, across = cut.depth ? cut.length : 0;
    return vectors > across ? vectors : across;
}

// One problem. Its gradients of tokens and reference are added to those given.
template <class T>
class Backward {
public:
    Backward(const TransportArguments& a, const Cut<T>& cut, const BackwardMemory<T>& memory, int64_t item)
        : a_(a), cut_(cut), m_(memory), item_(item) {}

    template <class Loop>
    void run(const Loop& loop, T* tokens_grad, T* reference_grad) const {
        const int64_t batch = item_ / a_.heads, head = item_ % a_.heads;
        Problem<T> problem(a_, batch, m_.gradient.solver);
        if (problem.empty()) {
            if (a_.scores_grad)
                memset(static_cast<T*>(a_.scores_grad) + batch * a_.rows * a_.columns, 0, sizeof(T) * size_t(a_.rows * a_.columns));
            return;
        }
        const T* reference = static_cast<const T*>(a_.reference);
        Supports<T> supports = m_.gradient.supports;
        supports.fill(reference ? reference + head * a_.columns * a_.depth : nullptr, a_.squared_distance, a_.epsilon, problem.scores);
        take(static_cast<const T*>(a_.grad_row), item_ * a_.rows, problem.scores.rows, m_.gradient.phi);
        take(static_cast<const T*>(a_.grad_column), item_ * a_.columns, problem.scores.columns, m_.gradient.gamma);
        if (a_.scores.data) {
            ScoreSlope<T> slope(a_, problem, m_.gradient, batch);
            go(problem, supports, loop, slope);
        } else {
            const PairGradients<T> gradients(problem.scores, supports, m_.pair, cut_, tokens_grad, reference_grad);
            PairSlope<T> slope(a_, problem, m_.gradient, m_.incoming, gradients, item_);
            go(problem, supports, loop, slope);
            gradients.finish();
        }
    }

private:
    static void take(const T* from, int64_t start, const Chosen& chosen, double* to) {
        for (int64_t i = 0; i < chosen.count; ++i) to[i] = from ? double(from[start + chosen[i]]) : 0.0;
    }

    template <class Loop, class Slope>
    void go(const Problem<T>& problem, const Supports<T>& supports, const Loop& loop, Slope& slope) const {
        const double* history = a_.history + item_ * a_.keep * a_.columns;
        if (a_.unrolled) {
            UnrolledGradient<T, Loop, Slope> gradient(cut_, problem, m_.gradient, supports.shift, a_.epsilon, history, loop, slope);
            gradient.unroll(a_.count[item_]);
        } else {
            ImplicitGradient<T, Loop, Slope> gradient(cut_, problem, m_.gradient, supports.shift, a_.epsilon, history, loop, slope);
            gradient.solve(a_.keep);
        }
    }

    const TransportArguments& a_;
    const Cut<T>& cut_;
    const BackwardMemory<T>& m_;
    int64_t item_;
};

// Problems of one thread each. Several may add to the gradient of a token, or of a support.
template <class T>
bool small_problems(const TransportArguments& a, const Cut<T>& cut) {
    const int64_t window = window_for(a, cut), inner = inner_depth(cut, window);
    Arena measure(nullptr);
    BackwardMemory<T>(measure, cut, window);
    Desk<T>(measure, cut, inner);
    T* tokens_grad = static_cast<T*>(a.tokens_grad);
    T* reference_grad = static_cast<T*>(a.reference_grad);
    const int64_t token_size = tokens_grad && a.heads > 1 ? a.rows * a.depth : 0;
    const int64_t reference_size = reference_grad ? a.columns * a.depth : 0;
    return in_waves<T>(a.threads, a.batch * a.heads, measure.used(), token_size + reference_size,
        [&](int64_t item, void* scratch, T* sums) {
            Arena arena(scratch);
            const BackwardMemory<T> memory(arena, cut, window);
            Desk<T> desk(arena, cut, inner);
            T* for_tokens = token_size ? sums : tokens_grad ? tokens_grad + item * a.rows * a.depth : nullptr;
            Backward<T>(a, cut, memory, item).run(Alone<T>{desk}, for_tokens, reference_size ? sums + token_size : nullptr);
        },
        [&](int64_t item, const T* sums) {
            if (token_size) add(sums, token_size, tokens_grad + item / a.heads * token_size);
            if (reference_size) add(sums + token_size, reference_size, reference_grad + item % a.heads * reference_size);
        });
}

// One problem after the other, each by all threads.
template <class T>
bool large_problems(const TransportArguments& a, const Cut<T>& cut) {
    const int64_t window = window_for(a, cut);
    Arena measure(nullptr);
    BackwardMemory<T>(measure, cut, window);
    Scratch shared;
    void* scratch = shared.at_least(measure.used());
    if (!scratch) return false;
    const WithoutDenormals without;
    Arena arena(scratch);
    const BackwardMemory<T> memory(arena, cut, window);
    const Together<T> together(cut, inner_depth(cut, window), a.threads, measure.used());
    for (int64_t item = 0; item < a.batch * a.heads; ++item) {
        T* tokens_grad = static_cast<T*>(a.tokens_grad);
        T* reference_grad = static_cast<T*>(a.reference_grad);
        if (tokens_grad) tokens_grad += item / a.heads * a.rows * a.depth;
        if (reference_grad) reference_grad += item % a.heads * a.columns * a.depth;
        Backward<T>(a, cut, memory, item).run(together, tokens_grad, reference_grad);
    }
    return together.had_memory();
}

template <class T>
bool backward(const TransportArguments& a) {
    if (a.tokens_grad) memset(a.tokens_grad, 0, sizeof(T) * size_t(a.batch * a.rows * a.depth));
    if (a.reference_grad) memset(a.reference_grad, 0, sizeof(T) * size_t(a.heads * a.columns * a.depth));
    const Cut<T> cut(a.rows, a.columns, a.depth, 0);
    return cut.small ? small_problems<T>(a, cut) : large_problems<T>(a, cut);
}

}  // namespace

bool transport_backward(const TransportArguments& a) { return a.type == DataType::float64 ? backward<double>(a) : backward<float>(a); }

}  // namespace prosma::PROSMA_LEVEL

// Plans from potentials applied to values, T^T v and T v, and all gradients, on the GPU, without the plan: each tile of
// T_ij = exp((S_ij + f_i + g_j) / epsilon) is made in registers and multiplied there.
//
//     dT_ij = <v_i, dy_j> or <dy_i, v_j>;  dS = T * dT / epsilon;  df = dS 1, dg = dS^T 1
//     dv = T dy or T^T dy;   dx = dS r and dr = dS^T x, or those of distances (transport_slope.h)
#include "kernels.h"
#include "transport_slope.h"

namespace prosma::cuda {

namespace {

// Potentials over epsilon, in double; with the sign that they are used with.
template <class C>
__global__ void __launch_bounds__(THREADS) scale_kernel(const C* from, double factor, int64_t count, double* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count) to[at] = double(from[at]) * factor;
}

template <class C>
__global__ void __launch_bounds__(THREADS) narrow_kernel(const double* from, int64_t count, C* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count) to[at] = C(from[at]);
}

struct Memory {
    double *added, *top, *sums;
    void* parts = nullptr;
    int64_t part_count = 0;

    template <class C>
    Memory(Workspace& w, const ApplyArguments& a, C) {
        const int64_t items = a.batch * a.heads;
        added = w.take<double>(items * a.rows);
        top = w.take<double>(items * a.columns);
        sums = w.take<double>(items * (a.rows > a.columns ? a.rows : a.columns));
        if (!a.reference_grad) return;
        const int64_t numbers = a.heads * a.columns * a.depth;
        part_count = parts_of(a.batch, numbers);
        parts = w.take<C>(part_count * numbers);
    }
};

template <class C>
class Apply {
public:

    Apply(const ApplyArguments& a, const Memory& m, cudaStream_t stream) : a_(a), m_(m), stream_(stream) {
        over_epsilon(a.row, 1 / a.epsilon, a.batch * a.heads * a.rows, m.added);
        over_epsilon(a.column, -1 / a.epsilon, a.batch * a.heads * a.columns, m.top);
    }

    void forward() const { move_by_plan(a_.columns_side, a_.values, a_.out); }

    void backward() const {
        if (a_.values_grad) move_by_plan(!a_.columns_side, a_.grad, a_.values_grad);
        const Slope by_rows = slope(true), by_columns = slope(false);
        if (a_.row_grad) sum(by_rows, a_.rows, a_.row_grad);
        if (a_.column_grad) sum(by_columns, a_.columns, a_.column_grad);
        const Operand supports = shared_lines(a_.reference, a_.columns, a_.depth, a_.type);
        const Operand tokens = lines_of(a_.tokens, a_.type);
        Move m;
        m.width = a_.depth;
        m.batch = a_.batch;
        if (a_.tokens_grad) {
            m.slope = by_rows;
            m.over = Over::heads;
            m.values = supports;
            if (a_.squared_distance) m.lines = tokens;
            m.out = a_.tokens_grad;
            move<C, true>("apply_plan_tokens_gradient", m, stream_);
        }
        if (!a_.reference_grad) return;
        m.slope = by_columns;
        m.over = Over::batch;
        m.values = tokens;
        m.lines = a_.squared_distance ? supports : Operand{};
        m.parts = m_.part_count;
        m.out = m_.parts;
        move_over_batch<C>("apply_plan_reference_gradient", m, a_.reference_grad, stream_);
    }

private:
    void over_epsilon(const void* from, double factor, int64_t count, double* to) const {
        launch("apply_plan_potentials", scale_kernel<C>, {unsigned(ceil_div(count, THREADS)), THREADS, 0, stream_},
               static_cast<const C*>(from), factor, count, to);
    }

    // Values of the tokens (B, rows, width) or of the supports (B, heads, columns, width).
    Operand values_of(bool rows, const void* data) const {
        if (!rows) return items_lines(data, a_.heads, a_.columns, a_.width, a_.type);
        return operand(data, a_.rows * a_.width, 0, a_.width, 1, computed_type(a_.type));
    }

    // To the columns, a result a head, or to the rows, the sum over heads.
    void move_by_plan(bool to_columns, const void* values, void* out) const {
        Move m;
        m.slope.pair = pairing(a_, Matrices{}, !to_columns);
        m.slope.plan = {m_.added, m_.top, nullptr, true};
        m.values = values_of(to_columns, values);
        m.width = a_.width;
        m.over = to_columns ? Over::nothing : Over::heads;
        m.batch = a_.batch;
        m.out = out;
        move<C, false>("apply_plan", m, stream_);
    }

    Slope slope(bool own_rows) const {
        Slope s;
        s.pair = pairing(a_, Matrices{}, own_rows);
        s.plan = {m_.added, m_.top, nullptr, true};
        const Operand of_rows = values_of(true, a_.columns_side ? a_.values : a_.grad);
        const Operand of_columns = values_of(false, a_.columns_side ? a_.grad : a_.values);
        s.moved_own = own_rows ? of_rows : of_columns;
        s.moved_other = own_rows ? of_columns : of_rows;
        s.width = a_.width;
        return s;
    }

    void sum(const Slope& s, int64_t lines, void* to) const {
        const int64_t items = a_.batch * a_.heads, count = items * lines;
        sums<C, true>("apply_plan_potentials_gradient", s, items, nullptr, nullptr, nullptr, m_.sums, stream_);
        launch("apply_plan_potentials_gradient", narrow_kernel<C>, {unsigned(ceil_div(count, THREADS)), THREADS, 0, stream_},
               m_.sums, count, static_cast<C*>(to));
    }

    const ApplyArguments& a_;
    const Memory& m_;
    cudaStream_t stream_;
};

template <class C>
size_t apply(const ApplyArguments& a, const OnDevice* device) {
    Workspace workspace(a.workspace);
    const Memory m(workspace, a, C(0));
    if (!device || !a.batch) return workspace.used();
    const Apply<C> run(a, m, device->stream());
    if (a.grad)
        run.backward();
    else
        run.forward();
    return workspace.used();
}

void start(const ApplyArguments& a) {
    const OnDevice device(a.queue);
    for_computed(a.type, [&](auto zero) { apply<decltype(zero)>(a, &device); });
}

}  // namespace

void apply_plan_forward(const ApplyArguments& a) { start(a); }
void apply_plan_backward(const ApplyArguments& a) { start(a); }

size_t apply_plan_workspace(const ApplyArguments& a) {
    return for_computed(a.type, [&](auto zero) { return apply<decltype(zero)>(a, nullptr); });
}

}  // namespace prosma::cuda

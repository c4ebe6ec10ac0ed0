// The gradients of Sinkhorn's potentials, of the plan, and of T^T x, on the GPU. The unrolled one of scores that fit on chip
// is made in one launch (transport_chip_back.h); this is for all others.
//
// From phi = dL/df and gamma = dL/dg of the last potentials, T * dT / epsilon and its sums (transport_slope.h), either back
// through the iterations that ran, a launch for the rows and one for the columns of each,
//     phi_i -= sum_j P_ij gamma_j        gamma_j = -sum_i R_ij phi_i        P = T / b, R = T / a of iteration t
// or to the fixed point (transport_implicit.h). dS is then made tile by tile, from the vectors of all iterations or from
// alpha and beta, and written or multiplied while it is in registers.
#include "kernels.h"
#include "transport_chip_back.h"
#include "transport_implicit.h"
#include "transport_steps.h"

namespace prosma::cuda {

namespace {

// Column potentials over epsilon: step 0 before the first iteration, then the history.
__global__ void __launch_bounds__(THREADS) columns_kernel(const double* live, const double* history, int64_t keep, int64_t columns,
                                                          int64_t numbers, double scale, int64_t count, double* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    const int64_t step = at / numbers, item = at % numbers / columns, column = at % columns;
    const bool takes_part = finite(live[at % numbers]);
    to[at] = !takes_part ? -infinity() : step ? history[(item * keep + step - 1) * columns + column] * scale : 0.0;
}

// Of every item the step before its last one.
__global__ void __launch_bounds__(THREADS) choose_kernel(const double* columns_of_steps, const int* ran, int64_t columns,
                                                         int64_t count, double* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count) to[at] = columns_of_steps[(ran[at / columns] - 1) * count + at];
}

__global__ void __launch_bounds__(THREADS) log_mass_kernel(const double* mass, int64_t mass_step, int64_t lines, int64_t heads,
                                                           int64_t count, double* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    const double value = mass[at / lines / heads * mass_step + at % lines];
    to[at] = value > 0 ? log(value) : -infinity();
}

// What arrives at potentials: sums of T * dT / epsilon, and their own gradient. Where `ran` is given the place is that of
// the item's last step.
template <class C>
__global__ void __launch_bounds__(THREADS) arrive_kernel(const double* sums, const C* grad, const double* live, const int* ran,
                                                         int64_t lines, int64_t count, double* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    const double of_plan = sums ? sums[at] : 0.0, own = grad && finite(live[at]) ? double(grad[at]) : 0.0;
    to[(ran ? (ran[at / lines] - 1) * count : 0) + at] = of_plan + own;
}

struct StepBack {
    Pairing pair;
    int64_t items, step, tiles;
    const int* ran;
    const double *live, *before, *columns, *arriving;  // (items, lines)
    double *f, *phi, *gamma;                            // of this step
    double* gamma_before;
    const double *log_row_mass, *log_column_mass;
};

// Of the other lines: a potential less the logarithm of the mass, infinite where a line takes no part.
template <class C>
__device__ __forceinline__ void differences(const double* potentials, const double* log_mass, int64_t first, int64_t size,
                                            double (&to)[MINE<C>]) {
    const int64_t line = first + other_line<C>(0);
    const int count = inside<C>(line, size);
#pragma unroll
    for (int c = 0; c < MINE<C>; ++c) {
        const bool live = c < count && finite(potentials[line + c]);
        to[c] = live ? potentials[line + c] - log_mass[line + c] : -infinity();
    }
}

// f_t from the column potentials before it, and phi_t = [what arrives] - sum_j P_ij gamma_j. The own lines are rows.
template <class C>
__global__ void __launch_bounds__(THREADS, 1) rows_back_kernel(const __grid_constant__ StepBack b) {
    const Place p = place_of<C>(blockIdx.x, b.tiles, b.pair.heads);
    if (b.step >= b.ran[p.item]) return;
    const int64_t own_start = p.item * b.pair.own_size, other_start = p.item * b.pair.other_size;
    const Potentials potentials{b.live + own_start, b.before + other_start};
    RunningSums<C> sums;
    log_sums(b.pair, p, potentials, sums);
    double f[MINE<C>], taken[MINE<C>] = {};
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r) {
        const int64_t line = p.first + own_line<C>(r);
        const bool inside = line < b.pair.own_size && sums.sum[r] > 0;
        const double log_mass = inside ? b.log_row_mass[own_start + line] : -infinity();
        f[r] = finite(log_mass) ? log_mass - log(sums.sum[r]) - sums.top[r] : -infinity();
    }
    for (int64_t first = 0; first < b.pair.other_size; first += TILE<C>) {
        Tile<C> tile;
        double by_column[MINE<C>], gamma[MINE<C>];
        score_tile(b.pair, p, first, potentials, tile);
        differences<C>(b.columns + other_start, b.log_column_mass + other_start, first, b.pair.other_size, by_column);
        other_values<C>(b.gamma + other_start, first, b.pair.other_size, 0, gamma);
        for_pairs<C>([&](int r, int c) {
            if (!finite(f[r]) || !finite(by_column[c])) return;
            const double x = double(tile[r][c]) * b.pair.scale + f[r] + by_column[c];
            taken[r] += double(exponential(x < 0 ? x : 0.0, C(0))) * gamma[c];
        });
    }
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r) {
        const double sum = over_others(taken[r]);
        const int64_t line = p.first + own_line<C>(r);
        if (threadIdx.x % LANES || line >= b.pair.own_size) continue;
        b.f[own_start + line] = f[r];
        b.phi[own_start + line] = (b.step + 1 == b.ran[p.item] ? b.arriving[own_start + line] : 0.0) - sum;
    }
}

// gamma_(t-1) = -sum_i R_ij phi_i. The own lines are columns.
template <class C>
__global__ void __launch_bounds__(THREADS, 2) columns_back_kernel(const __grid_constant__ StepBack b) {
    const Place p = place_of<C>(blockIdx.x, b.tiles, b.pair.heads);
    if (b.step >= b.ran[p.item]) return;
    const int64_t own_start = p.item * b.pair.own_size, other_start = p.item * b.pair.other_size;
    const Potentials potentials{b.before + own_start, b.f + other_start};
    double potential[MINE<C>], sums[MINE<C>] = {};
    own_values<C>(potentials.own, p.first, b.pair.own_size, -infinity(), potential);
    for (int64_t first = 0; first < b.pair.other_size; first += TILE<C>) {
        Tile<C> tile;
        double by_row[MINE<C>], phi[MINE<C>];
        score_tile(b.pair, p, first, potentials, tile);
        differences<C>(potentials.other, b.log_row_mass + other_start, first, b.pair.other_size, by_row);
        other_values<C>(b.phi + other_start, first, b.pair.other_size, 0, phi);
        for_pairs<C>([&](int r, int c) {
            if (!finite(potential[r]) || !finite(by_row[c])) return;
            const double x = double(tile[r][c]) * b.pair.scale + potential[r] + by_row[c];
            sums[r] += double(exponential(x < 0 ? x : 0.0, C(0))) * phi[c];
        });
    }
#pragma unroll
    for (int r = 0; r < MINE<C>; ++r) {
        const double sum = over_others(sums[r]);
        const int64_t line = p.first + own_line<C>(r);
        if (threadIdx.x % LANES == 0 && line < b.pair.own_size) b.gamma_before[own_start + line] = -sum;
    }
}

struct Memory {
    int64_t items, rows, columns, steps;
    double *live_rows, *live_columns, *columns_of_steps, *before, *last_rows, *top, *share, *phi_sums, *gamma_sums, *arriving;
    double *log_rows = nullptr, *log_columns = nullptr, *f = nullptr, *phi = nullptr, *gamma = nullptr;
    void* parts = nullptr;
    int64_t part_count = 0;

    template <class C>
    Memory(Workspace& w, const TransportArguments& a, C)
        : items(a.batch * a.heads), rows(items * a.rows), columns(items * a.columns), steps(a.keep) {
        live_rows = w.take<double>(rows);
        live_columns = w.take<double>(columns);
        columns_of_steps = w.take<double>((steps + 1) * columns);
        before = w.take<double>(columns);
        last_rows = w.take<double>(rows);
        top = w.take<double>(rows > columns ? rows : columns);
        share = w.take<double>(rows > columns ? rows : columns);
        phi_sums = w.take<double>(rows);
        gamma_sums = w.take<double>(columns);
        arriving = w.take<double>(rows);
        gamma = w.take<double>(steps * columns);
        if (a.unrolled) {
            log_rows = w.take<double>(rows);
            log_columns = w.take<double>(columns);
            f = w.take<double>(steps * rows);
            phi = w.take<double>(steps * rows);
        }
        if (!a.reference_grad) return;
        const int64_t numbers = a.heads * a.columns * a.depth;
        part_count = parts_of(a.batch, numbers);
        parts = w.take<C>(part_count * numbers);
    }
};

template <class C>
class Backward {
public:
    Backward(const TransportArguments& a, const Memory& m, cudaStream_t stream)
        : a_(a), m_(m), stream_(stream), rows_(pairing(a, a.scores, true)), columns_(pairing(a, a.scores, false)) {}

    void run(Workspace& workspace) {
        prepare();
        anchor();
        Slope by_rows = slope(true), by_columns = slope(false);
        const bool moved = by_rows.moved_own.data != nullptr;
        if (moved) {
            sums<C, true>("transport_slope_sums", by_rows, m_.items, nullptr, nullptr, nullptr, m_.phi_sums, stream_);
            sums<C, true>("transport_slope_sums", by_columns, m_.items, nullptr, nullptr, nullptr, m_.gamma_sums, stream_);
        }
        arrive(moved ? m_.phi_sums : nullptr, a_.grad_row, m_.live_rows, nullptr, a_.rows, m_.rows, m_.arriving);
        const int* ran = a_.unrolled ? a_.count : nullptr;
        arrive(moved ? m_.gamma_sums : nullptr, a_.grad_column, m_.live_columns, ran, a_.columns, m_.columns, m_.gamma);
        if (a_.unrolled) {
            unroll();
            const Unrolled taken{m_.f, m_.phi, m_.gamma, m_.columns_of_steps, a_.count, m_.log_rows, m_.log_columns, m_.items};
            by_rows.unrolled = by_columns.unrolled = taken;
        } else {
            const Solution found = solve<C>(workspace, a_, by_rows, by_columns, m_.arriving, m_.gamma, stream_);
            by_rows.alpha = by_columns.alpha = found.alpha;
            by_rows.beta = by_columns.beta = found.beta;
        }
        deliver(by_rows, by_columns);
    }

private:
    void prepare() {
        start_potentials(a_.row_mass, a_.row_mass_step, a_.rows, a_.heads, m_.items, m_.live_rows, stream_);
        start_potentials(a_.column_mass, a_.column_mass_step, a_.columns, a_.heads, m_.items, m_.live_columns, stream_);
        const int64_t all = (m_.steps + 1) * m_.columns;
        launch("transport_columns_of_steps", columns_kernel, {blocks_for(all), THREADS, 0, stream_}, m_.live_columns, a_.history,
               a_.keep, a_.columns, m_.columns, 1 / a_.epsilon, all, m_.columns_of_steps);
        if (!a_.unrolled) return;
        log_masses(a_.row_mass, a_.row_mass_step, a_.rows, m_.rows, m_.log_rows);
        log_masses(a_.column_mass, a_.column_mass_step, a_.columns, m_.columns, m_.log_columns);
    }

    void log_masses(const double* mass, int64_t step, int64_t lines, int64_t count, double* to) {
        launch("transport_log_masses", log_mass_kernel, {blocks_for(count), THREADS, 0, stream_}, mass, step, lines, a_.heads,
               count, to);
    }

    // The potentials that make the plan. Unrolled: the last step again, so that columns are exact. Implicit: from the last
    // column potentials alone, so that rows are.
    void anchor() {
        HalfStep h{};
        h.pair = rows_;
        h.before = m_.live_rows;
        h.mass = a_.row_mass;
        h.mass_step = a_.row_mass_step;
        h.tiles = tiles_of<C>(a_.rows);
        if (!a_.unrolled) {
            h.given = last_columns();
            h.top = m_.top;
            h.share = m_.share;
            return half_step<C>("transport_rows", h, m_.items, stream_);
        }
        launch("transport_choose", choose_kernel, {blocks_for(m_.columns), THREADS, 0, stream_}, m_.columns_of_steps, a_.count,
               a_.columns, m_.columns, m_.before);
        h.given = m_.before;
        h.found = m_.last_rows;
        half_step<C>("transport_rows", h, m_.items, stream_);
        HalfStep c{};
        c.pair = columns_;
        c.before = m_.live_columns;
        c.given = m_.last_rows;
        c.mass = a_.column_mass;
        c.mass_step = a_.column_mass_step;
        c.top = m_.top;
        c.share = m_.share;
        c.tiles = tiles_of<C>(a_.columns);
        half_step<C>("transport_columns", c, m_.items, stream_);
    }

    const double* last_columns() const { return m_.columns_of_steps + m_.steps * m_.columns; }

    Slope slope(bool own_rows) const {
        Slope s;
        s.pair = own_rows ? rows_ : columns_;
        s.plan = a_.unrolled ? Anchored{m_.last_rows, m_.top, m_.share, true} : Anchored{last_columns(), m_.top, m_.share, false};
        if (a_.grad_plan.data) s.moved_own = matrix_of(a_.grad_plan, own_rows, a_.type);
        if (a_.grad_aligned) {
            const Operand tokens = lines_of(a_.tokens, a_.type), incoming = this->incoming();
            s.moved_own = own_rows ? tokens : incoming;
            s.moved_other = own_rows ? incoming : tokens;
            s.width = a_.depth;
        }
        return s;
    }

    void arrive(const double* from, const void* grad, const double* live, const int* ran, int64_t lines, int64_t count,
                double* to) {
        launch("transport_arrive", arrive_kernel<C>, {blocks_for(count), THREADS, 0, stream_}, from,
               static_cast<const C*>(grad), live, ran, lines, count, to);
    }

    void unroll() {
        StepBack b{};
        b.items = m_.items;
        b.ran = a_.count;
        b.live = m_.live_rows;
        b.arriving = m_.arriving;
        b.log_row_mass = m_.log_rows;
        b.log_column_mass = m_.log_columns;
        for (int64_t step = m_.steps - 1; step >= 0; --step) {
            b.step = step;
            b.before = m_.columns_of_steps + step * m_.columns;
            b.columns = b.before + m_.columns;
            b.f = m_.f + step * m_.rows;
            b.phi = m_.phi + step * m_.rows;
            b.gamma = m_.gamma + step * m_.columns;
            b.pair = rows_;
            b.tiles = tiles_of<C>(a_.rows);
            launch("transport_rows_back", rows_back_kernel<C>, {unsigned(m_.items * b.tiles), THREADS, 0, stream_}, b);
            if (step == 0) break;
            b.gamma_before = b.gamma - m_.columns;
            b.pair = columns_;
            b.tiles = tiles_of<C>(a_.columns);
            launch("transport_columns_back", columns_back_kernel<C>, {unsigned(m_.items * b.tiles), THREADS, 0, stream_}, b);
        }
    }

    Operand incoming() const { return items_lines(a_.grad_aligned, a_.heads, a_.columns, a_.depth, a_.type); }

    void deliver(const Slope& by_rows, const Slope& by_columns) {
        if (a_.scores_grad)
            write<C, true>("transport_scores_gradient", by_rows, m_.items, a_.scores_grad, computed_type(a_.type), stream_);
        const Operand supports = shared_lines(a_.reference, a_.columns, a_.depth, a_.type);
        const Operand tokens = lines_of(a_.tokens, a_.type);
        Move m;
        m.width = a_.depth;
        m.batch = a_.batch;
        if (a_.tokens_grad) {
            m.slope = by_rows;
            m.over = Over::heads;
            m.out = a_.tokens_grad;
            if (a_.grad_aligned) {
                m.values = incoming();
                move<C, false>("transport_tokens_gradient", m, stream_);
                m.adds = true;
            }
            m.values = supports;
            if (a_.squared_distance) m.lines = tokens;
            move<C, true>("transport_tokens_gradient", m, stream_);
        }
        if (!a_.reference_grad) return;
        m.slope = by_columns;
        m.adds = false;
        m.over = Over::batch;
        m.values = tokens;
        m.lines = a_.squared_distance ? supports : Operand{};
        m.parts = m_.part_count;
        m.out = m_.parts;
        move_over_batch<C>("transport_reference_gradient", m, a_.reference_grad, stream_);
    }

    const TransportArguments& a_;
    const Memory& m_;
    cudaStream_t stream_;
    Pairing rows_, columns_;
};

ChipBackward chip_of(const TransportArguments& a, int64_t own_rows) {
    ChipBackward c{};
    static_cast<ChipProblem&>(c) = chip_problem(a, own_rows, a.scores_grad, computed_type(a.type));
    c.history = a.history;
    c.count = a.count;
    c.grad_plan = matrix_of(a.grad_plan, true, a.type);
    c.grad_row = a.grad_row;
    c.grad_column = a.grad_column;
    c.scores_grad = a.scores_grad;
    return c;
}

template <class C>
size_t backward(const TransportArguments& a, const OnDevice* device) {
    Workspace workspace(a.workspace);
    const Memory m(workspace, a, C(0));
    if (!device) {
        if (!a.unrolled) SolverMemory(workspace, a);
        return workspace.used();
    }
    const ChipPlan on_chip = a.unrolled && a.scores.data ? chip_plan<C>(a.rows, a.columns, true, *device) : ChipPlan{};
    if (m.items && on_chip.cluster)
        launch_on_chip("transport_back_on_chip", chip_back_kernel<C, 16>, chip_back_kernel<C, MOST_REGISTERS<C>>,
                       chip_of(a, on_chip.own_rows), on_chip, m.items, device->stream());
    else if (m.items)
        Backward<C>(a, m, device->stream()).run(workspace);
    return workspace.used();
}

}  // namespace

void transport_backward(const TransportArguments& a) {
    const OnDevice device(a.queue);
    for_computed(a.type, [&](auto zero) { backward<decltype(zero)>(a, &device); });
}

size_t transport_backward_workspace(const TransportArguments& a) {
    return for_computed(a.type, [&](auto zero) { return backward<decltype(zero)>(a, nullptr); });
}

}  // namespace prosma::cuda

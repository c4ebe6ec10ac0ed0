// Sinkhorn, the plan and what it aligns, on the GPU. An item whose scores fit in the shared memory of a cluster is done in
// one launch (transport_chip.h). Of larger ones half an iteration is a launch, all items of the batch in it, and whether an
// item has converged is decided on the device: one that is done passes its blocks by.
//
// The row potentials of iteration t + 1 tell how far the rows of the plan were off after t: by a factor of
// exp(f_t - f_(t+1)). So a tolerance costs no sweep of its own.
#include "kernels.h"
#include "transport_chip.h"
#include "transport_steps.h"

namespace prosma::cuda {

namespace {

// After the rows' half of iteration `step`, which showed how far those of the iteration before were off.
__global__ void __launch_bounds__(THREADS) decide_kernel(const double* errors, int64_t tiles, double tolerance, int step, int* done,
                                                         int* count) {
    if (done[blockIdx.x]) return;
    double error = 0;
    for (int64_t tile = threadIdx.x; tile < tiles; tile += THREADS) {
        const double other = errors[blockIdx.x * tiles + tile];
        error = other > error ? other : error;
    }
    error = largest_of_block<THREADS / WARP>(error);
    if (threadIdx.x || !(error < tolerance)) return;
    done[blockIdx.x] = 1;
    count[blockIdx.x] = step;
}

// Potentials as they are given out; rows of the iteration that was the item's last: the buffers take turns.
template <class C>
__global__ void __launch_bounds__(THREADS) finish_kernel(const double* even, const double* odd, const int* ran, int64_t lines,
                                                         double epsilon, int64_t count, double* last, C* to) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    const double potential = ran && ran[at / lines] % 2 == 0 ? odd[at] : even[at];
    if (last) last[at] = potential;
    to[at] = C(epsilon * potential);
}

struct Memory {
    double *rows[2], *columns, *last_rows, *top, *share, *errors;
    int* done;

    template <class C>
    Memory(Workspace& w, const TransportArguments& a, C) {
        const int64_t items = a.batch * a.heads;
        for (double*& row : rows) row = w.take<double>(items * a.rows);
        last_rows = w.take<double>(items * a.rows);
        for (double** column : {&columns, &top, &share}) *column = w.take<double>(items * a.columns);
        errors = w.take<double>(items * tiles_of<C>(a.rows));
        done = w.take<int>(items);
    }
};

template <class C>
void iterate(const TransportArguments& a, const Memory& m, cudaStream_t stream) {
    const int64_t items = a.batch * a.heads;
    const bool stops = a.tolerance > 0;
    start_potentials(a.row_mass, a.row_mass_step, a.rows, a.heads, items, m.rows[1], stream);
    start_potentials(a.column_mass, a.column_mass_step, a.columns, a.heads, items, m.columns, stream);
    launch("transport_start", fill_kernel<int>, {blocks_for(items), THREADS, 0, stream}, m.done, items, 0);
    launch("transport_start", fill_kernel<int>, {blocks_for(items), THREADS, 0, stream}, a.count, items, int(a.iterations));
    HalfStep of_rows{}, of_columns{};
    of_rows.pair = pairing(a, a.scores, true);
    of_columns.pair = pairing(a, a.scores, false);
    of_rows.mass = a.row_mass;
    of_rows.mass_step = a.row_mass_step;
    of_columns.mass = a.column_mass;
    of_columns.mass_step = a.column_mass_step;
    of_rows.given = of_columns.before = of_columns.found = m.columns;
    of_rows.error = stops ? m.errors : nullptr;
    of_rows.done = of_columns.done = stops ? m.done : nullptr;
    of_columns.top = m.top;
    of_columns.share = m.share;
    of_columns.history = a.history;
    of_columns.keep = a.keep;
    of_columns.epsilon = a.epsilon;
    of_rows.tiles = tiles_of<C>(a.rows);
    of_columns.tiles = tiles_of<C>(a.columns);
    for (int64_t step = 0; step < a.iterations; ++step) {
        of_rows.before = m.rows[(step + 1) % 2];
        of_rows.found = m.rows[step % 2];
        half_step<C>("transport_rows", of_rows, items, stream);
        if (stops && step > 0)
            launch("transport_decide", decide_kernel, {unsigned(items), THREADS, 0, stream}, m.errors, of_rows.tiles, a.tolerance,
                   int(step), m.done, a.count);
        of_columns.given = m.rows[step % 2];
        of_columns.step = step;
        half_step<C>("transport_columns", of_columns, items, stream);
    }
}

template <class C>
void finish(const TransportArguments& a, const Memory& m, cudaStream_t stream) {
    const int64_t items = a.batch * a.heads;
    launch("transport_finish", finish_kernel<C>, {blocks_for(items * a.rows), THREADS, 0, stream}, m.rows[0], m.rows[1], a.count,
           a.rows, a.epsilon, items * a.rows, m.last_rows, static_cast<C*>(a.row));
    launch("transport_finish", finish_kernel<C>, {blocks_for(items * a.columns), THREADS, 0, stream}, m.columns, m.columns,
           static_cast<const int*>(nullptr), a.columns, a.epsilon, items * a.columns, static_cast<double*>(nullptr),
           static_cast<C*>(a.column));
}

ChipForward chip_of(const TransportArguments& a, const Memory& m, int64_t own_rows) {
    ChipForward c{};
    static_cast<ChipProblem&>(c) = chip_problem(a, own_rows, a.plan, a.type);
    c.iterations = a.iterations;
    c.tolerance = a.tolerance;
    c.plan = a.plan;
    c.row = a.row;
    c.column = a.column;
    c.history = a.history;
    c.count = a.count;
    c.last_rows = m.last_rows;
    c.top = m.top;
    c.share = m.share;
    return c;
}

template <class C>
size_t forward(const TransportArguments& a, const OnDevice* device) {
    Workspace workspace(a.workspace);
    const Memory m(workspace, a, C(0));
    const int64_t items = a.batch * a.heads;
    if (!device || !items) return workspace.used();
    const cudaStream_t stream = device->stream();
    const ChipPlan on_chip = chip_plan<C>(a.rows, a.columns, false, *device);
    if (on_chip.cluster) {
        launch_on_chip("transport_on_chip", chip_kernel<C, 16>, chip_kernel<C, MOST_REGISTERS<C>>,
                       chip_of(a, m, on_chip.own_rows), on_chip, items, stream);
    } else {
        iterate<C>(a, m, stream);
        finish<C>(a, m, stream);
    }
    Slope slope;
    slope.pair = pairing(a, a.scores, a.plan != nullptr);
    slope.plan = {m.last_rows, m.top, m.share, true};
    if (a.plan && !on_chip.cluster) write<C, false>("transport_plan", slope, items, a.plan, a.type, stream);
    if (a.aligned) {
        Move moved;
        moved.slope = slope;
        moved.values = lines_of(a.tokens, a.type);
        moved.width = a.depth;
        moved.batch = a.batch;
        moved.out = a.aligned;
        move<C, false>("transport_align", moved, stream);
    }
    return workspace.used();
}

}  // namespace

void transport_forward(const TransportArguments& a) {
    const OnDevice device(a.queue);
    for_computed(a.type, [&](auto zero) { forward<decltype(zero)>(a, &device); });
}

size_t transport_forward_workspace(const TransportArguments& a) {
    return for_computed(a.type, [&](auto zero) { return forward<decltype(zero)>(a, nullptr); });
}

}  // namespace prosma::cuda

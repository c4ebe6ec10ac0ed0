// What the gradients of Sinkhorn for one problem have in common: their memory, sweeps over K, and where dL/dT comes from.
//
// With S, f, g over epsilon, phi = dL/df, gamma = dL/dg and G = T * dL/dT / epsilon, of the last potentials
//     phi = dL/drow + G 1,   gamma = dL/dcolumn + G^T 1,   dS = G
// from which transport_unrolled.h goes back through the iterations, and transport_implicit.h solves for the fixed point.
// Both make dS in blocks of rows.
#pragma once

#include "transport_solver.h"

namespace prosma::PROSMA_LEVEL {

// Iterations whose vectors are kept for one update.
constexpr int64_t WINDOW = 32;

template <class T>
int64_t window_of(const Cut<T>& cut) {
    const int64_t fitting = (int64_t(1) << 20) / (cut.rows + cut.length + 1);
    return fitting < 1 ? 1 : fitting > WINDOW ? WINDOW : fitting;
}

template <class T>
struct GradientMemory {
    SolverMemory<T> solver;
    Supports<T> supports;
    int64_t row_step;
    double *phi, *gamma, *earlier, *later, *row_now, *weights, *residual, *direction, *scaled, *found;
    T *w, *slope_v, *row_vectors, *column_vectors, *column_panels;

    // For the implicit gradient, residuals of the solver, in no more than 8 MB.
    double* remembered;
    int64_t most_remembered;

    // `window`: how many iterations' vectors are kept; 0 for the implicit gradient.
    GradientMemory(Arena& arena, const Cut<T>& cut, int64_t window)
        : solver(arena, cut), supports(arena, cut), row_step(whole_groups(cut.rows)) {
        const int64_t depth = 2 * window;
        phi = arena.take<double>(row_step);
        row_now = arena.take<double>(row_step);
        gamma = arena.take<double>(cut.length);
        earlier = arena.take<double>(cut.length);
        later = arena.take<double>(cut.length);
        weights = arena.take<double>(cut.length);
        residual = arena.take<double>(cut.length);
        direction = arena.take<double>(cut.length);
        scaled = arena.take<double>(cut.length);
        found = arena.take<double>(cut.length);
        w = arena.take<T>(cut.length);
        slope_v = arena.take<T>(cut.length);
        row_vectors = arena.take<T>(depth * row_step);
        column_vectors = arena.take<T>(depth * cut.length);
        column_panels = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.length, depth));
        const int64_t unknowns = (cut.rows < cut.columns ? cut.rows : cut.columns) + 16, fitting = (int64_t(1) << 20) / cut.length;
        most_remembered = window ? 0 : unknowns < fitting ? unknowns : fitting;
        remembered = arena.take<double>(most_remembered * cut.length);
    }
};

// Sweeps over K = exp(S + f + g) for the column potentials g of some step of the history, and f_i = -max_j(S_ij + g_j).
template <class T, class Loop>
class KernelSweeps {
protected:
    KernelSweeps(const Cut<T>& cut, const Problem<T>& problem, const GradientMemory<T>& memory, const double* shift, double epsilon,
                 const double* history, const Loop& loop)
        : cut_(cut), scores_(problem.scores), rows_(problem.rows), columns_(problem.columns), length_(problem.scores.length),
          chunks_(cut.chunks(problem.rows)), m_(memory), s_(memory.solver), shift_(shift), epsilon_(epsilon), history_(history),
          loop_(loop) {
        for (int64_t j = 0; j < length_; ++j) {
            s_.g[j] = m_.earlier[j] = m_.later[j] = PADDING;
            s_.v[j] = m_.w[j] = m_.slope_v[j] = 0;
        }
    }

    // g_t over epsilon, as K counts it; g_0 is what a potential of 0 is.
    void take_potentials(int64_t t, double* to) const {
        memcpy(to, shift_, sizeof(double) * size_t(columns_));
        if (t == 0) return;
        const double* from = history_ + (t - 1) * cut_.columns;
        const int32_t* numbers = scores_.columns.numbers;
        if (numbers)
            for (int64_t j = 0; j < columns_; ++j) to[j] += from[numbers[j]] / epsilon_;
        else
            for (int64_t j = 0; j < columns_; ++j) to[j] += from[j] / epsilon_;
    }

    // K from the potentials in `earlier`; it is made when it is first needed.
    void open_window() {
        memcpy(s_.g, m_.earlier, sizeof(double) * size_t(columns_));
        fresh_ = true;
    }

    void fill_v(T value) {
        for (int64_t j = 0; j < columns_; ++j) s_.v[j] = value;
    }

    // Calls body(chunk, first, count, kernel, desk) for all blocks. `sums`, unless null, become what the bodies leave in
    // desk.sums and in partial_sums(chunk), both of which are zero at first.
    template <class Body>
    void for_each_kernel(const Body& body, double* sums) {
        loop_(chunks_, [&](int64_t chunk, Desk<T>& desk) {
            start_sums(chunk, desk);
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                T* kernel = s_.kernel ? s_.kernel + first * length_ : desk.kernel;
                if (fresh_ || !s_.kernel)
                    make_kernel(scores_, score_rows(scores_, first, count, desk), count, Order::column_first, fresh_, s_.f + first,
                                s_.g, kernel);
                body(chunk, first, count, kernel, desk);
                if (sums) move_sums<T>(desk.sums, length_, partial_sums(chunk));
            });
        });
        fresh_ = false;
        if (sums) add_chunks(sums);
    }

    // Of a chunk of rows; for_each_kernel adds them up.
    double* partial_sums(int64_t chunk) const { return s_.partial + chunk * length_; }

    void start_sums(int64_t chunk, const Desk<T>& desk) const {
        memset(partial_sums(chunk), 0, sizeof(double) * size_t(length_));
        memset(desk.sums, 0, sizeof(T) * size_t(length_));
    }

    void add_chunks(double* sums) const {
        memcpy(sums, s_.partial, sizeof(double) * size_t(length_));
        for (int64_t chunk = 1; chunk < chunks_; ++chunk)
            for (int64_t j = 0; j < length_; ++j) sums[j] += s_.partial[chunk * length_ + j];
    }

    const Cut<T>& cut_;
    const Scores<T>& scores_;
    int64_t rows_, columns_, length_, chunks_;
    const GradientMemory<T>& m_;
    const SolverMemory<T>& s_;
    const double* shift_;
    double epsilon_;
    const double* history_;
    const Loop& loop_;
    bool fresh_ = true;
};

// What `Slope` is: it knows dL/dT and where dL/dS goes.
//     bool exists()                                      whether there is a dL/dT
//     void prepare(v)                                    T_ij = u_i K_ij v_j from now on; fills memory.slope_v
//     ScoreRows rows(first, count, desk)                 slope_ij, so that G_ij = u_i K_ij slope_v_j slope_ij
//     void move(first, count, kernel, u, desk)           what else T itself brings, once
//     void next_turn()                                   all blocks of dS follow, once more
//     T* direct_row(i)                                   where row i of dS is written at once in this turn; null: by `deliver`
//     void deliver(chunk, first, count, desk)            takes the block of dS in desk.slope

}  // namespace prosma::PROSMA_LEVEL

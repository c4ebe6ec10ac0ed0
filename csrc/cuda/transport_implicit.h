// The linear system of the implicit gradient on the GPU, matrix-free, three launches a step for the whole batch:
//
//     [[diag(T 1), T], [T^T, diag(T^T 1)]] [alpha; beta] = [phi; gamma]
//
// by conjugate gradients on the columns' Schur complement C = diag(T^T 1) - T^T diag(1 / T 1) T, scaled by its diagonal. C is
// the Laplacian of a graph, so relative errors of its weights cause no larger ones in the flow dS, however near to singular it
// is; but only if all sums are of the same weights. So entries of the plan have the same bits from both sides, and every sum
// over them, and every vector, is double.
//
// A direction whose curvature is below 1e-9 of its diagonal's moves potentials between parts of the plan that share so little
// mass that by definition it has no gradient: it is left out of the right side, and all begins again with what remains. What
// has no solution is taken from the rows or the columns, whichever are fewer. An item that is done passes its blocks by.
#pragma once

#include "transport_slope.h"

namespace prosma::cuda {

constexpr double NO_CURVATURE = 1e-9;
constexpr int64_t MOST_STEPS = 500;

struct SolverMemory {
    double *row_sums, *diagonal, *moved, *residual, *direction, *swept, *weights, *alpha, *beta, *norms;
    int* done;

    SolverMemory(Workspace& w, const TransportArguments& a) {
        const int64_t items = a.batch * a.heads;
        for (double** of_rows : {&row_sums, &moved, &weights, &alpha}) *of_rows = w.take<double>(items * a.rows);
        for (double** of_columns : {&diagonal, &residual, &direction, &swept, &beta})
            *of_columns = w.take<double>(items * a.columns);
        norms = w.take<double>(2 * items);
        done = w.take<int>(items);
    }
};

struct Solution {
    const double *alpha, *beta;
};

struct Vectors {
    SolverMemory m;
    const double *phi, *gamma;
    int64_t rows, columns;
    double enough;  // of the residual squared
};

template <class Term>
__device__ __forceinline__ double block_sum(int64_t count, const Term& term) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += term(i);
    return sum_of_block<THREADS / WARP>(sum);
}

__device__ __forceinline__ double over(double value, double divisor) { return divisor > 0 ? value / divisor : 0.0; }

// y = phi / T 1
template <int>
__global__ void __launch_bounds__(THREADS) share_kernel(Vectors v, int64_t count) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count) v.m.moved[at] = over(v.phi[at], v.m.row_sums[at]);
}

// The first residual, without the constant that C does not know, and the first direction. A block an item.
template <int>
__global__ void __launch_bounds__(THREADS) begin_kernel(Vectors v) {
    const int64_t item = blockIdx.x, rows = item * v.rows, columns = item * v.columns;
    const double whole = block_sum(v.rows, [&](int64_t i) { return v.m.row_sums[rows + i]; });
    const double of_rows = block_sum(v.rows, [&](int64_t i) { return v.phi[rows + i]; });
    const double of_columns = block_sum(v.columns, [&](int64_t j) { return v.gamma[columns + j]; });
    const double surplus = over(of_rows - of_columns, whole);
    for (int64_t i = threadIdx.x; i < v.rows; i += THREADS)
        v.m.alpha[rows + i] = v.m.moved[rows + i] - (v.rows > v.columns ? 0.0 : surplus);
    const double norm = block_sum(v.columns, [&](int64_t j) {
        const int64_t at = columns + j;
        const double diagonal = v.m.diagonal[at];
        const double residual = diagonal > 0 ? v.gamma[at] - v.m.swept[at] + surplus * diagonal : 0.0;
        v.m.residual[at] = residual;
        v.m.direction[at] = over(residual, diagonal);
        v.m.beta[at] = 0;
        return residual * over(residual, diagonal);
    });
    if (threadIdx.x) return;
    v.m.norms[2 * item] = norm;
    v.m.norms[2 * item + 1] = norm * v.enough;
    v.m.done[item] = !(norm > 0);
}

// The vectors of one step; `weights` holds T p / T 1 and `swept` T^T of that. A block an item.
template <int>
__global__ void __launch_bounds__(THREADS) conjugate_kernel(Vectors v) {
    const int64_t item = blockIdx.x, rows = item * v.rows, columns = item * v.columns;
    if (v.m.done[item]) return;
    const double norm = v.m.norms[2 * item];
    const double flat = block_sum(v.columns, [&](int64_t j) {
        const double p = v.m.direction[columns + j];
        return p * p * v.m.diagonal[columns + j];
    });
    const double less = block_sum(v.columns, [&](int64_t j) { return v.m.direction[columns + j] * v.m.swept[columns + j]; });
    const double curvature = flat - less;
    const bool curved = curvature > NO_CURVATURE * flat;
    const double length = curved ? norm / curvature : 0.0, left_out = curved ? 0.0 : over(norm, flat);
    if (!curved && v.rows <= v.columns)
        for (int64_t i = threadIdx.x; i < v.rows; i += THREADS) v.m.alpha[rows + i] += left_out * v.m.weights[rows + i];
    const double renewed = block_sum(v.columns, [&](int64_t j) {
        const int64_t at = columns + j;
        const double p = v.m.direction[at], diagonal = v.m.diagonal[at];
        v.m.beta[at] += length * p;
        const double residual = v.m.residual[at] - length * (diagonal * p - v.m.swept[at]) - left_out * diagonal * p;
        v.m.residual[at] = residual;
        return residual * over(residual, diagonal);
    });
    for (int64_t j = threadIdx.x; j < v.columns; j += THREADS) {
        const int64_t at = columns + j;
        v.m.direction[at] = over(v.m.residual[at], v.m.diagonal[at]) + (curved ? renewed / norm : 0.0) * v.m.direction[at];
    }
    if (threadIdx.x) return;
    v.m.norms[2 * item] = renewed;
    v.m.done[item] = !(renewed > v.m.norms[2 * item + 1]);
}

// alpha = phi / T 1 - T beta / T 1, less what has no solution; `weights` holds T beta / T 1.
template <int>
__global__ void __launch_bounds__(THREADS) end_kernel(Vectors v, int64_t count) {
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count) v.m.alpha[at] = v.m.row_sums[at] > 0 ? v.m.alpha[at] - v.m.weights[at] : 0.0;
}

template <class C>
Solution solve(Workspace& workspace, const TransportArguments& a, const Slope& by_rows, const Slope& by_columns, const double* phi,
               const double* gamma, cudaStream_t stream) {
    const int64_t items = a.batch * a.heads, rows = items * a.rows, shorter = a.rows < a.columns ? a.rows : a.columns;
    const Vectors v{SolverMemory(workspace, a), phi, gamma, a.rows, a.columns, sizeof(C) == 8 ? 1e-30 : 1e-20};
    const SolverMemory& m = v.m;
    Slope plan_rows, plan_columns;
    plan_rows.pair = by_rows.pair;
    plan_columns.pair = by_columns.pair;
    plan_rows.plan = plan_columns.plan = by_rows.plan;
    const auto product = [&](const Slope& s, const double* vector, const double* divisor, const int* done, double* to) {
        sums<C, false>("transport_plan_product", s, items, vector, divisor, done, to, stream);
    };
    const auto per_row = [&](auto kernel) {
        launch("transport_solve_rows", kernel, {unsigned(ceil_div(rows, THREADS)), THREADS, 0, stream}, v, rows);
    };
    product(plan_rows, nullptr, nullptr, nullptr, m.row_sums);
    product(plan_columns, nullptr, nullptr, nullptr, m.diagonal);
    per_row(share_kernel<0>);
    product(plan_columns, m.moved, nullptr, nullptr, m.swept);
    launch("transport_solve_begin", begin_kernel<0>, {unsigned(items), THREADS, 0, stream}, v);
    const int64_t steps = 2 * shorter + 20 < MOST_STEPS ? 2 * shorter + 20 : MOST_STEPS;
    for (int64_t step = 0; step < steps; ++step) {
        product(plan_rows, m.direction, m.row_sums, m.done, m.weights);
        product(plan_columns, m.weights, nullptr, m.done, m.swept);
        launch("transport_solve_step", conjugate_kernel<0>, {unsigned(items), THREADS, 0, stream}, v);
    }
    product(plan_rows, m.beta, m.row_sums, nullptr, m.weights);
    per_row(end_kernel<0>);
    return {m.alpha, m.beta};
}

}  // namespace prosma::cuda

// The implicit gradient of Sinkhorn for one problem: that of the fixed point.
//
// With T from the last g and the rows that follow from it (so that they are exact), solve
//     [[diag(T 1), T], [T^T, diag(T^T 1)]] [alpha; beta] = [phi; gamma],   dS = G - T * (alpha 1^T + 1 beta^T)
// by conjugate gradients on the columns' Schur complement C = diag(T^T 1) - T^T diag(1/a) T, scaled by its diagonal: one sweep
// over K a step.
//
// C is the Laplacian of a graph whose weights are made of T, and dS is the flow through it. A relative error of the weights
// causes one of the same size in the flow, however near to singular C is; but only if all sums are of the same weights. So
// K stays in the type that is computed in, and everything that is made of it, u, T^T 1, phi, gamma, and the vectors of the
// solver, is double. With sums in float, C times a constant was 1e-7 instead of 0, and dS 1e-3 off where its least
// eigenvalue was 1e-4.
#pragma once

#include "transport_gradient.h"

namespace prosma::PROSMA_LEVEL {

constexpr int64_t MOST_SOLVER_STEPS = 2000;
// Of the residual squared, in the norm that the scaling gives, relative to the first one.
template <class T>
constexpr double ENOUGH = sizeof(T) == 4 ? 1e-20 : 1e-30;
// Curvature of a direction over that of the diagonal: such a one moves potentials between parts of the plan that share so
// little mass that no number of iterations would converge in it. By definition it has no gradient.
constexpr double NO_CURVATURE = 1e-9;

template <class T, class Loop, class Slope>
class ImplicitGradient : KernelSweeps<T, Loop> {
public:
    ImplicitGradient(const Cut<T>& cut, const Problem<T>& problem, const GradientMemory<T>& memory, const double* shift,
                     double epsilon, const double* history, const Loop& loop, Slope& slope)
        : KernelSweeps<T, Loop>(cut, problem, memory, shift, epsilon, history, loop), slope_(slope), u_(memory.solver.before),
          alpha_(memory.row_now) {}

    // From phi and gamma, in memory, and the column potentials of step `last` of the history.
    void solve(int64_t last) {
        take_potentials(last, m_.earlier);
        open_window();
        find_rows();
        if (slope_.exists()) add_slopes();
        conjugate_gradients();
        deliver();
    }

private:
    using Sweeps = KernelSweeps<T, Loop>;
    using Sweeps::fill_v, Sweeps::for_each_kernel, Sweeps::open_window, Sweeps::partial_sums, Sweeps::take_potentials;
    using Sweeps::columns_, Sweeps::cut_, Sweeps::length_, Sweeps::m_, Sweeps::rows_, Sweeps::s_;

    // For every group of rows: factors from the sums sum_j K_ij x_j, factor(row, sum), and to_j = sum_i factor_i K_ij.
    template <class Factor>
    void there_and_back(const double* x, double* to, const Factor& factor) {
        for_each_kernel([&](int64_t chunk, int64_t first, int64_t count, const T* kernel, const Desk<T>&) {
            for (int64_t i = 0; i < count; i += GROUP) {
                double sums[GROUP], factors[GROUP];
                exact_dots_group<T>(kernel + i * length_, x, length_, sums);
                for (int r = 0; r < GROUP; ++r) factors[r] = i + r < count ? factor(first + i + r, sums[r]) : 0.0;
                exact_add_group<T>(kernel + i * length_, factors, length_, partial_sums(chunk));
            }
        }, to);
    }

    // u = a / (K 1), and in memory.weights T^T 1.
    void find_rows() {
        for (int64_t j = 0; j < length_; ++j) m_.direction[j] = j < columns_ ? 1 : 0;
        there_and_back(m_.direction, m_.weights, [&](int64_t i, double sum) { return u_[i] = s_.row_mass[i] / sum; });
    }

    // phi += G 1 and gamma += G^T 1.
    void add_slopes() {
        fill_v(1);
        slope_.prepare(s_.v);
        for_each_kernel([&](int64_t chunk, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            const ScoreRows<T> slope = slope_.rows(first, count, desk);
            for (int64_t i = 0; i < count; ++i) {
                s_.u[first + i] = T(u_[first + i]);
                m_.phi[first + i] += exact_slope_row<T>(kernel + i * length_, m_.slope_v, slope[i], u_[first + i], length_,
                                                        partial_sums(chunk));
            }
            slope_.move(chunk, first, count, kernel, s_.u + first, desk);
        }, m_.scaled);
        for (int64_t j = 0; j < columns_; ++j) m_.gamma[j] += m_.scaled[j];
    }

    // C beta = gamma - T^T (phi / a), with the columns scaled by the root of the diagonal, c. Constants are the null space of
    // C, so what the right side has of them is taken out first. beta is in memory.found, and 0 where a row ends.
    void conjugate_gradients() {
        double *c = m_.weights, *r = m_.residual, *p = m_.direction, *q = m_.scaled, *x = m_.found;
        take_out_constants();
        for (int64_t i = 0; i < rows_; ++i) alpha_[i] = u_[i] * m_.phi[i] / s_.row_mass[i];
        for (int64_t j = 0; j < length_; ++j) x[j] = p[j] = r[j] = 0;
        there_and_back(x, q, [&](int64_t i, double) { return alpha_[i]; });
        for (int64_t j = 0; j < columns_; ++j) {
            r[j] = (m_.gamma[j] - q[j]) / ::sqrt(c[j]);
            q[j] = ::sqrt(c[j]);
        }
        remembered_ = 0;
        remember(q, product(q, q));
        int64_t lasting = remembered_;
        make_orthogonal(r);
        double size = product(r, r);
        const double enough = size * ENOUGH<T>;
        bool begins = true;
        double before = size;
        for (int64_t step = 0; step < MOST_SOLVER_STEPS && size > enough; ++step) {
            for (int64_t j = 0; j < columns_; ++j) {
                p[j] = r[j] + (begins ? 0 : size / before * p[j]);
                m_.later[j] = p[j] / ::sqrt(c[j]);
            }
            there_and_back(m_.later, q, [&](int64_t i, double sum) {
                alpha_[i] = u_[i] * sum;
                return u_[i] * alpha_[i] / s_.row_mass[i];
            });
            for (int64_t j = 0; j < columns_; ++j) q[j] = p[j] - q[j] / ::sqrt(c[j]);
            const double curvature = product(p, q), flat = product(p, p);
            begins = !(curvature > NO_CURVATURE * flat);
            if (begins) {
                // A direction without curvature is left out of the right side, and all begins again with what remains.
                remembered_ = lasting;
                remember(p, flat);
                lasting = remembered_;
                for (int64_t i = 0; i < rows_ && from_rows(); ++i) m_.phi[i] += size / flat * alpha_[i];
            } else {
                remember(r, size);
                for (int64_t j = 0; j < columns_; ++j) {
                    x[j] += size / curvature * m_.later[j];
                    r[j] -= size / curvature * q[j];
                }
            }
            make_orthogonal(r);
            before = size;
            size = product(r, r);
        }
    }

    double product(const double* x, const double* y) const {
        Vector<double> sum{};
        for (int64_t j = 0; j < length_; j += LANES<double>) sum += load<double>(x + j) * load<double>(y + j);
        return sum_of_lanes<double>(sum);
    }

    // Residuals are orthogonal to each other, to the constants, and to what has been left out. Rounding loses that, and
    // with it the end after as many steps as there are unknowns, where eigenvalues of C lie between 1e-9 and 1; so it is
    // seen to, as far as there is memory.
    void remember(const double* x, double size) {
        if (remembered_ == m_.most_remembered) return;
        double* to = m_.remembered + remembered_++ * length_;
        for (int64_t j = 0; j < length_; ++j) to[j] = x[j] / ::sqrt(size);
    }

    void make_orthogonal(double* r) const {
        for (int64_t k = 0; k < remembered_; ++k) {
            const double* other = m_.remembered + k * length_;
            const double share = product(r, other);
            for (int64_t j = 0; j < length_; ++j) r[j] -= share * other[j];
        }
    }

    // What has no solution is taken from the rows or from the columns, whichever are fewer, as the definition does.
    bool from_rows() const { return cut_.rows <= cut_.columns; }

    void take_out_constants() {
        double excess = 0, of_rows = 0, of_columns = 0;
        for (int64_t i = 0; i < rows_; ++i) {
            excess += m_.phi[i];
            of_rows += s_.row_mass[i];
        }
        for (int64_t j = 0; j < columns_; ++j) {
            excess -= m_.gamma[j];
            of_columns += m_.weights[j];
        }
        if (from_rows())
            for (int64_t i = 0; i < rows_; ++i) m_.phi[i] -= excess * s_.row_mass[i] / of_rows;
        else
            for (int64_t j = 0; j < columns_; ++j) m_.gamma[j] += excess * m_.weights[j] / of_columns;
    }

    // alpha = (phi - T beta) / a, and dS = T * (G / T - alpha 1^T - 1 beta^T)
    void deliver() {
        slope_.next_turn();
        const bool with_slope = slope_.exists();
        for_each_kernel([&](int64_t chunk, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            for (int64_t i = 0; i < count; i += GROUP) {
                double sums[GROUP];
                exact_dots_group<T>(kernel + i * length_, m_.found, length_, sums);
                for (int64_t k = first + i; k < first + i + GROUP && k < first + count; ++k)
                    alpha_[k] = (m_.phi[k] - u_[k] * sums[k - first - i]) / s_.row_mass[k];
            }
            const ScoreRows<T> slope = with_slope ? slope_.rows(first, count, desk) : ScoreRows<T>{};
            for (int64_t i = 0; i < count; ++i)
                exact_difference_row<T>(kernel + i * length_, m_.slope_v, with_slope ? slope[i] : nullptr, u_[first + i],
                                        alpha_[first + i], m_.found, length_, desk.slope + i * length_);
            slope_.deliver(chunk, first, count, desk);
        }, nullptr);
    }

    Slope& slope_;
    double *u_, *alpha_;
    int64_t remembered_ = 0;
};

}  // namespace prosma::PROSMA_LEVEL

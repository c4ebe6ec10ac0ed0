// The unrolled gradient of a plan of scores on chip: all iterations backwards in one launch, dS in shared memory beside the
// scores, the rows of an item shared out as in transport_chip.h.
//
// Of an iteration a warp makes, for a row, f from the column potentials before it, and with P = exp(S + f + g) / b and
// R = exp(S + f + g') / a, both at most 1,
//     phi_i = [what arrives] - sum_j P_ij gamma_j      dS_ij -= P_ij gamma_j + R_ij phi_i      gamma'_j = -sum_i R_ij phi_i
// with two exponentials an entry; what a lane's columns get stays in registers until the warps meet.
#pragma once

#include "transport_chip.h"

namespace prosma::cuda {

struct ChipBackward : ChipProblem {
    const double* history;
    const int32_t* count;
    Operand grad_plan;                   // may be absent, as the next two
    const void *grad_row, *grad_column;  // of the type that is computed in
    void* scores_grad;
};

template <class C, int REGISTERS>
class BackwardOnChip : OnChip<C, REGISTERS> {
    using Base = OnChip<C, REGISTERS>;

public:
    __device__ explicit BackwardOnChip(const ChipBackward& c) : Base(c, true), c_(c) {}

    __device__ void run() {
        Base::start();
        const int64_t count = c_.count[item_];
        take_potentials(count, m_.share);
        take_potentials(count - 1, m_.g);
        arrive();
        for (int64_t step = count; step > 0; --step) {
            sweep(step == count);
            if (step == 1) break;
            for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
                gamma_[j] = -m_.top[j];
                m_.share[j] = m_.g[j];
            }
            __syncthreads();
            take_potentials(step - 2, m_.g);
        }
        deliver();
        cluster_barrier();
    }

private:
    // Of the column potentials in shared memory, `g` are those before an iteration and `share` those after it; `top` is where
    // sums over the cluster arrive.
    using Base::batch_, Base::first_, Base::item_, Base::lane_, Base::m_, Base::rank_, Base::rows_, Base::warp_;
    using Base::column_mass, Base::exchange, Base::meet, Base::steps;

    // Over epsilon, after iteration `step`.
    __device__ void take_potentials(int64_t step, double* to) const {
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            const bool live = j < c_.columns && column_mass(j) > 0;
            to[j] = !live ? -infinity() : step ? c_.history[(item_ * c_.keep + step - 1) * c_.columns + j] * c_.pair.scale : 0.0;
        }
        __syncthreads();
    }

    // Entries of R of a row, and its potential; false where it takes no part.
    __device__ bool shares_of_row(int64_t i, C (&shares)[REGISTERS], double& f) const {
        if (!(m_.mass[i] > 0)) return false;
        const C* scores = m_.scores + i * m_.length + lane_;
        double x[REGISTERS], top = -infinity();
#pragma unroll
        for (int k = 0; k < REGISTERS; ++k) {
            if (k >= steps()) break;
            x[k] = double(scores[k * WARP]) * c_.pair.scale + m_.g[lane_ + k * WARP];
            top = x[k] > top ? x[k] : top;
        }
        top = largest_of_warp(top);
        if (!(top > -infinity())) return false;
        C part = 0;
#pragma unroll
        for (int k = 0; k < REGISTERS; ++k) {
            if (k >= steps()) break;
            shares[k] = exponential(x[k] - top, C(0));
            part += shares[k];
        }
        const double sum = sum_of_warp(double(part));
        const C scale = C(1 / sum);
#pragma unroll
        for (int k = 0; k < REGISTERS; ++k) {
            if (k >= steps()) break;
            shares[k] *= scale;
        }
        f = log(m_.mass[i] / sum) - top;
        return true;
    }

    // P_ij of the lane's column k.
    __device__ C share_of_column(int64_t i, int k, double f) const {
        const int64_t j = lane_ + k * WARP;
        const double x = double(m_.scores[i * m_.length + j]) * c_.pair.scale + f + (m_.share[j] - log_mass_[j]);
        return finite(m_.share[j]) ? exponential(x < 0 ? x : 0.0, C(0)) : C(0);
    }

    // dS = G, phi and gamma of the last iteration.
    __device__ void arrive() {
        // Masses' logarithms, and gamma, lie where forward has its potentials' twins.
        const C *grad_row = static_cast<const C*>(c_.grad_row), *grad_column = static_cast<const C*>(c_.grad_column);
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) log_mass_[j] = finite(m_.g[j]) ? log(column_mass(j)) : 0.0;
        __syncthreads();
        C sums[REGISTERS] = {};
        const Operand& grad = c_.grad_plan;
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS) {
            C shares[REGISTERS], total = 0;
            double f = 0;
            const bool live = shares_of_row(i, shares, f);
#pragma unroll
            for (int k = 0; k < REGISTERS; ++k) {
                if (k >= steps()) break;
                const int64_t j = lane_ + k * WARP;
                C slope = 0;
                if (live && grad.data && finite(m_.share[j])) {
                    C incoming[1];
                    load_run(grad, batch_ * grad.batch + (first_ + i) * grad.line + j * grad.feature, false, 1, incoming);
                    slope = share_of_column(i, k, f) * C(column_mass(j) * c_.pair.scale) * incoming[0];
                }
                m_.slope[i * m_.length + j] = slope;
                sums[k] += slope;
                total += slope;
            }
            const double arriving = sum_of_warp(double(total));
            if (lane_ == 0)
                m_.f[i] = live ? arriving + (grad_row ? double(grad_row[item_ * c_.rows + first_ + i]) : 0.0) : 0.0;
        }
        meet(sums, Add());
        exchange(Add(), 0);
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            const bool live = finite(m_.share[j]);
            gamma_[j] = live ? m_.top[j] + (grad_column ? double(grad_column[item_ * c_.columns + j]) : 0.0) : 0.0;
        }
        __syncthreads();
    }

    // One iteration backwards; the columns' sums of R phi arrive in `top`.
    __device__ void sweep(bool last) {
        C sums[REGISTERS] = {};
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS) {
            C shares[REGISTERS], taken = 0;
            double f = 0;
            if (!shares_of_row(i, shares, f)) continue;
            C* slope = m_.slope + i * m_.length + lane_;
#pragma unroll
            for (int k = 0; k < REGISTERS; ++k) {
                if (k >= steps()) break;
                const C through = share_of_column(i, k, f) * C(gamma_[lane_ + k * WARP]);
                taken += through;
                slope[k * WARP] -= through;
            }
            const C phi = C((last ? m_.f[i] : 0.0) - sum_of_warp(double(taken)));
#pragma unroll
            for (int k = 0; k < REGISTERS; ++k) {
                if (k >= steps()) break;
                const C through = shares[k] * phi;
                sums[k] += through;
                slope[k * WARP] -= through;
            }
        }
        meet(sums, Add());
        exchange(Add(), 0);
    }

    __device__ void deliver() const {
        __syncthreads();
        C* to = static_cast<C*>(c_.scores_grad) + (item_ * c_.rows + first_) * c_.columns;
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS)
            for (int64_t j = lane_ * MINE<C>; j < c_.columns; j += WARP * MINE<C>) {
                const auto slope = load_shared<MINE<C>>(m_.slope + i * m_.length + j);
                store_run<C>(to, i * c_.columns + j, slope.values, inside<C>(j, c_.columns), c_.wide);
            }
    }

    const ChipBackward& c_;
    double *const log_mass_ = Base::m_.more, *const gamma_ = Base::m_.more + Base::m_.length;
};

template <class C, int REGISTERS>
__global__ void __launch_bounds__(THREADS, 1) chip_back_kernel(const __grid_constant__ ChipBackward c) {
    BackwardOnChip<C, REGISTERS>(c).run();
}

}  // namespace prosma::cuda

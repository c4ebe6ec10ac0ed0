// All iterations of Sinkhorn for an item in one launch, with its scores in shared memory: a block, or a cluster of 2, 4 or 8
// blocks that share the rows out among them.
//
// A warp takes a row, its lanes the columns. Of E_ij = exp(S_ij / epsilon + g_j - top_i) the row sum gives f_i, and in the same
// registers E_ij a_i / (row sum) are the entries of the plan under the old g, whose column sums c_j give the new
// g_j += log(b_j / c_j): one exponential an entry and iteration. A lane keeps its columns' sums in registers for all rows of its
// warp; warps meet in shared memory, blocks in that of one another, in fixed order, at one barrier of the cluster an iteration.
// Every block then makes the same new column potentials for itself.
//
// A row cannot fail: its maximum is taken out. Where the sum of a column falls under 1e-20, entries may have underflowed, and
// the columns are made by logsumexp from f, in one more sweep; so they are at the end, whence columns of the plan are exact.
//
// Columns hold in all what rows do. What rounding in float moves from one to the other no later iteration takes back, so the
// c_j are scaled to the total of the rows. (In double that sum would round as much as it corrects.)
#pragma once

#include "transport_slope.h"

namespace prosma::cuda {

constexpr int CHIP_WARPS = THREADS / WARP;
constexpr int MOST_CLUSTER = 8;
constexpr double SMALLEST_SUM = 1e-20;

struct ChipProblem {
    DataType type;                    // of the scores, and of the plan
    Pairing pair;                     // of which the own lines are rows
    bool wide;                        // rows of the result can be written MINE numbers at a time
    int64_t rows, columns, own_rows;  // own_rows: of a block
    const double *row_mass, *column_mass;
    int64_t row_mass_step, column_mass_step, keep;
    double epsilon;
};

struct ChipForward : ChipProblem {
    int64_t iterations;
    double tolerance;
    void *plan, *row, *column;  // of the scores' type; of the type that is computed in
    double* history;
    int32_t* count;
    double *last_rows, *top, *share;  // (items, lines), for what follows
};

// What lies in a block's dynamic shared memory.
template <class C>
struct ChipMemory {
    int64_t length;     // of a row of scores: whole warps
    int64_t bytes = 0;  // of it all
    double *f, *mass, *g, *top, *share, *more, *partial;  // of f and partial there are two: they take turns
    C *scores, *slope, *of_warps;

    __host__ __device__ ChipMemory(void* memory, int64_t rows, int64_t columns, bool with_slope)
        : length((columns + WARP - 1) / WARP * WARP) {
        const auto take = [&](int64_t wanted) {
            char* start = memory ? static_cast<char*>(memory) + bytes : nullptr;
            bytes += (wanted + 15) / 16 * 16;
            return start;
        };
        f = reinterpret_cast<double*>(take(2 * rows * 8));
        mass = reinterpret_cast<double*>(take(rows * 8));
        g = reinterpret_cast<double*>(take(length * 8));
        top = reinterpret_cast<double*>(take(length * 8));
        share = reinterpret_cast<double*>(take(length * 8));
        partial = reinterpret_cast<double*>(take(2 * (length + 1) * 8));
        more = with_slope ? reinterpret_cast<double*>(take(2 * length * 8)) : nullptr;
        of_warps = reinterpret_cast<C*>(take(CHIP_WARPS * length * int64_t(sizeof(C))));
        scores = reinterpret_cast<C*>(take(rows * length * int64_t(sizeof(C))));
        slope = with_slope ? reinterpret_cast<C*>(take(rows * length * int64_t(sizeof(C)))) : nullptr;
    }
};

// What blocks of a cluster do for their item, whichever way they go: each has some of the rows.
template <class C, int REGISTERS>
class OnChip {
protected:
    __device__ OnChip(const ChipProblem& c, bool with_slope)
        : c_(c), m_(dynamic_shared<char>(), c.own_rows, c.columns, with_slope), rank_(int(cluster_rank())),
          ranks_(int(cluster_size())), lane_(int(threadIdx.x) % WARP), warp_(int(threadIdx.x) / WARP), item_(blockIdx.x / ranks_),
          batch_(item_ / c.pair.heads), first_(rank_ * c.own_rows) {
        const int64_t left = c.rows - first_;
        rows_ = left < 0 ? 0 : left < c.own_rows ? left : c.own_rows;
    }

    // Masses, the scores of the own rows, and potentials of 0 where there is mass. What takes no part is not read.
    __device__ void start() {
        const double* row_mass = c_.row_mass + batch_ * c_.row_mass_step + first_;
        const double* column_mass = c_.column_mass + batch_ * c_.column_mass_step;
        double total = 0;
        for (int64_t i = threadIdx.x; i < c_.rows; i += THREADS) total += row_mass[i - first_];
        total_ = sum_of_block<CHIP_WARPS>(total);
        for (int64_t i = threadIdx.x; i < rows_; i += THREADS) {
            m_.mass[i] = row_mass[i];
            m_.f[i] = row_mass[i] > 0 ? 0.0 : -infinity();
        }
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS)
            m_.g[j] = j < c_.columns && column_mass[j] > 0 ? 0.0 : -infinity();
        __syncthreads();
        if (!c_.pair.other.data)
            load_scores();
        else
            make_scores();
        __syncthreads();
    }

    __device__ void load_scores() {
        const Operand& scores = c_.pair.own;
        const int64_t start = batch_ * scores.batch + first_ * scores.line;
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS)
            for (int64_t j = lane_ * MINE<C>; j < m_.length; j += WARP * MINE<C>) {
                const unsigned wanted = finite(m_.f[i]) ? live_lines<C>(m_.g, j, c_.columns) : 0;
                C run[MINE<C>];
                load_run(scores, start + i * scores.line + j * scores.feature, false, wanted, run);
                store_shared(m_.scores + i * m_.length + j, run);
            }
    }

    __device__ void make_scores() {
        Operand own = c_.pair.own;
        own.start = first_ * own.line;
        if (own.along_lines && first_ % MINE<C>) own.wide = false;
        const int64_t head = item_ % c_.pair.heads;
        for (int64_t i = 0; i < rows_; i += TILE<C>)
            for (int64_t j = 0; j < c_.columns; j += TILE<C>) {
                Tile<C> tile;
                product_tile(own, c_.pair.other, {batch_, head, item_, i}, j, rows_, c_.columns, {m_.f, m_.g}, c_.pair.depth,
                             c_.pair.distance, tile);
                const int64_t row = i + own_line<C>(0), column = j + other_line<C>(0);
#pragma unroll
                for (int r = 0; r < MINE<C>; ++r)
                    if (row + r < rows_ && column < m_.length)
                        store_shared(m_.scores + (row + r) * m_.length + column, tile[r]);
            }
        // The columns that fill a row up.
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS)
            for (int64_t j = c_.columns + lane_; j < m_.length; j += WARP) m_.scores[i * m_.length + j] = 0;
    }

    __device__ double* potentials(int turn) const { return m_.f + turn * c_.own_rows; }
    __device__ double* partial_sums() const { return m_.partial + buffer_ * (m_.length + 1); }
    __device__ int steps() const { return int(m_.length / WARP); }

    // What the warps' lanes hold of the columns, in partial_sums().
    template <class T, class Combine>
    __device__ void meet(const T (&values)[REGISTERS], Combine combine) {
        T* of_warps = reinterpret_cast<T*>(m_.of_warps);
        static_assert(sizeof(T) <= sizeof(C), "of_warps has room for numbers of the type that is computed in");
#pragma unroll
        for (int k = 0; k < REGISTERS; ++k) {
            if (k >= steps()) break;
            of_warps[warp_ * m_.length + lane_ + k * WARP] = values[k];
        }
        __syncthreads();
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            double all = double(of_warps[j]);
            for (int warp = 1; warp < CHIP_WARPS; ++warp) all = combine(all, double(of_warps[warp * m_.length + j]));
            partial_sums()[j] = all;
        }
    }

    // Over the blocks of the cluster, in their order: partial_sums() to `top`, where every block has the whole. Two buffers
    // take turns, so that one barrier is enough: who writes the first again has seen all others read the second.
    template <class Combine>
    __device__ double exchange(Combine combine, double error) {
        error = largest_of_block<CHIP_WARPS>(error);
        if (threadIdx.x == 0) partial_sums()[m_.length] = error;
        cluster_barrier();
        double* partial = partial_sums();
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            double all = in_block(partial, 0)[j];
            for (int rank = 1; rank < ranks_; ++rank) all = combine(all, in_block(partial, rank)[j]);
            m_.top[j] = all;
        }
        for (int rank = 0; rank < ranks_; ++rank) {
            const double other = in_block(partial, rank)[m_.length];
            error = other > error ? other : error;
        }
        buffer_ ^= 1;
        __syncthreads();
        return error;
    }

    __device__ double column_mass(int64_t j) const { return c_.column_mass[batch_ * c_.column_mass_step + j]; }

    const ChipProblem& c_;
    const ChipMemory<C> m_;
    int rank_, ranks_, lane_, warp_;
    int64_t item_, batch_, first_, rows_;
    double total_;
    int turn_ = 0, buffer_ = 0;
};

template <class C, int REGISTERS>
class ForwardOnChip : OnChip<C, REGISTERS> {
    using Base = OnChip<C, REGISTERS>;

public:
    __device__ explicit ForwardOnChip(const ChipForward& c) : Base(c, false), c_(c) {}

    __device__ void run() {
        Base::start();
        int64_t ran = c_.iterations;
        for (int64_t step = 0; step < c_.iterations; ++step) {
            const double error = sweep();
            if (c_.tolerance > 0 && step > 0 && error < c_.tolerance) {
                ran = step;
                break;
            }
            turn_ ^= 1;
            const bool last = step + 1 == c_.iterations;
            if (!last && columns_from_sums())
                columns_from_maxima();
            if (last || c_.keep == 1) continue;
            __syncthreads();
            write_history(step);
        }
        columns_from_maxima();
        __syncthreads();
        for (int64_t step = c_.keep > 1 ? ran - 1 : 0; step < c_.keep; ++step) write_history(step);
        finish(ran);
        cluster_barrier();
    }

private:
    using Base::batch_, Base::first_, Base::item_, Base::lane_, Base::m_, Base::rank_, Base::rows_, Base::total_, Base::turn_;
    using Base::warp_;
    using Base::column_mass, Base::exchange, Base::meet, Base::partial_sums, Base::potentials, Base::steps;

    // New row potentials, and in `sums_` the column sums of the plan under them and the old column potentials. Returns how far
    // the rows were off before.
    __device__ double sweep() {
        C sums[REGISTERS] = {};
        double error = 0;
        const double* before = potentials(turn_);
        double* after = potentials(turn_ ^ 1);
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS) {
            if (!(m_.mass[i] > 0)) {
                if (lane_ == 0) after[i] = -infinity();
                continue;
            }
            const C* scores = m_.scores + i * m_.length + lane_;
            double x[REGISTERS], top = -infinity();
#pragma unroll
            for (int k = 0; k < REGISTERS; ++k) {
                if (k >= steps()) break;
                x[k] = double(scores[k * WARP]) * c_.pair.scale + m_.g[lane_ + k * WARP];
                top = x[k] > top ? x[k] : top;
            }
            top = largest_of_warp(top);
            if (!(top > -infinity())) {
                if (lane_ == 0) after[i] = -infinity();
                continue;
            }
            C entries[REGISTERS], part = 0;
#pragma unroll
            for (int k = 0; k < REGISTERS; ++k) {
                if (k >= steps()) break;
                entries[k] = exponential(x[k] - top, C(0));
                part += entries[k];
            }
            const double sum = sum_of_warp(double(part));
            const double found = log(m_.mass[i] / sum) - top;
            const C weight = C(m_.mass[i] / sum);
#pragma unroll
            for (int k = 0; k < REGISTERS; ++k) {
                if (k >= steps()) break;
                sums[k] += entries[k] * weight;
            }
            const double off = fabs(exp(before[i] - found) - 1);
            error = off > error ? off : error;
            if (lane_ == 0) after[i] = found;
        }
        meet(sums, Add());
        return exchange(Add(), error);
    }

    // g_j += log(b_j / c_j). True if that cannot be done: entries may have underflowed.
    __device__ bool columns_from_sums() {
        double held = 0;
        bool small = false;
        for (int64_t j = threadIdx.x; j < c_.columns; j += THREADS) {
            if (!finite(m_.g[j])) continue;
            held += m_.top[j];
            small = small || !(m_.top[j] >= SMALLEST_SUM);
        }
        if (__syncthreads_or(small)) return true;
        held = sizeof(C) == 8 ? total_ : sum_of_block<CHIP_WARPS>(held);
        const double share = fabs(held - total_) < 1e-3 * total_ ? total_ / held : 1.0;
        for (int64_t j = threadIdx.x; j < c_.columns; j += THREADS)
            if (finite(m_.g[j])) m_.g[j] += log(column_mass(j) / (m_.top[j] * share));
        __syncthreads();
        return false;
    }

    // g_j = log b_j - logsumexp_i(S_ij / epsilon + f_i), and exp((S_ij / epsilon + f_i) - top_j) share_j is the plan. Exponents
    // are made twice, first for their maxima.
    __device__ void columns_from_maxima() {
        const double* f = potentials(turn_);
        __syncthreads();
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            double largest = -infinity();
            for (int64_t i = 0; i < rows_; ++i) {
                if (!finite(f[i]) || !finite(m_.g[j])) continue;
                const double x = double(m_.scores[i * m_.length + j]) * c_.pair.scale + f[i];
                largest = x > largest ? x : largest;
            }
            partial_sums()[j] = largest;
        }
        exchange(Larger(), 0);
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            double sum = 0;
            m_.share[j] = m_.top[j];
            for (int64_t i = 0; i < rows_ && m_.top[j] > -infinity(); ++i) {
                if (!finite(f[i])) continue;
                const double x = double(m_.scores[i * m_.length + j]) * c_.pair.scale + f[i];
                sum += double(exponential(x - m_.top[j], C(0)));
            }
            partial_sums()[j] = sum;
        }
        exchange(Add(), 0);
        for (int64_t j = threadIdx.x; j < m_.length; j += THREADS) {
            const double largest = m_.share[j], sum = m_.top[j];
            const bool live = finite(m_.g[j]) && largest > -infinity();
            m_.g[j] = live ? log(column_mass(j) / sum) - largest : -infinity();
            m_.top[j] = live ? largest : infinity();
            m_.share[j] = live ? column_mass(j) / sum : 0.0;
        }
        __syncthreads();
    }

    __device__ void write_history(int64_t step) {
        if (rank_) return;
        for (int64_t j = threadIdx.x; j < c_.columns; j += THREADS)
            c_.history[(item_ * c_.keep + step) * c_.columns + j] = finite(m_.g[j]) ? c_.epsilon * m_.g[j] : 0.0;
    }

    __device__ void finish(int64_t ran) {
        const double* f = potentials(turn_);
        C *row = static_cast<C*>(c_.row) + item_ * c_.rows + first_, *column = static_cast<C*>(c_.column) + item_ * c_.columns;
        for (int64_t i = threadIdx.x; i < rows_; i += THREADS) {
            row[i] = C(c_.epsilon * f[i]);
            c_.last_rows[item_ * c_.rows + first_ + i] = f[i];
        }
        for (int64_t j = threadIdx.x; j < c_.columns && rank_ == 0; j += THREADS) {
            column[j] = C(c_.epsilon * m_.g[j]);
            c_.top[item_ * c_.columns + j] = m_.top[j];
            c_.share[item_ * c_.columns + j] = m_.share[j];
        }
        if (rank_ == 0 && threadIdx.x == 0) c_.count[item_] = int32_t(ran);
        if (!c_.plan) return;
        const int64_t start = (item_ * c_.rows + first_) * c_.columns;
        for (int64_t i = warp_; i < rows_; i += CHIP_WARPS)
            for (int64_t j = lane_ * MINE<C>; j < c_.columns; j += WARP * MINE<C>) {
                const auto scores = load_shared<MINE<C>>(m_.scores + i * m_.length + j);
                C entries[MINE<C>];
#pragma unroll
                for (int k = 0; k < MINE<C>; ++k) {
                    const double x = (double(scores[k]) * c_.pair.scale + f[i]) - m_.top[j + k];
                    const bool live = finite(f[i]) && finite(m_.top[j + k]);
                    entries[k] = live ? exponential(x < 0 ? x : 0.0, C(0)) * C(m_.share[j + k]) : C(0);
                }
                store_run(c_.plan, c_.type, start + i * c_.columns + j, entries, inside<C>(j, c_.columns), c_.wide);
            }
    }

    const ChipForward& c_;
};

template <class C, int REGISTERS>
__global__ void __launch_bounds__(THREADS, 1) chip_kernel(const __grid_constant__ ChipForward c) {
    ForwardOnChip<C, REGISTERS>(c).run();
}

// How an item is shared out: by its sizes and what the GPU has. 0 blocks: it does not fit.
struct ChipPlan {
    int cluster = 0;
    int64_t own_rows = 0, bytes = 0;
};

// Columns of a lane that a warp has registers for.
template <class C>
constexpr int MOST_REGISTERS = sizeof(C) == 8 ? 16 : 32;

template <class C>
ChipPlan chip_plan(int64_t rows, int64_t columns, bool with_slope, const OnDevice& device) {
    ChipPlan plan;
    if (columns > MOST_REGISTERS<C> * WARP) return plan;
    int cluster = 1;
    while (device.has_clusters() && cluster < MOST_CLUSTER && rows > cluster * CHIP_WARPS) cluster *= 2;
    const int64_t own_rows = ceil_div(rows, cluster);
    const ChipMemory<C> memory(nullptr, own_rows, columns, with_slope);
    // What kernels have of static shared memory beside it.
    if (memory.bytes + 24 * 1024 > int64_t(device.shared_memory())) return plan;
    return {cluster, own_rows, memory.bytes};
}

// `to`: what has the shape of the scores among the results.
inline ChipProblem chip_problem(const TransportArguments& a, int64_t own_rows, const void* to, DataType type) {
    return {a.type,     pairing(a, a.scores, true), in_groups(to, type, {a.columns}), a.rows,            a.columns, own_rows,
            a.row_mass, a.column_mass, a.row_mass_step,            a.column_mass_step, a.keep,    a.epsilon};
}

// `narrow` and `broad` have registers for 16 and for 32 columns a lane.
template <class Problem>
void launch_on_chip(const char* name, void (*narrow)(Problem), void (*broad)(Problem), const Problem& chip, const ChipPlan& plan,
                    int64_t items, cudaStream_t stream) {
    launch(name, chip.columns > 16 * WARP ? broad : narrow,
           {unsigned(items * plan.cluster), THREADS, size_t(plan.bytes), stream, unsigned(plan.cluster)}, chip);
}

}  // namespace prosma::cuda

// The unrolled gradient of Sinkhorn for one problem: back through the iterations that ran.
//
// From phi and gamma of the last one (transport_gradient.h) through g_t <- f_t <- g_(t-1) for t = count .. 1,
//     P_ij = exp(S_ij + f_i + g_j) / b_j            dS -= P_ij gamma_j     phi_i -= sum_j P_ij gamma_j
//     R_ij = exp(S_ij + f_i + g'_j) / a_i           dS -= R_ij phi_i       gamma_j = -sum_i R_ij phi_i,   phi = 0
// On K = exp(S + f + g) for some f and g, P and R are K with its rows and columns scaled. An iteration is one sweep, two dots
// and one addition a row, that leaves four vectors behind; the vectors of up to 32 iterations make one update of dS,
// dS -= K * (U W + Y V), a product of depth 64. The iterations that one K serves are a window: it ends where a column
// potential is more than e^25 away from that of K. An iteration that moves by more than that by itself is done alone, with
// exponentials for P and for R, its sums in the order of its exponents, and dS written at once.
#pragma once

#include "transport_gradient.h"

namespace prosma::PROSMA_LEVEL {

// How far, in logarithms, the potentials of a window may be from those of its K; and above the columns' masses.
template <class T>
constexpr double REACH = sizeof(T) == 4 ? 25.0 : 200.0;
template <class T>
constexpr double REACH_OVER_MASS = sizeof(T) == 4 ? 34.0 : 250.0;
// A potential from the history is rounded at its own size, and e^(g / epsilon) is off by 2e-16 * |g| / epsilon. That is
// nothing to a float; in double the scalings of the columns are found again, from sums, in a sweep more.
template <class T>
constexpr bool EXACT_COLUMNS = sizeof(T) == 8;

template <class T, class Loop, class Slope>
class UnrolledGradient : KernelSweeps<T, Loop> {
public:
    UnrolledGradient(const Cut<T>& cut, const Problem<T>& problem, const GradientMemory<T>& memory, const double* shift,
                     double epsilon, const double* history, const Loop& loop, Slope& slope)
        : KernelSweeps<T, Loop>(cut, problem, memory, shift, epsilon, history, loop), slope_(slope) {
        const double heavy = ::exp(REACH<T> - REACH_OVER_MASS<T>);
        for (int64_t j = 0; j < columns_; ++j) {
            all_heavy_ = all_heavy_ && s_.column_mass[j] >= heavy;
            m_.weights[j] = 1 / s_.column_mass[j];
        }
    }

    // From phi and gamma, in memory, of the last iteration.
    void unroll(int64_t count) {
        const double* incoming = m_.phi;
        bool slope_pending = slope_.exists();
        take_potentials(count, m_.earlier);
        step_back(count);
        for (int64_t t = count; t > 0;) {
            if (!within_reach(m_.earlier)) {
                step_alone(incoming, slope_pending);
                step_back(--t);
            } else {
                open_window();
                if (slope_pending) {
                    exponentiate_difference(m_.later, s_.g, columns_, s_.v);
                    if constexpr (EXACT_COLUMNS<T>) {
                        fill_v(1);
                        find_column_sums(s_.v, s_.u);
                        for (int64_t j = 0; j < columns_; ++j) s_.v[j] = T(s_.column_mass[j] / s_.column_sums[j]);
                    }
                    slope_.prepare(s_.v);
                    add_slopes();
                }
                int64_t depth = 0;
                do {
                    sweep(depth, depth == 0 ? incoming : nullptr);
                    depth += 2;
                    step_back(--t);
                } while (t > 0 && depth < 2 * window_of(cut_) && within_reach(s_.g));
                update(depth, slope_pending);
            }
            incoming = nullptr;
            slope_pending = false;
        }
    }

private:
    using Sweeps = KernelSweeps<T, Loop>;
    using Sweeps::add_chunks, Sweeps::fill_v, Sweeps::for_each_kernel, Sweeps::open_window, Sweeps::partial_sums,
        Sweeps::start_sums, Sweeps::take_potentials;
    using Sweeps::chunks_, Sweeps::columns_, Sweeps::cut_, Sweeps::length_, Sweeps::loop_, Sweeps::m_, Sweeps::rows_, Sweeps::s_,
        Sweeps::scores_;

    // To iteration t from the one after it, whose earlier potentials are the later ones now.
    void step_back(int64_t t) {
        memcpy(m_.later, m_.earlier, sizeof(double) * size_t(columns_));
        if (t > 0) take_potentials(t - 1, m_.earlier);
    }

    bool within_reach(const double* base) const {
        const Vector<double> reach = broadcast<double>(REACH<T>);
        Mask<double> within = ~Mask<double>{};
        for (int64_t j = 0; j < length_; j += LANES<double>) {
            const Vector<double> from = load<double>(base + j);
            within &= absolute<double>(load<double>(m_.earlier + j) - from) <= reach;
            within &= absolute<double>(load<double>(m_.later + j) - from) <= reach;
        }
        return all_lanes<double>(within) && (all_heavy_ || within_reach_over_mass(base));
    }

    bool within_reach_over_mass(const double* base) const {
        bool within = true;
        for (int64_t j = 0; j < columns_ && within; ++j)
            within = m_.later[j] - base[j] - ::log(s_.column_mass[j]) <= REACH_OVER_MASS<T>;
        return within;
    }

    // The same without K: body(chunk, first, count, rows of scores, desk).
    template <class Body>
    void for_each_scores(const Body& body, double* sums) {
        loop_(chunks_, [&](int64_t chunk, Desk<T>& desk) {
            start_sums(chunk, desk);
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                body(chunk, first, count, score_rows(scores_, first, count, desk), desk);
                if (sums) move_sums<T>(desk.sums, length_, partial_sums(chunk));
            });
        });
        if (sums) add_chunks(sums);
    }

    // phi += G 1 and gamma += G^T 1, of the T that `slope_` was prepared for. u of the last iteration follows from K and
    // v = 1: the window's potentials are those before it.
    void add_slopes() {
        fill_v(1);
        for_each_kernel([&](int64_t chunk, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            T* u = s_.u + first;
            dot_block<T>(kernel, count, length_, s_.v, u);
            for (int64_t i = 0; i < count; ++i) u[i] = T(s_.row_mass[first + i]) / u[i];
            add_slope_rows(chunk, first, count, kernel, u, desk);
        }, s_.column_sums);
        for (int64_t j = 0; j < columns_; ++j) m_.gamma[j] += s_.column_sums[j];
    }

    void add_slope_rows(int64_t chunk, int64_t first, int64_t count, const T* kernel, const T* u, const Desk<T>& desk) {
        const ScoreRows<T> slope = slope_.rows(first, count, desk);
        for (int64_t i = 0; i < count; ++i)
            m_.phi[first + i] += double(add_slope_row<T>(kernel + i * length_, m_.slope_v, slope[i], u[i], length_, desk.sums));
        slope_.move(chunk, first, count, kernel, u, desk);
    }

    // u = a / (K v), and in memory.column_sums those of K u.
    void find_column_sums(const T* v, T* u) {
        for_each_kernel([&](int64_t, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            sweep_block<T>(kernel, count, length_, s_.row_mass + first, v, u + first, s_.row_sums + first, desk.sums);
        }, s_.column_sums);
    }

    // Iteration t of a window, from the potentials in `earlier` and `later`.
    void sweep(int64_t depth, const double* incoming) {
        T *u = m_.row_vectors + depth * m_.row_step, *y = u + m_.row_step;
        T *w = m_.column_vectors + depth * length_, *v = w + length_;
        // The later potentials were the earlier ones of the last sweep of this window: half of the exponentials.
        if (depth > 0)
            memcpy(w, w - length_, sizeof(T) * size_t(columns_));
        else
            exponentiate_difference(m_.later, s_.g, columns_, w);
        exponentiate_difference(m_.earlier, s_.g, columns_, v);
        for (int64_t j = columns_; j < length_; ++j) w[j] = v[j] = 0;
        if constexpr (EXACT_COLUMNS<T>) {
            find_column_sums(v, u);
            for (int64_t j = 0; j < columns_; ++j) w[j] = T(m_.gamma[j] / s_.column_sums[j]);
        } else {
            for (int64_t j = 0; j < columns_; ++j) w[j] = T(m_.gamma[j] * double(w[j]) * m_.weights[j]);
        }
        for_each_kernel([&](int64_t, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            sweep_block_backward<T>(kernel, count, length_, s_.row_mass + first, incoming ? incoming + first : nullptr, v, w,
                                    u + first, y + first, desk.sums);
        }, s_.column_sums);
        for (int64_t j = 0; j < columns_; ++j) m_.gamma[j] = -double(v[j]) * s_.column_sums[j];
    }

    // to_j = K_j * (u slope_v_j slope_j - vectors_j) for one row, in whole vectors unless `only_columns`.
    PROSMA_INLINE void update_row(const T* kernel, const T* vectors, const T* slope, T u, T* to, bool only_columns) const {
        for (int64_t j = 0; j < length_; j += LANES<T>) {
            Vector<T> value = -load<T>(vectors + j);
            if (slope) value += u * load<T>(m_.slope_v + j) * load<T>(slope + j);
            value *= load<T>(kernel + j);
            if (only_columns && columns_ - j < LANES<T>)
                store_first<T>(to + j, value, int(columns_ - j));
            else
                store<T>(to + j, value);
        }
    }

    // dS = [G] - K * (row vectors^T column vectors). Rows of dS are written where they belong, as far as that is in one piece.
    void update(int64_t depth, bool with_slope) {
        slope_.next_turn();
        pack<TILE_COLUMNS<T>, T>(m_.column_vectors, length_, depth, 1, length_, nullptr, m_.column_panels);
        for_each_kernel([&](int64_t chunk, int64_t first, int64_t count, const T* kernel, const Desk<T>& desk) {
            const ScoreRows<T> slope = with_slope ? slope_.rows(first, count, desk) : ScoreRows<T>{};
            pack<TILE_ROWS, T>(m_.row_vectors + first, count, depth, 1, m_.row_step, nullptr, desk.panels);
            multiply<false, T>(desk.panels, m_.column_panels, count, length_, depth, desk.scores, length_);
            for (int64_t i = 0; i < count; ++i) {
                const T *row = kernel + i * length_, *vectors = desk.scores + i * length_;
                T* direct = slope_.direct_row(first + i);
                if (with_slope)
                    update_row(row, vectors, slope[i], s_.u[first + i], direct ? direct : desk.slope + i * length_, direct);
                else
                    update_row(row, vectors, nullptr, T(0), direct ? direct : desk.slope + i * length_, direct);
            }
            if (!slope_.direct_row(first)) slope_.deliver(chunk, first, count, desk);
        }, nullptr);
    }

    // One iteration for which no K holds both potentials: R from those before it, P from what follows from them.
    void step_alone(const double* incoming, bool with_slope) {
        memcpy(s_.g, m_.earlier, sizeof(double) * size_t(columns_));
        fill_v(1);
        loop_(chunks_, [&](int64_t chunk, Desk<T>& desk) {
            double* largest = s_.partial + chunk * length_;
            for (int64_t j = 0; j < length_; ++j) largest[j] = -1e305;
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                const ScoreRows<T> rows = score_rows(scores_, first, count, desk);
                make_kernel(scores_, rows, count, Order::column_first, true, s_.f + first, s_.g, desk.kernel);
                dot_block<T>(desk.kernel, count, length_, s_.v, s_.row_sums + first);
                add_logarithms(s_.f + first, s_.row_mass + first, s_.row_sums + first, 0, count, m_.row_now + first);
                for (int64_t i = 0; i < count; ++i) raise_column_maxima(rows[i], scores_.scale, m_.row_now[first + i], length_, largest);
            });
        });
        for (int64_t j = 0; j < columns_; ++j) {
            double largest = s_.partial[j];
            for (int64_t chunk = 1; chunk < chunks_; ++chunk)
                largest = s_.partial[chunk * length_ + j] > largest ? s_.partial[chunk * length_ + j] : largest;
            m_.later[j] = -largest;
        }
        for_each_scores([&](int64_t, int64_t first, int64_t count, const ScoreRows<T>& rows, const Desk<T>& desk) {
            make_kernel(scores_, rows, count, Order::row_first, false, m_.row_now + first, m_.later, desk.kernel);
            sum_block<T>(desk.kernel, count, length_, desk.sums);
        }, m_.scaled);
        if (with_slope) {
            for (int64_t j = 0; j < columns_; ++j) s_.v[j] = T(s_.column_mass[j] / m_.scaled[j]);
            slope_.prepare(s_.v);
            for (int64_t i = 0; i < rows_; ++i) s_.u[i] = 1;
            for_each_scores([&](int64_t chunk, int64_t first, int64_t count, const ScoreRows<T>& rows, const Desk<T>& desk) {
                make_kernel(scores_, rows, count, Order::row_first, false, m_.row_now + first, m_.later, desk.kernel);
                add_slope_rows(chunk, first, count, desk.kernel, s_.u + first, desk);
            }, s_.column_sums);
            for (int64_t j = 0; j < columns_; ++j) m_.gamma[j] += s_.column_sums[j];
        }
        for (int64_t j = 0; j < columns_; ++j) m_.w[j] = T(m_.gamma[j] / m_.scaled[j]);
        slope_.next_turn();
        for_each_scores([&](int64_t chunk, int64_t first, int64_t count, const ScoreRows<T>& rows, const Desk<T>& desk) {
            step_block_alone(chunk, first, count, rows, incoming, with_slope, desk);
        }, s_.column_sums);
        for (int64_t j = 0; j < columns_; ++j) m_.gamma[j] = -s_.column_sums[j];
    }

    // desk.kernel is R times the row sums; desk.scores becomes P times the column sums, over the scores.
    void step_block_alone(int64_t chunk, int64_t first, int64_t count, const ScoreRows<T>& rows, const double* incoming,
                          bool with_slope, const Desk<T>& desk) {
        make_kernel(scores_, rows, count, Order::column_first, false, s_.f + first, s_.g, desk.kernel);
        T* by_column = desk.scores;
        make_kernel(scores_, rows, count, Order::row_first, false, m_.row_now + first, m_.later, by_column);
        T *phi = s_.u + first, *y = m_.row_vectors + first;
        dot_block<T>(by_column, count, length_, m_.w, phi);
        for (int64_t i = 0; i < count; ++i) y[i] = ((incoming ? T(incoming[first + i]) : T(0)) - phi[i]) / s_.row_sums[first + i];
        for (int64_t i = 0; i < count; i += GROUP) {
            T factor[GROUP];
            for (int r = 0; r < GROUP; ++r) factor[r] = i + r < count ? y[i + r] : T(0);
            add_group<T>(desk.kernel + i * length_, factor, length_, desk.sums);
        }
        const ScoreRows<T> slope = with_slope ? slope_.rows(first, count, desk) : ScoreRows<T>{};
        for (int64_t i = 0; i < count; ++i)
            for (int64_t j = 0; j < length_; j += LANES<T>) {
                Vector<T> value = -load<T>(m_.w + j);
                if (with_slope) value += load<T>(m_.slope_v + j) * load<T>(slope[i] + j);
                value = value * load<T>(by_column + i * length_ + j) - y[i] * load<T>(desk.kernel + i * length_ + j);
                store<T>(desk.slope + i * length_ + j, value);
            }
        slope_.deliver(chunk, first, count, desk);
    }

    Slope& slope_;
    bool all_heavy_ = true;  // no mass is so small that it narrows the reach
};

}  // namespace prosma::PROSMA_LEVEL

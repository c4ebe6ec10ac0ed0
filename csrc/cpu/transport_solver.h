// The iterations of Sinkhorn for one problem:
//     f_i = log a_i - logsumexp_j(S_ij + g_j),   g_j = log b_j - logsumexp_i(S_ij + f_i)          (here S, f, g are over epsilon)
//
// They are carried out as u = a / (K v), v = b / (K^T u) on K = exp(S + f + g), with u and v counted from the potentials f
// and g that K holds. K is made once, with f_i = -max_j(S_ij + g_j); an iteration is then one sweep over it, without an
// exponential. Where a row sum or u leaves the safe range, the columns' scalings are taken over into g, K is made again and
// the sweep repeated: its sums then lie between 1 and p. Where a column sum or v leaves it, the rows' scalings are taken over
// into f, g_j = -max_i(S_ij + f_i), and the sums of the new K lie between 1 and n. So neither repeats, and since the
// last exponents were formed in the order of the sums, columns are exact even where |S| is so large that its own rounding
// passes 1.
//
// K is kept where it fits, else made again for each block of rows in each sweep. Masses are divided by the power of two
// nearest to the total of the rows, so that the range is the same whatever their unit is. By the total itself they would be
// rounded, and what rows then have too much, columns have too little: potentials in double drifted by 2e-16 * epsilon in
// every iteration.
//
// In float u, v and the sums are rounded by 1e-7, and what that moves from the rows' potentials to the columns', the same for
// all of them, no later iteration takes back: 1.5e-6 in 40. So two constants in double stand beside u and v, which hold
// sum_j v_j (K^T u)_j at the total of the rows when u has been made, and at that of the columns when v has. (In double these
// sums would round as much as they correct.)
#pragma once

#include "transport_problem.h"

namespace prosma::PROSMA_LEVEL {

// The memory of one problem, shared by the threads that work on it.
template <class T>
struct SolverMemory {
    int32_t *row_numbers, *column_numbers;
    double *row_mass, *column_mass, *f, *g, *before, *column_sums, *partial, *potential;
    T *u, *v, *row_sums, *kernel;
    bool* within;

    SolverMemory(Arena& arena, const Cut<T>& cut) {
        const int64_t rows = whole_groups(cut.rows), chunks = cut.chunks(cut.rows);
        row_numbers = arena.take<int32_t>(rows);
        column_numbers = arena.take<int32_t>(cut.length);
        row_mass = arena.take<double>(rows);
        column_mass = arena.take<double>(cut.length);
        f = arena.take<double>(rows);
        g = arena.take<double>(cut.length);
        before = arena.take<double>(rows);
        column_sums = arena.take<double>(cut.length);
        partial = arena.take<double>(chunks * cut.length);
        potential = arena.take<double>(cut.length);
        u = arena.take<T>(rows);
        v = arena.take<T>(cut.length);
        row_sums = arena.take<T>(rows);
        kernel = cut.kept ? arena.take<T>(rows * cut.length) : nullptr;
        within = arena.take<bool>(chunks);
    }
};

// One problem: its scores, and the masses of those that take part, over `unit`.
template <class T>
struct Problem {
    Scores<T> scores;
    const double *row_mass, *column_mass;
    double unit;
    double row_total = 0, column_total = 0;  // of these masses
    int64_t rows, columns;

    Problem(const TransportArguments& a, int64_t batch, const SolverMemory<T>& memory) {
        const double* row = a.row_mass + batch * a.row_mass_step;
        const double* column = a.column_mass + batch * a.column_mass_step;
        scores.rows = choose(a.rows, memory.row_numbers, [&](int64_t i) { return row[i] > 0; });
        scores.columns = choose(a.columns, memory.column_numbers, [&](int64_t j) { return column[j] > 0; });
        rows = scores.rows.count;
        columns = scores.columns.count;
        scores.length = whole_vectors<T>(columns);
        double total = 0;
        for (int64_t i = 0; i < rows; ++i) total += row[scores.rows[i]];
        unit = ::exp2(::round(::log2(total > 0 ? total : 1.0)));
        for (int64_t i = 0; i < rows; ++i) memory.row_mass[i] = row[scores.rows[i]] / unit;
        for (int64_t j = 0; j < columns; ++j) memory.column_mass[j] = column[scores.columns[j]] / unit;
        for (int64_t i = 0; i < rows; ++i) row_total += memory.row_mass[i];
        for (int64_t j = 0; j < columns; ++j) column_total += memory.column_mass[j];
        row_mass = memory.row_mass;
        column_mass = memory.column_mass;
        scores.type = a.type;
        if (a.scores.data) {
            scores.data = a.scores.data;
            scores.start = batch * a.scores.strides[0];
            scores.row_step = a.scores.strides[1];
            scores.column_step = a.scores.strides[2];
        } else {
            scores.tokens = a.tokens.data;
            scores.token_start = batch * a.tokens.strides[0];
            scores.token_step = a.tokens.strides[1];
            scores.feature_step = a.tokens.strides[2];
            scores.depth = a.depth;
        }
    }
    bool empty() const { return !rows || !columns; }
};

// K of a block of rows from f and g; with `from_maxima` f_i = -max_j(S_ij + g_j) first.
template <class T>
void make_kernel(const Scores<T>& scores, const ScoreRows<T>& rows, int64_t count, Order order, bool from_maxima, double* f,
                 const double* g, T* kernel) {
    const int64_t length = scores.length;
    for (int64_t i = 0; i < count; ++i) {
        if (from_maxima) f[i] = -row_maximum(rows[i], scores.scale, g, length);
        if (order == Order::column_first)
            exponentiate_row<Order::column_first>(rows[i], scores.scale, f[i], g, length, kernel + i * length);
        else
            exponentiate_row<Order::row_first>(rows[i], scores.scale, f[i], g, length, kernel + i * length);
    }
    memset(kernel + count * length, 0, sizeof(T) * size_t((whole_groups(count) - count) * length));
}

// The blocks of rows of a chunk: body(first row, rows).
template <class T, class Body>
void for_each_block_of(const Cut<T>& cut, int64_t chunk, int64_t rows, const Body& body) {
    const int64_t start = chunk * cut.chunk, end = start + cut.chunk < rows ? start + cut.chunk : rows;
    for (int64_t first = start; first < end; first += cut.block) body(first, end - first < cut.block ? end - first : cut.block);
}

template <class T, class Loop>
class Solver {
public:
    Solver(const Cut<T>& cut, const Problem<T>& problem, const SolverMemory<T>& memory, const double* shift, const Loop& loop)
        : cut_(cut), scores_(problem.scores), rows_(problem.rows), columns_(problem.columns), m_(memory), shift_(shift),
          loop_(loop), row_total_(problem.row_total), column_total_(problem.column_total) {}

    // Returns how many iterations ran. after(number of iterations done) is called after each.
    template <class After>
    int64_t solve(int64_t iterations, double tolerance, const After& after) {
        for (int64_t j = 0; j < scores_.length; ++j) {
            m_.g[j] = shift_[j];
            m_.v[j] = T(j < columns_ ? 1 : 0);
        }
        columns_absorbed_ = true;
        row_constant_ = column_constant_ = 1;
        for (int64_t done = 0; done < iterations; ++done) {
            if (done == 0 || !sweep(false)) {
                absorb_columns();
                sweep(true);
            }
            if (done > 0 && tolerance > 0 && row_error() < tolerance) {
                exponentiate_difference(m_.before, m_.f, rows_, m_.u);
                for (int64_t i = 0; i < rows_; ++i) m_.u[i] *= T(column_constant_);
                return done;
            }
            if (!column_step()) column_step_by_maxima();
            if (tolerance > 0) row_potentials(m_.before);
            after(done + 1);
        }
        row_potentials(m_.before);
        return iterations;
    }

    // Over epsilon; those of the rows are in memory.before when `solve` has returned.
    void column_potentials(double* to) const {
        if (columns_absorbed_)
            memcpy(to, m_.g, sizeof(double) * size_t(columns_));
        else
            add_logarithms(m_.g, m_.column_mass, m_.column_sums, -logarithm_of(row_constant_), columns_, to);
    }

    // The same as near as the scalings themselves are, and sooner.
    void near_column_potentials(double* to) const {
        if (columns_absorbed_ || !add_logarithms_of_scalings(m_.g, m_.v, logarithm_of(column_constant_), columns_, to))
            column_potentials(to);
    }

    // Calls body(chunk, first row, rows, K of these rows, desk) for every block.
    template <class Body>
    void for_each_block(const Body& body) {
        loop_(cut_.chunks(rows_), [&](int64_t chunk, Desk<T>& desk) {
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                const T* kernel = m_.kernel ? m_.kernel + first * scores_.length : make(first, count, false, desk);
                body(chunk, first, count, kernel, desk);
            });
        });
    }

    // The same without K.
    template <class Body>
    void for_each_rows(const Body& body) {
        loop_(cut_.chunks(rows_), [&](int64_t chunk, Desk<T>& desk) {
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) { body(first, count, desk); });
        });
    }

private:
    const T* make(int64_t first, int64_t count, bool from_maxima, const Desk<T>& desk) const {
        T* kernel = m_.kernel ? m_.kernel + first * scores_.length : desk.kernel;
        const ScoreRows<T> rows = score_rows(scores_, first, count, desk);
        make_kernel(scores_, rows, count, order_, from_maxima, m_.f + first, m_.g, kernel);
        return kernel;
    }

    // u = a / (K v), and the column sums of K u. False if the rows left the range.
    bool sweep(bool from_maxima) {
        const int64_t length = scores_.length, chunks = cut_.chunks(rows_);
        if (from_maxima) order_ = Order::column_first;
        loop_(chunks, [&](int64_t chunk, Desk<T>& desk) {
            double* partial = m_.partial + chunk * length;
            memset(partial, 0, sizeof(double) * size_t(length));
            memset(desk.sums, 0, sizeof(T) * size_t(length));
            bool within = true;
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                const T* kernel = m_.kernel && !from_maxima ? m_.kernel + first * length : make(first, count, from_maxima, desk);
                within = sweep_block<T>(kernel, count, length, m_.row_mass + first, m_.v, m_.u + first, m_.row_sums + first,
                                        desk.sums) && within;
                move_sums<T>(desk.sums, length, partial);
            });
            m_.within[chunk] = within;
        });
        rows_absorbed_ = false;
        bool within = true;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) within = within && m_.within[chunk];
        return within;
    }

    void absorb_columns() {
        column_potentials(m_.g);
        for (int64_t j = 0; j < columns_; ++j) m_.v[j] = 1;
        columns_absorbed_ = true;
        column_constant_ = 1;
    }

    void add_chunks() {
        const int64_t length = scores_.length;
        memcpy(m_.column_sums, m_.partial, sizeof(double) * size_t(length));
        for (int64_t chunk = 1; chunk < cut_.chunks(rows_); ++chunk)
            for (int64_t j = 0; j < length; ++j) m_.column_sums[j] += m_.partial[chunk * length + j];
    }

    // v = b / column sums. False if they, or v, left the range; v is then as it was.
    bool column_step() {
        add_chunks();
        row_constant_ = share(row_total_, m_.v) / column_constant_;
        const Vector<double> smallest = broadcast<double>(Range<T>::smallest), largest = broadcast<double>(Range<T>::largest);
        Mask<double> all_within = ~Mask<double>{};
        int64_t j = 0;
        for (; j + LANES<double> <= columns_; j += LANES<double>) {
            const Vector<double> sum = load<double>(m_.column_sums + j);
            all_within &= (sum >= smallest) & (load<double>(m_.column_mass + j) <= sum * largest);
        }
        bool within = all_lanes<double>(all_within);
        for (; j < columns_; ++j) within = within && m_.column_sums[j] >= smallest[0] && m_.column_mass[j] <= m_.column_sums[j] * largest[0];
        if (!within) return false;
        take_column_sums();
        return true;
    }

    void take_column_sums() {
        for (int64_t j = 0; j < columns_; ++j) m_.v[j] = T(m_.column_mass[j] / m_.column_sums[j]);
        columns_absorbed_ = false;
        column_constant_ = share(column_total_, m_.v) / row_constant_;
    }

    // What brings sum_j v_j (K^T u)_j to `total`; 1 where it is further away than rounding leaves it, or not a number.
    double share(double total, const T* v) const {
        if constexpr (sizeof(T) == 8) return 1;
        const double held = exact_product(m_.column_sums, v, columns_);
        return ::fabs(held - total) < 1e-3 * total ? total / held : 1;
    }

    static double logarithm_of(double constant) { return constant == 1 ? 0 : ::log(constant); }

    void column_step_by_maxima() {
        const int64_t length = scores_.length, chunks = cut_.chunks(rows_);
        row_potentials(m_.f);
        for (int64_t i = 0; i < rows_; ++i) m_.u[i] = 1;
        rows_absorbed_ = true;
        row_constant_ = 1;
        loop_(chunks, [&](int64_t chunk, Desk<T>& desk) {
            double* largest = m_.partial + chunk * length;
            for (int64_t j = 0; j < length; ++j) largest[j] = -1e305;
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                const ScoreRows<T> rows = score_rows(scores_, first, count, desk);
                for (int64_t i = 0; i < count; ++i) raise_column_maxima(rows[i], scores_.scale, m_.f[first + i], length, largest);
            });
        });
        for (int64_t j = 0; j < columns_; ++j) {
            double largest = m_.partial[j];
            for (int64_t chunk = 1; chunk < chunks; ++chunk)
                if (m_.partial[chunk * length + j] > largest) largest = m_.partial[chunk * length + j];
            m_.g[j] = -largest;
        }
        order_ = Order::row_first;
        loop_(chunks, [&](int64_t chunk, Desk<T>& desk) {
            double* partial = m_.partial + chunk * length;
            memset(partial, 0, sizeof(double) * size_t(length));
            memset(desk.sums, 0, sizeof(T) * size_t(length));
            for_each_block_of(cut_, chunk, rows_, [&](int64_t first, int64_t count) {
                sum_block<T>(make(first, count, false, desk), count, length, desk.sums);
                move_sums<T>(desk.sums, length, partial);
            });
        });
        add_chunks();
        take_column_sums();
    }

    void row_potentials(double* to) const {
        if (rows_absorbed_) {
            if (to != m_.f) memcpy(to, m_.f, sizeof(double) * size_t(rows_));
        } else {
            add_logarithms(m_.f, m_.row_mass, m_.row_sums, logarithm_of(row_constant_), rows_, to);
        }
    }

    // max |sum_j T_ij - a_i| / a_i of the iteration before the sweep that has just been made: it began with these sums.
    double row_error() const {
        double largest = 0;
        for (int64_t i = 0; i < rows_; i += LANES<double>) {
            const int live = rows_ - i < LANES<double> ? int(rows_ - i) : LANES<double>;
            double u[LANES<double>];
            exponentiate_difference(m_.before + i, m_.f + i, live, u);
            for (int lane = 0; lane < live; ++lane) {
                const double held = u[lane] * column_constant_ * double(m_.row_sums[i + lane]);
                const double error = ::fabs(held / m_.row_mass[i + lane] - 1);
                largest = error > largest ? error : largest;
            }
        }
        return largest;
    }

    const Cut<T>& cut_;
    const Scores<T>& scores_;
    int64_t rows_, columns_;
    const SolverMemory<T>& m_;
    const double* shift_;
    const Loop& loop_;
    double row_total_, column_total_;
    double row_constant_ = 1, column_constant_ = 1;  // of u and of v, as the potentials count them
    Order order_ = Order::column_first;
    bool rows_absorbed_ = false, columns_absorbed_ = true;
};

}  // namespace prosma::PROSMA_LEVEL

// code_statistics on the CPU: how many tokens have each index, and their sum. It also is the gradient of nearest_code.
//
// Bound by memory: every token is read once. Each number of the sums is added up by one thread, in double, in the order
// of the tokens, so neither the number of threads nor the tokens' strides change a bit.
//   - Rows: the tokens are sorted by their index (counting sort, 2 N steps of integers); an item is some codes, whose
//     sums stay in L1 while their tokens stream through, and are written once.
//   - Columns, for tokens whose own numbers lie apart (channels first): an item is some dimensions, and adds one after
//     the other into a table of all codes.
#include "../codebook.h"

#include "kernels.h"
#include "parallel.h"
#include "vectors.h"

namespace prosma::PROSMA_LEVEL {
namespace {

constexpr int CODES = 8;      // an item of rows
constexpr int COLUMNS = 256;  // likewise: with few codes there still is work for several threads
constexpr int AHEAD = 4;      // tokens: they lie anywhere, so no prefetcher of the processor's foresees them
constexpr int CACHE_LINE = 64;
constexpr int DIMENSIONS = 16;  // an item of columns: a cache line of each code's sum
// Numbers below which a second thread costs more than it saves.
constexpr int64_t WORTH_A_THREAD = 1 << 15;

int threads_for(const StatisticsArguments& a) {
    return count_of(a.tokens) * dimensions_of(a.tokens) < WORTH_A_THREAD ? 1 : a.threads;
}

// Counts, and where a sorted list of the tokens has those of each code: from first[k] on. Returns the wrong indices.
int64_t count_codes(const StatisticsArguments& a, int64_t* first) {
    const int64_t tokens = count_of(a.tokens);
    int64_t wrong = 0;
    for (int64_t k = 0; k < a.codes; ++k) a.count[k] = 0;
    for (int64_t n = 0; n < tokens; ++n) {
        const int64_t k = a.index[n];
        if (k >= 0 && k < a.codes)
            ++a.count[k];
        else
            wrong += k != -1;
    }
    first[0] = 0;
    for (int64_t k = 0; k < a.codes; ++k) first[k + 1] = first[k] + a.count[k];
    return wrong;
}

typedef float HalfVector __attribute__((vector_size(VECTOR_BYTES / 2)));

PROSMA_INLINE void add_to(double* sums, Vector<double> values) { store<double>(sums, load(sums) + values); }

PROSMA_INLINE void add_to(double* sums, Vector<float> values) {
    HalfVector halves[2];
    memcpy(halves, &values, sizeof(values));
    for (int i = 0; i < 2; ++i)
        add_to(sums + i * LANES<double>, __builtin_convertvector(halves[i], Vector<double>));
}

template <class S>
PROSMA_INLINE void add_row(double* sums, const S* row, int count) {
    constexpr int lanes = LANES<Compute<S>>;
    int d = 0;
    for (; d + lanes <= count; d += lanes) add_to(sums + d, load_vector<S>(row + d));
    for (; d < count; ++d) sums[d] += double(widen(row[d]));
}

// The sums of CODES codes over COLUMNS dimensions. `order` lists the starts of the tokens, sorted by code.
template <class S>
void sum_rows(const StatisticsArguments& a, int64_t item, const int64_t* first, const int64_t* order) {
    using T = Compute<S>;
    const int64_t dimensions = dimensions_of(a.tokens), parts = (dimensions + COLUMNS - 1) / COLUMNS;
    const int64_t column = item % parts * COLUMNS, code = item / parts * CODES;
    const int count = dimensions - column < COLUMNS ? int(dimensions - column) : COLUMNS;
    const S* data = static_cast<const S*>(a.tokens.data) + column;
    const int64_t last = first[a.codes] - 1;
    for (int64_t k = code; k < code + CODES && k < a.codes; ++k) {
        double sums[COLUMNS] = {};
        for (int64_t i = first[k]; i < first[k + 1]; ++i) {
            const S* ahead = data + order[i + AHEAD < last ? i + AHEAD : last];
            for (int d = 0; d < count; d += int(CACHE_LINE / sizeof(S))) __builtin_prefetch(ahead + d);
            add_row<S>(sums, data + order[i], count);
        }
        T* to = static_cast<T*>(a.sum) + k * dimensions + column;
        for (int i = 0; i < count; ++i) to[i] = T(sums[i]);
    }
}

template <class S>
bool by_rows(const StatisticsArguments& a, const int64_t* first, int64_t* next, int64_t* order) {
    for (int64_t k = 0; k < a.codes; ++k) next[k] = first[k];
    for (int64_t n = 0; n < count_of(a.tokens); ++n)
        if (a.index[n] >= 0) order[next[a.index[n]]++] = start_of(a.tokens, n);
    const int64_t parts = (dimensions_of(a.tokens) + COLUMNS - 1) / COLUMNS, groups = (a.codes + CODES - 1) / CODES;
    return for_each_item(threads_for(a), groups * parts, 1,
                         [&](int64_t item, void*) { sum_rows<S>(a, item, first, order); });
}

// One dimension of all tokens, added into a table whose first entry is that of index -1.
template <class S>
void sum_column(const StatisticsArguments& a, int64_t dimension, double* table) {
    using T = Compute<S>;
    const int64_t run = a.tokens.sizes[Vectors::LEADING - 1], step = a.tokens.strides[Vectors::LEADING - 1];
    const int64_t tokens = count_of(a.tokens), dimensions = dimensions_of(a.tokens);
    for (int64_t k = 0; k <= a.codes; ++k) table[k] = 0;
    for (int64_t n = 0; n < tokens; n += run) {
        const S* from = static_cast<const S*>(a.tokens.data) + start_of(a.tokens, n) +
                        dimension * a.tokens.strides[Vectors::LAST];
        for (int64_t i = 0; i < run; ++i) table[a.index[n + i] + 1] += double(widen(from[i * step]));
    }
    T* to = static_cast<T*>(a.sum) + dimension;
    for (int64_t k = 0; k < a.codes; ++k) to[k * dimensions] = T(table[k + 1]);
}

template <class S>
bool by_columns(const StatisticsArguments& a) {
    const int64_t dimensions = dimensions_of(a.tokens), items = (dimensions + DIMENSIONS - 1) / DIMENSIONS;
    return for_each_item(threads_for(a), items, size_t(a.codes + 1) * sizeof(double), [&](int64_t item, void* table) {
        for (int64_t d = item * DIMENSIONS; d < (item + 1) * DIMENSIONS && d < dimensions; ++d)
            sum_column<S>(a, d, static_cast<double*>(table));
    });
}

template <class S>
bool statistics(const StatisticsArguments& a) {
    Scratch memory;
    auto* first = static_cast<int64_t*>(memory.at_least(size_t(2 * a.codes + 1 + count_of(a.tokens)) * sizeof(int64_t)));
    if (!first) return false;
    *a.wrong = count_codes(a, first);
    if (*a.wrong) return true;
    int64_t *next = first + a.codes + 1, *order = next + a.codes;
    const bool rows = a.tokens.strides[Vectors::LAST] == 1 && dimensions_of(a.tokens) > 1;
    return rows ? by_rows<S>(a, first, next, order) : by_columns<S>(a);
}

}  // namespace

bool code_statistics_forward(const StatisticsArguments& a) {
    switch (a.type) {
        case DataType::float64: return statistics<double>(a);
        case DataType::float16: return statistics<Float16>(a);
        case DataType::bfloat16: return statistics<BFloat16>(a);
        default: return statistics<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

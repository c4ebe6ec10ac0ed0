// One transport problem, a head of a batch item, as the kernels see it: who takes part, and where scores come from.
//
// Rows and columns without mass are left out from the start (their numbers are never read), so that no loop meets one.
// Scores are had block by block of rows: as they lie in memory where that can be read in whole vectors, else widened and
// gathered into the thread's scratch; of tokens and a reference they are made by a product, when they are needed.
// Squared distances are taken from the centre of the reference: 2 <x - c, r - c> is what the product makes, and
// -|x - c|^2 and -|r - c|^2, which only move the potentials, are added in double.
#pragma once

#include "../transport.h"
#include "parallel.h"
#include "product.h"
#include "transport_kernel.h"

namespace prosma::PROSMA_LEVEL {

// Bytes of a kernel matrix that stays in the L2 cache of a core: one thread has the item for itself.
constexpr int64_t SMALL = int64_t(1) << 20;
// Bytes of a kernel matrix that is kept at all. A larger one is made again, block by block, in every sweep.
constexpr int64_t KEPT = int64_t(40) << 20;
// Bytes of scratch of a call, of all threads together.
constexpr int64_t ALL_SCRATCH = int64_t(64) << 20;

// Hands out parts of one piece of memory. Without memory it only measures.
class Arena {
public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <class E>
    E* take(int64_t count) {
        const size_t start = used_;
        used_ += (size_t(count) * sizeof(E) + 63) / 64 * 64;
        return memory_ ? reinterpret_cast<E*>(memory_ + start) : nullptr;
    }
    size_t used() const { return used_; }

private:
    char* memory_;
    size_t used_ = 0;
};

// How the work is cut, by sizes alone. A chunk of blocks of rows is what one thread takes at a time, with sums over columns
// of its own; the chunks' sums are added in order.
template <class T>
struct Cut {
    int64_t rows, columns, depth, width;  // width: of what is moved by the plan besides
    int64_t length;                       // of a row of scores: whole vectors
    int64_t block;                        // rows
    int64_t chunk;                        // rows
    bool small, kept;

    Cut(int64_t rows, int64_t columns, int64_t depth, int64_t width)
        : rows(rows), columns(columns), depth(depth), width(width), length(whole_vectors<T>(columns)) {
        const int64_t bytes = whole_groups(rows) * length * int64_t(sizeof(T));
        small = bytes <= SMALL;
        kept = bytes + 48 * rows <= KEPT;  // with what the solver keeps for every row
        // 256 KB of scores; a multiple of GROUP and of the tiles' 12 rows where that is not too much. Sums over the rows of a block
        // are one chain: those in double are kept short.
        const int64_t fitting = (int64_t(1) << 18) / (length * int64_t(sizeof(T)));
        const int64_t most = sizeof(T) == 8 ? 24 : 96;
        block = fitting >= most ? most : fitting >= 24 ? fitting / 24 * 24 : length > 1 << 17 ? GROUP : 24;
        // Each chunk has sums of its own, in all no more than 8 MB.
        int64_t chunks = (int64_t(1) << 20) / (columns * (1 + (depth > width ? depth : width)));
        chunks = small || chunks < 1 ? 1 : chunks > 32 ? 32 : chunks;
        const int64_t blocks = (rows + block - 1) / block;
        chunk = (blocks + chunks - 1) / chunks * block;
    }
    int64_t chunks(int64_t live_rows) const { return (live_rows + chunk - 1) / chunk; }
};

// The numbers of those of `count` that take part, and how many they are. Null where all do.
struct Chosen {
    int64_t count = 0;
    const int32_t* numbers = nullptr;

    int64_t operator[](int64_t i) const { return numbers ? numbers[i] : i; }
};

template <class TakesPart>
Chosen choose(int64_t count, int32_t* memory, const TakesPart& takes_part) {
    Chosen chosen;
    for (int64_t i = 0; i < count; ++i)
        if (takes_part(i)) memory[chosen.count++] = int32_t(i);
    if (chosen.count < count) chosen.numbers = memory;
    return chosen;
}

// A row of any type and stride as numbers of type T; `chosen` says which elements.
template <class T, class S>
void read_elements(const S* from, int64_t step, const Chosen& chosen, T* to) {
    if (step == 1 && !chosen.numbers) {
        int64_t j = 0;
        if constexpr (sizeof(T) == sizeof(Compute<S>))
            for (; j + LANES<T> <= chosen.count; j += LANES<T>) store<T>(to + j, load_vector<S>(from + j));
        for (; j < chosen.count; ++j) to[j] = T(widen(from[j]));
        return;
    }
    for (int64_t j = 0; j < chosen.count; ++j) to[j] = T(widen(from[chosen[j] * step]));
}

template <class T>
void read_row(DataType type, const void* data, int64_t start, int64_t step, const Chosen& chosen, T* to) {
    switch (type) {
        case DataType::float64: return read_elements<T>(static_cast<const double*>(data) + start, step, chosen, to);
        case DataType::float16: return read_elements<T>(static_cast<const Float16*>(data) + start, step, chosen, to);
        case DataType::bfloat16: return read_elements<T>(static_cast<const BFloat16*>(data) + start, step, chosen, to);
        default: return read_elements<T>(static_cast<const float*>(data) + start, step, chosen, to);
    }
}

// What a thread works in.
template <class T>
struct Desk {
    T* scores;  // (block, length), as the next two
    T* kernel;
    T* slope;
    T* tokens;        // (block, depth)
    T* values;        // (block, width)
    T* moved;         // (block, depth or width)
    T* token_panels;  // `tokens` packed as a factor A
    T* panels;        // for the factors of other products
    T* other_panels;
    T* sums;  // (length)
    T* more_sums;

    // `inner`: the largest depth of a product that makes a block of (block, length).
    Desk(Arena& arena, const Cut<T>& cut, int64_t inner) {
        const int64_t rows = whole_groups(cut.block), widest = cut.depth > cut.width ? cut.depth : cut.width;
        const int64_t deepest = inner > widest ? inner : widest;
        scores = arena.take<T>(rows * cut.length);
        kernel = arena.take<T>(rows * cut.length);
        slope = arena.take<T>(inner ? rows * cut.length : 0);
        tokens = arena.take<T>(rows * cut.depth);
        values = arena.take<T>(rows * cut.width);
        moved = arena.take<T>(rows * widest);
        token_panels = arena.take<T>(packed_size<TILE_ROWS>(rows, cut.depth));
        const int64_t by_rows = packed_size<TILE_ROWS>(rows, deepest > cut.length ? deepest : cut.length);
        const int64_t by_columns = packed_size<TILE_ROWS>(cut.length, rows);
        panels = arena.take<T>(!deepest ? 0 : by_rows > by_columns ? by_rows : by_columns);
        other_panels = arena.take<T>(packed_size<TILE_COLUMNS<T>>(widest, rows));
        sums = arena.take<T>(cut.length);
        more_sums = arena.take<T>(cut.length);
    }
};

// The loop over chunks by one thread that has the item for itself, and by all.
template <class T>
struct Alone {
    Desk<T>& desk;

    template <class Body>
    void operator()(int64_t count, const Body& body) const {
        for (int64_t i = 0; i < count; ++i) body(i, desk);
    }
};

// Threads whose scratch fits beside what is taken already.
inline int affordable(int threads, size_t bytes_of_a_thread, size_t taken = 0) {
    const int64_t most = (ALL_SCRATCH - int64_t(taken)) / int64_t(bytes_of_a_thread + 1);
    return most < 1 ? 1 : most < threads ? int(most) : threads;
}

template <class T>
struct Together {
    const Cut<T>& cut;
    int64_t inner;
    int threads;
    size_t bytes;
    mutable bool enough = true;

    Together(const Cut<T>& cut, int64_t inner, int asked, size_t bytes_of_item) : cut(cut), inner(inner) {
        Arena measure(nullptr);
        Desk<T>(measure, cut, inner);
        bytes = measure.used();
        threads = affordable(asked, bytes, bytes_of_item);
    }

    bool had_memory() const { return enough; }

    template <class Body>
    void operator()(int64_t count, const Body& body) const {
        const bool had = for_each_item(threads, count, bytes, [&](int64_t i, void* scratch) {
            const WithoutDenormals without;
            Arena arena(scratch);
            Desk<T> desk(arena, cut, inner);
            body(i, desk);
        });
        enough = enough && had;
    }
};

// Where the scores of one problem come from.
template <class T>
struct Scores {
    DataType type = DataType::float32;
    const void* data = nullptr;  // scores; null where tokens are given
    int64_t start = 0, row_step = 0, column_step = 0;
    Chosen rows, columns;
    int64_t length = 0;
    double scale = 1;  // of the exponents: 1 / epsilon, or 2 / epsilon for squared distances

    const void* tokens = nullptr;
    int64_t token_start = 0, token_step = 0, feature_step = 0, depth = 0;
    const T* centre = nullptr;            // (depth), for squared distances
    const T* reference_panels = nullptr;  // the reference packed as a factor B

    bool lie_ready() const {
        return data && type == (sizeof(T) == 8 ? DataType::float64 : DataType::float32) && column_step == 1 && !columns.numbers &&
               length == columns.count;
    }

    // Rows first .. first + count of the tokens, as they came.
    void read_tokens(int64_t first, int64_t count, T* to) const {
        const Chosen all{depth, nullptr};
        for (int64_t i = 0; i < count; ++i)
            read_row<T>(type, tokens, token_start + rows[first + i] * token_step, feature_step, all, to + i * depth);
    }
};

// A block of rows of scores.
template <class T>
struct ScoreRows {
    const T* first = nullptr;
    int64_t step = 0;
    const int32_t* numbers = nullptr;

    const T* operator[](int64_t i) const { return first + (numbers ? numbers[i] : i) * step; }
};

// Makes the scores of `count` rows from `first` on. Of tokens it leaves desk.tokens (from the centre) and
// desk.token_panels behind.
template <class T>
ScoreRows<T> score_rows(const Scores<T>& scores, int64_t first, int64_t count, const Desk<T>& desk) {
    if (scores.lie_ready()) {
        const T* start = static_cast<const T*>(scores.data) + scores.start;
        if (scores.rows.numbers) return {start, scores.row_step, scores.rows.numbers + first};
        return {start + first * scores.row_step, scores.row_step, nullptr};
    }
    if (scores.data) {
        for (int64_t i = 0; i < count; ++i) {
            T* to = desk.scores + i * scores.length;
            read_row<T>(scores.type, scores.data, scores.start + scores.rows[first + i] * scores.row_step, scores.column_step,
                        scores.columns, to);
            for (int64_t j = scores.columns.count; j < scores.length; ++j) to[j] = 0;
        }
    } else {
        scores.read_tokens(first, count, desk.tokens);
        if (scores.centre)
            for (int64_t i = 0; i < count; ++i)
                for (int64_t d = 0; d < scores.depth; ++d) desk.tokens[i * scores.depth + d] -= scores.centre[d];
        pack<TILE_ROWS, T>(desk.tokens, count, scores.depth, scores.depth, 1, nullptr, desk.token_panels);
        multiply<false, T>(desk.token_panels, scores.reference_panels, count, scores.length, scores.depth, desk.scores,
                           scores.length);
    }
    return {desk.scores, scores.length, nullptr};
}

// |x|^2 of a vector of `depth` elements.
template <class T>
double squared_length(const T* x, int64_t depth) {
    double sum = 0;
    for (int64_t d = 0; d < depth; ++d) sum += double(x[d]) * double(x[d]);
    return sum;
}

// The supports that take part in one problem, centred for squared distances, and packed for the scores.
template <class T>
struct Supports {
    T* rows = nullptr;           // (columns, depth)
    T* panels = nullptr;         // a factor B of depth `depth`: gives scores
    T* centre = nullptr;         // (depth)
    double* shift = nullptr;     // (length): -|r - c|^2 / epsilon, or 0

    Supports(Arena& arena, const Cut<T>& cut) {
        shift = arena.take<double>(cut.length);
        if (!cut.depth) return;
        rows = arena.take<T>(cut.columns * cut.depth);
        panels = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.length, cut.depth));
        centre = arena.take<T>(cut.depth);
    }

    // Fills everything, and tells `scores` where its reference is. Columns that are padding get PADDING as their shift.
    void fill(const T* reference, bool squared_distance, double epsilon, Scores<T>& scores) {
        const int64_t count = scores.columns.count, depth = scores.depth;
        for (int64_t j = 0; j < scores.length; ++j) shift[j] = j < count ? 0 : PADDING;
        scores.scale = (squared_distance && reference ? 2 : 1) / epsilon;
        if (!reference) return;
        for (int64_t j = 0; j < count; ++j) memcpy(rows + j * depth, reference + scores.columns[j] * depth, sizeof(T) * size_t(depth));
        if (squared_distance) {
            for (int64_t d = 0; d < depth; ++d) {
                double sum = 0;
                for (int64_t j = 0; j < count; ++j) sum += double(rows[j * depth + d]);
                centre[d] = T(sum / double(count));
            }
            for (int64_t j = 0; j < count; ++j) {
                for (int64_t d = 0; d < depth; ++d) rows[j * depth + d] -= centre[d];
                shift[j] = -squared_length(rows + j * depth, depth) / epsilon;
            }
            scores.centre = centre;
        }
        // Padding columns of the last panel beyond `count` are zeros, so that scores are finite there.
        pack<TILE_COLUMNS<T>, T>(rows, count, depth, depth, 1, nullptr, panels);
        const int64_t packed = packed_size<TILE_COLUMNS<T>>(count, depth), whole = packed_size<TILE_COLUMNS<T>>(scores.length, depth);
        if (whole > packed) memset(panels + packed, 0, sizeof(T) * size_t(whole - packed));
        scores.reference_panels = panels;
    }
};

// -|x - c|^2 / epsilon of a token as it came; 0 for other scores.
template <class T>
double row_shift(const Scores<T>& scores, const T* token, double epsilon) {
    if (!scores.centre) return 0;
    double sum = 0;
    for (int64_t d = 0; d < scores.depth; ++d) {
        const double away = double(T(token[d] - scores.centre[d]));
        sum += away * away;
    }
    return -sum / epsilon;
}

}  // namespace prosma::PROSMA_LEVEL

// nearest_code on the CPU: index = the first k with the least score, score_k = offset_k - <x - shift, row_k>.
//
//     euclidean   row = c - shift, offset = |row|^2 / 2      shift: moves codes that lie far away, see shift_of
//     cosine      row = c / |c|,   offset = shift = 0
//
// A matrix product of 2 N K D flops, of which nothing is kept but a running least score and its index.
//   - A tile is VECTORS vectors of tokens (a lane each) times CODES codes: its sums stay in registers over all D, and
//     every code is one broadcast number, which VECTORS * LANES tokens share. With AVX-512 that is 24 sums, and 12
//     cycles of multiply-adds for 14 loads in 24 slots.
//   - Codes are packed once, tokens a block at a time, so that both are read in order. A block of tokens stays in L2
//     while all codes pass it; a code tile (12 KB at D 256) stays in L1 while the block's tokens pass it.
//   - At the end of a tile each of its codes is compared in turn: 4 instructions a vector for D multiply-adds. Codes
//     come in order and must be strictly less, so the lowest index wins.
//   - The chosen rows are copied to the result when their block is done; past the caches if the result is large.
// Extra memory: 4 MB of packed codes at most, 8 bytes a token and a block of tokens a thread. A token's result depends on
// nothing but itself and the codebook, so the number of threads changes no bit.
#include "../codebook.h"

#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "vectors.h"

namespace prosma::PROSMA_LEVEL {
namespace {

// Registers: CODES * VECTORS sums, VECTORS of tokens and one broadcast, of 32 with AVX-512 and 16 otherwise.
constexpr int VECTORS = 2;
#if defined(PROSMA_AVX512)
constexpr int CODES = 12;
#elif defined(__AVX2__)
constexpr int CODES = 6;
#else
constexpr int CODES = 4;
#endif
template <class T>
constexpr int TOKENS = VECTORS * LANES<T>;

// Dimensions by which the tokens are fetched from L2 in advance. At D 256 a tile of tokens fills L1, and without this the
// product runs at 49 % of the multiply-adds' rate, with it at 79 %; 4 to 24 do the same.
constexpr int AHEAD = 12;
constexpr int64_t PACKED_BYTES = 4 << 20;
constexpr int64_t BLOCK_BYTES = 128 << 10;  // of tokens: an eighth to a quarter of an L2 cache
constexpr int64_t MOST_TILES_OF_TOKENS = 8;
// Multiply-adds below which a second thread costs more than it saves.
constexpr int64_t WORTH_A_THREAD = 1 << 19;
constexpr int64_t STREAMED_BYTES = 8 << 20;
constexpr int COLUMNS = 64;  // of the codebook, an item of the search for its shift

constexpr int64_t divided_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

template <class T>
constexpr T INFINITE = T(__builtin_inf());
template <class T>
constexpr T LARGEST_FINITE = sizeof(T) == 8 ? T(__DBL_MAX__) : T(__FLT_MAX__);

// The sizes of everything, from the sizes of the problem alone.
template <class S>
struct Plan {
    using T = Compute<S>;
    const NearestArguments& a;
    int64_t tokens, dimensions, tiles_of_codes, tiles_packed, tiles_of_tokens, blocks;

    explicit Plan(const NearestArguments& arguments)
        : a(arguments), tokens(count_of(a.tokens)), dimensions(dimensions_of(a.tokens)) {
        tiles_of_codes = divided_up(a.codes, CODES);
        tiles_packed = PACKED_BYTES / (CODES * dimensions * int64_t(sizeof(T)));
        tiles_packed = tiles_packed < 1 ? 1 : tiles_packed > tiles_of_codes ? tiles_of_codes : tiles_packed;
        tiles_of_tokens = BLOCK_BYTES / (TOKENS<T> * dimensions * int64_t(sizeof(T)));
        tiles_of_tokens = tiles_of_tokens < 1                      ? 1
                          : tiles_of_tokens > MOST_TILES_OF_TOKENS ? MOST_TILES_OF_TOKENS
                                                                   : tiles_of_tokens;
        blocks = divided_up(tokens, tiles_of_tokens * TOKENS<T>);
    }

    int threads() const { return tokens * a.codes * dimensions < WORTH_A_THREAD ? 1 : a.threads; }
    size_t block_bytes() const { return size_t(tiles_of_tokens * TOKENS<T> * dimensions) * sizeof(T); }
    const T* code(int64_t k) const { return static_cast<const T*>(a.codebook) + k * dimensions; }
};

// What all threads share. `least` and `chosen` are per token, in whole tiles.
template <class T>
struct Workspace {
    Vector<T>* least;
    Mask<T>* chosen;
    T *shift, *offsets, *packed;  // offsets and packed are of the tiles of codes that are packed now

    static size_t bytes(int64_t vectors, int64_t dimensions, int64_t tiles_packed) {
        const int64_t lanes = LANES<T>, padded = divided_up(dimensions, lanes) * lanes;
        return size_t(2 * vectors * lanes + padded + divided_up(tiles_packed * CODES, lanes) * lanes +
                      tiles_packed * CODES * dimensions) * sizeof(T);
    }

    Workspace(void* memory, int64_t vectors, int64_t dimensions, int64_t tiles_packed) {
        const int64_t lanes = LANES<T>;
        least = static_cast<Vector<T>*>(memory);
        chosen = reinterpret_cast<Mask<T>*>(least + vectors);
        shift = reinterpret_cast<T*>(chosen + vectors);
        offsets = shift + divided_up(dimensions, lanes) * lanes;
        packed = offsets + divided_up(tiles_packed * CODES, lanes) * lanes;
    }
};

// The value nearest to zero if all from `least` to `most` lie on one side of it, else 0: no row is longer than its code,
// and rows are on the grid that the codes are on, so exact ties stay exact.
template <class T>
T shift_of(T least, T most) {
    if (!(least <= most)) return 0;  // no code is finite here
    return least > 0 ? least : most < 0 ? most : T(0);
}

// The shifts of COLUMNS dimensions.
template <class S>
void find_shift(const Plan<S>& plan, int64_t item, Compute<S>* shift) {
    using T = Compute<S>;
    const int64_t first = item * COLUMNS, rest = plan.dimensions - first;
    const int count = rest < COLUMNS ? int(rest) : COLUMNS;
    T least[COLUMNS], most[COLUMNS];
    for (int i = 0; i < COLUMNS; ++i) least[i] = INFINITE<T>, most[i] = -INFINITE<T>;
    for (int64_t k = 0; k < plan.a.codes; ++k) {
        const T* code = plan.code(k) + first;
        for (int i = 0; i < count; ++i) {
            const bool finite = code[i] >= -LARGEST_FINITE<T> && code[i] <= LARGEST_FINITE<T>;
            least[i] = finite && code[i] < least[i] ? code[i] : least[i];
            most[i] = finite && code[i] > most[i] ? code[i] : most[i];
        }
    }
    for (int i = 0; i < count; ++i) shift[first + i] = shift_of<T>(least[i], most[i]);
}

// In several chains, which the compiler makes vectors of.
template <class T>
double square_of_length(const T* row, const T* shift, int64_t dimensions) {
    constexpr int CHAINS = 16;
    double sums[CHAINS] = {};
    int64_t d = 0;
    for (; d + CHAINS <= dimensions; d += CHAINS)
        for (int i = 0; i < CHAINS; ++i) {
            const double value = T(row[d + i] - shift[d + i]);
            sums[i] += value * value;
        }
    for (int i = 0; d < dimensions; ++d, ++i) {
        const double value = T(row[d] - shift[d]);
        sums[i] += value * value;
    }
    for (int half = CHAINS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// The rows and offsets of CODES codes, the codes side by side; those beyond the last have an infinite score. Lengths are
// formed in double: so parallel codes have equal rows, and tie.
template <class S>
void pack_codes(const Plan<S>& plan, const Workspace<Compute<S>>& work, int64_t tile, int64_t place) {
    using T = Compute<S>;
    T* packed = work.packed + place * CODES * plan.dimensions;
    for (int c = 0; c < CODES; ++c) {
        const int64_t k = tile * CODES + c;
        T& offset = work.offsets[place * CODES + c];
        if (k >= plan.a.codes) {
            offset = INFINITE<T>;
            for (int64_t d = 0; d < plan.dimensions; ++d) packed[d * CODES + c] = 0;
            continue;
        }
        const T* code = plan.code(k);
        const double square = square_of_length<T>(code, work.shift, plan.dimensions);
        if (plan.a.metric == Metric::cosine) {
            const double length = square == 0 ? 1 : ::sqrt(square);
            offset = 0;
            for (int64_t d = 0; d < plan.dimensions; ++d) packed[d * CODES + c] = T(double(code[d]) / length);
        } else {
            offset = T(square) / 2;
            for (int64_t d = 0; d < plan.dimensions; ++d) packed[d * CODES + c] = code[d] - work.shift[d];
        }
    }
}

// Where the tokens of one vector lie; lanes beyond the last token repeat it.
template <class S>
struct Places {
    const S* start[LANES<Compute<S>>];
    bool side_by_side = true;  // in memory, so that one dimension of them is a vector as it stands

    Places(const Plan<S>& plan, int64_t first) {
        constexpr int lanes = LANES<Compute<S>>;
        const S* data = static_cast<const S*>(plan.a.tokens.data);
        for (int i = 0; i < lanes; ++i) {
            const int64_t n = first + i < plan.tokens ? first + i : plan.tokens - 1;
            start[i] = data + start_of(plan.a.tokens, n);
            side_by_side = side_by_side && start[i] == start[0] + i;
        }
    }
};

// x - shift of one vector of tokens, dimension by dimension; `to` advances by a tile's tokens a dimension.
template <class S>
void pack_vector(const Plan<S>& plan, const Places<S>& places, const Compute<S>* shift, Compute<S>* to) {
    using T = Compute<S>;
    constexpr int lanes = LANES<T>;
    const int64_t step = plan.a.tokens.strides[Vectors::LAST];
    if (step == 1) {
        for (int64_t d = 0; d < plan.dimensions; d += lanes) {
            const int64_t rest = plan.dimensions - d;
            const int count = rest < lanes ? int(rest) : lanes;
            const Vector<T> moved = load(shift + d);
            Vector<T> rows[lanes];
            for (int i = 0; i < lanes; ++i)
                rows[i] = (count == lanes ? load_vector<S>(places.start[i] + d) : load_first<S>(places.start[i] + d, count)) - moved;
            transpose<T>(rows);
            for (int i = 0; i < count; ++i) store<T>(to + (d + i) * TOKENS<T>, rows[i]);
        }
        return;
    }
    for (int64_t d = 0; d < plan.dimensions; ++d) {
        Vector<T> values;
        if (places.side_by_side) {
            values = load_vector<S>(places.start[0] + d * step);
        } else {
            for (int i = 0; i < lanes; ++i) values[i] = widen(places.start[i][d * step]);
        }
        store<T>(to + d * TOKENS<T>, values - shift[d]);
    }
}

// One tile: all its products, then the comparison. `first` is the number of the tile's first code.
template <class T>
PROSMA_INLINE void visit(const T* tokens, const T* codes, const T* offsets, int64_t dimensions, int64_t first,
                         Vector<T>* least, Mask<T>* chosen) {
    Vector<T> sums[CODES][VECTORS] = {};
    for (int64_t d = 0; d < dimensions; ++d) {
        Vector<T> token[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            const T* from = tokens + d * TOKENS<T> + v * LANES<T>;
            token[v] = load(from);
            __builtin_prefetch(from + AHEAD * TOKENS<T>);
        }
#pragma GCC unroll 12
        for (int c = 0; c < CODES; ++c) {
            const Vector<T> code = broadcast<T>(codes[d * CODES + c]);
            for (int v = 0; v < VECTORS; ++v) sums[c][v] += token[v] * code;
        }
    }
    for (int v = 0; v < VECTORS; ++v) {
        Vector<T> best = least[v];
        Mask<T> index = chosen[v];
#pragma GCC unroll 12
        for (int c = 0; c < CODES; ++c) {
            const Vector<T> score = broadcast<T>(offsets[c]) - sums[c][v];
            // A product that has overflowed is no reason to be chosen; and every comparison with a NaN is false.
            const Mask<T> better = (score < best) & (score > -INFINITE<T>);
            best = better ? score : best;
            index = better ? Mask<T>{} + decltype(index[0] + 0)(first + c) : index;
        }
        least[v] = best;
        chosen[v] = index;
    }
}

template <class S>
void copy_row(const Compute<S>* from, S* to, int64_t dimensions, bool streaming) {
    using T = Compute<S>;
    int64_t d = 0;
    for (; d + LANES<T> <= dimensions; d += LANES<T>) {
        if (streaming)
            stream_vector<S>(to + d, load(from + d));
        else
            store_vector<S>(to + d, load(from + d));
    }
    if (d < dimensions) store_first<S>(to + d, load_first<T>(from + d, int(dimensions - d)), int(dimensions - d));
}

// The results of a block of tokens.
template <class S>
void write_block(const Plan<S>& plan, const Workspace<Compute<S>>& work, int64_t first, int64_t end) {
    using T = Compute<S>;
    const bool streaming = plan.tokens * plan.dimensions * int64_t(sizeof(S)) >= STREAMED_BYTES;
    int64_t lost = 0;
    for (int64_t n = first; n < end; ++n) {
        const int64_t index = work.chosen[n / LANES<T>][n % LANES<T>];
        lost += work.least[n / LANES<T>][n % LANES<T>] == INFINITE<T>;
        plan.a.index[n] = index;
        copy_row<S>(plan.code(index), static_cast<S*>(plan.a.quantized) + n * plan.dimensions, plan.dimensions, streaming);
    }
    if (streaming) finish_streaming();
    if (lost) __atomic_fetch_add(plan.a.lost, lost, __ATOMIC_RELAXED);
}

// One block of tokens against the codes that are packed.
template <class S>
void visit_block(const Plan<S>& plan, const Workspace<Compute<S>>& work, int64_t block, int64_t first_tile,
                 int64_t tiles, void* scratch) {
    using T = Compute<S>;
    T* packed = static_cast<T*>(scratch);
    const int64_t first = block * plan.tiles_of_tokens * TOKENS<T>;
    int64_t own = divided_up(plan.tokens - first, TOKENS<T>);
    own = own < plan.tiles_of_tokens ? own : plan.tiles_of_tokens;
    for (int64_t tile = 0; tile < own; ++tile)
        for (int v = 0; v < VECTORS; ++v) {
            const int64_t vector = first / LANES<T> + tile * VECTORS + v;
            pack_vector<S>(plan, Places<S>(plan, vector * LANES<T>), work.shift,
                           packed + tile * TOKENS<T> * plan.dimensions + v * LANES<T>);
            if (first_tile == 0) {
                work.least[vector] = broadcast<T>(INFINITE<T>);
                work.chosen[vector] = Mask<T>{};
            }
        }
    for (int64_t place = 0; place < tiles; ++place)
        for (int64_t tile = 0; tile < own; ++tile) {
            const int64_t vector = first / LANES<T> + tile * VECTORS;
            visit<T>(packed + tile * TOKENS<T> * plan.dimensions, work.packed + place * CODES * plan.dimensions,
                     work.offsets + place * CODES, plan.dimensions, (first_tile + place) * CODES, work.least + vector,
                     work.chosen + vector);
        }
    if (first_tile + tiles == plan.tiles_of_codes) {
        const int64_t end = first + own * TOKENS<T>;
        write_block<S>(plan, work, first, end < plan.tokens ? end : plan.tokens);
    }
}

// Kept from call to call, as the threads' own scratch memory is.
Scratch& shared_scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

template <class S>
bool nearest(const NearestArguments& a) {
    using T = Compute<S>;
    *a.lost = 0;
    const Plan<S> plan(a);
    if (plan.tokens == 0) return true;
    const int64_t vectors = divided_up(plan.tokens, TOKENS<T>) * VECTORS;
    void* memory = shared_scratch().at_least(Workspace<T>::bytes(vectors, plan.dimensions, plan.tiles_packed));
    if (!memory) return false;
    const Workspace<T> work(memory, vectors, plan.dimensions, plan.tiles_packed);
    const int threads = plan.threads();
    for (int64_t d = 0; d < divided_up(plan.dimensions, LANES<T>) * LANES<T>; ++d) work.shift[d] = 0;
    if (a.metric == Metric::euclidean)
        for_each_item(threads, divided_up(plan.dimensions, COLUMNS), 1,
                      [&](int64_t item, void*) { find_shift<S>(plan, item, work.shift); });
    for (int64_t first = 0; first < plan.tiles_of_codes; first += plan.tiles_packed) {
        const int64_t rest = plan.tiles_of_codes - first;
        const int64_t tiles = rest < plan.tiles_packed ? rest : plan.tiles_packed;
        for_each_item(threads, tiles, 1,
                      [&](int64_t place, void*) { pack_codes<S>(plan, work, first + place, place); });
        if (!for_each_item(threads, plan.blocks, plan.block_bytes(), [&](int64_t block, void* scratch) {
                visit_block<S>(plan, work, block, first, tiles, scratch);
            }))
            return false;
    }
    return true;
}

}  // namespace

bool nearest_code_forward(const NearestArguments& a) {
    switch (a.type) {
        case DataType::float64: return nearest<double>(a);
        case DataType::float16: return nearest<Float16>(a);
        case DataType::bfloat16: return nearest<BFloat16>(a);
        default: return nearest<float>(a);
    }
}

}  // namespace prosma::PROSMA_LEVEL

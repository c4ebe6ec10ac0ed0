// nearest_code on the GPU: index = the first k with the least offset_k - <x - shift, row_k>, in three launches.
//
//     shift     of every dimension the code's number nearest to zero, if all codes lie on one side of it; else 0
//     rows      the codes less the shift, and half their squared lengths as offsets; cosine: the codes by their lengths
//     nearest   a block takes 128 tokens past all codes, 128 at a time (64 in double), on the tensor cores
//
// Neither the N x K scores nor |x|^2 are formed: a tile of scores lives in registers, and every thread keeps the least
// that it has seen of each of its 8 tokens, and where. Floor: 2 N K D flops at the rate of the units (three times that for
// exact float32, see tensor_cores.h), and 2 N D numbers moved. A lane's four inner numbers lie side by side in shared
// memory, so that fragments are read by 16 bytes; rows of 16 numbers put the two rows of a quarter of a warp into
// different halves of the banks. The next numbers are loaded while the present ones are multiplied.
#include "kernels.h"
#include "launch.h"
#include "layout.h"
#include "numbers.h"
#include "reduction.h"
#include "tensor_cores.h"

namespace prosma::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int TILE = 128;    // tokens
constexpr int NUMBERS = 16;  // multiplied between two barriers
constexpr int WARPS_OF_CODES = 4;
constexpr int TOKENS_A_WARP = TILE / (THREADS / WARP / WARPS_OF_CODES);
constexpr int DOWN = TOKENS_A_WARP / 16;       // products of a warp
constexpr int RUN = TILE * NUMBERS / THREADS;  // numbers of tokens that a thread loads: of one token, side by side

// The codes of a tile: 128, and 64 in double, where a thread's 64 products would take 128 of its 255 registers.
template <class C>
constexpr int CODES = sizeof(C) == 8 ? 64 : 128;
template <class C>
constexpr int CODES_A_WARP = CODES<C> / WARPS_OF_CODES;
template <class C>
constexpr int ACROSS = CODES_A_WARP<C> / 8;
template <class C>
constexpr int RUN_OF_CODES = CODES<C> * NUMBERS / THREADS;

template <class T>
struct Nearest {
    using C = Computed<T>;
    const T* tokens;
    int64_t count, per_batch, stride_batch, stride_token, stride_number;
    int codes, dimensions;
    const C* codebook;
    const C* shift;    // null for none
    const C* rows;     // (codes, dimensions)
    const C* offsets;  // (codes)
    T* quantized;
    int64_t* index;
    int* lost;
    bool wide_tokens, wide_rows;  // can be read 16 bytes at a time

    __device__ __forceinline__ const T* token(int64_t n) const {
        return tokens + n / per_batch * stride_batch + n % per_batch * stride_token;
    }
};

template <class C>
__global__ void __launch_bounds__(THREADS) shift_kernel(const C* codebook, int codes, int dimensions, C* shift) {
    const int number = int(blockIdx.x) * WARP + int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
    C least = C(INFINITY), most = -C(INFINITY);
    if (number < dimensions)
        for (int code = warp; code < codes; code += THREADS / WARP) {
            const C value = __ldg(codebook + int64_t(code) * dimensions + number);
            if (!(fabs(value) < C(INFINITY))) continue;
            least = value < least ? value : least;
            most = value > most ? value : most;
        }
    auto& bounds = shared_object<OfWarps<C, 2 * THREADS>>();
    bounds.values[threadIdx.x] = least;
    bounds.values[THREADS + threadIdx.x] = most;
    __syncthreads();
    if (warp != 0 || number >= dimensions) return;
    for (int i = int(threadIdx.x) + WARP; i < THREADS; i += WARP) {
        least = bounds.values[i] < least ? bounds.values[i] : least;
        most = bounds.values[THREADS + i] > most ? bounds.values[THREADS + i] : most;
    }
    shift[number] = !(least <= most) ? C(0) : least > 0 ? least : most < 0 ? most : C(0);
}

// A warp a code. Lengths are formed in float64, so that parallel codes have equal rows, and tie.
template <class C>
__global__ void __launch_bounds__(THREADS) rows_kernel(const C* codebook, const C* shift, int codes, int dimensions, C* rows,
                                                       C* offsets, int* lost) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *lost = 0;
    const int code = int(blockIdx.x) * (THREADS / WARP) + int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
    if (code >= codes) return;
    const int64_t first = int64_t(code) * dimensions;
    double square = 0;
    for (int number = lane; number < dimensions; number += WARP) {
        C value = __ldg(codebook + first + number);
        if (shift) rows[first + number] = value -= __ldg(shift + number);
        square += double(value) * double(value);
    }
    square = sum_of_warp(square);
    if (!shift) {
        const double length = square == 0 ? 1.0 : sqrt(square);
        for (int number = lane; number < dimensions; number += WARP)
            rows[first + number] = C(double(__ldg(codebook + first + number)) / length);
        square = 0;
    }
    if (lane == 0) offsets[code] = C(square / 2);
}

template <class C>
struct Tiles {
    alignas(16) C tokens[2][TILE][NUMBERS];
    alignas(16) C rows[2][CODES<C>][NUMBERS];
};

template <class C>
struct Found {
    C least[WARPS_OF_CODES][TILE];
    int code[WARPS_OF_CODES][TILE];
    int nearest[TILE];
};

// Numbers of one vector from `first` on, with zeros beyond its end.
template <class T, int COUNT>
__device__ __forceinline__ void load_run(const T* vector, int64_t stride, int first, int dimensions, bool there, bool wide,
                                         Computed<T> (&to)[COUNT]) {
    if (wide) {
        constexpr int V = COUNT < WIDEST<T> ? COUNT : WIDEST<T>;
#pragma unroll
        for (int part = 0; part < COUNT; part += V) {
            Pack<T, V> pack;
            const bool inside = there && first + part < dimensions;
            if (inside) pack = load<V>(vector + first + part);
#pragma unroll
            for (int i = 0; i < V; ++i) to[part + i] = inside ? to_computed(pack[i]) : Computed<T>(0);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
        to[i] = there && first + i < dimensions ? to_computed(__ldg(vector + (first + i) * stride)) : Computed<T>(0);
}

template <class C, int COUNT>
__device__ __forceinline__ void store_run(C* to, const C (&from)[COUNT]) {
#pragma unroll
    for (int part = 0; part < COUNT; part += WIDEST<C>) {
        Pack<C, WIDEST<C>> pack;
#pragma unroll
        for (int i = 0; i < WIDEST<C>; ++i) pack[i] = from[part + i];
        store(to + part, pack);
    }
}

// The products of the warp's tokens and codes over NUMBERS numbers; `row` and `column` are the lane's. Of its four inner
// numbers as many are in registers at a time as make 16 bytes: two in double.
template <bool EXACT, class C>
__device__ __forceinline__ void multiply_tiles(const Tiles<C>& tiles, int buffer, int first_token, int first_code, int row,
                                               int column, C (&products)[DOWN][ACROSS<C>][4]) {
    constexpr int V = WIDEST<C>, PAIRS = V / 2;
#pragma unroll
    for (int part = 0; part < 4; part += V) {
        Split<EXACT, C, 2> codes[ACROSS<C>][PAIRS];
#pragma unroll
        for (int n = 0; n < ACROSS<C>; ++n) {
            const auto code = load_shared<V>(&tiles.rows[buffer][first_code + n * 8 + row][column * 4 + part]);
#pragma unroll
            for (int i = 0; i < PAIRS; ++i) codes[n][i].take({code[2 * i], code[2 * i + 1]});
        }
#pragma unroll
        for (int m = 0; m < DOWN; ++m) {
            const auto upper = load_shared<V>(&tiles.tokens[buffer][first_token + m * 16 + row][column * 4 + part]);
            const auto lower = load_shared<V>(&tiles.tokens[buffer][first_token + m * 16 + row + 8][column * 4 + part]);
#pragma unroll
            for (int i = 0; i < PAIRS; ++i) {
                Split<EXACT, C, 4> tokens;
                tokens.take({upper[2 * i], lower[2 * i], upper[2 * i + 1], lower[2 * i + 1]});
#pragma unroll
                for (int n = 0; n < ACROSS<C>; ++n) multiply<EXACT>(products[m][n], tokens, codes[n][i]);
            }
        }
    }
}

template <class C>
__device__ __forceinline__ void keep_nearer(C score, int code, C& least, int& nearest) {
    if (score < least || (score == least && code < nearest)) {
        least = score;
        nearest = code;
    }
}

template <bool EXACT, class T>
__global__ void __launch_bounds__(THREADS, 1) nearest_kernel(Nearest<T> a) {
    using C = Computed<T>;
    auto& tiles = *dynamic_shared<Tiles<C>>();
    const int thread = int(threadIdx.x), lane = thread % WARP, warp = thread / WARP;
    const int row = lane / 4, column = lane % 4;
    const int first_token = warp / WARPS_OF_CODES * TOKENS_A_WARP, first_code = warp % WARPS_OF_CODES * CODES_A_WARP<C>;
    const int64_t tokens_before = int64_t(blockIdx.x) * TILE;

    // Neighbouring threads load neighbours: runs of one vector, or one number of several vectors where those are closer.
    const bool across = a.stride_number == 1 || a.stride_token != 1;
    constexpr int RUNS = NUMBERS / RUN, RUNS_OF_CODE = NUMBERS / RUN_OF_CODES<C>;
    const int loaded_token = across ? thread / RUNS : thread % TILE, token_run = (across ? thread % RUNS : thread / TILE) * RUN;
    const int loaded_code = thread / RUNS_OF_CODE, code_run = thread % RUNS_OF_CODE * RUN_OF_CODES<C>;
    const int64_t token = tokens_before + loaded_token;
    const bool token_there = token < a.count;
    const T* vector = a.token(token_there ? token : 0);

    C least[DOWN][2];
    int nearest[DOWN][2];
#pragma unroll
    for (int m = 0; m < DOWN; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            least[m][half] = C(INFINITY);
            nearest[m][half] = a.codes;
        }
    const int stages = (a.dimensions + NUMBERS - 1) / NUMBERS, passes = (a.codes + CODES<C> - 1) / CODES<C>;
    C of_token[RUN], of_row[RUN_OF_CODES<C>];
    const auto load_stage = [&](int stage, int pass) {
        const int number = stage * NUMBERS, code = pass * CODES<C> + loaded_code;
        load_run(vector, a.stride_number, number + token_run, a.dimensions, token_there, a.wide_tokens, of_token);
        if (a.shift)
#pragma unroll
            for (int i = 0; i < RUN; ++i)
                if (number + token_run + i < a.dimensions) of_token[i] -= __ldg(a.shift + number + token_run + i);
        const bool there = code < a.codes;
        load_run(a.rows + (there ? int64_t(code) * a.dimensions : 0), 1, number + code_run, a.dimensions, there, a.wide_rows,
                 of_row);
    };
    load_stage(0, 0);
    int buffer = 0;
    for (int pass = 0; pass < passes; ++pass) {
        C products[DOWN][ACROSS<C>][4] = {};
        for (int stage = 0; stage < stages; ++stage, buffer ^= 1) {
            store_run(&tiles.tokens[buffer][loaded_token][token_run], of_token);
            store_run(&tiles.rows[buffer][loaded_code][code_run], of_row);
            __syncthreads();
            if (stage + 1 < stages)
                load_stage(stage + 1, pass);
            else if (pass + 1 < passes)
                load_stage(0, pass + 1);
            multiply_tiles<EXACT>(tiles, buffer, first_token, first_code, row, column, products);
        }
#pragma unroll
        for (int n = 0; n < ACROSS<C>; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int code = pass * CODES<C> + first_code + n * 8 + 2 * column + i;
                const C offset = code < a.codes ? __ldg(a.offsets + code) : C(INFINITY);
#pragma unroll
                for (int m = 0; m < DOWN; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const C score = offset - products[m][n][2 * half + i];
                        // A score that is no number is no score.
                        if (fabs(score) < C(INFINITY)) keep_nearer(score, code, least[m][half], nearest[m][half]);
                    }
            }
    }

    auto& found = shared_object<Found<C>>();
#pragma unroll
    for (int m = 0; m < DOWN; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int distance = 1; distance < 4; distance *= 2) {
                const C score = __shfl_xor_sync(ALL_LANES, least[m][half], distance);
                const int code = __shfl_xor_sync(ALL_LANES, nearest[m][half], distance);
                keep_nearer(score, code, least[m][half], nearest[m][half]);
            }
            if (column == 0) {
                const int place = first_token + m * 16 + half * 8 + row;
                found.least[warp % WARPS_OF_CODES][place] = least[m][half];
                found.code[warp % WARPS_OF_CODES][place] = nearest[m][half];
            }
        }
    __syncthreads();
    if (thread < TILE && tokens_before + thread < a.count) {
        C score = found.least[0][thread];
        int code = found.code[0][thread];
        for (int other = 1; other < WARPS_OF_CODES; ++other)
            keep_nearer(found.least[other][thread], found.code[other][thread], score, code);
        if (code == a.codes) {
            atomicOr(a.lost, 1);
            code = 0;
        }
        found.nearest[thread] = code;
        a.index[tokens_before + thread] = code;
    }
    __syncthreads();
    for (int place = warp; place < TILE && tokens_before + place < a.count; place += THREADS / WARP) {
        const C* from = a.codebook + int64_t(found.nearest[place]) * a.dimensions;
        T* to = a.quantized + (tokens_before + place) * a.dimensions;
        for (int number = lane; number < a.dimensions; number += WARP) to[number] = to_stored<T>(__ldg(from + number));
    }
}

template <class T>
void start(const NearestArguments& a, const OnDevice& device) {
    using C = Computed<T>;
    constexpr int LAST = Vectors::LAST;
    Nearest<T> n = {};
    n.tokens = static_cast<const T*>(a.tokens.data);
    n.per_batch = a.tokens.sizes[LAST - 1];
    n.count = a.tokens.sizes[LAST - 2] * n.per_batch;
    n.stride_batch = a.tokens.strides[LAST - 2];
    n.stride_token = a.tokens.strides[LAST - 1];
    n.stride_number = a.tokens.strides[LAST];
    n.codes = int(a.codes);
    n.dimensions = int(a.tokens.sizes[LAST]);
    n.codebook = static_cast<const C*>(a.codebook);
    C* shift = static_cast<C*>(a.workspace);
    C* offsets = shift + ceil_div(n.dimensions, 4) * 4;
    C* rows = offsets + ceil_div(n.codes, 4) * 4;
    const bool shifted = a.metric == Metric::euclidean;
    n.shift = shifted ? shift : nullptr;
    n.rows = rows;
    n.offsets = offsets;
    n.quantized = static_cast<T*>(a.quantized);
    n.index = a.index;
    n.lost = a.lost_flag;
    const auto whole = [&](int64_t numbers) { return numbers % WIDEST<T> == 0; };
    n.wide_tokens = n.stride_number == 1 && whole(n.dimensions) && whole(n.stride_batch) && whole(n.stride_token) &&
                    aligned(16, n.tokens);
    n.wide_rows = n.dimensions % WIDEST<C> == 0;
    if (shifted)
        launch("nearest_code_shift", shift_kernel<C>, {unsigned(ceil_div(n.dimensions, WARP)), THREADS, 0, device.stream()},
               n.codebook, n.codes, n.dimensions, shift);
    launch("nearest_code_rows", rows_kernel<C>, {unsigned(ceil_div(n.codes, THREADS / WARP)), THREADS, 0, device.stream()},
           n.codebook, n.shift, n.codes, n.dimensions, rows, offsets, n.lost);
    if (n.count == 0) return;
    constexpr bool ALWAYS_EXACT = sizeof(C) == 8;
    launch("nearest_code", a.exact ? nearest_kernel<true, T> : nearest_kernel<ALWAYS_EXACT, T>,
           {unsigned(ceil_div(n.count, TILE)), THREADS, sizeof(Tiles<C>), device.stream()}, n);
}

}  // namespace

void nearest_code_forward(const NearestArguments& a) {
    if (a.tokens.sizes[0] != 1 || a.tokens.sizes[1] != 1) throw std::invalid_argument("tokens have 2 leading axes at most");
    const OnDevice device(a.queue);
    for_type(a.type, [&](auto zero) { start<decltype(zero)>(a, device); });
}

size_t nearest_code_workspace(const NearestArguments& a) {
    const size_t dimensions = size_t(ceil_div(a.tokens.sizes[Vectors::LAST], 4) * 4), codes = size_t(ceil_div(a.codes, 4) * 4);
    return (dimensions + codes + size_t(a.codes) * dimensions) * (a.type == DataType::float64 ? 8 : 4);
}

}  // namespace prosma::cuda

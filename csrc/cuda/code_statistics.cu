// code_statistics on the GPU: the sums of the tokens of every code, the same bits every time.
//
// The caller sorts the tokens by their codes, stably, and cuts each code's list into chunks. A block adds the tokens of one
// chunk in their order, a thread for each of 128 numbers; a second launch adds the chunks of a code in theirs. So a code
// that every token has chosen costs no more than many that share them, and nothing is added atomically.
#include "kernels.h"
#include "launch.h"
#include "layout.h"
#include "numbers.h"

namespace prosma::cuda {

namespace {

constexpr int THREADS = 128;
constexpr int AT_ONCE = 8;  // loads in flight

template <class T>
struct Chunks {
    const T* tokens;
    int64_t per_batch, stride_batch, stride_token, stride_number;
    int64_t codes, chunk;
    int dimensions, parts;
    const int64_t* order;   // the tokens, sorted
    const int64_t* first;   // (codes + 1) where each code's list begins in `order`
    const int64_t* chunks;  // (codes + 1) where each code's chunks begin among all
    const int64_t* owner;   // the code of each chunk; `codes` of those that are none
    Computed<T>* partial;   // (chunks, dimensions)
};

template <class T>
__global__ void __launch_bounds__(THREADS, 1) chunks_kernel(Chunks<T> a) {
    using C = Computed<T>;
    const int64_t chunk = blockIdx.x / a.parts, code = __ldg(a.owner + chunk);
    const int number = int(blockIdx.x % a.parts) * THREADS + int(threadIdx.x);
    if (code >= a.codes || number >= a.dimensions) return;
    const int64_t start = __ldg(a.first + code) + (chunk - __ldg(a.chunks + code)) * a.chunk;
    const int64_t next = __ldg(a.first + code + 1), end = start + a.chunk < next ? start + a.chunk : next;
    C sum = 0;
    for (int64_t place = start; place < end; place += AT_ONCE) {
        C values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int64_t token = place + i < end ? __ldg(a.order + place + i) : 0;
            const T* from = a.tokens + token / a.per_batch * a.stride_batch + token % a.per_batch * a.stride_token;
            values[i] = place + i < end ? to_computed(__ldg(from + number * a.stride_number)) : C(0);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) sum += values[i];
    }
    a.partial[chunk * a.dimensions + number] = sum;
}

template <class C>
__global__ void __launch_bounds__(THREADS) sums_kernel(const C* partial, const int64_t* chunks, int dimensions, int parts,
                                                       C* sums) {
    const int64_t code = blockIdx.x / parts;
    const int number = int(blockIdx.x % parts) * THREADS + int(threadIdx.x);
    if (number >= dimensions) return;
    C sum = 0;
    for (int64_t chunk = __ldg(chunks + code); chunk < __ldg(chunks + code + 1); ++chunk)
        sum += partial[chunk * dimensions + number];
    sums[code * dimensions + number] = sum;
}

template <class T>
void start(const StatisticsArguments& a, const OnDevice& device) {
    using C = Computed<T>;
    constexpr int LAST = Vectors::LAST;
    Chunks<T> c = {};
    c.tokens = static_cast<const T*>(a.tokens.data);
    c.per_batch = a.tokens.sizes[LAST - 1] > 0 ? a.tokens.sizes[LAST - 1] : 1;
    c.stride_batch = a.tokens.strides[LAST - 2];
    c.stride_token = a.tokens.strides[LAST - 1];
    c.stride_number = a.tokens.strides[LAST];
    c.codes = a.codes;
    c.chunk = a.chunk;
    c.dimensions = int(a.tokens.sizes[LAST]);
    c.parts = int(ceil_div(c.dimensions, THREADS));
    c.order = a.order;
    c.first = a.first;
    c.chunks = a.chunks;
    c.owner = a.owner;
    c.partial = static_cast<C*>(a.workspace);
    if (a.most_chunks > 0)
        launch("code_statistics_chunks", chunks_kernel<T>, {unsigned(a.most_chunks * c.parts), THREADS, 0, device.stream()}, c);
    launch("code_statistics_sums", sums_kernel<C>, {unsigned(a.codes * c.parts), THREADS, 0, device.stream()},
           c.partial, c.chunks, c.dimensions, c.parts, static_cast<C*>(a.sum));
}

}  // namespace

void code_statistics_forward(const StatisticsArguments& a) {
    if (a.tokens.sizes[0] != 1 || a.tokens.sizes[1] != 1) throw std::invalid_argument("tokens have 2 leading axes at most");
    const OnDevice device(a.queue);
    for_type(a.type, [&](auto zero) { start<decltype(zero)>(a, device); });
}

}  // namespace prosma::cuda

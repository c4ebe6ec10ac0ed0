// From blocks of dL/dS to the gradients of tokens and a reference:
//     S = <x, r>:      dx_i += sum_j dS_ij r_j                          dr_j += sum_i dS_ij x_i
//     S = -|x - r|^2:  dx_i += 2 (sum_j dS_ij r_j - x_i sum_j dS_ij)    dr_j += 2 (sum_i dS_ij x_i - r_j sum_i dS_ij)
// by products while a block is in the cache, so that dS never exists as a whole. Squared distances know x and r from the centre.
#pragma once

#include "transport_problem.h"

namespace prosma::PROSMA_LEVEL {

// Bytes of the sums of a wave of problems.
constexpr int64_t WAVE_BYTES = int64_t(8) << 20;

template <class T>
struct PairMemory {
    T* support_panels;    // packed for dS r
    T* reference_sums;    // (chunks, columns, depth)
    double* column_sums;  // (chunks, length)

    PairMemory(Arena& arena, const Cut<T>& cut) {
        const int64_t chunks = cut.depth ? cut.chunks(cut.rows) : 0;
        support_panels = arena.take<T>(packed_size<TILE_COLUMNS<T>>(cut.depth, cut.columns));
        reference_sums = arena.take<T>(chunks * cut.columns * cut.depth);
        column_sums = arena.take<double>(chunks * cut.length);
    }
};

// The gradients are added to `tokens_grad` (rows, depth) and `reference_grad` (columns, depth), either of which may be null.
template <class T>
class PairGradients {
public:
    PairGradients(const Scores<T>& scores, const Supports<T>& supports, const PairMemory<T>& memory, const Cut<T>& cut,
                  T* tokens_grad, T* reference_grad)
        : scores_(scores), supports_(supports), m_(memory), tokens_grad_(tokens_grad), reference_grad_(reference_grad),
          columns_(scores.columns.count), depth_(scores.depth), chunks_(cut.chunks(scores.rows.count)) {
        pack<TILE_COLUMNS<T>, T>(supports.rows, depth_, columns_, 1, depth_, nullptr, m_.support_panels);
        memset(m_.reference_sums, 0, sizeof(T) * size_t(chunks_ * columns_ * depth_));
        memset(m_.column_sums, 0, sizeof(double) * size_t(chunks_ * scores_.length));
    }

    bool wanted() const { return tokens_grad_ || reference_grad_; }

    // dx_i += factor_i moved_i for a block.
    void add_to_tokens(int64_t first, int64_t count, const T* factors, const T* moved) const {
        for (int64_t i = 0; i < count && tokens_grad_; ++i) {
            T* to = tokens_grad_ + scores_.rows[first + i] * depth_;
            for (int64_t d = 0; d < depth_; ++d) to[d] += factors[i] * moved[i * depth_ + d];
        }
    }

    // Takes the block of dS in desk.slope.
    void add(int64_t chunk, int64_t first, int64_t count, const Desk<T>& desk) const {
        const int64_t length = scores_.length;
        scores_.read_tokens(first, count, desk.tokens);
        if (scores_.centre)
            for (int64_t i = 0; i < count; ++i)
                for (int64_t d = 0; d < depth_; ++d) desk.tokens[i * depth_ + d] -= scores_.centre[d];
        if (tokens_grad_) {
            pack<TILE_ROWS, T>(desk.slope, count, columns_, length, 1, nullptr, desk.panels);
            multiply<false, T>(desk.panels, m_.support_panels, count, depth_, columns_, desk.moved, depth_);
            for (int64_t i = 0; i < count; ++i) add_token_gradient(first + i, desk.slope + i * length, desk.tokens + i * depth_,
                                                                   desk.moved + i * depth_);
        }
        if (!reference_grad_) return;
        pack<TILE_ROWS, T>(desk.slope, columns_, count, 1, length, nullptr, desk.panels);
        pack<TILE_COLUMNS<T>, T>(desk.tokens, depth_, count, 1, depth_, nullptr, desk.other_panels);
        multiply<true, T>(desk.panels, desk.other_panels, columns_, depth_, count, m_.reference_sums + chunk * columns_ * depth_,
                          depth_);
        if (!scores_.centre) return;
        memset(desk.slope + count * length, 0, sizeof(T) * size_t((whole_groups(count) - count) * length));
        memset(desk.more_sums, 0, sizeof(T) * size_t(length));
        sum_block<T>(desk.slope, count, length, desk.more_sums);
        move_sums<T>(desk.more_sums, length, m_.column_sums + chunk * length);
    }

    // Once all blocks have been delivered.
    void finish() const {
        if (!reference_grad_) return;
        for (int64_t j = 0; j < columns_; ++j) {
            double of_column = 0;
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) of_column += m_.column_sums[chunk * scores_.length + j];
            for (int64_t d = 0; d < depth_; ++d) {
                T sum = 0;
                for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum += m_.reference_sums[(chunk * columns_ + j) * depth_ + d];
                if (scores_.centre) sum = 2 * (sum - T(of_column) * supports_.rows[j * depth_ + d]);
                reference_grad_[scores_.columns[j] * depth_ + d] += sum;
            }
        }
    }

private:
    // dx = dS r, or 2 (dS r - x (dS 1)).
    void add_token_gradient(int64_t i, const T* slope, const T* token, const T* moved) const {
        T* to = tokens_grad_ + scores_.rows[i] * depth_;
        if (!scores_.centre) {
            for (int64_t d = 0; d < depth_; ++d) to[d] += moved[d];
            return;
        }
        Vector<T> sums{};
        for (int64_t j = 0; j < scores_.length; j += LANES<T>) sums += load<T>(slope + j);
        const T sum = sum_of_lanes<T>(sums);
        for (int64_t d = 0; d < depth_; ++d) to[d] += 2 * (moved[d] - sum * token[d]);
    }
    const Scores<T>& scores_;
    const Supports<T>& supports_;
    const PairMemory<T>& m_;
    T *tokens_grad_, *reference_grad_;
    int64_t columns_, depth_, chunks_;
};

template <class T>
void add(const T* from, int64_t count, T* to) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

// Work items of one thread each that all add to the same results: each has `size` sums of its own, zero at first, and these are
// taken in order: take(item, sums). A wave of items at a time, as many as the size allows, so that the order of additions does not
// depend on the threads. body(item, scratch, sums).
template <class T, class Body, class Take>
bool in_waves(int threads, int64_t items, size_t scratch_bytes, int64_t size, const Body& body, const Take& take) {
    int64_t wave = size ? WAVE_BYTES / (size * int64_t(sizeof(T))) : items;
    wave = wave < 1 ? 1 : wave < items ? wave : items;
    Scratch memory;
    T* sums = static_cast<T*>(memory.at_least(sizeof(T) * size_t(wave * size + 1)));
    if (!sums) return false;
    threads = affordable(threads, scratch_bytes, sizeof(T) * size_t(wave * size));
    for (int64_t start = 0; start < items; start += wave) {
        const int64_t count = items - start < wave ? items - start : wave;
        memset(sums, 0, sizeof(T) * size_t(count * size));
        const auto run = [&](int64_t i, void* scratch) {
            const WithoutDenormals without;
            body(start + i, scratch, sums + i * size);
        };
        if (!for_each_item(threads, count, scratch_bytes, run)) return false;
        for (int64_t i = 0; i < count && size; ++i) take(start + i, sums + i * size);
    }
    return true;
}

}  // namespace prosma::PROSMA_LEVEL

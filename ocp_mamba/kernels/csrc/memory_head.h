// The memory head for one new vector: see cpu_memory_head.py.
#pragma once
#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"

namespace {

constexpr long TOGETHER = 8;  // rows of the memory that are compared and added at once

// Inner products of ROWS rows (ROWS, width) with M queries (M, width), to (M, ROWS).
template <int ROWS, int M, class S, class R>
inline void inner(const S* rows, const R* queries, long width, R (*to)[ROWS]) {
    typedef typename Register<R>::type V;
    V sum[M][ROWS] = {};
    long j = 0;
    for (; j + LANES<R> <= width; j += LANES<R>) {
        V query[M];
        for (int m = 0; m < M; m++) query[m] = wide(queries + m * width + j);
        for (int r = 0; r < ROWS; r++) {
            const V row = wide(rows + r * width + j);
            for (int m = 0; m < M; m++) sum[m][r] += row * query[m];
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < ROWS; r++) {
            R all = 0;
#pragma omp simd reduction(+ : all)
            for (long l = 0; l < LANES<R>; l++) all += sum[m][r][l];
            for (long i = j; i < width; i++)
                all += load(rows[r * width + i]) * queries[m * width + i];
            to[m][r] = all;
        }
}

// to (M, width) += shares (M, ROWS) of rows (ROWS, width).
template <int ROWS, int M, class S, class R>
inline void add_shares(const S* rows, const R (*shares)[ROWS], long width, R* to) {
    typedef typename Register<R>::type V;
    long j = 0;
    for (; j + LANES<R> <= width; j += LANES<R>) {
        V sum[M];
        for (int m = 0; m < M; m++) sum[m] = wide(to + m * width + j);
        for (int r = 0; r < ROWS; r++) {
            const V row = wide(rows + r * width + j);
            for (int m = 0; m < M; m++) sum[m] += shares[m][r] * row;
        }
        for (int m = 0; m < M; m++) std::memcpy(to + m * width + j, &sum[m], sizeof(V));
    }
    for (; j < width; j++)
        for (int m = 0; m < M; m++)
            for (int r = 0; r < ROWS; r++)
                to[m * width + j] += shares[m][r] * load(rows[r * width + j]);
}

// A query's softmax so far: the greatest logit and the sum of exponentials beyond it. The numerators
// of the means, (M, width), stand apart.
template <class R> struct Softmax {
    R peak = -std::numeric_limits<R>::infinity(), sum = 0;

    void rise(R to, long width, R* mean) {
        const R factor = exponential(peak - to);
        peak = to, sum *= factor;
        for (long j = 0; j < width; j++) mean[j] *= factor;
    }
};

// ROWS more rows of the memory, for M queries.
template <int ROWS, int M, class S, class R>
inline void see(const S* rows, const R* queries, R temperature, long width, Softmax<R>* found,
                R* means) {
    R share[M][ROWS];
    inner<ROWS, M>(rows, queries, width, share);
    for (int m = 0; m < M; m++) {
        Softmax<R>& f = found[m];
        R highest = f.peak;
        for (int r = 0; r < ROWS; r++) {
            share[m][r] /= temperature;
            highest = share[m][r] > highest ? share[m][r] : highest;
        }
        if (highest > f.peak) f.rise(highest, width, means + m * width);
        for (int r = 0; r < ROWS; r++) f.sum += share[m][r] = exponential(share[m][r] - f.peak);
    }
    add_shares<ROWS, M>(rows, share, width, means);
}

// out (width), the mean over queries (M, width) of softmax(query . memory / temperature) memory, with
// memory (n, width) read once: a few rows are compared with all queries and added up at once.
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, section 3.
template <class S, class R>
void read_memory(long M, long n, long width, R temperature, const S* memory, const R* queries, R* out) {
    const long threads = omp_get_max_threads();
    std::vector<R> means(threads * M * width, R(0));
    std::vector<Softmax<R>> found(threads * M);
#pragma omp parallel for schedule(static)
    for (long t = 0; t < threads; t++) {
        const long last = (t + 1) * n / threads;
        for (long i = t * n / threads; i < last;) {
            const bool many = i + TOGETHER <= last;
            const S* rows = memory + i * width;
            for (long m = 0; m < M;) {
                const bool three = m + 3 <= M;  // the members of a model, mostly
                const auto next = many ? three ? see<TOGETHER, 3, S, R> : see<TOGETHER, 1, S, R>
                                       : three ? see<1, 3, S, R> : see<1, 1, S, R>;
                next(rows, queries + m * width, temperature, width, &found[t * M + m],
                     &means[(t * M + m) * width]);
                m += three ? 3 : 1;
            }
            i += many ? TOGETHER : 1;
        }
    }
    std::memset(out, 0, width * sizeof(R));
    for (long m = 0; m < M; m++) {
        R peak = -std::numeric_limits<R>::infinity(), sum = 0;
        for (long t = 0; t < threads; t++) peak = std::max(peak, found[t * M + m].peak);
        const auto weight = [&](long t) { return exponential(found[t * M + m].peak - peak); };
        for (long t = 0; t < threads; t++) sum += found[t * M + m].sum * weight(t);
        for (long t = 0; t < threads; t++) {
            const R share[1][1] = {{weight(t) / sum / R(M)}};
            add_shares<1, 1>(&means[(t * M + m) * width], share, width, out);
        }
    }
}

}  // namespace

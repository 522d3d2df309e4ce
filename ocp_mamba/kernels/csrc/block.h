// One block of positions of one sequence through a Mamba-2 mixer's inside, forward and backward.
// The letters of shapes are those of mixer.cpp.
#pragma once
#include <memory>
#include <vector>

#include "conv.h"

namespace {

constexpr long CHUNK = 16;  // positions that one masked matrix product takes together

// One block of one sequence. Its own memory is addressed by the position in the sequence, too.
template <class S, class R> struct Block {
    const Sizes& s;
    const Weights<R>& w;
    long first, last;
    const S* in;         // (L, Z)
    S* y;                // (L, E) scan and skip, before the gate; null where no one will go back
    R* dt;               // (L, H) after softplus
    R* act;              // (C) a position, after convolution and SiLU
    R* gram;             // (CHUNK) a position, products of C and B
    const R* zeros;      // (C) what lies before the sequence and after it
    R* slope = nullptr;  // (C) a position, derivative of SiLU
    R* exact = nullptr;  // (E) a position, y as it is computed

    Convolution<S, R> convolution() const { return {s, w, in, act, zeros, slope}; }

    // One head over one chunk. Decays from its start and to its end, and the weight of each
    // position's input in each later one; source: Dao and Gu, "Transformers are SSMs", 2024,
    // section 6. What lies after a position, or after the sequence, weighs nothing.
    struct Chunk {
        long start, size;
        R dt[CHUNK], log_decay[CHUNK], since_start[CHUNK], to_end[CHUNK];
        R decay[CHUNK][CHUNK], weight[CHUNK][CHUNK];  // [to][from]
        R whole() const { return since_start[CHUNK - 1]; }
    };
    Matrix<R> x(long t, long h) const { return {act + t * s.C() + h * s.P, s.C()}; }
    Matrix<R> Bv(long t) const { return {act + t * s.C() + s.E(), s.C()}; }
    Matrix<R> Cv(long t) const { return {act + t * s.C() + s.E() + s.N, s.C()}; }

    void open(Chunk& k, long h, long start) const {
        k.start = start;
        k.size = start + CHUNK < s.L ? CHUNK : s.L - start;
        R sum = 0;
        for (long i = 0; i < CHUNK; i++) {
            k.dt[i] = i < k.size ? dt[(start + i) * s.H + h] : R(0);
            k.log_decay[i] = sum += k.dt[i] * w.A[h];
        }
#pragma omp simd
        for (long i = 0; i < CHUNK; i++) {
            k.since_start[i] = exponential(k.log_decay[i]);
            k.to_end[i] = exponential(sum - k.log_decay[i]);
        }
        for (long to = 0; to < k.size; to++) {
            const R* products = gram + (start + to) * CHUNK;
            const R here = k.log_decay[to];
#pragma omp simd
            for (long i = 0; i < CHUNK; i++) {
                const R log = here - k.log_decay[i];
                k.decay[to][i] = i <= to ? exponential(log > R(0) ? R(0) : log) : R(0);
                k.weight[to][i] = k.decay[to][i] * k.dt[i] * products[i];
            }
        }
    }

    // The time steps of a position, (H).
    void time(long t) const {
        const S* raw = in + (t + 1) * s.Z() - s.H;
        const R* bias = w.dt_bias;
        R* to = dt + t * s.H;
#pragma omp simd
        for (long h = 0; h < s.H; h++) to[h] = softplus(load(raw[h]) + bias[h]);
    }

    // Products of C at a position with B at it and at those before it in its chunk.
    void pair(long t) const {
        const long start = t / CHUNK * CHUNK;
        for (long i = 0; i < CHUNK; i++)
            gram[t * CHUNK + i] = start + i <= t ? dot(Cv(t).at, Bv(start + i).at, s.N) : R(0);
    }

    // The state (N, P) after a chunk, from the one before it in the same place.
    void carry(const Chunk& k, long h, R* state) const {
        const long N = s.N, P = s.P;
        scale<R>({state, P}, {state, P}, N, P, k.whole());
        std::unique_ptr<R[]> inflow(new R[CHUNK * N]);
        for (long i = 0; i < k.size; i++)
            scale<R>({&inflow[i * N], N}, Bv(k.start + i), 1, N, k.to_end[i] * k.dt[i]);
        add_product<R>({state, P}, {inflow.get(), 1, N}, x(k.start, h), N, P, k.size);
    }

    // The block's y of one head; its state (N, P) goes from before the block to after it.
    void scan(long h, R* state) const {
        const long N = s.N, P = s.P;
        std::unique_ptr<R[]> outflow(new R[CHUNK * N]);
        Chunk k;
        for (long start = first; start < last; start += CHUNK) {
            open(k, h, start);
            const Matrix<R> out{exact + start * s.E() + h * P, s.E()}, in_x = x(start, h);
            scale(out, in_x, k.size, P, w.D[h]);
            add_product<R>(out, {k.weight[0], CHUNK}, in_x, k.size, P, k.size);
            if (start) {
                for (long i = 0; i < k.size; i++)
                    scale<R>({&outflow[i * N], N}, Cv(start + i), 1, N, k.since_start[i]);
                add_product<R>(out, {outflow.get(), N}, {state, P}, k.size, P, N);
            }
            if (start + CHUNK < s.L) carry(k, h, state);
        }
    }

    void gate(long t, S* out) const {
        const long E = s.E();
        const S* z = in + t * s.Z();
        const R *row = exact + t * E, *norm = w.norm;
        std::unique_ptr<R[]> gated(new R[E]);
        R* g = gated.get();
        S* to = out + t * E;
        R sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]);
            g[e] = row[e] * v * sigmoid(v);
            sum += g[e] * g[e];
        }
        const R scale = R(1) / std::sqrt(sum / R(E) + R(s.eps));
#pragma omp simd
        for (long e = 0; e < E; e++) store(to[e], g[e] * scale * norm[e]);
        if (!y) return;
        S* kept = y + t * E;
#pragma omp simd
        for (long e = 0; e < E; e++) store(kept[e], row[e]);
    }

    // Gradient through the norm and the gate: dz into din, dy, and the norm weight's share.
    void gate_back(long t, const S* dout, S* din, R* dy, R* dnorm) const {
        const long E = s.E();
        const S *z = in + t * s.Z(), *d = dout + t * E, *row = y + t * E;
        const R* norm = w.norm;
        std::unique_ptr<R[]> memory(new R[E]);
        R *sig = memory.get(), *dy_row = dy + t * E;
        S* dz = din + t * s.Z();
        R sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]);
            sig[e] = sigmoid(v);
            const R g = load(row[e]) * v * sig[e];
            sum += g * g;
            dot += load(d[e]) * norm[e] * g;
        }
        const R scale = R(1) / std::sqrt(sum / R(E) + R(s.eps));
        const R along = dot * scale * scale * scale / R(E);
#pragma omp simd
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]), silu = v * sig[e], found = load(row[e]), g = found * silu;
            const R dout_scaled = load(d[e]) * scale, dg = dout_scaled * norm[e] - g * along;
            dnorm[e] += dout_scaled * g;
            store(dz[e], dg * found * sig[e] * (R(1) + v - silu));
            dy_row[e] = dg * silu;
        }
    }

    // Gradient through the scan of one head: dx into dact, dB and dC of this head into dBC (2N) a
    // position, ddt before softplus into din; to sums, those of dt_bias, A and D are added. The
    // state's gradient dstate (N, P) goes from after the block to before it; the states before
    // each chunk are computed again from the one before the block.
    void scan_back(long h, const R* found, const R* dy, R* dact, R* dBC, S* din, R* dstate,
                   R* sums) const {
        const long N = s.N, P = s.P, chunks = (last - first + CHUNK - 1) / CHUNK;
        std::unique_ptr<R[]> memory(new R[(chunks + 1) * N * P + CHUNK * (2 * N + P)]);
        R* states = memory.get();
        const Matrix<R> turned{states + chunks * N * P, N};  // (P, N)
        const Matrix<R> scaled{turned.at + N * P, N}, rows{scaled.at + CHUNK * N, N};  // (CHUNK, N)
        const Matrix<R> x_turned{rows.at + CHUNK * N, CHUNK};  // (P, CHUNK)
        Chunk k;
        if (found)
            std::memcpy(states, found, N * P * sizeof(R));
        else
            std::memset(states, 0, N * P * sizeof(R));
        for (long c = 0; c + 1 < chunks; c++) {
            open(k, h, first + c * CHUNK);
            std::memcpy(states + (c + 1) * N * P, states + c * N * P, N * P * sizeof(R));
            carry(k, h, states + (c + 1) * N * P);
        }
        R ddt_bias = 0, dA = 0, dD = 0;
        for (long c = chunks - 1; c >= 0; c--) {
            const long start = first + c * CHUNK;
            open(k, h, start);
            const long Q = k.size;
            const Matrix<R> d{const_cast<R*>(dy) + start * s.E() + h * P, s.E()};
            const Matrix<R> in_x = x(start, h), dx{dact + start * s.C() + h * P, s.C()};
            const Matrix<R> B = Bv(start), Cm = Cv(start);
            const Matrix<R> dB{dBC + start * 2 * N, 2 * N}, dC{dB.at + N, 2 * N};
            R dlog[CHUNK] = {}, ddt[CHUNK] = {}, through[CHUNK][CHUNK] = {};

            for (long i = 0; i < Q; i++) {
                dD += dot(&d(i, 0), &in_x(i, 0), P);
                std::memset(&dB(i, 0), 0, 2 * N * sizeof(R));
            }
            scale(dx, d, Q, P, w.D[h]);
            transpose(x_turned, in_x, Q, P, CHUNK);
            add_product<R>({through[0], CHUNK}, d, x_turned, Q, CHUNK, P);
            for (long i = 0; i < Q; i++) {
                const R* products = gram + (start + i) * CHUNK;
                R all = 0;
#pragma omp simd reduction(+ : all)
                for (long j = 0; j < CHUNK; j++) {
                    const R flow = through[i][j] * k.weight[i][j];
                    const R felt = through[i][j] * k.decay[i][j];
                    all += flow;
                    dlog[j] -= flow;
                    ddt[j] += felt * products[j];
                    through[i][j] = felt * k.dt[j];
                }
                dlog[i] += all;
            }
            add_product<R>(dx, Matrix<R>{k.weight[0], CHUNK}.transposed(), d, Q, P, Q);
            add_product<R>(dB, Matrix<R>{through[0], CHUNK}.transposed(), Cm, Q, N, Q);
            add_product<R>(dC, {through[0], CHUNK}, B, Q, N, Q);

            if (start + CHUNK < s.L) {  // through the state that this chunk left
                dlog[CHUNK - 1] += k.whole() * dot(dstate, states + c * N * P, N * P);
                transpose(turned, {dstate, P}, N, P, N);
                std::memset(rows.at, 0, CHUNK * N * sizeof(R));
                add_product<R>(rows, in_x, turned, Q, N, P);
                for (long i = 0; i < Q; i++) {
                    const R flow = k.to_end[i] * k.dt[i];
                    const R sum = dot(&B(i, 0), &rows(i, 0), N);
                    for (long n = 0; n < N; n++) {
                        dB(i, n) += flow * rows(i, n);
                        scaled(i, n) = flow * B(i, n);
                    }
                    ddt[i] += k.to_end[i] * sum;
                    dlog[i] -= flow * sum;
                    dlog[CHUNK - 1] += flow * sum;
                }
                add_product<R>(dx, scaled, {dstate, P}, Q, P, N);
                scale<R>({dstate, P}, {dstate, P}, N, P, k.whole());
            }
            if (start) {  // through the state that this chunk found
                transpose(turned, {states + c * N * P, P}, N, P, N);
                std::memset(rows.at, 0, CHUNK * N * sizeof(R));
                add_product<R>(rows, d, turned, Q, N, P);
                for (long i = 0; i < Q; i++) {
                    const R flow = k.since_start[i];
                    dlog[i] += flow * dot(&Cm(i, 0), &rows(i, 0), N);
                    for (long n = 0; n < N; n++) {
                        dC(i, n) += flow * rows(i, n);
                        scaled(i, n) = flow * Cm(i, n);
                    }
                }
                add_product<R>({dstate, P}, scaled.transposed(), d, N, P, Q);
            }
            R later = 0;  // a step's decay is in every later sum of logarithms
            for (long i = Q - 1; i >= 0; i--) {
                later += dlog[i];
                dA += later * k.dt[i];
                const R raw = (ddt[i] + later * w.A[h]) * (R(1) - std::exp(-k.dt[i]));
                ddt_bias += raw;
                store(din[(start + i) * s.Z() + s.Z() - s.H + h], raw);
            }
        }
        sums[0] += ddt_bias, sums[1] += dA, sums[2] += dD;
    }

    // Sum dB and dC over heads, then the gradient before SiLU, in dact's place.
    void silu_back(long t, const R* dBC, long rows, R* dact) const {
        const long N = s.N, C = s.C();
        R *row = dact + t * C, *both = row + s.E();
        const R* d = slope + t * C;
        for (long n = 0; n < 2 * N; n++) both[n] = 0;
        for (long h = 0; h < s.H; h++) {
            const R* part = dBC + (h * rows + t - first) * 2 * N;
            for (long n = 0; n < 2 * N; n++) both[n] += part[n];
        }
#pragma omp simd
        for (long c = 0; c < C; c++) row[c] *= d[c];
    }
};

}  // namespace

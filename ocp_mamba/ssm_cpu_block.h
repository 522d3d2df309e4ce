// One block of positions of one sequence through a Mamba-2 mixer's inside, forward and backward.
// The letters of shapes are those of ssm_cpu.cpp.
#pragma once
#include <memory>
#include <vector>

#include "ssm_cpu_math.h"

namespace {

constexpr long CHUNK = 16;   // positions that one masked matrix product takes together
constexpr long BLOCK = 64;  // positions whose intermediate results are held at once

struct Sizes {
    long B, L, H, P, N, K, threads;
    double eps;
    long E() const { return H * P; }
    long C() const { return E() + 2 * N; }
    long Z() const { return 2 * E() + 2 * N + H; }
    long blocks() const { return (L + BLOCK - 1) / BLOCK; }
    long state() const { return H * N * P; }
};

template <class R> struct Weights {
    const R *conv, *conv_bias, *dt_bias, *A, *D, *norm;  // conv is (K, C)
};

// One block of one sequence. Its own memory is addressed by the position in the sequence, too.
template <class S, class R> struct Block {
    const Sizes& s;
    const Weights<R>& w;
    long first, last;
    const S* in;         // (L, Z)
    R* y;                // (L, E) scan and skip, before the gate
    R* dt;               // (L, H) after softplus
    R* act;              // (C) a position, after convolution and SiLU
    R* gram;             // (CHUNK) a position, products of C and B
    const R* zeros;      // (C) what lies before the sequence and after it
    R* slope = nullptr;  // (C) a position, derivative of SiLU

    // What the convolution sees of a position.
    const S* row(long t) const {
        return t < 0 ? reinterpret_cast<const S*>(zeros) : in + t * s.Z() + s.E();
    }
    void convolve(long t) const {
        const long C = s.C(), K = s.K;
        R *a = act + t * C, *d = slope ? slope + t * C : nullptr;
        if (K == 4) {  // the usual width, in one pass
            const S *r0 = row(t - 3), *r1 = row(t - 2), *r2 = row(t - 1), *r3 = row(t);
            const R *w0 = w.conv, *w1 = w0 + C, *w2 = w1 + C, *w3 = w2 + C, *bias = w.conv_bias;
            silu(C, a, d, [=](long c) {
                return bias[c] + w0[c] * load(r0[c]) + w1[c] * load(r1[c]) + w2[c] * load(r2[c]) +
                       w3[c] * load(r3[c]);
            });
            return;
        }
        std::memcpy(a, w.conv_bias, C * sizeof(R));
        for (long k = 0; k < K; k++) {
            const S* from = row(t - (K - 1) + k);
            const R* weight = w.conv + k * C;
#pragma omp simd
            for (long c = 0; c < C; c++) a[c] += weight[c] * load(from[c]);
        }
        silu(C, a, d, [=](long c) { return a[c]; });
    }

    // SiLU of each of C values, and its derivative where it is wanted.
    template <class F> static void silu(long C, R* out, R* derivative, F value) {
        if (derivative) {
#pragma omp simd
            for (long c = 0; c < C; c++) {
                const R v = value(c), sig = sigmoid(v);
                derivative[c] = sig * (R(1) + v * (R(1) - sig));
                out[c] = v * sig;
            }
        } else {
#pragma omp simd
            for (long c = 0; c < C; c++) {
                const R v = value(c);
                out[c] = v * sigmoid(v);
            }
        }
    }

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
            const Matrix<R> out{y + start * s.E() + h * P, s.E()}, in_x = x(start, h);
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
        const R *row = y + t * E, *norm = w.norm;
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
    }

    // Gradient through the norm and the gate: dz into din, dy, and the norm weight's share.
    void gate_back(long t, const S* dout, S* din, R* dy, R* dnorm) const {
        const long E = s.E();
        const S *z = in + t * s.Z(), *d = dout + t * E;
        const R *row = y + t * E, *norm = w.norm;
        std::unique_ptr<R[]> memory(new R[E]);
        R *sig = memory.get(), *dy_row = dy + t * E;
        S* dz = din + t * s.Z();
        R sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]);
            sig[e] = sigmoid(v);
            const R g = row[e] * v * sig[e];
            sum += g * g;
            dot += load(d[e]) * norm[e] * g;
        }
        const R scale = R(1) / std::sqrt(sum / R(E) + R(s.eps));
        const R along = dot * scale * scale * scale / R(E);
#pragma omp simd
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]), silu = v * sig[e], g = row[e] * silu;
            const R dout_scaled = load(d[e]) * scale, dg = dout_scaled * norm[e] - g * along;
            dnorm[e] += dout_scaled * g;
            store(dz[e], dg * row[e] * sig[e] * (R(1) + v - silu));
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

    // Gradient through the convolution of the rows from one to another; dconv is (K + 1, C), its last
    // row that of the bias.
    void convolve_back(long from, long to, const R* dact, S* din, R* dconv) const {
        for (long t = from; t < to;) {
            const bool many = s.K == 4 && t >= 3 && t + 4 <= to && t + 7 <= s.L;
            many ? four_back(t, dact, din, dconv) : one_back(t, dact, din, dconv);
            t += many ? 4 : 1;
        }
    }

    // Four rows, of the usual width, none of which reaches beyond an end of the sequence: the weights
    // and their gradients are read and written once.
    void four_back(long t, const R* dact, S* din, R* dconv) const {
        constexpr int ROWS = 4;
        const long C = s.C(), Z = s.Z();
        const R* d = dact + t * C;
        const S* in_x = row(t - 3);
        const R *w0 = w.conv, *w1 = w0 + C, *w2 = w1 + C, *w3 = w2 + C;
        R *dw0 = dconv, *dw1 = dw0 + C, *dw2 = dw1 + C, *dw3 = dw2 + C, *dbias = dw3 + C;
        S* to = din + t * Z + s.E();
#pragma omp simd
        for (long c = 0; c < C; c++) {
            R here[ROWS + 3], seen[ROWS + 3];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS + 3; i++) here[i] = d[i * C + c];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS + 3; i++) seen[i] = load(in_x[i * Z + c]);
            R s0 = dw0[c], s1 = dw1[c], s2 = dw2[c], s3 = dw3[c], sum = dbias[c];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                s0 += here[i] * seen[i];
                s1 += here[i] * seen[i + 1];
                s2 += here[i] * seen[i + 2];
                s3 += here[i] * seen[i + 3];
                sum += here[i];
                store(to[i * Z + c], w3[c] * here[i] + w2[c] * here[i + 1] + w1[c] * here[i + 2] +
                                         w0[c] * here[i + 3]);
            }
            dw0[c] = s0, dw1[c] = s1, dw2[c] = s2, dw3[c] = s3, dbias[c] = sum;
        }
    }

    void one_back(long t, const R* dact, S* din, R* dconv) const {
        const long C = s.C(), K = s.K;
        const R* d = dact + t * C;
        const auto later = [&](long n) { return t + n < s.L ? d + n * C : zeros; };
        R* dbias = dconv + K * C;
        S* to = din + t * s.Z() + s.E();
        if (K == 4) {
            const R *d1 = later(1), *d2 = later(2), *d3 = later(3);
            const S *r0 = row(t - 3), *r1 = row(t - 2), *r2 = row(t - 1), *r3 = row(t);
            const R *w0 = w.conv, *w1 = w0 + C, *w2 = w1 + C, *w3 = w2 + C;
            R *dw0 = dconv, *dw1 = dw0 + C, *dw2 = dw1 + C, *dw3 = dw2 + C;
#pragma omp simd
            for (long c = 0; c < C; c++) {
                const R here = d[c];
                dw0[c] += here * load(r0[c]);
                dw1[c] += here * load(r1[c]);
                dw2[c] += here * load(r2[c]);
                dw3[c] += here * load(r3[c]);
                dbias[c] += here;
                store(to[c], w3[c] * here + w2[c] * d1[c] + w1[c] * d2[c] + w0[c] * d3[c]);
            }
            return;
        }
        std::vector<R> sum(C, R(0));
        for (long k = 0; k < K; k++) {
            const R *weight = w.conv + k * C, *after = later(K - 1 - k);
            const S* from = row(t - (K - 1) + k);
            R* dw = dconv + k * C;
#pragma omp simd
            for (long c = 0; c < C; c++) {
                sum[c] += weight[c] * after[c];
                dw[c] += d[c] * load(from[c]);
            }
        }
#pragma omp simd
        for (long c = 0; c < C; c++) {
            dbias[c] += d[c];
            store(to[c], sum[c]);
        }
    }
};

}  // namespace

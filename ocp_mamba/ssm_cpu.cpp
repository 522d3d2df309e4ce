// What a Mamba-2 mixer does between its two linear layers, forward and backward, for CPUs:
// causal convolution with SiLU, softplus of dt, the state-space scan, the skip, and the gated
// RMS norm. The plain torch version is Mamba2Mixer's in model.py; ssm_cpu.py compiles this
// file and calls it.
//
// Shapes: B batch, L length, H heads, P head width, N state width, K convolution width;
// E = H P inner width, C = E + 2 N convolution channels, Z = 2 E + 2 N + H columns of the input,
// which are z (E), x (E), B (N), C (N), dt (H). S is what tensors are stored as, R what is computed
// with. Sequences are spread over threads; where there are fewer than threads, positions and heads.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <omp.h>
#include <vector>

namespace {

constexpr long CHUNK = 16;   // positions that one masked matrix product takes together
constexpr long BLOCK = 128;  // positions whose intermediate results are held at once

struct bf16 {
    uint16_t bits;
};
inline float load(bf16 v) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(v.bits) << 16);
}
inline float load(float v) { return v; }
inline double load(double v) { return v; }
inline void store(bf16& to, float v) {  // to nearest, ties to even; what is not a number stays so
    uint32_t u = __builtin_bit_cast(uint32_t, v);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    to.bits = static_cast<uint16_t>(v != v ? 0x7fc0u : rounded);
}
inline void store(float& to, float v) { to = v; }
inline void store(double& to, double v) { to = v; }

// exp without branches, so that loops over it become vector code; relative error below 2e-7.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}
inline double exponential(double x) { return std::exp(x); }
template <class R> inline R sigmoid(R x) { return R(1) / (R(1) + exponential(-x)); }
template <class R> inline R softplus(R x) { return x > R(20) ? x : std::log1p(std::exp(x)); }

// A matrix in memory: element (i, j) is at[i * row + j * column].
template <class R> struct Matrix {
    R* at;
    long row, column = 1;
    R& operator()(long i, long j) const { return at[i * row + j * column]; }
    Matrix transposed() const { return {at, column, row}; }
};

// A whole vector register of numbers; compilers split it where registers are narrower.
constexpr long REGISTER_BYTES = 64;
template <class R> struct Register {
    typedef R type __attribute__((vector_size(REGISTER_BYTES)));
};

template <class R, int ROWS>
inline void product_rows(Matrix<R> to, Matrix<R> a, Matrix<R> b, long i, long n, long k) {
    typedef typename Register<R>::type V;
    constexpr long LANES = REGISTER_BYTES / sizeof(R);
    long j = 0;
    for (; j + LANES <= n; j += LANES) {
        V sum[ROWS];
        for (int r = 0; r < ROWS; r++) std::memcpy(&sum[r], &to(i + r, j), sizeof(V));
        for (long l = 0; l < k; l++) {
            V right;
            std::memcpy(&right, &b(l, j), sizeof(V));
            for (int r = 0; r < ROWS; r++) sum[r] += a(i + r, l) * right;
        }
        for (int r = 0; r < ROWS; r++) std::memcpy(&to(i + r, j), &sum[r], sizeof(V));
    }
    for (; j < n; j++)
        for (int r = 0; r < ROWS; r++) {
            R sum = to(i + r, j);
            for (long l = 0; l < k; l++) sum += a(i + r, l) * b(l, j);
            to(i + r, j) = sum;
        }
}
// to (m, n) += a (m, k) b (k, n); the columns of to and b are neighbours in memory.
template <class R>
inline void add_product(Matrix<R> to, Matrix<R> a, Matrix<R> b, long m, long n, long k) {
    long i = 0;
    for (; i + 4 <= m; i += 4) product_rows<R, 4>(to, a, b, i, n, k);
    for (; i < m; i++) product_rows<R, 1>(to, a, b, i, n, k);
}
template <class R> inline void copy(Matrix<R> to, Matrix<R> from, long m, long n) {
    for (long i = 0; i < m; i++)
        for (long j = 0; j < n; j++) to(i, j) = from(i, j);
}
template <class R> inline R dot(const R* a, const R* b, long n) {
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

struct Sizes {
    long B, L, H, P, N, K;
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
    R* slope = nullptr;  // (C) a position, derivative of SiLU

    void convolve(long t) const {
        const long C = s.C(), Z = s.Z(), K = s.K;
        R* a = act + t * C;
        for (long c = 0; c < C; c++) a[c] = w.conv_bias[c];
        for (long k = 0; k < K; k++) {
            const long from = t - (K - 1) + k;
            if (from < 0) continue;
            const S* row = in + from * Z + s.E();
            const R* weight = w.conv + k * C;
#pragma omp simd
            for (long c = 0; c < C; c++) a[c] += weight[c] * load(row[c]);
        }
        if (slope) {
            R* d = slope + t * C;
#pragma omp simd
            for (long c = 0; c < C; c++) {
                const R sig = sigmoid(a[c]);
                d[c] = sig * (R(1) + a[c] * (R(1) - sig));
                a[c] = a[c] * sig;
            }
        } else {
#pragma omp simd
            for (long c = 0; c < C; c++) a[c] = a[c] * sigmoid(a[c]);
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

    // Products of C at a position with B at it and at those before it in its chunk.
    void pair(long t) const {
        const long start = t / CHUNK * CHUNK;
        for (long i = 0; i < CHUNK; i++)
            gram[t * CHUNK + i] = start + i <= t ? dot(Cv(t).at, Bv(start + i).at, s.N) : R(0);
    }

    // The state (N, P) after a chunk, from the one before it in the same place.
    void carry(const Chunk& k, long h, R* state) const {
        const long N = s.N, P = s.P;
        for (long i = 0; i < N * P; i++) state[i] *= k.whole();
        std::vector<R> inflow(CHUNK * N);
        for (long i = 0; i < k.size; i++)
            for (long n = 0; n < N; n++)
                inflow[i * N + n] = k.to_end[i] * k.dt[i] * Bv(k.start + i)(0, n);
        add_product<R>({state, P}, {inflow.data(), 1, N}, x(k.start, h), N, P, k.size);
    }

    // The block's y of one head; its state (N, P) goes from before the block to after it.
    void scan(long h, R* state) const {
        const long N = s.N, P = s.P;
        std::vector<R> outflow(CHUNK * N);
        Chunk k;
        for (long t = first; t < last; t++)
            dt[t * s.H + h] =
                softplus<R>(load(in[t * s.Z() + s.Z() - s.H + h]) + w.dt_bias[h]);
        for (long start = first; start < last; start += CHUNK) {
            open(k, h, start);
            const Matrix<R> out{y + start * s.E() + h * P, s.E()}, in_x = x(start, h);
            for (long i = 0; i < k.size; i++)
                for (long p = 0; p < P; p++) out(i, p) = w.D[h] * in_x(i, p);
            add_product<R>(out, {k.weight[0], CHUNK}, in_x, k.size, P, k.size);
            if (start) {
                for (long i = 0; i < k.size; i++)
                    for (long n = 0; n < N; n++)
                        outflow[i * N + n] = k.since_start[i] * Cv(start + i)(0, n);
                add_product<R>(out, {outflow.data(), N}, {state, P}, k.size, P, N);
            }
            if (start + CHUNK < s.L) carry(k, h, state);
        }
    }

    void gate(long t, S* out) const {
        const long E = s.E();
        const S* z = in + t * s.Z();
        const R* row = y + t * E;
        std::vector<R> gated(E);
        R* g = gated.data();
        R sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]);
            g[e] = row[e] * v * sigmoid(v);
            sum += g[e] * g[e];
        }
        const R scale = R(1) / std::sqrt(sum / R(E) + R(s.eps));
#pragma omp simd
        for (long e = 0; e < E; e++) store(out[t * E + e], g[e] * scale * w.norm[e]);
    }

    // Gradient through the norm and the gate: dz into din, dy, and the norm weight's share.
    void gate_back(long t, const S* dout, S* din, R* dy, R* dnorm) const {
        const long E = s.E();
        const S *z = in + t * s.Z(), *d = dout + t * E;
        const R* row = y + t * E;
        std::vector<R> memory(3 * E);
        R *g = memory.data(), *silu = g + E, *dsilu = g + 2 * E;
        R sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
        for (long e = 0; e < E; e++) {
            const R v = load(z[e]), sig = sigmoid(v);
            silu[e] = v * sig;
            dsilu[e] = sig * (R(1) + v * (R(1) - sig));
            g[e] = row[e] * silu[e];
            sum += g[e] * g[e];
            dot += load(d[e]) * w.norm[e] * g[e];
        }
        const R scale = R(1) / std::sqrt(sum / R(E) + R(s.eps));
        const R along = dot * scale * scale * scale / R(E);
#pragma omp simd
        for (long e = 0; e < E; e++) {
            const R dv = load(d[e]);
            dnorm[e] += dv * g[e] * scale;
            const R dg = dv * w.norm[e] * scale - g[e] * along;
            store(din[t * s.Z() + e], dg * row[e] * dsilu[e]);
            dy[t * E + e] = dg * silu[e];
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
                for (long p = 0; p < P; p++) dx(i, p) = w.D[h] * d(i, p);
                std::memset(&dB(i, 0), 0, 2 * N * sizeof(R));
            }
            copy(x_turned, in_x.transposed(), P, Q);
            add_product<R>({through[0], CHUNK}, d, x_turned, Q, CHUNK, P);
            for (long i = 0; i < Q; i++)
                for (long j = 0; j < Q; j++) {
                    const R cb = gram[(start + i) * CHUNK + j];
                    const R flow = through[i][j] * k.weight[i][j];
                    through[i][j] *= k.decay[i][j];
                    ddt[j] += through[i][j] * cb;
                    dlog[i] += flow;
                    dlog[j] -= flow;
                    through[i][j] *= k.dt[j];
                }
            add_product<R>(dx, Matrix<R>{k.weight[0], CHUNK}.transposed(), d, Q, P, Q);
            add_product<R>(dB, Matrix<R>{through[0], CHUNK}.transposed(), Cm, Q, N, Q);
            add_product<R>(dC, {through[0], CHUNK}, B, Q, N, Q);

            if (start + CHUNK < s.L) {  // through the state that this chunk left
                dlog[CHUNK - 1] += k.whole() * dot(dstate, states + c * N * P, N * P);
                copy(turned, Matrix<R>{dstate, P}.transposed(), P, N);
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
                for (long i = 0; i < N * P; i++) dstate[i] *= k.whole();
            }
            if (start) {  // through the state that this chunk found
                copy(turned, Matrix<R>{states + c * N * P, P}.transposed(), P, N);
                std::memset(rows.at, 0, CHUNK * N * sizeof(R));
                add_product<R>(rows, d, turned, Q, N, P);
                for (long i = 0; i < Q; i++) {
                    dlog[i] += k.since_start[i] * dot(&Cm(i, 0), &rows(i, 0), N);
                    for (long n = 0; n < N; n++) {
                        dC(i, n) += k.since_start[i] * rows(i, n);
                        scaled(i, n) = k.since_start[i] * Cm(i, n);
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
        for (long n = 0; n < 2 * N; n++) both[n] = 0;
        for (long h = 0; h < s.H; h++) {
            const R* part = dBC + (h * rows + t - first) * 2 * N;
            for (long n = 0; n < 2 * N; n++) both[n] += part[n];
        }
#pragma omp simd
        for (long c = 0; c < C; c++) row[c] *= slope[t * C + c];
    }

    // Gradient through the convolution; dconv is (K + 1, C), its last row that of the bias.
    void convolve_back(long t, const R* dact, S* din, R* dconv) const {
        const long C = s.C(), Z = s.Z(), K = s.K;
        const R* d = dact + t * C;
        std::vector<R> sum(C, R(0));
        for (long k = 0; k < K; k++) {
            const R* weight = w.conv + k * C;
            const long to = t + (K - 1) - k, from = t - (K - 1) + k;
            if (to < s.L) {
                const R* later = dact + to * C;
#pragma omp simd
                for (long c = 0; c < C; c++) sum[c] += weight[c] * later[c];
            }
            if (from >= 0) {
                const S* row = in + from * Z + s.E();
                R* dw = dconv + k * C;
#pragma omp simd
                for (long c = 0; c < C; c++) dw[c] += d[c] * load(row[c]);
            }
        }
        R* dbias = dconv + K * C;
        S* to = din + t * Z + s.E();
#pragma omp simd
        for (long c = 0; c < C; c++) {
            dbias[c] += d[c];
            store(to[c], sum[c]);
        }
    }
};

// states (B, blocks - 1, H, N, P) are those before every block but the first; null where no one will
// go back.
template <class S, class R>
void forward(const Sizes& s, const Weights<R>& w, const S* in, S* out, R* y, R* dt, R* states) {
    const bool apart = s.B >= omp_get_max_threads();
    const long E = s.E(), C = s.C(), rows = s.L < BLOCK ? s.L : BLOCK;
    const auto share_rows = [&] {
        std::unique_ptr<R[]> memory(new R[rows * (C + CHUNK) + s.state()]);
        R *act = memory.get(), *gram = act + rows * C, *state = gram + rows * CHUNK;
#pragma omp for schedule(static)
        for (long b = 0; b < s.B; b++) {
            std::memset(state, 0, s.state() * sizeof(R));
            for (long k = 0; k < s.blocks(); k++) {
                const long first = k * BLOCK, last = first + rows < s.L ? first + rows : s.L;
                const Block<S, R> q{s, w, first, last, in + b * s.L * s.Z(), y + b * s.L * E,
                                    dt + b * s.L * s.H, act - first * C, gram - first * CHUNK};
                if (states && k)
                    std::memcpy(states + (b * (s.blocks() - 1) + k - 1) * s.state(), state,
                                s.state() * sizeof(R));
#pragma omp parallel for if (!apart) schedule(static)
                for (long t = first; t < last; t++) q.convolve(t);
                for (long t = first; t < last; t++) q.pair(t);
#pragma omp parallel for if (!apart) schedule(static)
                for (long h = 0; h < s.H; h++) q.scan(h, state + h * s.N * s.P);
#pragma omp parallel for if (!apart) schedule(static)
                for (long t = first; t < last; t++) q.gate(t, out + b * s.L * E);
            }
        }
    };
    // Not `parallel if (apart)`: within a region, even of one thread, those below would be nested,
    // and OpenMP makes new threads for every nested region.
    if (apart) {
#pragma omp parallel
        share_rows();
    } else {
        share_rows();
    }
}

// dnorm (E), dconv (K + 1, C) and dheads (B, H, 3), of dt_bias, A and D, are added to.
template <class S, class R>
void backward(const Sizes& s, const Weights<R>& w, const S* in, const S* dout, R* y, R* dt,
              R* states, S* din, R* dnorm, R* dconv, R* dheads) {
    const long threads = omp_get_max_threads();
    const bool apart = s.B >= threads;
    const long C = s.C(), E = s.E(), rows = s.L < BLOCK ? s.L : BLOCK, halo = s.K - 1;
    const long share = E + (s.K + 1) * C;  // each thread's sums, added in order afterwards
    std::vector<R> sums(threads * share, R(0));
    const auto share_rows = [&] {
        const long mine = omp_get_thread_num(), slots = apart ? 1 : threads;
        std::unique_ptr<R[]> memory(
            new R[(rows + halo) * C + rows * (2 * C + E + s.H * 2 * s.N + CHUNK) + s.state()]);
        R *act = memory.get(), *slope = act + rows * C, *dact = slope + rows * C;
        R *dy = dact + (rows + halo) * C, *gram = dy + rows * E, *dBC = gram + rows * CHUNK;
        R* dstate = dBC + s.H * rows * 2 * s.N;
#pragma omp for schedule(static)
        for (long b = 0; b < s.B; b++) {
            S* d = din + b * s.L * s.Z();
            std::memset(dstate, 0, s.state() * sizeof(R));
            for (long k = s.blocks() - 1; k >= 0; k--) {
                const long first = k * BLOCK, last = first + rows < s.L ? first + rows : s.L;
                const long size = last - first;
                const Block<S, R> q{s, w, first, last, in + b * s.L * s.Z(), y + b * s.L * E,
                                    dt + b * s.L * s.H, act - first * C, gram - first * CHUNK,
                                    slope - first * C};
                R *my_dy = dy - first * E, *my_dact = dact - first * C;
                const R* found =
                    k ? states + (b * (s.blocks() - 1) + k - 1) * s.state() : nullptr;
                // Rows are cut into as many parts as there are threads, each with sums of its own.
#pragma omp parallel for if (!apart) schedule(static)
                for (long i = 0; i < slots; i++)
                    for (long t = first + i * size / slots; t < first + (i + 1) * size / slots; t++) {
                        R* sum = &sums[(apart ? mine : i) * share];
                        q.gate_back(t, dout + b * s.L * E, d, my_dy, sum);
                        q.convolve(t);
                    }
                for (long t = first; t < last; t++) q.pair(t);
#pragma omp parallel for if (!apart) schedule(static)
                for (long h = 0; h < s.H; h++) {
                    const long at = h * s.N * s.P;
                    q.scan_back(h, found ? found + at : nullptr, my_dy, my_dact,
                                dBC + (h * rows - first) * 2 * s.N, d, dstate + at,
                                dheads + (b * s.H + h) * 3);
                }
#pragma omp parallel for if (!apart) schedule(static)
                for (long t = first; t < last; t++) q.silu_back(t, dBC, rows, my_dact);
#pragma omp parallel for if (!apart) schedule(static)
                for (long i = 0; i < slots; i++)
                    for (long t = first + i * size / slots; t < first + (i + 1) * size / slots; t++) {
                        R* sum = &sums[(apart ? mine : i) * share];
                        q.convolve_back(t, my_dact, d, sum + E);
                    }
                if (k)  // the block before needs the first rows of this one
                    for (long i = halo - 1; i >= 0; i--)
                        std::memcpy(dact + (rows + i) * C, dact + i * C, C * sizeof(R));
            }
        }
    };
    // Not `parallel if (apart)`: within a region, even of one thread, those below would be nested,
    // and OpenMP makes new threads for every nested region.
    if (apart) {
#pragma omp parallel
        share_rows();
    } else {
        share_rows();
    }
    for (long i = 0; i < threads; i++) {
        for (long e = 0; e < E; e++) dnorm[e] += sums[i * share + e];
        for (long c = 0; c < (s.K + 1) * C; c++) dconv[c] += sums[i * share + E + c];
    }
}

// The RMS norm before a mixer: rows (count, width) of R in, of S out.
template <class S, class R>
void norm_forward(long count, long width, R eps, const R* weight, const R* in, S* out) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i++) {
        const R* row = in + i * width;
        S* to = out + i * width;
        const R scale = R(1) / std::sqrt(dot(row, row, width) / R(width) + eps);
#pragma omp simd
        for (long j = 0; j < width; j++) store(to[j], row[j] * scale * weight[j]);
    }
}
template <class S, class R>
void norm_backward(long count, long width, R eps, const R* weight, const R* in, const S* dout,
                   R* din, R* dweight) {
    const long slots = omp_get_max_threads();
    std::vector<R> sums(slots * width, R(0));
#pragma omp parallel for schedule(static)
    for (long slot = 0; slot < slots; slot++)
        for (long i = slot * count / slots; i < (slot + 1) * count / slots; i++) {
            const R* row = in + i * width;
            const S* d = dout + i * width;
            R *to = din + i * width, *sum = &sums[slot * width], along = 0;
#pragma omp simd reduction(+ : along)
            for (long j = 0; j < width; j++) along += load(d[j]) * weight[j] * row[j];
            const R scale = R(1) / std::sqrt(dot(row, row, width) / R(width) + eps);
            along *= scale * scale * scale / R(width);
#pragma omp simd
            for (long j = 0; j < width; j++) {
                const R v = load(d[j]);
                sum[j] += v * row[j] * scale;
                to[j] = v * weight[j] * scale - row[j] * along;
            }
        }
    for (long slot = 0; slot < slots; slot++)
        for (long j = 0; j < width; j++) dweight[j] += sums[slot * width + j];
}

template <class R> Weights<R> weights(void* const* p) {
    return {static_cast<R*>(p[0]), static_cast<R*>(p[1]), static_cast<R*>(p[2]),
            static_cast<R*>(p[3]), static_cast<R*>(p[4]), static_cast<R*>(p[5])};
}
template <class S, class R> void call_forward(const Sizes& s, void* const* p) {
    forward<S, R>(s, weights<R>(p), static_cast<S*>(p[6]), static_cast<S*>(p[7]),
                  static_cast<R*>(p[8]), static_cast<R*>(p[9]), static_cast<R*>(p[10]));
}
template <class S, class R> void call_backward(const Sizes& s, void* const* p) {
    backward<S, R>(s, weights<R>(p), static_cast<S*>(p[6]), static_cast<S*>(p[7]),
                   static_cast<R*>(p[8]), static_cast<R*>(p[9]), static_cast<R*>(p[10]),
                   static_cast<S*>(p[11]), static_cast<R*>(p[12]), static_cast<R*>(p[13]),
                   static_cast<R*>(p[14]));
}
template <class S, class R> void call_norm_forward(const Sizes& s, void* const* p) {
    norm_forward<S, R>(s.B * s.L, s.P, R(s.eps), static_cast<R*>(p[0]), static_cast<R*>(p[1]),
                       static_cast<S*>(p[2]));
}
template <class S, class R> void call_norm_backward(const Sizes& s, void* const* p) {
    norm_backward<S, R>(s.B * s.L, s.P, R(s.eps), static_cast<R*>(p[0]), static_cast<R*>(p[1]),
                        static_cast<S*>(p[2]), static_cast<R*>(p[3]), static_cast<R*>(p[4]));
}

}  // namespace

// kind: 0 is bfloat16 computed in float, 1 float, 2 double. For the norm, P is the width.
#define OCP_ENTRY(name)                                                            \
    extern "C" void mixer_##name(int kind, const Sizes* s, void* const* p) {       \
        if (kind == 0) call_##name<bf16, float>(*s, p);                            \
        if (kind == 1) call_##name<float, float>(*s, p);                           \
        if (kind == 2) call_##name<double, double>(*s, p);                         \
    }
OCP_ENTRY(forward)
OCP_ENTRY(backward)
OCP_ENTRY(norm_forward)
OCP_ENTRY(norm_backward)

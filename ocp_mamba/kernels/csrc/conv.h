// Sizes and weights of a Mamba-2 mixer, and its causal convolution with SiLU, forward and backward,
// position by position. The letters of shapes are those of mixer.cpp.
#pragma once
#include <vector>

#include "simd.h"

namespace {

constexpr long BLOCK = 64;  // positions whose intermediate results are held at once

struct Sizes {
    long B, L, H, P, N, K;
    double eps;
    long threads;
    long E() const { return H * P; }
    long C() const { return E() + 2 * N; }
    long Z() const { return 2 * E() + 2 * N + H; }
    long blocks() const { return (L + BLOCK - 1) / BLOCK; }
    long state() const { return H * N * P; }
};

template <class R> struct Weights {
    const R *conv, *conv_bias, *dt_bias, *A, *D, *norm;  // conv is (K, C)
};

template <class S, class R> struct Convolution {
    const Sizes& s;
    const Weights<R>& w;
    const S* in;     // (L, Z)
    R* act;          // (C) a position, after convolution and SiLU
    const R* zeros;  // (C) what lies before the sequence and after it
    R* slope;        // (C) a position, derivative of SiLU; null where it is not wanted

    // What the convolution sees of a position.
    const S* row(long t) const {
        return t < 0 ? reinterpret_cast<const S*>(zeros) : in + t * s.Z() + s.E();
    }
    void forward(long t) const {
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

    // Gradient through the convolution of the rows from one to another; dconv is (K + 1, C), its last
    // row that of the bias.
    void backward(long from, long to, const R* dact, S* din, R* dconv) const {
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

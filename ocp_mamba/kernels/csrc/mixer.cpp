// What a Mamba-2 mixer does between its two linear layers, forward and backward, for CPUs:
// causal convolution with SiLU, softplus of dt, the state-space scan, the skip, and the gated
// RMS norm. The plain torch version is Mamba2Mixer in model/mamba2.py; cpu.py compiles this
// file, with those it includes, and calls it.
//
// Shapes: B batch, L length, H heads, P head width, N state width, K convolution width;
// E = H P inner width, C = E + 2 N convolution channels, Z = 2 E + 2 N + H columns of the input,
// which are z (E), x (E), B (N), C (N), dt (H). S is what tensors are stored as, R what is computed
// with. Sequences are spread over threads; where there are fewer than threads, positions and heads.
#include <omp.h>

#include "block.h"
#include "memory_head.h"

namespace {

// states (B, blocks - 1, H, N, P) are those before every block but the first; null where no one will
// go back.
template <class S, class R>
void forward(const Sizes& s, const Weights<R>& w, const S* in, S* out, S* y, R* dt, R* states) {
    const bool apart = s.B >= omp_get_max_threads();
    const long E = s.E(), C = s.C(), rows = s.L < BLOCK ? s.L : BLOCK;
    const auto share_rows = [&] {
        std::unique_ptr<R[]> memory(new R[rows * (C + CHUNK + E) + s.state() + C]);
        R *act = memory.get(), *gram = act + rows * C, *exact = gram + rows * CHUNK;
        R *state = exact + rows * E, *zeros = state + s.state();
        std::memset(zeros, 0, C * sizeof(R));
#pragma omp for schedule(static)
        for (long b = 0; b < s.B; b++) {
            std::memset(state, 0, s.state() * sizeof(R));
            for (long k = 0; k < s.blocks(); k++) {
                const long first = k * BLOCK, last = first + rows < s.L ? first + rows : s.L;
                const Block<S, R> q{s, w, first, last, in + b * s.L * s.Z(),
                                    y ? y + b * s.L * E : nullptr, dt + b * s.L * s.H,
                                    act - first * C, gram - first * CHUNK, zeros, nullptr,
                                    exact - first * E};
                if (states && k)
                    std::memcpy(states + (b * (s.blocks() - 1) + k - 1) * s.state(), state,
                                s.state() * sizeof(R));
#pragma omp parallel for if (!apart) schedule(static)
                for (long t = first; t < last; t++) q.convolution().forward(t), q.time(t);
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
void backward(const Sizes& s, const Weights<R>& w, const S* in, const S* dout, S* y, R* dt,
              R* states, S* din, R* dnorm, R* dconv, R* dheads) {
    const long threads = omp_get_max_threads();
    const bool apart = s.B >= threads;
    const long C = s.C(), E = s.E(), rows = s.L < BLOCK ? s.L : BLOCK, halo = s.K - 1;
    const long share = E + (s.K + 1) * C;  // each thread's sums, added in order afterwards
    std::vector<R> sums(threads * share, R(0));
    const auto share_rows = [&] {
        const long mine = omp_get_thread_num(), slots = apart ? 1 : threads;
        std::unique_ptr<R[]> memory(
            new R[(rows + halo + 1) * C + rows * (2 * C + E + s.H * 2 * s.N + CHUNK) + s.state()]);
        R *act = memory.get(), *slope = act + rows * C, *dact = slope + rows * C;
        R *dy = dact + (rows + halo) * C, *gram = dy + rows * E, *dBC = gram + rows * CHUNK;
        R *dstate = dBC + s.H * rows * 2 * s.N, *zeros = dstate + s.state();
        std::memset(zeros, 0, C * sizeof(R));
#pragma omp for schedule(static)
        for (long b = 0; b < s.B; b++) {
            S* d = din + b * s.L * s.Z();
            std::memset(dstate, 0, s.state() * sizeof(R));
            for (long k = s.blocks() - 1; k >= 0; k--) {
                const long first = k * BLOCK, last = first + rows < s.L ? first + rows : s.L;
                const long size = last - first;
                const Block<S, R> q{s, w, first, last, in + b * s.L * s.Z(), y + b * s.L * E,
                                    dt + b * s.L * s.H, act - first * C, gram - first * CHUNK,
                                    zeros, slope - first * C};
                R *my_dy = dy - first * E, *my_dact = dact - first * C;
                const R* found =
                    k ? states + (b * (s.blocks() - 1) + k - 1) * s.state() : nullptr;
                // Rows are cut into as many parts as there are threads, each with sums of its own.
#pragma omp parallel for if (!apart) schedule(static)
                for (long i = 0; i < slots; i++)
                    for (long t = first + i * size / slots; t < first + (i + 1) * size / slots; t++) {
                        R* sum = &sums[(apart ? mine : i) * share];
                        q.gate_back(t, dout + b * s.L * E, d, my_dy, sum);
                        q.convolution().forward(t);
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
                    q.convolution().backward(first + i * size / slots,
                                             first + (i + 1) * size / slots, my_dact, d,
                                             &sums[(apart ? mine : i) * share] + E);
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

// The RMS norm before a mixer, with the sum that it is of: rows (count, width) of residual, null for
// zeros, and added. Where nothing is added it is of the residual, and no sum is written.
template <class S, class R>
void norm_forward(long count, long width, R eps, const R* weight, const S* added,
                  const R* residual, R* sum, S* out) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i++) {
        const R* row = residual + i * width;
        if (added) {
            const S* from = added + i * width;
            R* to = sum + i * width;
            if (residual) {
#pragma omp simd
                for (long j = 0; j < width; j++) to[j] = row[j] + load(from[j]);
            } else {
#pragma omp simd
                for (long j = 0; j < width; j++) to[j] = load(from[j]);
            }
            row = to;
        }
        const R scale = R(1) / std::sqrt(dot(row, row, width) / R(width) + eps);
        S* to = out + i * width;
#pragma omp simd
        for (long j = 0; j < width; j++) store(to[j], row[j] * scale * weight[j]);
    }
}
// dsum, the gradient of the sum beside that of its norm, and what is written may be null.
template <class S, class R>
void norm_backward(long count, long width, R eps, const R* weight, const R* sum, const S* dout,
                   const R* dsum, S* dadded, R* dresidual, R* dweight) {
    const long slots = omp_get_max_threads();
    std::vector<R> shares(slots * 2 * width, R(0));  // each thread's of dweight, and a row
#pragma omp parallel for schedule(static)
    for (long slot = 0; slot < slots; slot++)
        for (long i = slot * count / slots; i < (slot + 1) * count / slots; i++) {
            const R* row = sum + i * width;
            const S* d = dout + i * width;
            R *share = &shares[slot * 2 * width], *found = share + width, along = 0;
#pragma omp simd reduction(+ : along)
            for (long j = 0; j < width; j++) along += load(d[j]) * weight[j] * row[j];
            const R scale = R(1) / std::sqrt(dot(row, row, width) / R(width) + eps);
            along *= scale * scale * scale / R(width);
#pragma omp simd
            for (long j = 0; j < width; j++) {
                const R v = load(d[j]);
                share[j] += v * row[j] * scale;
                found[j] = v * weight[j] * scale - row[j] * along;
            }
            if (dsum) {
                const R* beside = dsum + i * width;
#pragma omp simd
                for (long j = 0; j < width; j++) found[j] += beside[j];
            }
            if (dresidual) std::memcpy(dresidual + i * width, found, width * sizeof(R));
            if (dadded) {
                S* to = dadded + i * width;
#pragma omp simd
                for (long j = 0; j < width; j++) store(to[j], found[j]);
            }
        }
    for (long slot = 0; slot < slots; slot++)
        for (long j = 0; j < width; j++) dweight[j] += shares[slot * 2 * width + j];
}

template <class R> Weights<R> weights(void* const* p) {
    return {static_cast<R*>(p[0]), static_cast<R*>(p[1]), static_cast<R*>(p[2]),
            static_cast<R*>(p[3]), static_cast<R*>(p[4]), static_cast<R*>(p[5])};
}
template <class S, class R> void call_forward(const Sizes& s, void* const* p) {
    forward<S, R>(s, weights<R>(p), static_cast<S*>(p[6]), static_cast<S*>(p[7]),
                  static_cast<S*>(p[8]), static_cast<R*>(p[9]), static_cast<R*>(p[10]));
}
template <class S, class R> void call_backward(const Sizes& s, void* const* p) {
    backward<S, R>(s, weights<R>(p), static_cast<S*>(p[6]), static_cast<S*>(p[7]),
                   static_cast<S*>(p[8]), static_cast<R*>(p[9]), static_cast<R*>(p[10]),
                   static_cast<S*>(p[11]), static_cast<R*>(p[12]), static_cast<R*>(p[13]),
                   static_cast<R*>(p[14]));
}
template <class S, class R> void call_norm_forward(const Sizes& s, void* const* p) {
    norm_forward<S, R>(s.B, s.P, R(s.eps), static_cast<R*>(p[0]), static_cast<S*>(p[1]),
                       static_cast<R*>(p[2]), static_cast<R*>(p[3]), static_cast<S*>(p[4]));
}
template <class S, class R> void call_norm_backward(const Sizes& s, void* const* p) {
    norm_backward<S, R>(s.B, s.P, R(s.eps), static_cast<R*>(p[0]), static_cast<R*>(p[1]),
                        static_cast<S*>(p[2]), static_cast<R*>(p[3]), static_cast<S*>(p[4]),
                        static_cast<R*>(p[5]), static_cast<R*>(p[6]));
}
template <class S, class R> void call_read_memory(const Sizes& s, void* const* p) {
    read_memory<S, R>(s.B, s.L, s.P, R(s.eps), static_cast<S*>(p[0]), static_cast<R*>(p[1]),
                 static_cast<R*>(p[2]));
}
}  // namespace

// kind: 0 is bfloat16 computed in float, 1 float, 2 double. For the norm, B is the number of rows and P
// their width; for read_memory, B is the number of queries, L that of rows, P the width and eps the
// temperature. Threads are as many as torch's: where the compiler's OpenMP is another library than
// torch's, it is to be told.
#define OCP_ENTRY(name)                                                            \
    extern "C" void mixer_##name(int kind, const Sizes* s, void* const* p) {       \
        omp_set_num_threads(static_cast<int>(s->threads));                         \
        if (kind == 0) call_##name<bf16, float>(*s, p);                            \
        if (kind == 1) call_##name<float, float>(*s, p);                           \
        if (kind == 2) call_##name<double, double>(*s, p);                         \
    }
OCP_ENTRY(forward)
OCP_ENTRY(backward)
OCP_ENTRY(norm_forward)
OCP_ENTRY(norm_backward)
OCP_ENTRY(read_memory)

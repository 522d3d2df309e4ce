// Numbers, vector registers and small matrix products for the kernels of ssm_cpu.cpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

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

}  // namespace

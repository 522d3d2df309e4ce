// Numbers, vector registers and small matrix products for the kernels of mixer.cpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// Loops over what is not inlined are not turned into vector code, and a compiler may tire.
#define INLINE __attribute__((always_inline)) inline

namespace {

struct bf16 {
    uint16_t bits;
};
INLINE float load(bf16 v) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(v.bits) << 16);
}
INLINE float load(float v) { return v; }
INLINE double load(double v) { return v; }
INLINE void store(bf16& to, float v) {  // to nearest, ties to even; what is not a number stays so
    uint32_t u = __builtin_bit_cast(uint32_t, v);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    to.bits = static_cast<uint16_t>(v != v ? 0x7fc0u : rounded);
}
INLINE void store(float& to, float v) { to = v; }
INLINE void store(double& to, double v) { to = v; }

// exp without branches, so that loops over it become vector code; relative error below 2e-7.
INLINE float exponential(float x) {
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
INLINE double exponential(double x) { return std::exp(x); }
template <class R> INLINE R sigmoid(R x) { return R(1) / (R(1) + exponential(-x)); }

// log(1 + exp(x)) is the greater of x and 0, and log(1 + u) with u = exp(-|x|): the series of
// 2 atanh(u / (2 + u)), whose ninth term is below 1e-8 of the first.
INLINE float softplus(float x) {
    const float u = exponential(x < 0.0f ? x : -x), s = u / (2.0f + u), z = s * s;
    float p = 1.0f / 15;
    p = p * z + 1.0f / 13;
    p = p * z + 1.0f / 11;
    p = p * z + 1.0f / 9;
    p = p * z + 1.0f / 7;
    p = p * z + 1.0f / 5;
    p = p * z + 1.0f / 3;
    p = p * z + 1.0f;
    return (x < 0.0f ? 0.0f : x) + 2.0f * s * p;
}
INLINE double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

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
template <class R> constexpr long LANES = REGISTER_BYTES / sizeof(R);

// A register of numbers from memory, which holds them in full or as bfloat16.
INLINE Register<float>::type wide(const float* from) {
    Register<float>::type v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
INLINE Register<double>::type wide(const double* from) {
    Register<double>::type v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
INLINE Register<float>::type wide(const bf16* from) {
    typedef uint16_t Half __attribute__((vector_size(REGISTER_BYTES / 2)));
    typedef uint32_t Whole __attribute__((vector_size(REGISTER_BYTES)));
    Half half;
    std::memcpy(&half, from, sizeof(half));
    const Whole bits = __builtin_convertvector(half, Whole) << 16;
    Register<float>::type v;
    std::memcpy(&v, &bits, sizeof(v));
    return v;
}

// A tile of to += a b, ROWS high and one register wide or two, which stays in registers.
template <int ROWS, bool TWO, class R>
INLINE void product_tile(Matrix<R> to, Matrix<R> a, Matrix<R> b, long i, long j, long k) {
    typedef typename Register<R>::type V;
    V sum[ROWS], next[ROWS];
    for (int r = 0; r < ROWS; r++) {
        sum[r] = wide(&to(i + r, j));
        if (TWO) next[r] = wide(&to(i + r, j + LANES<R>));
    }
    for (long l = 0; l < k; l++) {
        const V right = wide(&b(l, j)), beside = TWO ? wide(&b(l, j + LANES<R>)) : right;
        for (int r = 0; r < ROWS; r++) {
            const R left = a(i + r, l);
            sum[r] += left * right;
            if (TWO) next[r] += left * beside;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        std::memcpy(&to(i + r, j), &sum[r], sizeof(V));
        if (TWO) std::memcpy(&to(i + r, j + LANES<R>), &next[r], sizeof(V));
    }
}
template <int ROWS, class R>
inline void product_rows(Matrix<R> to, Matrix<R> a, Matrix<R> b, long i, long n, long k) {
    long j = 0;
    for (; j + 2 * LANES<R> <= n; j += 2 * LANES<R>) product_tile<ROWS, true>(to, a, b, i, j, k);
    for (; j + LANES<R> <= n; j += LANES<R>) product_tile<ROWS, false>(to, a, b, i, j, k);
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
    for (; i + 8 <= m; i += 8) product_rows<8>(to, a, b, i, n, k);
    switch (m - i) {  // what is left in one pass: each has one chain of additions a row
        case 1: return product_rows<1>(to, a, b, i, n, k);
        case 2: return product_rows<2>(to, a, b, i, n, k);
        case 3: return product_rows<3>(to, a, b, i, n, k);
        case 4: return product_rows<4>(to, a, b, i, n, k);
        case 5: return product_rows<5>(to, a, b, i, n, k);
        case 6: return product_rows<6>(to, a, b, i, n, k);
        case 7: return product_rows<7>(to, a, b, i, n, k);
    }
}

// The elements of two vectors, numbered through, that AT names. gcc has clang's way since version 12.
template <int... AT, class V> inline V pick(V a, V b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, AT...);
#else
    return __builtin_shuffle(a, b, decltype(a < b){AT...});
#endif
}
// Two rows of a square, S apart, change the halves that the other has: see transpose_square.
template <int S, class V, size_t... I>
inline void exchange(V& a, V& b, std::index_sequence<I...>) {
    constexpr int N = sizeof...(I);
    const V upper = pick<int(I & S ? N + (I ^ S) : I)...>(a, b);
    b = pick<int(I & S ? N + I : I ^ S)...>(a, b);
    a = upper;
}
template <int S, int N, class V> inline void exchange_all(V* rows) {
#pragma GCC unroll 16
    for (int r = 0; r < N; r++)
        if (!(r & S)) exchange<S>(rows[r], rows[r + S], std::make_index_sequence<N>());
}
// A square as wide as a register, of which m rows are there and the others are zero: its quarters
// change places, then theirs, and so on.
template <class R> inline void transpose_square(Matrix<R> to, Matrix<R> from, long m) {
    typedef typename Register<R>::type V;
    constexpr int N = LANES<R>;
    V rows[N] = {};
#pragma GCC unroll 16
    for (int r = 0; r < N; r++)
        if (r < m) std::memcpy(&rows[r], &from(r, 0), sizeof(V));
    if constexpr (N > 8) exchange_all<8, N>(rows);
    exchange_all<4, N>(rows);
    exchange_all<2, N>(rows);
    exchange_all<1, N>(rows);
#pragma GCC unroll 16
    for (int r = 0; r < N; r++) std::memcpy(&to(r, 0), &rows[r], sizeof(V));
}
// to (n, width) = from (m, n) transposed, then zeros; the columns of both are neighbours in memory.
template <class R>
inline void transpose(Matrix<R> to, Matrix<R> from, long m, long n, long width) {
    constexpr long N = LANES<R>;
    const long squares = width / N * N, columns = n / N * N;
    for (long i = 0; i < squares; i += N)
        for (long j = 0; j < columns; j += N)
            transpose_square<R>({&to(j, i), to.row}, {&from(i, j), from.row}, m - i);
    for (long i = 0; i < width; i++)
        for (long j = i < squares ? columns : 0; j < n; j++) to(j, i) = i < m ? from(i, j) : R(0);
}
// to (m, n) = factor * from.
template <class R> inline void scale(Matrix<R> to, Matrix<R> from, long m, long n, R factor) {
    for (long i = 0; i < m; i++) {
        R* row = &to(i, 0);
        const R* source = &from(i, 0);
#pragma omp simd
        for (long j = 0; j < n; j++) row[j] = factor * source[j];
    }
}
template <class R> inline R dot(const R* a, const R* b, long n) {
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

}  // namespace

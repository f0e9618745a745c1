// Vectors of float32 for whatever the compiler's target has, and small matrix products in registers: what Luban's C++ shares.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6, COLUMNS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4, COLUMNS = 3;
#else
constexpr int LANES = 4, ROWS = 4, COLUMNS = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4)));

inline Vector load(const float* from) { Vector v; std::memcpy(&v, from, sizeof v); return v; }
inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
inline Vector all(float x) { return x - Vector{}; }
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// The lanes with those `step` further on in their place, for sums and the like over all of them.
inline Vector moved(Vector v, int step) {
    Integers from;
#pragma GCC unroll 16
    for (int n = 0; n < LANES; n++) from[n] = n ^ step;
    return __builtin_shuffle(v, from);
}

inline float largest(Vector v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        const Vector other = moved(v, half);
        v = v > other ? v : other;
    }
    return v[0];
}

inline float sum_of(Vector v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v += moved(v, half);
    return v[0];
}

// LANES rows of LANES numbers become columns: blocks beside the diagonal change places, of one number, of two, of four ...
inline void transpose(const float* from, int64_t stride, float* to, int64_t pitch) {
    Vector v[LANES];
#pragma GCC unroll 16
    for (int n = 0; n < LANES; n++) v[n] = load(from + n * stride);
#pragma GCC unroll 4
    for (int half = 1; half < LANES; half *= 2) {
        Integers upper, lower;
#pragma GCC unroll 16
        for (int n = 0; n < LANES; n++) upper[n] = n & half ? LANES + n - half : n, lower[n] = n & half ? LANES + n : n + half;
#pragma GCC unroll 16
        for (int n = 0; n < LANES; n++)
            if (!(n & half)) {
                const Vector one = v[n], other = v[n + half];
                v[n] = __builtin_shuffle(one, other, upper), v[n + half] = __builtin_shuffle(one, other, lower);
            }
    }
#pragma GCC unroll 16
    for (int n = 0; n < LANES; n++) store(to + n * pitch, v[n]);
}

// e^x for x <= 0 to a unit in the last place or two, 0 below the smallest normal number: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2] (coefficients of Cephes' expf).
inline Vector exponential(Vector whole) {
    Vector x = whole < -87.0f ? all(-87.0f) : whole;
    Vector k = x * 1.44269504088896341f + 12582912.0f;  // rounded to an integer in the low bits
    Integers bits = (Integers)k;
    k -= 12582912.0f;
    x -= k * 0.693359375f;
    x -= k * -2.12194440e-4f;
    Vector y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    return whole < -87.0f ? Vector{} : (Vector)((Integers)y + (bits << 23));
}

// C [R, V vectors] = (or +=) A [R, depth] B [depth, V vectors]; A's element (r, k) lies at a[r * row + k * step].
template <int R, int V>
inline void tile(const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, bool add) {
    Vector sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = add ? load(c + r * ldc + v * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        Vector right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = load(b + k * ldb + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            Vector left = all(a[r * row + k * step]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(c + r * ldc + v * LANES, sums[r][v]);
}

template <int V>
inline void strip(int64_t rows, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth, bool add) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) tile<ROWS, V>(a + r * row, row, step, b, ldb, c + r * ldc, ldc, depth, add);
    for (; r + 2 <= rows; r += 2) tile<2, V>(a + r * row, row, step, b, ldb, c + r * ldc, ldc, depth, add);
    for (; r < rows; r++) tile<1, V>(a + r * row, row, step, b, ldb, c + r * ldc, ldc, depth, add);
}

// As tile, of any size; columns are a multiple of LANES.
void product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
    int64_t left = columns / LANES;
    while (left > 0) {
        // Of what is left five vectors are three and two, not four and one.
        int64_t take = left == COLUMNS + 1 ? (COLUMNS + 2) / 2 : std::min<int64_t>(left, COLUMNS);
        switch (take) {
            case 1: strip<1>(rows, a, row, step, b, ldb, c, ldc, depth, add); break;
            case 2: strip<2>(rows, a, row, step, b, ldb, c, ldc, depth, add); break;
            case 3: strip<3>(rows, a, row, step, b, ldb, c, ldc, depth, add); break;
            default: strip<4>(rows, a, row, step, b, ldb, c, ldc, depth, add);
        }
        b += take * LANES, c += take * LANES, left -= take;
    }
}

}  // namespace

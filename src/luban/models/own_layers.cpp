// What stands between the products of a decoder's layer and behind the last of them, on a processor in float32 (luban/models/own_layers.py calls it): RMSNorm, SwiGLU, cross-entropy.
//
// Each is one pass over memory forward and one backward. Sums over tokens are taken in parts of PART rows, so that any number of threads gives the same bits.

#include <cmath>
#include <memory>

#include "vectors.h"

namespace {

constexpr int64_t PART = 64;

inline Vector some(const float* from, int64_t count) { Vector v{}; std::memcpy(&v, from, count * sizeof(float)); return v; }
inline void put(float* to, Vector v, int64_t count) { std::memcpy(to, &v, count * sizeof(float)); }

inline Vector sigmoid(Vector x) {
    const Vector small = exponential(x < 0 ? x : -x), whole = 1.0f / (1.0f + small);
    return x < 0 ? small * whole : whole;
}

// f(column, count) for every vector of a row, the last of which may be short.
template <typename F>
inline void along(int64_t width, F f) {
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) f(j, std::integral_constant<int64_t, LANES>());
    if (j < width) f(j, width - j);
}

}  // namespace

extern "C" {

// Each of the `heads` stretches of `width` that a row begins with: made = x * scale * weight, where scale = 1 / sqrt(mean x^2 + epsilon). Rows of x are `pitch` apart, of made `heads` * `width`.
void luban_norm_forward(int64_t rows, int64_t width, int64_t threads, int64_t heads, int64_t pitch, float epsilon, const float* x, const float* weight, float* made, float* scales) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) for (int64_t h = 0; h < heads; h++) {
        const float* row = x + r * pitch + h * width;
        float* to = made + (r * heads + h) * width;
        Vector squares{};
        along(width, [&](int64_t j, auto n) { const Vector v = some(row + j, n); squares += v * v; });
        const float scale = scales[r * heads + h] = 1.0f / std::sqrt(sum_of(squares) / width + epsilon);
        along(width, [&](int64_t j, auto n) { put(to + j, some(row + j, n) * scale * some(weight + j, n), n); });
    }
}

// dx = above + what comes through the norm from slope, all of them laid out as x is; above may be null. dweight [parts, width] is added up by the caller.
void luban_norm_backward(int64_t rows, int64_t width, int64_t threads, int64_t heads, int64_t pitch, const float* slope, const float* above, const float* x, const float* weight, const float* scales, float* dx, float* dweight) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < (rows + PART - 1) / PART; part++) {
        float* sums = dweight + part * width;
        std::fill(sums, sums + width, 0.0f);
        for (int64_t r = part * PART; r < std::min(rows, (part + 1) * PART); r++) for (int64_t h = 0; h < heads; h++) {
            const int64_t at = r * pitch + h * width;
            const float *row = x + at, *by = slope + at, scale = scales[r * heads + h];
            Vector dots{};
            along(width, [&](int64_t j, auto n) {
                const Vector v = some(row + j, n) * some(by + j, n);
                dots += v * some(weight + j, n);
                put(sums + j, some(sums + j, n) + v * scale, n);
            });
            const float pull = sum_of(dots) * scale * scale * scale / width;
            along(width, [&](int64_t j, auto n) {
                const Vector through = some(by + j, n) * some(weight + j, n) * scale - some(row + j, n) * pull;
                put(dx + at + j, above ? some(above + at + j, n) + through : through, n);
            });
        }
    }
}

// made [rows, width] = silu(gate) * up of both [rows, 2 width], side by side.
void luban_swiglu_forward(int64_t rows, int64_t width, int64_t threads, const float* both, float* made) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *gate = both + 2 * r * width, *up = gate + width;
        along(width, [&](int64_t j, auto n) { const Vector x = some(gate + j, n); put(made + r * width + j, x * sigmoid(x) * some(up + j, n), n); });
    }
}

// What comes back to both, and the forward's result again.
void luban_swiglu_backward(int64_t rows, int64_t width, int64_t threads, const float* slope, const float* both, float* dboth, float* made) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *gate = both + 2 * r * width, *up = gate + width;
        float *dgate = dboth + 2 * r * width, *dup = dgate + width;
        along(width, [&](int64_t j, auto n) {
            const Vector x = some(gate + j, n), y = some(up + j, n), by = some(slope + r * width + j, n), share = sigmoid(x), silu = x * share;
            put(dgate + j, by * y * (share + silu * (1.0f - share)), n);
            put(dup + j, by * silu, n);
            put(made + r * width + j, silu * y, n);
        });
    }
}

// Each row's cross-entropy; its logits become its derivative by them, if learning. bias may be null.
void luban_cross_entropy(int64_t rows, int64_t width, int64_t threads, float smoothing, int64_t learning, const float* bias, const int64_t* targets, float* logits, float* nats) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float* row = logits + r * width;
        Vector tops = all(-INFINITY), plain{}, total{};
        along(width, [&](int64_t j, auto n) {
            Vector v = some(row + j, n);
            if (bias) put(row + j, v += some(bias + j, n), n);
            plain += v;
            if (n < LANES) for (int64_t lane = n; lane < LANES; lane++) v[lane] = -INFINITY;
            tops = v > tops ? v : tops;
        });
        const float top = largest(tops), right = row[targets[r]];
        along(width, [&](int64_t j, auto n) {
            Vector v = some(row + j, n) - top;
            if (n < LANES) for (int64_t lane = n; lane < LANES; lane++) v[lane] = -INFINITY;
            v = exponential(v);
            total += v;
            if (learning) put(row + j, v, n);
        });
        const float sum = sum_of(total), norm = top + std::log(sum);
        nats[r] = norm - (1.0f - smoothing) * right - (smoothing ? smoothing * sum_of(plain) / width : 0.0f);
        if (!learning) continue;
        const float scale = 1.0f / sum, less = smoothing / width;
        along(width, [&](int64_t j, auto n) { put(row + j, some(row + j, n) * scale - less, n); });
        row[targets[r]] -= 1.0f - smoothing;
    }
}

}

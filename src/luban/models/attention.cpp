// Causal attention inside packed documents on a processor, forward and backward, in float32 (luban/models/attention.py calls it).
//
// Each head of keys and values belongs to one thread. Queries go in blocks of BLOCK rows over the keys that they may see, all of which lie in cache, so a block's scores are plain rows:
// no running maximum is needed. Row i sees columns first[i] ... i, where first[i] is the place at which its document begins; what lies before that of a whole block is not computed.
// Products are made in registers, ROWS x COLUMNS vectors at a time, for whatever vectors the compiler's target has.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6, COLUMNS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4, COLUMNS = 3;
#else
constexpr int LANES = 4, ROWS = 4, COLUMNS = 4;
#endif
constexpr int BLOCK = 32;

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4), aligned(4)));

inline Vector load(const float* from) { Vector v; std::memcpy(&v, from, sizeof v); return v; }
inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
inline Vector all(float x) { return x - Vector{}; }
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

inline float largest(Vector v) {
    float part[LANES];
    store(part, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int n = 0; n < half; n++) part[n] = part[n] > part[n + half] ? part[n] : part[n + half];
    return part[0];
}

inline float sum_of(Vector v) {
    float part[LANES];
    store(part, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int n = 0; n < half; n++) part[n] += part[n + half];
    return part[0];
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

// Rows of a head [seq, size] with any stride, next to each other and padded with zeros: plain, or transposed [size, seq].
void gather(const float* from, int64_t stride, int64_t seq, int64_t size, int64_t width, float factor, float* to, int64_t rows) {
    for (int64_t i = 0; i < seq; i++) {
        for (int64_t d = 0; d < size; d++) to[i * width + d] = from[i * stride + d] * factor;
        for (int64_t d = size; d < width; d++) to[i * width + d] = 0;
    }
    std::fill(to + seq * width, to + rows * width, 0.0f);
}

void transpose(const float* from, int64_t stride, int64_t seq, int64_t size, int64_t width, float* to) {
    for (int64_t i0 = 0; i0 < seq; i0 += 16)
        for (int64_t d = 0; d < size; d++)
            for (int64_t i = i0; i < std::min(i0 + 16, seq); i++) to[d * width + i] = from[i * stride + d];
    for (int64_t d = 0; d < size; d++) std::fill(to + d * width + seq, to + (d + 1) * width, 0.0f);
}

void scatter(const float* from, int64_t width, int64_t seq, int64_t size, float* to, int64_t stride) {
    for (int64_t i = 0; i < seq; i++) std::memcpy(to + i * stride, from + i * width, size * sizeof(float));
}

struct Shape {
    int64_t batch, heads, groups, seq, size;  // groups: heads of keys and values
};
struct Place {
    int64_t batch, head, row;  // strides of a tensor [batch, heads, seq, size] in floats
};

// The column that a block of rows begins with: documents follow each other, so that of its first row.
inline int64_t first_of(const int32_t* first, int64_t i0) { return first[i0] / LANES * LANES; }

// Scores of the columns [from, until) that row i may not see, which are all but [begin, i].
inline void hide(float* row, int64_t from, int64_t until, int64_t begin, int64_t i) {
    for (int64_t j = from; j < begin; j++) row[j - from] = -INFINITY;
    for (int64_t j = i + 1; j < until; j++) row[j - from] = -INFINITY;
}

}  // namespace

extern "C" {

void luban_attention_forward(const Shape* shape, const float* q, const Place* qp, const float* k, const Place* kp, const float* v, const Place* vp, const int32_t* first, int64_t threads, float scale,
                             float* out, const Place* op, float* norms) {
    const int64_t seq = shape->seq, size = shape->size, width = padded(size), longest = padded(seq), share = shape->heads / shape->groups;
#pragma omp parallel num_threads(threads)
    {
        std::unique_ptr<float[]> memory(new float[size * longest + longest * width + BLOCK * (2 * width + longest)]);
        float *turned = memory.get(), *values = turned + size * longest, *queries = values + longest * width, *sums = queries + BLOCK * width, *scores = sums + BLOCK * width;
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < shape->batch * shape->groups; unit++) {
            const int64_t b = unit / shape->groups, g = unit % shape->groups;
            const int32_t* begins = first + b * seq;
            transpose(k + b * kp->batch + g * kp->head, kp->row, seq, size, longest, turned);
            gather(v + b * vp->batch + g * vp->head, vp->row, seq, size, width, 1.0f, values, longest);
            for (int64_t h = g * share; h < (g + 1) * share; h++)
                for (int64_t i0 = 0; i0 < seq; i0 += BLOCK) {
                    const int64_t rows = std::min<int64_t>(BLOCK, seq - i0), from = first_of(begins, i0), until = padded(i0 + rows), count = until - from;
                    gather(q + b * qp->batch + h * qp->head + i0 * qp->row, qp->row, rows, size, width, scale, queries, rows);
                    product(rows, count, size, queries, width, 1, turned + from, longest, scores, longest, false);
                    for (int64_t r = 0; r < rows; r++) {
                        float* row = scores + r * longest;
                        hide(row, from, until, begins[i0 + r], i0 + r);
                        Vector top = load(row);
                        for (int64_t j = LANES; j < count; j += LANES) top = load(row + j) > top ? load(row + j) : top;
                        const float most = largest(top);
                        Vector total{};
                        for (int64_t j = 0; j < count; j += LANES) {
                            const Vector part = exponential(load(row + j) - most);
                            total += part;
                            store(row + j, part);
                        }
                        const float sum = sum_of(total);
                        norms[(b * shape->heads + h) * seq + i0 + r] = most + std::log(sum);
                        queries[r * width] = 1.0f / sum;  // the queries are used up
                    }
                    product(rows, width, count, scores, longest, 1, values + from * width, width, sums, width, false);
                    float* to = out + b * op->batch + h * op->head + i0 * op->row;
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t d = 0; d < size; d++) to[r * op->row + d] = sums[r * width + d] * queries[r * width];
                }
        }
    }
}

void luban_attention_backward(const Shape* shape, const float* q, const Place* qp, const float* k, const Place* kp, const float* v, const Place* vp, const float* out, const Place* op,
                              const float* slope, const Place* sp, const int32_t* first, int64_t threads, float scale, const float* norms, float* dq, const Place* dqp, float* dk, const Place* dkp, float* dv,
                              const Place* dvp) {
    const int64_t seq = shape->seq, size = shape->size, width = padded(size), longest = padded(seq), share = shape->heads / shape->groups;
#pragma omp parallel num_threads(threads)
    {
        std::unique_ptr<float[]> memory(new float[2 * size * longest + 3 * longest * width + BLOCK * (3 * width + 2 * longest)]);
        float *turned_keys = memory.get(), *turned_values = turned_keys + size * longest, *keys = turned_values + size * longest, *by_keys = keys + longest * width,
              *by_values = by_keys + longest * width, *queries = by_values + longest * width, *slopes = queries + BLOCK * width, *by_queries = slopes + BLOCK * width,
              *known = by_queries + BLOCK * width, *by_scores = known + BLOCK * longest;
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < shape->batch * shape->groups; unit++) {
            const int64_t b = unit / shape->groups, g = unit % shape->groups;
            const int32_t* begins = first + b * seq;
            transpose(k + b * kp->batch + g * kp->head, kp->row, seq, size, longest, turned_keys);
            transpose(v + b * vp->batch + g * vp->head, vp->row, seq, size, longest, turned_values);
            gather(k + b * kp->batch + g * kp->head, kp->row, seq, size, width, 1.0f, keys, longest);
            std::fill(by_keys, by_keys + 2 * longest * width, 0.0f);
            for (int64_t h = g * share; h < (g + 1) * share; h++)
                for (int64_t i0 = 0; i0 < seq; i0 += BLOCK) {
                    const int64_t rows = std::min<int64_t>(BLOCK, seq - i0), from = first_of(begins, i0), until = padded(i0 + rows), count = until - from;
                    const float* above = slope + b * sp->batch + h * sp->head + i0 * sp->row;
                    const float* made = out + b * op->batch + h * op->head + i0 * op->row;
                    gather(q + b * qp->batch + h * qp->head + i0 * qp->row, qp->row, rows, size, width, scale, queries, rows);
                    gather(above, sp->row, rows, size, width, 1.0f, slopes, rows);
                    product(rows, count, size, queries, width, 1, turned_keys + from, longest, known, longest, false);
                    product(rows, count, size, slopes, width, 1, turned_values + from, longest, by_scores, longest, false);
                    for (int64_t r = 0; r < rows; r++) {
                        const float norm = norms[(b * shape->heads + h) * seq + i0 + r];
                        float *row = known + r * longest, *other = by_scores + r * longest, dot = 0;
#pragma omp simd reduction(+ : dot)
                        for (int64_t d = 0; d < size; d++) dot += above[r * sp->row + d] * made[r * op->row + d];
                        hide(row, from, until, begins[i0 + r], i0 + r);
                        for (int64_t j = 0; j < count; j += LANES) {
                            const Vector part = exponential(load(row + j) - norm);
                            store(row + j, part);
                            store(other + j, part * (load(other + j) - dot));
                        }
                    }
                    product(rows, width, count, by_scores, longest, 1, keys + from * width, width, by_queries, width, false);
                    const int64_t seen = std::min(until, seq) - from;
                    product(seen, width, rows, known, 1, longest, slopes, width, by_values + from * width, width, true);
                    product(seen, width, rows, by_scores, 1, longest, queries, width, by_keys + from * width, width, true);
                    float* to = dq + b * dqp->batch + h * dqp->head + i0 * dqp->row;
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t d = 0; d < size; d++) to[r * dqp->row + d] = by_queries[r * width + d] * scale;
                }
            scatter(by_keys, width, seq, size, dk + b * dkp->batch + g * dkp->head, dkp->row);
            scatter(by_values, width, seq, size, dv + b * dvp->batch + g * dvp->head, dvp->row);
        }
    }
}

}

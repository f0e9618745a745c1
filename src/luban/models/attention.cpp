// Causal attention inside packed documents on a processor, forward and backward, in float32 (luban/models/attention.py calls it).
//
// Each head of keys and values belongs to one thread. Queries go in blocks of BLOCK rows over the keys that they may see, all of which lie in cache, so a block's scores are plain rows:
// no running maximum is needed. Row i sees columns first[i] ... i, where first[i] is the place at which its document begins; what lies before that of a whole block is not computed.
// Products are made in registers (vectors.h).

#include <cmath>
#include <memory>

#include "vectors.h"

namespace {

constexpr int BLOCK = 32, AHEAD = 16;

// A row that is read (0) or written (1) soon: rows of a head lie too far apart for the processor to see what comes next.
template <int WRITE>
inline void ask(const float* row, int64_t size) {
    for (int64_t d = 0; d < size; d += 16) __builtin_prefetch(row + d, WRITE);
}

// Cosines and sines of a row's places, [seq, size] each, the second half as the first (rotary.py); or none.
struct Angles {
    const float *cosines, *sines;
};
inline Angles of_row(Angles given, int64_t stride, int64_t row) { return given.cosines ? Angles{given.cosines + stride * row, given.sines + stride * row} : given; }

// A vector of a head, times a factor, turned by the angles of place i or (sign -1) turned back.
inline void turn(const float* __restrict from, int64_t size, float factor, Angles by, int64_t i, float sign, float* __restrict to) {
    if (!by.cosines) {
        for (int64_t d = 0; d < size; d++) to[d] = from[d] * factor;
        return;
    }
    const float *__restrict cosines = by.cosines + i * size, *__restrict sines = by.sines + i * size;
    const int64_t half = size / 2;
    sign *= factor;
#pragma omp simd
    for (int64_t d = 0; d < half; d++) {
        const float c = cosines[d] * factor, s = sines[d] * sign, one = from[d], other = from[d + half];
        to[d] = one * c - other * s;
        to[d + half] = other * c + one * s;
    }
}

// Rows of a head [seq, size] with any stride, next to each other and padded with zeros: plain, or transposed [size, seq].
void gather(const float* from, int64_t stride, int64_t seq, int64_t size, int64_t width, float factor, Angles by, int64_t first, float* to, int64_t rows) {
    for (int64_t i = 0; i < seq; i++) {
        ask<0>(from + std::min(i + AHEAD, seq - 1) * stride, size);
        turn(from + i * stride, size, factor, by, first + i, 1, to + i * width);
        for (int64_t d = size; d < width; d++) to[i * width + d] = 0;
    }
    std::fill(to + seq * width, to + rows * width, 0.0f);
}

// [rows, width] to [width, rows], both multiples of LANES.
void transpose(const float* from, int64_t rows, int64_t width, float* to, int64_t pitch) {
    for (int64_t i = 0; i < rows; i += LANES)
        for (int64_t d = 0; d < width; d += LANES) transpose(from + i * width + d, width, to + d * pitch + i, pitch);
}

struct Shape {
    int64_t batch, heads, groups, seq, size;  // groups: heads of keys and values
};
struct Place {
    int64_t batch, head, row;  // strides of a tensor [batch, heads, seq, size] in floats
};

// The column that a block of rows begins with: documents follow each other, so that of its first row.
inline int64_t first_of(const int32_t* first, int64_t i0) { return first[i0] / LANES * LANES; }

// Of the first count scores of a row, all but those in [begin, end) become -infinity.
inline void hide(float* row, int64_t begin, int64_t end, int64_t count) {
    Integers place;
    for (int n = 0; n < LANES; n++) place[n] = n;
    for (int64_t j = 0; j < begin; j += LANES) store(row + j, place + (int32_t)j < (int32_t)begin ? all(-INFINITY) : load(row + j));
    for (int64_t j = end / LANES * LANES; j < count; j += LANES) store(row + j, place + (int32_t)j >= (int32_t)end ? all(-INFINITY) : load(row + j));
}

}  // namespace

extern "C" {

void luban_attention_forward(const Shape* shape, const float* q, const Place* qp, const float* k, const Place* kp, const float* v, const Place* vp, const int32_t* first, Angles angles, int64_t turns, int64_t threads, float scale,
                             float* out, const Place* op, float* norms) {
    const int64_t seq = shape->seq, size = shape->size, width = padded(size), longest = padded(seq), pitch = longest + LANES, share = shape->heads / shape->groups;
#pragma omp parallel num_threads(threads)
    {
        std::unique_ptr<float[]> memory(new float[width * pitch + longest * width + BLOCK * (2 * width + pitch)]);
        float *turned = memory.get(), *values = turned + width * pitch, *queries = values + longest * width, *sums = queries + BLOCK * width, *scores = sums + BLOCK * width;
        float tops[BLOCK], totals[BLOCK];
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < shape->batch * shape->groups; unit++) {
            const int64_t b = unit / shape->groups, g = unit % shape->groups;
            const int32_t* begins = first + b * seq;
            const Angles by = of_row(angles, turns, b);
            gather(k + b * kp->batch + g * kp->head, kp->row, seq, size, width, 1.0f, by, 0, values, longest);
            transpose(values, longest, width, turned, pitch);
            gather(v + b * vp->batch + g * vp->head, vp->row, seq, size, width, 1.0f, {}, 0, values, longest);
            for (int64_t h = g * share; h < (g + 1) * share; h++)
                for (int64_t i0 = 0; i0 < seq; i0 += BLOCK) {
                    const int64_t rows = std::min<int64_t>(BLOCK, seq - i0), from = first_of(begins, i0), until = padded(i0 + rows), count = until - from;
                    gather(q + b * qp->batch + h * qp->head + i0 * qp->row, qp->row, rows, size, width, scale, by, i0, queries, rows);
                    product(rows, count, size, queries, width, 1, turned + from, pitch, scores, pitch, false);
                    for (int64_t r = 0; r < rows; r++) {
                        float* row = scores + r * pitch;
                        hide(row, begins[i0 + r] - from, i0 + r + 1 - from, count);
                        Vector top = load(row);
                        for (int64_t j = LANES; j < count; j += LANES) top = load(row + j) > top ? load(row + j) : top;
                        tops[r] = largest(top);
                    }
                    for (int64_t r = 0; r < rows; r++) {
                        float* row = scores + r * pitch;
                        Vector total{};
                        for (int64_t j = 0; j < count; j += LANES) {
                            const Vector part = exponential(load(row + j) - tops[r]);
                            total += part;
                            store(row + j, part);
                        }
                        totals[r] = sum_of(total);
                    }
                    for (int64_t r = 0; r < rows; r++) norms[(b * shape->heads + h) * seq + i0 + r] = tops[r] + std::log(totals[r]);
                    product(rows, width, count, scores, pitch, 1, values + from * width, width, sums, width, false);
                    float* to = out + b * op->batch + h * op->head + i0 * op->row;
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t d = 0; d < size; d++) to[r * op->row + d] = sums[r * width + d] / totals[r];
                }
        }
    }
}

void luban_attention_backward(const Shape* shape, const float* q, const Place* qp, const float* k, const Place* kp, const float* v, const Place* vp, const float* out, const Place* op,
                              const float* slope, const Place* sp, const int32_t* first, Angles angles, int64_t turns, int64_t threads, float scale, const float* norms, float* dq, const Place* dqp, float* dk, const Place* dkp, float* dv,
                              const Place* dvp) {
    const int64_t seq = shape->seq, size = shape->size, width = padded(size), longest = padded(seq), pitch = longest + LANES, share = shape->heads / shape->groups;
#pragma omp parallel num_threads(threads)
    {
        std::unique_ptr<float[]> memory(new float[2 * width * pitch + 3 * longest * width + BLOCK * (4 * width + 2 * pitch)]);
        float *turned_keys = memory.get(), *turned_values = turned_keys + width * pitch, *keys = turned_values + width * pitch, *by_keys = keys + longest * width,
              *by_values = by_keys + longest * width, *queries = by_values + longest * width, *slopes = queries + BLOCK * width, *by_queries = slopes + BLOCK * width,
              *results = by_queries + BLOCK * width, *known = results + BLOCK * width, *by_scores = known + BLOCK * pitch;
        float dots[BLOCK];
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < shape->batch * shape->groups; unit++) {
            const int64_t b = unit / shape->groups, g = unit % shape->groups;
            const int32_t* begins = first + b * seq;
            const Angles by = of_row(angles, turns, b);
            gather(v + b * vp->batch + g * vp->head, vp->row, seq, size, width, 1.0f, {}, 0, keys, longest);
            transpose(keys, longest, width, turned_values, pitch);
            gather(k + b * kp->batch + g * kp->head, kp->row, seq, size, width, 1.0f, by, 0, keys, longest);
            transpose(keys, longest, width, turned_keys, pitch);
            std::fill(by_keys, by_keys + 2 * longest * width, 0.0f);
            for (int64_t h = g * share; h < (g + 1) * share; h++)
                for (int64_t i0 = 0; i0 < seq; i0 += BLOCK) {
                    const int64_t rows = std::min<int64_t>(BLOCK, seq - i0), from = first_of(begins, i0), until = padded(i0 + rows), count = until - from;
                    const float* above = slope + b * sp->batch + h * sp->head + i0 * sp->row;
                    const float* made = out + b * op->batch + h * op->head + i0 * op->row;
                    gather(q + b * qp->batch + h * qp->head + i0 * qp->row, qp->row, rows, size, width, scale, by, i0, queries, rows);
                    gather(above, sp->row, rows, size, width, 1.0f, {}, 0, slopes, rows);
                    gather(made, op->row, rows, size, width, 1.0f, {}, 0, results, rows);
                    product(rows, count, size, queries, width, 1, turned_keys + from, pitch, known, pitch, false);
                    product(rows, count, size, slopes, width, 1, turned_values + from, pitch, by_scores, pitch, false);
                    for (int64_t r = 0; r < rows; r++) {
                        Vector dot{};
                        for (int64_t d = 0; d < width; d += LANES) dot += load(slopes + r * width + d) * load(results + r * width + d);
                        dots[r] = sum_of(dot);
                        hide(known + r * pitch, begins[i0 + r] - from, i0 + r + 1 - from, count);
                    }
                    for (int64_t r = 0; r < rows; r++) {
                        const float norm = norms[(b * shape->heads + h) * seq + i0 + r];
                        float *row = known + r * pitch, *other = by_scores + r * pitch;
                        for (int64_t j = 0; j < count; j += LANES) {
                            const Vector part = exponential(load(row + j) - norm);
                            store(row + j, part);
                            store(other + j, part * (load(other + j) - dots[r]));
                        }
                    }
                    product(rows, width, count, by_scores, pitch, 1, keys + from * width, width, by_queries, width, false);
                    const int64_t seen = std::min(until, seq) - from;
                    product(seen, width, rows, known, 1, pitch, slopes, width, by_values + from * width, width, true);
                    product(seen, width, rows, by_scores, 1, pitch, queries, width, by_keys + from * width, width, true);
                    float* to = dq + b * dqp->batch + h * dqp->head + i0 * dqp->row;
                    for (int64_t r = 0; r < rows; r++) ask<1>(to + r * dqp->row, size);
                    for (int64_t r = 0; r < rows; r++) turn(by_queries + r * width, size, scale, by, i0 + r, -1, to + r * dqp->row);
                }
            float *to_keys = dk + b * dkp->batch + g * dkp->head, *to_values = dv + b * dvp->batch + g * dvp->head;
            for (int64_t i = 0; i < seq; i++) {
                ask<1>(to_keys + std::min(i + AHEAD, seq - 1) * dkp->row, size);
                ask<1>(to_values + std::min(i + AHEAD, seq - 1) * dvp->row, size);
                turn(by_keys + i * width, size, 1.0f, by, i, -1, to_keys + i * dkp->row);
                turn(by_values + i * width, size, 1.0f, {}, i, -1, to_values + i * dvp->row);
            }
        }
    }
}

}

// Tokens through all layers of a decoder that keeps keys and values, in float32 on a processor (luban/inference/packed.py calls it).
//
// With few tokens, that is the time it takes to read the weights. They lie in panels of WIDTH outputs, [in, WIDTH], and are read once, in the order in which they lie, while the sums of TOGETHER tokens
// stay in registers and the lines that come next are fetched. What is multiplied is laid out for that, [in, tokens] for each TOGETHER tokens.

#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int TOGETHER = 8, SPAN = 2;
#elif defined(__AVX__)
constexpr int TOGETHER = 6, SPAN = 2;
#else
constexpr int TOGETHER = 4, SPAN = 4;
#endif
constexpr int WIDTH = SPAN * LANES;
constexpr int LINE = 16, PAGE = 64, PAGES = 8;  // numbers in a line of cache, lines in a page of memory, pages that are fetched from by turns
constexpr int DEPTH = 128;                      // rows of a panel that are multiplied with all tokens before the next
constexpr int FEW = 32;                         // tokens that each thread lays out for itself: sooner done than waited for

struct Matrix {
    const float *panels, *bias;  // [count, in, WIDTH], [count, WIDTH]
    int64_t count, in;
};
struct Layer {
    Matrix reads, writes, opens, closes;                                          // queries, keys, values; what attention writes; gate and up, a panel of each in turn; what closes the layer
    const float *before_attention, *before_feed_forward, *query_norm, *key_norm;  // weights of norms; the last two may be null
    int64_t window;                                                               // how many tokens one sees, or 0: all
};
struct Step {
    int64_t tokens, layers, dim, heads, groups, size, room, threads;  // groups: heads of keys and values; size: of a head; dim and size are whole lines; room: tokens of a text that can be kept
    const int64_t *texts, *places;                                    // which text a token belongs to, and how many tokens stand before it there
    const float *cosines, *sines;                                     // [tokens, size]
    float epsilon;
};

// The numbers of one token in what is multiplied.
struct Column {
    float* first;
    int64_t step;
    Column(float* inputs, int64_t in, int64_t tokens, int64_t token) {
        const int64_t begin = token / TOGETHER * TOGETHER;
        first = inputs + begin * in + token - begin, step = std::min<int64_t>(TOGETHER, tokens - begin);
    }
    float& operator[](int64_t k) const { return first[k * step]; }
};

template <typename Make>
inline void each_token(int64_t tokens, Make make) {
    if (tokens <= FEW) {
        for (int64_t t = 0; t < tokens; t++) make(t);
        return;
    }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t++) make(t);
}

// What is fetched while something is multiplied. The processor runs ahead in each page by itself, but not far enough: from several pages by turns, more lines are on their way at a time.
struct Ahead {
    const float* base;
    uint64_t line;
    void fetch(int64_t lines) {
        const float* place = base + (line / (PAGES * PAGE) * (PAGES * PAGE) + line % PAGES * PAGE + line / PAGES % PAGE) * LINE;
        __builtin_prefetch(place, 0, 2);
        if (lines > 1) __builtin_prefetch(place + PAGE * LINE, 0, 2);
        line += lines;
    }
};

// Rows of a panel times inputs [depth, T] of T tokens, added to made [T, WIDTH]. With each row so many lines are fetched.
template <int T>
void multiply(const float* inputs, const float* panel, int64_t depth, Ahead ahead, int64_t lines, float* made) {
    Vector sums[T][SPAN];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int v = 0; v < SPAN; v++) sums[t][v] = load(made + t * WIDTH + v * LANES);
    for (int64_t k = 0; k < depth; k++, panel += WIDTH, inputs += T) {
        if (lines) ahead.fetch(lines);
        Vector row[SPAN];
#pragma GCC unroll 4
        for (int v = 0; v < SPAN; v++) row[v] = load(panel + v * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const Vector input = all(inputs[t]);
#pragma GCC unroll 4
            for (int v = 0; v < SPAN; v++) sums[t][v] += input * row[v];
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int v = 0; v < SPAN; v++) store(made + t * WIDTH + v * LANES, sums[t][v]);
}

typedef void (*Multiply)(const float*, const float*, int64_t, Ahead, int64_t, float*);
template <int... T>
constexpr std::array<Multiply, TOGETHER> each(std::integer_sequence<int, T...>) { return {multiply<T + 1>...}; }
constexpr auto MULTIPLY = each(std::make_integer_sequence<int, TOGETHER>());

// One panel times all inputs: made [tokens, WIDTH]. The lines that come next are fetched by as many blocks of tokens as a row has lines, so that memory is asked at an even pace.
void multiply_panel(const Matrix& matrix, int64_t p, int64_t tokens, const float* inputs, float* made) {
    constexpr int64_t LINES = WIDTH / LINE;
    for (int64_t t = 0; t < tokens; t++) std::memcpy(made + t * WIDTH, matrix.bias + p * WIDTH, WIDTH * sizeof(float));
    for (int64_t k = 0; k < matrix.in; k += DEPTH) {
        const int64_t depth = std::min<int64_t>(DEPTH, matrix.in - k), row = p * matrix.in + k;
        for (int64_t begin = 0; begin < tokens; begin += TOGETHER) {
            const int64_t together = std::min<int64_t>(TOGETHER, tokens - begin), block = begin / TOGETHER;
            const Ahead ahead{matrix.panels, uint64_t(row * LINES + block * depth + PAGES * PAGE)};
            MULTIPLY[together - 1](inputs + begin * matrix.in + k * together, matrix.panels + row * WIDTH, depth, ahead, tokens <= TOGETHER ? LINES : block < LINES, made + begin * WIDTH);
        }
    }
}

// All panels, STEP of them at a time, times all inputs: then(number of the first, made [STEP, tokens, WIDTH]). The threads share the panels, and wait for each other.
template <int STEP, typename Then>
inline void over(const Matrix& matrix, int64_t tokens, const float* inputs, Then then) {
    const std::unique_ptr<float[]> made(new float[STEP * tokens * WIDTH]);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < matrix.count; p += STEP) {
        for (int64_t s = 0; s < STEP; s++) multiply_panel(matrix, p + s, tokens, inputs, made.get() + s * tokens * WIDTH);
        then(p, made.get());
    }
}

// The products as rows [tokens, count * WIDTH], or added to what is there.
void into(const Matrix& matrix, int64_t tokens, const float* inputs, float* rows, bool add) {
    over<1>(matrix, tokens, inputs, [&](int64_t p, const float* made) {
        for (int64_t t = 0; t < tokens; t++) {
            float* row = rows + (t * matrix.count + p) * WIDTH;
            for (int n = 0; n < WIDTH; n++) row[n] = (add ? row[n] : 0.0f) + made[t * WIDTH + n];
        }
    });
}

// Gate, up and their product as inputs of the matrix that closes the layer.
void gated(const Matrix& opens, const Matrix& closes, int64_t tokens, const float* inputs, float* opened) {
    over<2>(opens, tokens, inputs, [&](int64_t p, float* gate) {
        const float* up = gate + tokens * WIDTH;
        for (int64_t n = 0; n < tokens * WIDTH; n += LANES) {
            const Vector x = load(gate + n), falling = exponential(x < 0.0f ? x : -x);  // the exponential of what is positive could overflow
            store(gate + n, x * (x < 0.0f ? falling : all(1.0f)) / (1.0f + falling) * load(up + n));
        }
        const int64_t first = p / 2 * WIDTH, count = std::min<int64_t>(WIDTH, closes.in - first);
        for (int64_t t = 0; t < tokens; t++) {
            const Column to(opened, closes.in, tokens, t);
            for (int64_t k = 0; k < count; k++) to[first + k] = gate[t * WIDTH + k];
        }
    });
}

// What makes the mean square one.
inline float scale_of(const float* states, int64_t size, float epsilon) {
    Vector squares{};
    for (int64_t d = 0; d < size; d += LANES) squares += load(states + d) * load(states + d);
    return 1.0f / std::sqrt(sum_of(squares) / size + epsilon);
}

// Rows [tokens, row] as inputs.
void lay_out(const float* rows, int64_t row, int64_t tokens, int64_t in, float* inputs) {
    each_token(tokens, [&](int64_t t) {
        const Column to(inputs, in, tokens, t);
        for (int64_t k = 0; k < in; k++) to[k] = rows[t * row + k];
    });
}

// RMSNorm of rows, as inputs.
void normalise(const Step& step, const float* rows, int64_t row, const float* weight, float* inputs) {
    each_token(step.tokens, [&](int64_t t) {
        const float *from = rows + t * row, scale = scale_of(from, step.dim, step.epsilon);
        const Column to(inputs, step.dim, step.tokens, t);
        for (int64_t k = 0; k < step.dim; k++) to[k] = from[k] * scale * weight[k];
    });
}

// A head's numbers turned to the token's position (rotary.py), after their norm if they have one.
void turn(const Step& step, int64_t t, const float* from, const float* norm, float factor, float* to) {
    const int64_t half = step.size / 2;
    const float *cosines = step.cosines + t * step.size, *sines = step.sines + t * step.size, scale = norm ? scale_of(from, step.size, step.epsilon) : 1.0f;
    for (int64_t d = 0; d < half; d++) {
        const float first = norm ? from[d] * scale * norm[d] : from[d], second = norm ? from[d + half] * scale * norm[d + half] : from[d + half];
        to[d] = (first * cosines[d] - second * sines[d]) * factor;
        to[d + half] = (second * cosines[d + half] + first * sines[d + half]) * factor;
    }
}

// The sums of LANES vectors, as one: neighbours are added until each vector is one number.
inline Vector sums_of(Vector* sums) {
    Integers even, odd;
    for (int n = 0; n < LANES; n++) even[n] = 2 * n, odd[n] = 2 * n + 1;
#pragma GCC unroll 4
    for (int left = LANES / 2; left; left /= 2)
#pragma GCC unroll 8
        for (int n = 0; n < left; n++) sums[n] = __builtin_shuffle(sums[2 * n], sums[2 * n + 1], even) + __builtin_shuffle(sums[2 * n], sums[2 * n + 1], odd);
    return sums[0];
}

// Scores of a query with keys [count, size], as powers of e, whose sum comes back. What lies at ``next`` in the same way is fetched meanwhile.
float weigh(const float* query, const float* keys, const float* next, int64_t count, int64_t size, float* scores) {
    Vector top = all(-INFINITY), total{};
    for (int64_t j = 0; j < count; j += LANES) {
        Vector sums[LANES] = {};
        for (int64_t d = 0; d < size; d += LANES) {
            const Vector part = load(query + d);
            int64_t place = j * size + d;
#pragma GCC unroll 16
            for (int n = 0; n < LANES; n++) {
                __builtin_prefetch(next + place, 0, 2);
                sums[n] += part * load(keys + place);
                place += j + n + 1 < count ? size : 0;
            }
        }
        const Vector found = sums_of(sums);
        store(scores + j, found);
        top = found > top ? found : top;
    }
    std::fill(scores + count, scores + padded(count), -INFINITY);
    const float most = largest(top);
    for (int64_t j = 0; j < count; j += LANES) {
        const Vector part = exponential(load(scores + j) - most);
        total += part;
        store(scores + j, part);
    }
    return sum_of(total);
}

// Queries, keys and values that were read, [tokens, row]: the latter two are kept, [texts, groups, room, size], and what the heads attend to comes back, [tokens, heads * size].
void attention(const Step& step, const Layer& layer, const float* read, int64_t row, float* keys, float* values, float* attended) {
    const int64_t size = step.size, share = step.heads / step.groups, units = step.tokens * step.groups;
    const std::unique_ptr<float[]> memory(new float[share * (size + 1 + padded(step.room))]);
    float *queries = memory.get(), *sums = queries + share * size, *scores = sums + share;
    const float factor = 1.0f / std::sqrt(float(size));
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; unit++) {
        const int64_t t = unit / step.groups, g = unit % step.groups, place = ((step.texts[t] * step.groups + g) * step.room + step.places[t]) * size;
        const float* own = read + t * row + (step.heads + g) * size;
        turn(step, t, own, layer.key_norm, 1.0f, keys + place);
        std::memcpy(values + place, own + step.groups * size, size * sizeof(float));
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; unit++) {
        const int64_t t = unit / step.groups, g = unit % step.groups, begin = layer.window ? std::max<int64_t>(0, step.places[t] + 1 - layer.window) : 0, count = step.places[t] + 1 - begin;
        const int64_t first = ((step.texts[t] * step.groups + g) * step.room + begin) * size, next = first + step.room * size;
        for (int64_t h = 0; h < share; h++) {
            turn(step, t, read + t * row + (g * share + h) * size, layer.query_norm, factor, queries + h * size);
            sums[h] = weigh(queries + h * size, keys + first, h ? keys + next : values + first, count, size, scores + h * padded(count));
        }
        float* means = attended + unit * share * size;
        product(share, size, count, scores, padded(count), 1, values + first, size, means, size, false);
        for (int64_t h = 0; h < share; h++)
            for (int64_t d = 0; d < size; d++) means[h * size + d] /= sums[h];
    }
}

}  // namespace

extern "C" {

int64_t luban_width() { return WIDTH; }

// States of the tokens [tokens, row], of which dim are used, become what they are after all layers. keys and values: of each layer [texts, groups, room, size].
void luban_step(const Step* given, const Layer* layers, float* const* keys, float* const* values, float* states) {
    const Step step = *given;
    const int64_t tokens = step.tokens, row = layers->writes.count * WIDTH, width = layers->reads.count * WIDTH, attends = layers->writes.in, inner = layers->closes.in;
    const int64_t most = tokens * std::max(step.dim, attends);
    const std::unique_ptr<float[]> memory(new float[tokens * (width + attends + inner) + most]);
    float *read = memory.get(), *attended = read + tokens * width, *opened = attended + tokens * attends;
#pragma omp parallel num_threads(step.threads)
    {
        const std::unique_ptr<float[]> own(new float[tokens <= FEW ? most : 0]);
        float* inputs = tokens <= FEW ? own.get() : opened + tokens * inner;
        for (int64_t l = 0; l < step.layers; l++) {
            const Layer& layer = layers[l];
            normalise(step, states, row, layer.before_attention, inputs);
            into(layer.reads, tokens, inputs, read, false);
            attention(step, layer, read, width, keys[l], values[l], attended);
            lay_out(attended, attends, tokens, attends, inputs);
            into(layer.writes, tokens, inputs, states, true);
            normalise(step, states, row, layer.before_feed_forward, inputs);
            gated(layer.opens, layer.closes, tokens, inputs, opened);
            into(layer.closes, tokens, opened, states, true);
        }
    }
}

// rows [tokens, count * WIDTH] = states [tokens, in] times a matrix.
void luban_product(const Matrix* matrix, int64_t tokens, int64_t threads, const float* states, float* rows) {
    const std::unique_ptr<float[]> memory(new float[tokens * matrix->in]);
    lay_out(states, matrix->in, tokens, matrix->in, memory.get());
#pragma omp parallel num_threads(threads)
    into(*matrix, tokens, memory.get(), rows, false);
}

}

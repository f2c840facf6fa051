/* What lies between bfloat16 matrix products (which torch does): activations are kept in bfloat16, arithmetic is in
 * float32, and the last layer is float32 throughout, since a value of some hundreds has no decimals in bfloat16.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t half_t; /* bfloat16: the upper half of a float32 */

static inline float wide(half_t h) {
    union {
        uint32_t i;
        float f;
    } u = {.i = (uint32_t)h << 16};
    return u.f;
}

static inline half_t narrow(float x) { /* to the nearest, ties to even; NaN stays NaN */
    union {
        float f;
        uint32_t i;
    } u = {.f = x};
    uint32_t rounded = (u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16;
    return (half_t)(x != x ? 0x7fc0u : rounded);
}

/* z (groups, rows, width) = relu(z + b), in place. */
void o2o_half_bias_relu(half_t *z, const float *b, int64_t groups, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (groups * rows * width > 16384)
    for (int64_t t = 0; t < groups * rows; t++) {
        half_t *restrict row = z + t * width;
        const float *restrict bias = b + t / rows * width;
        for (int64_t j = 0; j < width; j++) {
            float v = wide(row[j]) + bias[j];
            row[j] = narrow(v < 0.0f ? 0.0f : v);
        }
    }
}

/* The same through LayerNorm; norm takes the normalised rows, rstd (groups, rows) their 1 / deviation. */
void o2o_half_norm_relu(half_t *z, const float *b, const float *gain, const float *shift, half_t *norm, float *rstd,
                        int64_t groups, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (groups * rows * width > 16384)
    for (int64_t t = 0; t < groups * rows; t++) {
        half_t *restrict row = z + t * width, *restrict kept = norm + t * width;
        const float *restrict bias = b + t / rows * width, *restrict g = gain + t / rows * width;
        const float *restrict s = shift + t / rows * width;
        float sum = 0.0f, square = 0.0f;
        for (int64_t j = 0; j < width; j++) row[j] = narrow(wide(row[j]) + bias[j]);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += wide(row[j]);
        float mean = sum / (float)width;
#pragma omp simd reduction(+ : square)
        for (int64_t j = 0; j < width; j++) square += (wide(row[j]) - mean) * (wide(row[j]) - mean);
        float inverse = 1.0f / sqrtf(square / (float)width + 1e-5f);
        rstd[t] = inverse;
        for (int64_t j = 0; j < width; j++) {
            float n = (wide(row[j]) - mean) * inverse, v = n * g[j] + s[j];
            kept[j] = narrow(n);
            row[j] = narrow(v < 0.0f ? 0.0f : v);
        }
    }
}

/* out (groups, rows, width) = h (groups, rows, in) w (groups, in, width) + b, of all `copies` groups a member has. */
void o2o_half_last(const half_t *h, const float *w, const float *b, float *out, int64_t groups, int64_t used,
                   int64_t copies, int64_t rows, int64_t in, int64_t width) {
#pragma omp parallel for schedule(static) if (groups * rows * in > 16384)
    for (int64_t t = 0; t < groups * rows; t++) {
        int64_t g = t / rows, k = g / used * copies + g % used;
        const half_t *restrict row = h + t * in;
        const float *restrict weight = w + k * in * width;
        float *restrict to = out + t * width;
        if (width == 1) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < in; i++) sum += wide(row[i]) * weight[i];
            to[0] = sum + b[k];
            continue;
        }
        for (int64_t j = 0; j < width; j++) to[j] = b[k * width + j];
        for (int64_t i = 0; i < in; i++) {
            float v = wide(row[i]);
            for (int64_t j = 0; j < width; j++) to[j] += v * weight[i * width + j];
        }
    }
}

/* Backwards through the last layer and the ReLU below: d (groups, rows, in) from grad (groups, rows, width). */
void o2o_half_last_back(const float *grad, const half_t *h, const float *w, half_t *d, int64_t groups, int64_t used,
                        int64_t copies, int64_t rows, int64_t in, int64_t width) {
#pragma omp parallel for schedule(static) if (groups * rows * in > 16384)
    for (int64_t t = 0; t < groups * rows; t++) {
        int64_t g = t / rows, k = g / used * copies + g % used;
        const half_t *restrict row = h + t * in;
        const float *restrict weight = w + k * in * width, *restrict from = grad + t * width;
        half_t *restrict to = d + t * in;
        if (width == 1) {
            float scale = from[0];
            for (int64_t i = 0; i < in; i++) to[i] = narrow(wide(row[i]) > 0.0f ? scale * weight[i] : 0.0f);
            continue;
        }
        for (int64_t i = 0; i < in; i++) {
            float sum = 0.0f;
            for (int64_t j = 0; j < width; j++) sum += from[j] * weight[i * width + j];
            to[i] = narrow(wide(row[i]) > 0.0f ? sum : 0.0f);
        }
    }
}

/* Gradients of the last layer's weights, dw (groups, in, width), and bias, db (groups, width). */
void o2o_half_last_weights(const float *grad, const half_t *h, float *dw, float *db, int64_t groups, int64_t rows,
                           int64_t in, int64_t width) {
    const int64_t piece = 32;
    int64_t pieces = (in + piece - 1) / piece;
#pragma omp parallel for schedule(static) if (groups * rows * in > 16384)
    for (int64_t t = 0; t < groups * pieces; t++) {
        int64_t g = t / pieces, i0 = t % pieces * piece, i1 = i0 + piece < in ? i0 + piece : in;
        float *restrict to = dw + g * in * width;
        memset(to + i0 * width, 0, (size_t)((i1 - i0) * width) * sizeof(float));
        for (int64_t r = 0; r < rows; r++) {
            const half_t *restrict row = h + (g * rows + r) * in;
            const float *restrict from = grad + (g * rows + r) * width;
            if (width == 1)
                for (int64_t i = i0; i < i1; i++) to[i] += from[0] * wide(row[i]);
            else
                for (int64_t i = i0; i < i1; i++)
                    for (int64_t j = 0; j < width; j++) to[i * width + j] += wide(row[i]) * from[j];
        }
        if (i0) continue;
        for (int64_t j = 0; j < width; j++) {
            float sum = 0.0f;
            for (int64_t r = 0; r < rows; r++) sum += grad[(g * rows + r) * width + j];
            db[g * width + j] = sum;
        }
    }
}

/* d (groups, rows, width) through the ReLU whose output was h, in place. */
void o2o_half_relu_back(half_t *d, const half_t *h, int64_t n) {
#pragma omp parallel for schedule(static) if (n > 16384)
    for (int64_t i = 0; i < n; i++) d[i] = wide(h[i]) > 0.0f ? d[i] : 0;
}

/* d through LayerNorm, in place; dgain and dshift (groups, width) unless null. A group is one thread's, so that its sums
 * have one order. */
void o2o_half_norm_back(half_t *d, const half_t *norm, const float *rstd, const float *gain, float *dgain,
                        float *dshift, int64_t groups, int64_t used, int64_t copies, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (groups > 1)
    for (int64_t g = 0; g < groups; g++) {
        const float *restrict scale = gain + (g / used * copies + g % used) * width;
        if (dgain) {
            memset(dgain + g * width, 0, (size_t)width * sizeof(float));
            memset(dshift + g * width, 0, (size_t)width * sizeof(float));
        }
        for (int64_t r = 0; r < rows; r++) {
            half_t *restrict at = d + (g * rows + r) * width;
            const half_t *restrict n = norm + (g * rows + r) * width;
            float sum = 0.0f, dot = 0.0f, inverse = rstd[g * rows + r];
            if (dgain) {
                float *restrict a = dgain + g * width, *restrict b = dshift + g * width;
                for (int64_t j = 0; j < width; j++) {
                    a[j] += wide(at[j]) * wide(n[j]);
                    b[j] += wide(at[j]);
                }
            }
#pragma omp simd reduction(+ : sum, dot)
            for (int64_t j = 0; j < width; j++) {
                float v = wide(at[j]) * scale[j];
                sum += v;
                dot += v * wide(n[j]);
            }
            sum /= (float)width;
            dot /= (float)width;
            for (int64_t j = 0; j < width; j++)
                at[j] = narrow(inverse * (wide(at[j]) * scale[j] - sum - wide(n[j]) * dot));
        }
    }
}

/* db (groups, width) = sum over rows of d. */
void o2o_half_column_sums(const half_t *d, float *db, int64_t groups, int64_t rows, int64_t width) {
    const int64_t piece = 64;
    int64_t pieces = (width + piece - 1) / piece;
#pragma omp parallel for schedule(static) if (groups * rows * width > 16384)
    for (int64_t t = 0; t < groups * pieces; t++) {
        int64_t g = t / pieces, j0 = t % pieces * piece, count = width - j0 < piece ? width - j0 : piece;
        float *restrict to = db + g * width + j0;
        memset(to, 0, (size_t)count * sizeof(float));
        for (int64_t r = 0; r < rows; r++) {
            const half_t *restrict row = d + (g * rows + r) * width + j0;
            for (int64_t j = 0; j < count; j++) to[j] += wide(row[j]);
        }
    }
}

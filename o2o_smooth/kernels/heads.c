/* The small losses around the networks, fp32 on a CPU: each call gives values and gradients in one pass over the rows,
 * where torch would make a dozen calls that cost more than their arithmetic.
 *
 * M members, B rows, A action features; all arrays contiguous. Gradients are those of agents/heads.py's formulas.
 */
#include <math.h>
#include <stdint.h>

#define LOG_STD_MIN -5.0f
#define LOG_STD_MAX 2.0f
#define MAX_ADVANTAGE_WEIGHT 100.0f
#define LOG_2 0.69314718055994531f
#define HALF_LOG_2PI 0.91893853320467274f
#define PARALLEL 4096 /* elements below which one thread is faster than waking the others */

/* exp and log to about one unit in the last place, in a form that compilers turn into vector code; NaN stays NaN. */
static inline float exp_(float x) {
    float clipped = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    float n = nearbyintf(clipped * 1.44269504088896341f);
    float r = clipped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t i;
        float f;
    } scale = {.i = ((int32_t)n + 127) << 23};
    return p * scale.f;
}

static inline float log_(float x) { /* for x > 0 */
    union {
        float f;
        int32_t i;
    } u = {.f = x};
    int32_t e = (u.i - 0x3f3504f3) >> 23; /* x = 2^e m, m in [sqrt(1/2), sqrt(2)) */
    u.i -= e << 23;
    float m = u.f - 1.0f, z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float fe = (float)e;
    return m + (m * z * p + fe * -2.12194440e-4f - 0.5f * z) + fe * 0.693359375f + 0.0f * x; /* keeps NaN */
}

static inline float clamp_(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

/* 2 (log 2 - u - softplus(-2u)) = log(1 - tanh(u)^2), without cancellation for large |u|. */
static inline float squash_(float u) {
    float a = fabsf(u), e = exp_(-2.0f * a); /* even in u */
    float one = 1.0f + e, log1p = log_(one) + (e - (one - 1.0f)) / one;
    return 2.0f * (LOG_2 - a - log1p);
}

static inline float tanh_(float u) {
    float a = fabsf(u), square = u * u;
    float e = exp_(-2.0f * a), far = (1.0f - e) / (1.0f + e);
    float p = -5.70498872745e-3f; /* near 0 the quotient would lose digits */
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    float near = a + a * square * p;
    return copysignf(a < 0.625f ? near : far, u);
}

/* A batch as the losses see it: (x - mean) / std of both observations, actions from their box to +-limit. Rows of the
 * inputs may lie apart; `joined` (M, B, O + A) takes observations and actions side by side, `following` (M, B, O). */
void o2o_encode(const float *obs, const float *next_obs, const float *action, const int64_t *strides, int64_t members,
                int64_t rows, int64_t obs_dim, int64_t dim, const float *mean, const float *std, const float *center,
                const float *half, float limit, float *joined, float *following) {
    for (int64_t i = 0; i < members * rows; i++) {
        int64_t m = i / rows, r = i % rows;
        const float *restrict x = obs + m * strides[0] + r * strides[1];
        const float *restrict y = next_obs + m * strides[2] + r * strides[3];
        const float *restrict a = action + m * strides[4] + r * strides[5];
        float *restrict to = joined + i * (obs_dim + dim), *restrict next = following + i * obs_dim;
        for (int64_t j = 0; j < obs_dim; j++) {
            to[j] = (x[j] - mean[j]) / std[j];
            next[j] = (y[j] - mean[j]) / std[j];
        }
        for (int64_t j = 0; j < dim; j++) to[obs_dim + j] = clamp_((a[j] - center[j]) / half[j], -limit, limit);
    }
}

/* loss (M,) = sum over critics of mean over rows of (q - target)^2, q (M, E, B), target (M, B); dq is the gradient. */
void o2o_td_error(const float *q, const float *target, int64_t members, int64_t critics, int64_t rows, float *loss,
                  float *dq) {
    float scale = 1.0f / (float)rows;
    for (int64_t m = 0; m < members; m++) {
        float total = 0.0f;
        for (int64_t e = 0; e < critics; e++) {
            const float *restrict at = q + (m * critics + e) * rows, *restrict y = target + m * rows;
            float *restrict d = dq + (m * critics + e) * rows, sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t r = 0; r < rows; r++) {
                float error = at[r] - y[r];
                sum += error * error;
                d[r] = 2.0f * scale * error;
            }
            total += sum * scale;
        }
        loss[m] = total;
    }
}

/* loss (M,) = mean over rows of |expectile - 1(u < 0)| u^2, u = target - v, both (M, B); dv is the gradient. */
void o2o_expectile(const float *target, const float *v, const float *expectile, int64_t members, int64_t rows,
                   float *loss, float *dv) {
    float scale = 1.0f / (float)rows;
    for (int64_t m = 0; m < members; m++) {
        const float *restrict y = target + m * rows, *restrict at = v + m * rows;
        float *restrict d = dv + m * rows, sum = 0.0f, above = expectile[m], below = 1.0f - above;
#pragma omp simd reduction(+ : sum)
        for (int64_t r = 0; r < rows; r++) {
            float u = y[r] - at[r], weight = u < 0.0f ? below : above;
            sum += weight * u * u;
            d[r] = -2.0f * scale * weight * u;
        }
        loss[m] = sum * scale;
    }
}

/* loss (M,) = -mean over rows of min(exp(beta A), 100) log_prob, both (M, B); d is the gradient of log_prob. */
void o2o_advantage_weighted(const float *log_prob, const float *advantage, const float *beta, int64_t members,
                            int64_t rows, float *loss, float *d) {
    float scale = 1.0f / (float)rows;
    for (int64_t m = 0; m < members; m++) {
        const float *restrict at = log_prob + m * rows, *restrict a = advantage + m * rows;
        float *restrict g = d + m * rows, sum = 0.0f, inverse_temperature = beta[m];
#pragma omp simd reduction(+ : sum)
        for (int64_t r = 0; r < rows; r++) {
            float weight = exp_(inverse_temperature * a[r]);
            weight = weight > MAX_ADVANTAGE_WEIGHT ? MAX_ADVANTAGE_WEIGHT : weight;
            sum -= weight * at[r];
            g[r] = -scale * weight;
        }
        loss[m] = sum * scale;
    }
}

/* The Gaussian heads work on tiles of rows, laid out feature after feature without gaps: a row alone has too few actions
 * to fill a vector. */
#define TILE 1024

static inline int64_t tile_rows(int64_t rows, int64_t dim) {
    int64_t fit = TILE / dim < 1 ? 1 : TILE / dim;
    return rows < fit ? rows : fit;
}

/* Means and clamped log deviations of n rows, and where the clamp lets gradients through. */
static void split(const float *restrict out, int64_t n, int64_t dim, float *restrict mean, float *restrict log_std,
                  float *restrict inside) {
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < dim; j++) {
            float raw = out[r * 2 * dim + dim + j], clamped = clamp_(raw, LOG_STD_MIN, LOG_STD_MAX);
            mean[r * dim + j] = out[r * 2 * dim + j];
            log_std[r * dim + j] = clamped;
            inside[r * dim + j] = raw == clamped ? 1.0f : 0.0f;
        }
}

static void row_sums(const float *restrict x, int64_t n, int64_t dim, float *restrict sums) {
    for (int64_t r = 0; r < n; r++) {
        float sum = 0.0f;
        for (int64_t j = 0; j < dim; j++) sum += x[r * dim + j];
        sums[r] = sum;
    }
}

typedef struct {
    const float *out, *action, *noise, *edge, *da, *dl;
    int64_t n, rows, dim, tile, tiles;
    float *to, *log_prob, *d;
} Head;

/* A head's rows in tiles; `threads` share them where they are many. */
static void in_tiles(Head *head, int64_t members, task_t task, int threads) {
    head->tile = tile_rows(head->rows, head->dim);
    head->tiles = (head->rows + head->tile - 1) / head->tile;
    int64_t elements = members * head->n * head->rows * head->dim;
    share(elements > PARALLEL ? threads : 1, members * head->tiles, task, head);
}

static void log_prob_task(void *argument, int64_t t) {
    const Head *h = argument;
    int64_t dim = h->dim, tile = h->tile, first = t % h->tiles * tile, left = h->rows - first;
    int64_t at = t / h->tiles * h->rows + first, n = left < tile ? left : tile;
    float mean[tile * dim], log_std[tile * dim], inside[tile * dim], value[tile * dim];
    split(h->out + at * 2 * dim, n, dim, mean, log_std, inside);
    const float *restrict a = h->action + at * dim;
    float bound = 1.0f - h->edge[t / h->tiles], *restrict d = h->d;
    for (int64_t i = 0; i < n * dim; i++) {
        float clipped = clamp_(a[i], -bound, bound);
        float u = 0.5f * log_((1.0f + clipped) / (1.0f - clipped)), inverse = exp_(-log_std[i]);
        float z = (u - mean[i]) * inverse;
        value[i] = -0.5f * z * z - log_std[i] - HALF_LOG_2PI - squash_(u);
        mean[i] = z * inverse; /* from here on: the gradients */
        log_std[i] = inside[i] * (z * z - 1.0f);
    }
    row_sums(value, n, dim, h->log_prob + at);
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < dim; j++) {
            d[(at + r) * 2 * dim + j] = mean[r * dim + j];
            d[(at + r) * 2 * dim + dim + j] = log_std[r * dim + j];
        }
}

/* log_prob (N,) of actions (N, A) under tanh-Gaussians out (N, 2A) = mean, log deviation; d (N, 2A) is the gradient of
 * log_prob. Actions are clipped to +-(1 - edge), edge (M,), N = M rows. */
void o2o_log_prob(const float *out, const float *action, const float *edge, int64_t members, int64_t rows, int64_t dim,
                  float *log_prob, float *d, int threads) {
    Head head = {.out = out, .action = action, .edge = edge, .n = 1, .rows = rows, .dim = dim, .log_prob = log_prob,
                 .d = d};
    in_tiles(&head, members, log_prob_task, threads);
}

static void sample_task(void *argument, int64_t t) {
    const Head *h = argument;
    int64_t dim = h->dim, tile = h->tile, first = t % h->tiles * tile, left = h->rows - first, m = t / h->tiles;
    int64_t count = left < tile ? left : tile;
    float mean[tile * dim], log_std[tile * dim], inside[tile * dim], deviation[tile * dim], value[tile * dim];
    split(h->out + (m * h->rows + first) * 2 * dim, count, dim, mean, log_std, inside);
    for (int64_t i = 0; i < count * dim; i++) deviation[i] = exp_(log_std[i]);
    for (int64_t k = 0; k < h->n; k++) {
        int64_t at = (m * h->n + k) * h->rows + first;
        const float *restrict e = h->noise + at * dim;
        float *restrict a = h->to + at * dim;
        for (int64_t i = 0; i < count * dim; i++) {
            float u = mean[i] + deviation[i] * e[i];
            a[i] = tanh_(u);
            value[i] = -0.5f * e[i] * e[i] - log_std[i] - HALF_LOG_2PI - squash_(u);
        }
        row_sums(value, count, dim, h->log_prob + at);
    }
}

/* Samples action (M, n, B, A) = tanh(mean + deviation noise) from out (M, B, 2A), and their log_prob (M, n, B). */
void o2o_sample(const float *out, const float *noise, int64_t members, int64_t n, int64_t rows, int64_t dim,
                float *action, float *log_prob, int threads) {
    Head head = {.out = out, .noise = noise, .n = n, .rows = rows, .dim = dim, .to = action, .log_prob = log_prob};
    in_tiles(&head, members, sample_task, threads);
}

static void sample_back_task(void *argument, int64_t t) {
    const Head *h = argument;
    int64_t dim = h->dim, tile = h->tile, first = t % h->tiles * tile, left = h->rows - first, m = t / h->tiles;
    int64_t count = left < tile ? left : tile;
    float mean[tile * dim], log_std[tile * dim], inside[tile * dim], to_mean[tile * dim], to_log[tile * dim];
    split(h->out + (m * h->rows + first) * 2 * dim, count, dim, mean, log_std, inside);
    for (int64_t i = 0; i < count * dim; i++) {
        log_std[i] = exp_(log_std[i]);
        to_mean[i] = to_log[i] = 0.0f;
    }
    for (int64_t k = 0; k < h->n; k++) {
        int64_t at = (m * h->n + k) * h->rows + first;
        const float *restrict e = h->noise + at * dim, *restrict a = h->action + at * dim;
        const float *restrict g = h->da + at * dim;
        for (int64_t r = 0; r < count; r++) {
            float weight = h->dl[at + r];
            for (int64_t j = r * dim; j < (r + 1) * dim; j++) {
                float du = g[j] * (1.0f - a[j] * a[j]) + 2.0f * weight * a[j];
                to_mean[j] += du;
                to_log[j] += inside[j] * (du * log_std[j] * e[j] - weight);
            }
        }
    }
    for (int64_t r = 0; r < count; r++)
        for (int64_t j = 0; j < dim; j++) {
            float *row = h->d + (m * h->rows + first + r) * 2 * dim;
            row[j] = to_mean[r * dim + j];
            row[dim + j] = to_log[r * dim + j];
        }
}

/* Gradient d (M, B, 2A) of `out` from those of the samples, da (M, n, B, A), and of their log_prob, dl (M, n, B). */
void o2o_sample_back(const float *out, const float *noise, const float *action, const float *da, const float *dl,
                     int64_t members, int64_t n, int64_t rows, int64_t dim, float *d, int threads) {
    Head head = {.out = out, .noise = noise, .action = action, .da = da, .dl = dl, .n = n, .rows = rows, .dim = dim,
                 .d = d};
    in_tiles(&head, members, sample_back_task, threads);
}

/* The least of `critics` values, NaN if one of them is. */
static inline float least_(const float *q, int64_t critics, int64_t rows) {
    float low = q[0];
    for (int64_t e = 1; e < critics; e++) {
        float v = q[e * rows];
        low = v < low || v != v ? v : low;
    }
    return low;
}

/* out (M, B): the least of q (M, E, B) over critics. */
void o2o_least(const float *q, int64_t members, int64_t critics, int64_t rows, float *out) {
    for (int64_t m = 0; m < members; m++)
        for (int64_t r = 0; r < rows; r++) out[m * rows + r] = least_(q + m * critics * rows + r, critics, rows);
}

/* y (M, B) = reward + discount (1 - terminated) (least q - bonus), q (M, E, B), discount (M,); bonus may be absent. */
void o2o_td_target(const float *q, const float *reward, const float *terminated, const float *discount,
                   const float *bonus, int64_t members, int64_t critics, int64_t rows, float *y) {
    for (int64_t m = 0; m < members; m++)
        for (int64_t r = 0; r < rows; r++) {
            int64_t i = m * rows + r;
            float value = least_(q + m * critics * rows + r, critics, rows) - (bonus ? bonus[i] : 0.0f);
            y[i] = reward[i] + discount[m] * (1.0f - terminated[i]) * value;
        }
}

/* out = d times above, which has one number for `each` numbers of d. */
void o2o_scale(const float *d, const float *above, int64_t count, int64_t each, float *out) {
    for (int64_t k = 0; k < count; k++)
        for (int64_t i = k * each; i < (k + 1) * each; i++) out[i] = d[i] * above[k];
}

/* action (M, B, A) = clip(tanh(out) + clip(scale noise, -+clip), -+1), scale and clip (M,). */
void o2o_smoothed(const float *out, const float *noise, const float *scale, const float *clip, int64_t members,
                  int64_t each, float *action) {
    for (int64_t m = 0; m < members; m++)
        for (int64_t i = m * each; i < (m + 1) * each; i++)
            action[i] = clamp_(tanh_(out[i]) + clamp_(scale[m] * noise[i], -clip[m], clip[m]), -1.0f, 1.0f);
}

/* action = tanh(out), and back: d from the gradient of the action, `above`. */
void o2o_tanh(const float *restrict out, int64_t count, float *restrict action) {
    for (int64_t i = 0; i < count; i++) action[i] = tanh_(out[i]);
}

void o2o_tanh_back(const float *restrict action, const float *restrict above, int64_t count, float *restrict d) {
    for (int64_t i = 0; i < count; i++) d[i] = above[i] * (1.0f - action[i] * action[i]);
}

/* gap (M,) = mean over rows of -log_prob (M, B), less its target (M,). */
void o2o_entropy_gap(const float *log_prob, const float *target, int64_t members, int64_t rows, float *gap) {
    for (int64_t m = 0; m < members; m++) {
        const float *restrict at = log_prob + m * rows;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t r = 0; r < rows; r++) sum += at[r];
        gap[m] = -sum / (float)rows - target[m];
    }
}

/* loss (M,) = -scale mean over rows of q (M, B), scale (M,) = norm / mean |q|, or 1 where norm is absent; d is the
 * gradient of q with the scale held. */
void o2o_policy_value(const float *q, const float *norm, int64_t members, int64_t rows, float *loss, float *scale,
                      float *d) {
    for (int64_t m = 0; m < members; m++) {
        float sum = 0.0f, size = 0.0f;
        const float *restrict at = q + m * rows;
        float *restrict g = d + m * rows;
#pragma omp simd reduction(+ : sum, size)
        for (int64_t r = 0; r < rows; r++) {
            sum += at[r];
            size += fabsf(at[r]);
        }
        float by = norm ? norm[m] / (size / (float)rows) : 1.0f, each = -by / (float)rows;
        for (int64_t r = 0; r < rows; r++) g[r] = each;
        scale[m] = by;
        loss[m] = -by * (sum / (float)rows);
    }
}

/* loss (M,) = mean of (x - y)^2 over the member's `each` numbers; d is the gradient of x. */
void o2o_mean_square(const float *x, const float *y, int64_t members, int64_t each, float *loss, float *d) {
    float scale = 1.0f / (float)each;
    for (int64_t m = 0; m < members; m++) {
        const float *restrict a = x + m * each, *restrict b = y + m * each;
        float *restrict g = d + m * each, sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < each; i++) {
            float error = a[i] - b[i];
            sum += error * error;
            g[i] = 2.0f * scale * error;
        }
        loss[m] = sum * scale;
    }
}

/* loss (M,) = mean over rows of alpha log_prob - least q, alpha (M,), log_prob (M, B), q (M, E, B); gradients d_log_prob
 * and dq, which critics of equal values share. `low` (M, B) takes the least q. */
void o2o_soft_value(const float *q, const float *log_prob, const float *alpha, int64_t members, int64_t critics,
                    int64_t rows, float *loss, float *low, float *d_log_prob, float *dq) {
    float scale = 1.0f / (float)rows;
    for (int64_t m = 0; m < members; m++) {
        float sum = 0.0f;
        for (int64_t r = 0; r < rows; r++) {
            const float *at = q + m * critics * rows + r;
            float *d = dq + m * critics * rows + r, least = least_(at, critics, rows), equal = 0.0f;
            for (int64_t e = 0; e < critics; e++) equal += at[e * rows] == least || at[e * rows] != at[e * rows];
            for (int64_t e = 0; e < critics; e++)
                d[e * rows] = at[e * rows] == least || at[e * rows] != at[e * rows] ? -scale / equal : 0.0f;
            low[m * rows + r] = least;
            d_log_prob[m * rows + r] = alpha[m] * scale;
            sum += alpha[m] * log_prob[m * rows + r] - least;
        }
        loss[m] = sum * scale;
    }
}

/* The learner's hot loops on a CPU: stacked multilayer perceptrons forward and backward, and Adam.
 *
 * Matrix products are the BLAS that torch brings along (its sgemm is handed over by pointer), or, in the hidden layers of
 * a pass in half precision, those of half.c; parameters, activations and gradients are float32 either way, and so is the
 * last layer: a value of some hundreds has no decimals in bfloat16. This file does what lies
 * between them, while the rows are still in the cache, and shares the work among threads in large pieces: a thread
 * takes a block of rows through all layers, or a whole network, so that threads meet once or twice a pass instead of
 * once or twice an operation (pool.c).
 *
 * Layouts are row-major and those of networks.py: weights (groups, in, out), activations (groups, rows, features), where
 * a group is one copy (critic) of one member. Every output element is written by one task in a fixed order, so results
 * do not depend on timing.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define MAX_LAYERS 16
#define BLOCK 128   /* rows that one thread takes through all layers: with 256 features they fit a second-level cache */
#define CHUNK 256   /* rows between two halves of a backward pass: their gradients stay in the cache in between */
#define MIN_BLOCK 16 /* below this many rows a matrix product is slow */
#define FAR (16 << 20) /* bytes: a pass that leaves more finds none of it in the caches when it comes back */
#define ROOM (BLOCK * 1024) /* floats of a layer that a thread keeps meanwhile */
#define LN_EPS 1e-5f

typedef struct {
    int64_t members, copies, layers, layer_norm;
    int64_t used; /* copies that take part, the first ones */
    int64_t half; /* whether the hidden layers' products are of bfloat16 */
    int64_t dims[MAX_LAYERS + 1];
    float *w[MAX_LAYERS], *b[MAX_LAYERS], *gain[MAX_LAYERS], *shift[MAX_LAYERS];
    uint32_t *ready[MAX_LAYERS], *turned[MAX_LAYERS]; /* of one network: w and its transpose by half_ready, or none */
} Net;

void o2o_init(void *sgemm, void *hgemm, void *set_num_threads_local) {
    sgemm_ = (sgemm_t)sgemm;
    hgemm_ = (hgemm_t)hgemm;
    set_threads = (threads_t)set_num_threads_local;
}

/* c (m, n) = a (m, k) b (k, n) */
static void gemm(int half, int m, int n, int k, const float *a, int lda, const float *b, const uint32_t *ready,
                 float *c) {
    const float one = 1.0f, zero = 0.0f;
    if (half)
        half_product(m, n, k, (Matrix){a, lda, 1}, (Matrix){b, n, 1}, ready, c, n, 0);
    else
        sgemm_("N", "N", &n, &m, &k, &one, b, &n, a, &lda, &zero, c, &n);
}

/* c (m, k) = a (m, n) b (k, n)^T */
static void gemm_bt(int half, int m, int n, int k, const float *a, const float *b, const uint32_t *ready, float *c,
                    int ldc) {
    const float one = 1.0f, zero = 0.0f;
    if (half)
        half_product(m, k, n, (Matrix){a, n, 1}, (Matrix){b, 1, n}, ready, c, ldc, 0);
    else
        sgemm_("T", "N", &k, &m, &n, &one, b, &n, a, &n, &zero, c, &ldc);
}

/* c (k, n) = or += a (m, k)^T b (m, n) */
static void gemm_at(int half, int m, int n, int k, const float *a, int lda, const float *b, float *c, int add) {
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    if (half)
        half_product(k, n, m, (Matrix){a, 1, lda}, (Matrix){b, n, 1}, 0, c, n, add);
    else
        sgemm_("N", "T", &n, &k, &m, &one, b, &n, a, &lda, &beta, c, &n);
}

/* Where a group's parameters lie: the g-th of the copies in use. */
static int64_t home(const Net *net, int64_t g) { return g / net->used * net->copies + g % net->used; }

static int64_t hidden_sum(const Net *net) {
    int64_t sum = 0;
    for (int l = 1; l < net->layers; l++) sum += net->dims[l];
    return sum;
}

/* Floats of workspace that a forward pass writes and the backward pass reads: activations after the ReLU, and with
 * LayerNorm the normalised rows and their 1 / deviation. */
int64_t o2o_saved(const Net *net, int64_t rows) {
    int64_t per_row = hidden_sum(net);
    if (net->layer_norm) per_row = 2 * per_row + net->layers - 1;
    return net->members * net->used * rows * per_row;
}

/* Floats that a backward pass needs for itself. */
int64_t o2o_scratch(const Net *net, int64_t rows) {
    int64_t chunk = rows < CHUNK ? rows : CHUNK;
    int64_t parts = net->layer_norm ? 2 * ((chunk + MIN_BLOCK - 1) / MIN_BLOCK) : 0;
    return net->members * net->used * (chunk + parts) * hidden_sum(net);
}

typedef struct {
    float *h[MAX_LAYERS], *norm[MAX_LAYERS], *rstd[MAX_LAYERS]; /* of hidden layer l, all groups */
} Saved;

static Saved layout(const Net *net, float *saved, int64_t rows) {
    Saved s;
    int64_t n = net->members * net->used * rows;
    for (int l = 0; l < net->layers - 1; l++) {
        s.h[l] = saved;
        saved += n * net->dims[l + 1];
        s.norm[l] = s.rstd[l] = 0;
        if (net->layer_norm) {
            s.norm[l] = saved;
            saved += n * net->dims[l + 1];
            s.rstd[l] = saved;
            saved += n;
        }
    }
    return s;
}

static void bias_relu(float *restrict z, const float *restrict b, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++, z += width)
        for (int64_t j = 0; j < width; j++) {
            float v = z[j] + b[j];
            z[j] = v < 0.0f ? 0.0f : v; /* NaN stays NaN */
        }
}

static void bias_norm_relu(float *restrict z, const float *restrict b, const float *restrict gain,
                           const float *restrict shift, float *restrict norm, float *restrict rstd, int64_t rows,
                           int64_t width) {
    for (int64_t r = 0; r < rows; r++, z += width, norm += width) {
        float sum = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) {
            z[j] += b[j];
            sum += z[j];
        }
        float mean = sum / (float)width;
#pragma omp simd reduction(+ : square)
        for (int64_t j = 0; j < width; j++) {
            float d = z[j] - mean;
            square += d * d;
        }
        float inverse = 1.0f / sqrtf(square / (float)width + LN_EPS);
        rstd[r] = inverse;
        for (int64_t j = 0; j < width; j++) {
            norm[j] = (z[j] - mean) * inverse;
            float v = norm[j] * gain[j] + shift[j];
            z[j] = v < 0.0f ? 0.0f : v;
        }
    }
}

/* The last layer; one output (Q, V) is a dot product per row, for which a matrix product has no good kernel. */
static void last_layer(const float *restrict h, const float *restrict w, const float *restrict b, float *restrict out,
                       int64_t rows, int64_t in, int64_t width) {
    if (width == 1) {
        for (int64_t r = 0; r < rows; r++, h += in) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < in; i++) sum += h[i] * w[i];
            out[r] = sum + b[0];
        }
        return;
    }
    gemm(0, (int)rows, (int)width, (int)in, h, (int)in, w, 0, out);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j++) out[r * width + j] += b[j];
}

static __thread float rooms[2][ROOM] __attribute__((aligned(64)));

/* A copy that passes by the caches: an ordinary store would first read what it overwrites. */
static void put_away(float *restrict to, const float *restrict from, int64_t count) {
#ifdef __AVX__
    if ((uintptr_t)to % 32 == 0 && count % 8 == 0) {
        for (int64_t i = 0; i < count; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
        _mm_sfence(); /* others read it after an ordinary store tells them that it is there */
        return;
    }
#endif
    memcpy(to, from, (size_t)count * sizeof(float));
}

/* What follows the product of hidden layer l, in place: the bias, LayerNorm, the ReLU. `at` is the first row's number. */
static void activate(const Net *net, const Saved *s, int64_t l, int64_t k, int64_t at, int64_t n, const float *b, float *h) {
    int64_t width = net->dims[l + 1];
    if (net->layer_norm)
        bias_norm_relu(h, b, net->gain[l] + k * width, net->shift[l] + k * width, s->norm[l] + at * width,
                       s->rstd[l] + at, n, width);
    else
        bias_relu(h, b, n, width);
}

/* Layers from `first` on, of n rows from r0 on; `input` is what goes into the first of them. */
static void forward_block(const Net *net, const Saved *s, int64_t g, int64_t first, int64_t r0, int64_t n, int64_t rows,
                          const float *input, int64_t stride, float *out, int far) {
    int64_t last = net->layers - 1, k = home(net, g), at = g * rows + r0;
    for (int64_t l = first; l < last; l++) {
        int64_t in = net->dims[l], width = net->dims[l + 1];
        float *kept = s->h[l] + at * width, *h = far ? rooms[l % 2] : kept;
        gemm((int)net->half, (int)n, (int)width, (int)in, input, (int)stride, net->w[l] + k * in * width, net->ready[l], h);
        activate(net, s, l, k, at, n, net->b[l] + k * width, h);
        if (far) put_away(kept, h, n * width);
        input = h;
        stride = width;
    }
    int64_t in = net->dims[last], width = net->dims[last + 1];
    last_layer(input, net->w[last] + k * in * width, net->b[last] + k * width, out + at * width, n, in, width);
}

typedef struct {
    const Net *net;
    Saved s;
    const float *x;
    float *out;
    int64_t row_stride, member_stride, rows, block, blocks;
    int far;
} Forward;

static void forward_task(void *argument, int64_t t) {
    const Forward *f = argument;
    int64_t r0 = (t % f->blocks) * f->block, n = f->rows - r0 < f->block ? f->rows - r0 : f->block;
    int64_t g = t / f->blocks;
    const float *input = f->x + (g / f->net->used) * f->member_stride + r0 * f->row_stride;
    forward_block(f->net, &f->s, g, 0, r0, n, f->rows, input, f->row_stride, f->out, f->far);
}

/* out (groups, rows, out) from x (members, rows, in); rows of x may lie apart. Fills `saved`. */
void o2o_forward(const Net *net, const float *x, int64_t row_stride, int64_t member_stride, int64_t rows, float *saved,
                 float *out, int threads) {
    int64_t groups = net->members * net->used, block = BLOCK;
    /* Fewer blocks than threads would leave some idle. */
    while (threads > 1 && block > MIN_BLOCK && groups * ((rows + block - 1) / block) < threads) block /= 2;
    Forward f = {.net = net, .s = layout(net, saved, rows), .x = x, .out = out, .row_stride = row_stride,
                 .member_stride = member_stride, .rows = rows, .block = block, .blocks = (rows + block - 1) / block,
                 .far = o2o_saved(net, rows) * (int64_t)sizeof(float) > FAR};
    for (int64_t l = 1; l < net->layers; l++) f.far = f.far && block * net->dims[l] <= ROOM;
    share(threads, groups * f.blocks, forward_task, &f);
}

/* Of a layer with one output: its gradient's way down through the ReLU below, and that of its weights. */
static void one_back(const float *restrict d, const float *restrict w, const float *restrict h, float *restrict below,
                     int64_t rows, int64_t in) {
    for (int64_t r = 0; r < rows; r++, h += in, below += in) {
        float scale = d[r];
        for (int64_t i = 0; i < in; i++) below[i] = h[i] > 0.0f ? scale * w[i] : 0.0f;
    }
}

static void one_weights(const float *restrict d, const float *restrict h, int64_t stride, float *restrict dw,
                        int64_t rows, int64_t count) {
    for (int64_t r = 0; r < rows; r++, h += stride)
        for (int64_t i = 0; i < count; i++) dw[i] += d[r] * h[i];
}

/* Through the ReLU (and LayerNorm): d becomes the gradient of the layer's matrix product, in place. */
static void relu_back(float *restrict d, const float *restrict h, int64_t n) {
    for (int64_t i = 0; i < n; i++) d[i] = h[i] > 0.0f ? d[i] : 0.0f;
}

static void norm_back(float *restrict d, const float *restrict norm, const float *restrict rstd,
                      const float *restrict gain, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++, d += width, norm += width) {
        float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
        for (int64_t j = 0; j < width; j++) {
            float v = d[j] * gain[j];
            sum += v;
            dot += v * norm[j];
        }
        sum /= (float)width;
        dot /= (float)width;
        for (int64_t j = 0; j < width; j++) d[j] = rstd[r] * (d[j] * gain[j] - sum - norm[j] * dot);
    }
}

static void column_sum(const float *restrict d, float *restrict out, int64_t rows, int64_t width, int add) {
    if (!add) memset(out, 0, (size_t)width * sizeof(float));
    for (int64_t r = 0; r < rows; r++, d += width)
        for (int64_t j = 0; j < width; j++) out[j] += d[j];
}

static void column_dot(const float *restrict d, const float *restrict x, float *restrict out, int64_t rows,
                       int64_t width) {
    for (int64_t r = 0; r < rows; r++, d += width, x += width)
        for (int64_t j = 0; j < width; j++) out[j] += d[j] * x[j];
}

typedef struct {
    const Net *net;
    Saved s;
    const float *x, *grad;
    int64_t row_stride, member_stride, rows, chunk;
    float *d[MAX_LAYERS]; /* (groups, chunk, width): gradients of the hidden layers' matrix products */
    float *dw[MAX_LAYERS], *db[MAX_LAYERS];
    float *dgain[MAX_LAYERS], *dshift[MAX_LAYERS]; /* (groups, parts, width): sums of each block of a chunk */
    int64_t parts;
    float *dx; /* (groups, rows, in), or none */
    int weights; /* whether the parameters' gradients are wanted */
    int add;     /* to what their arrays hold */
    int64_t block, blocks, pieces; /* where threads share a network: rows of a chunk, shares of the weights */
    int64_t r0, n;                 /* the chunk in hand */
} Pass;

/* Gradients of n rows from r0 on through all layers, from the output down; `from` is where their chunk begins, `part`
 * their number in it. LayerNorm's own gradients need values that are overwritten on the way, so they are summed here. */
static void descend(const Pass *p, int64_t g, int64_t from, int64_t r0, int64_t n, int64_t part) {
    const Net *net = p->net;
    int64_t last = net->layers - 1, out = net->dims[last + 1], k = home(net, g);
    const float *d = p->grad + (g * p->rows + r0) * out;
    for (int64_t l = last; l >= 1; l--) {
        int64_t in = net->dims[l], width = net->dims[l + 1], at = g * p->rows + r0;
        float *below = p->d[l - 1] + (g * p->chunk + r0 - from) * in;
        const float *w = net->w[l] + k * in * width, *h = p->s.h[l - 1] + at * in;
        if (width == 1) {
            one_back(d, w, h, below, n, in);
        } else {
            gemm_bt(net->half && l < last, (int)n, (int)width, (int)in, d, w, net->turned[l], below, (int)in);
            relu_back(below, h, n * in);
        }
        if (net->layer_norm) {
            const float *norm = p->s.norm[l - 1] + at * in;
            if (p->weights) {
                column_sum(below, p->dshift[l - 1] + (g * p->parts + part) * in, n, in, 1);
                column_dot(below, norm, p->dgain[l - 1] + (g * p->parts + part) * in, n, in);
            }
            norm_back(below, norm, p->s.rstd[l - 1] + at, net->gain[l - 1] + k * in, n, in);
        }
        d = below;
    }
    if (p->dx) {
        int64_t in = net->dims[0], width = net->dims[1];
        gemm_bt((int)net->half, (int)n, (int)width, (int)in, d, net->w[0] + k * in * width, net->turned[0],
                p->dx + (g * p->rows + r0) * in, (int)in);
    }
}

/* Gradients of rows i0.. of layer l's weights, and of its bias with the first of them, over n rows of data. */
static void collect(const Pass *p, int64_t g, int64_t l, int64_t i0, int64_t count, int64_t r0, int64_t n) {
    const Net *net = p->net;
    int64_t in = net->dims[l], width = net->dims[l + 1], last = net->layers - 1, at = g * p->rows + r0;
    const float *d = l == last ? p->grad + at * width : p->d[l] + g * p->chunk * width;
    const float *h = l == 0 ? p->x + (g / net->used) * p->member_stride + r0 * p->row_stride : p->s.h[l - 1] + at * in;
    int64_t stride = l == 0 ? p->row_stride : in;
    float *dw = p->dw[l] + (g * in + i0) * width;
    int add = p->add || r0 > 0;
    if (width == 1) {
        if (!add) memset(dw, 0, (size_t)count * sizeof(float));
        one_weights(d, h + i0, stride, dw, n, count);
    } else {
        gemm_at(net->half && l < last, (int)n, (int)width, (int)count, h + i0, (int)stride, d, dw, add);
    }
    if (i0 == 0) column_sum(d, p->db[l] + g * width, n, width, add);
}

/* A network from end to end. */
static void whole_task(void *argument, int64_t g) {
    const Pass *p = argument;
    for (int64_t r0 = 0; r0 < p->rows; r0 += p->chunk) {
        int64_t n = p->rows - r0 < p->chunk ? p->rows - r0 : p->chunk;
        descend(p, g, r0, r0, n, 0);
        for (int64_t l = 0; p->weights && l < p->net->layers; l++) collect(p, g, l, 0, p->net->dims[l], r0, n);
    }
}

/* A block of the chunk's rows. */
static void descend_task(void *argument, int64_t t) {
    const Pass *p = argument;
    int64_t at = (t % p->blocks) * p->block, left = p->n - at;
    descend(p, t / p->blocks, p->r0, p->r0 + at, left < p->block ? left : p->block, t % p->blocks);
}

/* A share of every layer's weights. */
static void collect_task(void *argument, int64_t t) {
    const Pass *p = argument;
    for (int64_t l = 0; l < p->net->layers; l++) {
        int64_t in = p->net->dims[l], share = (in + p->pieces - 1) / p->pieces, i0 = (t % p->pieces) * share;
        if (i0 < in) collect(p, t / p->pieces, l, i0, in - i0 < share ? in - i0 : share, p->r0, p->n);
    }
}

/* Backward pass. grad (groups, rows, out) is the gradient of the output; dw, db, dgain and dshift (as the parameters)
 * are written, or with `add` added to, unless dw is null; dx (groups, rows, in) unless null: the copies of a member are to be summed. */
void o2o_backward(const Net *net, const float *x, int64_t row_stride, int64_t member_stride, int64_t rows,
                  float *saved, const float *grad, float *scratch, float **dw, float **db, float **dgain,
                  float **dshift, float *dx, int add, int threads) {
    Pass p = {.net = net, .s = layout(net, saved, rows), .x = x, .grad = grad, .row_stride = row_stride,
              .member_stride = member_stride, .rows = rows, .dx = dx, .weights = dw != 0, .add = add};
    int64_t groups = net->members * net->used, layers = net->layers;
    p.chunk = rows < CHUNK ? rows : CHUNK;
    if (threads < 1) threads = 1;
    int alone = groups % threads == 0 || groups >= 4 * threads; /* a network a thread: nobody waits */
    int64_t block = BLOCK;
    while (block > MIN_BLOCK && groups * ((p.chunk + block - 1) / block) < threads) block /= 2;
    p.parts = alone ? 1 : (p.chunk + block - 1) / block;
    for (int64_t l = 0; l < layers; l++) {
        if (dw) {
            p.dw[l] = dw[l];
            p.db[l] = db[l];
        }
        if (l == layers - 1) break;
        int64_t width = net->dims[l + 1], sums = groups * p.parts * width;
        p.d[l] = scratch;
        scratch += groups * p.chunk * width;
        if (dw && net->layer_norm) {
            p.dgain[l] = alone ? dgain[l] : scratch;
            p.dshift[l] = alone ? dshift[l] : scratch + sums;
            if (!alone) scratch += 2 * sums;
            if (alone && add) continue;
            memset(p.dgain[l], 0, (size_t)sums * sizeof(float));
            memset(p.dshift[l], 0, (size_t)sums * sizeof(float));
        }
    }
    if (alone) {
        share(threads, groups, whole_task, &p);
        return;
    }
    /* Fewer networks than threads: share the rows on the way down, then the rows of the weights. */
    p.block = block;
    p.pieces = (threads + groups - 1) / groups;
    for (p.r0 = 0; p.r0 < rows; p.r0 += p.chunk) {
        p.n = rows - p.r0 < p.chunk ? rows - p.r0 : p.chunk;
        p.blocks = (p.n + block - 1) / block;
        share(threads, groups * p.blocks, descend_task, &p);
        if (p.weights) share(threads, groups * p.pieces, collect_task, &p);
    }
    if (!p.weights || !net->layer_norm) return;
    for (int64_t l = 0; l < layers - 1; l++) {
        int64_t width = net->dims[l + 1];
        for (int64_t g = 0; g < groups; g++) {
            column_sum(p.dgain[l] + g * p.parts * width, dgain[l] + g * width, p.parts, width, add);
            column_sum(p.dshift[l] + g * p.parts * width, dshift[l] + g * width, p.parts, width, add);
        }
    }
}

typedef struct {
    float *parameter, *first, *second, *target; /* (members, size); target may be null */
    const float *grad;                          /* may be null: zero */
    const float *rate, *root, *tau;             /* (members,) */
    int64_t size;
} Slot;

#define PIECE 16384 /* elements that one thread takes at a time */

typedef struct {
    const Slot *slots;
    int64_t count, members;
    float beta1, beta2, eps;
} Adam;

static int64_t pieces_of(const Slot *slot) { return (slot->size + PIECE - 1) / PIECE; }

static void adam_piece(const Adam *adam, const Slot *slot, int64_t m, int64_t piece) {
    int64_t from = m * slot->size + piece * PIECE, end = (m + 1) * slot->size;
    int64_t to = from + PIECE < end ? from + PIECE : end;
    float step = slot->rate[m], inverse = 1.0f / slot->root[m], tau = slot->tau[m];
    float beta1 = adam->beta1, beta2 = adam->beta2, eps = adam->eps;
    float *restrict p = slot->parameter, *restrict a = slot->first, *restrict v = slot->second;
    float *restrict target = slot->target;
    const float *restrict g = slot->grad;
    if (step >= 0.0f) {
        if (g)
            for (int64_t i = from; i < to; i++) {
                a[i] += (1.0f - beta1) * (g[i] - a[i]);
                v[i] = beta2 * v[i] + (1.0f - beta2) * g[i] * g[i];
                p[i] -= step * a[i] / (sqrtf(v[i]) * inverse + eps);
            }
        else
            for (int64_t i = from; i < to; i++) {
                a[i] -= (1.0f - beta1) * a[i];
                v[i] *= beta2;
                p[i] -= step * a[i] / (sqrtf(v[i]) * inverse + eps);
            }
    }
    if (target && tau >= 0.0f)
        for (int64_t i = from; i < to; i++) target[i] += tau * (p[i] - target[i]);
}

static void adam_task(void *argument, int64_t t) {
    const Adam *adam = argument;
    for (int64_t k = 0; k < adam->count; k++) {
        int64_t pieces = pieces_of(adam->slots + k), all = adam->members * pieces;
        if (t < all) {
            adam_piece(adam, adam->slots + k, t / pieces, t % pieces);
            return;
        }
        t -= all;
    }
}

/* Adam over `slots`, then the targets' Polyak step, in one pass over memory. Per member: rate is the learning rate over
 * the first moment's bias correction, root the square root of the second's, tau the Polyak rate. A member whose rate is
 * negative is not stepped at all; a negative tau leaves the target alone. */
void o2o_adam(const Slot *slots, int64_t count, int64_t members, float beta1, float beta2, float eps, int threads) {
    Adam adam = {.slots = slots, .count = count, .members = members, .beta1 = beta1, .beta2 = beta2, .eps = eps};
    int64_t tasks = 0;
    for (int64_t k = 0; k < count; k++) tasks += members * pieces_of(slots + k);
    share(threads, tasks, adam_task, &adam);
}

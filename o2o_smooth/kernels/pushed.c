/* CQL's soft maximum over actions tried in each state, with its gradient, a few states at a time: forward, softmax and
 * backward follow each other while their rows are in the cache. What a pass over all rows at once would leave behind for
 * its way back (rows x layers x width floats, tens of megabytes a critic) is never in memory.
 *
 * The gradient is that of the mean over states; what comes from above is one number a network, which scales it afterwards
 * (o2o_pushed_back).
 */
#include <stdatomic.h>

typedef struct {
    const Net *net;
    const float *obs, *action, *log_density, *bound;
    int64_t row_stride, member_stride, dim, bounded, rows, tried;
    int64_t states, chunks, parts; /* states of a chunk, chunks of a network, and shares of them */
    float *room, *gradient, *sums;
    _Atomic int64_t next; /* share that nobody has taken */
} Pushed;

static int64_t states_of(int64_t rows, int64_t tried) {
    int64_t fit = tried >= CHUNK ? 1 : CHUNK / tried;
    return rows < fit ? rows : fit;
}

static int64_t lanes_of(const Net *net, int64_t parts, int threads) {
    int64_t units = net->members * net->used * parts;
    return threads < 1 ? 1 : threads < units ? threads : units;
}

/* Into how many shares a network's states are cut, so that hardly a thread waits at the end: the fewest, since each needs
 * a gradient of its own. */
int64_t o2o_pushed_parts(const Net *net, int64_t rows, int64_t tried, int threads) {
    int64_t groups = net->members * net->used, states = states_of(rows, tried), chunks = (rows + states - 1) / states;
    for (int64_t parts = 1, units = groups; parts < chunks && units < 4 * threads; parts++, units += groups) {
        int64_t turns = (units + threads - 1) / threads;
        if (10 * units >= 9 * turns * threads) return parts;
    }
    return least_of(chunks, (4 * threads + groups - 1) / groups);
}

static int64_t parameters_of(const Net *net) {
    int64_t sum = 0;
    for (int64_t l = 0; l < net->layers; l++) {
        sum += (net->dims[l] + 1) * net->dims[l + 1];
        if (net->layer_norm && l < net->layers - 1) sum += 2 * net->dims[l + 1];
    }
    return (sum + 15) / 16 * 16;
}

/* Floats of the gradients of all shares. */
int64_t o2o_pushed_gradient(const Net *net, int64_t parts) {
    return net->members * net->used * parts * parameters_of(net);
}

static Net alone_of(const Net *net, int64_t g) {
    Net one = *net;
    int64_t k = home(net, g);
    one.members = one.copies = one.used = 1;
    for (int64_t l = 0; l < net->layers; l++) {
        int64_t width = net->dims[l + 1];
        one.w[l] += k * net->dims[l] * width;
        one.b[l] += k * width;
        if (net->layer_norm && l < net->layers - 1) {
            one.gain[l] += k * width;
            one.shift[l] += k * width;
        }
    }
    return one;
}

/* Pack the weights of the layers between, which many products need, if `to` is given; words that they take. */
static int64_t make_ready(Net *net, uint32_t *to) {
    int64_t words = 0;
    for (int64_t l = 1; net->half && l < net->layers - 1; l++) {
        int64_t in = net->dims[l], width = net->dims[l + 1];
        int64_t forth = half_ready_words(in, width), back = half_ready_words(width, in);
        if (to && forth) half_ready(in, width, (Matrix){net->w[l], width, 1}, net->ready[l] = to + words);
        if (to && back) half_ready(width, in, (Matrix){net->w[l], 1, width}, net->turned[l] = to + words + forth);
        words += forth + back;
    }
    return words;
}

/* Floats that a thread works with: packed weights, the states' share of the first layer, actions,
 * activations, their gradients, values and theirs. */
static int64_t room_of(const Net *net, int64_t states, int64_t tried, int64_t dim) {
    Net one = *net;
    one.members = one.copies = one.used = 1;
    int64_t n = states * tried, floats = make_ready(&one, 0) + states * net->dims[1];
    return (floats + n * (dim + 2 + hidden_sum(net)) + o2o_saved(&one, n) + 15) / 16 * 16;
}

/* Floats of workspace. */
int64_t o2o_pushed_room(const Net *net, int64_t rows, int64_t tried, int64_t dim, int64_t parts, int threads) {
    int64_t each = room_of(net, states_of(rows, tried), tried, dim);
    return lanes_of(net, parts, threads) * each + net->members * net->used * parts;
}

/* Where a share's gradients of a layer lie. */
static void lay_out(const Net *net, float *at, float **dw, float **db, float **dgain, float **dshift) {
    for (int64_t l = 0; l < net->layers; l++) {
        int64_t width = net->dims[l + 1];
        dw[l] = at;
        db[l] = at += net->dims[l] * width;
        at += width;
        if (net->layer_norm && l < net->layers - 1) {
            dgain[l] = at;
            dshift[l] = at += width;
            at += width;
        }
    }
}

/* Sum over states of log sum_j exp(v_j - log density_j), v the values q or, of the bounded actions, max(q, bound); d is
 * the gradient of q of the mean over all rows. */
static float soft_maxima(const Pushed *p, int64_t m, int64_t b0, int64_t states, const float *q, float *d) {
    float total = 0.0f, scale = 1.0f / (float)p->rows;
    for (int64_t b = b0; b < b0 + states; b++, q += p->tried, d += p->tried) {
        const float *density = p->log_density + m * p->tried * p->rows + b;
        float top = -INFINITY, sum = 0.0f;
        for (int64_t j = 0; j < p->tried; j++) {
            float v = q[j], low = p->bound && j >= p->bounded ? p->bound[m * p->rows + b] : -INFINITY;
            v = (v < low || low != low ? low : v) - density[j * p->rows];
            top = v > top ? v : top; /* no number comes back with the sum */
            d[j] = v;
        }
        for (int64_t j = 0; j < p->tried; j++) {
            d[j] = exp_(d[j] - top);
            sum += d[j];
        }
        for (int64_t j = 0; j < p->tried; j++) {
            float low = p->bound && j >= p->bounded ? p->bound[m * p->rows + b] : -INFINITY;
            float through = q[j] < low ? 0.0f : q[j] == low ? 0.5f : 1.0f; /* equal: half of it, as torch has it */
            d[j] *= through * scale / sum;
        }
        total += top + log_(sum);
    }
    return total;
}

/* The first layer before its bias: every state's share once, in `shares`, to which the actions' is added. */
static void enter(const Net *net, const Saved *s, const float *obs, int64_t row_stride, int64_t obs_dim, const float *x,
                  int64_t states, int64_t tried, float *shares) {
    int64_t width = net->dims[1], dim = net->dims[0] - obs_dim;
    gemm((int)net->half, (int)states, (int)width, (int)obs_dim, obs, (int)row_stride, net->w[0], 0, shares);
    gemm((int)net->half, (int)(states * tried), (int)width, (int)dim, x, (int)dim, net->w[0] + obs_dim * width, 0,
         s->h[0]);
    for (int64_t b = 0; b < states; b++, shares += width) {
        for (int64_t j = 0; j < width; j++) shares[j] += net->b[0][j];
        activate(net, s, 0, 0, b * tried, tried, shares, s->h[0] + b * tried * width);
    }
}

/* The first layer's gradients; `shares` takes the sums over each state's actions. */
static void leave(const Net *net, const Pass *pass, const float *obs, int64_t row_stride, int64_t obs_dim, int64_t states,
                  int64_t tried, float *shares) {
    int64_t width = net->dims[1], dim = net->dims[0] - obs_dim;
    for (int64_t b = 0; b < states; b++)
        column_sum(pass->d[0] + b * tried * width, shares + b * width, tried, width, 0);
    column_sum(shares, pass->db[0], states, width, pass->add);
    gemm_at((int)net->half, (int)states, (int)width, (int)obs_dim, obs, (int)row_stride, shares, pass->dw[0], pass->add);
    gemm_at((int)net->half, (int)(states * tried), (int)width, (int)dim, pass->x, (int)dim, pass->d[0],
            pass->dw[0] + obs_dim * width, pass->add);
}

static void pushed_share(const Pushed *p, int64_t u, float *room) {
    int64_t g = u / p->parts, part = u % p->parts, m = g / p->net->used, dim = p->dim;
    Net net = alone_of(p->net, g);
    int64_t last = net.layers - 1, obs_dim = net.dims[0] - dim;
    int64_t begin = p->chunks * part / p->parts, end = p->chunks * (part + 1) / p->parts;
    Pass pass = {.net = &net, .parts = 1, .weights = 1};
    lay_out(&net, p->gradient + u * parameters_of(&net), pass.dw, pass.db, pass.dgain, pass.dshift);
    for (int64_t l = 0; net.layer_norm && l < last; l++) {
        memset(pass.dgain[l], 0, (size_t)net.dims[l + 1] * sizeof(float));
        memset(pass.dshift[l], 0, (size_t)net.dims[l + 1] * sizeof(float));
    }
    float sum = 0.0f;
    room += make_ready(&net, (uint32_t *)room);
    for (int64_t c = begin; c < end; c++) {
        int64_t b0 = c * p->states, states = p->rows - b0 < p->states ? p->rows - b0 : p->states;
        int64_t n = states * p->tried;
        const float *obs = p->obs + m * p->member_stride + b0 * p->row_stride;
        float *shares = room, *x = shares + states * net.dims[1], *q = x + n * dim, *d = q + n, *next = d + n;
        for (int64_t l = 0; l < last; l++) {
            pass.d[l] = next;
            next += n * net.dims[l + 1];
        }
        pass.x = x;
        pass.grad = d;
        pass.s = layout(&net, next, n);
        pass.rows = pass.chunk = n;
        pass.add = c > begin;
        for (int64_t i = 0; i < n; i++) {
            int64_t at = (m * p->tried + i % p->tried) * p->rows + b0 + i / p->tried;
            memcpy(x + i * dim, p->action + at * dim, (size_t)dim * sizeof(float));
        }
        enter(&net, &pass.s, obs, p->row_stride, obs_dim, x, states, p->tried, shares);
        for (int64_t r0 = 0; r0 < n; r0 += BLOCK)
            forward_block(&net, &pass.s, 0, 1, r0, n - r0 < BLOCK ? n - r0 : BLOCK, n, pass.s.h[0] + r0 * net.dims[1],
                          net.dims[1], q, 0);
        sum += soft_maxima(p, m, b0, states, q, d);
        descend(&pass, 0, 0, 0, n, 0);
        leave(&net, &pass, obs, p->row_stride, obs_dim, states, p->tried, shares);
        for (int64_t l = 1; l < net.layers; l++) collect(&pass, 0, l, 0, net.dims[l], 0, n);
    }
    p->sums[u] = sum;
}

static void pushed_task(void *argument, int64_t lane) {
    Pushed *p = argument;
    int64_t units = p->net->members * p->net->used * p->parts, u;
    float *room = p->room + lane * room_of(p->net, p->states, p->tried, p->dim);
    while ((u = atomic_fetch_add(&p->next, 1)) < units) pushed_share(p, u, room);
}

/* out (groups,): the mean over states of log sum_j exp(v_j - log density_j), v the networks' values of action j in the
 * state, or, of actions from the `bounded`-th on, max(value, bound) where there are bounds.
 *
 * obs (members, rows, in - dim), whose rows may lie apart; action (members, tried, rows, dim), log_density (members,
 * tried, rows), bound (members, rows) or none. `gradient` takes that of every share (o2o_pushed_gradient). */
void o2o_pushed(const Net *net, const float *obs, int64_t row_stride, int64_t member_stride, const float *action,
                int64_t dim, const float *log_density, const float *bound, int64_t bounded, int64_t rows, int64_t tried,
                int64_t parts, float *room, float *gradient, float *out, int threads) {
    int64_t states = states_of(rows, tried), groups = net->members * net->used;
    int64_t lanes = lanes_of(net, parts, threads);
    Pushed p = {.net = net, .obs = obs, .action = action, .log_density = log_density, .bound = bound,
                .row_stride = row_stride, .member_stride = member_stride, .dim = dim, .bounded = bounded, .rows = rows,
                .tried = tried, .states = states, .chunks = (rows + states - 1) / states, .parts = parts, .room = room,
                .gradient = gradient, .sums = room + lanes * room_of(net, states, tried, dim)};
    share(threads, lanes, pushed_task, &p);
    for (int64_t g = 0; g < groups; g++) {
        float sum = 0.0f;
        for (int64_t k = 0; k < parts; k++) sum += p.sums[g * parts + k];
        out[g] = sum / (float)rows;
    }
}

typedef struct {
    const Net *net;
    const float *gradient, *above;
    int64_t parts;
    float **to[4];
    int add;
} Return;

#define SLICES 8 /* of a network, that threads share */

static void return_task(void *argument, int64_t t) {
    const Return *r = argument;
    const Net *net = r->net;
    int64_t g = t / SLICES, k = t % SLICES, each = parameters_of(net);
    float *from[4][MAX_LAYERS];
    lay_out(net, (float *)r->gradient + g * r->parts * each, from[0], from[1], from[2], from[3]);
    for (int kind = 0; kind < 4; kind++)
        for (int64_t l = 0; l < net->layers; l++) {
            if (kind > 1 && !(net->layer_norm && l < net->layers - 1)) continue;
            int64_t size = net->dims[l + 1] * (kind ? 1 : net->dims[l]), end = size * (k + 1) / SLICES;
            float *restrict to = r->to[kind][l] + g * size, scale = r->above[g];
            for (int64_t part = 0; part < r->parts; part++) {
                const float *restrict d = from[kind][l] + part * each;
                if (r->add || part)
                    for (int64_t i = size * k / SLICES; i < end; i++) to[i] += scale * d[i];
                else
                    for (int64_t i = size * k / SLICES; i < end; i++) to[i] = scale * d[i];
            }
        }
}

/* Gradients of the parameters, written or added to: those of o2o_pushed times `above` (groups,). */
void o2o_pushed_back(const Net *net, const float *gradient, int64_t parts, const float *above, float **dw, float **db,
                     float **dgain, float **dshift, int add, int threads) {
    Return r = {.net = net, .gradient = gradient, .above = above, .parts = parts, .to = {dw, db, dgain, dshift},
                .add = add};
    share(threads, net->members * net->used * SLICES, return_task, &r);
}

/* From a buffer's packed rows to what the losses read: drawing row numbers, and gathering and encoding the rows.
 *
 * Between two updates everything lies cold in the caches, so what counts is how little is touched on the way: a call
 * here is a tenth of the tensor operations that it stands for.
 */
#include <stdint.h>

#define AHEAD 16 /* rows that are on their way from memory while one is encoded; they lie anywhere */
#define MT_SIZE 624
#define MT_SHIFT 397

/* draws.mix64 of three values. */
static uint64_t mix64(uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t values[3] = {a, b, c};
    uint64_t state = 0x9E3779B97F4A7C15u;
    for (int i = 0; i < 3; i++) {
        state += values[i] * 0xBF58476D1CE4E5B9u + 0x9E3779B97F4A7C15u;
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
        state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
        state ^= state >> 31;
    }
    return state;
}

static uint32_t mixed(uint32_t u, uint32_t v) { return (u & 0x80000000u) | (v & 0x7fffffffu); }

static uint32_t twist(uint32_t u, uint32_t v) { return (mixed(u, v) >> 1) ^ ((v & 1) ? 0x9908b0dfu : 0); }

/* The state of the next numbers, as many of the 624 as are needed. Source: Matsumoto & Nishimura 1998 (doi
 * 10.1145/272991.272995). */
static void next_state(uint32_t *s, int64_t needed) {
    int i = 0, n = needed < MT_SIZE - 1 ? (int)needed : MT_SIZE - 1;
    for (; i < MT_SIZE - MT_SHIFT && i < n; i++) s[i] = s[i + MT_SHIFT] ^ twist(s[i], s[i + 1]);
    for (; i < n; i++) s[i] = s[i + MT_SHIFT - MT_SIZE] ^ twist(s[i], s[i + 1]);
    if (needed >= MT_SIZE) s[MT_SIZE - 1] = s[MT_SHIFT - 1] ^ twist(s[MT_SIZE - 1], s[0]);
}

/* out (steps, members, count): integers in [0, high), high < 2^28; the numbers of torch's CPU generator, seeded for each
 * member with the hash of (its seed, name, step) as `Draws` does. */
void o2o_integers(const uint64_t *seeds, uint64_t name, uint64_t step, int64_t steps, int64_t members, int64_t count,
                  uint32_t high, int64_t *out) {
    uint32_t s[MT_SIZE];
    for (int64_t draw = 0; draw < steps * members; draw++) {
        s[0] = (uint32_t)(mix64(seeds[draw % members], name, step + (uint64_t)(draw / members)) >> 1);
        for (uint32_t i = 1; i < MT_SIZE; i++) s[i] = 1812433253u * (s[i - 1] ^ (s[i - 1] >> 30)) + i;
        int at = MT_SIZE;
        for (int64_t k = 0; k < count; k++) {
            if (at == MT_SIZE) {
                next_state(s, count - k);
                at = 0;
            }
            uint32_t y = s[at++];
            y ^= y >> 11;
            y ^= (y << 7) & 0x9d2c5680u;
            y ^= (y << 15) & 0xefc60000u;
            y ^= y >> 18;
            *out++ = y % high;
        }
    }
}

typedef struct {
    const float *rows;   /* packed rows: obs, next_obs, action, reward, terminated, truncated, mc_return */
    const int64_t *gaps, *shift; /* rows that are passed over (data.holdout.RowMap): where, and by how many in all */
    int64_t holes;
    int64_t ring;        /* rows between the rings of two members; 0: all share one */
    int64_t size;        /* row numbers that there are */
    int64_t obs_dim, dim;
    const float *mean, *std, *center, *half; /* (O,), (O,), (A,), (A,) */
    float limit, reward_scale, reward_shift;
    int64_t mapped;      /* whether rewards are scaled and shifted */
} Rows;

/* Where a member's row lies; null where there is no row of that number. */
static const float *find(const Rows *from, int64_t at, int64_t member) {
    if (at < 0 || at >= from->size) return 0;
    if (from->holes) {
        int64_t low = 0, high = from->holes; /* how many gaps lie at or before it */
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (from->gaps[middle] <= at)
                low = middle + 1;
            else
                high = middle;
        }
        at += from->shift[low];
    }
    return from->rows + (at + member * from->ring) * (2 * from->obs_dim + from->dim + 4);
}

typedef struct {
    const Rows *from;
    const int64_t *index;
    int64_t count, all, share; /* rows of a member, of all members, and of a task */
    float *joined, *following, *rest;
    _Atomic int64_t bad; /* the first place in `index` that is no row number; all where there is none */
} Gather;

static void gather_task(void *argument, int64_t t) {
    Gather *g = argument;
    const Rows *from = g->from;
    int64_t obs_dim = from->obs_dim, dim = from->dim, width = 2 * obs_dim + dim + 4, all = g->all;
    int64_t first = t * g->share, end = first + g->share < all ? first + g->share : all;
    const float *coming[AHEAD];
    const float *mean = from->mean, *std = from->std, *center = from->center, *half = from->half;
    float limit = from->limit;
    for (int64_t k = first; k < end + AHEAD; k++) {
        int64_t i = k - AHEAD; /* the one to encode; number k is looked up */
        const float *restrict x = coming[k % AHEAD];
        if (k < end) {
            const float *row = find(from, g->index[k], k / g->count);
            if (!row) {
                int64_t bad = g->bad;
                while (k < bad && !atomic_compare_exchange_weak(&g->bad, &bad, k)) {}
                return;
            }
            for (int64_t j = 0; j < width; j += 16) __builtin_prefetch(row + j);
            coming[k % AHEAD] = row;
        }
        if (i < first) continue;
        const float *restrict y = x + obs_dim, *restrict a = y + obs_dim;
        float *restrict to = g->joined + i * (obs_dim + dim), *restrict next = g->following + i * obs_dim;
        for (int64_t j = 0; j < obs_dim; j++) {
            to[j] = (x[j] - mean[j]) / std[j];
            next[j] = (y[j] - mean[j]) / std[j];
        }
        for (int64_t j = 0; j < dim; j++) to[obs_dim + j] = clamp_((a[j] - center[j]) / half[j], -limit, limit);
        for (int64_t j = 0; j < 4; j++) g->rest[j * all + i] = a[dim + j];
    }
    if (from->mapped)
        for (int64_t i = first; i < end; i++) {
            volatile float product = g->rest[i] * from->reward_scale; /* rounded, as torch does, and not fused */
            g->rest[i] = product + from->reward_shift;
        }
}

#define TOGETHER 64 /* rows that are worth a thread's waking */

/* Returns the first place in `index` that is no row number, -1 where all are.
 * index (members, count): row numbers -> obs and action side by side (M, B, O + A), next_obs (M, B, O), encoded as
 * o2o_encode does, and reward, terminated, truncated, mc_return (M, B) each, one after the other. */
int64_t o2o_rows(const Rows *from, const int64_t *index, int64_t members, int64_t count, float *joined, float *following,
              float *rest, int threads) {
    int64_t all = members * count, tasks = all / TOGETHER < threads ? all / TOGETHER : threads;
    if (tasks < 1) tasks = 1;
    Gather g = {.from = from, .index = index, .count = count, .all = all, .share = (all + tasks - 1) / tasks,
                .joined = joined, .following = following, .rest = rest};
    g.bad = all;
    share(threads, tasks, gather_task, &g);
    return g.bad < all ? g.bad : -1;
}

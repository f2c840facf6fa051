/* Matrix products of float32 matrices whose elements are rounded to bfloat16 on the way, with sums in float32.
 *
 * Three ways, the same numbers but for the order of the sums (and DOTS takes what is below 1e-38 for zero):
 *   DOTS     the processor multiplies pairs of bfloat16 (AVX-512 BF16),
 *   BLAS     the BLAS does, which knows the processor's tiles (AMX),
 *   ROUNDED  neither can: operands are rounded and multiplied in float32, no faster than float32 itself.
 */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAVE_DOTS 1
#else
#define HAVE_DOTS 0
#endif

#define MAX_ROWS 256   /* of the product that are packed at a time, */
#define MAX_DEPTH 512  /* terms of a sum, */
#define PANEL 64       /* columns, with DOTS */
#define MAX_COLUMNS 256 /* and with the others */

typedef uint16_t half_t; /* bfloat16: the upper half of a float32 */
typedef void (*sgemm_t)(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                        const int *, const float *, const int *, const float *, float *, const int *);
typedef void (*hgemm_t)(const char *, const char *, const int *, const int *, const int *, const float *, const half_t *,
                        const int *, const half_t *, const int *, const float *, float *, const int *);

static sgemm_t sgemm_; /* float32 */
static hgemm_t hgemm_; /* bfloat16 operands, float32 result; may be absent */

enum { ROUNDED, DOTS, BLAS };
static int way = HAVE_DOTS ? DOTS : ROUNDED;

/* Choose a way, if it is there; returns the one in use. */
int o2o_half_way(int wanted) {
    if (wanted == ROUNDED || (wanted == DOTS && HAVE_DOTS) || (wanted == BLAS && hgemm_)) way = wanted;
    return way;
}

/* A matrix: element (i, j) at data[i * row + j * column], one of the two steps is 1. */
typedef struct {
    const float *data;
    int64_t row, column;
} Matrix;

static inline half_t narrow(float x) { /* to the nearest, ties to even; NaN stays NaN */
    union {
        float f;
        uint32_t i;
    } u = {.f = x};
    uint32_t rounded = (u.i + 0x7fffu + ((u.i >> 16) & 1u)) >> 16;
    return (half_t)(x != x ? 0x7fc0u : rounded);
}

static inline float rounded(float x) {
    union {
        uint32_t i;
        float f;
    } u = {.i = (uint32_t)narrow(x) << 16};
    return u.f;
}

static inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* Memory of a thread for operands in hand. */
static __thread struct {
    float left[MAX_ROWS * MAX_DEPTH], right[MAX_DEPTH * MAX_COLUMNS];
} packed __attribute__((aligned(64)));

/* c (m, n) = or += the product of blocks that lie packed, by a BLAS; `across`: packed by columns. */
static void by_blas(int m, int n, int k, int left_across, int right_across, float *c, int64_t ldc, int add) {
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    const char *a = left_across ? "T" : "N", *b = right_across ? "T" : "N"; /* as a BLAS sees it, by columns */
    int lda = left_across ? m : k, ldb = right_across ? k : n, stride = (int)ldc;
    if (way == BLAS)
        hgemm_(b, a, &n, &m, &k, &one, (const half_t *)packed.right, &ldb, (const half_t *)packed.left, &lda, &beta, c,
               &stride);
    else
        sgemm_(b, a, &n, &m, &k, &one, packed.right, &ldb, packed.left, &lda, &beta, c, &stride);
}

/* A block of a matrix, rounded, into `to`; by columns where those lie side by side in the matrix. */
static int pack_plain(Matrix a, int64_t rows, int64_t columns, float *to) {
    int across = a.column != 1;
    int64_t lines = across ? columns : rows, length = across ? rows : columns, step = across ? a.column : a.row;
    half_t *halves = (half_t *)to;
    for (int64_t i = 0; i < lines; i++) {
        const float *from = a.data + i * step;
        if (way == BLAS)
            for (int64_t j = 0; j < length; j++) halves[i * length + j] = narrow(from[j]);
        else
            for (int64_t j = 0; j < length; j++) to[i * length + j] = rounded(from[j]);
    }
    return across;
}

#if HAVE_DOTS
/* A word is two elements that follow each other in a sum. */
#define TALL 6 /* rows of the product in registers: 6 x 4 sums, 4 words of the right side, 1 of the left */

static inline __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

/* 16 words from two lines of floats: the first line's elements are the words' lower halves. */
static inline __m512i words(__m512 lower, __m512 upper) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(lower));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(upper));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* 16 words from 32 floats in a row. */
static inline __m512i words_along(const float *from, int64_t count) {
    __m512 low = _mm512_maskz_loadu_ps(first(count), from), high = _mm512_maskz_loadu_ps(first(count - 16), from + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* Lines whose elements belong to different sums, two lines a word: to[p][j] of `width` words, from lines 2p and 2p + 1. */
static void pack_between(const float *from, int64_t step, int64_t depth, int64_t count, uint32_t *to, int64_t width) {
    for (int64_t p = 0; p < depth; p += 2, from += 2 * step, to += width)
        for (int64_t j = 0; j < count; j += 16) {
            __mmask16 there = first(count - j);
            __m512 a = _mm512_maskz_loadu_ps(there, from + j);
            __m512 b = p + 1 < depth ? _mm512_maskz_loadu_ps(there, from + step + j) : _mm512_setzero_ps();
            _mm512_storeu_si512(to + j, words(a, b));
        }
}

/* Lines that are a sum each: to[i][p] of `width` words. */
static void pack_along(const float *from, int64_t step, int64_t depth, int64_t count, uint32_t *to, int64_t width) {
    for (int64_t i = 0; i < count; i++, from += step, to += width)
        for (int64_t p = 0; p < depth; p += 32) _mm512_storeu_si512(to + p / 2, words_along(from + p, depth - p));
}

static inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Lines that are a sum each, turned: to[p][j] of `width` words. */
static void pack_turned(const float *from, int64_t step, int64_t depth, int64_t count, uint32_t *to, int64_t width) {
    for (int64_t j = 0; j < count; j += 16)
        for (int64_t p = 0; p < depth; p += 32) {
            __m512i r[16];
            for (int64_t i = 0; i < 16; i++)
                r[i] = j + i < count ? words_along(from + (j + i) * step + p, depth - p) : _mm512_setzero_si512();
            transpose16(r);
            int64_t lines = least_of(16, (depth - p + 1) / 2);
            for (int64_t i = 0; i < lines; i++) _mm512_storeu_si512(to + (p / 2 + i) * width + j, r[i]);
        }
}

/* `rows` x 16 `vectors` sums over `depth` words; word (i, p) of the left side at left[i * row + p * column]. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, int64_t depth,
                                                       const uint32_t *left, int64_t row, int64_t column,
                                                       const uint32_t *right, float *c, int64_t ldc, int64_t columns,
                                                       int add) {
    __m512 sum[TALL][4];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++)
            sum[i][v] = add ? _mm512_maskz_loadu_ps(first(columns - 16 * v), c + i * ldc + 16 * v) : _mm512_setzero_ps();
    for (int64_t p = 0; p < depth; p++, left += column, right += PANEL) {
        __m512bh b[4];
        for (int v = 0; v < vectors; v++) b[v] = (__m512bh)_mm512_load_si512(right + 16 * v);
        for (int i = 0; i < rows; i++) {
            __m512bh a = (__m512bh)_mm512_set1_epi32((int)left[i * row]);
            for (int v = 0; v < vectors; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], a, b[v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++)
            _mm512_mask_storeu_ps(c + i * ldc + 16 * v, first(columns - 16 * v), sum[i][v]);
}

#define ARGUMENTS int64_t depth, const uint32_t *left, int64_t row, int64_t column, const uint32_t *right, float *c, \
                  int64_t ldc, int64_t columns, int add
#define ONE(rows, vectors) \
    static void tile_##rows##_##vectors(ARGUMENTS) { \
        tile(rows, vectors, depth, left, row, column, right, c, ldc, columns, add); \
    }
ONE(6, 4) ONE(4, 4) ONE(2, 4) ONE(1, 4) ONE(6, 2) ONE(4, 2) ONE(2, 2) ONE(1, 2)
typedef void (*tile_t)(ARGUMENTS);
static const struct {
    int64_t rows;
    tile_t narrow, wide; /* up to 32 columns, up to PANEL */
} TILES[] = {{6, tile_6_2, tile_6_4}, {4, tile_4_2, tile_4_4}, {2, tile_2_2, tile_2_4}, {1, tile_1_2, tile_1_4}};

/* PANEL columns or fewer of a right side. */
static void pack_panel(Matrix b, int64_t depth, int64_t columns, uint32_t *to) {
    if (b.column == 1)
        pack_between(b.data, b.row, depth, columns, to, PANEL);
    else
        pack_turned(b.data, b.column, depth, columns, to, PANEL);
}

/* Where `ready` (see half_ready) is given, the right side is there. */
static void by_dots(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, const uint32_t *ready, float *c, int64_t ldc,
                    int add) {
    uint32_t *left = (uint32_t *)packed.left, *room = (uint32_t *)packed.right;
    int64_t depth = (k + 1) / 2, row, column;
    if (a.column == 1) {
        row = (depth + 15) / 16 * 16;
        column = 1;
        pack_along(a.data, a.row, k, m, left, row);
    } else {
        row = 1;
        column = (m + 15) / 16 * 16;
        pack_between(a.data, a.column, k, m, left, column);
    }
    for (int64_t j = 0; j < n; j += PANEL) {
        int64_t columns = least_of(PANEL, n - j), i = 0;
        const uint32_t *right = ready ? ready + j * depth : room;
        if (!ready) pack_panel((Matrix){b.data + j * b.column, b.row, b.column}, k, columns, room);
        for (int64_t t = 0; t < 4; t++)
            for (tile_t each = columns <= 32 ? TILES[t].narrow : TILES[t].wide; i + TILES[t].rows <= m; i += TILES[t].rows)
                each(depth, left + i * row, row, column, right, c + i * ldc + j, ldc, columns, add);
    }
}
#endif

static int64_t panels_width(int64_t n) { return (n + 63) / 64 * 64; }

/* Words of a right side (k, n) that is packed once for many products; 0 where that is not done. */
static int64_t half_ready_words(int64_t k, int64_t n) { return way == DOTS ? (k + 1) / 2 * panels_width(n) : 0; }

/* Pack it: blocks of MAX_DEPTH rows, each in panels. */
static void half_ready(int64_t k, int64_t n, Matrix b, uint32_t *to) {
#if HAVE_DOTS
    for (int64_t p = 0; p < k; p += MAX_DEPTH) {
        int64_t depth = least_of(MAX_DEPTH, k - p), words = (depth + 1) / 2;
        for (int64_t j = 0; j < n; j += PANEL)
            pack_panel((Matrix){b.data + p * b.row + j * b.column, b.row, b.column}, depth, least_of(PANEL, n - j),
                       to + p / 2 * panels_width(n) + j * words);
    }
#endif
}

/* c (m, n), rows `ldc` apart, = or += a (m, k) b (k, n); `ready` is b as half_ready packs it, or none. */
static void half_product(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, const uint32_t *ready, float *c,
                         int64_t ldc, int add) {
    int64_t wide = way == DOTS ? n : MAX_COLUMNS;
    for (int64_t p = 0; p < k; p += MAX_DEPTH)
        for (int64_t i = 0; i < m; i += MAX_ROWS)
            for (int64_t j = 0; j < n; j += wide) {
                Matrix left = a, right = b;
                left.data += i * a.row + p * a.column;
                right.data += p * b.row + j * b.column;
                int64_t rows = least_of(MAX_ROWS, m - i), columns = least_of(wide, n - j);
                int64_t depth = least_of(MAX_DEPTH, k - p);
                float *to = c + i * ldc + j;
#if HAVE_DOTS
                if (way == DOTS) {
                    by_dots(rows, columns, depth, left, right, ready ? ready + p / 2 * panels_width(n) : 0, to, ldc,
                            add || p > 0);
                    continue;
                }
#endif
                int across = pack_plain(left, rows, depth, packed.left);
                by_blas((int)rows, (int)columns, (int)depth, across, pack_plain(right, depth, columns, packed.right),
                        to, ldc, add || p > 0);
            }
}

void o2o_half_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column, const float *b,
                      int64_t b_row, int64_t b_column, float *c, int64_t ldc, int add) {
    half_product(m, n, k, (Matrix){a, a_row, a_column}, (Matrix){b, b_row, b_column}, 0, c, ldc, add);
}

/* One tensor operation on a few hundred numbers, as tapes repeat it (tape.py): out = f(a, b) over a box of up to four
 * axes with strides of their own. torch's way to such an operation costs many times its arithmetic. Each rounds once, so
 * the bits are torch's.
 */
#include <stdint.h>

enum { COPY, NEGATE, ADD, SUBTRACT, MULTIPLY, DIVIDE, SUM };

typedef struct {
    const float *a, *b; /* b: null where the operation takes one operand */
    float *out;         /* overlaps neither of them */
    int64_t operation;
    int64_t n[4], by_a[4], by_b[4], by_out[4]; /* axes, outer first, and the steps along them in floats */
} Small;

#define ALONG(value)                                                             \
    do {                                                                         \
        if (u == 1 && s == 1 && t == 1)                                          \
            for (int64_t i = 0, j = 0, k = 0; i < n; i++, j++, k++) out[k] = value; \
        else if (u == 1 && s == 1 && t == 0)                                     \
            for (int64_t i = 0, k = 0; i < n; i++, k++) {                        \
                enum { j = 0 };                                                  \
                out[k] = value;                                                  \
            }                                                                    \
        else                                                                     \
            for (int64_t x = 0; x < n; x++) {                                    \
                int64_t i = x * s, j = x * t, k = x * u;                         \
                out[k] = value;                                                  \
            }                                                                    \
    } while (0)

static void along(int64_t operation, int64_t n, const float *restrict a, int64_t s, const float *restrict b, int64_t t,
                  float *restrict out, int64_t u) {
    switch (operation) {
    case COPY: ALONG(a[i]); break;
    case NEGATE: ALONG(-a[i]); break;
    case ADD: ALONG(a[i] + b[j]); break;
    case SUBTRACT: ALONG(a[i] - b[j]); break;
    case MULTIPLY: ALONG(a[i] * b[j]); break;
    case DIVIDE: ALONG(a[i] / b[j]); break;
    case SUM: ALONG(0.0f + a[i] + b[j]); break; /* torch's sums begin at 0, which shows where both are -0 */
    }
}

void o2o_small(const Small *p) {
    for (int64_t i = 0; i < p->n[0]; i++)
        for (int64_t j = 0; j < p->n[1]; j++)
            for (int64_t k = 0; k < p->n[2]; k++)
                along(p->operation, p->n[3], p->a + i * p->by_a[0] + j * p->by_a[1] + k * p->by_a[2], p->by_a[3],
                      p->b ? p->b + i * p->by_b[0] + j * p->by_b[1] + k * p->by_b[2] : 0, p->by_b[3],
                      p->out + i * p->by_out[0] + j * p->by_out[1] + k * p->by_out[2], p->by_out[3]);
}

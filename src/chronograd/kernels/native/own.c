/* The walk back over each unit's own influence: a linear recurrence whose coefficients change with every step, number by
   number, for a state of one or two numbers a unit:

       delta[o](t-1) += sum over p of own[p][o](t) delta[p](t)

   Blocks of numbers are walked through all steps, so what flows stays in the first level of the cache. */
#include "kernels.h"

enum { NUMBERS = 512 };

typedef struct {
    int64_t real, complex, steps, width, parts;
    const void *own[4]; /* (T, W) each, [p * parts + o]; NULL is 0 */
    void *delta[2];     /* (T, W): in, what arrives at each step; out, with what flows back into it */
    void *flow[2];      /* (W,): what flows on before the first step */
} Own;

#define WALK(NAME, REAL)                                                                                             \
    static void NAME##_add(int64_t count, int64_t complex, const REAL *restrict a, const REAL *restrict b,           \
                           REAL *restrict out) {                                                                     \
        if (!complex) {                                                                                              \
            for (int64_t i = 0; i < count; i++) out[i] += a[i] * b[i];                                               \
            return;                                                                                                  \
        }                                                                                                            \
        for (int64_t i = 0; i < count; i += 2) {                                                                     \
            out[i] += a[i] * b[i] - a[i + 1] * b[i + 1];                                                             \
            out[i + 1] += a[i] * b[i + 1] + a[i + 1] * b[i];                                                         \
        }                                                                                                            \
    }                                                                                                                \
    static void NAME(const Own *w, int64_t from, int64_t count) {                                                    \
        for (int64_t t = w->steps - 1; t >= 0; t--)                                                                  \
            for (int64_t o = 0; o < w->parts; o++) {                                                                 \
                REAL *out = t ? (REAL *)w->delta[o] + (t - 1) * w->width + from : (REAL *)w->flow[o] + from;         \
                for (int64_t p = 0; p < w->parts; p++) {                                                             \
                    const REAL *own = w->own[p * w->parts + o];                                                      \
                    if (!own) continue;                                                                              \
                    const int64_t at = t * w->width + from;                                                          \
                    NAME##_add(count, w->complex, own + at, (const REAL *)w->delta[p] + at, out);                    \
                }                                                                                                    \
            }                                                                                                        \
    }

WALK(walk_float, float)
WALK(walk_double, double)

static void work(void *argument, int id, int team) {
    const Own *w = argument;
    for (int64_t from = (int64_t)id * NUMBERS; from < w->width; from += (int64_t)team * NUMBERS) {
        const int64_t count = w->width - from < NUMBERS ? w->width - from : NUMBERS;
        (w->real == REAL_DOUBLE ? walk_double : walk_float)(w, from, count);
    }
}

void chronograd_own(const void *given, int64_t threads) {
    const Own *w = given;
    const int64_t blocks = (w->width + NUMBERS - 1) / NUMBERS;
    chronograd_team(threads < blocks ? threads : blocks, work, (void *)w);
}

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

/* The same for a cell of one number and one product a unit, from its states: the answer of a unit to its product is
   1 - h h, 1 where h is above 0, or 1, and what it passes on goes through its own recurrent weight alone. */
typedef struct {
    int64_t real, kind, steps, rows, size;
    const void *path;   /* (T, B, H): the states after each step */
    const void *weight; /* (H,): each unit's own; NULL is 0 */
    const void *gates;  /* (T, B); NULL is 1 */
    const void *valid;  /* (T, B) uint8; NULL is 1 */
    const void *given;  /* (T, B, H): what arrives at each step; NULL: 1 at the last step, 0 before */
    void *product;      /* (T, B, H): cotangents of the products */
    void *flow;         /* (B, H): what flows on before the first step */
    int64_t *first;     /* (B,), without given: the first step that weighs more than `least` */
    double least;
} OwnCell;

#define CELL(NAME, REAL, ABS)                                                                                        \
    static void NAME(const OwnCell *w, int64_t row) {                                                                \
        const int64_t size = w->size, across = w->rows * size;                                                       \
        const REAL *weight = w->weight, *gates = w->gates;                                                           \
        const uint8_t *valid = w->valid;                                                                             \
        REAL *restrict flow = (REAL *)w->flow + row * size;                                                          \
        for (int64_t i = 0; i < size; i++) flow[i] = w->given ? 0 : 1;                                               \
        int64_t t = w->steps - 1;                                                                                    \
        for (; t >= 0; t--) {                                                                                        \
            const int64_t at = t * across + row * size;                                                              \
            const REAL *restrict h = (const REAL *)w->path + at;                                                     \
            const REAL *restrict given = w->given ? (const REAL *)w->given + at : NULL;                              \
            REAL *restrict product = (REAL *)w->product + at;                                                        \
            const REAL xi = gates ? gates[t * w->rows + row] : 1;                                                    \
            if (given)                                                                                               \
                for (int64_t i = 0; i < size; i++) flow[i] += given[i];                                              \
            if (valid && !valid[t * w->rows + row]) {                                                                \
                for (int64_t i = 0; i < size; i++) product[i] = 0;                                                   \
            } else {                                                                                                 \
                if (w->kind == KIND_TANH)                                                                            \
                    for (int64_t i = 0; i < size; i++) product[i] = flow[i] * (1 - h[i] * h[i]);                     \
                else if (w->kind == KIND_RELU)                                                                       \
                    for (int64_t i = 0; i < size; i++) product[i] = h[i] > 0 ? flow[i] : 0;                          \
                else                                                                                                 \
                    for (int64_t i = 0; i < size; i++) product[i] = flow[i];                                         \
                if (weight)                                                                                          \
                    for (int64_t i = 0; i < size; i++) flow[i] = product[i] * weight[i];                             \
                else                                                                                                 \
                    for (int64_t i = 0; i < size; i++) flow[i] = 0;                                                  \
            }                                                                                                        \
            if (xi == 0)                                                                                             \
                for (int64_t i = 0; i < size; i++) flow[i] = 0;                                                      \
            else if (xi != 1)                                                                                        \
                for (int64_t i = 0; i < size; i++) flow[i] *= xi;                                                    \
            if (given || t == 0) continue;                                                                           \
            REAL most = 0;                                                                                           \
            for (int64_t i = 0; i < size; i++) most = ABS(flow[i]) > most ? ABS(flow[i]) : most;                     \
            if (most <= (REAL)w->least) break;                                                                       \
        }                                                                                                            \
        if (!w->given) w->first[row] = t < 0 ? 0 : t;                                                          \
        for (t--; t >= 0; t--) {                                                                                     \
            REAL *product = (REAL *)w->product + t * across + row * size;                                            \
            for (int64_t i = 0; i < size; i++) product[i] = 0;                                                       \
        }                                                                                                            \
    }

CELL(cell_float, float, __builtin_fabsf)
CELL(cell_double, double, __builtin_fabs)

static void work_cell(void *argument, int id, int team) {
    const OwnCell *w = argument;
    for (int64_t row = id; row < w->rows; row += team) (w->real == REAL_DOUBLE ? cell_double : cell_float)(w, row);
}

void chronograd_own_cell(const void *given, int64_t threads) {
    const OwnCell *w = given;
    chronograd_team(threads < w->rows ? threads : w->rows, work_cell, (void *)w);
}

/* Diagonal recurrences h' = drive + lambda h, real or complex: bound by memory, so that each array crosses it once.

   A thread has some rows, or where they are too few some of the columns, and takes them in chunks whose state (or flow)
   stays in L1 while time runs. There are two ways to the drive W x + b:

   - Inputs of many features: a product of its own lays it where the states will lie, and takes its cotangents from a
     block (layer.c).
   - Inputs of few features (`depth` reals): it is computed where it is used and nowhere stored. On the way back the
     states are computed again, a span of steps from the one before it, because that is faster than reading them; the
     cotangents of drive, weights and inputs never leave the registers. The states are written past the caches where
     they are too many for them.

   Sums over rows and steps are of REAL for a while and then go over into doubles. */

#define COLUMNS 1024       /* reals of a row in a chunk at most: all that belongs to them stays in L1 */
#define APART (2 * LANES)  /* between the arrays of a chunk: a power of two would put them into the same sets of L1 */
#define STATES 2048        /* reals of the states of a chunk, so many rows it has */
#define DRAIN 256          /* rows after which sums go over into doubles */
#define SPAN ((int)(128 / sizeof(REAL)))   /* steps whose states are computed again together: they stay in L2 */
#define AHEAD 4            /* steps that are fetched in advance: the processor's own fetching ends with a step's rows */
#define TOGETHER (REGISTERS >= 32 ? 4 : 2) /* rows that add to sums in registers */
#define AROUND (4 << 20)   /* bytes of states from which on they are written past the cache */

/* Some columns of some rows, and what belongs to the columns; numbers past the last column are zeros. */
typedef struct {
    int64_t first, last;            /* rows */
    int64_t column, count, padded; /* reals of a row: from, how many, in whole vectors */
    REAL *straight, *crossed, *bias, *weight[THIN];              /* one number a column */
    REAL *sum, *sum_crossed, *sum_bias, *sum_weight[THIN], *end; /* from sum to end: sums */
    REAL *state, *entering, *again;                              /* one number a row and column; again: SPAN of them */
    double *total;                                               /* the thread's own part of Job.sums, or NULL */
} NAME(Chunk);
#define Chunk NAME(Chunk)

#define OF_COLUMNS ((6 + 2 * THIN) * (COLUMNS + APART))
static int64_t NAME(diagonal_scratch)(void) { return (OF_COLUMNS + (2 + SPAN) * STATES) * (int64_t)sizeof(REAL); }

/* Lays the arrays that are in use one after the other. */
static void NAME(lay_chunk)(const Job *job, Chunk *chunk, int complex, REAL *at) {
    chunk->state = at + OF_COLUMNS;
    chunk->entering = chunk->state + STATES;
    chunk->again = chunk->entering + STATES;
    const int64_t each = chunk->padded + APART;
    chunk->straight = at;
    chunk->crossed = at += each;
    if (complex) at += each;
    chunk->bias = at;
    for (int64_t k = 0; k < job->depth; k++) chunk->weight[k] = at += each;
    chunk->sum = at += each;
    chunk->sum_crossed = at += each;
    if (complex) at += each;
    chunk->sum_bias = at;
    for (int64_t k = 0; k < job->depth; k++) chunk->sum_weight[k] = at += each;
    chunk->end = at + each;
}

/* lambda h = straight * h + crossed * swapped(h). */
static void NAME(spread)(const Job *job, Chunk *chunk, int complex) {
    const REAL *lambda = job->packed, *weight = job->weight_ih, *bias = job->bias;
    for (int64_t i = 0; i < chunk->padded; i++) {
        const int64_t at = chunk->column + i;
        const int inside = i < chunk->count;
        chunk->straight[i] = inside ? lambda[complex ? at & ~(int64_t)1 : at] : 0;
        if (complex) chunk->crossed[i] = !inside ? 0 : at & 1 ? lambda[at] : -lambda[at | 1];
        if (!job->depth) continue;
        chunk->bias[i] = inside && bias ? bias[at] : 0;
        for (int64_t k = 0; k < job->depth; k++) chunk->weight[k][i] = inside ? weight[at * job->depth + k] : 0;
    }
}

/* lambda v, or with `conjugate` that of lambda. */
static INLINE Vec NAME(times)(const int complex, const int conjugate, const Chunk *chunk, int64_t i, Vec v) {
    const Vec product = load(chunk->straight + i) * v;
    if (!complex) return product;
    const Vec crossed = load(chunk->crossed + i) * NAME(swapped)(v);
    return conjugate ? product - crossed : product + crossed;
}

/* The drive of one row of few features. */
static INLINE Vec NAME(driven)(const int depth, const Chunk *chunk, int64_t i, const Vec *x) {
    Vec drive = load(chunk->bias + i);
    UNROLL for (int k = 0; k < depth; k++) drive += x[k] * load(chunk->weight[k] + i);
    return drive;
}

static INLINE void NAME(spread_inputs)(const int depth, const Job *job, int64_t t, int64_t b, Vec *x) {
    UNROLL for (int k = 0; k < depth; k++) x[k] = all(((const REAL *)job->x)[(t * job->rows + b) * depth + k]);
}

/* Where one row of a step forward comes from and goes to. */
typedef struct {
    const REAL *before, *drive;
    REAL *kept, *out;
    int still, around;
} NAME(Row);

/* `some` of its numbers from i on. `again`: the states are read back from `out`, else from `kept`. */
static INLINE void NAME(diagonal_step)(const int complex, const int depth, const int again, const Chunk *chunk,
                                       const NAME(Row) *row, const Vec *x, int64_t ahead, int64_t i, const int some) {
    Vec v = load_some(row->before + i, some);
    if (!row->still) {
        v = NAME(times)(complex, 0, chunk, i, v);
        v += depth ? NAME(driven)(depth, chunk, i, x) : load_some(row->drive + i, some);
        if (!depth) __builtin_prefetch(row->drive + ahead + i);
    }
    if (again) {
        store(row->out + i, v);
        return;
    }
    store(row->kept + i, v);
#ifdef STORE_AROUND
    if (row->around) {
        STORE_AROUND(row->out + i, v);
        return;
    }
#endif
    store_some(row->out + i, v, some);
}

/* Some steps forward, from the rows of `state` on. The states after each step lie at path, `step` and `apart` numbers
   from one to the next; `around` writes them past the cache. */
static INLINE void NAME(diagonal_steps)(const int complex, const int depth, const int again, const Job *job,
                                        const Chunk *chunk, REAL *state, int64_t begin, int64_t end, REAL *path,
                                        int64_t step, int64_t apart, int around) {
    const Chunk here = *chunk; /* a copy that no store can reach: its pointers stay in registers */
    const int64_t full = here.count / LANES * LANES, ahead = AHEAD * job->rows * job->drive_stride;
    for (int64_t t = begin; t < end; t++)
        for (int64_t b = here.first; b < here.last; b++) {
            NAME(Row) row = {.kept = state + (b - here.first) * here.padded,
                             .out = path + (t - begin) * step + (b - here.first) * apart,
                             .still = frozen(job, t, b), .around = around};
            if (!depth)
                row.drive = (const REAL *)job->drive + (t * job->rows + b) * job->drive_stride + here.column;
            row.before = again && t > begin ? row.out - step : row.kept;
            if (NAME(fresh_number)(job, t, b) >= 0) row.before = before(job, 0, t, b) + here.column;
            Vec x[THIN];
            NAME(spread_inputs)(depth, job, t, b, x);
            for (int64_t i = 0; i < full; i += LANES)
                NAME(diagonal_step)(complex, depth, again, &here, &row, x, ahead, i, LANES);
            if (full < here.count)
                NAME(diagonal_step)(complex, depth, again, &here, &row, x, ahead, full, (int)(here.count - full));
        }
}

/* Takes the chunk out of an array (B, H). */
static void NAME(take)(const Job *job, const Chunk *chunk, const REAL *array, REAL *rows) {
    array += chunk->first * job->size + chunk->column;
    for (int64_t b = chunk->first; b < chunk->last; b++, array += job->size, rows += chunk->padded) {
        memcpy(rows, array, (size_t)chunk->count * sizeof(REAL));
        memset(rows + chunk->count, 0, (size_t)(chunk->padded - chunk->count) * sizeof(REAL));
    }
}

static INLINE void NAME(diagonal_forward_chunk)(const int complex, const int depth, const Job *job, Chunk *chunk) {
    REAL *path = (REAL *)job->path[0] + chunk->first * job->size + chunk->column;
    int around = 0;
#ifdef STORE_AROUND
    const int64_t row = job->size * (int64_t)sizeof(REAL);
    around = job->steps * job->rows * row >= AROUND && row % BYTES == 0 && (uintptr_t)job->path[0] % BYTES == 0;
#endif
    NAME(take)(job, chunk, job->initial[0], chunk->state);
    NAME(diagonal_steps)(complex, depth, 0, job, chunk, chunk->state, 0, job->steps, path, job->rows * job->size,
                         job->size, depth && around);
#ifdef STORE_AROUND
    if (around) STORED_AROUND();
#endif
}

/* Adds the sums of this chunk to the thread's own: of lambda (H,), and with few features of the bias (H,) and of the
   weight (H, depth). */
static void NAME(drain)(const Job *job, Chunk *chunk, int complex) {
    double *lambda = chunk->total, *bias = lambda + job->size, *weight = bias + job->size;
    for (int64_t i = 0; i < chunk->count; i++) {
        const int64_t at = chunk->column + i;
        if (complex) {
            /* D conj(h): the real part sums over the pair, the imaginary one is the difference of the crossed products. */
            lambda[at & ~(int64_t)1] += chunk->sum[i];
            lambda[at | 1] += at & 1 ? -(double)chunk->sum_crossed[i] : chunk->sum_crossed[i];
        } else {
            lambda[at] += chunk->sum[i];
        }
        if (job->depth) bias[at] += chunk->sum_bias[i];
        for (int64_t k = 0; k < job->depth; k++) weight[at * job->depth + k] += chunk->sum_weight[k][i];
    }
}

static void NAME(clear)(Chunk *chunk) { memset(chunk->sum, 0, (size_t)(chunk->end - chunk->sum) * sizeof(REAL)); }

/* Whether nothing happens to some rows on the edge into a step, and they are whole vectors. */
static INLINE int NAME(plain)(const Job *job, const Chunk *chunk, int64_t t, int64_t b, int rows) {
    if (chunk->count < chunk->padded || !job->given[0]) return 0;
    for (int m = 0; m < rows; m++) {
        if (NAME(fresh_number)(job, t, b + m) >= 0 || frozen(job, t, b + m)) return 0;
        if (job->gates && ((const REAL *)job->gates)[t * job->rows + b + m] != 1) return 0;
    }
    return 1;
}

/* Some rows of a step back: the flow takes its cotangent, gives to the sums and goes on over the edge. `past` are the
   states before the step of the rows that carry on, `apart` from one to the next. */
static INLINE void NAME(diagonal_back_rows)(const int complex, const int depth, const int rows, const int plain,
                                            const Job *job, const Chunk *chunk, int64_t t, int64_t b, const REAL *past,
                                            int64_t apart) {
    const Chunk here = *chunk;
    const int64_t row = t * job->rows + b, ahead = AHEAD * job->rows * job->size;
    const int sums = depth || here.total;
    const REAL *given[TOGETHER], *before_row[TOGETHER];
    REAL *flow[TOGETHER], *product[TOGETHER], *fresh[TOGETHER], gate[TOGETHER];
    int still[TOGETHER], starts[TOGETHER];
    Vec x[TOGETHER][THIN], dots[TOGETHER][THIN];
    UNROLL for (int m = 0; m < rows; m++) {
        const int64_t at = (row + m) * job->size + here.column;
        given[m] = job->given[0] ? (const REAL *)job->given[0] + at : NULL;
        before_row[m] = past + m * apart;
        flow[m] = here.state + (b - here.first + m) * here.padded;
        product[m] = depth ? NULL : (REAL *)job->product + (row + m) * job->product_stride + here.column;
        NAME(spread_inputs)(depth, job, t, b + m, x[m]);
        UNROLL for (int k = 0; k < depth; k++) dots[m][k] = (Vec){0};
        still[m] = starts[m] = 0, gate[m] = 1, fresh[m] = NULL;
        if (plain) continue;
        const int32_t number = NAME(fresh_number)(job, t, b + m);
        still[m] = frozen(job, t, b + m);
        gate[m] = job->gates ? ((const REAL *)job->gates)[row + m] : 1;
        starts[m] = number >= 0;
        if (!starts[m]) continue;
        before_row[m] = before(job, 0, t, b + m) + here.column;
        if (job->fresh_back[0]) fresh[m] = (REAL *)job->fresh_back[0] + number * job->size + here.column;
    }
    for (int64_t i = 0; i < here.count; i += LANES) {
        const int some = plain ? LANES : some_of(here.count - i);
        Vec sum = {0}, sum_crossed = {0}, sum_bias = {0}, sum_weight[THIN];
        UNROLL for (int k = 0; k < depth; k++) sum_weight[k] = (Vec){0};
        UNROLL for (int m = 0; m < rows; m++) {
            Vec d = load(flow[m] + i);
            if (plain || given[m]) {
                d += load_some(given[m] + i, some);
                __builtin_prefetch(given[m] - ahead + i, 0, 2); /* into L2: L1 is full */
            }
            Vec through = d;
            if (plain || !still[m]) {
                through = NAME(times)(complex, 1, &here, i, d);
                if (sums) {
                    const Vec h = load_some(before_row[m] + i, some);
                    if (!depth) __builtin_prefetch(before_row[m] - ahead + i);
                    sum += d * h;
                    if (complex) sum_crossed += NAME(swapped)(d) * h;
                }
                sum_bias += d;
                UNROLL for (int k = 0; k < depth; k++) {
                    dots[m][k] += d * load(here.weight[k] + i);
                    sum_weight[k] += d * x[m][k];
                }
            }
            if (!depth) store_some(product[m] + i, !plain && still[m] ? (Vec){0} : d, some);
            if (!plain) {
                if (fresh[m]) store_some(fresh[m] + i, through, some);
                if (starts[m]) through = (Vec){0};
                if (gate[m] != 1) through = gate[m] == 0 ? (Vec){0} : through * gate[m];
            }
            store(flow[m] + i, through);
        }
        if (sums) store(here.sum + i, load(here.sum + i) + sum);
        if (sums && complex) store(here.sum_crossed + i, load(here.sum_crossed + i) + sum_crossed);
        if (depth) store(here.sum_bias + i, load(here.sum_bias + i) + sum_bias);
        UNROLL for (int k = 0; k < depth; k++) store(here.sum_weight[k] + i, load(here.sum_weight[k] + i) + sum_weight[k]);
    }
    if (!depth || !job->x_back) return;
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int k = 0; k < depth; k++) {
            REAL *out = (REAL *)job->x_back + (row + m) * depth + k;
            *out = NAME(total)(dots[m][k]) + (here.column ? *out : 0);
        }
}

static INLINE void NAME(diagonal_back_chunk)(const int complex, const int depth, const Job *job, Chunk *chunk) {
    const int64_t rows = chunk->last - chunk->first, width = chunk->padded, often = DRAIN / rows > 1 ? DRAIN / rows : 1;
    REAL *flows = (REAL *)job->flow[0] + chunk->first * job->size + chunk->column;
    NAME(take)(job, chunk, job->flow[0], chunk->state);
    NAME(clear)(chunk);
    for (int64_t end = job->steps, begin; end > 0; end = begin) {
        begin = depth && end > SPAN ? end - SPAN : 0;
        if (depth) {
            NAME(take)(job, chunk, NAME(carried)(job, 0, begin, 0), chunk->entering);
            NAME(diagonal_steps)(complex, depth, 1, job, chunk, chunk->entering, begin, end - 1, chunk->again,
                                 rows * width, width, 0);
        }
        for (int64_t t = end - 1; t >= begin; t--) {
            const int again = depth && t > begin;
            const int64_t apart = again ? width : job->size;
            const REAL *past = again ? chunk->again + (t - 1 - begin) * rows * width
                                     : NAME(carried)(job, 0, t, chunk->first) + chunk->column;
            for (int64_t b = chunk->first; b < chunk->last; past += TOGETHER * apart, b += TOGETHER) {
                if (b + TOGETHER > chunk->last) {
                    for (int m = 0; b + m < chunk->last; m++)
                        NAME(diagonal_back_rows)(complex, depth, 1, 0, job, chunk, t, b + m, past + m * apart, apart);
                } else if (NAME(plain)(job, chunk, t, b, TOGETHER)) {
                    NAME(diagonal_back_rows)(complex, depth, TOGETHER, 1, job, chunk, t, b, past, apart);
                } else {
                    NAME(diagonal_back_rows)(complex, depth, TOGETHER, 0, job, chunk, t, b, past, apart);
                }
            }
            if (chunk->total && t % often == 0) {
                NAME(drain)(job, chunk, complex);
                NAME(clear)(chunk);
            }
        }
    }
    for (int64_t b = 0; b < rows; b++)
        memcpy(flows + b * job->size, chunk->state + b * width, (size_t)chunk->count * sizeof(REAL));
}

/* A loop over time for each depth. Complex inputs are pairs. */
#define LOOPS(way)                                                                                                  \
    LOOP(way, real, 0, 0) LOOP(way, real, 0, 1) LOOP(way, real, 0, 2) LOOP(way, real, 0, 3) LOOP(way, real, 0, 4)   \
    LOOP(way, complex, 1, 0) LOOP(way, complex, 1, 2) LOOP(way, complex, 1, 4)
#define LOOP(way, name, complex, depth)                                                                             \
    static __attribute__((noinline)) void NAME(diagonal_##way##_##name##_##depth)(const Job *job, Chunk *chunk) {         \
        NAME(diagonal_##way##_chunk)(complex, depth, job, chunk);                                                   \
    }
LOOPS(forward)
LOOPS(back)
#undef LOOP
#define LOOP(way, name, complex, depth) [complex][depth] = NAME(diagonal_##way##_##name##_##depth),
static void (*const NAME(diagonal_loops)[2][2][THIN + 1])(const Job *, Chunk *) = {
    [WAY_FORWARD] = {LOOPS(forward)}, [WAY_BACK] = {LOOPS(back)}};
#undef LOOP
#undef LOOPS

static void NAME(diagonal)(const Job *job, int way, int id, int team) {
    const int complex = job->kind == KIND_DIAGONAL_COMPLEX;
    const int64_t vectors = (job->size + LANES - 1) / LANES;
    int64_t first = 0, last = job->rows, begin = 0, end = vectors;
    if (job->plan.by_units) {
        begin = vectors * id / team;
        end = vectors * (id + 1) / team;
    } else {
        first = job->rows * id / team;
        last = job->rows * (id + 1) / team;
    }
    Chunk chunk;
    chunk.total = job->sums ? (double *)job->sums + id * job->sums_stride : NULL;
    const int64_t parts = (end - begin + COLUMNS / LANES - 1) / (COLUMNS / LANES);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t from = begin + (end - begin) * part / parts, to = begin + (end - begin) * (part + 1) / parts;
        chunk.column = from * LANES;
        chunk.padded = (to - from) * LANES;
        chunk.count = job->size - chunk.column < chunk.padded ? job->size - chunk.column : chunk.padded;
        NAME(lay_chunk)(job, &chunk, complex, (REAL *)((char *)job->scratch + id * job->scratch_bytes));
        NAME(spread)(job, &chunk, complex);
        const int64_t tallest = STATES / chunk.padded;
        for (chunk.first = first; chunk.first < last; chunk.first = chunk.last) {
            chunk.last = last - chunk.first < tallest ? last : chunk.first + tallest;
            NAME(diagonal_loops)[way][complex][job->depth](job, &chunk);
        }
    }
}

static void NAME(diagonal_forward)(const Job *job, int id, int team) { NAME(diagonal)(job, WAY_FORWARD, id, team); }
static void NAME(diagonal_back)(const Job *job, int id, int team) { NAME(diagonal)(job, WAY_BACK, id, team); }

/* Gradients from the sums of every thread. */
static void NAME(finish)(int64_t count, const double *sums, int64_t stride, int threads, void *to) {
    REAL *out = to;
    for (int64_t i = 0; i < count; i++) {
        double total = 0;
        for (int id = 0; id < threads; id++) total += sums[id * stride + i];
        out[i] = (REAL)total;
    }
}

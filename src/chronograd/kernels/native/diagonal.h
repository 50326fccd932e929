/* Diagonal recurrences h' = drive + lambda h, real or complex: bound by memory, so each array is streamed once.

   A chunk of numbers keeps its state (or flow) in L1 while time runs. Complex numbers are pairs of reals; their sum over
   pairs is taken outside of the loop over time. */

#define CHUNK 2048 /* reals: state, lambda and sums of a chunk stay in L1 */
#define DRAIN 256  /* steps after which the sums for lambda go over into doubles */

#if BYTES / 4 == 16 && !IS_DOUBLE
#define NEIGHBOURS 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#elif (BYTES / 4 == 8 && !IS_DOUBLE) || (BYTES / 8 == 8 && IS_DOUBLE)
#define NEIGHBOURS 1, 0, 3, 2, 5, 4, 7, 6
#elif (BYTES / 4 == 4 && !IS_DOUBLE) || (BYTES / 8 == 4 && IS_DOUBLE)
#define NEIGHBOURS 1, 0, 3, 2
#else
#define NEIGHBOURS 1, 0
#endif

/* Swaps the two reals of every pair. */
static INLINE Vec NAME(swapped)(Vec v) {
#ifdef __clang__
    return __builtin_shufflevector(v, v, NEIGHBOURS);
#else
    return __builtin_shuffle(v, (Int){NEIGHBOURS});
#endif
}

/* One thread's chunk of the B * H numbers, and lambda spread over it. */
typedef struct {
    int64_t first, count, row; /* in reals; reals of a row */
    REAL straight[CHUNK + LANES], crossed[CHUNK + LANES], state[CHUNK + LANES];
    REAL sum[CHUNK + LANES], sum_crossed[CHUNK + LANES];
} NAME(Chunk);
#define Chunk NAME(Chunk)

/* lambda h = straight * h + crossed * swapped(h); the way back takes the conjugate. */
static void NAME(spread)(const Job *job, Chunk *chunk, int complex, int conjugate) {
    const REAL *lambda = job->packed;
    for (int64_t i = 0; i < chunk->count; i++) {
        int64_t at = (chunk->first + i) % chunk->row;
        if (!complex) {
            chunk->straight[i] = lambda[at];
            continue;
        }
        REAL imaginary = lambda[at | 1];
        chunk->straight[i] = lambda[at & ~(int64_t)1];
        chunk->crossed[i] = (at & 1) ^ conjugate ? imaginary : -imaginary;
    }
}

static INLINE Vec NAME(times)(const int complex, const Chunk *chunk, int64_t i, Vec v) {
    Vec product = load(chunk->straight + i) * v;
    return complex ? product + load(chunk->crossed + i) * NAME(swapped)(v) : product;
}

#define AHEAD 2 /* steps that are fetched in advance: a step's rows end before a page does */

static INLINE void NAME(diagonal_forward_chunk)(const int complex, const Job *job, Chunk *chunk) {
    const int64_t step = job->rows * chunk->row;
    const int edges = job->reset || job->valid;
    REAL *state = chunk->state;
    memcpy(state, (const REAL *)job->initial[0] + chunk->first, (size_t)chunk->count * sizeof(REAL));
    for (int64_t t = 0; t < job->steps; t++) {
        const REAL *drive = (const REAL *)job->drive + t * step + chunk->first;
        REAL *path = (REAL *)job->path[0] + t * step + chunk->first;
        for (int64_t begin = 0, end; begin < chunk->count; begin = end) {
            end = chunk->count;
            int still = 0;
            if (edges) {
                const int64_t b = (chunk->first + begin) / chunk->row;
                const int64_t left = (b + 1) * chunk->row - chunk->first;
                if (left < end) end = left;
                still = frozen(job, t, b);
                int32_t number = job->reset ? ((const int32_t *)job->reset)[t * job->rows + b] : -1;
                if (number >= 0 && !still) {
                    const REAL *fresh = job->fresh[0];
                    fresh = fresh ? fresh + number * chunk->row + (chunk->first + begin) % chunk->row : NULL;
                    for (int64_t i = begin; i < end; i++) state[i] = fresh ? fresh[i - begin] : 0;
                }
            }
            for (int64_t i = begin; i < end; i += LANES) {
                const int some = some_of(end - i);
                Vec h = load_some(state + i, some);
                if (!still) h = NAME(times)(complex, chunk, i, h) + load_some(drive + i, some);
                __builtin_prefetch(drive + AHEAD * step + i);
                store_some(state + i, h, some);
                store_some(path + i, h, some);
            }
        }
    }
}

/* Adds the sums of this chunk to the thread's own row of weight_back. */
static void NAME(drain)(const Job *job, Chunk *chunk, int complex, int id) {
    double *out = (double *)job->weight_back + id * chunk->row;
    for (int64_t i = 0; i < chunk->count; i++) {
        int64_t at = (chunk->first + i) % chunk->row;
        if (complex) {
            /* D conj(h): the real part sums over the pair, the imaginary one is the difference of the crossed products. */
            out[at & ~(int64_t)1] += chunk->sum[i];
            out[at | 1] += at & 1 ? -(double)chunk->sum_crossed[i] : chunk->sum_crossed[i];
        } else {
            out[at] += chunk->sum[i];
        }
    }
    memset(chunk->sum, 0, sizeof chunk->sum);
    memset(chunk->sum_crossed, 0, sizeof chunk->sum_crossed);
}

static INLINE void NAME(diagonal_back_chunk)(const int complex, const Job *job, Chunk *chunk, int id) {
    const int64_t step = job->rows * chunk->row;
    const int edges = job->reset || job->valid || job->gates, sums = job->weight_back != NULL;
    REAL *flow = chunk->state;
    memcpy(flow, (const REAL *)job->flow[0] + chunk->first, (size_t)chunk->count * sizeof(REAL));
    memset(chunk->sum, 0, sizeof chunk->sum);
    memset(chunk->sum_crossed, 0, sizeof chunk->sum_crossed);
    for (int64_t t = job->steps - 1; t >= 0; t--) {
        const int64_t at = t * step + chunk->first;
        const REAL *given = job->given[0] ? (const REAL *)job->given[0] + at : NULL;
        REAL *product = (REAL *)job->product + at;
        for (int64_t begin = 0, end; begin < chunk->count; begin = end) {
            end = chunk->count;
            int still = 0;
            int32_t number = -1;
            REAL gate = 1;
            const REAL *past = (t ? (const REAL *)job->path[0] + at - step : (const REAL *)job->initial[0] + chunk->first);
            int64_t within = 0;
            if (edges) {
                const int64_t b = (chunk->first + begin) / chunk->row, row = t * job->rows + b;
                const int64_t left = (b + 1) * chunk->row - chunk->first;
                if (left < end) end = left;
                within = (chunk->first + begin) % chunk->row;
                still = frozen(job, t, b);
                if (job->reset) number = ((const int32_t *)job->reset)[row];
                if (job->gates) gate = ((const REAL *)job->gates)[row];
                if (number >= 0) {
                    const REAL *fresh = job->fresh[0];
                    past = fresh ? fresh + number * chunk->row + within - begin : (const REAL *)job->zeros + within - begin;
                }
            }
            for (int64_t i = begin; i < end; i += LANES) {
                const int some = some_of(end - i);
                Vec d = load_some(flow + i, some);
                if (given) {
                    d += load_some(given + i, some);
                    __builtin_prefetch(given - AHEAD * step + i);
                }
                Vec through = d;
                if (!still) {
                    through = NAME(times)(complex, chunk, i, d);
                    if (sums) {
                        Vec h = load_some(past + i, some);
                        __builtin_prefetch(past - AHEAD * step + i);
                        store_some(chunk->sum + i, load_some(chunk->sum + i, some) + d * h, some);
                        if (complex)
                            store_some(chunk->sum_crossed + i,
                                       load_some(chunk->sum_crossed + i, some) + NAME(swapped)(d) * h, some);
                    }
                }
                store_some(product + i, still ? (Vec){0} : d, some);
                if (number >= 0) {
                    if (job->fresh_back[0])
                        store_some((REAL *)job->fresh_back[0] + number * chunk->row + within + i - begin, through, some);
                    through = (Vec){0};
                }
                if (gate != 1) through = gate == 0 ? (Vec){0} : through * gate;
                store_some(flow + i, through, some);
            }
        }
        if (sums && t % DRAIN == 0) NAME(drain)(job, chunk, complex, id);
    }
    memcpy((REAL *)job->flow[0] + chunk->first, flow, (size_t)chunk->count * sizeof(REAL));
}

static void NAME(diagonal)(const Job *job, int way, int id, int team) {
    const int complex = job->kind == KIND_DIAGONAL_COMPLEX;
    const int64_t row = job->size << complex, all_of = job->rows * row, vectors = (all_of + LANES - 1) / LANES;
    const int64_t begin = vectors * id / team * LANES;
    int64_t end = vectors * (id + 1) / team * LANES;
    if (end > all_of) end = all_of;
    Chunk chunk;
    memset(&chunk, 0, sizeof chunk);
    chunk.row = row;
    const int64_t parts = (end - begin + CHUNK - 1) / CHUNK;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t lanes = (end - begin + LANES - 1) / LANES;
        chunk.first = begin + lanes * part / parts * LANES;
        const int64_t last = begin + lanes * (part + 1) / parts * LANES;
        chunk.count = (last < end ? last : end) - chunk.first;
        NAME(spread)(job, &chunk, complex, way == WAY_BACK);
        if (way == WAY_FORWARD && complex) NAME(diagonal_forward_chunk)(1, job, &chunk);
        else if (way == WAY_FORWARD) NAME(diagonal_forward_chunk)(0, job, &chunk);
        else if (complex) NAME(diagonal_back_chunk)(1, job, &chunk, id);
        else NAME(diagonal_back_chunk)(0, job, &chunk, id);
    }
}

static void NAME(diagonal_forward)(const Job *job, int id, int team) { NAME(diagonal)(job, WAY_FORWARD, id, team); }
static void NAME(diagonal_back)(const Job *job, int id, int team) { NAME(diagonal)(job, WAY_BACK, id, team); }

/* The gradient of lambda, from the sums of every thread. */
static void NAME(finish)(const Layer *layer, const double *sums, int threads) {
    const int64_t count = layer->size << (layer->kind == KIND_DIAGONAL_COMPLEX);
    REAL *out = layer->weight_back;
    for (int64_t i = 0; i < count; i++) {
        double total = 0;
        for (int id = 0; id < threads; id++) total += sums[id * count + i];
        out[i] = (REAL)total;
    }
}

/* (a + ib)(u + iv) = (a u - b v) + i (b u + a v): each complex weight a + ib is the block [a, -b; b, a] of reals. */
static void NAME(complex_as_reals)(const Layer *layer, void *to) {
    const REAL *weight = layer->weight_ih;
    REAL *out = to;
    const int64_t row = 2 * layer->inputs;
    for (int64_t h = 0; h < layer->size; h++)
        for (int64_t j = 0; j < row; j += 2) {
            const REAL a = weight[h * row + j], b = weight[h * row + j + 1];
            REAL *block = out + 2 * h * row + j;
            block[0] = a;
            block[1] = -b;
            block[row] = b;
            block[row + 1] = a;
        }
}

static void NAME(reals_as_complex)(const Layer *layer, const void *from) {
    const REAL *reals = from;
    REAL *out = layer->weight_ih_back;
    const int64_t row = 2 * layer->inputs;
    for (int64_t h = 0; h < layer->size; h++)
        for (int64_t j = 0; j < row; j += 2) {
            const REAL *block = reals + 2 * h * row + j;
            out[h * row + j] = block[0] + block[row + 1];
            out[h * row + j + 1] = block[row] - block[1];
        }
}

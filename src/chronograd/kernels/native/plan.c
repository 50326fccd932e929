/* How a job is cut for its threads: by rows (no barrier), by units (a barrier a step, but each core keeps only its part
   of the weight in its cache), or not at all. The costs are cycles of a core that does one vector of multiply-adds a
   cycle; only their order matters. */
#include "kernels.h"

#define L1_BYTES (24 << 10)
#define L2_BYTES (700 << 10)
#define BARRIER 1000
#define AWAY 2000 /* a step has to be worth this much before threads share it */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

typedef struct {
    int64_t depth, size, blocks, lanes, registers, number, point;
} Shape;

/* Cycles of one step for a thread with some rows and some panels of `width` vectors. */
static double cost(const Shape *s, int64_t rows, int64_t panels, int64_t width) {
    int64_t tallest = least(8, (s->registers - width - 1) / width), tiles = up(rows, tallest);
    double height = (double)rows / (double)tiles, bytes = (double)(panels * width * s->depth * s->lanes * s->number);
    double add = height * (double)width, fetch = (double)width * (bytes > L1_BYTES ? 2.0 : 1.0) + 0.5 * height;
    double inner = add > fetch ? add + 0.2 * fetch : fetch + 0.2 * add;
    double far = bytes > L2_BYTES ? bytes / 12.0 : 0.0; /* what has to come from L3, once a step */
    return (double)(panels * tiles) * ((double)s->depth * inner + 40.0) + far * 0.7 +
           (double)(rows * panels * width) * (double)s->point;
}

Plan chronograd_plan(const Job *job, int way) {
    const Table *table = chronograd_table(job->isa, job->real);
    Shape s = {job->size, job->size, chronograd_blocks(job->kind), table->lanes, table->registers,
               job->real == REAL_DOUBLE ? 8 : 4, 20};
    Plan plan = {1, 0, 0};
    if (job->kind >= KIND_DIAGONAL || job->own) {
        /* Units that do not meet. */
        const int64_t vectors = up(job->size, s.lanes);
        plan.width = 1;
        plan.by_units = job->split == SPLIT_UNITS || (job->split == SPLIT_AUTO && job->rows < job->threads);
        if (job->rows * job->size * job->steps > 1 << 15) plan.threads = least(job->threads, plan.by_units ? vectors : job->rows);
        return plan;
    }
    int gated = way == WAY_FORWARD && s.blocks > 1;
    if (way == WAY_BACK) s.depth *= s.blocks;
    int64_t vectors = up(s.size, s.lanes), wide = gated ? s.blocks : least(vectors, s.registers >= 32 ? 4 : 2);
    int64_t panels = gated ? vectors : up(vectors, wide);
    plan.width = wide;
    double alone = cost(&s, job->rows, panels, wide), best = alone;
    int64_t by_rows = least(job->threads, job->rows);
    if (by_rows > 1 && job->split != SPLIT_UNITS) {
        double with = cost(&s, up(job->rows, by_rows), panels, wide);
        if (with < best || job->split == SPLIT_ROWS) {
            best = with;
            plan = (Plan){by_rows, 0, wide};
        }
    }
    int64_t by_units = least(job->threads, vectors);
    if (by_units > 1 && job->split != SPLIT_ROWS) {
        int64_t narrow = gated ? wide : least(wide, vectors / by_units), pieces = gated ? vectors : up(vectors, narrow);
        double with = cost(&s, job->rows, up(pieces, by_units), narrow) + BARRIER;
        if ((with < best && alone > AWAY) || job->split == SPLIT_UNITS) plan = (Plan){by_units, 1, narrow};
    }
    /* The panels must not depend on the number of steps, so that a weight packed once serves every block. */
    if (!plan.by_units && job->split == SPLIT_AUTO && alone * (double)job->steps < 20000) plan.threads = 1;
    return plan;
}

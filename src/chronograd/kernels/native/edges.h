/* Where the rows of a step come from, and how rows and panels are shared out. */

/* The number of the fresh state with which row b starts anew at step t, or -1. */
static INLINE int32_t NAME(fresh_number)(const Job *job, int64_t t, int64_t b) {
    return job->reset ? ((const int32_t *)job->reset)[t * job->rows + b] : -1;
}

/* The state part (h or c) that row b carries up to step t. */
static INLINE const REAL *NAME(carried)(const Job *job, int part, int64_t t, int64_t b) {
    if (t == 0) return (const REAL *)job->initial[part] + b * job->size;
    return (const REAL *)job->path[part] + ((t - 1) * job->rows + b) * job->size;
}

/* The one that it takes into step t: that, or a fresh one. */
static INLINE const REAL *NAME(before)(const Job *job, int part, int64_t t, int64_t b) {
    const int32_t number = NAME(fresh_number)(job, t, b);
    if (number >= 0) {
        const REAL *fresh = job->fresh[part];
        return fresh ? fresh + number * job->size : job->zeros;
    }
    return NAME(carried)(job, part, t, b);
}
#define before NAME(before)

static INLINE int NAME(frozen)(const Job *job, int64_t t, int64_t b) {
    return job->valid && !((const uint8_t *)job->valid)[t * job->rows + b];
}
#define frozen NAME(frozen)

/* What one thread does of every step: some panels of some rows, the rows in tiles of nearly the same height. */
typedef struct {
    int64_t panel, panels, row, rows, tiles;
} NAME(Share);
#define Share NAME(Share)

static Share NAME(share)(const Job *job, const Layout *l, int by_units, int id, int team) {
    Share s = {0, l->panels, 0, job->rows, 0};
    if (by_units) {
        s.panel = l->panels * id / team;
        s.panels = l->panels * (id + 1) / team;
    } else {
        s.row = job->rows * id / team;
        s.rows = job->rows * (id + 1) / team;
    }
    int tallest = NAME(tallest)(l->width);
    s.tiles = (s.rows - s.row + tallest - 1) / tallest;
    return s;
}

static INLINE int64_t NAME(tile_row)(const Share *s, int64_t tile) {
    return s->row + (s->rows - s->row) * tile / s->tiles;
}

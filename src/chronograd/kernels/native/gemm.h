/* Products over the many rows of a block of time: projections, and sums over rows for the gradients of weights. The
   same register tiles as the recurrence's. */

#if REGISTERS >= 32
#define WIDE 4
#else
#define WIDE 2
#endif
#define DEEP 1024 /* depth of a pass of rows: a panel of it stays in L2 */
#define GROUP 16    /* tiles whose rows are laid out together */

static INLINE int NAME(wide)(int64_t width, int64_t column) {
    int64_t vectors = (width - column + LANES - 1) / LANES;
    return vectors < WIDE ? (int)vectors : WIDE;
}

/* Row k of the right side of a product; NULL is zeros. */
static INLINE const REAL *NAME(right_row)(const Right *r, int64_t k) {
    if (r->numbers && r->numbers[k] >= 0) return r->fresh ? (const REAL *)r->fresh + r->numbers[k] * r->width : NULL;
    if (k < r->firsts) return (const REAL *)r->first + k * r->width;
    return (const REAL *)r->b + (k - r->firsts) * r->stride;
}

#include "thin.h"

/* Some rows of b, panel by panel, each over all of these rows; columns past the last are zeros. */
static INLINE void NAME(lay_panels)(const Right *r, int64_t begin, int64_t depth, REAL *to, int id, int team) {
    const int64_t units = WIDE * LANES, count = (r->width + units - 1) / units;
    for (int64_t panel = count * id / team; panel < count * (id + 1) / team; panel++) {
        const int64_t first = panel * units, across = NAME(wide)(r->width, first) * LANES;
        REAL *out = to + first * depth;
        for (int64_t k = 0; k < depth; k++) {
            const REAL *row = NAME(right_row)(r, begin + k);
            for (int64_t n = 0; n < across; n += LANES)
                store(out + k * across + n, row ? load_some(row + first + n, some_of(r->width - first - n)) : (Vec){0});
        }
    }
}

/* The same of the transpose: r has `width` rows of `depth` numbers. */
static void NAME(lay_turned)(const Right *r, int64_t depth, REAL *to, int id, int team) {
    const REAL *b = r->b;
    const int64_t units = WIDE * LANES, count = (r->width + units - 1) / units;
    for (int64_t panel = count * id / team; panel < count * (id + 1) / team; panel++) {
        const int64_t first = panel * units, across = NAME(wide)(r->width, first) * LANES;
        REAL *out = to + first * depth;
        /* In blocks, so that both sides stay in L1. */
        for (int64_t begin = 0; begin < depth; begin += 16) {
            const int64_t end = begin + 16 < depth ? begin + 16 : depth;
            for (int64_t n = 0; n < across; n++)
                for (int64_t k = begin; k < end; k++)
                    out[k * across + n] = first + n < r->width ? b[(first + n) * r->stride + k] : 0;
        }
    }
}

static void NAME(panels)(const Right *r, int64_t depth, int turned, void *to, int id, int team) {
    if (r->width <= THIN) {
        /* Column by column. */
        REAL *out = to;
        for (int64_t k = depth * id / team; k < depth * (id + 1) / team; k++)
            for (int64_t n = 0; n < r->width; n++)
                out[n * depth + k] = ((const REAL *)r->b)[turned ? n * r->stride + k : k * r->stride + n];
    } else if (turned)
        NAME(lay_turned)(r, depth, to, id, team);
    else
        NAME(lay_panels)(r, 0, depth, to, id, team);
}

/* Writes one row of a tile from a column on, or adds it. */
static INLINE void NAME(put_row)(const Vec *tile, REAL *out, int64_t left, int width, int more, const REAL *bias) {
    for (int n = 0; n < width; n++) {
        const int some = some_of(left - n * LANES);
        Vec v = tile[n];
        if (more) v += load_some(out + n * LANES, some);
        if (bias) v += load_some(bias + n * LANES, some);
        store_some(out + n * LANES, v, some);
    }
}

static void NAME(rows)(const Rows *p, int id, int team) {
    Vec tile[TALLEST * 4];
    const REAL *rows[TALLEST], *bias = p->bias;
    const int64_t first = p->height * id / team, last = p->height * (id + 1) / team;
    if (NAME(thin_rows)(p, first, last)) return;
    for (int64_t begin = 0; begin < p->depth; begin += DEEP) {
        const int64_t depth = p->depth - begin < DEEP ? p->depth - begin : DEEP;
        /* Rows in passes, so that they stay in L2 from one panel to the next. */
        for (int64_t from = first; from < last; from += 96) {
            const int64_t until = from + 96 < last ? from + 96 : last;
            for (int64_t column = 0; column < p->width; column += WIDE * LANES) {
                const int width = NAME(wide)(p->width, column), tallest = NAME(tallest)(width);
                const REAL *panel = (const REAL *)p->panels + column * p->depth + begin * width * LANES;
                const int64_t tiles = (until - from + tallest - 1) / tallest;
                for (int64_t part = 0; part < tiles; part++) {
                    const int64_t row = from + (until - from) * part / tiles;
                    const int height = (int)(from + (until - from) * (part + 1) / tiles - row);
                    for (int m = 0; m < height; m++) rows[m] = (const REAL *)p->a + (row + m) * p->a_stride + begin;
                    NAME(tilers)[width][height](depth, rows, panel, tile);
                    for (int m = 0; m < height; m++)
                        NAME(put_row)(tile + m * width, (REAL *)p->out + (row + m) * p->out_stride + column,
                                      p->width - column, width, begin > 0, begin || !bias ? NULL : bias + column);
                }
            }
        }
    }
}

/* Height of a tile whose rows lie interleaved: one vector holds a number of each. */
#if REGISTERS >= 32
#define FULL (LANES < 6 ? LANES : 6)
#else
#define FULL (LANES < 4 ? LANES : LANES < 6 ? 4 : 6)
#endif
#define TURNED(width)                                                                                               \
    static __attribute__((noinline)) void NAME(turned_##width)(int64_t depth, const REAL *const *rows,              \
                                                               const REAL *panel, Vec *tile) {                      \
        NAME(tile)(FULL, width, WAYS(FULL, width), 1, depth, rows, panel, tile);                                    \
    }
TURNED(1)
TURNED(2)
TURNED(3)
TURNED(4)
static const Tiler NAME(turned)[5] = {NULL, NAME(turned_1), NAME(turned_2), NAME(turned_3), NAME(turned_4)};

/* Depth of a pass of columns: a tile's rows stay in L1. A large result leaves the cache between passes, so it has fewer
   of them; a small one is spared the memory. */
static INLINE int64_t NAME(pass)(const Columns *p) {
    int64_t numbers = 0;
    for (int64_t i = 0; i < p->count; i++) numbers += p->part[i].height * p->part[i].right.width;
    return numbers > (1 << 20) ? 512 : 256;
}

/* Numbers of a tile's rows, and what the last store writes past them. */
static INLINE int64_t NAME(slot)(const Columns *p) { return FULL * NAME(pass)(p) + LANES; }

static INLINE int64_t NAME(across)(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

/* Bytes of one thread's scratch: a pass of every b in panels and the rows of a group. */
static int64_t NAME(scratch)(const Columns *p) {
    int64_t numbers = GROUP * NAME(slot)(p);
    for (int64_t i = 0; i < p->count; i++) numbers += NAME(pass)(p) * NAME(across)(p->part[i].right.width);
    return (numbers * (int64_t)sizeof(REAL) + 4095) / 4096 * 4096;
}

/* Lays out a group of tiles' rows of one pass, and adds up the columns that it reads. What a store writes past its own
   rows, the next one overwrites. */
static void NAME(gather)(const Columns *p, const REAL *a, int64_t depth, int64_t from, int64_t until, int more,
                         REAL *out) {
    Vec sums[GROUP];
    const int64_t slot = NAME(slot)(p);
    const int count = (int)(until - from);
    for (int t = 0; t < count; t++) sums[t] = (Vec){0};
    for (int64_t k = 0; k < depth; k++) {
        const REAL *row = a + k * p->a_stride + from * FULL;
        const int64_t left = p->height - from * FULL;
        for (int t = 0; t < count; t++) {
            Vec v = load_some(row + t * FULL, some_of(left - t * FULL));
            sums[t] += v;
            store(out + t * slot + k * FULL, v);
        }
    }
    if (p->sums)
        for (int t = 0; t < count; t++) {
            const int64_t row = (from + t) * FULL, left = p->height - row;
            REAL *to = (REAL *)p->sums + row;
            const int rows = left < FULL ? (int)left : FULL;
            store_some(to, more ? sums[t] + load_some(to, rows) : sums[t], rows);
        }
}

static void NAME(dense_columns)(const Columns *p, int id, int team) {
    Vec tile[TALLEST * 4];
    REAL *group = (REAL *)((char *)p->scratch + id * NAME(scratch)(p)), *panels[2];
    const int64_t pass = NAME(pass)(p), slot = NAME(slot)(p);
    panels[0] = group + GROUP * slot;
    panels[1] = panels[0] + pass * NAME(across)(p->part[0].right.width);
    const int64_t count = (p->height + FULL - 1) / FULL, first = count * id / team, last = count * (id + 1) / team;
    for (int64_t begin = 0; begin < p->depth && first < last; begin += pass) {
        const int64_t depth = p->depth - begin < pass ? p->depth - begin : pass;
        const int more = p->more || begin > 0;
        for (int64_t i = 0; i < p->count; i++) NAME(lay_panels)(&p->part[i].right, begin, depth, panels[i], 0, 1);
        for (int64_t from = first; from < last; from += GROUP) {
            const int64_t until = from + GROUP < last ? from + GROUP : last;
            NAME(gather)(p, (const REAL *)p->a + begin * p->a_stride, depth, from, until, more, group);
            for (int64_t i = 0; i < p->count; i++) {
                const int64_t across = p->part[i].right.width, height = p->part[i].height, turn = p->part[i].turn;
                for (int64_t column = 0; column < across; column += WIDE * LANES) {
                    const int width = NAME(wide)(across, column);
                    for (int64_t t = from; t < until; t++) {
                        const REAL *rows = group + (t - from) * slot;
                        /* Rows of the tile that belong to this product. */
                        const int64_t row = t * FULL - p->part[i].from, left = height - row;
                        const int skip = row < 0 ? (int)-row : 0, end = left < FULL ? (int)left : FULL;
                        if (skip >= end) continue;
                        NAME(turned)[width](depth, &rows, panels[i] + column * depth, tile);
                        for (int m = skip; m < end; m++) {
                            const int64_t to = row + m < turn ? row + m + height - turn : row + m - turn;
                            NAME(put_row)(tile + m * width, (REAL *)p->part[i].out + to * across + column,
                                          across - column, width, more, NULL);
                        }
                    }
                }
            }
        }
    }
}

static void NAME(columns)(const Columns *given, int id, int team) {
    Columns dense = *given;
    dense.count = 0;
    for (int i = 0; i < given->count; i++)
        if (given->part[i].right.width > THIN) dense.part[dense.count++] = given->part[i];
    /* The sums come with the tiles' rows, or where there are none with a thin part that has all columns. */
    const int thin = given->count == 1 && !dense.count && given->part[0].height == given->height;
    if (dense.count || (given->sums && !thin)) NAME(dense_columns)(&dense, id, team);
    for (int i = 0; i < given->count; i++)
        if (given->part[i].right.width <= THIN) NAME(thin_columns)(given, i, thin ? (REAL *)given->sums : NULL, id, team);
}

/* Products over the many rows of a block of time: projections, and sums over rows for the gradients of weights. The
   same register tiles as the recurrence's. */

#if REGISTERS >= 32
#define WIDE 4
#else
#define WIDE 2
#endif
#define AT_ONCE 256 /* depth of a pass: a panel of it stays in L2, a tile's rows in L1 */
#define GROUP 16    /* tiles whose rows are laid out together */

static INLINE int NAME(wide)(int64_t width, int64_t column) {
    int64_t vectors = (width - column + LANES - 1) / LANES;
    return vectors < WIDE ? (int)vectors : WIDE;
}

/* Panel by panel, each over the whole depth; columns past the last are zeros. */
static void NAME(panels)(const Product *p, int turned, void *to, int id, int team) {
    const REAL *b = p->b;
    const int64_t units = WIDE * LANES, count = (p->width + units - 1) / units;
    for (int64_t panel = count * id / team; panel < count * (id + 1) / team; panel++) {
        const int64_t first = panel * units, across = NAME(wide)(p->width, first) * LANES;
        REAL *out = (REAL *)to + first * p->depth;
        if (!turned) {
            const int32_t *numbers = p->numbers;
            for (int64_t k = 0; k < p->depth; k++) {
                const REAL *row = b + k * p->b_stride;
                if (numbers && numbers[k] >= 0) row = p->fresh ? (const REAL *)p->fresh + numbers[k] * p->width : NULL;
                for (int64_t n = 0; n < across; n += LANES)
                    store(out + k * across + n,
                          row ? load_some(row + first + n, some_of(p->width - first - n)) : (Vec){0});
            }
            continue;
        }
        for (int64_t begin = 0; begin < p->depth; begin += 16) {
            const int64_t end = begin + 16 < p->depth ? begin + 16 : p->depth;
            for (int64_t n = 0; n < across; n++)
                for (int64_t k = begin; k < end; k++)
                    out[k * across + n] = first + n < p->width ? b[(first + n) * p->b_stride + k] : 0;
        }
    }
}

/* Adds a tile to `out`, or writes it. */
static INLINE void NAME(put_tile)(const Product *p, const Vec *tile, int64_t row, int height, int64_t column, int width,
                                  int more, const REAL *bias) {
    for (int m = 0; m < height; m++) {
        REAL *out = (REAL *)p->out + (row + m) * p->out_stride + column;
        for (int n = 0; n < width; n++) {
            const int some = some_of(p->width - column - n * LANES);
            Vec v = tile[m * width + n];
            if (more) v += load_some(out + n * LANES, some);
            if (bias) v += load_some(bias + column + n * LANES, some);
            store_some(out + n * LANES, v, some);
        }
    }
}

static void NAME(rows)(const Product *p, int id, int team) {
    Vec tile[TALLEST * 4];
    const REAL *rows[TALLEST];
    const int64_t first = p->height * id / team, last = p->height * (id + 1) / team;
    const int64_t deep = 4 * AT_ONCE;
    for (int64_t begin = 0; begin < p->depth; begin += deep) {
        const int64_t depth = p->depth - begin < deep ? p->depth - begin : deep;
        /* Rows in passes, so that they stay in L2 from one panel to the next. */
        for (int64_t from = first; from < last; from += 96) {
            const int64_t until = from + 96 < last ? from + 96 : last;
            for (int64_t column = 0; column < p->width; column += WIDE * LANES) {
                const int width = NAME(wide)(p->width, column), tallest = NAME(tallest)(width);
                const REAL *panel = (const REAL *)p->b + column * p->depth + begin * width * LANES;
                const int64_t tiles = (until - from + tallest - 1) / tallest;
                for (int64_t part = 0; part < tiles; part++) {
                    const int64_t row = from + (until - from) * part / tiles;
                    const int height = (int)(from + (until - from) * (part + 1) / tiles - row);
                    for (int m = 0; m < height; m++) rows[m] = (const REAL *)p->a + (row + m) * p->a_stride + begin;
                    NAME(tilers)[width][height](depth, rows, panel, tile);
                    NAME(put_tile)(p, tile, row, height, column, width, begin > 0, begin ? NULL : p->bias);
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

#define SLOT (FULL * AT_ONCE + LANES) /* a tile's rows, and what the last store writes past them */

static INLINE int64_t NAME(across)(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

/* Bytes of one thread's scratch: a pass of every b in panels and the rows of a group. */
static int64_t NAME(scratch)(const Product *p) {
    int64_t numbers = AT_ONCE * (NAME(across)(p->width) + NAME(across)(p->second.width)) + GROUP * SLOT;
    return (numbers * (int64_t)sizeof(REAL) + 4095) / 4096 * 4096;
}

/* Lays out a group of tiles' rows of one pass, and adds up the columns that it reads. What a store writes past its own
   rows, the next one overwrites. */
static void NAME(gather)(const Product *p, const REAL *a, int64_t depth, int64_t from, int64_t until, int more, REAL *out) {
    Vec sums[GROUP];
    const int count = (int)(until - from);
    for (int t = 0; t < count; t++) sums[t] = (Vec){0};
    for (int64_t k = 0; k < depth; k++) {
        const REAL *row = a + k * p->a_stride + from * FULL;
        const int64_t left = p->height - from * FULL;
        for (int t = 0; t < count; t++) {
            Vec v = load_some(row + t * FULL, some_of(left - t * FULL));
            sums[t] += v;
            store(out + t * SLOT + k * FULL, v);
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

static void NAME(columns)(const Product *p, int id, int team) {
    Vec tile[TALLEST * 4];
    REAL *panels = (REAL *)((char *)p->scratch + id * NAME(scratch)(p));
    REAL *group = panels + AT_ONCE * (NAME(across)(p->width) + NAME(across)(p->second.width));
    const int64_t count = (p->height + FULL - 1) / FULL, first = count * id / team, last = count * (id + 1) / team;
    /* The two products as if each were the only one; `from_row` is where the rows of its result begin in a's columns. */
    Product one[2] = {*p, *p};
    one[0].height = p->second.b ? p->first_rows : p->height;
    one[1].b = p->second.b;
    one[1].numbers = NULL;
    one[1].width = p->second.width;
    one[1].b_stride = p->second.b_stride;
    one[1].out = p->second.out;
    one[1].out_stride = p->second.out_stride;
    one[1].height = p->height - p->second.from_row;
    const int64_t from_row[2] = {0, p->second.from_row};
    const int products = p->second.b ? 2 : 1;
    for (int64_t begin = 0; begin < p->depth && first < last; begin += AT_ONCE) {
        const int64_t depth = p->depth - begin < AT_ONCE ? p->depth - begin : AT_ONCE;
        const int more = p->more || begin > 0;
        for (int i = 0; i < products; i++) {
            Product part = one[i];
            part.b = (const REAL *)part.b + begin * part.b_stride;
            part.depth = depth;
            if (part.numbers) part.numbers = (const int32_t *)part.numbers + begin;
            NAME(panels)(&part, 0, panels + i * AT_ONCE * NAME(across)(p->width), 0, 1);
        }
        for (int64_t from = first; from < last; from += GROUP) {
            const int64_t until = from + GROUP < last ? from + GROUP : last;
            NAME(gather)(p, (const REAL *)p->a + begin * p->a_stride, depth, from, until, more, group);
            for (int i = 0; i < products; i++) {
                const REAL *of_product = panels + i * AT_ONCE * NAME(across)(p->width);
                for (int64_t column = 0; column < one[i].width; column += WIDE * LANES) {
                    const int width = NAME(wide)(one[i].width, column);
                    for (int64_t t = from; t < until; t++) {
                        const REAL *rows = group + (t - from) * SLOT;
                        /* Rows of the tile that belong to this product. */
                        int64_t row = t * FULL - from_row[i], skip = row < 0 ? -row : 0, end = one[i].height - row;
                        if (end > FULL) end = FULL;
                        if (skip >= end) continue;
                        NAME(turned)[width](depth, &rows, of_product + column * depth, tile);
                        NAME(put_tile)(&one[i], tile + skip * width, row + skip, (int)(end - skip), column, width, more, NULL);
                    }
                }
            }
        }
    }
}

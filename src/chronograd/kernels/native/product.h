/* The register-tiled product: a few rows times one panel of the packed weight, over the whole depth at once.

   A panel is depth x width vectors. The sums stay in registers over all of the depth, the panel streams from L2; each of
   its vectors serves every row of the tile. Rows come as pointers, so a row that starts anew or is at the first step
   needs no copy. */

/* Rows a tile of `width` vectors may have: the sums, the panel's vectors and one number have to fit the registers. */
#define TALLEST 8
static INLINE int NAME(tallest)(int width) {
    int rows = (REGISTERS - width - 1) / width;
    return rows > TALLEST ? TALLEST : rows;
}

/* tile[row][column] = sum over k of rows[row][k] panel[k][column]. Where the tile is too small to hide the latency of
   an addition, `ways` partial sums take turns. `turned`: the rows lie interleaved from rows[0] on, as [k][row]. */
static INLINE void NAME(tile)(const int height, const int width, const int ways, const int turned, int64_t depth,
                              const REAL *const *rows, const REAL *panel, Vec *tile) {
    Vec sum[TALLEST * 4];
    const REAL *at[TALLEST];
    UNROLL for (int m = 0; m < height; m++) at[m] = turned ? rows[0] + m : rows[m];
    const int64_t step = turned ? height : 1;
    UNROLL for (int i = 0; i < ways * height * width; i++) sum[i] = (Vec){0};
    int64_t k = 0;
    for (; k + ways <= depth; k += ways) {
        UNROLL for (int way = 0; way < ways; way++) {
            Vec column[4];
            UNROLL for (int n = 0; n < width; n++) column[n] = load(panel + (way * width + n) * LANES);
            UNROLL for (int m = 0; m < height; m++) {
                Vec number = all(at[m][(k + way) * step]);
                UNROLL for (int n = 0; n < width; n++)
                    sum[(way * height + m) * width + n] += number * column[n];
            }
        }
        panel += ways * width * LANES;
    }
    for (; k < depth; k++) {
        UNROLL for (int m = 0; m < height; m++)
            UNROLL for (int n = 0; n < width; n++) sum[m * width + n] += at[m][k * step] * load(panel + n * LANES);
        panel += width * LANES;
    }
    UNROLL for (int i = 0; i < height * width; i++) {
        Vec total = sum[i];
        UNROLL for (int way = 1; way < ways; way++) total += sum[way * height * width + i];
        tile[i] = total;
    }
}

#define WAYS(height, width) ((height) * (width) >= 5 ? 1 : (height) * (width) >= 3 ? 2 : 4)
#define TILE(height, width)                                                                                         \
    static __attribute__((noinline)) void NAME(tile_##height##_##width)(int64_t depth, const REAL *const *rows,     \
                                                                        const REAL *panel, Vec *tile) {             \
        NAME(tile)(height, width, WAYS(height, width), 0, depth, rows, panel, tile);                                   \
    }
#define TILES(width)                                                                                                \
    TILE(1, width) TILE(2, width) TILE(3, width) TILE(4, width) TILE(5, width) TILE(6, width) TILE(7, width)        \
    TILE(8, width)
TILES(1)
TILES(2)
TILES(3)
TILE(1, 4)
TILE(2, 4)
TILE(3, 4)
TILE(4, 4)
TILE(5, 4)
TILE(6, 4)

typedef void (*NAME(Tiler))(int64_t, const REAL *const *, const REAL *, Vec *);
#define Tiler NAME(Tiler)
#define ROW_OF_TILES(width, ...)                                                                                    \
    {NULL,                   NAME(tile_1_##width), NAME(tile_2_##width), NAME(tile_3_##width), NAME(tile_4_##width), \
     NAME(tile_5_##width), NAME(tile_6_##width), __VA_ARGS__}
static const Tiler NAME(tilers)[5][TALLEST + 1] = {
    {NULL},
    ROW_OF_TILES(1, NAME(tile_7_1), NAME(tile_8_1)),
    ROW_OF_TILES(2, NAME(tile_7_2), NAME(tile_8_2)),
    ROW_OF_TILES(3, NAME(tile_7_3), NAME(tile_8_3)),
    ROW_OF_TILES(4, NULL, NULL),
};

/* How the columns of a product lie in panels. Forward, a gated kind has one vector of units per panel and a column of
   vectors for each of its gates; everything else has `width` vectors of units. */
typedef struct {
    int64_t depth, panels, units; /* units in a panel */
    int width, blocks;            /* vectors in a panel; gates in it */
} NAME(Layout);
#define Layout NAME(Layout)

static Layout NAME(layout)(const Job *job, int way) {
    Layout l;
    int64_t blocks = chronograd_blocks(job->kind);
    l.blocks = way == WAY_FORWARD ? (int)blocks : 1;
    l.depth = way == WAY_FORWARD ? job->size : blocks * job->size;
    l.width = l.blocks > 1 ? l.blocks : (int)job->plan.width;
    l.units = (int64_t)LANES * l.width / l.blocks;
    l.panels = (job->size + l.units - 1) / l.units;
    return l;
}

/* Vectors of the last panel may be fewer where a panel holds several vectors of units. */
static INLINE int NAME(panel_width)(const Layout *l, int64_t panel, int64_t size) {
    if (l->blocks > 1) return l->width;
    int64_t left = (size - panel * l->units + LANES - 1) / LANES;
    return left < l->width ? (int)left : l->width;
}

/* Numbers of the packed weight before a panel. */
static INLINE int64_t NAME(panel_at)(const Layout *l, int64_t panel) {
    return panel * LANES * l->width * l->depth;
}

static INLINE int NAME(some)(int64_t left) { return left < LANES ? (int)left : LANES; }
#define some_of NAME(some)

/* Columns past the last unit are zeros. The GRU's way back takes its blocks in the order n, r, z of Job.product. */
static void NAME(pack)(const Job *job, int way, const void *from, void *to, int id, int team) {
    const REAL *weight = from;
    const Layout l = NAME(layout)(job, way);
    const int64_t size = job->size;
    for (int64_t panel = l.panels * id / team; panel < l.panels * (id + 1) / team; panel++) {
        REAL *out = (REAL *)to + NAME(panel_at)(&l, panel);
        const int width = NAME(panel_width)(&l, panel, size);
        const int64_t row_of = (int64_t)width * LANES;
        if (way == WAY_BACK) {
            for (int64_t k = 0; k < l.depth; k++) {
                int64_t turned = job->kind == KIND_GRU ? (k + 2 * size) % l.depth : k;
                for (int n = 0; n < width; n++) {
                    int64_t unit = panel * l.units + n * LANES;
                    store(out + k * row_of + n * LANES, load_some(weight + turned * size + unit, some_of(size - unit)));
                }
            }
            continue;
        }
        /* A transposition, in blocks so that both sides stay in L1. */
        for (int64_t begin = 0; begin < l.depth; begin += 16) {
            int64_t end = begin + 16 < l.depth ? begin + 16 : l.depth;
            for (int column = 0; column < row_of; column++) {
                int64_t unit = panel * l.units + (l.blocks > 1 ? column % LANES : column);
                int64_t block = l.blocks > 1 ? column / LANES : 0;
                const REAL *row = weight + (block * size + unit) * l.depth;
                if (unit < size)
                    for (int64_t k = begin; k < end; k++) out[k * row_of + column] = row[k];
                else
                    for (int64_t k = begin; k < end; k++) out[k * row_of + column] = 0;
            }
        }
    }
}

/* A loop over time for each dense kind, the kind known to the compiler, and the choice among them. */
#define DENSE_KINDS(EACH, way)                                                                                      \
    EACH(way, tanh, KIND_TANH)                                                                                      \
    EACH(way, relu, KIND_RELU)                                                                                      \
    EACH(way, linear, KIND_LINEAR)                                                                                  \
    EACH(way, gru, KIND_GRU)                                                                                        \
    EACH(way, lstm, KIND_LSTM)
#define LOOP_OF(way, name, kind)                                                                                    \
    static __attribute__((noinline)) void NAME(way##_##name)(const Job *job, int id, int team) {                    \
        NAME(way##_loop)(kind, job, id, team);                                                                      \
    }
#define CASE_OF(way, name, kind)                                                                                    \
    case kind: NAME(way##_##name)(job, id, team); break;
#define DISPATCH(way)                                                                                               \
    DENSE_KINDS(LOOP_OF, way)                                                                                       \
    static void NAME(way)(const Job *job, int id, int team) {                                                       \
        switch (job->kind) { DENSE_KINDS(CASE_OF, way) }                                                            \
    }

/* Products of which one side is thin, at most THIN numbers: inputs of few features. Register tiles would be nearly empty.

   They are three loops along the long side: a thin depth is a few multiply-adds per vector of the result, a thin width
   dot products, and thin sums over rows keep the whole result in registers. */

#define STRIP 4 /* vectors of the long side at once */

static INLINE REAL NAME(total)(Vec v) {
#ifdef TOTAL
    return TOTAL(v);
#else
    REAL sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
#endif
}

/* Some rows of out = a b + bias where a has `depth` columns. */
static INLINE void NAME(thin_depth)(const int depth, const Rows *p, int64_t first, int64_t last) {
    const REAL *bias = p->bias;
    for (int64_t column = 0; column < p->width; column += LANES) {
        const int some = some_of(p->width - column), width = NAME(wide)(p->width, column / (WIDE * LANES) * WIDE * LANES);
        const REAL *panel = (const REAL *)p->panels + column / (WIDE * LANES) * WIDE * LANES * depth + column % (WIDE * LANES);
        const Vec add = bias ? load_some(bias + column, some) : (Vec){0};
        Vec b[THIN];
        UNROLL for (int k = 0; k < depth; k++) b[k] = load(panel + k * width * LANES);
        for (int64_t row = first; row < last; row++) {
            const REAL *a = (const REAL *)p->a + row * p->a_stride;
            Vec v = add;
            UNROLL for (int k = 0; k < depth; k++) v += a[k] * b[k];
            store_some((REAL *)p->out + row * p->out_stride + column, v, some);
        }
    }
}

/* Some rows of out = a b + bias where b has `width` columns, which lie one after the other. */
static INLINE void NAME(thin_width)(const int width, const Rows *p, int64_t first, int64_t last) {
    const REAL *b = p->panels, *bias = p->bias;
    for (int64_t row = first; row < last; row += STRIP) {
        const int height = last - row < STRIP ? (int)(last - row) : STRIP;
        const REAL *a = (const REAL *)p->a + row * p->a_stride;
        Vec sum[STRIP * THIN];
        UNROLL for (int i = 0; i < STRIP * width; i++) sum[i] = (Vec){0};
        for (int64_t k = 0; k < p->depth; k += LANES) {
            const int some = some_of(p->depth - k);
            Vec column[THIN];
            UNROLL for (int n = 0; n < width; n++) column[n] = load_some(b + n * p->depth + k, some);
            UNROLL for (int m = 0; m < STRIP; m++) {
                Vec numbers = load_some(a + (m < height ? m : 0) * p->a_stride + k, some);
                UNROLL for (int n = 0; n < width; n++) sum[m * width + n] += numbers * column[n];
            }
        }
        for (int m = 0; m < height; m++)
            for (int n = 0; n < width; n++)
                ((REAL *)p->out)[(row + m) * p->out_stride + n] =
                    NAME(total)(sum[m * width + n]) + (bias ? bias[n] : 0);
    }
}

/* A pass of rows so short that they stay in L1 from one vector of columns to the next. */
#define BY_WIDTH(function, count, ...)                                                                              \
    switch (count) {                                                                                                \
        case 1: NAME(function)(1, __VA_ARGS__); break;                                                              \
        case 2: NAME(function)(2, __VA_ARGS__); break;                                                              \
        case 3: NAME(function)(3, __VA_ARGS__); break;                                                              \
        default: NAME(function)(4, __VA_ARGS__);                                                                    \
    }
static int NAME(thin_rows)(const Rows *p, int64_t first, int64_t last) {
    if (p->depth > THIN && p->width > THIN) return 0;
    for (int64_t from = first; from < last; from += 64) {
        const int64_t until = from + 64 < last ? from + 64 : last;
        if (p->width <= THIN) {
            BY_WIDTH(thin_width, p->width, p, from, until)
        } else {
            BY_WIDTH(thin_depth, p->depth, p, from, until)
        }
    }
    return 1;
}

/* Some vectors of columns of a: out = a^T b for b of `width` columns, and the sums of a's columns where wanted. */
static INLINE void NAME(thin_strip)(const int width, const Columns *p, int i, REAL *sums, int64_t column, int vectors) {
    const Right *right = &p->part[i].right;
    const int64_t from = p->part[i].from, height = p->part[i].height, turn = p->part[i].turn, left = height - column;
    const REAL *a = (const REAL *)p->a + from + column;
    Vec sum[STRIP * THIN], plain[STRIP];
    UNROLL for (int n = 0; n < STRIP * width; n++) sum[n] = (Vec){0};
    UNROLL for (int m = 0; m < STRIP; m++) plain[m] = (Vec){0};
    for (int64_t k = 0; k < p->depth; k++) {
        const REAL *row = NAME(right_row)(right, k);
        Vec numbers[THIN];
        UNROLL for (int n = 0; n < width; n++) numbers[n] = row ? all(row[n]) : (Vec){0};
        UNROLL for (int m = 0; m < STRIP; m++) {
            if (m >= vectors) break;
            Vec v = load_some(a + k * p->a_stride + m * LANES, some_of(left - m * LANES));
            plain[m] += v;
            UNROLL for (int n = 0; n < width; n++) sum[m * width + n] += v * numbers[n];
        }
    }
    for (int m = 0; m < vectors; m++) {
        const int some = some_of(left - m * LANES);
        if (sums) {
            REAL *to = sums + from + column + m * LANES;
            store_some(to, p->more ? plain[m] + load_some(to, some) : plain[m], some);
        }
        for (int lane = 0; lane < some; lane++)
            for (int n = 0; n < width; n++) {
                const int64_t row = column + m * LANES + lane, to = row < turn ? row + height - turn : row - turn;
                REAL *out = (REAL *)p->part[i].out + to * width + n;
                *out = sum[m * width + n][lane] + (p->more ? *out : 0);
            }
    }
}

/* A thin part of the columns, with the sums where `sums` is given. */
static void NAME(thin_columns)(const Columns *p, int i, REAL *sums, int id, int team) {
    const int64_t count = (p->part[i].height + LANES - 1) / LANES;
    const int64_t first = count * id / team, last = count * (id + 1) / team;
    for (int64_t at = first; at < last; at += STRIP) {
        const int vectors = last - at < STRIP ? (int)(last - at) : STRIP;
        BY_WIDTH(thin_strip, p->part[i].right.width, p, i, sums, at * LANES, vectors)
    }
}

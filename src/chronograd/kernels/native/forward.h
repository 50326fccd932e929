/* The way forward through a block of time: product and point-wise part of a tile at once. */

#define GET(array, offset) load_some((const REAL *)(array) + (offset), some)
#define PUT(array, offset, v) store_some((REAL *)(array) + (offset), v, some)

/* h' of one row and one vector of units from their products; `unit` is the first of `some` units. */
static INLINE void NAME(forward_point)(const int kind, const Job *job, int64_t t, int64_t b, int64_t unit, int some,
                                       const Vec *product) {
    const int64_t size = job->size, row = t * job->rows + b, state = row * size + unit;
    const int64_t drive = row * job->drive_stride + unit, kept = row * job->kept_stride + unit;
    Vec h, c = {0};
    if (kind == KIND_LSTM) {
        Vec i = NAME(sigmoid)(product[0] + GET(job->drive, drive));
        Vec f = NAME(sigmoid)(product[1] + GET(job->drive, drive + size));
        Vec g = NAME(tanh)(product[2] + GET(job->drive, drive + 2 * size));
        Vec o = NAME(sigmoid)(product[3] + GET(job->drive, drive + 3 * size));
        c = f * GET(before(job, 1, t, b), unit) + i * g;
        h = o * NAME(tanh)(c);
        if (job->kept) {
            PUT(job->kept, kept, i);
            PUT(job->kept, kept + size, f);
            PUT(job->kept, kept + 2 * size, g);
            PUT(job->kept, kept + 3 * size, o);
        }
    } else if (kind == KIND_GRU) {
        Vec in_r = product[0], in_z = product[1], inner = product[2];
        if (job->bias) {
            in_r += GET(job->bias, unit);
            in_z += GET(job->bias, unit + size);
            inner += GET(job->bias, unit + 2 * size);
        }
        Vec r = NAME(sigmoid)(in_r + GET(job->drive, drive));
        Vec z = NAME(sigmoid)(in_z + GET(job->drive, drive + size));
        Vec n = NAME(tanh)(GET(job->drive, drive + 2 * size) + r * inner);
        h = n + z * (GET(before(job, 0, t, b), unit) - n);
        if (job->kept) {
            PUT(job->kept, kept, r);
            PUT(job->kept, kept + size, z);
            PUT(job->kept, kept + 2 * size, inner);
            PUT(job->kept, kept + 3 * size, n);
        }
    } else {
        h = product[0] + GET(job->drive, drive);
        if (kind == KIND_TANH) h = NAME(tanh)(h);
        if (kind == KIND_RELU) h = most((Vec){0}, h);
    }
    if (frozen(job, t, b)) {
        h = GET(before(job, 0, t, b), unit);
        if (kind == KIND_LSTM) c = GET(before(job, 1, t, b), unit);
    }
    PUT(job->path[0], state, h);
    if (kind == KIND_LSTM) PUT(job->path[1], state, c);
}

static INLINE void NAME(forward_loop)(const int kind, const Job *job, int id, int team) {
    const Layout l = NAME(layout)(job, WAY_FORWARD);
    const int by_units = (int)job->plan.by_units;
    Share s = NAME(share)(job, &l, by_units, id, team);
    Vec tile[TALLEST * 4];
    const REAL *rows[TALLEST];
    for (int64_t t = 0; t < job->steps; t++) {
        for (int64_t panel = s.panel; panel < s.panels; panel++) {
            const REAL *weight = (const REAL *)job->packed + NAME(panel_at)(&l, panel);
            const int width = NAME(panel_width)(&l, panel, job->size);
            for (int64_t part = 0; part < s.tiles; part++) {
                const int64_t b = NAME(tile_row)(&s, part);
                const int height = (int)(NAME(tile_row)(&s, part + 1) - b);
                for (int m = 0; m < height; m++) rows[m] = before(job, 0, t, b + m);
                NAME(tilers)[width][height](l.depth, rows, weight, tile);
                for (int m = 0; m < height; m++)
                    for (int n = 0; n < width / l.blocks; n++) {
                        const int64_t unit = panel * l.units + n * LANES;
                        NAME(forward_point)(kind, job, t, b + m, unit, some_of(job->size - unit),
                                            tile + m * width + n * l.blocks);
                    }
            }
        }
        if (by_units && team > 1 && chronograd_meet_or_part(id, team)) {
            if (id) return;
            s = NAME(share)(job, &l, by_units, 0, team = 1);
        }
    }
}

DISPATCH(forward)

/* The way back through a block of time.

   The product D_t W of step t ends in the flow into the state before it. The flow crosses the edge, meets what is given
   there and becomes D of the step before, all in registers. job->flow carries what does not pass through the product:
   z delta (GRU), f dc (LSTM), everything of a frozen row. */

/* D of one row and one vector of units at step t, from the cotangents of its states. */
static INLINE void NAME(back_point)(const int kind, const Job *job, int64_t t, int64_t b, int64_t unit, int some,
                                    Vec dh, Vec dc) {
    const int64_t size = job->size, row = t * job->rows + b, state = row * size + unit;
    const int64_t kept = row * job->kept_stride + unit, out = row * job->product_stride + unit;
    const int64_t flow = b * size + unit;
    if (job->given[0]) dh += GET(job->given[0], state);
    if (kind == KIND_LSTM && job->given[1]) dc += GET(job->given[1], state);
    if (frozen(job, t, b)) {
        const int blocks = kind == KIND_LSTM || kind == KIND_GRU ? 4 : 1;
        for (int block = 0; block < blocks; block++) PUT(job->product, out + block * size, (Vec){0});
        PUT(job->flow[0], flow, dh);
        if (kind == KIND_LSTM) PUT(job->flow[1], flow, dc);
        return;
    }
    if (kind == KIND_LSTM) {
        Vec i = GET(job->kept, kept), f = GET(job->kept, kept + size);
        Vec g = GET(job->kept, kept + 2 * size), o = GET(job->kept, kept + 3 * size);
        Vec squashed = NAME(tanh)(GET(job->path[1], state));
        Vec of_o = dh * o;
        dc += of_o * (1 - squashed * squashed);
        Vec of_f = dc * f;
        PUT(job->product, out, dc * g * (i * (1 - i)));
        PUT(job->product, out + size, of_f * (1 - f) * GET(before(job, 1, t, b), unit));
        PUT(job->product, out + 2 * size, dc * i * (1 - g * g));
        PUT(job->product, out + 3 * size, of_o * (1 - o) * squashed);
        PUT(job->flow[1], flow, of_f);
    } else if (kind == KIND_GRU) {
        Vec r = GET(job->kept, kept), z = GET(job->kept, kept + size);
        Vec inner = GET(job->kept, kept + 2 * size), n = GET(job->kept, kept + 3 * size);
        Vec past = dh * z, rest = dh - past;
        Vec of_n = rest * (1 - n * n);
        Vec of_inner = of_n * r;
        PUT(job->product, out, of_inner);
        PUT(job->product, out + size, of_inner * (1 - r) * inner);
        PUT(job->product, out + 2 * size, rest * z * (GET(before(job, 0, t, b), unit) - n));
        PUT(job->product, out + 3 * size, of_n);
        PUT(job->flow[0], flow, past);
    } else {
        if (kind == KIND_TANH) {
            Vec h = GET(job->path[0], state);
            dh *= 1 - h * h;
        }
        if (kind == KIND_RELU) {
            Vec h = GET(job->path[0], state);
            dh = (Vec)((Int)dh & ~(h <= 0)); /* what is not a number passes, as in torch */
        }
        PUT(job->product, out, dh);
    }
}

/* The flow over the edge into step t of one row: a reset takes all of it, the gate multiplies it. */
static INLINE Vec NAME(cross)(const Job *job, int part, int64_t t, int64_t b, int64_t unit, int some, Vec flow) {
    const int64_t row = t * job->rows + b;
    const int32_t number = NAME(fresh_number)(job, t, b);
    if (number >= 0) {
        if (job->fresh_back[part]) PUT(job->fresh_back[part], number * job->size + unit, flow);
        return (Vec){0};
    }
    if (job->gates) {
        REAL gate = ((const REAL *)job->gates)[row];
        flow = gate == 0 ? (Vec){0} : flow * gate;
    }
    return flow;
}

/* After the product of step t: over its edge and on to the step before, or out of the block. */
static INLINE void NAME(back_edge)(const int kind, const Job *job, int64_t t, int64_t b, int64_t unit, int some,
                                   Vec through) {
    const int64_t flow = b * job->size + unit;
    Vec dc = {0};
    if (frozen(job, t, b))
        through = GET(job->flow[0], flow);
    else if (kind == KIND_GRU)
        through += GET(job->flow[0], flow);
    through = NAME(cross)(job, 0, t, b, unit, some, through);
    if (kind == KIND_LSTM) dc = NAME(cross)(job, 1, t, b, unit, some, GET(job->flow[1], flow));
    if (t > 0) {
        NAME(back_point)(kind, job, t - 1, b, unit, some, through, dc);
        return;
    }
    PUT(job->flow[0], flow, through);
    if (kind == KIND_LSTM) PUT(job->flow[1], flow, dc);
}

/* What the product of one row and one vector of units becomes by each unit's own weights alone. */
static INLINE Vec NAME(by_own)(const int kind, const Job *job, const REAL *product, int64_t unit, int some) {
    const int blocks = kind == KIND_LSTM ? 4 : kind == KIND_GRU ? 3 : 1;
    Vec through = {0};
    UNROLL for (int block = 0; block < blocks; block++) {
        /* The GRU's product is in the order n, r, z. */
        const int turned = kind == KIND_GRU ? (block + 2) % 3 : block;
        through += GET(product, block * job->size + unit) * GET(job->own, turned * job->size + unit);
    }
    return through;
}

/* The same where each unit's own weights alone pass on what flows: no two units meet. */
static INLINE void NAME(own_loop)(const int kind, const Job *given, const Share *s, const Layout *l) {
    const Job same = *given, *job = &same; /* a constant of its own, which no store can be thought to change */
    const int64_t first = s->panel * l->units, last = s->panels * l->units < job->size ? s->panels * l->units : job->size;
    for (int64_t t = job->steps; t >= 0; t--)
        for (int64_t b = s->row; b < s->rows; b++) {
            const REAL *product = (const REAL *)job->product + (t * job->rows + b) * job->product_stride;
            for (int64_t unit = first; unit < last; unit += LANES) {
                const int some = some_of(last - unit);
                if (t < job->steps)
                    NAME(back_edge)(kind, job, t, b, unit, some, NAME(by_own)(kind, job, product, unit, some));
                else
                    NAME(back_point)(kind, job, t - 1, b, unit, some, GET(job->flow[0], b * job->size + unit),
                                     kind == KIND_LSTM ? GET(job->flow[1], b * job->size + unit) : (Vec){0});
            }
        }
}

static INLINE void NAME(back_loop)(const int kind, const Job *job, int id, int team) {
    const Layout l = NAME(layout)(job, WAY_BACK);
    const int by_units = (int)job->plan.by_units;
    Share s = NAME(share)(job, &l, by_units, id, team);
    if (job->own) {
        NAME(own_loop)(kind, job, &s, &l);
        return;
    }
    const int64_t stride = job->product_stride;
    Vec tile[TALLEST * 4];
    const REAL *rows[TALLEST];
    /* The step `steps` stands for the entry into the block: no product, only the flow that comes in. */
    for (int64_t t = job->steps; t >= 0; t--) {
        for (int64_t panel = s.panel; panel < s.panels; panel++) {
            const REAL *weight = (const REAL *)job->packed + NAME(panel_at)(&l, panel);
            const int width = NAME(panel_width)(&l, panel, job->size);
            for (int64_t part = 0; part < s.tiles; part++) {
                const int64_t b = NAME(tile_row)(&s, part);
                const int height = (int)(NAME(tile_row)(&s, part + 1) - b);
                if (t < job->steps) {
                    const REAL *product = (const REAL *)job->product + (t * job->rows + b) * stride;
                    for (int m = 0; m < height; m++) rows[m] = product + m * stride;
                    NAME(tilers)[width][height](l.depth, rows, weight, tile);
                }
                for (int m = 0; m < height; m++)
                    for (int n = 0; n < width; n++) {
                        const int64_t unit = panel * l.units + n * LANES, flow = (b + m) * job->size + unit;
                        const int some = some_of(job->size - unit);
                        if (t < job->steps)
                            NAME(back_edge)(kind, job, t, b + m, unit, some, tile[m * width + n]);
                        else
                            NAME(back_point)(kind, job, t - 1, b + m, unit, some, GET(job->flow[0], flow),
                                             kind == KIND_LSTM ? GET(job->flow[1], flow) : (Vec){0});
                    }
            }
        }
        if (by_units && t > 0 && team > 1 && chronograd_meet_or_part(id, team)) {
            if (id) return;
            s = NAME(share)(job, &l, by_units, 0, team = 1);
        }
    }
}

DISPATCH(back)

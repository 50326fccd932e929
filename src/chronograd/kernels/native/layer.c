/* A layer in blocks of time: each block is projected, run and forgotten; on the way back it adds its part of the weights'
   gradients in one pass over its cotangents.

   X W_ih^T of all steps is never stored, nor are the cotangents of all products:

       dL/dW_hh += D^T H_before,  dL/dW_ih += D^T X,  dL/dX = D W_ih

   A diagonal recurrence on few features does all of this by itself, in one block (diagonal.h). */
#if defined(__linux__)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#endif
#include <string.h>

#include "kernels.h"

/* Under the address sanitizer the parts of the room have guards between them. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GUARD 256
#else
#define GUARD 0
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

/* A block's projected inputs stay in the cache, but its matrix products have enough rows to run at full speed. */
#define BLOCK_BYTES (4 << 20)
#define BLOCK_ROWS 1024
#define WORTH_SHARING 300000.0 /* multiply-adds of a product below which one thread does it alone */

#define WORTH_LARGE_PAGES (8 << 20)
/* What is kept lives for one step only. Beyond this size its memory has often been given away before it is wanted again,
   at worst to the host of a virtual machine, and large pages come back the slowest: four times as long was measured. */
#define MOST_LARGE_PAGES (256 << 20)

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t aligned(int64_t bytes) { return up(bytes, 256) * 256 + GUARD; }

/* A part of the room of so many bytes, and on to the next one. */
static char *part_of(char *room, int64_t *used, int64_t bytes) {
    char *part = room ? room + *used : NULL;
    *used += aligned(bytes);
    if (part) ASAN_POISON_MEMORY_REGION(part + bytes, aligned(bytes) - bytes);
    return part;
}

/* What both ways know of a layer. */
typedef struct {
    const Layer *layer;
    const Table *table;
    int way, diagonal, complex, direct; /* direct: the recurrence projects its inputs by itself */
    int64_t number;                /* bytes of a real */
    int64_t size, inputs, outputs; /* reals in a row of states, of x, of projected x: complex numbers are pairs */
    int64_t across, length;        /* reals in a row of the block (outputs; back, GRU: 4H), steps in it */
    Job job;
    Rows rows;
    Columns columns;
    Right projection; /* weight_ih */
    /* Where things lie in the room. */
    char *packed, *panels, *bias, *zeros, *block, *scratch, *sums, *chunks, *as_reals, *as_reals_back;
    int packing;
    int64_t begin, end;
} Walk;

/* Lays out the room from `room` on (NULL: only counts) and returns its bytes. */
static int64_t lay_out(Walk *w, char *room) {
    const Layer *l = w->layer;
    const int lanes = w->table->lanes, back = w->way == WAY_BACK;
    const int64_t width = back ? w->inputs : w->outputs, depth = back ? w->outputs : w->inputs;
    int64_t bytes = 0;
#define PLACE(name, count) (w->name = part_of(room, &bytes, count))
    PLACE(packed, w->diagonal || w->job.own ? 0 : w->outputs * up(l->size, lanes) * lanes * w->number);
    PLACE(panels, w->direct ? 0 : up(width, lanes) * lanes * depth * w->number);
    PLACE(bias, w->across * w->number);
    PLACE(zeros, w->size * w->number);
    /* Forward, the projected inputs lie where their states or kept blocks will, if there is such a place. */
    const int stored = back ? !w->direct : w->outputs != w->size && !l->kept;
    PLACE(block, stored ? w->length * l->rows * w->across * w->number : 0);
    PLACE(scratch, back && !w->direct ? w->table->scratch(&w->columns) * l->threads : 0);
    PLACE(sums, back && w->diagonal ? l->threads * w->job.sums_stride * (int64_t)sizeof(double) : 0);
    PLACE(chunks, w->diagonal ? l->threads * w->job.scratch_bytes : 0);
    PLACE(as_reals, w->complex ? w->outputs * w->inputs * w->number : 0);
    PLACE(as_reals_back, w->complex && back ? w->outputs * w->inputs * w->number : 0);
#undef PLACE
    return bytes;
}

/* One more weight whose gradient comes from the columns: the recurrent one, then that of the inputs. */
static void add_part(Walk *w, int64_t width, int64_t from, void *out) {
    const int recurrent = out == w->layer->weight_back;
    w->columns.part[w->columns.count].right = (Right){.stride = width, .width = width};
    w->columns.part[w->columns.count].from = from;
    w->columns.part[w->columns.count].height = w->outputs;
    /* The kernel's order is n, r, z. */
    w->columns.part[w->columns.count].turn = recurrent && w->layer->kind == KIND_GRU ? w->size : 0;
    w->columns.part[w->columns.count++].out = out;
}

static Walk walk_of(const Layer *l, int way) {
    Walk w = {.layer = l, .table = chronograd_table(l->isa, l->real), .way = way};
    w.diagonal = l->kind >= KIND_DIAGONAL;
    w.complex = l->kind == KIND_DIAGONAL_COMPLEX;
    w.number = l->real == REAL_DOUBLE ? 8 : 4;
    w.size = l->size << w.complex;
    w.inputs = l->inputs << w.complex;
    w.outputs = chronograd_blocks(l->kind) * w.size;
    w.across = way == WAY_BACK && l->kind == KIND_GRU ? 4 * w.size : w.outputs;
    const int64_t wanted = most(BLOCK_ROWS, BLOCK_BYTES / most(1, w.across * w.number));
    const int64_t count = most(1, up(l->steps * l->rows, wanted));
    w.length = l->block ? least(l->block, l->steps) : up(l->steps, count);
    w.job = (Job){.kind = l->kind, .real = l->real, .isa = l->isa, .threads = l->threads, .split = l->split,
                  .steps = l->steps, .rows = l->rows, .size = w.size, .drive_stride = w.across,
                  .fresh = {l->fresh[0], l->fresh[1]}, .fresh_back = {l->fresh_back[0], l->fresh_back[1]}};
    if (way == WAY_BACK && !w.diagonal) w.job.own = l->own;
    w.job.plan = chronograd_plan(&w.job, way);
    if (w.diagonal) {
        /* Whole rows only: what flows to the inputs is a sum over all units. */
        w.direct = w.inputs > 0 && w.inputs <= THIN && !w.job.plan.by_units;
        if (w.direct && !l->block) w.length = l->steps;
        w.job.depth = w.direct ? w.inputs : 0;
        w.job.sums_stride = w.size * (w.direct ? 2 + w.inputs : 1);
        w.job.scratch_bytes = aligned(w.table->diagonal_scratch());
    }
    w.columns = (Columns){.height = w.across, .a_stride = w.across};
    if (way == WAY_BACK && !w.diagonal && l->weight_back) add_part(&w, w.size, 0, l->weight_back);
    if (way == WAY_BACK && l->weight_ih_back && !w.direct) add_part(&w, w.inputs, w.across - w.outputs, l->weight_ih_back);
    return w;
}

int64_t chronograd_room(const Layer *layer, int64_t way) {
    Walk w = walk_of(layer, (int)way);
    return lay_out(&w, NULL);
}

/* Asks for large pages under what is about to be written for the first time: thousands of faults less. */
static void large_pages(void *array, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, first = ((uintptr_t)array + page - 1) / page * page;
    const uintptr_t last = ((uintptr_t)array + (uintptr_t)bytes) / page * page;
    if (array && bytes >= WORTH_LARGE_PAGES && last > first) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)array, (void)bytes;
#endif
}

static const void *from(const void *array, int64_t at, int64_t bytes) {
    return array ? (const char *)array + at * bytes : NULL;
}
static void *to(void *array, int64_t at, int64_t bytes) { return array ? (char *)array + at * bytes : NULL; }

/* The job of the block that begins and ends at these steps. */
static void point(Walk *w, int64_t begin, int64_t end) {
    const Layer *l = w->layer;
    const int64_t step = l->rows * w->size * w->number;
    Job *job = &w->job;
    w->begin = begin;
    w->end = end;
    job->steps = end - begin;
    job->gates = from(l->gates, begin * l->rows, w->number);
    job->reset = from(l->reset, begin * l->rows, 4);
    job->valid = from(l->valid, begin * l->rows, 1);
    for (int part = 0; part < 2; part++) {
        job->path[part] = to(l->path[part], begin, step);
        job->initial[part] = begin ? from(l->path[part], begin - 1, step) : l->initial[part];
        job->given[part] = from(l->given[part], begin, step);
        job->flow[part] = l->initial_back[part];
    }
    job->kept = to(l->kept, begin, 4 * step);
    job->kept_stride = 4 * l->size;
    job->x = from(l->x, begin * l->rows * w->inputs, w->number);
    job->x_back = to(l->x_back, begin * l->rows * w->inputs, w->number);
}

/* How many threads the region of a block has: as many as its loop over time or its products can use. */
static int64_t threads_of(const Walk *w) {
    const Layer *l = w->layer;
    /* A loop that splits the units meets in every step: nobody else may wait meanwhile. */
    if ((w->job.plan.by_units && !w->diagonal && !w->job.own) || w->direct) return w->job.plan.threads;
    const int64_t depth = w->inputs + (w->way == WAY_BACK && l->weight_back && !w->diagonal ? w->size : 0);
    const double work = (double)((w->end - w->begin) * l->rows) * (double)w->outputs * (double)depth;
    return most(w->job.plan.threads, work > WORTH_SHARING ? l->threads : 1);
}

/* The weights in the order of the kernels, once for all blocks. */
static void lay_weights(Walk *w, int id, int team) {
    if (!w->diagonal && !w->job.own) w->table->pack(&w->job, w->way, w->layer->weight, w->packed, id, team);
    if (w->projection.b)
        w->table->panels(&w->projection, w->way == WAY_FORWARD ? w->inputs : w->outputs, w->way == WAY_FORWARD,
                         w->panels, id, team);
    chronograd_meet(id, team);
}

static void forward(void *argument, int id, int team) {
    Walk *w = argument;
    if (w->packing) lay_weights(w, id, team);
    if (!w->direct) {
        w->table->rows(&w->rows, id, team);
        chronograd_meet(id, team);
    }
    const int share = (int)least(w->job.plan.threads, team);
    if (id < share) (w->diagonal ? w->table->diagonal_forward : w->table->forward)(&w->job, id, share);
}

static void back(void *argument, int id, int team) {
    Walk *w = argument;
    if (w->packing) lay_weights(w, id, team);
    const int share = (int)least(w->job.plan.threads, team);
    if (id < share) (w->diagonal ? w->table->diagonal_back : w->table->back)(&w->job, id, share);
    if (w->direct) return;
    chronograd_meet(id, team);
    if (w->rows.out) w->table->rows(&w->rows, id, team);
    if (w->columns.count || w->columns.sums) w->table->columns(&w->columns, id, team);
}

/* What both ways set up once the room is there. */
static void prepare(Walk *w) {
    const Layer *l = w->layer;
    lay_out(w, l->room);
    w->job.packed = w->diagonal ? l->weight : w->packed;
    if (l->reset && !l->fresh[0]) {
        memset(w->zeros, 0, (size_t)(w->size * w->number));
        w->job.zeros = w->zeros;
    }
    const void *weight_ih = l->weight_ih;
    if (w->complex) {
        w->table->complex_as_reals(l, w->as_reals);
        weight_ih = w->as_reals;
    }
    w->job.weight_ih = weight_ih;
    w->job.scratch = w->chunks;
    /* The inputs' weight is (G, d): forward the product wants its transpose. */
    if (w->direct) return;
    if (w->way == WAY_FORWARD || l->x_back)
        w->projection = (Right){.b = weight_ih, .stride = w->inputs,
                                .width = w->way == WAY_FORWARD ? w->outputs : w->inputs};
}

/* Biases that are simply added are one; the GRU's recurrent one sits inside its reset gate. */
static const void *one_bias(const Walk *w) {
    const Layer *l = w->layer;
    if (!l->bias || !l->bias_ih) return l->bias ? l->bias : l->bias_ih;
    w->table->add(w->outputs, l->bias_ih, l->bias, w->bias);
    return w->bias;
}

/* The room is the caller's again. */
static void give_back(Walk *w) { ASAN_UNPOISON_MEMORY_REGION(w->layer->room, lay_out(w, NULL)); }

void chronograd_forward(const Layer *l) {
    if (!l->steps || !l->rows || !l->size) return;
    Walk w = walk_of(l, WAY_FORWARD);
    prepare(&w);
    const int64_t states = l->steps * l->rows * w.size * w.number;
    large_pages(l->path[0], states);
    large_pages(l->path[1], states);
    if (4 * states <= MOST_LARGE_PAGES) large_pages(l->kept, 4 * states);
    const void *bias = l->kind == KIND_GRU ? l->bias_ih : one_bias(&w);
    if (l->kind == KIND_GRU) w.job.bias = l->bias;
    if (w.direct) w.job.bias = bias;
    for (int64_t begin = 0; begin < l->steps; begin += w.length) {
        const int64_t end = least(begin + w.length, l->steps);
        point(&w, begin, end);
        void *place = w.outputs == w.size ? w.job.path[0] : l->kept ? w.job.kept : w.block;
        const int64_t stride = place == w.job.kept ? 4 * w.size : w.outputs;
        w.job.drive = place;
        w.job.drive_stride = stride;
        w.rows = (Rows){.height = (end - begin) * l->rows, .width = w.outputs, .depth = w.inputs, .panels = w.panels,
                        .a = from(l->x, begin * l->rows * w.inputs, w.number), .a_stride = w.inputs,
                        .out = place, .out_stride = stride, .bias = bias};
        w.packing = begin == 0;
        chronograd_team(threads_of(&w), forward, &w);
    }
    give_back(&w);
}

/* What the rows of a block were taken from: the states one step before, the initial ones before step 0. */
static Right before_block(const Walk *w, Right right) {
    const Layer *l = w->layer;
    right.b = from(l->path[0], (w->begin ? w->begin - 1 : 0) * l->rows * w->size, w->number);
    right.first = l->initial[0];
    right.firsts = w->begin ? 0 : l->rows;
    right.numbers = w->job.reset;
    right.fresh = l->fresh[0];
    return right;
}

/* No rows: every sum is zero. */
static void nothing(const Walk *w) {
    const Layer *l = w->layer;
    const int64_t row = w->outputs * w->number;
    if (l->weight_back) memset(l->weight_back, 0, (size_t)(w->diagonal ? row : row * l->size));
    if (l->weight_ih_back) memset(l->weight_ih_back, 0, (size_t)(row * l->inputs));
    if (l->bias_ih_back) memset(l->bias_ih_back, 0, (size_t)row);
    if (l->bias_back) memset(l->bias_back, 0, (size_t)row);
}

/* What the threads of a diagonal recurrence have summed. */
static void finish(const Walk *w, void *weight_ih_back) {
    const Layer *l = w->layer;
    const double *sums = w->job.sums;
    const struct {
        int64_t count;
        void *out;
    } parts[] = {{w->size, l->weight_back}, {w->size, w->bias}, {w->size * w->inputs, weight_ih_back}};
    for (int part = 0; part < (w->direct ? 3 : 1); sums += parts[part++].count)
        if (parts[part].out) w->table->finish(parts[part].count, sums, w->job.sums_stride, (int)l->threads, parts[part].out);
}

void chronograd_back(const Layer *l) {
    Walk w = walk_of(l, WAY_BACK);
    for (int part = 0; part < 2; part++)
        if (l->initial_back[part]) memset(l->initial_back[part], 0, (size_t)(l->rows * w.size * w.number));
    if (!l->steps || !l->rows || !l->size) {
        nothing(&w);
        return;
    }
    prepare(&w);
    large_pages(l->x_back, l->steps * l->rows * w.inputs * w.number);
    w.columns.scratch = w.scratch;
    w.job.product = w.block;
    w.job.product_stride = w.across;
    if (w.direct) w.job.bias = one_bias(&w);
    if (w.diagonal && (l->weight_back || w.direct)) {
        w.job.sums = w.sums;
        memset(w.sums, 0, (size_t)(l->threads * w.job.sums_stride) * sizeof(double));
    }
    if ((l->bias_ih_back || l->bias_back) && !w.direct) w.columns.sums = w.bias;
    const int of_x = (int)w.columns.count - 1; /* the part of the inputs' weight, if it is wanted */
    void *weight_ih_back = w.complex && l->weight_ih_back ? w.as_reals_back : l->weight_ih_back;
    if (of_x >= 0 && l->weight_ih_back) w.columns.part[of_x].out = weight_ih_back;
    for (int64_t end = l->steps; end > 0; end -= w.length) {
        const int64_t begin = most(0, end - w.length), first = begin * l->rows * w.inputs, count = (end - begin) * l->rows;
        point(&w, begin, end);
        if (l->x_back && !w.direct)
            w.rows = (Rows){.height = count, .width = w.inputs, .depth = w.outputs, .panels = w.panels,
                            .a = w.block + (w.across - w.outputs) * w.number, .a_stride = w.across,
                            .out = to(l->x_back, first, w.number), .out_stride = w.inputs};
        w.columns.a = w.block;
        w.columns.depth = count;
        w.columns.more = end < l->steps;
        if (l->weight_ih_back && !w.direct) w.columns.part[of_x].right.b = from(l->x, first, w.number);
        if (l->weight_back && !w.diagonal) w.columns.part[0].right = before_block(&w, w.columns.part[0].right);
        w.packing = end == l->steps;
        chronograd_team(threads_of(&w), back, &w);
    }
    if (w.job.sums) finish(&w, weight_ih_back);
    if (w.complex && l->weight_ih_back) w.table->reals_as_complex(l, w.as_reals_back);
    const size_t weights = (size_t)(w.outputs * w.number);
    if (l->bias_ih_back) memcpy(l->bias_ih_back, w.bias + w.across * w.number - weights, weights);
    if (l->bias_back) {
        /* The GRU's order is n, r, z. */
        const size_t last = l->kind == KIND_GRU ? (size_t)(w.size * w.number) : 0;
        memcpy(l->bias_back, w.bias + last, weights - last);
        memcpy((char *)l->bias_back + weights - last, w.bias, last);
    }
    give_back(&w);
}

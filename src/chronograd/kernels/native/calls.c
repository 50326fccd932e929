/* The interface: which instruction set, how many threads, and the calls themselves. */
#include "kernels.h"

int64_t chronograd_abi(void) { return (int64_t)sizeof(Job); }

int64_t chronograd_isas(void) {
    int64_t can = 1 << ISA_PLAIN;
#ifdef HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        can |= 1 << ISA_AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl"))
            can |= 1 << ISA_AVX512;
    }
#endif
    return can;
}

/* The wanted instruction set, or the best one below it that this machine can run. */
const Table *chronograd_table(int64_t isa, int64_t real) {
    static int64_t can; /* every thread writes the same */
    if (!can) can = chronograd_isas();
    if (isa == ISA_BEST || isa >= ISA_COUNT) isa = ISA_COUNT - 1;
#ifdef HAVE_X86
    if (isa == ISA_AVX512 && can >> ISA_AVX512 & 1) return chronograd_avx512[real];
    if (isa >= ISA_AVX2 && can >> ISA_AVX2 & 1) return chronograd_avx2[real];
#endif
    return chronograd_plain[real];
}

int64_t chronograd_blocks(int64_t kind) { return kind == KIND_LSTM ? 4 : kind == KIND_GRU ? 3 : 1; }

static int diagonal(const Job *job) { return job->kind >= KIND_DIAGONAL; }

int64_t chronograd_packed_bytes(const Job *job, int64_t way) {
    const Table *table = chronograd_table(job->isa, job->real);
    int64_t blocks = chronograd_blocks(job->kind), number = job->real == REAL_DOUBLE ? 8 : 4;
    (void)way;
    int64_t units = (job->size + table->lanes - 1) / table->lanes * table->lanes;
    return blocks * job->size * units * number;
}

int64_t chronograd_split(const Job *job, int64_t way) {
    Plan plan = chronograd_plan(job, (int)way);
    return plan.threads + 1000 * plan.by_units + 10000 * plan.width;
}

typedef struct {
    const Job *job;
    int way;
    const void *weight;
    void *out;
} Packing;

static void pack(void *argument, int id, int team) {
    const Packing *p = argument;
    chronograd_table(p->job->isa, p->job->real)->pack(p->job, p->way, p->weight, p->out, id, team);
}

void chronograd_pack(const Job *job, int64_t way, const void *weight, void *out) {
    Packing p = {job, (int)way, weight, out};
    /* Below this a region costs more than it saves. */
    chronograd_team(chronograd_packed_bytes(job, way) > (64 << 10) ? job->threads : 1, pack, &p);
}

static void forward(void *argument, int id, int team) {
    const Job *job = argument;
    const Table *table = chronograd_table(job->isa, job->real);
    (diagonal(job) ? table->diagonal_forward : table->forward)(job, id, team);
}

static void back(void *argument, int id, int team) {
    const Job *job = argument;
    const Table *table = chronograd_table(job->isa, job->real);
    (diagonal(job) ? table->diagonal_back : table->back)(job, id, team);
}

void chronograd_forward(const Job *job) {
    if (job->steps && job->rows && job->size)
        chronograd_team(chronograd_plan(job, WAY_FORWARD).threads, forward, (void *)job);
}

void chronograd_back(const Job *job) {
    if (job->steps && job->rows && job->size)
        chronograd_team(chronograd_plan(job, WAY_BACK).threads, back, (void *)job);
}

static const Table *table_of(const Product *product) { return chronograd_table(product->isa, product->real); }

static int64_t threads_of(const Product *product) {
    double work = (double)product->height * (double)product->width * (double)product->depth;
    return work > 300000.0 ? product->threads : 1;
}

int64_t chronograd_panels_bytes(const Product *product) {
    int64_t lanes = table_of(product)->lanes, number = product->real == REAL_DOUBLE ? 8 : 4;
    return (product->width + lanes - 1) / lanes * lanes * product->depth * number;
}

typedef struct {
    const Product *product;
    int turned;
    void *out;
} Panels;

static void panels(void *argument, int id, int team) {
    const Panels *p = argument;
    table_of(p->product)->panels(p->product, p->turned, p->out, id, team);
}

void chronograd_panels(const Product *product, int64_t turned, void *out) {
    Panels p = {product, (int)turned, out};
    chronograd_team(chronograd_panels_bytes(product) > (64 << 10) ? product->threads : 1, panels, &p);
}

static void rows(void *argument, int id, int team) { table_of(argument)->rows(argument, id, team); }
static void columns(void *argument, int id, int team) { table_of(argument)->columns(argument, id, team); }

void chronograd_rows(const Product *product) { chronograd_team(threads_of(product), rows, (void *)product); }
int64_t chronograd_scratch_bytes(const Product *product) {
    return table_of(product)->scratch(product) * product->threads;
}
void chronograd_columns(const Product *product) { chronograd_team(threads_of(product), columns, (void *)product); }

void chronograd_apply(int64_t isa, int64_t real, int64_t function, int64_t count, const void *in, void *out) {
    chronograd_table(isa, real)->apply((int)function, count, in, out);
}

/* The C interface of the fused recurrences, and what its files share. Raw pointers and sizes only.

   Index legend: T steps, B rows, H units, G = blocks * H. Arrays are row-major; strides count numbers between one row
   (t, b) and the next one. A block of time is T consecutive steps of a longer sequence. */
#ifndef CHRONOGRAD_KERNELS_H
#define CHRONOGRAD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { KIND_TANH, KIND_RELU, KIND_LINEAR, KIND_GRU, KIND_LSTM, KIND_DIAGONAL, KIND_DIAGONAL_COMPLEX };
enum { REAL_FLOAT, REAL_DOUBLE };
enum { ISA_BEST = -1, ISA_PLAIN, ISA_AVX2, ISA_AVX512, ISA_COUNT };
enum { SPLIT_AUTO, SPLIT_ROWS, SPLIT_UNITS };
enum { WAY_FORWARD, WAY_BACK };

/* A whole layer, as Python gives it: all steps, weights as torch lays them out, every array contiguous. Every field is 8
   bytes wide, so that no compiler pads. NULL is "absent" or, on the way back, "not wanted". */
typedef struct {
    int64_t kind, real, isa, threads, split;
    int64_t block;                     /* steps in a block of time; 0: chosen here */
    int64_t steps, rows, inputs, size; /* T, B, d, H */

    const void *x;         /* (T, B, d) */
    const void *weight_ih; /* (G, d) */
    const void *bias_ih;   /* (G,) */
    const void *weight;    /* (G, H); lambda (H,) for the diagonal kinds */
    const void *bias;      /* (G,), added to the recurrent product */

    const void *initial[2]; /* (B, H): the state before the first step */
    void *path[2];          /* (T, B, H): the states after each step (h; c) */
    void *kept;             /* (T, B, 4H): LSTM i, f, g, o; GRU r, z, W_n h + b_n, n; NULL forward: keep nothing */

    const void *gates;    /* (T, B) of the real type, multiply the flow on the way back */
    const void *reset;    /* (T, B) int32: the number of the row's fresh state, or -1 */
    const void *valid;    /* (T, B) uint8: 0 freezes the row */
    const void *fresh[2]; /* (R, H): initial states of the rows that start anew; NULL is zeros */

    /* The way back only, for which biases matter to the diagonal kinds alone. */
    const void *given[2];  /* (T, B, H): cotangents of the path */
    void *initial_back[2]; /* cotangents of the arrays above, in their shapes */
    void *fresh_back[2];
    void *x_back, *weight_ih_back, *bias_ih_back, *weight_back, *bias_back;
    const void *own; /* (G,) each unit's own recurrent weight, the dense kinds: the flow takes these alone; NULL: all */

    void *room; /* as many bytes as chronograd_room says */
} Layer;

/* How a dense job is cut: `width` vectors of units make a panel. */
typedef struct {
    int64_t threads, by_units, width;
} Plan;

/* One block of time of a layer: consecutive steps. Strides count numbers between one row (t, b) and the next one. */
typedef struct {
    int64_t kind, real, isa, threads, split;
    int64_t steps, rows, size; /* T, B, H; the diagonal kinds: reals */
    Plan plan;

    const void *packed; /* the recurrent weight as Table.pack wrote it; lambda (H,) for the diagonal kinds */
    const void *own;    /* (G,), way back: what the flow takes instead of the packed weight, or NULL */
    const void *bias;   /* (G,), added to the product inside the GRU; (H,) to the drive of depth; else NULL */

    const void *drive; /* (T, B, G); may be the same memory as kept (GRU, LSTM) or path[0] (others) */
    int64_t drive_stride;
    void *kept; /* (T, B, 4H) or NULL */
    int64_t kept_stride;
    const void *initial[2]; /* (B, H): the state before the first step of the block */
    void *path[2];

    const void *gates, *reset, *valid, *fresh[2];
    const void *zeros; /* (H,) zeros, wanted where there is reset without fresh */

    const void *given[2];
    void *flow[2]; /* (B, H): in, what flows back from later steps; out, what flows on to earlier ones */
    void *product; /* (T, B, G): cotangent of the recurrent product; GRU (T, B, 4H): n of the product, r, z, n of the
                      drive, so that columns 0..3H belong to the product and H..4H to the drive */
    int64_t product_stride;
    void *fresh_back[2]; /* those that reset in this block are written */

    /* Diagonal kinds, whose `size` is in reals. With a `depth` the drive and its gradients are theirs: W x + b. */
    int64_t depth;         /* reals of x, at most THIN; 0: drive and product are used */
    const void *x;         /* (T, B, depth) */
    const void *weight_ih; /* (H, depth) */
    void *x_back;          /* like x, or NULL */
    void *sums;            /* (threads, sums_stride) of double, added to: of lambda (H,), of the bias (H,) and of the
                              weight (H, depth) where there is a depth; NULL: only without depth */
    int64_t sums_stride;
    void *scratch; /* (threads, scratch_bytes) */
    int64_t scratch_bytes;
} Job;

#define THIN 4 /* numbers of a product's side that is too thin for register tiles */

/* The right side of a product: rows of N numbers. */
typedef struct {
    const void *b;
    int64_t stride, width; /* N */
    const void *first;     /* (firsts, N): stand before the rows of b */
    int64_t firsts;
    const int32_t *numbers; /* NULL, or for each row: where not negative, it is that row of fresh instead */
    const void *fresh;      /* (R, N); NULL is zeros */
} Right;

/* out (M, N) = a (M, K) b + bias, with b (K, N) in panels. */
typedef struct {
    int64_t height, width, depth; /* M, N, K */
    const void *a;
    int64_t a_stride;
    const void *panels;
    void *out;
    int64_t out_stride;
    const void *bias; /* (N,) or NULL */
} Rows;

/* Sums over the rows of a block, in one pass over a (K, M): sums (M,) = those of a's columns, and up to two products
   out = (some columns of a)^T b. `more` adds to all of them. */
typedef struct {
    int64_t height, depth; /* M, K */
    const void *a;
    int64_t a_stride;
    void *sums; /* or NULL */
    int64_t more, count;
    struct {
        Right right;
        int64_t from, height; /* the columns of a */
        int64_t turn;         /* the first `turn` rows of the result go to its end */
        void *out;            /* (height, N) */
    } part[2];
    void *scratch; /* Table.scratch numbers for each thread */
} Columns;

/* What one instruction set offers for one real type. */
typedef struct {
    int lanes;     /* numbers in a vector */
    int registers; /* vector registers */
    void (*pack)(const Job *, int way, const void *weight, void *out, int id, int team);
    void (*forward)(const Job *, int id, int team);
    void (*back)(const Job *, int id, int team);
    void (*diagonal_forward)(const Job *, int id, int team);
    void (*diagonal_back)(const Job *, int id, int team);
    int64_t (*diagonal_scratch)(void); /* bytes for a thread */
    void (*finish)(int64_t count, const double *sums, int64_t stride, int threads, void *out); /* of all threads */
    /* The complex weight_ih (H, d) as reals (2H, 2d) that take pairs to pairs, and back for its gradient. */
    void (*complex_as_reals)(const Layer *, void *out);
    void (*reals_as_complex)(const Layer *, const void *reals);
    /* b (K, N) with K = depth into panels, or with `turned` its transpose: rows then has N rows of K numbers. */
    void (*panels)(const Right *rows, int64_t depth, int turned, void *out, int id, int team);
    void (*rows)(const Rows *, int id, int team);
    void (*columns)(const Columns *, int id, int team);
    int64_t (*scratch)(const Columns *); /* bytes for a thread */
    void (*add)(int64_t count, const void *a, const void *b, void *out);
    void (*apply)(int function, int64_t count, const void *in, void *out);
} Table;

extern const Table *const chronograd_plain[2];
#if defined(__x86_64__) || defined(__i386__)
#define HAVE_X86 1
extern const Table *const chronograd_avx2[2];
extern const Table *const chronograd_avx512[2];
#endif

const Table *chronograd_table(int64_t isa, int64_t real);
Plan chronograd_plan(const Job *job, int way);
int64_t chronograd_blocks(int64_t kind);

/* team.c: runs work(argument, id, team) on every thread of a team, and lets the team meet. Where others hold the cores
   it may part: the same answer for all threads, after which the first one does what is left. */
void chronograd_team(int64_t threads, void (*work)(void *, int, int), void *argument);
void chronograd_meet(int id, int team);
int chronograd_meet_or_part(int id, int team);

/* The interface that Python calls. */
EXPORT int64_t chronograd_abi(void);
EXPORT int64_t chronograd_isas(void); /* bit 1 << isa is set where this machine can run it */
EXPORT void chronograd_use_threads(void *parallel, void *thread_num, void *num_threads);
EXPORT int64_t chronograd_room(const Layer *layer, int64_t way); /* bytes */
EXPORT void chronograd_forward(const Layer *layer);
EXPORT void chronograd_back(const Layer *layer);
EXPORT void chronograd_own(const void *own, int64_t threads); /* own.c says of what */
EXPORT void chronograd_own_cell(const void *own, int64_t threads);
EXPORT void chronograd_apply(int64_t isa, int64_t real, int64_t function, int64_t count, const void *in, void *out);

#endif

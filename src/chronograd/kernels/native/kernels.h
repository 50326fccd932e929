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

/* One block of time of one layer. Every field is 8 bytes wide, so that no compiler pads. NULL is "absent". */
typedef struct {
    int64_t kind, real, isa, threads, split;
    int64_t steps, rows, size; /* T, B, H */

    void *packed; /* the recurrent weight as chronograd_pack wrote it; lambda (H,) for the diagonal kinds */
    void *bias;   /* (G,), added to the product inside the GRU; NULL elsewhere */

    void *drive; /* (T, B, G); may be the same memory as kept (GRU, LSTM) or path[0] (others) */
    int64_t drive_stride;
    void *kept; /* (T, B, 4H): LSTM i, f, g, o; GRU r, z, W_n h + b_n, n; NULL forward: keep nothing */
    int64_t kept_stride;
    void *initial[2]; /* (B, H): the state before the first step of the block */
    void *path[2];    /* (T, B, H): the states after each step (h; c) */

    void *gates; /* (T, B) of the real type, multiply the flow on the way back */
    void *reset; /* (T, B) int32: the number of the row's fresh state, or -1 */
    void *valid; /* (T, B) uint8: 0 freezes the row */
    void *fresh[2]; /* (R, H): initial states of the rows that start anew; NULL is zeros */
    void *zeros;    /* (H,) zeros, wanted where there is reset without fresh */

    /* The way back only. */
    void *given[2]; /* (T, B, H): cotangents of the path */
    void *flow[2];  /* (B, H): in, what flows back from later steps; out, what flows on to earlier ones */
    void *product;  /* (T, B, G): cotangent of the recurrent product; GRU (T, B, 4H): n of the product, r, z, n of the
                       drive, so that columns 0..3H belong to the product and H..4H to the drive */
    int64_t product_stride;
    void *fresh_back[2]; /* (R, H): cotangents of the fresh states, those that reset in this block are written */
    void *weight_back;   /* diagonal kinds: (threads, H) of double (complex: pairs), added to; may be NULL */
} Job;

/* How a dense job is cut: `width` vectors of units make a panel. */
typedef struct {
    int64_t threads, by_units, width;
} Plan;

/* A product over many rows. `rows`: out (M, N) = a (M, K) b + bias, with b as chronograd_panels wrote it. `columns`:
   out (M, N) = a^T b for a (K, M) and b (K, N), and sums (M,) = those of a's columns; `more` adds to both. Strides as
   above. */
typedef struct {
    int64_t real, isa, threads;
    int64_t height, width, depth; /* M, N, K */
    const void *a;
    int64_t a_stride;
    const void *b;
    int64_t b_stride;
    void *out;
    int64_t out_stride;
    const void *bias; /* (N,) or NULL; rows only */
    void *sums;       /* (M,) or NULL; columns only */
    void *scratch;    /* chronograd_scratch_bytes; columns only */
    int64_t more;
    /* columns only, b NULL where absent: a second product with the same a. The first takes the first_rows first columns
       of a, the second those from from_row on. */
    int64_t first_rows;
    struct {
        const void *b;
        int64_t b_stride, width;
        void *out;
        int64_t out_stride, from_row;
    } second;
    const void *numbers; /* columns only, (K,) int32 or NULL: row k of b is row numbers[k] >= 0 of fresh instead */
    const void *fresh;   /* (R, N); NULL is zeros */
} Product;

/* What one instruction set offers for one real type. */
typedef struct {
    int lanes;     /* numbers in a vector */
    int registers; /* vector registers */
    void (*pack)(const Job *, int way, const void *weight, void *out, int id, int team);
    void (*forward)(const Job *, int id, int team);
    void (*back)(const Job *, int id, int team);
    void (*diagonal_forward)(const Job *, int id, int team);
    void (*diagonal_back)(const Job *, int id, int team);
    void (*panels)(const Product *, int turned, void *out, int id, int team);
    void (*rows)(const Product *, int id, int team);
    void (*columns)(const Product *, int id, int team);
    int64_t (*scratch)(const Product *);
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

/* team.c: runs work(argument, id, team) on every thread of a team, and lets the team meet. */
void chronograd_team(int64_t threads, void (*work)(void *, int, int), void *argument);
void chronograd_meet(int id, int team);

/* The interface that Python calls. */
EXPORT int64_t chronograd_abi(void);
EXPORT int64_t chronograd_isas(void); /* bit 1 << isa is set where this machine can run it */
EXPORT void chronograd_use_threads(void *parallel, void *thread_num, void *num_threads);
EXPORT int64_t chronograd_packed_bytes(const Job *job, int64_t way);
EXPORT void chronograd_pack(const Job *job, int64_t way, const void *weight, void *out);
EXPORT void chronograd_forward(const Job *job);
EXPORT void chronograd_back(const Job *job);
/* b (K, N), or with `turned` its transpose (N, K), into panels; as many bytes as chronograd_panels_bytes says. */
EXPORT int64_t chronograd_panels_bytes(const Product *product);
EXPORT void chronograd_panels(const Product *product, int64_t turned, void *out);
EXPORT void chronograd_rows(const Product *product);
EXPORT int64_t chronograd_scratch_bytes(const Product *product);
EXPORT void chronograd_columns(const Product *product);
EXPORT int64_t chronograd_split(const Job *job, int64_t way); /* threads + 1000 by_units + 10000 width */
EXPORT void chronograd_apply(int64_t isa, int64_t real, int64_t function, int64_t count, const void *in, void *out);

#endif

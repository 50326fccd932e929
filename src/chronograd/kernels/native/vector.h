/* Vectors of one real type on one instruction set. Included by body.h with REAL, INT, BYTES and NAME defined. */

typedef REAL NAME(Vec) __attribute__((vector_size(BYTES)));
typedef INT NAME(Int) __attribute__((vector_size(BYTES)));
typedef WORD NAME(Word) __attribute__((vector_size(BYTES)));
typedef REAL NAME(Loose) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#define Vec NAME(Vec)
#define Int NAME(Int)
#define Word NAME(Word)
#define Loose NAME(Loose)
#define LANES ((int)(BYTES / sizeof(REAL)))

static INLINE Vec NAME(load)(const REAL *from) { return *(const Loose *)from; }
static INLINE void NAME(store)(REAL *to, Vec v) { *(Loose *)to = v; }
#define load NAME(load)
#define store NAME(store)

/* The first `count` numbers only; the others read as 0. */
static INLINE Vec NAME(load_some)(const REAL *from, int count) {
    if (count >= LANES) return load(from);
#ifdef LOAD_SOME
    return LOAD_SOME(from, count);
#else
    Vec v = {0};
    for (int lane = 0; lane < count; lane++) v[lane] = from[lane];
    return v;
#endif
}
static INLINE void NAME(store_some)(REAL *to, Vec v, int count) {
    if (count >= LANES) {
        store(to, v);
        return;
    }
#ifdef STORE_SOME
    STORE_SOME(to, count, v);
#else
    for (int lane = 0; lane < count; lane++) to[lane] = v[lane];
#endif
}
#define load_some NAME(load_some)
#define store_some NAME(store_some)

/* x - 0 is x for every x, so this is a broadcast and nothing else. */
static INLINE Vec NAME(all)(REAL x) { return x - (Vec){0}; }
#define all NAME(all)

/* min and max return their second argument where either is not a number. */
static INLINE Vec NAME(least)(Vec a, Vec b) {
#ifdef MINIMUM
    return MINIMUM(a, b);
#else
    Int mask = a < b;
    return (Vec)((mask & (Int)a) | (~mask & (Int)b));
#endif
}
static INLINE Vec NAME(most)(Vec a, Vec b) {
#ifdef MAXIMUM
    return MAXIMUM(a, b);
#else
    Int mask = a > b;
    return (Vec)((mask & (Int)a) | (~mask & (Int)b));
#endif
}
#define least NAME(least)
#define most NAME(most)

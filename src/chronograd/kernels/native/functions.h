/* exp(x) - 1, tanh and the logistic function. float32: relative error below 2e-7 where the result is normal; float64:
   below 4 ulp.

   x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) - 1 = r + r^2 P(r), P fitted to equal error over r P. The product n ln2
   is split so that its first part is exact without fused operations. */

#if IS_DOUBLE
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52: adding it rounds to an integer, kept in the low bits */
#define LOG2E 1.4426950408889634074
#define LN2_HIGH 0x1.62e42fefap-1
#define LN2_LOW 0x1.cf79abc9e3b3ap-40
#define MANTISSA 52
#define ONE_BITS 0x3ff0000000000000
#define EXP_LOW -708.0
#define EXP_HIGH 710.0 /* here n is 1024, and 2^n infinite */
#define TANH_ONE 20.0
static const REAL NAME(series)[] = {
    0.49999999999999999986,    0.16666666666666676838,    0.04166666666666670094,   0.0083333333333213890973,
    0.0013888888888867058238,  0.00019841269886814448989, 2.480158736015991488e-5,  2.7557243447068636327e-6,
    2.7557243056764991388e-7,  2.5109324764203644001e-8,  2.0924364027477367065e-9};
#define TERMS 11
#else
#define ROUNDER 12582912.0f
#define LOG2E 1.44269504f
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.bd0106p-13f
#define MANTISSA 23
#define ONE_BITS 0x3f800000
#define EXP_LOW -87.0f
#define EXP_HIGH 89.0f /* here n is 128, and 2^n infinite */
#define TANH_ONE 10.0f
static const REAL NAME(series)[] = {0.500000004774f,     0.166666667966f,     0.0416663498751f,
                                    0.00833327778716f,   0.00139413679856f,   0.000199115956285f};
#define TERMS 6
#endif

/* Returns q = exp(r) - 1 and puts 2^n into `scale`; x between EXP_LOW and EXP_HIGH or not a number. */
static INLINE Vec NAME(reduced)(Vec x, Vec *scale) {
    Vec shifted = x * LOG2E + ROUNDER;
    Vec n = shifted - ROUNDER;
    Vec r = x - n * LN2_HIGH;
    r = r - n * LN2_LOW;
    Vec p = all(NAME(series)[TERMS - 1]);
    UNROLL for (int term = TERMS - 2; term >= 0; term--) p = p * r + NAME(series)[term];
    *scale = (Vec)(((Word)shifted << MANTISSA) + ONE_BITS); /* unsigned: of what is not a number the sum overflows */
    return p * (r * r) + r;
}

static INLINE Vec NAME(sigmoid)(Vec x) {
    Vec scale, y = most(all(EXP_LOW), least(all(EXP_HIGH), -x));
    Vec q = NAME(reduced)(y, &scale);
    /* Not q * scale + scale, which is not a number where 2^n overflows. */
    return 1 / (1 + (1 + q) * scale);
}

/* |tanh| = (1 - e) / (1 + e) with e = exp(-2|x|), by e - 1 so that nothing is lost near 0. */
static INLINE Vec NAME(tanh)(Vec x) {
    Int sign = (Int)x & (Int)(all((REAL)-0.0));
    Vec size = least(all(TANH_ONE), (Vec)((Int)x ^ sign));
    Vec scale, q = NAME(reduced)(size + size, &scale);
    Vec less = q * scale + (scale - 1);
    return (Vec)((Int)(less / (less + 2)) | sign);
}

static void NAME(apply)(int function, int64_t count, const void *from, void *to) {
    const REAL *in = from;
    REAL *out = to;
    for (int64_t at = 0; at < count; at += LANES) {
        int some = count - at < LANES ? (int)(count - at) : LANES;
        Vec x = load_some(in + at, some);
        store_some(out + at, function ? NAME(sigmoid)(x) : NAME(tanh)(x), some);
    }
}

static void NAME(add)(int64_t count, const void *a, const void *b, void *out) {
    for (int64_t i = 0; i < count; i++) ((REAL *)out)[i] = ((const REAL *)a)[i] + ((const REAL *)b)[i];
}

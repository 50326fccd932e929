/* Complex numbers are pairs of reals; what multiplies them is spread over pairs. */

#if BYTES / 4 == 16 && !IS_DOUBLE
#define NEIGHBOURS 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#elif (BYTES / 4 == 8 && !IS_DOUBLE) || (BYTES / 8 == 8 && IS_DOUBLE)
#define NEIGHBOURS 1, 0, 3, 2, 5, 4, 7, 6
#elif (BYTES / 4 == 4 && !IS_DOUBLE) || (BYTES / 8 == 4 && IS_DOUBLE)
#define NEIGHBOURS 1, 0, 3, 2
#else
#define NEIGHBOURS 1, 0
#endif

/* Swaps the two reals of every pair. */
static INLINE Vec NAME(swapped)(Vec v) {
#ifdef __clang__
    return __builtin_shufflevector(v, v, NEIGHBOURS);
#else
    return __builtin_shuffle(v, (Int){NEIGHBOURS});
#endif
}

/* (a + ib)(u + iv) = (a u - b v) + i (b u + a v): each complex weight a + ib is the block [a, -b; b, a] of reals. */
static void NAME(complex_as_reals)(const Layer *layer, void *to) {
    const REAL *weight = layer->weight_ih;
    REAL *out = to;
    const int64_t row = 2 * layer->inputs;
    for (int64_t h = 0; h < layer->size; h++)
        for (int64_t j = 0; j < row; j += 2) {
            const REAL a = weight[h * row + j], b = weight[h * row + j + 1];
            REAL *block = out + 2 * h * row + j;
            block[0] = a;
            block[1] = -b;
            block[row] = b;
            block[row + 1] = a;
        }
}

static void NAME(reals_as_complex)(const Layer *layer, const void *from) {
    const REAL *reals = from;
    REAL *out = layer->weight_ih_back;
    const int64_t row = 2 * layer->inputs;
    for (int64_t h = 0; h < layer->size; h++)
        for (int64_t j = 0; j < row; j += 2) {
            const REAL *block = reals + 2 * h * row + j;
            out[h * row + j] = block[0] + block[row + 1];
            out[h * row + j + 1] = block[row] - block[1];
        }
}

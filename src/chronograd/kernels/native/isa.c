/* Which instruction sets this machine can run, and what is chosen. */
#include "kernels.h"

int64_t chronograd_abi(void) { return (int64_t)sizeof(Layer); }

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

void chronograd_apply(int64_t isa, int64_t real, int64_t function, int64_t count, const void *in, void *out) {
    chronograd_table(isa, real)->apply((int)function, count, in, out);
}

/* AVX2 with fused multiply-add. Only called where the processor says that it has both. */
#include "kernels.h"
#ifdef HAVE_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA_NAME avx2
#define BYTES 32
#define REGISTERS 16
#define MINIMUM_FLOAT _mm256_min_ps
#define MAXIMUM_FLOAT _mm256_max_ps
#define STREAM_FLOAT(to, v) _mm256_stream_ps(to, v)
#define MINIMUM_DOUBLE _mm256_min_pd
#define MAXIMUM_DOUBLE _mm256_max_pd
#define STREAM_DOUBLE(to, v) _mm256_stream_pd(to, v)
#include "body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int chronograd_nothing_here;
#endif

/* AVX-512 (F and DQ). Only called where the processor says that it has them. */
#include "kernels.h"
#ifdef HAVE_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma")
#endif
#define ISA_NAME avx512
#define BYTES 64
#define REGISTERS 32
#define MINIMUM_FLOAT _mm512_min_ps
#define MAXIMUM_FLOAT _mm512_max_ps
#define MINIMUM_DOUBLE _mm512_min_pd
#define MAXIMUM_DOUBLE _mm512_max_pd
#define TOTAL_FLOAT(v) _mm512_reduce_add_ps(v)
#define TOTAL_DOUBLE(v) _mm512_reduce_add_pd(v)
#define FIRST(count) ((1u << (count)) - 1u) /* the mask of the first lanes */
#define LOAD_SOME_FLOAT(from, count) _mm512_maskz_loadu_ps((__mmask16)FIRST(count), from)
#define STORE_SOME_FLOAT(to, count, v) _mm512_mask_storeu_ps(to, (__mmask16)FIRST(count), v)
#define LOAD_SOME_DOUBLE(from, count) _mm512_maskz_loadu_pd((__mmask8)FIRST(count), from)
#define STORE_SOME_DOUBLE(to, count, v) _mm512_mask_storeu_pd(to, (__mmask8)FIRST(count), v)
/* Past the caches, and a wait until all is there. */
#define STORE_AROUND_FLOAT(to, v) _mm512_stream_ps(to, v)
#define STORE_AROUND_DOUBLE(to, v) _mm512_stream_pd(to, v)
#define STORED_AROUND() _mm_sfence()
#include "body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int chronograd_nothing_here;
#endif

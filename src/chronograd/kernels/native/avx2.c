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
#define MINIMUM_DOUBLE _mm256_min_pd
#define MAXIMUM_DOUBLE _mm256_max_pd
/* Lanes whose highest bit is set are loaded: a window into ones, then zeros. */
static const int32_t first_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#define FIRST(count) _mm256_loadu_si256((const __m256i *)(first_lanes + 8 - (count)))
#define LOAD_SOME_FLOAT(from, count) _mm256_maskload_ps(from, FIRST(count))
#define LOAD_SOME_DOUBLE(from, count) _mm256_maskload_pd(from, FIRST(2 * (count)))
/* Past the caches, and a wait until all is there. */
#define STORE_AROUND_FLOAT(to, v) _mm256_stream_ps(to, v)
#define STORE_AROUND_DOUBLE(to, v) _mm256_stream_pd(to, v)
#define STORED_AROUND() _mm_sfence()
#include "body.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int chronograd_nothing_here;
#endif

/* Everything that depends on the real type and the instruction set. The files avx512.c, avx2.c and plain.c include it
   once for each type, having defined ISA_NAME, BYTES, REGISTERS and what their machine has. */

#include <string.h>

#include "kernels.h"

#define PASTE3(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE3(a, b, c)
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

#define IS_DOUBLE 0
#define REAL float
#define INT int32_t
#define WORD uint32_t
#define NAME(x) PASTE(x, ISA_NAME, float)
#ifdef MINIMUM_FLOAT
#define MINIMUM MINIMUM_FLOAT
#define MAXIMUM MAXIMUM_FLOAT
#endif
#ifdef TOTAL_FLOAT
#define TOTAL TOTAL_FLOAT
#endif
#ifdef LOAD_SOME_FLOAT
#define LOAD_SOME LOAD_SOME_FLOAT
#endif
#ifdef STORE_AROUND_FLOAT
#define STORE_AROUND STORE_AROUND_FLOAT
#endif
#ifdef STORE_SOME_FLOAT
#define STORE_SOME STORE_SOME_FLOAT
#endif
#include "all.h"
#include "undo.h"

#define IS_DOUBLE 1
#define REAL double
#define INT int64_t
#define WORD uint64_t
#define NAME(x) PASTE(x, ISA_NAME, double)
#ifdef MINIMUM_DOUBLE
#define MINIMUM MINIMUM_DOUBLE
#define MAXIMUM MAXIMUM_DOUBLE
#endif
#ifdef TOTAL_DOUBLE
#define TOTAL TOTAL_DOUBLE
#endif
#ifdef LOAD_SOME_DOUBLE
#define LOAD_SOME LOAD_SOME_DOUBLE
#endif
#ifdef STORE_AROUND_DOUBLE
#define STORE_AROUND STORE_AROUND_DOUBLE
#endif
#ifdef STORE_SOME_DOUBLE
#define STORE_SOME STORE_SOME_DOUBLE
#endif
#include "all.h"
#include "undo.h"

#define TABLES_OF(isa) TABLES_OF_2(isa)
#define TABLES_OF_2(isa) const Table *const chronograd_##isa[2] = {&table_##isa##_float, &table_##isa##_double}
TABLES_OF(ISA_NAME);

/* One real type on one instruction set. */
#include "vector.h"
#include "functions.h"
#include "product.h"
#include "gemm.h"
#include "edges.h"
#include "forward.h"
#include "back.h"
#include "pairs.h"
#include "diagonal.h"

static const Table NAME(table) = {
    LANES,      REGISTERS,  NAME(pack), NAME(forward), NAME(back), NAME(diagonal_forward), NAME(diagonal_back),
    NAME(diagonal_scratch), NAME(finish), NAME(complex_as_reals), NAME(reals_as_complex), NAME(panels), NAME(rows),
    NAME(columns), NAME(scratch), NAME(add), NAME(apply),
};

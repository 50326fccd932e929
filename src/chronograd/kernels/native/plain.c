/* What every machine of the architecture can run: SSE2 on x86-64, NEON on aarch64, scalars in pairs elsewhere. */
#define ISA_NAME plain
#define BYTES 16
#if defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#include "body.h"

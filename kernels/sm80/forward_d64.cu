#include "forward.cuh"

extern "C" const struct sm80_kernels sm80_forward_d64 = FORWARD_KERNELS(64);

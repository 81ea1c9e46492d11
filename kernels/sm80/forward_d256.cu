#include "forward.cuh"

extern "C" const struct sm80_kernels sm80_forward_d256 = FORWARD_KERNELS(256);

#include "forward.cuh"

extern "C" const struct sm80_kernels sm80_forward_d128 = FORWARD_KERNELS(128);

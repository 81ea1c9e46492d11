#include "forward.cuh"

extern "C" const struct sm80_kernels sm80_forward_d192 = FORWARD_KERNELS(192);

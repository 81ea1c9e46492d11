#include "backward_kernels.cuh"

extern "C" const struct backward_kernels sm80_backward_d192 = BACKWARD_KERNELS(192);

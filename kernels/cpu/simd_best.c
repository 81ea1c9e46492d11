#include "simd.h"

/* The compilers' own detection also asks whether the operating system keeps the wide registers. */
const struct simd *simd_best(void)
{
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");

    if (avx2) {
        return avx512 ? &simd_avx512 : &simd_avx2;
    }
#endif
    return &simd_portable;
}

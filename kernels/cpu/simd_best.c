#include "simd.h"

extern const struct simd simd_portable;

#if defined(__x86_64__)
extern const struct simd simd_avx2;
extern const struct simd simd_avx512;

const struct simd *simd_best(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return &simd_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &simd_avx2;
    }
    return &simd_portable;
}
#else
const struct simd *simd_best(void)
{
    return &simd_portable;
}
#endif

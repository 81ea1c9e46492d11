#!/usr/bin/env bash
# The compiled kernels keep no state that changes and call nothing but each other, memory functions,
# assertions, mathematics and what launches them on a GPU. Takes their static library.
set -euo pipefail
export LC_ALL=C

library=$1
allowed='^(mem(cpy|move|set|cmp)|str(cmp|len)|__(assert|stack_chk)_fail|_GLOBAL_OFFSET_TABLE_'
allowed+='|__cpu_(model|features2|indicator_init)|(exp|exp2|expm1|log|log2|log1p|sqrt|tanh|fma'
allowed+='|fmax|fmin|fabs|floor|ceil|round|rint|lrint|ldexp|scalbn)f?'
allowed+='|cuda(LaunchKernel|FuncGetAttributes|FuncSetAttribute)'
# What the CUDA compiler adds to its objects: they register their code when the program begins.
allowed+='|__cuda((Unr|R)egisterFatBinary(End)?|RegisterFunction|GetKernel|LaunchKernel'
allowed+='|PopCallConfiguration)|atexit)$'
registration='__device_stub__|__cudaFatCubinHandle'

state=$(nm -f sysv "$library" |
    awk -F'|' '$7 ~ /^\.(data|bss|tdata|tbss)/ && $7 !~ /rel\.ro/ { print $1 }' |
    grep -vE "$registration" || true)
calls=$(comm -23 <(nm -u "$library" | awk '$1 ~ /^[Uw]$/ { print $2 }' | sort -u) \
    <(nm --defined-only "$library" | awk 'NF == 3 { print $3 }' | sort -u) | grep -vE "$allowed" || true)
if [[ -n $state || -n $calls ]]; then
    for name in $state; do echo "kernels: $name is state that changes"; done
    for name in $calls; do echo "kernels: $name is called"; done
    exit 1
fi
echo "kernels: no state, no foreign calls"

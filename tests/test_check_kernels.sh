#!/usr/bin/env bash
# The check of the compiled kernels finds a counter and an allocation. Takes the C compiler.
set -euo pipefail

check=$(dirname "$0")/check_kernels.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # source text
    printf '%s\n' "$1" >"$work/planted.c"
    "$compiler" -O1 -c "$work/planted.c" -o "$work/planted.o"
    rm -f "$work/planted.a"
    ar rc "$work/planted.a" "$work/planted.o"
}

expect() { # text that must be reported
    if "$check" "$work/planted.a" >"$work/output" || ! grep -qF "$1" "$work/output"; then
        echo "check_kernels: not found: $1"
        exit 1
    fi
}

compiler=$1
compile 'static int calls; int next(void) { return ++calls; }'
expect 'calls is state that changes'
compile '#include <stdlib.h>
void *get(size_t n) { return malloc(n); }'
expect 'malloc is called'
compile '#include <pthread.h>
int lock(pthread_mutex_t *m) { return pthread_mutex_lock(m); }'
expect 'pthread_mutex_lock is called'
compile 'static void *__cudaFatCubinHandle; int cudaMalloc(void **, unsigned long);
int more(void) { return cudaMalloc(&__cudaFatCubinHandle, 1); }'
expect 'cudaMalloc is called'
compile '#include <math.h>
static const float table[2] = {1.0F, 2.0F};
float half(float x) { return logf(x) * table[(int)x]; }'
"$check" "$work/planted.a"

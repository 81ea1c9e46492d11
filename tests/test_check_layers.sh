#!/usr/bin/env bash
# The layer check finds what it is for: plants one violation at a time in a copy of the tree.
set -euo pipefail

source_root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $1"
    failures=$((failures + 1))
}

fresh_copy() {
    rm -rf "${work:?}/tree"
    mkdir -p "$work/tree"
    cp -R "$source_root"/{client,proto,server,kernels,deploy} "$work/tree/"
    mkdir "$work/tree/tests"
    echo '/* A helper of the tests. */' >"$work/tree/tests/planted_helper.h"
}

check() {
    "$source_root/tests/check_layers.sh" "$work/tree" >"$work/output" 2>&1
}

# Appends a line to a file (made if it is not there) and expects that very line to be reported.
expect_violation() { # file text
    fresh_copy
    local file=$work/tree/$1 line
    mkdir -p "$(dirname "$file")"
    printf '%s\n' "$2" >>"$file"
    line=$(wc -l <"$file")
    if check; then
        fail "nothing found after adding to $1: $2"
    elif ! grep -qF "$1:$line: " "$work/output"; then
        fail "$1:$line not reported after adding: $2"
        cat "$work/output"
    elif [[ $(grep -c '^[a-z].*:[0-9]*: ' "$work/output") -ne 1 ]]; then
        fail "more than the planted violation reported after adding to $1: $2"
        cat "$work/output"
    fi
}

expect_clean() { # file text
    fresh_copy
    mkdir -p "$(dirname "$work/tree/$1")"
    printf '%s\n' "$2" >>"$work/tree/$1"
    if ! check; then
        fail "$1 may hold: $2"
        cat "$work/output"
    fi
}

fresh_copy
if ! check; then
    fail "the tree itself has violations"
    cat "$work/output"
fi

expect_violation client/attnd.h '#include <zmq.h>'
expect_violation client/attnd.h '#include <unistd.h>'
expect_violation client/attnd.h '#include "wire.h"'
expect_violation client/planted.c '#include "engine.h"'
expect_violation client/planted.c '#include "attn.h"'
expect_violation client/planted.c '#include <pb.h>'
expect_violation client/planted.c '#include <cuda_runtime_api.h>'
expect_violation client/examples/planted.c '#include "wire.h"'
expect_violation client/examples/planted.c '  #  include <zmq.h>'
expect_violation proto/planted.c '#include <zmq.h>'
expect_violation proto/planted.c '#include <pb_encode.h>'
expect_violation proto/planted.c '#include "attnd.pb.h"'
expect_violation proto/planted.c '#include "job.h"'
expect_violation proto/planted.c '#include "attnd.h"'
expect_violation server/planted.c '#include <zmq.h>'
expect_violation server/planted.c '#include "attnd.h"'
expect_violation server/planted.c '#include "attnd.pb.h"'
expect_violation server/planted.c '#include "tile.cuh"'
expect_violation kernels/attn.h '#include <unistd.h>'
expect_violation kernels/cpu/planted.c '#include "wire.h"'
expect_violation kernels/cpu/planted.c '#include "job.h"'
expect_violation kernels/cpu/planted.c '#include <pthread.h>'
expect_violation kernels/cpu/planted.c '    float *p = malloc(16);'
expect_violation kernels/cpu/planted.c '    printf("%d\n", 1);'
expect_violation kernels/cpu/planted.c '    if (getenv("X") != NULL) {'
expect_violation kernels/cpu/planted.c '    pthread_mutex_lock(&mutex);'
expect_violation kernels/cpu/planted.c '    abort();'
expect_violation kernels/cpu/planted.c 'static int calls;'
expect_violation kernels/cpu/planted.c '    static float table[8];'
for file in client/planted.c proto/planted.c server/planted.c kernels/cpu/planted.c; do
    expect_violation "$file" '#include "nowhere_to_be_found.h"'
    expect_violation "$file" '#include "planted_helper.h"'
done

expect_clean client/planted.c '#include <zmq.h>'
expect_clean server/transport.c '#include <zmq.h>'
expect_clean server/planted.c '#include "attn.h"'
expect_clean proto/codec.c '#include <pb_encode.h>'
expect_clean kernels/cpu/planted.c '#include <immintrin.h>'
expect_clean kernels/cpu/planted.c 'static const float table[2] = {1.0F, 2.0F};'
expect_clean kernels/cpu/planted.c '// the caller frees it with free()'

if ((failures > 0)); then
    echo "check_layers: $failures expectations failed"
    exit 1
fi
echo "check_layers: every planted violation was found"

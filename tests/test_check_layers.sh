#!/usr/bin/env bash
# The layer check finds what it is for: plants lines in a copy of the tree and expects exactly those
# to be reported that break a rule.
set -euo pipefail

source_root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
planted=0

# Appends a line to a file, made if it is not there; prints where the line is.
plant() { # file text
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "$2" >>"$1"
    echo "$1:$(wc -l <"$1")"
    planted=$((planted + 1))
}

bad() {
    plant "$@" >>"$work/expected"
}

good() {
    plant "$@" >/dev/null
}

mkdir "$work/tree"
cd "$work/tree"
cp -R "$source_root"/{client,proto,server,kernels,deploy} .
mkdir tests
echo '/* A helper of the tests. */' >tests/planted_helper.h
touch "$work/expected"

bad client/attnd.h '#include <zmq.h>'
bad client/attnd.h '#include <unistd.h>'
bad client/attnd.h '#include "wire.h"'
bad client/planted.c '#include "engine.h"'
bad client/planted.c '#include "attn.h"'
bad client/planted.c '#include <pb.h>'
bad client/planted.c '#include <cuda_runtime_api.h>'
bad client/planted.c '#include "doctor.h"'
bad client/attnctl/planted.c '#include "wire.h"'
bad client/attnctl/planted.c '#include "client.h"'
bad client/attnctl/planted.c '#include <zmq.h>'
bad client/examples/planted.c '#include "doctor.h"'
bad client/examples/planted.c '#include <cuda_runtime_api.h>'
bad client/examples/planted.cu '#include "wire.h"'
bad client/examples/planted.c '#include "wire.h"'
bad client/examples/planted.c '  #  include <zmq.h>'
bad proto/planted.c '#include <zmq.h>'
bad proto/planted.c '#include <pb_encode.h>'
bad proto/planted.c '#include "attnd.pb.h"'
bad proto/planted.c '#include "job.h"'
bad proto/planted.c '#include "attnd.h"'
bad server/planted.c '#include <zmq.h>'
bad server/planted.c '#include "attnd.h"'
bad server/planted.c '#include "attnd.pb.h"'
bad server/planted.c '#include "planted.cuh"'
bad kernels/attn.h '#include <unistd.h>'
bad kernels/cpu/planted.c '#include "wire.h"'
bad kernels/cpu/planted.c '#include "job.h"'
bad kernels/cpu/planted.c '#include <pthread.h>'
bad kernels/cpu/planted.c '    float *p = malloc(16);'
bad kernels/cpu/planted.c '    printf("%d\n", 1);'
bad kernels/cpu/planted.c '    if (getenv("X") != NULL) {'
bad kernels/cpu/planted.c '    pthread_mutex_lock(&mutex);'
bad kernels/cpu/planted.c '    abort();'
bad kernels/cpu/planted.c 'static int calls;'
bad kernels/cpu/planted.c '    static float table[8];'
for folder in client proto server kernels; do
    bad $folder/planted.c '#include "nowhere_to_be_found.h"'
    bad $folder/planted.c '#include "planted_helper.h"'
done

good kernels/sm80/planted.cuh '#include "attn.h"'
good client/planted.c '#include <zmq.h>'
good client/attnctl/planted.c '#include "attnd.h"'
good client/examples/planted.c '#include "attnd.h"'
good client/examples/planted.cu '#include <cuda_runtime.h>'
good client/examples/planted.cu '#include <cublas_v2.h>'
good server/transport.c '#include <zmq.h>'
good server/planted.c '#include "attn.h"'
good server/planted.c '#include <uv.h>'
good proto/codec.c '#include <pb_encode.h>'
good kernels/cpu/planted.c '#include <immintrin.h>'
good kernels/cpu/planted.c 'static const float table[2] = {1.0F, 2.0F};'
good kernels/cpu/planted.c '// the caller frees it with free()'
good kernels/cpu/planted.c '    float sum = prefetch_free_sum(x);'

if "$source_root/tests/check_layers.sh" "$work/tree" >"$work/output"; then
    echo "check_layers: exit status 0 in spite of violations"
    exit 1
fi
sed -nE 's/^([^ ]+:[0-9]+): .*/\1/p' "$work/output" | sort >"$work/found"
if ! diff <(sort "$work/expected") "$work/found"; then
    echo "check_layers: < is not found, > is found and no violation"
    exit 1
fi
echo "check_layers: $planted lines planted, $(wc -l <"$work/expected") violations found"

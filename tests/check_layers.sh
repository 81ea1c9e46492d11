#!/usr/bin/env bash
# Who may include what, and which names the kernels may not use. Reads the product folders of the
# tree that this file lies in, or of the one given; prints file:line of each violation.
#
#   tests/check_layers.sh [ROOT]
set -euo pipefail
export LC_ALL=C

cd "${1:-$(dirname "$0")/..}"

mapfile -t sources < <(find client proto server kernels deploy -type f \
    \( -name '*.[ch]' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' \) | sort)
if ((${#sources[@]} == 0)); then
    echo "layers: there is no source file here" >&2
    exit 1
fi

# All that an include can mean.
OURS=$(find client proto server kernels tests -type f) awk '
BEGIN {
    split("assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal " \
        "stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath " \
        "time uchar wchar wctype", names, " ")
    for (i in names) c_header[names[i] ".h"] = 1
    n = split(ENVIRON["OURS"], names, "\n")
    for (i = 1; i <= n; i++) exists[names[i]] = 1
    violations = 0
}

function violation(text) {
    print FILENAME ":" FNR ": " text
    violations++
}

# The layer of a header that is none of ours.
function foreign_layer(header) {
    if (header ~ /^zmq.*\.h$/) return "zmq"
    if (header ~ /^pb(_[a-z]*)?\.h$|\.pb\.h$/) return "nanopb"
    if (header ~ /^uv(\.h$|\/)/) return "uv"
    if (header == "ini.h") return "inih"
    if (header ~ /^ptx\/[a-z0-9_]+\.cuh$/) return "cuh" # by angle brackets: tests put theirs before it
    if (header ~ /^(cuda|cu[a-z]*\.h$|nv[a-z]*\.h$)/) return "cuda"
    if (header ~ /^dlpack\//) return "dlpack"
    if (header ~ /^systemd\//) return "systemd"
    if (header ~ /^(cblas\.h|openblas.*|lapack.*\.h)$/) return "blas"
    if (header ~ /^(immintrin|x86intrin|cpuid)\.h$/) return "compiler"
    if (header in c_header) return "c"
    return "system"
}

function own_layer(file) {
    if (file == "client/attnd.h") return "attnd.h"
    if (file == "kernels/attn.h") return "attn.h"
    if (file ~ /^client\/examples\//) return "examples"
    if (file ~ /^client\/attnctl\//) return "attnctl"
    if (file ~ /\.cuh$/) return "cuh"
    sub(/\/.*/, "", file)
    return file
}

# The layers of the files that a quoted include can mean: its own folder first, as for a compiler.
function quoted_layers(header,    folder, file, tail, layers) {
    folder = FILENAME
    sub(/[^\/]*$/, "", folder)
    if ((folder header) in exists) return own_layer(folder header)
    layers = ""
    tail = "/" header
    for (file in exists) {
        if (substr(file, length(file) - length(tail) + 1) == tail) layers = layers " " own_layer(file)
    }
    if (layers != "") return substr(layers, 2)
    if (header ~ /\.pb\.h$/) return "nanopb"
    return "nothing-of-ours"
}

function allowed_layers(file) {
    if (file == "client/attnd.h") return "dlpack c"
    if (file ~ /^client\/examples\/.*\.cuh?$/) return "examples attnd.h dlpack cuda c system"
    if (file ~ /^client\/examples\//) return "examples attnd.h dlpack blas c system"
    if (file ~ /^client\/attnctl\//) return "attnctl attnd.h c system"
    if (file ~ /^client\//) return "client attnd.h proto dlpack zmq c system"
    if (file ~ /^proto\/(codec\.c|codec_(gate\.c|part\.[ch])|fault\.[ch])$/) return "proto nanopb c"
    if (file ~ /^proto\//) return "proto c system"
    if (file == "server/transport.c") return "server proto attn.h uv zmq c system"
    if (file ~ /^server\/(backend_cuda|cuda_[a-z]+)\.[ch]$/) return "server proto attn.h cuda c system"
    if (file ~ /^server\//) return "server proto attn.h uv inih systemd c system"
    if (file == "kernels/attn.h") return "c"
    if (file ~ /^kernels\//) return "kernels attn.h cuh cuda compiler c"
    return ""
}

function check_include(line,    header, layers, layer, n, i) {
    match(line, /[<"][^>"]+/)
    header = substr(line, RSTART + 1, RLENGTH - 1)
    layers = substr(line, RSTART, 1) == "<" ? foreign_layer(header) : quoted_layers(header)
    n = split(layers, layer, " ")
    for (i = 1; i <= n; i++) {
        if (index(" " allowed_layers(FILENAME) " ", " " layer[i] " ")) return
    }
    violation("may not include " header " (it belongs to: " layers ")")
}

# Memory, output, environment, threads and the end of the process are the business of the callers.
function check_kernel_line(line) {
    if (line ~ /^[ \t]*(\*|\/\/|\/\*)/) return
    if (line ~ /(^|[^A-Za-z0-9_])((m|c|re|aligned_)alloc|alloca|free|posix_memalign|mmap|v?[fsdn]*printf|puts|fputs|perror|getenv|exit|abort|cuda(Malloc|Free)[A-Za-z]*|cudaDeviceSynchronize)[ \t]*\(/ ||
        line ~ /(^|[^A-Za-z0-9_])(pthread|thrd|mtx|cnd)_[a-z]/)
        violation("the kernels may not use this: " line)
    if (line ~ /^[ \t]*(static|_Thread_local)[ \t][^(]*(=|;|\[)/ && line !~ /const[ \t]/)
        violation("the kernels keep no state that changes: " line)
}

/^[ \t]*#[ \t]*include[ \t]*[<"]/ { check_include($0) }
FILENAME ~ /^kernels\// { check_kernel_line($0) }

END {
    print "layers: " ARGC - 1 " files, " violations " violations"
    exit violations > 0
}' "${sources[@]}"

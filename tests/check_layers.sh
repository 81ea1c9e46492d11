#!/usr/bin/env bash
# Who may include what, and which names the kernels may not use. Reads the product folders of the
# tree that this file lies in, or of the one given; prints file:line of each violation.
#
#   tests/check_layers.sh [ROOT]
set -euo pipefail
export LC_ALL=C

root=$(cd "${1:-$(dirname "$0")/..}" && pwd)
cd "$root"

c_headers=' assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal
 stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath time uchar
 wchar wctype '
violations=0

violation() { # file:line message
    printf '%s: %s\n' "$1" "$2"
    violations=$((violations + 1))
}

# The layer of an angle-bracket include.
foreign_layer() {
    local stem=${1%.h}
    case $1 in
    zmq*.h) echo zmq ;;
    pb.h | pb_*.h | *.pb.h) echo nanopb ;;
    uv.h | uv/*) echo uv ;;
    ini.h) echo inih ;;
    cuda* | cu*.h | nv*.h) echo cuda ;;
    dlpack/*) echo dlpack ;;
    systemd/*) echo systemd ;;
    cblas.h | openblas* | lapack*.h) echo blas ;;
    criterion/*) echo criterion ;;
    immintrin.h | x86intrin.h | cpuid.h) echo compiler ;;
    *) if [[ $c_headers == *[[:space:]]"$stem"[[:space:]]* ]]; then echo c; else echo system; fi ;;
    esac
}

# The layer that a file of ours belongs to.
own_layer() {
    case $1 in
    client/attnd.h) echo attnd.h ;;
    kernels/attn.h) echo attn.h ;;
    client/examples/*) echo examples ;;
    kernels/*.cuh) echo cuh ;;
    *) echo "${1%%/*}" ;;
    esac
}

# A quoted include that is no file of ours is generated, or a mistake.
foreign_quoted_layer() {
    case $1 in
    *.pb.h) echo nanopb ;;
    *.cuh) echo cuh ;;
    *) echo 'no folder of ours' ;;
    esac
}

# The layers of a quoted include: of the file it names, its own folder first as a compiler would.
quoted_layers() { # includer header
    local found
    if [[ -e $(dirname "$1")/$2 ]]; then
        own_layer "$(dirname "$1")/$2"
        return
    fi
    found=$(find client proto server kernels tests -path "*/$2" -type f)
    if [[ -z $found ]]; then
        foreign_quoted_layer "$2"
        return
    fi
    while read -r file; do own_layer "$file"; done <<<"$found"
}

# What a file may include.
allowed_layers() {
    case $1 in
    client/attnd.h) echo 'dlpack c' ;;
    client/examples/*) echo 'examples attnd.h dlpack blas c system' ;;
    client/*) echo 'client attnd.h proto dlpack zmq c system' ;;
    proto/codec.c | proto/fault.[ch]) echo 'proto nanopb c' ;;
    proto/*) echo 'proto c system' ;;
    server/transport.c) echo 'server proto attn.h uv zmq c system' ;;
    server/*) echo 'server proto attn.h uv inih systemd c system' ;;
    kernels/attn.h) echo 'c' ;;
    kernels/*) echo 'kernels attn.h cuh cuda compiler c' ;;
    *) echo '' ;;
    esac
}

check_include() { # file line header quoted?
    local layers layer allowed
    if [[ $4 == '"' ]]; then layers=$(quoted_layers "$1" "$3"); else layers=$(foreign_layer "$3"); fi
    allowed=" $(allowed_layers "$1") "
    while read -r layer; do
        if [[ $allowed == *" $layer "* ]]; then return; fi
    done <<<"$layers"
    violation "$1:$2" "may not include $3 (it belongs to: ${layers//$'\n'/, })"
}

check_includes() { # file
    local line text header
    local pattern='^[[:space:]]*#[[:space:]]*include[[:space:]]*([<"])([^>"]+)'
    while IFS=: read -r line text; do
        [[ $text =~ $pattern ]] || continue
        header=${BASH_REMATCH[2]}
        check_include "$1" "$line" "$header" "${BASH_REMATCH[1]}"
    done < <(grep -nE '^[[:space:]]*#[[:space:]]*include' "$1" || true)
}

# Memory, output, environment, threads and the end of the process are the caller's business.
forbidden_in_kernels='\b((m|c|re|aligned_)alloc|alloca|free|posix_memalign|mmap|v?[fsdn]*printf|puts|fputs|perror|getenv|exit|abort|cudaMalloc[A-Za-z]*|cudaFree[A-Za-z]*|cudaDeviceSynchronize)[[:space:]]*\(|\b(pthread|thrd|mtx|cnd)_[a-z]'

check_names() { # file
    local line text
    while IFS=: read -r line text; do
        [[ $text =~ ^[[:space:]]*(\*|//|/\*) ]] && continue
        violation "$1:$line" "the kernels may not use this: ${text#"${text%%[![:space:]]*}"}"
    done < <(grep -nE "$forbidden_in_kernels" "$1" || true)
}

# A static or global object that is not const.
check_state() { # file
    local line text
    while IFS=: read -r line text; do
        violation "$1:$line" "the kernels keep no state that changes: $text"
    done < <(grep -nE '^[[:space:]]*(static|_Thread_local)\b[^(]*(=|;|\[)' "$1" |
        grep -vE '\bconst\b|_Static_assert|static_assert' || true)
}

files=0
while IFS= read -r file; do
    files=$((files + 1))
    check_includes "$file"
    if [[ $file == kernels/* ]]; then
        check_names "$file"
        check_state "$file"
    fi
done < <(find client proto server kernels deploy -type f \
    \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | sort)

if ((files == 0)); then
    echo "layers: no source file below $root" >&2
    exit 1
fi
echo "layers: $files files, $violations violations"
((violations == 0))

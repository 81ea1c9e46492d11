#!/usr/bin/env bash
# Kernels keep what they compute in registers: of those of kind plain and bias none spills, of the others
# none more than 512 bytes. Takes objects; reads OBJECT.registers where there is one.
set -euo pipefail
export LC_ALL=C

reports=()
for object in "$@"; do
    [[ ! -f $object.registers ]] || reports+=("$object.registers")
done
if ((${#reports[@]} == 0)); then
    echo "registers: no compiler has said anything" >&2
    exit 1
fi

awk '
/Compiling entry function/ {
    split($0, part, "\047")
    kernel = part[2] " for " part[4]
    limit = kernel ~ /score_kind[01]E/ ? 0 : 512
    kernels++
}
/bytes spill stores/ && kernel != "" {
    spills = $5 > $9 ? $5 : $9
    if (spills + 0 > limit) {
        print "registers: " kernel " spills " spills " bytes, " limit " at most"
        bad++
    }
}
END {
    print "registers: " kernels + 0 " kernels, " bad + 0 " spill too much"
    exit bad > 0 || kernels == 0
}' "${reports[@]}"

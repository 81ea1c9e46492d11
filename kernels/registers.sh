#!/usr/bin/env bash
# Runs a CUDA compiler, given with its arguments, and keeps what the assembler says of kernels beside the
# object, as OBJECT.registers; everything else that it says is said.
set -uo pipefail
export LC_ALL=C

said=$(mktemp)
trap 'rm -f "$said"' EXIT

"$@" 2>"$said"
status=$?
while (($# > 1)); do
    [[ $1 == -o && $2 == *.o ]] && cp "$said" "$2.registers"
    shift
done
grep -vE '^ptxas info |^ +[0-9]+ bytes stack frame' "$said" >&2
exit "$status"

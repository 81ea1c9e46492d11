#!/usr/bin/env bash
# The check of registers finds spills where there may be none, and too many elsewhere.
set -euo pipefail

check=$(dirname "$0")/check_registers.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

report() { # kernel bytes
    printf "ptxas info    : Compiling entry function '%s' for 'sm_80'\n" "$1"
    printf '    96 bytes stack frame, %s bytes spill stores, %s bytes spill loads\n' "$2" "$2"
    echo 'ptxas info    : Used 255 registers, used 1 barriers'
}

expect() { # status text
    local status=0
    "$check" "$work/kernels.o" >"$work/output" 2>&1 || status=$?
    if ((status != $1)) || ! grep -qF "$2" "$work/output"; then
        echo "check_registers: status $status, not $1, or not said: $2"
        exit 1
    fi
}

expect 1 'no compiler has said anything'
: >"$work/kernels.o.registers"
expect 1 '0 kernels'
report _Z3runILi64EL10score_kind0ELb1EEv 0 >"$work/kernels.o.registers"
report _Z3runILi64EL10score_kind2ELb1EEv 512 >>"$work/kernels.o.registers"
expect 0 '2 kernels, 0 spill too much'
report _Z3runILi64EL10score_kind1ELb1EEv 8 >>"$work/kernels.o.registers"
expect 1 'score_kind1ELb1EEv for sm_80 spills 8 bytes, 0 at most'
report _Z5otherv 516 >"$work/kernels.o.registers"
expect 1 '_Z5otherv for sm_80 spills 516 bytes, 512 at most'

#!/usr/bin/env bash
# What deploy/quickstart installs, and what it says where it can't: with stand-ins for apt-get, sudo,
# dpkg-query, id, cmake and the compilers, in a copy of deploy/, so that nothing is really installed.
# shellcheck disable=SC2016 # the stand-ins expand their own variables
set -euo pipefail

source_root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAILED: $1"
    sed 's/^/    /' "$work/output" "$work/calls"
    failures=$((failures + 1))
}

stand_in() { # command, its body
    printf '#!/bin/bash\n%s\n' "$2" >"$work/bin/$1"
    chmod +x "$work/bin/$1"
}

# A machine of root's with all tools, on which the packages in $work/missing are not installed.
fresh_machine() {
    rm -rf "${work:?}"/*
    mkdir -p "$work/bin" "$work/tree"
    cp -R "$source_root/deploy" "$work/tree/"
    touch "$work/missing" "$work/calls" "$work/output"
    local tool
    for tool in bash env dirname cat sed sort head; do
        ln -s "$(command -v $tool)" "$work/bin/$tool"
    done
    stand_in id 'echo 0'
    stand_in nproc 'echo 2'
    stand_in dpkg-query "/bin/grep -qx \"\${!#}\" $work/missing || echo installed"
    stand_in apt-get "echo \"apt-get \$*\" >>$work/calls"
    stand_in sudo "echo \"sudo \$1\" >>$work/calls; exec \"\$@\""
    stand_in cmake "if [[ \$1 == --version ]]; then echo cmake version 3.25.1; else
        echo \"cmake \$*\" >>$work/calls; fi"
    stand_in ctest "echo \"ctest \$*\" >>$work/calls"
    for tool in ninja gcc clang; do stand_in $tool 'exit 0'; done
}

quickstart() {
    status=0
    PATH=$work/bin "$work/tree/deploy/quickstart" "$@" >"$work/output" 2>&1 || status=$?
}

called() {
    grep -qE -- "$1" "$work/calls"
}

said() {
    grep -qE -- "$1" "$work/output"
}

fresh_machine
quickstart test
[[ $status == 0 ]] || fail "test with everything there: exit status $status"
! called 'apt-get|sudo' || fail "something was installed though nothing was missing"
called 'ctest --preset release' || fail "no test ran"
[[ $(tail -n 1 "$work/calls") == ctest* ]] || fail "ctest was not the last thing that ran"

fresh_machine
printf '%s\n' libuv1-dev clang >"$work/missing"
quickstart test
[[ $status == 0 ]] || fail "test with two packages missing: exit status $status"
[[ $(head -n 1 "$work/calls") == *" update" ]] || fail "no apt-get update first"
called 'install libuv1-dev clang$' || fail "not exactly the missing packages were installed"
said 'installing with apt-get: libuv1-dev clang$' || fail "it did not say what it installs"
! called sudo || fail "sudo was used by root"

fresh_machine
printf '%s\n' libuv1-dev >"$work/missing"
stand_in id 'echo 1000'
quickstart test
called 'sudo apt-get' || fail "another user updated without sudo"
called 'sudo env' || fail "another user installed without sudo"

fresh_machine
printf '%s\n' clang libcriterion-dev >"$work/missing"
mkdir -p "$work/tree/build/release/bin"
stand_in attnd-demo 'echo "demo in $PWD:" "$@"'
mv "$work/bin/attnd-demo" "$work/tree/build/release/bin/"
(cd "$work/bin" && quickstart demo --trainers 2 --text 'a b')
! called apt-get || fail "the demo installed what only the tests need"
said "^demo in $work/bin: --trainers 2 --text a b\$" || fail "the demo did not get its options"

called '-DATTND_CUDA=OFF' || fail "the demo built for a GPU that is not there"
called 'target demo ' || fail "the demo built something else than the demo"

fresh_machine
stand_in nvidia-smi 'echo "GPU 0: NVIDIA H200 (UUID: GPU-00000000)"'
mkdir -p "$work/tree/build/release/bin"
stand_in attnd-demo 'true'
mv "$work/bin/attnd-demo" "$work/tree/build/release/bin/"
quickstart demo
[[ $status == 0 ]] || fail "the demo on a GPU: exit status $status"
! called 'ATTND_CUDA' || fail "the demo did not let CMake look for the CUDA Toolkit"

fresh_machine
mkdir -p "$work/tree/build/release/bin"
touch "$work/tree/build/release/CMakeCache.txt"
stand_in attnd-demo 'true'
mv "$work/bin/attnd-demo" "$work/tree/build/release/bin/"
quickstart demo
! called 'DATTND_' || fail "the demo changed a tree that was there"

expect_sentence() { # what, pattern
    [[ $status == 1 ]] || fail "$1: exit status $status"
    [[ $(wc -l <"$work/output") == 1 ]] || fail "$1: not one line"
    said "^quickstart: .*$2.*\.\$" || fail "$1: no sentence with $2"
}

fresh_machine
rm "$work/bin/apt-get"
quickstart demo
expect_sentence "no apt-get" 'apt-get'

fresh_machine
echo gcc >"$work/missing"
stand_in id 'echo 1000'
rm "$work/bin/sudo"
quickstart demo
expect_sentence "no sudo" 'root.* gcc'

fresh_machine
rm "$work/bin/gcc"
quickstart demo
expect_sentence "no compiler" 'gcc is needed'

fresh_machine
stand_in cmake 'echo cmake version 3.22.1'
quickstart demo
expect_sentence "old CMake" 'CMake 3\.25.*3\.22\.1'

fresh_machine
stand_in ctest 'exit 8'
quickstart test
[[ $status == 8 ]] || fail "a failing test run: exit status $status"

fresh_machine
quickstart nonsense
[[ $status == 64 ]] || fail "an unknown command: exit status $status"
said '^Usage:' || fail "an unknown command: no usage"
quickstart --help
[[ $status == 0 ]] || fail "--help: exit status $status"
said '^Usage:' || fail "--help: no usage"

if grep -vE '^(#.*)?$|^(build|test|demo) +[a-z0-9.+-]+ +# .+$' "$source_root/deploy/packages" \
    >"$work/output"; then
    fail "deploy/packages has a line of another form"
fi

if ((failures > 0)); then
    echo "quickstart: $failures expectations failed"
    exit 1
fi
echo "quickstart: all as expected"

#!/usr/bin/env bash
# What deploy/quickstart installs and configures, and what it says where it can't: with stand-ins for
# apt-get, sudo, dpkg-query, id, cmake, the compilers and nvidia-smi, in a copy of deploy/, so that
# nothing is really installed.
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

# Like the real one, it remembers a tree's ATTND_CUDA, says what comes of it, and builds a demo that says
# the same. A demo that was there is left alone.
stand_in_cmake() {
    stand_in cmake '
        if [[ $1 == --version ]]; then echo cmake version 3.25.1; exit; fi
        echo "cmake $*" >>'"$work"'/calls
        words="$* " cuda=AUTO
        tree=${words#*--preset } tree=build/${tree%% *}
        /bin/mkdir -p $tree/bin
        if [[ $1 == --build ]]; then
            read -r gpus <$tree/gpus
            printf "#!/bin/bash\necho \"demo in \$PWD, %s: \$*\"\n" "$gpus" >$tree/bin/attnd-demo
            /bin/chmod +x $tree/bin/attnd-demo
            exit
        fi
        [[ ! -s $tree/CMakeCache.txt ]] || read -r cuda <$tree/CMakeCache.txt
        [[ $words != *-DATTND_CUDA=* ]] || { cuda=${words##*-DATTND_CUDA=}; cuda=${cuda%% *}; }
        echo "$cuda" >$tree/CMakeCache.txt
        echo without CUDA >$tree/gpus
        if [[ $cuda != OFF ]] && command -v nvcc >/dev/null; then
            echo "-- GPUs: yes, with CUDA 13.0.88"
            echo with CUDA >$tree/gpus
        else
            echo "-- GPUs: no, the processor alone"
        fi
        if [[ -e '"$work"'/no-cublas ]]; then echo "-- No cuBLAS: the trainer"; fi'
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
    stand_in_cmake
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
printf '%s\n' clang libcriterion-dev g++ >"$work/missing"
(cd "$work/bin" && quickstart demo --trainers 2 --text 'a b')
! called apt-get || fail "the demo installed what only tests and GPUs need"
said "^demo in $work/bin, without CUDA: --trainers 2 --text a b\$" || fail "the demo did not get its options"
called '-DATTND_CUDA=OFF' || fail "the demo built for a GPU that is not there"
called 'target demo ' || fail "the demo built something else than the demo"
! said 'GPU' || fail "a machine without a GPU heard of GPUs"

# -- the demo and GPUs

machine_with_gpu() { # nvcc, or nothing
    fresh_machine
    stand_in nvidia-smi 'echo "GPU 0: NVIDIA H200 (UUID: GPU-00000000)"'
    (($# == 0)) || stand_in "$1" 'exit 0'
}

expect_demo() { # on what, in the words of the stand-in for the demo
    [[ $status == 0 ]] || fail "$case: exit status $status"
    said "^demo in [^ ]*, $1: " || fail "$case: another demo was built"
}

case='a GPU and the toolkit'
machine_with_gpu nvcc
quickstart demo
expect_demo 'with CUDA'
said '^== the GPU.s kernels take some minutes' || fail "$case: it is not said that it takes long"
! said 'nvidia|toolkit|no ' || fail "$case: something is missing"

case='a GPU, the toolkit, no C++ compiler'
machine_with_gpu nvcc
echo g++ >"$work/missing"
quickstart demo
expect_demo 'with CUDA'
called 'install g\+\+$' || fail "$case: nvcc did not get its compiler"

case='a GPU and no toolkit'
machine_with_gpu
quickstart demo
expect_demo 'without CUDA'
said '^== there is a GPU, but no CUDA Toolkit from 12\.4 on .*cuda-toolkit.*https://' ||
    fail "$case: it is not said what to do"

case='the toolkit came later'
stand_in nvcc 'exit 0'
quickstart demo
expect_demo 'with CUDA'

case='a GPU and a toolkit without cuBLAS'
machine_with_gpu nvcc
touch "$work/no-cublas"
quickstart demo
said '^== there is a GPU, but no CUDA Toolkit .* cuBLAS' || fail "$case: it is not said"

case='a tree made for the CPU before there was a GPU'
machine_with_gpu nvcc
mv "$work/bin/nvidia-smi" "$work/nvidia-smi"
quickstart demo
expect_demo 'without CUDA'
mv "$work/nvidia-smi" "$work/bin/nvidia-smi"
quickstart demo
expect_demo 'with CUDA'
[[ $(grep -c 'ATTND_TESTS' "$work/calls") == 1 ]] || fail "$case: its tests were switched again"

case='a GPU that the demo is told to leave alone'
for option in '--device cpu' '--device=cpu' '-e cpu' -ecpu; do
    machine_with_gpu nvcc
    echo g++ >"$work/missing"
    # shellcheck disable=SC2086 # two words
    quickstart demo --steps 3 $option
    expect_demo 'without CUDA'
    called '-DATTND_CUDA=OFF' || fail "$case: $option built for it"
    ! called apt-get || fail "$case: $option installed what it needs"
done
machine_with_gpu nvcc
quickstart demo
quickstart demo --device cpu
expect_demo 'with CUDA'
[[ $(grep -c 'ATTND_CUDA' "$work/calls") == 1 ]] || fail "$case: a tree for it was changed"

case='a driver that fails'
machine_with_gpu nvcc
stand_in nvidia-smi 'printf "%s\n" "NVIDIA-SMI has failed because of something." "More."; exit 9'
quickstart demo
expect_demo 'without CUDA'
said '^== nvidia-smi finds no GPU that works: NVIDIA-SMI has failed because of something\.$' ||
    fail "$case: it is not said"

case='a tree of tests on a machine without a GPU'
fresh_machine
mkdir -p "$work/tree/build/release"
echo ON >"$work/tree/build/release/CMakeCache.txt"
quickstart demo
expect_demo 'without CUDA'
! called 'DATTND_' || fail "$case: it was changed"

# -- what cannot be

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

if grep -vE '^(#.*)?$|^(build|test|demo|gpu) +[a-z0-9.+-]+ +# .+$' "$source_root/deploy/packages" \
    >"$work/output"; then
    fail "deploy/packages has a line of another form"
fi

if ((failures > 0)); then
    echo "quickstart: $failures expectations failed"
    exit 1
fi
echo "quickstart: all as expected"

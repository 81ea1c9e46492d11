#!/usr/bin/env bash
# Which device attnd-demo takes: the GPU's daemon and trainer where there are a GPU and that trainer, and
# the CPU's where not, or where it is told to. The driver is fake; what looks like the GPU's programs
# computes on the CPU.
#
#   tests/test_demo_devices.sh FOLDER TRAINER ATTND DRIVER
#
# FOLDER has attnd, attnd-trainer and attnd-demo; TRAINER and ATTND are those for the fake GPU, DRIVER
# the folder of a libcuda that says it is there.
set -uo pipefail
export LC_ALL=C

bin=$(cd "$1" && pwd) trainer=$2 attnd=$3 driver=$4
work=$(mktemp -d /tmp/atd.XXXXXX)
trap 'rm -rf "$work"' EXIT
export XDG_RUNTIME_DIR=$work
failures=0

fail() { # sentence
    printf 'FAILED: %s\n' "$1"
    sed 's/^/    /' "$work/output" "$work/calls"
    failures=$((failures + 1))
}

# NAME: a program beside the demo that notes how it was called. Daemon and trainer for the fake GPU bring
# a libcuda of their own, which the demo's would hide.
stand_in() {
    cat >"$work/bin/$1" <<END
#!/bin/bash
unset LD_LIBRARY_PATH
echo "$1 \$*" >>'$work/calls'
case '$1 '\$* in
*-cuda\ *) exec '$trainer' "\$@" ;;
attnd\ *'--device cuda'*) exec '$attnd' "\$@" ;;
*) exec '$bin/$1' "\$@" ;;
esac
END
    chmod +x "$work/bin/$1"
}

demo() { # argument...
    : >"$work/calls"
    status=0
    timeout 300 "$work/bin/attnd-demo" --trainers 2 "$@" >"$work/output" 2>&1 || status=$?
}

expect() { # when, GPU or CPU
    local device=cpu name=attnd-trainer other=attnd-trainer-cuda
    if [[ $2 == GPU ]]; then
        device=cuda name=attnd-trainer-cuda other=attnd-trainer
    fi
    grep -q "^2 trainers, .* computes their attention on the $2\$" "$work/output" ||
        fail "$1: it does not say $2"
    grep -q "^attnd .*--device $device " "$work/calls" || fail "$1: the daemon is not for $device"
    [[ $(grep -c "^$name " "$work/calls") == 2 ]] || fail "$1: two of $name were not started"
    ! grep -q "^$other " "$work/calls" || fail "$1: $other was started"
    grep -q '^demo: trainers=2 failed=0 ' "$work/output" || fail "$1: something failed"
}

mkdir "$work/bin"
cp "$bin/attnd-demo" "$work/bin/" # it looks for the others beside itself
for name in attnd attnd-trainer attnd-trainer-cuda; do stand_in $name; done

export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
demo --steps 25
[[ $status == 0 ]] || fail "with a GPU: exit status $status"
expect 'with a GPU' GPU
demo --steps 2 --device cuda
expect 'with a GPU and --device cuda' GPU
demo --steps 2 --device cpu
expect 'with a GPU and --device cpu' CPU
FAKE_CUDA_ERROR=100 demo --steps 2
expect 'with a driver without a GPU' CPU
FAKE_CUDA_CAPABILITY=75 demo --steps 2
expect 'with a GPU that is too old' CPU
FAKE_CUDA_CAPABILITY=89 FAKE_CUDA_BLOCK_KIB=99 demo --steps 2
expect 'with a GPU of small blocks' CPU
mv "$work/bin/attnd-trainer-cuda" "$work/"
demo --steps 2
expect 'with a GPU and programs for the CPU' CPU

echo "demo_devices: $failures failures"
[[ $failures == 0 ]]

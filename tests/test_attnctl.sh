#!/usr/bin/env bash
# attnctl from outside: exit statuses and output with a real daemon, without one, with a full one, and
# on a machine whose GPU is made up, as is the daemon that uses it.
#
#   tests/test_attnctl.sh ATTNCTL ATTND FOLDER_OF_A_FAKE_LIBCUDA FAKE_ATTND
set -uo pipefail
export LC_ALL=C
unset ATTND_ADDRESS CUDA_VISIBLE_DEVICES CUDA_DEVICE_MAX_CONNECTIONS CUDA_MPS_PIPE_DIRECTORY

ctl=$1 attnd=$2 fake=$3 fake_attnd=$4
work=$(mktemp -d /tmp/atc.XXXXXX)
daemon_pid=
trap '[[ -z $daemon_pid ]] || kill "$daemon_pid"; rm -rf "$work"' EXIT
failures=0
under=() # what attnctl is started by

fail() { # sentence
    printf 'FAILED: %s\n' "$1"
    sed 's/^/    out: /' "$work/out"
    sed 's/^/    err: /' "$work/err"
    failures=$((failures + 1))
}

run() { # exit status wanted, arguments...
    local wanted=$1 status
    shift
    timeout 60 "${under[@]}" "$ctl" "$@" >"$work/out" 2>"$work/err"
    status=$?
    [[ $status == "$wanted" ]] || fail "attnctl $* exits with $wanted, not $status"
}

said() { # pattern
    grep -qE -- "$1" "$work/out" || fail "standard output has '$1'"
}

complained() { # pattern
    grep -qE -- "$1" "$work/err" || fail "standard error has '$1'"
}

check_json() { # python that looks at `data`
    command -v python3 >/dev/null || return 0
    python3 -m json.tool "$work/out" >/dev/null || fail "the output is JSON"
    python3 -c "
import json, sys
data = json.load(open(sys.argv[1]))
level = {f['name']: f['level'] for f in data.get('findings', [])}
$1" "$work/out" 2>/dev/null || fail "the JSON is as it should: $1"
}

start_daemon() { # arguments...
    rm -rf "$work/run"
    (umask 0027 && mkdir -p "$work/run")
    "$attnd" --directory "$work/run" "$@" >"$work/log" 2>&1 &
    daemon_pid=$!
    for _ in {1..100}; do
        "$ctl" status --address "$work/run" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "attnd does not answer"
    sed 's/^/    log: /' "$work/log"
    exit 1
}

stop_daemon() {
    kill "$daemon_pid"
    wait "$daemon_pid"
    daemon_pid=
}

run 2
run 2 nonsense
run 2 status doctor
run 2 status --nonsense
run 0 --help
said '^ *doctor '
run 0 --version

run 3 status --address "$work/none"
complained 'no daemon serves there'
run 3 status --json --address "$work/none"
check_json 'assert data["error"] == "DISCONNECTED" and "none" in data["message"]'
run 3 doctor --address "$work/none"
said '^bad +daemon +no daemon answers'
run 3 doctor --json --address "$work/none"
check_json 'assert level["daemon"] == "bad" and data["worst"] == "bad" and "descriptors" in level'

start_daemon --max-sessions 2
run 0 status --address "$work/run"
said '^attnd [0-9.]+ in '
said "^ +pid +$daemon_pid, up 0d 00:"
said '^ +clients +1 of 2,'
said '^ +families +cpu$'
ATTND_ADDRESS=$work/run run 0 status --json
check_json "
assert data['pid'] == $daemon_pid and data['clients'] == 1 and data['uptime_seconds'] > 0
assert data['device']['kind'] == 'cpu' and data['device']['families'] == ['cpu']
assert data['device']['uuid'] is None and data['counters']['requests'] == 0
assert data['limits']['max_sessions'] == 2 and data['limits']['in_flight'] == 64"
run 0 doctor --address "$work/run"
said "^ok +daemon +attnd [0-9.]+ answers, pid $daemon_pid, on cpu"
run 0 doctor --json --address "$work/run"
check_json 'assert level["families"] == level["directory"] == "ok" and "mps" not in level'

# What is wrong around it.
chmod 0777 "$work/run"
run 1 doctor --json --address "$work/run"
check_json 'assert level["directory"] == "bad" and level["daemon"] == "ok"'
chmod 0750 "$work/run"
under=(prlimit --nofile=100)
run 0 doctor --json --address "$work/run"
check_json 'assert level["descriptors"] == "warn"'
under=()
kill -STOP "$daemon_pid"
run 3 status --address "$work/run"
run 3 doctor --address "$work/run"
kill -CONT "$daemon_pid"
stop_daemon
run 3 status --address "$work/run"

# Directories of daemons below a /run of its own, as a user sees them who may enter those of mode 0755.
# shellcheck disable=SC2016 # the inner shell expands it
below_run() { # "name mode"...
    under=(unshare --mount bash -c '
        mount -t tmpfs none /run && mkdir /run/attnd || exit 99
        while [[ $1 != -- ]]; do
            mkdir -m "${1#* }" "/run/attnd/${1% *}" && shift
        done
        shift
        exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"' below_run "$@" --)
}
if [[ $(id -u) == 0 ]] && unshare --mount mount -t tmpfs none /run 2>/dev/null; then
    cp "$ctl" "$work/attnctl"
    chmod 0711 "$work"
    built=$ctl ctl=$work/attnctl
    below_run 'GPU-1 0750'
    run 1 status
    complained '/run/attnd/GPU-1'
    run 1 doctor
    said '^bad +directory +user 65534 may not enter /run/attnd/GPU-1 '
    below_run 'GPU-1 0750' 'left 0755'
    run 1 status
    complained '/run/attnd/GPU-1'
    below_run 'GPU-1 0750' 'GPU-2 0750' 'cpu 0750'
    run 2 status
    complained 'several daemons'
    [[ $(grep -c '^    /run/attnd/[a-zA-Z0-9-]*$' "$work/err") == 3 ]] || fail 'all three are listed'
    below_run
    run 3 status
    complained '/run/attnd/cpu'
    ctl=$built under=()
fi

# The limit of a cgroup around its own one, as a slice or a job has it.
# shellcheck disable=SC2016 # the inner shell expands it
in_cgroup() { # limit of the outer, of the inner
    under=(unshare --mount bash -c '
        mount -t tmpfs none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/job/step || exit 99
        cd /sys/fs/cgroup && echo 0::/job/step >own
        echo "$1" >job/memory.max && echo 1048576 >job/memory.current
        echo "$2" >job/step/memory.max && echo 1048576 >job/step/memory.current
        mount --bind own /proc/$$/cgroup || exit 99
        shift 2 && exec "$@"' in_cgroup "$@")
}
in_cgroup max max
if [[ $(id -u) == 0 ]] && "${under[@]}" true 2>/dev/null; then
    start_daemon
    in_cgroup 105906176 max
    run 0 doctor --address "$work/run"
    said '^warn +memory +100 MiB are left'
    in_cgroup max 210763776
    run 0 doctor --address "$work/run"
    said '^warn +memory +200 MiB are left'
    under=()
    stop_daemon
fi

# A GPU that a fake driver makes up.
export LD_LIBRARY_PATH=$fake${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
start_daemon
run 0 doctor --address "$work/run"
said '^ok +gpu +Fake GPU, GPU-00112233-4455-6677-8899-aabbccddeeff, compute capability 9.0, 3 GiB'
said '^ok +driver +for CUDA 13.0'
FAKE_CUDA_CAPABILITY=75 run 0 doctor --address "$work/run"
said '^warn +gpu +.* 7\.5; the kernels need 8\.0'
FAKE_CUDA_CAPABILITY=89 FAKE_CUDA_BLOCK_KIB=99 run 0 doctor --address "$work/run"
said '^warn +gpu +.* 8\.9, gives a block 99 KiB of shared memory; the kernels need 163'
FAKE_CUDA_ERROR=803 run 1 doctor --json --address "$work/run"
check_json 'assert level["driver"] == "bad" and "SYSTEM_DRIVER_MISMATCH" in json.dumps(data)'
stop_daemon

# A daemon with that GPU, or another.
attnd=$fake_attnd
start_daemon --device cuda
run 0 status --json --address "$work/run"
check_json 'assert data["device"]["kind"] == "cuda" and data["device"]["uuid"].startswith("GPU-5a5a")'
run 1 doctor --json --address "$work/run"
check_json 'assert level["device"] == level["families"] == "bad" and level["connections"] == "ok"'
export FAKE_CUDA_UUID=90 # the daemon's
mkdir "$work/mps"
touch "$work/mps/control"
CUDA_DEVICE_MAX_CONNECTIONS=2 CUDA_MPS_PIPE_DIRECTORY=$work/mps run 1 doctor --address "$work/run"
said '^ok +device +the daemon.s GPU, GPU-5a5a5a5a-'
said '^ok +namespaces +one pid namespace'
said '^ok +handles '
said '^ok +mps +.* from here MPS is found$'
said '^warn +connections +CUDA_DEVICE_MAX_CONNECTIONS is 2;'
stop_daemon

echo "attnctl: $failures failures"
[[ $failures -eq 0 ]]

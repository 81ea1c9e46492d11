#!/usr/bin/env bash
# attnd-demo from outside: what it says and leaves when all goes well, when it is interrupted, when
# something dies under it and when it is called wrongly.
#
#   tests/test_demo.sh FOLDER      the folder of attnd, attnd-trainer and attnd-demo
#
# $STEPS is how many steps of learning the good run has; with fewer than 25 losses need not have fallen.
set -uo pipefail
export LC_ALL=C

bin=$(cd "$1" && pwd)
demo=$bin/attnd-demo
device=cpu # what it says of a GPU depends on the machine
steps=${STEPS:-25}
# Short: sockets lie below it. The demo makes its private directory here, and every process that it
# starts has the path on its command line.
export XDG_RUNTIME_DIR
XDG_RUNTIME_DIR=$(mktemp -d /tmp/atd.XXXXXX)
out=$(mktemp -d /tmp/atd.XXXXXX)
trap 'end_ours; rm -rf "$XDG_RUNTIME_DIR" "$out"' EXIT
failures=0

fail() { # sentence
    printf 'FAILED: %s\n' "$1"
    sed 's/^/    out: /' "$out/stdout"
    sed 's/^/    err: /' "$out/stderr"
    failures=$((failures + 1))
}

check() { # sentence, command...
    local sentence=$1
    shift
    "$@" >/dev/null || fail "$sentence"
}

# The pids of this test's daemon and trainers, whose program's path ends with $1.
ours() { # name
    local line
    for line in /proc/[0-9]*/cmdline; do
        { tr '\0' ' ' <"$line"; } 2>/dev/null | grep -q "^[^ ]*/$1 .*$XDG_RUNTIME_DIR/" &&
            basename "$(dirname "$line")"
    done
    return 0
}

# What a failed case left must not fail the next one too.
end_ours() {
    local left
    left=$(ours '[^ ]*')
    # shellcheck disable=SC2086 # one word a pid
    [[ -z $left ]] || kill -KILL $left
}

check_nothing_left() { # when
    check "nothing is left running $1" test -z "$(ours '[^ ]*')"
    check "no directory is left $1" test -z "$(ls -A "$XDG_RUNTIME_DIR")"
    end_ours
    rm -rf "${XDG_RUNTIME_DIR:?}"/*
}

run() { # exit status wanted, arguments...
    local wanted=$1 status
    shift
    timeout 500 "$demo" --device "$device" "$@" >"$out/stdout" 2>"$out/stderr"
    status=$?
    check "attnd-demo $* exits with $wanted, not $status" test "$status" -eq "$wanted"
    check_nothing_left "after attnd-demo $*"
}

# Starts a long run and waits until its trainers train; sets pid.
start_long() {
    local waited=0
    "$demo" --device "$device" --trainers 2 --steps 100000 >"$out/stdout" 2>"$out/stderr" &
    pid=$!
    until [[ $(ours attnd | wc -l) == 1 && $(ours attnd-trainer | wc -l) == 2 ]]; do
        sleep 0.1
        waited=$((waited + 1))
        [[ $waited -lt 600 ]] || { fail 'a daemon and two trainers run within a minute' && return; }
    done
    sleep 1
}

wait_for_end() { # exit status wanted, after what
    wait "$pid"
    local status=$?
    check "exit status $1, not $status, after $2" test "$status" -eq "$1"
    check_nothing_left "after $2"
}

last_line='^demo: trainers=2 failed=0 requests=[1-9][0-9]* groups=[1-9][0-9]* max_rel_error=[0-9.]+e-[0-9]+$'

test_good_run() {
    # 4 layers, forward and backward in each step, and two evaluations
    local unlearned=$((steps < 25)) calls=$((8 * steps + 8))
    run $unlearned --trainers 2 --steps "$steps" --json "$out/json"
    check 'the last line has its shape' grep -Eq "$last_line" <(tail -n 1 "$out/stdout")
    check 'there is one such line' test "$(grep -c '^demo:' "$out/stdout")" -eq 1
    check 'every request was counted' grep -q " requests=$((2 * calls)) " "$out/stdout"
    check 'trainer 2 has a line in the table' grep -Eq "^ +2 +2.00e-03 .* $calls " "$out/stdout"
    check 'it is said where' grep -q 'computes their attention on the CPU$' "$out/stdout"
    check 'nothing is said on standard error' test ! -s "$out/stderr"
    check 'the JSON has both trainers' test "$(grep -c '"trainer": ' "$out/json")" -eq 2
    check 'the JSON has the requests' grep -q "\"requests\": $((2 * calls))," "$out/json"
    if command -v python3 >/dev/null; then
        check 'the JSON is JSON' python3 -c '
import json, sys
run = json.load(open(sys.argv[1]))
calls = int(sys.argv[2])
learned = sys.argv[3] == "0"
assert run["good"] == learned and run["failed"] == 0
assert run["checked"] * 50 >= run["requests"] == 2 * calls
for trainer in run["trainers"]:
    assert trainer["calls"] == calls and trainer["mean_group"] >= 1
    assert trainer["loss_fell"] or not learned
    assert 0 < trainer["p50_us"] <= trainer["p99_us"]
    assert 0 < trainer["last_loss"] < (0.75 if learned else 1) * trainer["first_loss"] < 6
    assert 0 < trainer["max_rel_error"] < 1e-2 and trainer["past_bar"] == 0
' "$out/json" "$calls" "$unlearned"
    fi
}

test_loss_that_does_not_fall() {
    run 1 --trainers 1 --steps 1
    check 'it is said' grep -q '^loss: fell clearly for 0 of 1 trainers' "$out/stdout"
    check 'the last line is there' grep -q '^demo: trainers=1 failed=0 ' <(tail -n 1 "$out/stdout")
}

test_terminal() {
    command -v script >/dev/null || return 0
    script -qec "stty rows 40 cols 100; '$demo' --device $device --trainers 2 --steps 2; echo status \$?" /dev/null \
        </dev/null >"$out/stdout" 2>"$out/stderr"
    local escape=$'\033'
    check 'lines are rewritten' grep -qF "${escape}[2A" "$out/stdout"
    check 'the cursor is hidden' grep -qF "${escape}[?25l" "$out/stdout"
    check 'and shown again' grep -qF "${escape}[?25h" "$out/stdout"
    check 'with the table after it' grep -q 'learning rate  first loss' "$out/stdout"
    check_nothing_left 'after a run on a terminal'
}

test_signals() {
    local signal
    for signal in INT:130 TERM:143; do
        start_long
        kill -s "${signal%:*}" "$pid"
        wait_for_end "${signal#*:}" "SIG${signal%:*}"
        check 'it is said' grep -q 'attnd-demo: interrupted' "$out/stderr"
    done
}

test_deaths() {
    start_long
    kill -KILL "$(ours attnd-trainer | head -n 1)"
    wait_for_end 1 "a trainer's death"
    check 'it is said which' grep -q 'trainer [12] was killed by signal 9' "$out/stderr"
    start_long
    kill -KILL "$(ours attnd)"
    wait_for_end 1 "the daemon's death"
    check 'it is said what died' grep -q 'attnd-demo: attnd was killed by signal 9' "$out/stderr"
    start_long
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    for _ in {1..100}; do
        [[ -n $(ours '[^ ]*') ]] || break
        sleep 0.1
    done
    check 'daemon and trainers follow a killed demo' test -z "$(ours '[^ ]*')"
    end_ours
    rm -rf "${XDG_RUNTIME_DIR:?}"/*
}

test_bad_calls() {
    : >"$out/empty"
    echo short >"$out/short"
    local text
    for text in "$out/none" "$out/empty" "$out/short" "$out"; do
        run 1 --text "$text"
        check "one line names $text" grep -qF "the text $text" "$out/stderr"
        check 'and no other line' test "$(wc -l <"$out/stderr")" -eq 1
        check 'and nothing was begun' test ! -s "$out/stdout"
    done
    run 1 --attnd "$out/none"
    run 1 --attnd /bin/false
    check 'the failed program is named' grep -q 'attnd ended with exit status 1' "$out/stderr"
    run 1 --trainer /bin/false
    check 'the failed trainer is named' grep -q 'trainer [1-4] ended with exit status 1' "$out/stderr"
    run 1 --json "$out/none/json"
    run 64 --trainers 0
    run 64 --steps 1x
    run 64 --device tpu
    run 0 --help
    check '--help names every option' test \
        "$(grep -cE -- '--(trainers|steps|text|json|device|attnd|trainer)=' "$out/stdout")" -eq 7
}

# Where there is none, auto means the CPU, and cuda ends with a sentence.
test_no_gpu() {
    [[ ! -e /dev/nvidiactl ]] || return 0
    device=auto
    run 1 --trainers 1 --steps 1
    check 'auto is the CPU' grep -q 'computes their attention on the CPU$' "$out/stdout"
    device=cuda
    run 1 --trainers 1 --steps 1
    check 'cuda cannot be' grep -q 'attnd-demo: ' "$out/stderr"
    device=cpu
}

test_good_run
test_no_gpu
test_loss_that_does_not_fall
test_terminal
test_signals
test_deaths
test_bad_calls
echo "demo: $failures failures"
[[ $failures -eq 0 ]]

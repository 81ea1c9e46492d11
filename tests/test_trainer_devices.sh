#!/usr/bin/env bash
# The trainer on a GPU learns what the one on the CPU learns: same text, same seeds, so that the losses
# of all steps may differ by what bfloat16 and other orders of summation change, and no more.
#
#   tests/test_trainer_devices.sh DEVICE FOLDER [TRAINER ATTND]
#
# DEVICE is that of the daemon for the second trainer, as attnd's --device takes it. FOLDER holds attnd
# and the trainers, unless a trainer and a daemon that only look as if they used a GPU are named. Where
# FOLDER has no trainer for the CPU (no BLAS), $REFERENCE holds what that one printed elsewhere. $TEXT is
# what they learn, for $STEPS steps (40). Exit status 77: there is no such device here.
set -uo pipefail
export LC_ALL=C

device=$1 bin=$(cd "$2" && pwd)
trainer=${3:-$bin/attnd-trainer-cuda}
second=${4:-$bin/attnd}
steps=${STEPS:-40}
tolerance=0.02 # nats; observed on the CPU: 0.003
work=$(mktemp -d /tmp/atd.XXXXXX)
pids=()
trap '((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null; rm -rf "$work"' EXIT

start_daemon() { # name, program, options...
    local name=$1 program=$2
    shift 2
    (umask 0027 && mkdir "$work/$name")
    "$program" --directory "$work/$name" "$@" >"$work/$name.log" 2>&1 &
    pids+=($!)
    for _ in {1..300}; do
        [[ -S $work/$name/rpc.sock ]] && return
        if ! kill -0 $! 2>/dev/null; then
            wait $!
            local status=$?
            if [[ $status == 69 ]]; then
                echo "trainer_devices: skipped, $(tail -n 1 "$work/$name.log")"
                exit 77
            fi
            break
        fi
        sleep 0.1
    done
    echo "attnd does not start:"
    cat "$work/$name.log"
    exit 1
}

train() { # name, daemon, program, options...
    local name=$1 daemon=$2 program=$3
    shift 3
    if ! "$program" --address "$work/$daemon" --steps "$steps" ${TEXT:+--text "$TEXT"} "$@" >"$work/$name" 2>"$work/$name.err"; then
        echo "$program fails:"
        tail -n 3 "$work/$name" "$work/$name.err"
        exit 1
    fi
}

compare() { # names of two runs
    paste "$work/$1" "$work/$2" | awk -v names="$1 and $2" -v tolerance=$tolerance -v wanted="$steps" '
        { difference = 0 }
        /^step=/ {
            split($3, a, "="); split($6, b, "=")
            difference = a[2] - b[2]
            steps++
        }
        /^result/ {
            for (i = 1; i <= NF; i++) if ($i ~ /^last_loss=/) { split($i, a, "="); last[++n] = a[2] }
            difference = last[1] - last[2]
            results++
        }
        { if (difference < 0) difference = -difference; if (!(difference <= worst)) worst = difference }
        END {
            printf "%s: losses of %d steps differ by at most %.6f (allowed: %s)\n", names, steps, worst,
                tolerance
            exit !(steps == wanted && results == 1 && n == 2 && worst <= tolerance)
        }'
}

failures=0
runs=(float32 other)
start_daemon second "$second" --device "$device"
train other second "$trainer"
if [[ -n ${REFERENCE:-} ]]; then
    cp "$REFERENCE" "$work/float32"
else
    start_daemon first "$bin/attnd"
    train float32 first "$bin/attnd-trainer"
    train bfloat16 first "$bin/attnd-trainer" --type bfloat16
    compare float32 bfloat16 || failures=$((failures + 1))
    runs+=(bfloat16)
fi
compare float32 other || failures=$((failures + 1))
for run in "${runs[@]}"; do
    sed -n "s/^result/$run:/p" "$work/$run"
    grep -q ' checked=[1-9][0-9]* failed=0 ' "$work/$run" || failures=$((failures + 1))
done
echo "trainer_devices: $failures failures"
[[ $failures == 0 ]]

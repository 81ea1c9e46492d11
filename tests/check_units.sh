#!/usr/bin/env bash
# systemd takes the units as they are installed, for the CPU and for a GPU. Takes the folder of the
# built units, the daemon's place and the built daemon. Exit status 77: no systemd-analyze here.
set -euo pipefail

units=$1 place=$2 daemon=$3
if ! command -v systemd-analyze >/dev/null; then
    echo "units: skipped, this machine has no systemd-analyze"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gpu=GPU-00112233-4455-6677-8899-aabbccddeeff
# Neither the daemon nor MPS need be installed for the check: what stands for them is there.
grep -qF "ExecStart=$place " "$units/attnd@.service"
grep -qF "ExecStart=nvidia-cuda-mps-control -f " "$units/attnd-mps@.service"
cp -R "$units/attnd@cpu.service.d" "$work/"
for instance in cpu cuda $gpu; do
    sed "s|ExecStart=$place |ExecStart=$daemon |" "$units/attnd@.service" \
        >"$work/attnd@$instance.service"
    systemd-analyze verify --man=no "$work/attnd@$instance.service" 2>&1 | tee -a "$work/output"
done
sed "s|ExecStart=nvidia-cuda-mps-control |ExecStart=/bin/true |" "$units/attnd-mps@.service" \
    >"$work/attnd-mps@$gpu.service"
systemd-analyze verify --man=no "$work/attnd-mps@$gpu.service" 2>&1 | tee -a "$work/output"
[[ ! -s $work/output ]]

# What the units do in words of the shell, with stand-ins for NVIDIA's programs that note their words.
run_words() { # unit, key
    local words
    words=$(sed -n "s/^$2=-*+*//p" "$1" | sed "s|/proc/driver|$work/proc|; s/\\$\\$/\$/g; s/%i/$gpu/g")
    PATH=$work/bin:$PATH timeout 60 bash -c "$words" </dev/null
}
mkdir -p "$work/bin" "$work"/proc/nvidia/gpus/{0,1}
for minor in 0 1; do
    printf 'Model: \t H200\nDevice Minor: \t %s\n' $minor >"$work/proc/nvidia/gpus/$minor/information"
done
printf '#!/bin/sh\necho "$*" >>"%s/modprobe"\n' "$work" >"$work/bin/nvidia-modprobe"
# shellcheck disable=SC2016 # the stand-in expands it
printf '#!/bin/sh\nread -r word; echo "$word" >>"%s/mps"; [ "$(wc -l <"%s/mps")" = 3 ]\n' "$work" "$work" \
    >"$work/bin/nvidia-cuda-mps-control"
chmod +x "$work"/bin/*
run_words "$units/attnd@.service" ExecStartPre
[[ $(paste -sd, "$work/modprobe") == '-u -c 0,-c 0,-c 1' ]]
run_words "$units/attnd-mps@.service" ExecStartPost
[[ $(paste -sd, "$work/mps") == get_server_list,get_server_list,get_server_list ]]

# What the exit statuses of the daemon ask for.
grep -qx 'Restart=on-failure' "$units/attnd@.service"
grep -qx 'RestartForceExitStatus=70' "$units/attnd@.service"
grep -qx 'RestartPreventExitStatus=64 77 78' "$units/attnd@.service"
# What hides GPUs from CUDA may stand in the CPU's part alone.
if grep -E '^(PrivateDevices|PrivateNetwork|MemoryDenyWriteExecute|ProcSubset)=' \
    "$units/attnd@.service" "$units/attnd-mps@.service"; then
    exit 1
fi
echo "units: nothing found"

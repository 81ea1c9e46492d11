#!/usr/bin/env bash
# systemd takes the unit as it is installed. Takes the built unit, the daemon's place and the built
# daemon. Exit status 77: no systemd-analyze here.
set -euo pipefail

unit=$1 place=$2 daemon=$3
if ! command -v systemd-analyze >/dev/null; then
    echo "units: skipped, this machine has no systemd-analyze"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The daemon need not be installed for the check: its place is replaced by where it was built.
grep -qF "ExecStart=$place " "$unit"
sed "s|ExecStart=$place |ExecStart=$daemon |" "$unit" >"$work/attnd@cpu.service"
systemd-analyze verify --man=no "$work/attnd@cpu.service" 2>&1 | tee "$work/output"
[[ ! -s $work/output ]]
echo "units: nothing found"

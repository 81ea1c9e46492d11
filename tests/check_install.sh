#!/usr/bin/env bash
# What is installed belongs together: the unit starts the daemon that is there with the configuration
# that is there, the library shows its own functions alone, and the README's C example compiles
# against header, library and pkg-config file, and computes with the daemon.
#
#   tests/check_install.sh BUILD_DIRECTORY COMPILER
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
build=$1 compiler=$2
work=$(mktemp -d)
daemon_pid=
trap '[[ -z $daemon_pid ]] || kill "$daemon_pid"; rm -rf "$work"' EXIT

fail() {
    echo "install: $1" >&2
    exit 1
}

find_installed() { # name
    local found
    found=$(find "$work/root" -name "$1" -print -quit)
    [[ -n $found ]] || fail "$1 is not installed"
    echo "$found"
}

DESTDIR=$work/root cmake --install "$build" >/dev/null

unit=$(find_installed attnd@.service)
read -r daemon _ config _ < <(sed -n 's/^ExecStart=//p' "$unit")
[[ -x $work/root$daemon ]] || fail "the unit starts $daemon, which is not installed"
[[ -f $work/root$config ]] || fail "the unit names $config, which is not installed"
"$work/root$daemon" --version >/dev/null

"$(find_installed attnctl)" --version >/dev/null
for file in attnd-mps@.service cpu.conf MPS.md; do
    find_installed $file >/dev/null
done
page=$(sed -n 's|^Documentation=.*file:\([^ ]*MPS.md\).*|\1|p' "$unit")
[[ -f $work/root$page ]] || fail "the unit names $page, which is not installed"

library=$(find_installed libattnd.so.0)
foreign=$(nm -D --defined-only "$library" | awk '$2 != "A" && $3 !~ /^attnd_/ { print $3 }')
[[ -z $foreign ]] || fail "the library shows $foreign"

awk '/^```c$/ { inside = 1; next } /^```/ { inside = 0 } inside' "$root/README.md" >"$work/example.c"
grep -q 'int main' "$work/example.c" || fail "there is no C program in README.md"
export PKG_CONFIG_SYSROOT_DIR=$work/root
PKG_CONFIG_PATH=$(dirname "$(find_installed attnd.pc)")
export PKG_CONFIG_PATH
read -ra flags < <(pkg-config --cflags --libs attnd)
"$compiler" -std=c11 -Wall -Wextra -Wpedantic -Werror "$work/example.c" "${flags[@]}" \
    -o "$work/example"

(umask 0027 && mkdir "$work/run")
"$work/root$daemon" --directory "$work/run" >"$work/log" 2>&1 &
daemon_pid=$!
ctl=$(find_installed attnctl)
for _ in {1..100}; do
    "$ctl" status --address "$work/run" >/dev/null 2>&1 && break
    sleep 0.1
done
LD_LIBRARY_PATH=$(dirname "$library") ATTND_ADDRESS=$work/run timeout 60 "$work/example" |
    grep -qx 'OK ' || fail "the C program of README.md does not compute"
echo "install: everything is there and belongs together"

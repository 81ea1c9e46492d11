#!/usr/bin/env bash
# The README's C example compiles and links without a warning.
#
#   tests/check_readme.sh COMPILER LIBRARY INCLUDE_DIR...
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
compiler=$1 library=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk '/^```c$/ { inside = 1; next } /^```/ { inside = 0 } inside' "$root/README.md" >"$work/example.c"
if ! grep -q 'int main' "$work/example.c"; then
    echo "readme: no C program found in README.md" >&2
    exit 1
fi
"$compiler" -std=c11 -Wall -Wextra -Wpedantic -Werror "${@/#/-I}" "$work/example.c" "$library" \
    -o "$work/example"
echo "readme: the example compiles"

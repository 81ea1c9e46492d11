#!/usr/bin/env bash
# The product's sources pass clang-tidy 14 with .clang-tidy. Takes the build directory whose
# compile_commands.json says how they are compiled. Exit status 77: no clang-tidy 14 here.
set -euo pipefail

build=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
for tool in clang-tidy-14 clang-tidy; do
    if [[ $($tool --version 2>/dev/null) == *'version 14.'* ]]; then
        # Flags that only gcc knows are no findings, and what is not built here has no flags.
        find client proto server kernels -name '*.c' -print |
            while read -r file; do
                ! grep -qF "/$file" "$build/compile_commands.json" || printf '%s\0' "$file"
            done |
            xargs -0 -n 1 -P 2 "$tool" --quiet -p "$build" --extra-arg=-Wno-unknown-warning-option \
                --extra-arg=-Wno-ignored-optimization-argument
        echo "tidy: nothing found"
        exit 0
    fi
done
echo "tidy: skipped, this machine has no clang-tidy 14"
exit 77

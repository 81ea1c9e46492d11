#!/usr/bin/env bash
# The library as others see it: its exported symbols, and an installed copy that a program built
# outside of this tree finds through pkg-config and through CMake.
#
#   tests/test_client_library.sh LIBRARY BUILD_DIRECTORY COMPILER
set -euo pipefail
export LC_ALL=C

library=$1 build=$2 compiler=$3
header=$(cd "$(dirname "$0")/.." && pwd)/client/attnd.h
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "client_library: $1" >&2
    exit 1
}

# Exactly the functions that the header declares.
tr '\n' ' ' <"$header" | grep -oE 'ATTND_API [^;(]*attnd_[a-z_]+\(' | grep -oE 'attnd_[a-z_]+\($' |
    tr -d '(' | sort >"$work/declared"
nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' |
    sort >"$work/exported"
[ -s "$work/declared" ] || fail "no declarations found in $header"
diff "$work/declared" "$work/exported" >&2 || fail 'declared (<) and exported (>) differ'
objdump -p "$library" | grep -q 'SONAME *libattnd.so.0$' || fail 'the SONAME is not libattnd.so.0'

cat >"$work/main.c" <<'END'
#include <attnd.h>
#include <string.h>

int main(void)
{
    struct attnd_open_options options = {sizeof options, "/nowhere", 0, 0};
    struct attnd *client = 0;
    return !(attnd_open(&options, &client) == ATTND_DISCONNECTED && !client &&
             strlen(attnd_message()) > 0);
}
END
cmake --install "$build" --component libattnd --prefix "$work/installed" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2 && fail 'it cannot be installed'; }
directory=$(dirname "$(find "$work/installed" -name attnd.pc)")
flags=$(PKG_CONFIG_PATH=$directory pkg-config --define-variable=prefix="$work/installed" \
    --cflags --libs attnd)
# shellcheck disable=SC2086 # the flags are many words
"$compiler" -std=c11 -Wall -Wextra -Wpedantic -Werror "$work/main.c" $flags -o "$work/by_pkg_config"
LD_LIBRARY_PATH=$(dirname "$directory") "$work/by_pkg_config" || fail 'pkg-config: it does not run'

mkdir "$work/user"
cp "$work/main.c" "$work/user"
cat >"$work/user/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(user LANGUAGES C)
find_package(attnd 0.1 CONFIG REQUIRED)
add_executable(user main.c)
target_link_libraries(user PRIVATE attnd::attnd)
END
if ! (cmake -G Ninja -S "$work/user" -B "$work/user/build" -DCMAKE_PREFIX_PATH="$work/installed" \
    -DCMAKE_C_COMPILER="$compiler" && cmake --build "$work/user/build") >"$work/log" 2>&1; then
    cat "$work/log" >&2
    fail 'CMake: it does not build'
fi
"$work/user/build/user" || fail 'CMake: it does not run'
echo "client_library: $(wc -l <"$work/exported") functions, installed and used"

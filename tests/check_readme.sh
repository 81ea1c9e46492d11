#!/usr/bin/env bash
# The README's table of files names every source and header of client/, proto/ and server/, and none
# that is not there.
set -euo pipefail

cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for folder in client proto server; do
    sed -n "s/^| .* | \`$folder\/\`: \(.*\) |\$/\1/p" README.md | tr -s ', ' '\n' | sort >"$work/said"
    find $folder -maxdepth 1 -name '*.[ch]' -printf '%f\n' | sed 's/\.[ch]$//' | sort -u >"$work/there"
    if ! diff "$work/said" "$work/there" >"$work/difference"; then
        sed -n "s|^<|readme: the table names a file that is not there, or names it twice: $folder/|p
            s|^>|readme: the table has no $folder/|p" "$work/difference" | sed 's|/ |/|'
        exit 1
    fi
done
echo "readme: every file has its room"

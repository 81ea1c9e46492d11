#!/usr/bin/env bash
# The shell scripts pass shellcheck. Exit status 77: no shellcheck here.
set -euo pipefail

cd "$(dirname "$0")/.."
if ! command -v shellcheck >/dev/null; then
    echo "shell: skipped, this machine has no shellcheck"
    exit 77
fi
shellcheck deploy/quickstart .ci/run kernels/*.sh tests/*.sh
echo "shell: nothing found"

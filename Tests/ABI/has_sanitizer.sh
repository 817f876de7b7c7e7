#!/usr/bin/env bash
# Whether programs of the Swift toolchain's clang run with its address sanitizer.
set -euo pipefail
tools=$(dirname "$(readlink -f "$(command -v swift)")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo 'int main(void) { return 0; }' > "$work/probe.c"
"$tools/clang" -fsanitize=address "$work/probe.c" -o "$work/probe" 2> /dev/null && "$work/probe"

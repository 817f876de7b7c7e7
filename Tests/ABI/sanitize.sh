#!/usr/bin/env bash
# Runs some C tests against a library with the address sanitizer: fuzzers, hostile arguments, life cycles, threads.
#
# usage: sanitize.sh SCRATCH_FOLDER [SECONDS [JOBS]]     SECONDS for each fuzzer, default 5
#
# SCRATCH_FOLDER holds a debug build: swift build --build-tests --sanitize=address --scratch-path SCRATCH_FOLDER
# Skips, and says so, where the Swift toolchain's clang has no sanitizer runtime.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=$1 seconds=${2:-5} jobs=${3:-1}
tools=$(dirname "$(readlink -f "$(command -v swift)")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! "$here/has_sanitizer.sh"; then
  echo "skip sanitize: this toolchain has no address sanitizer"
  exit 0
fi
cp "$scratch/debug/libthalweg.so" "$work/libthalweg.so"

run() { # NAME
  local test=$1
  "$tools/clang" -fsanitize=address -g -DSLOW "-I$root/include" "$here/$test.c" -o "$work/$test" "-L$work" -lthalweg \
    "-Wl,-rpath,$work:$tools/../lib/swift/linux" -lm -lpthread 2> "$work/$test.log" || { cat "$work/$test.log"; return 1; }
  # The Swift runtime keeps its metadata for the life of the process; leaks are valgrind's business (run.sh).
  if ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 "$work/$test" "$seconds" > "$work/$test.log" 2>&1; then
    echo "ok   sanitized.$test"
  else
    tail -40 "$work/$test.log"
    echo "FAIL sanitized.$test"
    return 1
  fi
}
export -f run
export here root seconds tools work
export THALWEG_TEST_DEADLINE=${THALWEG_TEST_DEADLINE:-1200} # the library is not optimised
printf '%s\n' hostile threads executor fuzz_grammar fuzz_checkpoint lifecycle ranks |
  xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; run {}'

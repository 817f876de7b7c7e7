#!/usr/bin/env bash
# Builds the library and some C tests under the address sanitizer and runs them: fuzzers, hostile arguments, life cycles, threads.
#
# usage: sanitize.sh SCRATCH_FOLDER [SECONDS|build]     SECONDS for each fuzzer, default 5; `build` only compiles
#
# Skips, and says so, where the Swift toolchain's clang has no sanitizer runtime.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=$1 seconds=${2:-5}
tools=$(dirname "$(readlink -f "$(command -v swift)")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo 'int main(void) { return 0; }' > "$work/probe.c"
if ! "$tools/clang" -fsanitize=address "$work/probe.c" -o "$work/probe" 2> /dev/null || ! "$work/probe"; then
  echo "skip sanitize: this toolchain has no address sanitizer"
  exit 0
fi
cd "$root"
swift build -c release --product thalweg --sanitize=address --scratch-path "$scratch"
if [ "$seconds" = build ]; then exit 0; fi
cp "$scratch/release/libthalweg.so" "$work/libthalweg.so"
passed=0 failed=0
for test in fuzz_grammar fuzz_checkpoint hostile lifecycle threads executor; do
  "$tools/clang" -fsanitize=address -g "-I$root/include" "$here/$test.c" -o "$work/$test" "-L$work" -lthalweg \
    "-Wl,-rpath,$work:$tools/../lib/swift/linux" -lm -lpthread
  # The Swift runtime keeps its metadata for the life of the process; leaks are valgrind's business (run.sh).
  if ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 "$work/$test" "$seconds" > "$work/log" 2>&1; then
    echo "ok   sanitized.$test"
    passed=$((passed + 1))
  else
    tail -40 "$work/log"
    echo "FAIL sanitized.$test"
    failed=$((failed + 1))
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

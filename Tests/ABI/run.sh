#!/usr/bin/env bash
# Builds the C and C++ tests against a library and runs them.
#
# usage: run.sh LIBRARY_FOLDER INCLUDE_FOLDER [TEST...]
#
#   LIBRARY_FOLDER  holds libthalweg.so.1 and, below glibc-hwcaps/, its variants for other processors
#   INCLUDE_FOLDER  holds thalweg/thalweg.h
#   TEST            header, symbols, instructions, install, examples, archive, leaks, or the name of a program
#                   here without its suffix; all of them when none is named
#
# Prints one line a test ("ok", "FAIL" or "skip", and its name) and a closing line "N passed, N failed"; fails
# when a test failed.
#
# Environment: CC, CXX (default cc, c++); CFLAGS, as "-fsanitize=address"; FUZZ_SECONDS (5) and FUZZ_SEED (1)
# for each fuzzer; VALGRIND=0 leaves out the leak tests; INSTRUCTIONS=all reads the whole baseline, not a fifth of it.
set -euo pipefail

usage() { sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

[ $# -ge 2 ] || usage
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
library=$(cd "$1" && pwd)
include=$(cd "$2" && pwd)
shift 2
wanted=("$@")
CC=${CC:-cc} CXX=${CXX:-c++}
read -r -a flags <<< "${CFLAGS:-}"
header=$include/thalweg/thalweg.h
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work
log=$work/log

[ -f "$library/libthalweg.so.1" ] || { echo "run.sh: $library/libthalweg.so.1 is missing" >&2; exit 2; }
[ -f "$header" ] || { echo "run.sh: $header is missing" >&2; exit 2; }

say() { printf '%s\n' "$*" | tee -a "$log"; }
wants() { # NAME: whether it was asked for
  [ ${#wanted[@]} -eq 0 ] && return 0
  local name
  for name in "${wanted[@]}"; do [ "$name" = "$1" ] && return 0; done
  return 1
}
# check NAME COMMAND...: one test; its output is shown when it fails.
check() {
  local name=$1
  shift
  if "$@" > "$work/output" 2>&1; then
    say "ok   $name"
  else
    sed 's/^/       /' "$work/output" | head -40
    say "FAIL $name"
  fi
}

strict=(-Wall -Wextra -Werror -pedantic)
c99=("$CC" -std=c99 "${strict[@]}" "-I$include" ${flags[@]+"${flags[@]}"})
cxx17=("$CXX" -std=c++17 "${strict[@]}" "-I$include" ${flags[@]+"${flags[@]}"})

# ---- the headers ---------------------------------------------------------------------------------------

if wants header; then
  for standard in c99 c11 c17; do
    check "header.$standard" "$CC" "-std=$standard" "${strict[@]}" "-I$include" -fsyntax-only \
      "$here/header_c99.c"
  done
  for standard in c++17 c++20; do
    check "header.$standard" "$CXX" "-std=$standard" "${strict[@]}" "-I$include" -fsyntax-only \
      "$here/header_cxx17.cpp"
  done
  views() { "${c99[@]}" -Wconversion -Wshadow "$here/header_c99.c" -o "$work/views" "$library/libthalweg.so.1" &&
    LD_LIBRARY_PATH=$library "$work/views"; }
  check header.views views
  check header.no_exceptions "$CXX" -std=c++17 -fno-exceptions -fno-rtti "${strict[@]}" "-I$include" -fsyntax-only \
    "$here/header_cxx17.cpp"
  printf '#include <thalweg/thalweg.h>\nint main() { return 0; }\n' > "$work/old.cpp"
  check header.c++98 "$CXX" -std=c++98 -Wall -Wextra -Werror -Wno-long-long -Wno-c++11-extensions \
    -Wno-c++11-long-long "-I$include" -fsyntax-only "$work/old.cpp"
fi

# ---- the symbols ---------------------------------------------------------------------------------------

# Every function that the header declares: a tw_ name in front of an opening parenthesis.  What is static inline is none of
# the library's.
declared() {
  "$CC" -E -P "-I$include" "$header" | sed '/^static inline/,/^}/d' | grep -oE '\btw_[a-z0-9_]+ *\(\*?' | grep -v '\*' | tr -d ' (' | sort -u
}

same_symbols() { # LIBRARY
  nm -D --defined-only --extern-only "$1" | awk '{ print $NF }' | sed 's/@.*//' | sort -u > "$work/exported"
  declared > "$work/declared"
  if ! diff "$work/declared" "$work/exported" > "$work/diff"; then
    echo "declared and not exported (<), exported and not declared (>):"
    grep '^[<>]' "$work/diff"
    return 1
  fi
}
right_soname() { [ "$(readelf -d "$1" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')" = libthalweg.so.1 ]; }
no_swift_needed() {
  local needed
  needed=$(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
  if grep -iE 'swift|foundation|dispatch|blocksruntime|icu' <<< "$needed"; then
    echo "is needed"
    return 1
  fi
}
own_run_path() { # no folder but the library's own is looked into
  ! readelf -d "$1" | sed -n 's/.*(\(RPATH\|RUNPATH\)).*\[\(.*\)\]/\2/p' | grep -v '^\$ORIGIN$'
}
no_executable_stack() { ! readelf -lW "$1" | grep GNU_STACK | grep -q 'RWE'; }
no_text_relocations() { ! readelf -d "$1" | grep -q TEXTREL; }
# Linked on any system, the library runs on those of glibc 2.28 (CThalweg/old_glibc.c); other processors have no such list.
old_glibc() {
  local newest
  [ "$(uname -m)" = x86_64 ] || return 0
  newest=$(objdump -T "$1" | grep -oE 'GLIBC_2\.[0-9.]+' | sort -uV | tail -1)
  [ "$(printf '%s\n' "$newest" GLIBC_2.28 | sort -V | tail -1)" = GLIBC_2.28 ] || { objdump -T "$1" | grep -F "$newest"; return 1; }
}
stays_mapped() { readelf -dW "$1" | grep -q 'FLAGS_1.*NODELETE'; } # its threads wait in its code

links() { # LIBRARY
  {
    printf '#include <stdio.h>\n#include <thalweg/thalweg.h>\ntypedef void (*any)(void);\n'
    printf 'static const struct { const char *name; any function; } all[] = {\n'
    declared | sed 's/.*/    {"&", (any)&},/'
    printf '};\nint main(void) {\n  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {\n'
    printf '    if (all[i].function == 0) return puts(all[i].name), 1;\n  }\n  return 0;\n}\n'
  } > "$work/link.c"
  "$CC" -std=c99 -Wall -Wextra -Werror "-I$include" "$work/link.c" -o "$work/link" "$1" -Wl,--no-undefined
  LD_LIBRARY_PATH=$(dirname "$1") "$work/link"
}

variants=("$library/libthalweg.so.1")
for file in "$library"/glibc-hwcaps/*/libthalweg.so.1; do
  [ -f "$file" ] && variants+=("$file")
done

if wants symbols; then
  for file in "${variants[@]}"; do
    name=baseline
    case $file in */glibc-hwcaps/*) name=$(basename "$(dirname "$file")") ;; esac
    check "symbols.$name.exported" same_symbols "$file"
    check "symbols.$name.soname" right_soname "$file"
    check "symbols.$name.needed" no_swift_needed "$file"
    check "symbols.$name.run_path" own_run_path "$file"
    check "symbols.$name.stack" no_executable_stack "$file"
    check "symbols.$name.relocations" no_text_relocations "$file"
    check "symbols.$name.stays" stays_mapped "$file"
    check "symbols.$name.old_glibc" old_glibc "$file"
    check "symbols.$name.links" links "$file"
  done
fi

# ---- the instructions of the baseline -----------------------------------------------------------------

if wants instructions; then
  if [ "$(uname -m)" != x86_64 ] || [ ${#variants[@]} -lt 2 ] || ! command -v objdump > /dev/null; then
    say "skip instructions (needs objdump, and a library with a baseline)"
  else
    check instructions.baseline "$here/baseline.sh" "$library/libthalweg.so.1"
    # The check finds what it looks for.
    cannot() { ! "$here/baseline.sh" "${variants[1]}"; }
    check instructions.others cannot
  fi
fi

# ---- the headers of earlier releases -------------------------------------------------------------------

# headers/VERSION holds the header as it was released: what a compiled host has of it must stay.
older=("$here"/headers/*)
same_enumerators() { # FOLDER: every enumerator has the value that it had
  {
    printf '#include <thalweg/thalweg.h>\n'
    "$CC" -E -P "-I$1" "$1/thalweg/thalweg.h" | grep -oE '\bTW_[A-Z0-9_]+ = -?[0-9]+' |
      sed -E 's/(.*) = (.*)/_Static_assert(\1 == \2, "\1");/'
  } > "$work/enumerators.c"
  [ "$(wc -l < "$work/enumerators.c")" -gt 50 ] &&
    "$CC" -std=c11 "${strict[@]}" "-I$include" -fsyntax-only "$work/enumerators.c"
}
still_exported() { # FOLDER: every function is there
  header=$1/thalweg/thalweg.h include=$1 declared > "$work/old"
  nm -D --defined-only --extern-only "$library/libthalweg.so.1" | awk '{ print $NF }' | sed 's/@.*//' | sort -u > "$work/exported"
  [ -s "$work/old" ] && [ -z "$(comm -23 "$work/old" "$work/exported" | tee /dev/stderr)" ]
}
if wants symbols; then
  for folder in "${older[@]}"; do
    check "older.$(basename "$folder").enumerators" same_enumerators "$folder"
    check "older.$(basename "$folder").exported" still_exported "$folder"
  done
fi

# ---- the programs --------------------------------------------------------------------------------------

build() { # NAME
  case $1 in
    unload) "${c99[@]}" -O1 -g "$here/$1.c" -o "$work/$1" -ldl ;;
    old_host)
      "$CC" -std=c99 "${strict[@]}" "-I$old" ${flags[@]+"${flags[@]}"} -O1 -g "$here/$1.c" -o "$work/$1" \
        "$library/libthalweg.so.1" -lm
      ;;
    cpp_wrapper) "${cxx17[@]}" -g "$here/$1.cpp" -o "$work/$1" "$library/libthalweg.so.1" ;;
    cpp_status)
      "${cxx17[@]}" -std=c++20 -fno-exceptions -fno-rtti -g "$here/$1.cpp" -o "$work/$1" "$library/libthalweg.so.1" ;;
    *) "${c99[@]}" -O1 -g "$here/$1.c" -o "$work/$1" "$library/libthalweg.so.1" -lm -lpthread ;;
  esac
}

# program NAME ARGUMENT...: its own lines are the tests; one that ends badly without a FAIL line is a failure.
program() {
  local name=$1 status=0
  shift
  if ! build "$name" > "$work/output" 2>&1; then
    sed 's/^/       /' "$work/output" | head -40
    say "FAIL $name.build"
    return
  fi
  LD_LIBRARY_PATH=$library "$work/$name" "$@" > "$work/output" 2>&1 || status=$?
  cat "$work/output"
  cat "$work/output" >> "$log"
  if [ $status -ne 0 ] && ! grep -q '^FAIL ' "$work/output"; then say "FAIL $name (status $status)"; fi
}

for old in "${older[@]}"; do
  if wants old_host; then program old_host; fi
done
if wants unload; then program unload "$library/libthalweg.so.1"; fi
if wants blas; then
  check blas.another "$CC" -shared -fPIC -w "$here/another_blas.c" -o "$work/libanother_blas.so"
  program blas "$work/libanother_blas.so"
fi
fuzz=("${FUZZ_SECONDS:-5}" "${FUZZ_SEED:-1}")
for name in lifecycle interrupt introspection hostile allocator executor solver ranks exhausted allocations overlap files fork threads cpp_wrapper cpp_status; do
  if wants "$name"; then program "$name"; fi
done
for name in fuzz_grammar fuzz_checkpoint; do
  if wants "$name"; then program "$name" "${fuzz[@]}"; fi
done

# ---- installed -----------------------------------------------------------------------------------------

prefix=$work/prefix
install_here() { CC=$CC "$root/Sources/packaging/install.sh" "$prefix" "$library"; }
data=$root/examples/data/breast_cancer.csv
with_pkg_config() { # COMPILER SOURCE TARGET FLAGS...
  local compiler=$1 source=$2 target=$3 cflags libs
  shift 3
  read -r -a cflags <<< "$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --cflags thalweg)"
  read -r -a libs <<< "$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --libs thalweg)"
  "$compiler" "$@" "${cflags[@]}" "$source" -o "$target" "${libs[@]}" -lm
}
with_cmake() { # LANGUAGE
  env CFLAGS="${strict[*]}" CXXFLAGS="${strict[*]}" \
    cmake -S "$root/examples/$1" -B "$work/cmake-$1" -DCMAKE_PREFIX_PATH="$prefix" > "$work/cmake-$1.log" &&
    cmake --build "$work/cmake-$1" && (cd "$work/cmake-$1" && ctest --output-on-failure)
}
rust() {
  make -C "$root/examples/rust" run PREFIX="$prefix" BUILD="$work/rust"
}
example() { LD_LIBRARY_PATH=$prefix/lib "$work/$1" "$data"; }
found_by_version() { # VERSION RESULT: whether find_package accepts it
  mkdir -p "$work/find"
  printf 'cmake_minimum_required(VERSION 3.16)\nproject(find C)\nfind_package(thalweg %s REQUIRED)\n' "$1" \
    > "$work/find/CMakeLists.txt"
  rm -rf "$work/find/build"
  cmake -S "$work/find" -B "$work/find/build" -DCMAKE_PREFIX_PATH="$prefix"
}
not_found_by_version() { ! found_by_version "$1"; }
installed_files() {
  local file
  for file in lib/libthalweg.so.1 lib/libthalweg.so include/thalweg/thalweg.h include/thalweg/thalweg.hpp \
    lib/pkgconfig/thalweg.pc lib/cmake/thalweg/thalwegConfig.cmake \
    lib/cmake/thalweg/thalwegConfigVersion.cmake; do
    [ -e "$prefix/$file" ] || { echo "$file is missing"; return 1; }
  done
  if [ "$(find "$prefix/lib" -name libthalweg.so.1 | wc -l)" != ${#variants[@]} ]; then
    echo "variants are missing"
    return 1
  fi
  [ "$(readlink "$prefix/lib/libthalweg.so")" = libthalweg.so.1 ] &&
    [ "$(readlink "$prefix/lib/libthalweg.so.1")" = "libthalweg.so.1.$(release)" ] &&
    [ -f "$prefix/lib/libthalweg.so.1.$(release)" ] &&
    [ -s "$prefix/share/doc/thalweg/LICENSE" ] && [ -s "$prefix/share/doc/thalweg/LICENSE.swift.txt" ]
}
release() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --modversion thalweg; }
# A program that is linked with the variable rpath finds the library by itself.
rpath_finds() {
  local hint
  hint=$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --variable=rpath thalweg)
  with_pkg_config "$CC" "$root/examples/c/logistic.c" "$work/found" -std=c99 "$hint" &&
    env -u LD_LIBRARY_PATH "$work/found" "$data"
}
# Into a folder with things of others: installed twice, the older release's file is gone; removed, they are left, and nothing else.
comes_and_goes() {
  local own=$work/uninstall/usr before
  mkdir -p "$own/lib/cmake" "$own/include"
  echo other > "$own/lib/libother.so"
  before=$(cd "$own" && find . | sort)
  "$root/Sources/packaging/install.sh" /usr "$library" 0.0.9 && "$root/Sources/packaging/install.sh" /usr "$library" 0.1.0 &&
    [ ! -e "$own/lib/libthalweg.so.1.0.0.9" ] && [ -e "$own/lib/libthalweg.so.1.0.1.0" ] || return 1
  echo other > "$own/include/thalweg/other.h"
  "$root/Sources/packaging/uninstall.sh" /usr || return 1
  [ "$(cd "$own" && find include/thalweg)" = $'include/thalweg\ninclude/thalweg/other.h' ] || return 1
  rm -r "$own/include/thalweg"
  diff <(echo "$before") <(cd "$own" && find . | sort) && "$root/Sources/packaging/uninstall.sh" /usr
}
# The C example on a processor that has x86-64 and no more, emulated.
old_processor() {
  LD_LIBRARY_PATH=$prefix/lib qemu-x86_64 -cpu qemu64,-sse3 "$work/logistic_c" "$data"
}

if wants install || wants examples || wants archive || wants leaks; then
  check install.install install_here
  check install.files installed_files
fi
if wants install; then
  version=$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --modversion thalweg || echo 0.0.0)
  check install.cmake_version found_by_version "$version"
  check install.rpath rpath_finds
  DESTDIR=$work/uninstall check install.uninstall comes_and_goes
  check install.cmake_newer not_found_by_version "$((${version%%.*} + 1)).0"
fi
if wants examples || wants leaks; then
  check examples.c.build with_pkg_config "$CC" "$root/examples/c/logistic.c" "$work/logistic_c" \
    -std=c99 -g "${strict[@]}"
  check examples.cpp.build with_pkg_config "$CXX" "$root/examples/cpp/logistic.cpp" "$work/logistic_cpp" \
    -std=c++17 -g "${strict[@]}"
fi
if wants examples; then
  check examples.c.run example logistic_c
  check examples.cpp.run example logistic_cpp
  if [ "$(uname -m)" = x86_64 ] && [ ${#variants[@]} -gt 1 ] && command -v qemu-x86_64 > /dev/null; then
    check examples.c.old_processor old_processor
  else
    say "skip examples.c.old_processor (needs qemu-user, and a library with a baseline)"
  fi
  check examples.c.cmake with_cmake c
  check examples.cpp.cmake with_cmake cpp
  # What CMake leaves out, it says: "-- eigen is left out: ...".
  sed -n 's/^-- \(.*\) is left out: /skip examples.cpp.\1: /p' "$work/cmake-cpp.log" | tee -a "$log"
  if rustc --version > /dev/null 2>&1; then
    check examples.rust rust
  else
    say "skip examples.rust: rustc is not here"
  fi
fi

# ---- the archive ---------------------------------------------------------------------------------------

archive=$library/libthalweg.a
archive_symbols() { # the functions of the interface, all of them and nothing else
  diff <(nm -g --defined-only "$archive" | sed -n 's/^[0-9a-f]* . //p' | sort) <(declared | sort)
}
with_archive() { # SOURCE TARGET FLAGS...
  local source=$1 target=$2 libs
  shift 2
  read -r -a libs <<< "$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --variable=static thalweg)"
  "$CC" -std=c99 "${strict[@]}" "-I$prefix/include" "$source" -o "$target" "$@" "${libs[@]}"
}
carries() { # PROGRAM: it needs no library of ours, and prints what the example with the shared one prints
  ! readelf -d "$1" | grep -q 'NEEDED.*thalweg' && diff <("$1" "$data") <(example logistic_c)
}
archive_in_cmake() {
  mkdir -p "$work/cmake-archive"
  printf '%s\n' 'cmake_minimum_required(VERSION 3.16)' 'project(archive C)' 'find_package(thalweg CONFIG REQUIRED)' \
    "add_executable(archive $root/examples/c/logistic.c)" 'target_link_libraries(archive PRIVATE thalweg::static)' \
    > "$work/cmake-archive/CMakeLists.txt"
  cmake -S "$work/cmake-archive" -B "$work/cmake-archive/build" -DCMAKE_PREFIX_PATH="$prefix" &&
    cmake --build "$work/cmake-archive/build" && carries "$work/cmake-archive/build/archive"
}
if wants archive; then
  if [ -f "$archive" ]; then
    check archive.symbols archive_symbols
    check archive.shared with_pkg_config "$CC" "$root/examples/c/logistic.c" "$work/logistic_c" -std=c99
    for how in plain --gc-sections -static; do
      case $how in plain) flags=() ;; --*) flags=("-Wl,$how" -s) ;; *) flags=("$how") ;; esac
      check "archive.$how.build" with_archive "$root/examples/c/logistic.c" "$work/archive$how" "${flags[@]}"
      check "archive.$how.run" carries "$work/archive$how"
    done
    check archive.cmake archive_in_cmake
    # A shared library that carries it, opened and closed while its threads wait.
    printf '%s\n' '#include <thalweg/thalweg.h>' \
      'tw_status (*carried)(const char *, const tw_options *, tw_optimizer **) = tw_optimizer_create;' \
      > "$work/plugin.c"
    check archive.plugin.build with_archive "$work/plugin.c" "$work/plugin.so" -fPIC -shared
    program unload "$work/plugin.so"
    # The reserve stands in front of the allocations of what the archive carries.
    check archive.allocations.build with_archive "$here/allocations.c" "$work/archive_allocations"
    check archive.allocations.run "$work/archive_allocations"
  else
    say "skip archive: $archive was not made (make static)"
  fi
fi

# ---- leaks ---------------------------------------------------------------------------------------------

# Nothing is lost, nothing is read that was not written.  What the library keeps for the process is reachable.
valgrind_clean() {
  LD_LIBRARY_PATH=$prefix/lib THALWEG_NUM_THREADS=1 THALWEG_TEST_NO_FORK=1 valgrind --quiet \
    --error-exitcode=99 --leak-check=full --show-leak-kinds=definite,indirect \
    --errors-for-leak-kinds=definite,indirect "$@"
}
# valgrind knows no AVX-512 and no DWARF 5: it needs a stripped library that does without.  An EVEX instruction
# starts with 0x62; a trap of the library's own (0xF 0xB) is no reason to skip.
valgrind_runs() {
  LD_LIBRARY_PATH=$prefix/lib valgrind --quiet --sigill-diagnostics=yes "$work/logistic_c" "$data" \
    > "$work/output" 2>&1 || true
  ! grep -qE "unhandled instruction bytes: 0x62|I can't recover" "$work/output"
}
if wants leaks; then
  if [ "${VALGRIND:-1}" = 0 ] || ! command -v valgrind > /dev/null || ! valgrind_runs; then
    say "skip leaks"
  else
    check leaks.example_c valgrind_clean "$work/logistic_c" "$data"
    check leaks.example_cpp valgrind_clean "$work/logistic_cpp" "$data"
    for name in lifecycle cpp_wrapper; do
      check "leaks.$name.build" build "$name"
      check "leaks.$name" valgrind_clean "$work/$name"
    done
  fi
fi

# ---- the count -----------------------------------------------------------------------------------------

touch "$log"
passed=$(grep -c '^ok ' "$log" || true)
failed=$(grep -c '^FAIL ' "$log" || true)
skipped=$(grep -c '^skip ' "$log" || true)
[ "$skipped" = 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

#!/usr/bin/env bash
# Installs a built library with its headers, pkg-config file and CMake package.
#
# usage: install.sh PREFIX LIBRARY_FOLDER [VERSION]
#
#   PREFIX          where it will live, as /usr/local
#   LIBRARY_FOLDER  where libthalweg.so.1 was built; its glibc-hwcaps/*/libthalweg.so.1 are installed too
#   VERSION         "major.minor.patch"; without it the library is asked (needs a C compiler)
#
# Environment: DESTDIR is put in front of every path that is written; LIBDIR (default lib) is the library
# folder below PREFIX, as lib/x86_64-linux-gnu; CC is the C compiler.
set -euo pipefail

usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
fail() { echo "install.sh: $*" >&2; exit 1; }

[ $# -eq 2 ] || [ $# -eq 3 ] || usage
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
include=$(cd "$here/../../include" && pwd)
prefix=${1%/}
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
built=$(cd "$2" && pwd)
libdir=${LIBDIR:-lib}
root=${DESTDIR:-}$prefix

[ -f "$built/libthalweg.so.1" ] || fail "$built/libthalweg.so.1 is missing: build the library first"

# The release, as the library itself states it.
library_version() {
  local folder
  folder=$(mktemp -d)
  printf '%s\n' '#include <stdio.h>' '#include <thalweg/thalweg.h>' \
    'int main(void) { return puts(tw_version()) < 0; }' > "$folder/version.c"
  "${CC:-cc}" -I"$include" "$folder/version.c" -o "$folder/version" "$built/libthalweg.so.1" || return 1
  LD_LIBRARY_PATH=$built "$folder/version" || return 1
  rm -r "$folder"
}
version=${3:-$(library_version)} || fail "the library cannot be asked for its version; give it as an argument"
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+ ]] || fail "\"$version\" is not a version"

# The way from PREFIX/LIBDIR/cmake/thalweg up to PREFIX/include.
up=$(printf '%s' "$libdir/cmake/thalweg" | sed 's#[^/]\{1,\}#..#g')

fill() { # TEMPLATE TARGET
  sed -e "s#@PREFIX@#$prefix#g" -e "s#@LIBDIR@#$libdir#g" -e "s#@VERSION@#$version#g" \
    -e "s#@MAJOR@#${version%%.*}#g" -e "s#@INCLUDE_FROM_CONFIG@#$up/include#g" "$here/$1" > "$2"
  chmod 644 "$2"
}

install -d "$root/$libdir/pkgconfig" "$root/$libdir/cmake/thalweg" "$root/include/thalweg"
install -m 755 "$built/libthalweg.so.1" "$root/$libdir/libthalweg.so.1"
ln -sfn libthalweg.so.1 "$root/$libdir/libthalweg.so"
for variant in "$built"/glibc-hwcaps/*/libthalweg.so.1; do
  [ -f "$variant" ] || continue
  target=$root/$libdir/glibc-hwcaps/$(basename "$(dirname "$variant")")
  install -d "$target"
  install -m 755 "$variant" "$target/libthalweg.so.1"
done
install -m 644 "$include/thalweg/thalweg.h" "$include/thalweg/thalweg.hpp" "$root/include/thalweg/"
fill thalweg.pc.in "$root/$libdir/pkgconfig/thalweg.pc"
fill thalwegConfig.cmake.in "$root/$libdir/cmake/thalweg/thalwegConfig.cmake"
fill thalwegConfigVersion.cmake.in "$root/$libdir/cmake/thalweg/thalwegConfigVersion.cmake"
echo "thalweg $version is installed in $root"

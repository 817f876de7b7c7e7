#!/usr/bin/env bash
# Installs a built library with its headers, licences, pkg-config file and CMake package, in the place of one installed
# earlier.  What it puts there it lists in share/doc/thalweg/installed.txt, by which uninstall.sh removes it.
#
# usage: install.sh PREFIX LIBRARY_FOLDER [VERSION]
#
#   PREFIX          where it will live, as /usr/local
#   LIBRARY_FOLDER  where libthalweg.so.1 was built; its glibc-hwcaps/*/libthalweg.so.1 are installed too, and
#                   libthalweg.a where there is one
#   VERSION         "major.minor.patch"; without it the library is asked (needs a C compiler)
#
# Environment: DESTDIR is put in front of every path that is written; LIBDIR (default lib) is the library
# folder below PREFIX, as lib/x86_64-linux-gnu; CC is the C compiler.
set -euo pipefail

usage() { sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
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

list=share/doc/thalweg/installed.txt
"$here/uninstall.sh" "$1" > /dev/null
put=()
folder() { # NAME: a folder below the prefix, with those above it that are missing
  [ -d "$root/$1" ] && return
  case $1 in */*) folder "${1%/*}" ;; esac
  install -d "$root/$1"
  put+=("$1/")
}
into() { folder "${1%/*}"; put+=("$1"); }                                         # TARGET
file() { into "$3"; install -m "$1" "$2" "$root/$3"; }                            # MODE SOURCE TARGET
link() { into "$2"; ln -sfn "$1" "$root/$2"; }                                    # TO TARGET
filled() { into "$2"; fill "$1" "$root/$2"; }                                     # TEMPLATE TARGET

# The name of the file has the number of the interface, then the release.
for variant in "$built" "$built"/glibc-hwcaps/*; do
  [ -f "$variant/libthalweg.so.1" ] || continue
  target=$libdir${variant#"$built"}
  file 755 "$variant/libthalweg.so.1" "$target/libthalweg.so.1.$version"
  link "libthalweg.so.1.$version" "$target/libthalweg.so.1"
done
link libthalweg.so.1 "$libdir/libthalweg.so"
[ ! -f "$built/libthalweg.a" ] || file 644 "$built/libthalweg.a" "$libdir/libthalweg.a"
for header in thalweg.h thalweg.hpp; do file 644 "$include/thalweg/$header" "include/thalweg/$header"; done
filled thalweg.pc.in "$libdir/pkgconfig/thalweg.pc"
filled thalwegConfig.cmake.in "$libdir/cmake/thalweg/thalwegConfig.cmake"
filled thalwegConfigVersion.cmake.in "$libdir/cmake/thalweg/thalwegConfigVersion.cmake"
file 644 "$here/../../LICENSE" share/doc/thalweg/LICENSE
for licence in "$here"/licenses/LICENSE.*; do file 644 "$licence" "share/doc/thalweg/$(basename "$licence")"; done
into "$list"
printf '%s\n' "${put[@]}" > "$root/$list"
echo "thalweg $version is installed in $root"

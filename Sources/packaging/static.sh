#!/usr/bin/env bash
# Makes an archive of a built library, with the Swift runtime in it: one object, in which only the functions of the C
# interface have names.  It wants the C++ and C libraries of the system: -lstdc++ -lm -lpthread -ldl.
#
# usage: static.sh RELEASE_FOLDER ARCHIVE
#
#   RELEASE_FOLDER  where the package manager built the product `thalweg`, as .build/x86-64/release
set -euo pipefail

[ $# -eq 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
release=$1
archive=$2
runtime=$(swiftc -static-stdlib -print-target-info | sed -n 's/.*"runtimeResourcePath": "\(.*\)".*/\1/p')/linux
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

mapfile -t objects < <(tr -d "'\"" < "$release/thalweg.product/Objects.LinkFileList")
mapfile -t functions < <(nm -D --defined-only "$release/libthalweg.so" | sed -n 's/.* T \(tw_[a-z0-9_]*\).*/-u\1/p')
# What the library's own reserve of memory stands in front of.
mapfile -t wrapped < <(
  sed -n 's/^let wrapped = \[\(.*\)\]/\1/p' "$root/Package.swift" | grep -o '[A-Za-z_]*' | sed 's/^/--wrap=/')
swift=(swiftCore swift_Concurrency swiftGlibc swiftSwiftOnoneSupport swift_StringProcessing dispatch BlocksRuntime)
libraries=("${swift[@]/#/$runtime/lib}")
libraries=("${libraries[@]/%/.a}")

# The linker binds what the library and the runtime want of each other, and leaves out what nothing reaches.
ld -r --gc-sections --force-group-allocation "${functions[@]}" "${wrapped[@]}" -o "$work/whole.o" "${objects[@]}" \
  "$runtime/$(uname -m)/swiftrt.o" --start-group "${libraries[@]}" --end-group
objcopy --wildcard --keep-global-symbol='tw_*' --strip-unneeded "$work/whole.o" "$work/thalweg.o"
mkdir -p "$(dirname "$archive")"
rm -f "$archive"
ar rcs "$archive" "$work/thalweg.o"

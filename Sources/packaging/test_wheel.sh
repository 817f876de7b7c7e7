#!/usr/bin/env bash
# Installs a wheel into a new environment and runs Python tests there, as on a machine with neither Swift nor a compiler nor
# OpenBLAS: PATH has the environment alone, and matrix methods find NumPy's OpenBLAS.
#
# usage: test_wheel.sh PYTHON WHEEL [TEST...]     (tests below python/tests; a few of each kind by default)
#
# Environment: KEEP, a folder for the environment, which is kept; LIMIT, milliseconds that `import thalweg` may take beside
# NumPy (60), of processor time: others may keep the machine busy.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '5s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
python=$1
wheel=$(realpath "$2")
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
tests=("$@")
[ $# -gt 0 ] || tests=(test_answers test_aggregate test_checkpoint test_objectives test_matrix_family test_bad_input)
tests=("${tests[@]/#/tests/}")
tests=("${tests[@]/%/.py}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${KEEP:-$work/venv}
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel" pytest hypothesis ml_dtypes scipy
# The tests, without the sources beside them.
mkdir -p "$work/python"
cp -r "$root/python/tests" "$root/python/pyproject.toml" "$work/python/"
cd "$work/python"
clean() { env -i HOME="$work" PATH="$venv/bin" LANG=C.UTF-8 "$@"; }

clean python - "${LIMIT:-60}" <<'P'
import importlib.metadata, subprocess, sys
import numpy, thalweg
assert "site-packages" in thalweg.__file__, thalweg.__file__
files = [str(f) for f in importlib.metadata.files("thalweg")]
for wanted in ("licenses/LICENSE", "licenses/LICENSE.swift.txt", "lib/libthalweg.so.1"):
    assert any(f.endswith(wanted) for f in files), wanted
about = importlib.metadata.metadata("thalweg")
assert about["License-Expression"] and "From Python" in about.get_payload()
print(thalweg.build_info)
w, g = numpy.eye(8, dtype="f4"), numpy.ones((8, 8), "f4")
thalweg.Optimizer([w], "muon(lr=0.1)").step([g])
assert numpy.isfinite(w).all() and not (w == numpy.eye(8)).all()
maps = open("/proc/self/maps").read()
print("matrix products:", "the system's OpenBLAS" if "libopenblas.so.0" in maps else "NumPy's or SciPy's OpenBLAS")
code = "import time, numpy; t = time.process_time(); import thalweg; print((time.process_time() - t) * 1e3)"
best = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5))
print(f"import beside NumPy: {best:.0f} ms")
assert best < float(sys.argv[1]), "that is too long"
P
clean python -m thalweg info
clean python -m pytest -q -p no:cacheprovider "${tests[@]}"

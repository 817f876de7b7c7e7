#!/usr/bin/env bash
# Installs a wheel into a new environment and runs Python tests there, as on a machine with neither Swift nor a compiler nor
# OpenBLAS: PATH has the environment alone, and matrix methods find NumPy's OpenBLAS.
#
# usage: test_wheel.sh PYTHON WHEEL [TEST...]     (tests below python/tests; all but those below by default)
#
# Environment: KEEP, a folder for the environment, which is kept; LIMIT, milliseconds that `import thalweg` may take beside
# NumPy (60), of processor time: others may keep the machine busy.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '5s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
python=$1
wheel=$(realpath "$2")
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# What the wheel is not tried with, as patterns of names:
left_out=(
  # needs torch or JAX, which are gigabytes: `make test` has them
  'torch_*' 'jax_*' 'distributed*' values_of_any_type hosts_hostile peers_missing peers_of_matrices
  # needs the sources, the benchmarks or the documentation beside the tests, a compiler, or the packages of the command line
  documentation examples readme stubs source_archive benchmark_cases maps narrow_state other_names command_line
  openblas_found
  # minutes of the same kernels, with more sentences and sizes: `make test`
  properties contract_resume contract_resume_groups contract_schedules contract_look contract_groups contract_interrupt
  solvers solver_family answers_that_stay scores_and_diagnostics edges_of_the_range fork_threads
)
tests=()
for path in "$root"/python/tests/test_*.py; do
  name=$(basename "$path" .py)
  for pattern in "${left_out[@]}"; do
    # shellcheck disable=SC2053
    [[ ${name#test_} == $pattern ]] && continue 2
  done
  tests+=("$name")
done
[ $# -eq 0 ] || tests=("$@")
tests=("${tests[@]/#/tests/}")
tests=("${tests[@]/%/.py}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=${KEEP:-$work/venv}
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel" pytest pytest-xdist hypothesis ml_dtypes scipy
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
print("matrix products:", thalweg.build_info.split(", ", 2)[2])
code = "import time, numpy; t = time.process_time(); import thalweg; print((time.process_time() - t) * 1e3)"
best = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5))
print(f"import beside NumPy: {best:.0f} ms")
assert best < float(sys.argv[1]), "that is too long"
P
clean python -m thalweg info
clean python -m pytest -q -p no:cacheprovider -n "${JOBS:-$(nproc)}" --dist worksteal "${tests[@]}"

"""Where matrix methods get OpenBLAS from: the system's, that of the package scipy-openblas32, or the one that NumPy's or
SciPy's wheel brought.

The C file is compiled alone with another name for the system's, as on a machine that has none. Each case is a
process of its own, since a process looks once.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "Sources" / "COpenBLAS"

CASE = """
import ctypes, sys
import numpy as np
if sys.argv[2] == "scipy":
    import scipy.linalg
library = ctypes.CDLL(sys.argv[1])
library.twb_description.restype = ctypes.c_char_p
if not library.twb_available():
    print("none:", library.twb_description().decode()); sys.exit()
print("found:", library.twb_description().decode())

def at(a):
    return a.ctypes.data_as(ctypes.c_void_p)

i, d, f = ctypes.c_int, ctypes.c_double, ctypes.c_float
rng = np.random.default_rng(0)
n, m, k = 7, 5, 6
for dtype, real, gemm in ((np.float32, f, library.twb_sgemm), (np.float64, d, library.twb_dgemm)):
    a, b, c = (rng.normal(size=s).astype(dtype) for s in ((m, k), (n, k), (m, n)))
    want = 2 * a @ b.T + 3 * c
    gemm(False, True, m, n, k, real(2), at(a), k, at(b), k, real(3), at(c), n)
    assert np.allclose(c, want, rtol=1e-5)
for dtype, real, syrk in ((np.float32, f, library.twb_ssyrk), (np.float64, d, library.twb_dsyrk)):
    a, c = rng.normal(size=(m, k)).astype(dtype), np.zeros((m, m), dtype)
    syrk(False, m, k, real(1), at(a), k, real(0), at(c), m)
    assert np.allclose(c, np.triu(a @ a.T), rtol=1e-5)

a = np.asfortranarray(rng.normal(size=(n, n)))
x, pivot, lu = rng.normal(size=n), np.zeros(n, np.int32), a.copy("F")
solution = x.copy()
assert library.twb_dgesv(n, 1, at(lu), n, at(pivot), at(solution), n) == 0
assert np.allclose(a @ solution, x) and (1 <= pivot).all() and (pivot <= n).all()
assert library.twb_dgesv(n, -1, at(lu), n, at(pivot), at(solution), n) == -2       # INFO, negative

spd = np.asfortranarray(a @ a.T + np.eye(n))
factor, solution = spd.copy("F"), x.copy()
assert library.twb_dpotrf(n, at(factor), n) == 0 and library.twb_dpotrs(n, 1, at(factor), n, at(solution), n) == 0
assert np.allclose(spd @ solution, x)
assert library.twb_dpotrf(n, at(np.asfortranarray(-spd)), n) == 1

size, sizes = np.zeros(1), np.zeros(1, np.int32)
values, vectors = np.zeros(n), spd.copy("F")
assert library.twb_dsyevd(n, at(vectors), n, at(values), at(size), -1, at(sizes), -1) == 0
assert sizes[0] >= 3 + 5 * n                                                        # the size that it asks for
work, integers = np.zeros(int(size[0])), np.zeros(sizes[0], np.int32)
assert library.twb_dsyevd(n, at(vectors), n, at(values), at(work), len(work), at(integers), len(integers)) == 0
assert np.allclose(values, np.linalg.eigvalsh(spd)) and np.allclose(spd @ vectors, vectors * values)

for dtype, svd in ((np.float32, library.twb_sgesdd), (np.float64, library.twb_dgesdd)):
    a = np.asfortranarray(rng.normal(size=(n, m)).astype(dtype))
    s, work = np.zeros(m, dtype), np.zeros(4000, dtype)
    u, v = np.zeros((n, m), dtype, "F"), np.zeros((m, m), dtype, "F")
    integers, copy = np.zeros(8 * m, np.int32), a.copy("F")
    assert svd(n, m, at(copy), n, at(s), at(u), n, at(v), m, at(work), len(work), at(integers)) == 0
    assert np.allclose(u * s @ v, a, atol=1e-5)

q, tau, work = a.copy("F"), np.zeros(m), np.zeros(4000)
assert library.twb_dgeqrf(n, m, at(q), n, at(tau), at(work), len(work)) == 0
r = np.triu(q[:m])
assert library.twb_dorgqr(n, m, m, at(q), n, at(tau), at(work), len(work)) == 0
assert np.allclose(q @ r, a)
print("right")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if not SOURCES.is_dir() or not shutil.which("cc"):
        pytest.skip("needs the C sources and a compiler")
    target = tmp_path_factory.mktemp("openblas") / "libshim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", '-DNAME="libno_such_openblas.so.0"', f"-I{SOURCES / 'include'}"]
    subprocess.run([*command, str(SOURCES / "openblas.c"), "-o", str(target), "-ldl"], check=True)
    return target


@pytest.mark.parametrize("host", ["numpy", "scipy"])
def test_the_one_of_a_host_serves_where_the_system_has_none(shim, host):
    pytest.importorskip(host)
    brought = list(Path(sys.modules[host].__file__).parent.with_name(f"{host}.libs").glob("*openblas*"))
    if not brought:
        pytest.skip(f"this {host} did not bring an OpenBLAS")
    run = subprocess.run([sys.executable, "-c", CASE, str(shim), host], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.endswith("right\n"), run.stdout + run.stderr
    found = Path(run.stdout.splitlines()[0].partition(", from ")[2])
    assert found.resolve() in [path.resolve() for path in brought]
    # SciPy's, with 32-bit integers, is taken where both are there.
    assert ("USE64BITINT" in run.stdout) == (host == "numpy"), run.stdout


def test_the_package_of_openblas_beside_the_library_comes_before_that_of_a_host(shim, tmp_path):
    """As `pip install thalweg[openblas]` lays it out; a library of another name stands for that package's."""
    scipy = pytest.importorskip("scipy")
    brought = [*Path(scipy.__file__).parent.with_name("scipy.libs").glob("libscipy_openblas*")]
    if not brought:
        pytest.skip("this SciPy did not bring an OpenBLAS")
    library = tmp_path / "thalweg" / "lib" / "glibc-hwcaps" / "x86-64-v3" / "libthalweg.so.1"
    package = tmp_path / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
    for path in (library, package):
        path.parent.mkdir(parents=True)
    shutil.copy(shim, library)
    package.symlink_to(brought[0])
    run = subprocess.run([sys.executable, "-c", "import scipy.linalg\n" + CASE, str(library), "numpy"],
                         capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.endswith("right\n"), run.stdout + run.stderr
    assert run.stdout.splitlines()[0].endswith(f", from {package}"), run.stdout


def test_without_any_it_says_what_is_missing(shim, tmp_path):
    program = tmp_path / "none.c"
    program.write_text(
        '#include <stdio.h>\n#include "COpenBLAS.h"\nint main(void) { int found = twb_available(); puts(twb_description()); return found; }\n'
    )
    command = ["cc", f"-I{SOURCES / 'include'}", str(program), str(shim), "-o", str(tmp_path / "none")]
    subprocess.run(command, check=True)
    environment = {"LD_LIBRARY_PATH": str(shim.parent)}
    run = subprocess.run([tmp_path / "none"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "OpenBLAS was not found (libno_such_openblas.so.0; Debian's package libopenblas0, or pip install scipy-openblas32)\n"

"""`info`: what is installed, what the machine can do, and what would be faster."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np

import thalweg

from .console import print_table

LEVELS = {  # the flags of /proc/cpuinfo that the instruction sets of x86-64 go by
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def info(_: argparse.Namespace) -> int:
    """`info`: a table of facts, and advice where there is some."""
    facts, advice = collect()
    print_table(["what", "here"], facts.items())
    print()
    for line in advice or ["Nothing that is known here would be faster."]:
        print(f"- {line}" if advice else line)
    return 0


def collect() -> tuple[dict[str, str], list[str]]:
    """The facts by name, and what would be faster, a sentence each."""
    level, best = _loaded_level(), _best_level()
    blas = _blas() if _has_products() else None
    cores, threads = len(os.sched_getaffinity(0)), thalweg.get_num_threads()
    facts = {
        "thalweg": thalweg.version,
        "build": thalweg.build_info.partition(", OpenBLAS")[0],
        "methods": str(len(thalweg.methods())),
        "Python": f"{platform.python_version()} ({platform.python_implementation()}), {sys.platform} "
                  f"{platform.machine()}",
        "NumPy": np.__version__,
        "processor": f"{_processor()}, {best or 'x86-64'}" if platform.machine() == "x86_64" else _processor(),
        "instruction set": f"{level}, from {_library()}",
        "matrix products": blas or "no OpenBLAS found: matrix methods refuse to step",
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", "not set"),
        "threads": f"{threads} of {cores} processors that this process may use (THALWEG_NUM_THREADS; "
                   "not OMP_NUM_THREADS)",
        "large pages": _large_pages(),
    }
    for name in ("torch", "jax", "rich", "matplotlib", "scikit-learn"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts, _advice(level, best, blas, threads, cores)


def _advice(level: str, best: str, blas: str | None, threads: int, cores: int) -> list[str]:
    advice = []
    order = ["x86-64", *LEVELS]
    if best and level in order and order.index(level) < order.index(best):
        advice.append(f"This processor has {best}, and the library that is loaded is for {level}: install one that is "
                      "built for both (`make install`, or a wheel), or build with THALWEG_MARCH=native.")
    if threads < cores:
        advice.append(f"Steps of large tensors run on {threads} of {cores} processors: "
                      f"thalweg.set_num_threads({cores}).")
    if blas is None:
        advice.append("Matrix methods need OpenBLAS: install libopenblas0 (Debian), or scipy-openblas32, "
                      "NumPy or SciPy from their wheels.")
    elif best == "x86-64-v3" and re.search(r"prescott|nehalem|core2|sandybridge", blas, re.I):
        advice.append("OpenBLAS took a core for older processors: OPENBLAS_CORETYPE=Haswell.")
    return advice


def _mapped() -> list[str]:
    """The shared libraries of this process."""
    try:
        return sorted({line.split(maxsplit=5)[5].strip() for line in Path("/proc/self/maps").open() if ".so" in line})
    except (OSError, IndexError):
        return []


def _library() -> str:
    found = [path for path in _mapped() if "libthalweg" in path]
    return found[0] if found else "a place that this system does not tell"


def _loaded_level() -> str:
    """The instruction set of the library that the loader chose: the folder tells, else the build itself does."""
    found = re.search(r"glibc-hwcaps/([^/]+)/", _library())
    built = re.search(r"\bx86-64(?:-v\d)?\b", thalweg.build_info)
    return found[1] if found else built[0] if built else platform.machine()


def _best_level() -> str:
    """The best of LEVELS that the processor has; "" where none is, or none can be told."""
    try:
        flags = set(_cpuinfo("flags").split())
    except (OSError, StopIteration):
        return ""
    best = ""
    for level, wanted in LEVELS.items():
        if not wanted <= flags:
            break
        best = level
    return best


def _cpuinfo(field: str) -> str:
    """What /proc/cpuinfo says in its first line of that name; OSError or StopIteration where there is none."""
    with Path("/proc/cpuinfo").open() as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(field))


def _processor() -> str:
    try:
        return _cpuinfo("model name")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _has_products() -> bool:
    """Whether a matrix method finds the products that it needs."""
    try:
        w = np.eye(64, dtype=np.float32)
        thalweg.Optimizer([w], "muon(lr=0.01)").step([w.copy()])
    except thalweg.Error:
        return False
    return True


def _blas() -> str:
    """OpenBLAS with its core and its file, as it describes itself once it is loaded."""
    told, _, path = thalweg.build_info.split(", ", 2)[2].partition(", from ")
    return f"{told}, from {os.path.normpath(path)}"


def _large_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "not known"
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else text.strip()

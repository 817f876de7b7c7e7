"""Workers, timing, the plain C loop, tables."""

from __future__ import annotations

import ctypes
import datetime
import functools
import gc
import importlib
import json
import math
import os
import platform
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], object]
Shapes = list[tuple[int, int]]
PAUSE = 0.02  # seconds between two candidates: idle OpenMP threads spin for some 10 ms before they sleep
LONG = 0.5  # seconds of a step that one turn warms up

# ---- workers: tasks run in fresh processes that have a given number of CPUs


def run_tasks(
    suite: str, tasks: Sequence[dict[str, Any]], threads: int, timeout: float = 300
) -> Iterator[dict[str, Any]]:
    """Yields the result of every task, in order: what `suite.task(**task)` returned, or {"error": reason}.

    The tasks share one process.  When it dies, or a task takes longer than `timeout` seconds, that task has failed, and
    the next one gets a fresh process.
    """
    waiting = list(tasks)
    while waiting:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "--worker", suite, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=environment(threads),
        )  # fmt: skip
        with process:
            while waiting:
                try:
                    process.stdin.write(json.dumps(waiting[0]).encode() + b"\n")
                    ready = select.select([process.stdout], [], [], timeout)[0]
                    line = process.stdout.readline() if ready else b""
                except OSError:
                    ready, line = [True], b""
                waiting.pop(0)
                if not line:
                    process.kill()
                    yield {"error": f"ended with status {process.wait()}" if ready else f"longer than {timeout:.0f} s"}
                    break
                yield json.loads(line)
            process.stdin.close()


def environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "THALWEG_NUM_THREADS")
    return {**os.environ, **{name: str(threads) for name in names}, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def work(suite: str, threads: int) -> None:
    """The worker: a task a line on the standard input, a result a line on the standard output."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    module = importlib.import_module(f"benchmarks.{suite}")
    for line in sys.stdin:
        try:
            result = module.task(**json.loads(line))
        except Exception as problem:
            result = {"error": reason(problem)}
        print(json.dumps(result), file=out, flush=True)
        gc.collect()


def reason(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"[:160]


# ---- timing


def measure(
    builders: dict[str, Callable[[], Step]], repetitions: int, seconds: float = math.inf
) -> dict[str, Any]:
    """The median seconds of a step of each candidate; {"error": ...} for those that cannot be built or run.

    The candidates take turns, with a pause between them in which the threads of the one before fall asleep.  Short
    steps are repeated to 10 ms a turn.  After `seconds` no round of turns begins, but three are taken in any case.
    """
    results: dict[str, Any] = {}
    steps: dict[str, tuple[Step, int]] = {}
    for label, build in builders.items():
        try:
            step = build()
            if (took := timed(step)) < LONG:
                step()
                took = timed(step)
            steps[label] = step, max(1, math.ceil(0.01 / max(took, 1e-7)))
        except Exception as problem:
            results[label] = {"error": reason(problem)}
    samples: dict[str, list[float]] = {label: [] for label in steps}
    begun = time.perf_counter()
    for turn in range(repetitions):
        if turn >= 3 and time.perf_counter() - begun > seconds:
            break
        for label, (step, count) in steps.items():
            time.sleep(PAUSE)
            samples[label].append(timed(step, count) / count)
    return results | {label: statistics.median(s) for label, s in samples.items()}


def timed(step: Step, count: int = 1) -> float:
    """Seconds of `count` steps."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - started


def arrays(shapes: Shapes, seed: int, scale: float = 1.0) -> list[np.ndarray]:
    """Normal numbers, the same block over and over: drawing them all would take longer than the steps."""
    block = np.random.default_rng(seed).standard_normal(1 << 16, np.float32) * np.float32(scale)
    return [np.resize(block, shape) for shape in shapes]


def elements(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes have."""
    return sum(a * b for a, b in shapes)


def problem(shapes: Shapes) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and gradients, float32."""
    return arrays(shapes, 1), arrays(shapes, 2, 1e-2)


# ---- the yardstick: a plain C loop over the same bytes

ADAMW = """
void adamw(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, long n) {
  #pragma omp for simd schedule(static) nowait
  for (long i = 0; i < n; i++) {
    m[i] = 0.9f * m[i] + 0.1f * g[i];
    v[i] = 0.999f * v[i] + 0.001f * g[i] * g[i];
    p[i] = p[i] * 0.99999f - 1e-3f * (m[i] * 1.01f) / (__builtin_sqrtf(v[i] * 1.01f) + 1e-8f);
  }
}
void adamw_all(long count, const long *n, float **p, float **g, float **s) {
  #pragma omp parallel
  for (long t = 0; t < count; t++) adamw(p[t], g[t], s[t], s[count + t], n[t]);
}
"""


def walk_source(k: int) -> str:
    """A loop that reads p, g and k states and writes p and the states, with hardly any arithmetic."""
    states = [f"s{j}" for j in range(k)]
    formals = "".join(f", float *restrict {s}" for s in states)
    actuals = "".join(f", s[{j} * count + t]" for j in range(k))
    body = " ".join(f"{s}[i] = 0.9f * {s}[i] + 0.1f * g[i];" for s in states)
    total = " + ".join([f"{s}[i]" for s in states] or ["g[i]"])
    return f"""
void walk{k}(float *restrict p, const float *restrict g{formals}, long n) {{
  #pragma omp for simd schedule(static) nowait
  for (long i = 0; i < n; i++) {{ {body} p[i] -= 1e-3f * ({total}); }}
}}
void walk{k}_all(long count, const long *n, float **p, float **g, float **s) {{
  #pragma omp parallel
  for (long t = 0; t < count; t++) walk{k}(p[t], g[t]{actuals}, n[t]);
}}
"""

SCALE = """
void scale_all(long count, const long *n, float **p, float **g, float **s) {
  #pragma omp parallel
  for (long t = 0; t < count; t++) {
    float *restrict w = p[t];
    #pragma omp for simd schedule(static) nowait
    for (long i = 0; i < n[t]; i++) w[i] *= 0.9999999f;
  }
}
"""

READ = """
volatile float seen;
void read_all(long count, const long *n, float **p, float **g, float **s) {
  for (long t = 0; t < count; t++) {
    const float *restrict w = p[t];
    float sum = 0;
    #pragma omp parallel for simd schedule(static) reduction(+ : sum)
    for (long i = 0; i < n[t]; i++) sum += w[i];
    seen = sum;
  }
}
"""


@functools.cache
def loops() -> ctypes.CDLL:
    """The loops, compiled for this machine."""
    folder = tempfile.TemporaryDirectory()
    source, library = Path(folder.name) / "loops.c", Path(folder.name) / "loops.so"
    source.write_text(ADAMW + SCALE + READ + "".join(walk_source(k) for k in range(13)))
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library)], check=True, capture_output=True)
    loaded = ctypes.CDLL(str(library))
    folder.cleanup()
    return loaded


def plain_loop(name: str, states: int, shapes: Shapes, over: list[np.ndarray] | None = None) -> Step:
    """A step of the loop `name` over parameters, gradients and `states` states of these shapes.

    "adamw" or "walk", or one over the parameters alone: "scale" reads and writes them, "read" adds them up; `over` are
    such parameters that are there already.
    """
    function = getattr(loops(), f"walk{states}_all" if name == "walk" else f"{name}_all")
    params, grads = problem(shapes) if name in ("adamw", "walk") else (over or arrays(shapes, 1), [])
    state = arrays(shapes * states, 3, 1e-2)
    for s in state:
        np.abs(s, out=s)

    def pointers(group: list[np.ndarray]) -> Any:
        return (ctypes.c_void_p * max(1, len(group)))(*[a.ctypes.data for a in group])

    sizes = (ctypes.c_long * len(shapes))(*[p.size for p in params])
    call = functools.partial(
        function, ctypes.c_long(len(shapes)), sizes, pointers(params), pointers(grads), pointers(state))
    keep = params, grads, state
    return lambda: (call(), keep)


# ---- tables


def machine() -> str:
    """Date, processor, cores and versions, in one line."""
    import thalweg

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.*)", cpuinfo.read_text())):
        model = found[1]
    when = datetime.date.today().isoformat()
    cores = len(os.sched_getaffinity(0))
    return f"{when}; {model}, {cores} cores; {thalweg.build_info.partition(', from ')[0]}; Python {platform.python_version()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in (header, *rows))  # also within `code`
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths)))
        return "| " + " | ".join([first, *others]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]) + " |"
    return "\n".join([line(header), rule, *map(line, rows)])


def duration(result: Any, unit: float = 1.0, digits: int = 2) -> str:
    """A measured time in units of `unit` seconds, "failed", or "" where there is nothing to measure."""
    if result is None:
        return ""
    return "failed" if isinstance(result, dict) else f"{result / unit:.{digits}f}"


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def ratio(a: Any, b: Any) -> str:
    """a / b, or "" when one of them failed."""
    return f"{a / b:.2f}" if isinstance(a, float) and isinstance(b, float) and b > 0 else ""


def write_section(path: Path, name: str, text: str) -> None:
    """Puts `text` between the markers of section `name`, which are appended where the file has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{text}\n{end}"
    old = path.read_text() if path.exists() else ""
    if begin in old and end in old:
        new = old[: old.index(begin)] + section + old[old.index(end) + len(end) :]
    else:
        new = f"{old}\n{section}\n"
    path.write_text(new)

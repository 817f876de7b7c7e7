"""`bench`: a step beside a NumPy copy that moves as many bytes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import thalweg

from .console import Refusal


def best_time(call: Callable[[], object], seconds: float = 0.5) -> float:
    """The shortest of repeated runs, in seconds."""
    call()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return best


def bench(arguments: argparse.Namespace) -> int:
    """A step beside a NumPy copy that moves as many bytes."""
    n = arguments.size
    if n < 1:
        raise Refusal("--size is at least 1")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise Refusal(f"--threads is at least 1, not {arguments.threads}")
        try:
            thalweg.set_num_threads(arguments.threads)
        except (thalweg.Error, OverflowError) as problem:
            raise Refusal(f"--threads {arguments.threads}: {problem}") from None
    rng = np.random.default_rng(0)
    side = int(n**0.5)
    shape = (side, side) if arguments.matrix else (n,)
    try:
        w = rng.standard_normal(shape, dtype=np.float32)
        g = rng.standard_normal(shape, dtype=np.float32)
    except (MemoryError, ValueError) as problem:
        raise Refusal(f"--size {n}: {problem}") from None
    n = w.size
    try:
        opt = thalweg.Optimizer([w], arguments.sentence)
        opt.bind_gradients([g])
        try:
            opt.step()
            step: Callable[[], object] = opt.step
        except thalweg.NeedsError:
            answer = (1.0, [g])
            step = lambda: opt.step(lambda request: answer)  # noqa: E731
        seconds = best_time(step)
    except thalweg.Error as problem:
        raise Refusal(str(problem)) from None
    moved = 3 * w.nbytes + 2 * opt.memory_report().total
    half = np.zeros(moved // 2, np.uint8)
    other = np.empty_like(half)
    copy = best_time(lambda: np.copyto(other, half))
    print(opt.sentence)
    print(f"{thalweg.build_info}; {thalweg.get_num_threads()} threads, {n:,} float32 elements")
    for what, took in (("step", seconds), ("NumPy copy", copy)):
        per_element, rate = took / n * 1e9, moved / took / 1e9
        print(f"{what:<10}  {took * 1e3:10.3f} ms   {per_element:8.3f} ns an element   {rate:7.1f} GB/s")
    print("GB/s counts parameters and state once in and once out, and gradients once in; the copy moves as much.")
    return 0

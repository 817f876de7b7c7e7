"""python -m thalweg: what the library knows, and how fast it is here."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

import thalweg

from . import _stubs


def list_methods(arguments: argparse.Namespace) -> int:
    chosen = thalweg.methods(arguments.kind)
    if not chosen:
        print(f"there is no method of kind {arguments.kind!r}; kinds: {', '.join(thalweg.kinds())}", file=sys.stderr)
        return 1
    width = max(len(m.name) for m in chosen)
    kind = max(len(m.kind) for m in chosen)
    for m in chosen:
        print(f"{m.name:<{width}}  {m.kind:<{kind}}  {m.summary}")
    return 0


def show(arguments: argparse.Namespace) -> int:
    try:
        m = thalweg.method(arguments.name)
    except thalweg.MethodError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(m)
    return 0


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
        print("--size is at least 1", file=sys.stderr)
        return 1
    if arguments.threads is not None and not 1 <= arguments.threads < 2**31:
        print(f"--threads is at least 1, not {arguments.threads}", file=sys.stderr)
        return 1
    if arguments.threads is not None:
        thalweg.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    side = int(n**0.5)
    shape = (side, side) if arguments.matrix else (n,)
    w = rng.standard_normal(shape, dtype=np.float32)
    g = rng.standard_normal(shape, dtype=np.float32)
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
        print(problem, file=sys.stderr)
        return 1
    moved = 3 * w.nbytes + 2 * opt.memory_report().total
    half = np.zeros(moved // 2, np.uint8)
    other = np.empty_like(half)
    copy = best_time(lambda: np.copyto(other, half))
    print(f"{opt.sentence}")
    print(f"{thalweg.build_info}; {thalweg.get_num_threads()} threads, {n:,} float32 elements")
    print(f"step        {seconds * 1e3:10.3f} ms   {seconds / n * 1e9:8.3f} ns an element   {moved / seconds / 1e9:7.1f} GB/s")
    print(f"NumPy copy  {copy * 1e3:10.3f} ms   {copy / n * 1e9:8.3f} ns an element   {moved / copy / 1e9:7.1f} GB/s")
    print("GB/s counts parameters, gradients and state once in and once out, the gradients only in; the copy moves as much.")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m thalweg", description=__doc__)
    parser.add_argument("--version", action="version", version=thalweg.build_info)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("methods", help="list the methods")
    command.add_argument("--kind", help="only those of one kind: " + ", ".join(thalweg.kinds()))
    command.set_defaults(run=list_methods)

    command = commands.add_parser("show", help="rule, hyper-parameters, state and source of a method")
    command.add_argument("name")
    command.set_defaults(run=show)

    command = commands.add_parser("bench", help="time a step beside a copy of as many bytes")
    command.add_argument("sentence", nargs="?", default="adamw(lr=1e-3)")
    command.add_argument("--size", type=int, default=1 << 24, metavar="N", help="elements (default 2**24)")
    command.add_argument("--threads", type=int, metavar="T", help="threads of a step")
    command.add_argument("--matrix", action="store_true", help="one square matrix in place of a vector")
    command.set_defaults(run=bench)

    command = commands.add_parser("stubs", help="the type stubs of the package")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--write", metavar="FILE", nargs="?", const="", help="write them (default: into the package)")
    mode.add_argument("--check", metavar="FILE", nargs="?", const="", help="fail when the file is not up to date")
    command.set_defaults(run=_stubs.main)

    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of a pipe has had enough
        sys.stderr.close()
        sys.exit(1)

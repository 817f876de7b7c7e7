"""Threads and processes: the same bits for any number of threads, steps at the same time, and after fork()."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Callable

import numpy as np
import pytest

import thalweg as tw
from support import Problem, assert_same_bits, run

SENTENCES = [
    "adamw(lr=0.01, weight_decay=0.1)",
    "clip_global_norm(1.0) | sgd(lr=0.1, momentum=0.9) | ema(0.9)",
    "sam(0.05) | adamw(lr=0.01)",
    "muon(lr=0.02)",
]
BIG = [(300, 700), (64, 64), (200_000,), (3,), ()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_same_bits_for_any_number_of_threads(sentence: str, dtype: type) -> None:
    shapes = [s for s in BIG if len(s) > 1] if "muon" in sentence else BIG
    results = []
    for threads in (1, 2, 3, 7):
        tw.set_num_threads(threads)
        params, opt = run(sentence, Problem(shapes, steps=3), 3, dtype)
        results.append((params, opt.state_dict()["state"]))
    for params, state in results[1:]:
        assert_same_bits(params, results[0][0])
        assert state == results[0][1]


def test_many_optimizers_at_the_same_time() -> None:
    tw.set_num_threads(2)
    expected, _ = run(SENTENCES[0], Problem(BIG, steps=4), 4, np.float32)
    outcomes: list[object] = []

    def work() -> None:
        try:
            params, _ = run(SENTENCES[0], Problem(BIG, steps=4), 4, np.float32)
            assert_same_bits(params, expected)
            outcomes.append(None)
        except BaseException as problem:  # noqa: BLE001
            outcomes.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert outcomes == [None] * 4


def test_other_python_threads_run_during_a_step() -> None:
    tw.set_num_threads(1)
    w, g = np.ones(30_000_000, np.float32), np.ones(30_000_000, np.float32)
    opt = tw.AdamW([w], lr=0.0)
    opt.bind_gradients([g])
    opt.step()
    started, ticks = threading.Event(), [0]

    def count() -> None:
        started.set()
        while ticks[0] >= 0:
            ticks[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    started.wait()
    before = ticks[0]
    for _ in range(5):
        opt.step()
    seen = ticks[0] - before
    ticks[0] = -1_000_000_000
    thread.join()
    assert seen > 5


def in_child(work: Callable[[], bool], seconds: float = 60) -> int:
    """The exit status of `work` in a forked child; -1 when it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 3)
        except BaseException as problem:  # noqa: BLE001
            print(problem, file=sys.stderr)
            os._exit(4)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("sentence", [SENTENCES[1], SENTENCES[3]])
def test_fork(sentence: str) -> None:
    """The child steps the parent's optimizer, and one of its own, to the same bits; the parent goes on."""
    tw.set_num_threads(2)
    shapes = [(300, 700), (500, 500)]
    problem = Problem(shapes, steps=6)
    params, opt = run(sentence, problem, 2, np.float32)
    expected, _ = run(sentence, problem, 4, np.float32)
    grads = opt.grads

    def go_on() -> bool:
        for k in (2, 3):
            for g, v in zip(grads, problem.gradient(params, k)):
                g[...] = v
            opt.step()
        return all(a.tobytes() == b.tobytes() for a, b in zip(params, expected))

    def child() -> bool:
        fresh, _ = run(sentence, problem, 4, np.float32)
        return go_on() and all(a.tobytes() == b.tobytes() for a, b in zip(fresh, expected))

    for _ in range(3):
        assert in_child(child) == 0
    assert go_on()

"""Numbers at the edges of the range of float32: where squares, products or factors alone would leave it.

What is right is the library's own run in float64, in which none of them do.  Float32 has 24 bits, 6e-8: a few
operations are held to 1e-5, sums and products of matrices to 1e-4, unless it says otherwise.
"""

from __future__ import annotations

import time
from typing import Any, Callable

import numpy as np
import pytest

import thalweg as tw


def moved(sentence: str, g: np.ndarray, steps: int, dtype: Any, start: float = 0.0) -> np.ndarray:
    w = np.full(g.shape, start, dtype)
    with tw.Optimizer([w], sentence, seed=3) as opt:
        given = np.zeros_like(w)
        opt.bind_gradients([given])
        for _ in range(steps):
            for request in opt.requests():
                if request.wants_loss:
                    request.loss = 1.0
                if request.wants_gradient:
                    given[...] = g.astype(dtype)
    return w.astype(np.float64)


def both(sentence: str, g: np.ndarray, steps: int = 3, start: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    g = g.astype(np.float32).astype(np.float64)  # the same numbers
    return moved(sentence, g, steps, np.float32, start), moved(sentence, g, steps, np.float64, start)


def combined(sentence: str, rows: np.ndarray, dtype: Any) -> np.ndarray:
    w = np.zeros(rows.shape[1], dtype)
    with tw.Optimizer([w], f"{sentence} | sgd(lr=1.0)", seed=3) as opt:
        g = np.zeros_like(w)
        opt.bind_gradients([g])
        for request in opt.requests():
            g[...] = rows[request.index].astype(dtype)
    return -w.astype(np.float64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


# ---- time


@pytest.mark.parametrize("name", ["psgd_lra", "psgd_xmat"])
def test_the_first_step_is_linear_in_the_parameters(name: str) -> None:
    """Sixteen times as many take sixteen times as long, and were 256 times as long; a factor of five is left."""
    times = []
    for n in (4096, 65536):
        w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
        with tw.Optimizer([w], f"{name}(fit=whiten)") as opt:
            begun = time.perf_counter()
            opt.step([g])
            times.append(time.perf_counter() - begun)
    assert times[1] < 80 * times[0]


def test_gcond_of_many_tasks(rng: np.random.Generator) -> None:
    """The resolution is of order tasks^3."""
    rows = rng.standard_normal((96, 40))
    begun = time.perf_counter()
    assert np.isfinite(combined("gcond(tasks=96)", rows, np.float64)).all()
    assert time.perf_counter() - begun < 30

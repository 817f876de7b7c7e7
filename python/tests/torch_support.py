"""What the tests of thalweg.torch share: parameters, steps with a given gradient, pairs of our optimizer and torch's.

Right values are torch.optim's own where it has the method, and arithmetic in plain numbers elsewhere.  Steps of sgd are
a product and a difference in float32 (or float64), the same here and there, so they are compared bit by bit.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest

torch = pytest.importorskip("torch")

from thalweg.torch import Optimizer  # noqa: E402


def parameter(*values: float, dtype: Any = torch.float64) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def step(opt: Any, gradient: float = 1.0) -> None:
    """A step in which every gradient is `gradient`."""
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, gradient)
    opt.step()


def twins(sentence: str, make: Callable[[Any], Any], count: int = 2) -> tuple[list[Any], list[Any]]:
    """(ours, theirs) on equal parameters, each as (optimizer, parameters)."""
    out = []
    for build in (lambda p: Optimizer(p, sentence), make):
        params = [parameter(1.0 + i, -2.0) for i in range(count)]
        out.append([build(params), params])
    return out[0], out[1]


def assert_equal(ours: list[Any], theirs: list[Any], **tolerance: float) -> None:
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), **(tolerance or {"rtol": 0.0, "atol": 0.0}))

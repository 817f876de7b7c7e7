"""What the optimizer references share: rules of one tensor at a time, global norms, and 0/0 = 0."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from .base import Arrays, OptimizerReference


class PerTensor(OptimizerReference):
    """A rule that treats every tensor alone: `update(p, g, s)` changes `p`, with state `s` (buffers and step count t from 1)."""

    buffers: ClassVar[tuple[str, ...]] = ()

    def start(self, params: Arrays) -> None:
        self.states = [self.fresh(p) for p in params]

    def fresh(self, p: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(t=0, **{b: np.zeros_like(p) for b in self.buffers})

    def step(self, params: Arrays, grads: Arrays, **oracles: Any) -> None:
        for p, g, s in zip(params, grads, self.states):
            s.t += 1
            self.update(p, g, s)

    def update(self, p: np.ndarray, g: np.ndarray, s: SimpleNamespace) -> None:
        raise NotImplementedError

    def decay(self, p: np.ndarray, g: np.ndarray, *, decoupled: bool) -> np.ndarray:
        """Decoupled decay shrinks p in place; coupled decay is added to the gradient, which is returned."""
        if not decoupled:
            return g + self.weight_decay * p
        p *= 1 - self.lr * self.weight_decay
        return g


def copies(xs: Arrays) -> Arrays:
    return [np.array(x, dtype=np.float64) for x in xs]


def zeros(xs: Arrays) -> Arrays:
    return [np.zeros_like(x) for x in xs]


def dot(xs: Arrays, ys: Arrays) -> float:
    """Inner product of two tensor lists seen as vectors."""
    return float(sum(np.sum(x * y) for x, y in zip(xs, ys)))


def norm(xs: Arrays) -> float:
    """Euclidean norm of a tensor list seen as one vector."""
    return float(np.sqrt(dot(xs, xs)))


def distance(xs: Arrays, ys: Arrays) -> float:
    return norm([x - y for x, y in zip(xs, ys)])


def ratio(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """a / b with 0/0 = 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 0.0, a / b)


def rademacher(normals: Arrays) -> Arrays:
    """The signs of normal draws, with sign(0) = 1."""
    return [np.where(z >= 0, 1.0, -1.0) for z in normals]

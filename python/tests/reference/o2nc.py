"""Online-to-non-convex conversion."""

from __future__ import annotations

import math
from typing import Any, Callable

from ._per_tensor import copies, norm, zeros
from .base import Arrays, OptimizerReference


def fraction(draws: Arrays) -> float:
    """A uniform number from the first normal draw of a step, through the normal distribution function."""
    return 0.5 * math.erfc(-float(draws[0].flat[0]) * math.sqrt(0.5))


class O2NC(OptimizerReference):
    """O2NC with online gradient descent as the learner (Cutkosky, Mehta, Orabona, 2023; arXiv:2302.03775).

    The parameters hold the query; `evaluation_weights` is the mean of the latest whole epoch of queries, or of the
    queries so far while there is none.
    """

    name = "o2nc"
    defaults = {"radius": 1e-2, "eta": 1e-2, "epoch": 10}
    settings = (
        {},
        {"radius": 0.3, "eta": 0.02, "epoch": 7},
        {"radius": 5.0, "eta": 0.01, "epoch": 1},
        {"radius": 0.2, "eta": 0.5, "epoch": 100},
    )

    def start(self, params: Arrays) -> None:
        self.x, self.delta, self.k = copies(params), zeros(params), 0
        self.queries: list[Arrays] = []
        self.candidate: Arrays | None = None

    def step(self, params: Arrays, grads: Arrays, *, normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        self.queries.append(copies(params))
        if len(self.queries) == self.epoch:
            self.candidate = self.mean()
            self.queries = []
        self.delta = [d - self.eta * g for d, g in zip(self.delta, grads)]
        length = norm(self.delta)
        if length > self.radius:
            self.delta = [d * (self.radius / length) for d in self.delta]
        s = fraction(normal(self.k))
        for query, x, d in zip(params, self.x, self.delta):
            query[...] = x + s * d
        self.x = [x + d for x, d in zip(self.x, self.delta)]
        self.k += 1

    def mean(self) -> Arrays:
        return [sum(tensors) / len(tensors) for tensors in zip(*self.queries)]

    def evaluation_weights(self, params: Arrays) -> Arrays:
        return self.mean() if self.candidate is None else copies(self.candidate)

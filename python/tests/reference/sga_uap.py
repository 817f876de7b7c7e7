"""Stochastic gradient aggregation for bounded perturbations."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import copies, zeros
from .base import Arrays, OptimizerReference


class SGAUAP(OptimizerReference):
    """SGA (Liu et al., 2023; arXiv:2308.06015), written to descend: the ascent of an attack is that of the negative
    loss.  `gradient_at` answers for every small batch of the inner run."""

    name = "sga_uap"
    needs = ("gradient_at",)
    required = ("inner_steps",)
    defaults = {"eps": 10 / 255, "step": None, "momentum": 0.0}
    settings = (
        {"inner_steps": 3},
        {"inner_steps": 4, "eps": 2.0, "step": 0.05},
        {"inner_steps": 1, "eps": 2.0, "step": 0.1},
        {"inner_steps": 5, "eps": 3.0, "step": 0.03, "momentum": 0.9},
        {"inner_steps": 1, "eps": 1.0, "momentum": 0.5},
    )

    def start(self, params: Arrays) -> None:
        self.velocity = zeros(params)

    def move(self, at: Arrays, g: Arrays) -> Arrays:
        length = self.eps / 10 if self.h["step"] is None else self.h["step"]
        return [np.clip(x - length * np.sign(d), -self.eps, self.eps) for x, d in zip(at, g)]

    def step(self, params: Arrays, grads: Arrays, *, gradient_at: Callable[[Arrays], Arrays] | None = None,
             **oracles: Any) -> None:
        at, seen = copies(params), [grads]
        while len(seen) < self.inner_steps:
            at = self.move(at, seen[-1])
            seen.append(gradient_at(copies(at)))
        v = [sum(gs) / self.inner_steps for gs in zip(*seen)]
        if self.momentum > 0:
            size = sum(float(np.sum(np.abs(g))) for g in v)
            self.velocity = [self.momentum * u + (g / size if size > 0 else g) for u, g in zip(self.velocity, v)]
            v = self.velocity
        for p, x in zip(params, self.move(params, v)):
            p[...] = x

"""Simultaneous perturbation: descent along a difference quotient of two losses."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from ._per_tensor import rademacher
from .base import Arrays, OptimizerReference


class SPSA(OptimizerReference):
    """SPSA (Spall, 1992), the gradient of the step is never looked at.  `normal(k)` gives the draws whose signs are delta.

    `clip_perturbed` takes both losses inside the box and divides by the true difference, elementwise; 0 where there is
    none (decided: the card does not say).
    """

    name = "spsa"
    needs = ("loss_at",)
    defaults = {"a": 0.1, "c": 0.1, "A": 0, "alpha": 0.602, "gamma": 0.101, "low": None, "high": None,
                "clip_perturbed": False}
    settings = (
        {},
        {"a": 0.02, "c": 0.01, "A": 3},
        {"a": 0.05, "alpha": 1.0, "gamma": 1 / 6, "low": -0.4, "high": 0.7},
        {"a": 0.05, "c": 0.3, "low": -0.4, "high": 0.7, "clip_perturbed": True},
        {"a": 0.05, "high": 0.2, "clip_perturbed": True},
    )

    def start(self, params: Arrays) -> None:
        self.k = 0
        self.low = -np.inf if self.h["low"] is None else self.h["low"]
        self.high = np.inf if self.h["high"] is None else self.h["high"]

    def step(self, params: Arrays, grads: Arrays, *, loss_at: Callable[[Arrays], float] | None = None,
             normal: Callable[[int], Arrays] | None = None, **oracles: Any) -> None:
        k, delta = self.k, rademacher(normal(self.k))
        a = self.a / (k + 1 + self.A) ** self.alpha
        c = self.c / (k + 1) ** self.gamma
        above, below = ([p + s * c * d for p, d in zip(params, delta)] for s in (1, -1))
        if self.clip_perturbed:
            above, below = ([np.clip(p, self.low, self.high) for p in points] for points in (above, below))
        difference = loss_at(above) - loss_at(below)
        for p, d, up, down in zip(params, delta, above, below):
            if self.clip_perturbed:
                with np.errstate(divide="ignore"):
                    g = np.where(up == down, 0.0, difference / (up - down))
            else:
                g = difference / (2 * c) / d
            p[...] = np.clip(p - a * g, self.low, self.high)
        self.k += 1
